//! Tasks as JSON, in the Go server's field names. No token, no password.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::position::Position;
use cdc_core::store::{ObjectPhase, TaskProgress};
use cdc_core::task::{CollectionState, CollectionStatus, TaskStatus};
use cdc_core::tso::Tso;
use serde_json::{Map, Value, json};

use crate::request::encode_position;
use crate::states;
use crate::store::{Desired, Event, Unreadable};
use crate::tasks::{Task, unix_ms};

/// The Go server's task object.
pub(super) fn brief(task: &Task) -> Map<String, Value> {
    let spec = &task.spec;
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    put("task_id", json!(spec.id));
    put(
        "milvus_connect_param",
        Value::Object(task.given.milvus_connect_param.clone()),
    );
    // The empty form of its structure: there is no such target here.
    put(
        "kafka_connect_param",
        json!({ "address": "", "topic": "", "enable_sasl": false, "sasl": {} }),
    );
    put("collection_infos", json!(task.given.collection_infos));
    put("db_collections", json!(task.given.db_collections));
    put("start", json!(spec.start));
    put("initial", json!(spec.snapshot.initial));
    put("on_conflict", json!(spec.on_conflict));
    put("mode", json!(spec.target.mode));
    put("created", json!(task.created));
    put("updated", json!(task.updated));
    match &task.desired {
        Desired::Running => put("state", json!("Running")),
        Desired::Paused { by, since, reason } => {
            put("reason", json!(reason));
            put(
                "paused",
                json!({ "by": by, "since": since, "reason": reason }),
            );
            put("state", json!("Paused"))
        }
        Desired::Promoting { .. } => {
            put("reason", json!("its target is being promoted"));
            put("state", json!("Promoting"))
        }
        Desired::Promoted { reason, .. } => {
            put("reason", json!(reason));
            put("state", json!("Promoted"))
        }
    };
    out
}

/// A stored task that cannot be read.
pub(super) fn failed(task: &Unreadable) -> Value {
    json!({
        "task_id": task.id,
        "state": "Failed",
        "reason": format!("{}; delete the task and create it again, or go back to the version that wrote it", task.cause),
    })
}

/// The task object with all that is known of its collections.
pub(super) fn full(
    task: &Task,
    status: Option<&TaskStatus>,
    progress: &TaskProgress,
    events: &[Event],
) -> Value {
    let mut out = brief(task);
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    let shown = status.map_or(&[][..], |s| &s.collections);
    let seen: BTreeSet<CollectionId> = shown.iter().map(|c| c.source_id).collect();
    let mut collections: Vec<Value> = shown.iter().map(|c| collection(c, progress)).collect();
    let runs = task.desired == Desired::Running;
    let others = stored_ids(progress)
        .into_iter()
        .filter(|id| !seen.contains(id));
    collections.extend(others.filter_map(|id| stored_collection(id, progress, runs)));
    put("collections", Value::Array(collections));
    match status {
        Some(status) => {
            put("problems", json!(status.problems));
            put("lag_seconds", json!(lag(status, progress)));
            put("durable_lag_seconds", json!(status.durable_lag_seconds));
            put(
                "checkpoint_age_seconds",
                json!(status.checkpoint_age_seconds),
            );
            put("counters", json!(status.counters));
            put("errors", json!(status.errors));
        }
        None => {
            put("lag_seconds", json!(stored_lag(progress)));
        }
    }
    let channels = progress
        .channels
        .iter()
        .map(|(channel, p)| position(0, channel, &p.position, p.applied));
    put("positions", channels.collect());
    put("history", json!(events));
    Value::Object(out)
}

fn collection(c: &CollectionStatus, progress: &TaskProgress) -> Value {
    let mut out = json!({
        "collection_id": c.source_id,
        "db": c.database,
        "name": c.name,
        "rows": c.rows,
        "state": states::name(&c.state),
        "detail": detail(&c.state),
        "positions": positions_of(c, progress),
    });
    if let (Some(lag_seconds), Some(map)) = (c.lag_seconds, out.as_object_mut()) {
        map.insert("lag_seconds".to_owned(), json!(lag_seconds));
    }
    if let (Some(error), Some(map)) = (&c.last_error, out.as_object_mut()) {
        let shown = json!({
            "at": millis(error.at),
            "class": error.problem.class,
            "message": error.problem.message,
            "hint": error.problem.hint,
        });
        map.insert("last_error".to_owned(), shown);
    }
    out
}

/// Where a collection's streams are; one that is held has only its stored places.
fn positions_of(c: &CollectionStatus, progress: &TaskProgress) -> Vec<Value> {
    if c.positions.is_empty() {
        return detached(c.source_id, progress);
    }
    c.positions
        .iter()
        .map(|(channel, p)| position(c.source_id.0, channel, &p.position, p.applied))
        .collect()
}

fn detached(id: CollectionId, progress: &TaskProgress) -> Vec<Value> {
    progress
        .detached
        .iter()
        .filter(|((_, of), _)| *of == id)
        .map(|((channel, _), p)| position(id.0, channel, &p.position, p.applied))
        .collect()
}

/// Every collection of which something is stored.
pub(super) fn stored_ids(progress: &TaskProgress) -> BTreeSet<CollectionId> {
    let objects = progress.collections.keys().copied();
    let detached = progress.detached.keys().map(|(_, id)| *id);
    objects
        .chain(detached)
        .chain(progress.notes.keys().copied())
        // Below zero are the notes of the task itself.
        .filter(|id| id.0 >= 0)
        .collect()
}

