//! The store: tasks, their history and their progress in one SQLite file.

mod header;
mod schema;
mod sqlite;
mod write;

pub use schema::OpenError;
pub use sqlite::SqliteStore;
pub use write::TaskWrite;

use cdc_core::ids::TaskId;
use serde::{Deserialize, Serialize};

/// What a person wants of a task. Survives every restart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Desired {
    Running,
    Paused {
        by: String,
        /// Unix milliseconds.
        since: u64,
        reason: String,
    },
}

/// A task as stored. `spec` is opaque JSON of the control plane and holds the token: it has no `Debug`.
#[derive(Clone, PartialEq)]
pub struct StoredTask {
    pub id: TaskId,
    pub spec: String,
    pub desired: Desired,
    /// Unix milliseconds.
    pub created: u64,
    pub updated: u64,
}

/// A stored task that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    pub id: TaskId,
    /// Shows nothing of what is stored: there is a token in it.
    pub cause: String,
}

/// One line of a task's history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Event {
    /// Unix milliseconds.
    pub at: u64,
    pub kind: String,
    pub text: String,
}

/// An event with its place in the history of all tasks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    /// Grows with every event of the store, over all tasks and restarts; never used again.
    pub seq: u64,
    pub task: TaskId,
    pub event: Event,
}

/// How many events are kept of one task, and of how many deleted tasks it is kept that they were deleted.
pub const EVENTS_KEPT: i64 = 200;
/// The kind of the one event that stays of a deleted task.
pub const DELETED: &str = "deleted";
