//! Names of the places where a process writes: what it stores, and what it asks of the target. Each is a place to die at.

use cdc_core::ids::CollectionId;
use cdc_core::store::{Change, ObjectPhase};

/// What a change writes.
pub fn of(change: &Change) -> &'static str {
    match change {
        Change::PutChannel { clean: false, .. } => "store a channel's place",
        Change::PutChannel { clean: true, .. } => "store a channel's place at a stop",
        Change::RaiseSent { .. } => "store W",
        Change::DeleteChannel { .. } => "forget a channel's place",
        Change::PutDetached { .. } => "store a collection's own place",
        Change::DeleteDetached { .. } => "forget a collection's own place",
        Change::PutReplicate { .. } => "store the place in the replicate channel",
        Change::PutCollection { object, .. } if object.renaming.is_some() => {
            "store that a collection is being renamed"
        }
        Change::PutCollection { object, .. } => match object.phase {
            ObjectPhase::Creating => "store that a collection is being made",
            ObjectPhase::Live => "store that a collection is there",
            ObjectPhase::Dropping => "store that a collection is being dropped",
            ObjectPhase::Dropped => "store that a collection is dropped",
        },
        Change::DeleteCollection { .. } => "forget a collection",
        Change::PutPartition { object, .. } => match object.phase {
            ObjectPhase::Creating => "store that a partition is being made",
            ObjectPhase::Live => "store that a partition is there",
            ObjectPhase::Dropping => "store that a partition is being dropped",
            ObjectPhase::Dropped => "store that a partition is dropped",
        },
        Change::DeletePartition { .. } => "forget a partition",
        // Below zero are the pipeline's own.
        Change::PutNote {
            collection, note, ..
        } => match collection {
            CollectionId(-1) => "note the databases",
            CollectionId(-2) => "note what is loaded",
            CollectionId(-3) => "note whether the task has ended well",
            CollectionId(-4) => "note the durable places",
            CollectionId(-5) => "note a database before it is made",
            CollectionId(-6) => "note the aliases",
            CollectionId(-7) => "note the properties of databases",
            CollectionId(-1000..0) => "note something of the task",
            CollectionId(i64::MIN..-1000) => "note how far a copy is",
            _ if note.is_empty() => "note that a collection waits for nothing",
            _ if note.contains("\"apart\":true") => "note that a collection stands apart",
            _ => "note what a collection waits for",
        },
        Change::PutQuarantined { .. } => "store what could not be carried",
        Change::DeleteQuarantined { .. } => "forget what could not be carried",
        Change::PutMessagePart { .. } => "store a part of its bytes",
        Change::DeleteMessage { .. } => "forget its bytes",
        Change::RaiseFloor { .. } => "store F",
        Change::ForgetTask { .. } => "forget a task",
    }
}