/// The state of a collection that nobody carries at the moment, from what is stored of it.
pub(super) fn stored_states(progress: &TaskProgress) -> impl Iterator<Item = &'static str> {
    stored_ids(progress)
        .into_iter()
        .map(|id| stored_state(id, progress, false))
}

/// Whether the task has carried it, and was asked to do so no longer.
fn is_apart(id: CollectionId, progress: &TaskProgress) -> bool {
    let note = progress.notes.get(&id);
    let note = note.and_then(|note| serde_json::from_str::<Value>(note).ok());
    note.is_some_and(|note| note["apart"] == true)
}

pub(super) fn stored_state(id: CollectionId, progress: &TaskProgress, runs: bool) -> &'static str {
    let phase = progress.collections.get(&id).map(|object| object.phase);
    match phase {
        Some(ObjectPhase::Dropped) => "Dropped",
        _ if is_apart(id, progress) => "Excluded",
        _ if runs => "Waiting",
        _ => "Paused",
    }
}

/// A collection of which nothing but the stored is known: the task is paused, or has yet to find it. `None` for what a
/// running task has dropped before.
pub(super) fn stored_collection(
    id: CollectionId,
    progress: &TaskProgress,
    runs: bool,
) -> Option<Value> {
    let object = progress.collections.get(&id);
    let state = stored_state(id, progress, runs);
    if runs && state == "Dropped" {
        return None;
    }
    let note = progress
        .notes
        .get(&id)
        .map(|note| serde_json::from_str(note).unwrap_or_else(|_| Value::String(note.clone())));
    let named = |key: &str| note.as_ref().and_then(|n| n.get(key)).cloned();
    let mut shown = json!({
        "collection_id": id,
        "db": object.map(|o| json!(o.carried_name().database)).or_else(|| named("database")),
        "name": object.map(|o| json!(o.carried_name().name)).or_else(|| named("name")),
        "state": state,
        "detail": { "phase": object.map(|o| o.phase), "note": note },
        "positions": detached(id, progress),
    });
    if let Some(object) = object.filter(|o| o.carried_name() != o.target_name())
        && let Some(map) = shown.as_object_mut()
    {
        let target = format!("{}.{}", object.database, object.name);
        map.insert("target".to_owned(), Value::String(target));
    }
    Some(shown)
}

/// The lag of a running task. One that has not seen its source or target yet does not know it: then that of what is stored.
pub(super) fn lag(status: &TaskStatus, progress: &TaskProgress) -> Option<f64> {
    status.lag_seconds.or_else(|| stored_lag(progress))
}

/// Seconds of source time between now and the oldest thing that is not applied; grows while a task is paused.
pub(super) fn stored_lag(progress: &TaskProgress) -> Option<f64> {
    let channels = progress.channels.values().map(|p| p.applied);
    // Of what is not read at all yet it is as old as the collection.
    let created = |id| {
        progress
            .collections
            .get(id)
            .map_or(Tso::ZERO, |o| o.created)
    };
    // What is left out is not behind.
    let detached = progress.detached.iter();
    let detached = detached.filter(|((_, id), _)| !is_apart(*id, progress));
    let detached = detached.map(|((_, id), p)| p.applied.max(created(id)));
    let applied = channels.chain(detached);
    let oldest = applied.filter(|applied| *applied > Tso::ZERO).min()?;
    Some(unix_ms().saturating_sub(oldest.millis()) as f64 / 1000.0)
}

/// What the state says beside its name; times in unix milliseconds.
pub(super) fn detail(state: &CollectionState) -> Value {
    match state {
        CollectionState::Failing {
            problem,
            attempt,
            since,
        } => {
            json!({ "problem": problem, "attempt": attempt, "since": millis(*since) })
        }
        other => {
            let mut value = json!(other);
            if let Some(map) = value.as_object_mut() {
                map.remove("state");
            }
            value
        }
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

fn position(collection: i64, channel: &PChannel, position: &Position, applied: Tso) -> Value {
    json!({
        "collection_id": collection,
        "channel_name": channel,
        "time": applied.millis(),
        "tt": applied,
        "msg_id": encode_position(channel, position, applied),
    })
}

/// The answer to `position`: per collection as far as known, else per channel as stored (collection id 0).
pub(super) fn positions(
    status: Option<&TaskStatus>,
    progress: &TaskProgress,
    replicate: &str,
) -> Value {
    let shown = status.map_or(&[][..], |s| &s.collections);
    let seen: BTreeSet<CollectionId> = shown.iter().map(|c| c.source_id).collect();
    let mut found: Vec<Value> = shown
        .iter()
        .flat_map(|c| positions_of(c, progress))
        .collect();
    if shown.iter().all(|c| c.positions.is_empty()) {
        let channels = progress.channels.iter();
        found.extend(channels.map(|(ch, p)| position(0, ch, &p.position, p.applied)));
    }
    let others = stored_ids(progress)
        .into_iter()
        .filter(|id| !seen.contains(id));
    found.extend(others.flat_map(|id| detached(id, progress)));
    if let Some(at) = &progress.replicate {
        // -10 is the Go server's id for the replicate channel.
        found.push(position(-10, &PChannel::new(replicate), at, Tso::ZERO));
    }
    json!({ "positions": found, "op_positions": [], "target_positions": [] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notes_of_the_task_itself_are_no_collections() {
        let notes = [(-3, "ended"), (-1, "{}"), (7, "{}")];
        let progress = TaskProgress {
            notes: notes
                .map(|(id, note)| (CollectionId(id), note.to_owned()))
                .into(),
            ..TaskProgress::default()
        };
        assert_eq!(stored_ids(&progress), [CollectionId(7)].into());
        assert_eq!(stored_states(&progress).count(), 1);
    }
}
