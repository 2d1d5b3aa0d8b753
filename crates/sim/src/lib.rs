//! The corelib between a model of a source and a model of a standby, in a time of its own.
//!
//! The models are the in-memory twins of `cdc-core` and [`source`], [`world`] is an engine between them that can be
//! killed. A [`plan`] of what happens is made of a seed, [`run`] carries it out and asks the [`judge`] at every tick of
//! the target, and [`shrink`] makes a plan that fails small.
//!
//! Built with `--cfg tokio_unstable` a run is the same again, call by call (`cargo xtask simulate`): the clock is
//! paused, one thread does all, and tokio's own dice (`select!`) have the seed. Without, runs of one seed differ in them.
#![cfg(feature = "run")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

pub mod found;
pub mod gate;
pub mod judge;
pub mod messages;
pub mod plan;
pub mod points;
mod properties;
pub mod retries;
pub mod rows;
pub mod run;
pub mod shrink;
pub mod source;
pub mod world;
