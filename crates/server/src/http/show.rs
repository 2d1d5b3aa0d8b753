//! Tasks as JSON, in the Go server's field names. No token, no password.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::store::TaskProgress;
use cdc_core::task::{CollectionState, CollectionStatus, Selection, TaskStatus};
use cdc_core::tso::Tso;
use serde_json::{Map, Value, json};

use crate::request::encode_position;
use crate::store::{Desired, Event};
use crate::tasks::Task;

/// The Go server's task object.
pub(super) fn brief(task: &Task) -> Map<String, Value> {
    let spec = &task.spec;
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    put("task_id", json!(spec.id));
    let timeout = spec.target.connect_timeout.as_secs();
    put(
        "milvus_connect_param",
        json!({ "uri": spec.target.uri, "connect_timeout": timeout }),
    );
    match &spec.selection {
        Selection::All => {
            put("collection_infos", json!([{ "name": "*" }]));
        }
        Selection::Collections(list) => {
            let mut databases: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            for (database, name) in list {
                databases
                    .entry(database)
                    .or_default()
                    .push(json!({ "name": name }));
            }
            put("db_collections", json!(databases));
        }
    }
    put("start", json!(spec.start));
    put("on_conflict", json!(spec.on_conflict));
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
    };
    out
}

/// The task object with all that is known of its collections.
pub(super) fn full(
    task: &Task,
    status: Option<&TaskStatus>,
    progress: &TaskProgress,
    events: &[Event],
) -> Value {
    let mut out = brief(task);
    if let Some(status) = status {
        let collections: Vec<Value> = status.collections.iter().map(collection).collect();
        out.insert("collections".to_owned(), Value::Array(collections));
        out.insert("problems".to_owned(), json!(status.problems));
        out.insert("lag_seconds".to_owned(), json!(status.lag_seconds));
        out.insert(
            "checkpoint_age_seconds".to_owned(),
            json!(status.checkpoint_age_seconds),
        );
        out.insert("counters".to_owned(), json!(status.counters));
        out.insert("errors".to_owned(), json!(status.errors));
    }
    let channels = progress
        .channels
        .iter()
        .map(|(channel, p)| position(0, channel, &p.position, p.applied));
    out.insert("positions".to_owned(), channels.collect());
    out.insert("history".to_owned(), json!(events));
    Value::Object(out)
}

fn collection(c: &CollectionStatus) -> Value {
    let mut out = json!({
        "collection_id": c.source_id,
        "db": c.database,
        "name": c.name,
        "rows": c.rows,
        "state": state_name(&c.state),
        "detail": detail(&c.state),
        "positions": c.positions.iter().map(|(channel, p)| position(c.source_id.0, channel, &p.position, p.applied)).collect::<Vec<_>>(),
    });
    if let (CollectionState::Streaming { lag_seconds, .. }, Some(map)) =
        (&c.state, out.as_object_mut())
    {
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

pub(super) fn state_name(state: &CollectionState) -> &'static str {
    match state {
        CollectionState::Waiting { .. } => "Waiting",
        CollectionState::Streaming { .. } => "Streaming",
        CollectionState::Failing { .. } => "Failing",
        CollectionState::Conflict { .. } => "Conflict",
        CollectionState::PositionLost { .. } => "PositionLost",
        CollectionState::Quarantined { .. } => "Quarantined",
        CollectionState::Dropped => "Dropped",
    }
}

/// What the state says beside its name; times in unix milliseconds.
fn detail(state: &CollectionState) -> Value {
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

/// The answer to `position`: per collection while the task runs, else per channel as stored (collection id 0).
pub(super) fn positions(
    status: Option<&TaskStatus>,
    progress: &TaskProgress,
    replicate: &str,
) -> Value {
    let mut found: Vec<Value> = Vec::new();
    for c in status.into_iter().flat_map(|s| &s.collections) {
        found.extend(
            c.positions
                .iter()
                .map(|(ch, p)| position(c.source_id.0, ch, &p.position, p.applied)),
        );
    }
    if found.is_empty() {
        found.extend(
            progress
                .channels
                .iter()
                .map(|(ch, p)| position(0, ch, &p.position, p.applied)),
        );
        found.extend(
            progress
                .detached
                .iter()
                .map(|((ch, id), p)| position(id.0, ch, &p.position, p.applied)),
        );
    }
    if let Some(at) = &progress.replicate {
        // -10 is the Go server's id for the replicate channel.
        found.push(position(-10, &PChannel::new(replicate), at, Tso::ZERO));
    }
    json!({ "positions": found, "op_positions": [], "target_positions": [] })
}
