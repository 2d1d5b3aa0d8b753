//! What milvus-cdc costs. A queue and an etcd are filled as a source Milvus 2.3.5 fills them, the program runs as a
//! process of its own, and the target is one that only counts.
//!
//! - [`null`]: the target, which any CDC server can be pointed at (`cdc-null-target`).
//! - [`source`]: messages and metadata of a source that is not there, on a real queue and a real etcd.
//! - [`proc`]: what a process has used. [`scenario`]: what is measured. [`run`]: how.

pub mod null;
pub mod proc;
pub mod run;
pub mod scenario;
pub mod source;
