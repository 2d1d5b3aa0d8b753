//! What has to outlive the process: how far each channel got, what may have been sent, which target object stands for
//! which source object.
//!
//! [`ProgressStore`] is the seam; one contract suite runs on the in-memory twin and on every real backend:
//!
//! 1. *Atomic.* [`ProgressStore::commit`] applies all changes of one call or none.
//! 2. *Durable.* When it returns, the changes survive `kill -9` and a power cut.
//! 3. *Floors never fall.* A [`Change::RaiseFloor`] below the stored floor leaves it as it is; floors belong to the
//!    target and outlive every task.
//! 4. *In doubt never shrinks by itself.* [`Change::RaiseSent`] below the stored value leaves it as it is.
//! 5. *Bytes of a message are its parts in their order*, and are not loaded with the rest.

#[cfg(any(test, feature = "testkit"))]
pub mod contract;
#[cfg(any(test, feature = "testkit"))]
pub mod memory;

mod needs;

pub use needs::Need;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{CollectionId, IndexId, PChannel, PartitionId, TargetKey, TaskId, VChannel};
use crate::position::Position;
use crate::quarantine::Record;
use crate::select::Name;
use crate::tso::Tso;

/// How far one stream of messages got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The message at which to go on reading: the oldest one that is not applied.
    pub position: Position,
    /// `true`: the message at `position` is applied, go on behind it.
    pub after: bool,
    /// C: everything up to this source timestamp is applied.
    pub applied: Tso,
    /// W: above this source timestamp nothing was ever sent. What lies in (applied, sent] is in doubt.
    pub sent: Tso,
}

/// The life of a source collection on the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectPhase {
    /// The create call may or may not have been made.
    Creating,
    Live,
    /// The drop was seen on at least one shard; see [`CollectionObject::dropped_shards`].
    Dropping,
    Dropped,
}

/// Which properties that an object has on the target are the source's, by their keys: they go when they go there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    pub keys: BTreeSet<String>,
    /// A call that changes them was begun, and may be carried out yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub calling: bool,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.calling
    }
}

/// Those of a collection and of its indexes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HeldProperties {
    #[serde(default, skip_serializing_if = "Held::is_empty")]
    pub own: Held,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub indexes: BTreeMap<IndexId, Held>,
}

impl HeldProperties {
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.indexes.is_empty()
    }
}

/// Which target collection stands for a source collection. The name is resolved once, at creation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CollectionObject {
    pub source: CollectionId,
    pub database: String,
    pub name: String,
    /// Its name on the source when it was met, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Name>,
    /// Its name on the source of which its name on the target was made, where it is another one by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<Name>,
    /// It was about to be renamed on the target: it may have this name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renaming: Option<Name>,
    /// Its name on the target was not made of that one: it is to get another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_between: bool,
    /// Create timestamp on the source.
    pub created: Tso,
    pub phase: ObjectPhase,
    /// The target's id; `None` while it is being created.
    pub target: Option<CollectionId>,
    /// The target's virtual channels in shard order.
    pub target_vchannels: Vec<VChannel>,
    /// Shards on which the drop is applied (message and tick acknowledged).
    pub dropped_shards: Vec<usize>,
    #[serde(default, skip_serializing_if = "HeldProperties::is_empty")]
    pub properties: Box<HeldProperties>,
}

impl CollectionObject {
    /// Its name on the source when it was met.
    pub fn source_name(&self) -> Name {
        self.from.clone().unwrap_or_else(|| self.target_name())
    }

    /// Its name on the source as far as it is carried.
    pub fn carried_name(&self) -> Name {
        self.renamed.clone().unwrap_or_else(|| self.source_name())
    }

    /// Its name on the target.
    pub fn target_name(&self) -> Name {
        Name::new(self.database.as_str(), self.name.as_str())
    }
}

/// Which target partition stands for a source partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionObject {
    pub source: PartitionId,
    pub collection: CollectionId,
    pub name: String,
    pub phase: ObjectPhase,
    pub target: Option<PartitionId>,
    pub dropped_shards: Vec<usize>,
}

