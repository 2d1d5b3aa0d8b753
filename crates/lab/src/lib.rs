//! A laboratory for milvus-cdc: real Milvus servers on one machine, a workload that uses every operation, and the
//! comparison of two servers by reading both.
//!
//! - [`servers`]: Milvus 2.3.5 as a source or as a standby target. [`cdc`]: the `milvus-cdc` binary as a process.
//! - [`client`]: calls to Milvus. [`workload`]: a seeded mix of operations. [`compare`]: what differs.
//! - [`chaos`]: all of that under faults, for as long as wanted.
//! - [`proxy`]: a target that loses replies; [`link`]: connections that break. [`sabotage`]: spoils one thing on a target, so that the comparison can be tested.
//! - `audit` (feature `audit`): what a standby was given, read from its log.

#[cfg(feature = "audit")]
pub mod audit;
pub mod cdc;
pub mod chaos;
pub mod client;
pub mod compare;
pub mod demo;
pub mod http;
pub mod latency;
pub mod link;
pub mod progress;
pub mod proxy;
pub mod sabotage;
pub mod servers;
pub mod workload;
