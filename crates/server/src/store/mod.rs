//! The store: tasks, their history and their progress, in SQLite, PostgreSQL, MySQL or etcd.
//!
//! Several servers may share one of the latter three; [`owner`] says which of them runs the tasks. What a server
//! writes it writes within its term: when another one has taken over by then, the store writes nothing of it.

pub mod etcd;
pub mod open;
pub mod owner;
pub mod seal;
mod sql;
mod sqlite;
pub mod switch;
pub mod told;

pub use sql::{OpenSqlError, SqlServer, SqlStore};
pub(crate) use sql::{explain_mysql, is_no_table, mysql_options};
pub use sqlite::OpenError;

/// The store on SQLite is the SQL store on a file.
pub type SqliteStore = SqlStore;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::ids::TaskId;
use cdc_core::store::{Change, ProgressStore, StoreError};
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
    /// Its target is on the way to being a Milvus of its own; it never runs again.
    Promoting {
        by: String,
        since: u64,
    },
    /// Its target is a Milvus of its own.
    Promoted {
        by: String,
        since: u64,
        /// What was seen at the end.
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
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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

/// A change to the tasks themselves.
#[derive(Clone)]
pub enum TaskWrite {
    Create(StoredTask),
    /// `at` in unix milliseconds.
    SetDesired {
        task: TaskId,
        desired: Desired,
        at: u64,
    },
    /// The same spec in another form.
    SetSpec {
        task: TaskId,
        spec: String,
    },
    /// The task, its history and all its progress.
    Delete(TaskId),
    Event {
        task: TaskId,
        event: Event,
    },
}

/// One thing to write; a job of several is written whole or not at all.
#[derive(Clone)]
pub(crate) enum Write {
    Progress(Change),
    Task(TaskWrite),
}

/// The whole store: progress, and the tasks themselves.
#[async_trait]
pub trait TaskStore: ProgressStore {
    /// Writes changes of tasks in one transaction.
    async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError>;
    /// Every task, by the time of its creation; one that cannot be read does not hide the others.
    async fn tasks(&self) -> Result<Vec<Result<StoredTask, Unreadable>>, StoreError>;
    /// The history of a task, the newest first.
    async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError>;
    /// What is in the history behind the place `after`, of one task or of all, the oldest first. What is seen of it is
    /// never followed by something with a smaller `seq`.
    async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError>;
    /// Waits until what is queued now is written, at most for `deadline`, and closes the store.
    async fn close(&self, deadline: Duration);
}

pub type SharedTaskStore = Arc<dyn TaskStore>;

/// A store and who may write to it. The handle itself reads; see [`Backend::of_term`].
#[async_trait]
pub trait Backend: TaskStore {
    /// Takes the ownership if nobody holds it. Asked again and again: some stores know only by watching that an owner
    /// is gone.
    async fn take(&self, claim: &owner::Claim) -> Result<owner::Taken, StoreError>;
    /// Says that the owner is alive; `false`: this term is over.
    async fn renew(&self, term: &owner::Term) -> Result<bool, StoreError>;
    /// Ends the term, so that the next owner need not wait.
    async fn release(&self, term: &owner::Term) -> Result<(), StoreError>;
    /// A handle that writes for as long as this term lasts. After that every write is [`StoreError::NotOwner`].
    fn of_term(&self, term: &owner::Term) -> SharedTaskStore;
}
