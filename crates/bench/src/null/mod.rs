//! A target that does nothing: it answers what a writer of replicated messages asks a standby Milvus 2.3.5, takes every
//! message, keeps none, and keeps a ledger of what it saw.
//!
//! Collections, partitions and indexes are remembered by name, so that a writer can make and describe them; loads and
//! flushes are done at once. It is no Milvus: nothing is checked but what the [`ledger`] counts.

pub mod histogram;
pub mod ledger;
mod objects;
pub mod report;
mod service;

pub use service::{NullTarget, Options};
