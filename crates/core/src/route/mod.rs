//! What a source message becomes on the target: ids, channels, times. Pure.

pub mod encode;
pub mod hash;
pub mod tsmap;
