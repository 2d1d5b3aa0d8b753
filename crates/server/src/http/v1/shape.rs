//! What the answers of `/api/v1` look like. Ids and timestamps of Milvus are strings: they are larger than the numbers
//! JavaScript can hold. Moments are unix milliseconds. No token, no password.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Rows that were copied anew.
#[derive(Serialize, ToSchema)]
pub(crate) struct Repaired {
    pub(crate) database: String,
    pub(crate) name: String,
    /// Keys that have the source's row now.
    pub(crate) replaced: u64,
    /// Keys that are gone from the target.
    pub(crate) deleted: u64,
}

/// The program that answers.
#[derive(Serialize, ToSchema)]
pub(crate) struct Version {
    #[schema(example = "milvus-cdc")]
    pub(crate) name: &'static str,
    #[schema(example = "0.1.0")]
    pub(crate) version: &'static str,
    /// The message queues this build can read.
    pub(crate) queues: Vec<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TaskState {
    /// It shall run; the collections say how it goes.
    Running,
    /// A person paused it.
    Paused,
    /// Its target is being made a Milvus of its own.
    Promoting,
    /// Its target is one: the task is over.
    Promoted,
    /// What is stored of it cannot be read: it can only be deleted.
    Unreadable,
}

/// A replication task.
#[derive(Serialize, ToSchema)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) state: TaskState,
    /// Why it is paused or unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Who paused it: the name of a token, or `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) paused_by: Option<String>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) paused_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<Target>,
    /// Which collections were asked for.
    pub(crate) collections: Vec<Step>,
    /// Their names on the target, where a rule says them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) mapping: Vec<super::body::NewMapping>,
    /// What happens on the source and is not carried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) skip_operations: Vec<super::body::Operation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub(crate) start: Option<super::body::Start>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub(crate) initial: Option<super::body::Initial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub(crate) on_conflict: Option<super::body::OnConflict>,
    /// `replicate` or `plain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub(crate) mode: Option<super::body::Mode>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<u64>,
    /// When a person last changed it, in unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) updated_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<Progress>,
}

/// Where the rows go.
#[derive(Serialize, ToSchema)]
pub(crate) struct Target {
    #[schema(example = "http://standby:19530")]
    pub(crate) uri: String,
    /// Seconds.
    pub(crate) connect_timeout: u64,
}

/// One step of a selection.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Step {
    Named(Selected),
    Rule(Ruled),
}

/// A rule: one of both.
#[derive(Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ruled {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) include: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exclude: Option<Vec<String>>,
}

/// Collections by database and name, either of which may be `*`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Selected {
    pub(crate) database: String,
    pub(crate) name: String,
    /// Where these begin if not with the task's `start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub(crate) start: Option<super::body::Start>,
}

/// How far a task is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Progress {
    /// Seconds between now and the oldest thing on the source that is not applied; null before the first message.
    pub(crate) lag_seconds: Option<f64>,
    /// Seconds between now and the oldest thing that the target has not flushed: if it restarts, all from there is sent
    /// again. Null if the task does not run, or nothing was flushed yet.
    pub(crate) durable_lag_seconds: Option<f64>,
    /// Seconds since the stored checkpoint last moved; null if the task does not run.
    pub(crate) checkpoint_age_seconds: Option<f64>,
    /// How far what is needed is from falling out of the source's queue, as of the last minute. A channel of which that is
    /// not known is left out.
    pub(crate) queue: Vec<QueueReach>,
    /// How many collections are in which state.
    pub(crate) collections: BTreeMap<&'static str, u64>,
    /// Errors of the task as a whole, while they last.
    pub(crate) problems: Vec<Trouble>,
    /// Since this process started; null if the task does not run.
    pub(crate) counters: Option<Counters>,
    /// Errors since this process started, by class.
    pub(crate) errors: BTreeMap<String, u64>,
}

