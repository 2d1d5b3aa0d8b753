//! The store in an etcd.
//!
//! All keys are below `{rootPath}/milvus-cdc/`:
//!
//! | key | value |
//! |---|---|
//! | `version` | of this layout |
//! | `owner` | the owner's name, held by its lease; its create revision is the epoch |
//! | `seq` | moved by every write |
//! | `tasks/{task}` | tasks |
//! | `last_event` | counts the events of all tasks; never goes back |
//! | `history/{seq}`, `events/{task}/{seq}` | the events of all tasks, and again of each |
//! | `deletions/{seq}/{task}` | which events say that a task was deleted |
//! | `progress/{task}/channels/{channel}` and the like | progress, see [`keys`] |
//! | `floors/{target}/{channel}` | F |
//! | `journal/…` | a write that is too large for one transaction, see [`writer`] |
//!
//! Every write is a transaction that holds only if `owner` still is the one of the writer's epoch and `seq` is where
//! the writer last saw it. So a server that was stopped for a while writes nothing over its successor's, and a write
//! of which no answer was seen cannot come late, behind the ones that followed it.

mod below;
mod keys;
mod link;
mod plan;
mod read;
mod store;
mod writer;

pub use below::read_below;
pub use link::{EtcdServer, EtcdStoreError};
pub use store::EtcdStore;
