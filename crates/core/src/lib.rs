//! The corelib of milvus-cdc: what a source Milvus writes to its message queue and its etcd, carried in order to a
//! target Milvus.
//!
//! The modules are named in the order in which the data passes them:
//!
//! - [`catalog`]: what exists on the source, from its etcd (list + watch).
//! - [`source`]: the ordered raw messages of one physical channel, from the source's message queue.
//! - [`decode`]: bytes of one message to what the pipeline has to know of it. Pure.
//!
//! Nothing in here knows HTTP, YAML, the environment or how tasks are created.

pub mod backoff;
pub mod boot;
pub mod catalog;
pub mod decode;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod ids;
pub mod lane;
mod lead;
mod pipeline;
pub mod position;
pub mod promote;
pub mod quarantine;
pub mod repair;
pub mod route;
pub mod secret;
pub mod select;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod takeover;
pub mod target;
pub mod task;
pub mod tls;
pub mod tso;