/// How far what a task needs of one channel is from falling out of the source's queue.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueReach {
    /// The source's physical channel.
    #[schema(example = "by-dev-rootcoord-dml_0")]
    pub(crate) channel: String,
    /// When the first message that the queue holds was written, in unix milliseconds; null if that is not known.
    pub(crate) first_at: Option<u64>,
    /// How long the queue keeps a message, by its own settings; null if it does not say.
    pub(crate) retention_seconds: Option<f64>,
    /// Of where the task goes on.
    pub(crate) applied: Headroom,
    /// Of where it goes on if the target restarts; null if nothing is known to be flushed.
    pub(crate) durable: Option<Headroom>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Headroom {
    /// Seconds that the queue still holds before it: at or below zero it may be lost already.
    pub(crate) kept_seconds: Option<f64>,
    /// Seconds until it is older than the queue keeps its messages; null if the queue does not say how long that is. A
    /// queue that is full deletes earlier.
    pub(crate) left_seconds: Option<f64>,
}

/// Since this process started.
#[derive(Serialize, ToSchema)]
pub(crate) struct Counters {
    pub(crate) messages_in: u64,
    pub(crate) bytes_in: u64,
    /// Rows of the task's collections that were read.
    pub(crate) rows_in: u64,
    pub(crate) messages_out: u64,
    /// Rows the target acknowledged.
    pub(crate) rows_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) in_flight_bytes: u64,
}

/// An error of a task or collection.
#[derive(Serialize, ToSchema)]
pub(crate) struct Trouble {
    /// `transient`, `conflict`, `configuration`, `data` or `bug`.
    pub(crate) class: String,
    pub(crate) message: String,
    /// What to do about it; empty if there is nothing to do but wait.
    pub(crate) hint: String,
    /// When it was last seen, in unix milliseconds, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<u64>,
}

/// A collection of a task.
#[derive(Serialize, ToSchema)]
pub(crate) struct Collection {
    /// The source's id.
    #[schema(example = "445811557825249939")]
    pub(crate) id: String,
    pub(crate) database: Option<String>,
    pub(crate) name: Option<String>,
    /// Its name on the target, `database.name`, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
    /// What has to be known of it beside its state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
    /// `Waiting`, `Streaming`, `Failing`, `Conflict`, `PositionLost`, `Quarantined`, `Dropped`, `Excluded` if it was
    /// carried before, or `Paused` with its task.
    pub(crate) state: &'static str,
    /// What the state says beside its name.
    #[schema(value_type = Object)]
    pub(crate) detail: Value,
    /// What it can be answered, if it waits for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answers: Option<&'static str>,
    /// Rows the target acknowledged since this process started; null if the task does not run.
    pub(crate) rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<Trouble>,
    pub(crate) positions: Vec<Position>,
}

/// How far one stream of messages is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Position {
    /// The source's id of the collection it belongs to; null for a channel that several share.
    pub(crate) collection_id: Option<String>,
    /// The source's physical channel.
    #[schema(example = "by-dev-rootcoord-dml_0")]
    pub(crate) channel: String,
    /// Base64 of a `MsgPosition`, as `positions` in a creation takes it.
    pub(crate) position: String,
    /// The source's timestamp up to which everything is applied.
    #[schema(example = "445811557825249939")]
    pub(crate) applied: String,
    /// The same in unix milliseconds.
    pub(crate) applied_at: u64,
    /// The source's timestamp up to which the target has flushed everything, in unix milliseconds; null if that is not
    /// known.
    pub(crate) durable_at: Option<u64>,
}

/// A message that a collection stopped at.
#[derive(Serialize, ToSchema)]
pub(crate) struct Quarantined {
    /// Always the same for the same collection and message.
    #[schema(example = "445811557825249939-08be0d8f3a1cd5a7")]
    pub(crate) key: String,
    pub(crate) state: QuarantineState,
    /// Who had it tried again or left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    /// When it came to be `retried`, `dropped`, `carried` or `gone`, in unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<u64>,
    /// The source's id.
    #[schema(example = "445811557825249939")]
    pub(crate) collection_id: String,
    pub(crate) database: String,
    pub(crate) name: String,
    /// The source's physical channel.
    #[schema(example = "by-dev-rootcoord-dml_0")]
    pub(crate) channel: String,
    /// The message's id in the queue.
    pub(crate) position: String,
    /// `Insert`, `Delete`, …; null if it cannot be read.
    pub(crate) kind: Option<String>,
    /// In bytes; null if the queue no longer had it.
    pub(crate) size: Option<u64>,
    pub(crate) error: Trouble,
    /// When it was found first, in unix milliseconds.
    pub(crate) since: u64,
    /// Why its bytes are not kept, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_kept: Option<String>,
}