/// One change to what is stored. Changes of one commit are applied in their order.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// Sets a channel's progress: position and `applied` as given; `sent` only upwards, unless `clean`.
    PutChannel {
        task: TaskId,
        channel: PChannel,
        progress: Progress,
        clean: bool,
    },
    /// Raises W of a channel that has progress stored.
    RaiseSent {
        task: TaskId,
        channel: PChannel,
        sent: Tso,
    },
    DeleteChannel {
        task: TaskId,
        channel: PChannel,
    },
    /// A collection that goes on by itself on this channel, because the channel went on without it.
    PutDetached {
        task: TaskId,
        channel: PChannel,
        collection: CollectionId,
        progress: Progress,
    },
    DeleteDetached {
        task: TaskId,
        channel: PChannel,
        collection: CollectionId,
    },
    /// Position in the replicate-msg channel: everything up to and including it is done.
    PutReplicate {
        task: TaskId,
        position: Position,
    },
    PutCollection {
        task: TaskId,
        object: CollectionObject,
    },
    DeleteCollection {
        task: TaskId,
        source: CollectionId,
    },
    PutPartition {
        task: TaskId,
        object: PartitionObject,
    },
    DeletePartition {
        task: TaskId,
        source: PartitionId,
    },
    /// What a collection needs from a person, as an opaque JSON of the pipeline; empty = nothing.
    PutNote {
        task: TaskId,
        collection: CollectionId,
        note: String,
    },
    /// A message that could not be carried, under [`Record::key`].
    PutQuarantined {
        task: TaskId,
        key: String,
        record: Record,
    },
    DeleteQuarantined {
        task: TaskId,
        key: String,
    },
    /// A part of the bytes of such a message, of at most [`crate::quarantine::PART`] bytes, by [`Record::message`].
    PutMessagePart {
        task: TaskId,
        message: String,
        part: u32,
        bytes: Bytes,
    },
    /// All parts of a message.
    DeleteMessage {
        task: TaskId,
        message: String,
    },
    /// F: no row or tick above it was ever sent on this target channel.
    RaiseFloor {
        target: TargetKey,
        channel: PChannel,
        floor: Tso,
    },
    /// Forgets everything of a task, but no floor.
    ForgetTask {
        task: TaskId,
    },
}

/// All that is stored of one task.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TaskProgress {
    pub channels: BTreeMap<PChannel, Progress>,
    pub detached: BTreeMap<(PChannel, CollectionId), Progress>,
    pub replicate: Option<Position>,
    pub collections: BTreeMap<CollectionId, CollectionObject>,
    pub partitions: BTreeMap<PartitionId, PartitionObject>,
    pub notes: BTreeMap<CollectionId, String>,
    /// Messages that could not be carried, without their bytes.
    pub quarantine: BTreeMap<String, Record>,
}

#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum StoreError {
    /// Worth another try: locked, full, gone for a moment.
    #[error("store: {0}")]
    Unavailable(String),
    /// What is stored cannot be read.
    #[error("store: {0}")]
    Corrupt(String),
    /// Nothing was written: another program owns the store by now. Never goes away by itself.
    #[error("store: {0}")]
    NotOwner(String),
}

#[async_trait]
pub trait ProgressStore: Send + Sync {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError>;
    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError>;
    /// The bytes of a message that could not be carried; empty if none are kept.
    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError>;
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError>;
}

pub type SharedStore = Arc<dyn ProgressStore>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_object_that_was_stored_without_properties_is_read() {
        let stored = r#"{"source":7,"database":"default","name":"a","created":5,"phase":"live","target":9,
            "target_vchannels":["dml_0_9v0"],"dropped_shards":[]}"#;
        let mut object: CollectionObject = serde_json::from_str(stored).unwrap();
        assert!(object.properties.is_empty());
        // Nothing is written of none.
        let again = serde_json::to_string(&object).unwrap();
        assert_eq!(again, stored.replace(['\n', ' '], ""));
        object.properties.own.keys.insert("mmap.enabled".to_owned());
        let held = Held {
            keys: BTreeSet::new(),
            calling: true,
        };
        object.properties.indexes.insert(IndexId(3), held);
        let stored = serde_json::to_string(&object).unwrap();
        assert!(stored.ends_with(
            r#""properties":{"own":{"keys":["mmap.enabled"]},"indexes":{"3":{"keys":[],"calling":true}}}}"#
        ));
        assert_eq!(
            serde_json::from_str::<CollectionObject>(&stored).unwrap(),
            object
        );
    }
}
