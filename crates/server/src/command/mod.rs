//! The commands beside `server` and `task`.

pub mod doctor;
pub mod promote;