/// `waiting`: its collection does not go past it. `retried`: tried again, and it is not known yet what comes of it.
/// `dropped`: its collection went on without it. `carried`: taken in the end. `gone`: its collection is.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuarantineState {
    Waiting,
    Retried,
    Dropped,
    Carried,
    Gone,
}

/// A message that a collection stopped at, with what there is of it.
#[derive(Serialize, ToSchema)]
pub(crate) struct QuarantinedMessage {
    #[serde(flatten)]
    pub(crate) record: Quarantined,
    /// What can be read of it; null if its bytes are not kept.
    pub(crate) header: Option<MessageHeader>,
    /// Base64 of its first bytes, as many as were asked for; null if they are not kept, or for a token that may only
    /// read.
    pub(crate) bytes: Option<String>,
}

/// The head of a message of Milvus, as far as it could be read.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageHeader {
    /// The number of its type (`common.MsgType`).
    pub(crate) msg_type: Option<i32>,
    pub(crate) msg_id: Option<String>,
    pub(crate) timestamp: Option<String>,
    pub(crate) source_id: Option<String>,
    pub(crate) database: Option<String>,
    pub(crate) collection: Option<String>,
    pub(crate) collection_id: Option<String>,
    pub(crate) partition: Option<String>,
    pub(crate) partition_id: Option<String>,
    /// The virtual channel it names.
    pub(crate) shard: Option<String>,
    /// Where and why reading ended before the end of the message.
    pub(crate) broken: Option<String>,
}

/// One line of the history.
#[derive(Serialize, ToSchema)]
pub(crate) struct Event {
    /// Its place in the history of all tasks: `after` and `Last-Event-ID` take it.
    pub(crate) id: u64,
    pub(crate) task_id: String,
    /// Unix milliseconds.
    pub(crate) at: u64,
    /// `created`, `paused`, `resumed`, `answered`, `quarantined`, `retried`, `dropped`, `promoting`, `promoted`, `deleted`.
    #[schema(example = "paused")]
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// A part of a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// For `after` of the next request; null: there is no more at the moment.
    pub(crate) next: Option<String>,
}

/// How far every stream of a task is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Positions {
    pub(crate) positions: Vec<Position>,
}

/// A whole diagnosis; made by `doctor`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Report {
    /// No check found a problem.
    pub(crate) ok: bool,
    pub(crate) checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Serialize, ToSchema)]
pub(crate) struct Check {
    #[schema(example = "target mode")]
    pub(crate) check: String,
    /// Which one, where there are several: a target's address, a task's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    pub(crate) verdict: Verdict,
    /// What was found, with the values that matter.
    pub(crate) text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// `warning`: it works, but somebody should know. `skipped`: it could not be looked at; why is a problem of its own.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    Warning,
    Problem,
    Skipped,
}

/// What a task would do. Nothing was written.
#[derive(Serialize, ToSchema)]
pub(crate) struct Plan {
    /// Whether nothing speaks against it.
    pub(crate) ok: bool,
    /// What would be carried, by the names on the source.
    pub(crate) collections: Vec<PlannedCollection>,
    /// What is there and would not be carried.
    pub(crate) left_out: Vec<LeftOut>,
    /// What speaks against the task as a whole.
    pub(crate) problems: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct PlannedCollection {
    /// `database.name`
    pub(crate) source: String,
    /// `database.name`
    pub(crate) target: String,
    /// The rule that has it, from 0, in the order of `collections`.
    pub(crate) rule: usize,
    pub(crate) problems: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct LeftOut {
    /// `database.name`
    pub(crate) source: String,
    /// The rule that excludes it, from 0; null if none matches.
    pub(crate) rule: Option<usize>,
}
