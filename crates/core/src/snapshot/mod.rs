//! Rows that the source had before the task: read from it as a client would, written to the target, before a
//! collection's messages are.
//!
//! The queue does not reach back to them. So, for a collection that is copied:
//!
//! 1. Where its messages will be read from is stored first: on each of its channels a place and a tick T behind it.
//! 2. All its rows are read, as the source shows them at T or later (a guarantee timestamp), in ranges of their keys, and
//!    written. Nothing of its messages is applied before the last of them is acknowledged.
//! 3. Then W of its channels is raised to a bound of all timestamps the source has given out, on disk, and its messages
//!    are read from their places.
//!
//! What a page showed of a key is what the source had of it at some time between T and W. All that happened to the key
//! after T comes again from the queue, in its order, and up to W in window form, where an insert takes away the copy that
//! the page brought. So the last thing that is done to a key is what the source did last; a key that nothing happened to
//! since T keeps its row. A key that the source itself holds more than once arrives once, and is counted.
//!
//! A range that was begun is noted before its first row is sent, and taken from the list when its last is acknowledged.
//! After a crash, or a failure, the ranges that were begun are copied again in window form: the delete takes away what
//! of them had arrived. Rows of a range that was not begun are not there.

mod columns;
pub mod grpc;
#[cfg(any(test, feature = "testkit"))]
pub mod memory;
mod pages;
mod rows;

use std::num::NonZeroU64;

use cdc_keys::Range;
use serde::{Deserialize, Serialize};

use crate::ids::PartitionId;
use crate::tso::Tso;

pub(crate) use columns::{bytes_of, pick};
pub(crate) use pages::{Page, Pages};
pub use rows::{Of, Part, RowsError, SourceRows};

/// What a task begins with in a collection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Initial {
    /// With its messages alone.
    #[default]
    Incremental,
    /// With its rows, where it was there before the task.
    Snapshot,
    /// With its messages; with its rows where the queue does not hold its first message any more.
    Auto,
}

/// What a task does about rows that were there before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotSpec {
    pub initial: Initial,
    /// Load a collection on the source that is not loaded, and release it when its rows are copied.
    pub load: bool,
    /// Of each task.
    pub rows_per_second: Option<NonZeroU64>,
    /// Of each task, as they go to the target.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// Keys of a collection, or of one of its partitions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Piece {
    /// The source's id; `None` where rows cannot be asked for by partition.
    pub partition: Option<PartitionId>,
    pub range: Range,
}

/// How far the copy of a collection is, as it is stored.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Rows are read as of this source timestamp or later.
    pub at: Tso,
    /// The pieces are known.
    pub listed: bool,
    /// Nothing of them was sent, and no piece of them is in `todo`.
    pub partitions: Vec<PartitionId>,
    /// Nothing of them was sent.
    pub todo: Vec<Piece>,
    /// Some of their rows may be on the target.
    pub begun: Vec<Piece>,
    /// Rows that the collection had when it was listed.
    pub total: u64,
    /// Rows whose piece is done.
    pub copied: u64,
    /// Copies of keys beyond the first, in pieces that are done.
    pub doubled: u64,
    /// The source had not loaded it: to be released.
    pub release: bool,
    /// An earlier copy may be on the target: all of it goes in window form.
    pub again: bool,
    /// It goes into a collection with rows of others, which is not to be dropped without a person's word.
    pub adopted: bool,
}

impl Snapshot {
    /// All of it once more, over what an earlier copy has left on the target.
    pub fn anew(&self) -> Self {
        Self {
            at: self.at,
            release: self.release,
            again: true,
            adopted: self.adopted,
            ..Self::default()
        }
    }
}
