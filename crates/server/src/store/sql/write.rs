//! What one change does to the tables.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::TaskId;
use cdc_core::position::Position;
use cdc_core::store::{Change, Progress, StoreError};
use cdc_core::tso::Tso;
use serde::Serialize;

use super::connection::Value;
use super::dialect::{Dialect, Keep, Statement};
use crate::store::{DELETED, EVENTS_KEPT, TaskWrite, Write};

/// 20 digits: orders as the numbers do.
pub(crate) fn digits(tso: Tso) -> String {
    format!("{:020}", tso.0)
}

fn json<T: Serialize>(value: &T) -> Result<Value, StoreError> {
    serde_json::to_string(value)
        .map(Value::Text)
        .map_err(|e| StoreError::Corrupt(e.to_string()))
}

/// The tables of a task's progress.
pub(crate) const PROGRESS: [&str; 8] = [
    "channels",
    "detached",
    "replicate",
    "collections",
    "partitions",
    "notes",
    "quarantine",
    "messages",
];

pub(crate) fn statements(d: &Dialect, write: &Write) -> Result<Vec<Statement>, StoreError> {
    match write {
        Write::Progress(change) => progress(d, change),
        Write::Task(write) => task(d, write),
    }
}

fn of(task: &TaskId) -> (&'static str, Value) {
    ("task", task.as_str().into())
}

fn task(d: &Dialect, write: &TaskWrite) -> Result<Vec<Statement>, StoreError> {
    Ok(match write {
        TaskWrite::Create(task) => vec![d.insert(
            "tasks",
            &[
                ("id", task.id.as_str().into()),
                ("spec", task.spec.as_str().into()),
                ("desired", json(&task.desired)?),
                ("created", (task.created as i64).into()),
                ("updated", (task.updated as i64).into()),
            ],
        )],
        TaskWrite::SetDesired { task, desired, at } => {
            let keys = [("id", task.as_str().into())];
            let set = [
                ("desired", json(desired)?),
                ("updated", (*at as i64).into()),
            ];
            vec![Statement {
                must_hit: true,
                ..d.update("tasks", &keys, &set)
            }]
        }
        TaskWrite::SetSpec { task, spec } => {
            let keys = [("id", task.as_str().into())];
            vec![Statement {
                must_hit: true,
                ..d.update("tasks", &keys, &[("spec", spec.as_str().into())])
            }]
        }
        TaskWrite::Delete(task) => {
            let mut all = vec![
                d.delete("tasks", &[("id", task.as_str().into())]),
                d.delete("events", &[of(task)]),
            ];
            all.extend(forget(d, task));
            all
        }
        TaskWrite::Event { task, event } => {
            let insert = d.insert(
                "events",
                &[
                    of(task),
                    ("at", (event.at as i64).into()),
                    ("kind", event.kind.as_str().into()),
                    ("text", event.text.as_str().into()),
                ],
            );
            // Twice nested: MySQL does not read the table it deletes from otherwise.
            let (table, seq) = (d.table("events"), d.name("seq"));
            let keep = |column: &str, of: &str| {
                let sql = format!(
                    "DELETE FROM {table} WHERE {column} = ? AND {seq} <= (SELECT {seq} FROM \
                     (SELECT {seq} FROM {table} WHERE {column} = ? ORDER BY {seq} DESC LIMIT 1 OFFSET {EVENTS_KEPT}) AS old)"
                );
                d.statement(&sql, vec![of.into(), of.into()])
            };
            let mut all = vec![insert, keep("task", task.as_str())];
            if event.kind == DELETED {
                all.push(keep(&d.name("kind"), DELETED));
            }
            all
        }
    })
}

fn forget(d: &Dialect, task: &TaskId) -> impl Iterator<Item = Statement> {
    PROGRESS
        .map(|table| d.delete(table, &[of(task)]))
        .into_iter()
}

type Columns = Vec<(&'static str, Value, Keep)>;

fn progress_columns(progress: &Progress, sent: Keep) -> Result<Columns, StoreError> {
    Ok(vec![
        ("position", json(&progress.position)?, Keep::New),
        ("after", i64::from(progress.after).into(), Keep::New),
        ("applied", digits(progress.applied).into(), Keep::New),
        ("sent", digits(progress.sent).into(), sent),
    ])
}

fn put<T: Serialize>(
    d: &Dialect,
    table: &str,
    task: &TaskId,
    source: i64,
    object: &T,
) -> Result<Statement, StoreError> {
    let keys = [of(task), ("source", source.into())];
    Ok(d.upsert(table, &keys, &[("object", json(object)?, Keep::New)]))
}

fn put_replicate(d: &Dialect, task: &TaskId, at: &Position) -> Result<Statement, StoreError> {
    let position = ("position", json(at)?, Keep::New);
    Ok(d.upsert("replicate", &[of(task)], &[position]))
}

fn progress(d: &Dialect, change: &Change) -> Result<Vec<Statement>, StoreError> {
    let statement = match change {
        Change::PutChannel {
            task,
            channel,
            progress,
            clean,
        } => {
            let keys = [of(task), ("channel", channel.as_str().into())];
            let sent = if *clean { Keep::New } else { Keep::Larger };
            d.upsert("channels", &keys, &progress_columns(progress, sent)?)
        }
        Change::RaiseSent {
            task,
            channel,
            sent,
        } => {
            let keys = [of(task), ("channel", channel.as_str().into())];
            d.raise("channels", &keys, ("sent", digits(*sent).into()))
        }
        Change::DeleteChannel { task, channel } => {
            let keys = [of(task), ("channel", channel.as_str().into())];
            d.delete("channels", &keys)
        }
        Change::PutDetached {
            task,
            channel,
            collection,
            progress,
        } => {
            let keys = [
                of(task),
                ("channel", channel.as_str().into()),
                ("collection", collection.0.into()),
            ];
            d.upsert("detached", &keys, &progress_columns(progress, Keep::New)?)
        }
        Change::DeleteDetached {
            task,
            channel,
            collection,
        } => {
            let keys = [
                of(task),
                ("channel", channel.as_str().into()),
                ("collection", collection.0.into()),
            ];
            d.delete("detached", &keys)
        }
        Change::PutReplicate { task, position } => put_replicate(d, task, position)?,
        Change::PutCollection { task, object } => {
            put(d, "collections", task, object.source.0, object)?
        }
        Change::DeleteCollection { task, source } => {
            d.delete("collections", &[of(task), ("source", source.0.into())])
        }
        Change::PutPartition { task, object } => {
            put(d, "partitions", task, object.source.0, object)?
        }
        Change::DeletePartition { task, source } => {
            d.delete("partitions", &[of(task), ("source", source.0.into())])
        }
        Change::PutNote {
            task,
            collection,
            note,
        } => {
            let keys = [of(task), ("collection", collection.0.into())];
            match note.as_str() {
                "" => d.delete("notes", &keys),
                note => d.upsert("notes", &keys, &[("note", note.into(), Keep::New)]),
            }
        }
        Change::PutQuarantined { task, key, record } => {
            let keys = [of(task), ("id", key.as_str().into())];
            d.upsert("quarantine", &keys, &[("record", json(record)?, Keep::New)])
        }
        Change::DeleteQuarantined { task, key } => {
            d.delete("quarantine", &[of(task), ("id", key.as_str().into())])
        }
        Change::PutMessagePart {
            task,
            message,
            part,
            bytes,
        } => {
            let keys = [
                of(task),
                ("message", message.as_str().into()),
                ("part", i64::from(*part).into()),
            ];
            let body = ("body", STANDARD.encode(bytes).into(), Keep::New);
            d.upsert("messages", &keys, &[body])
        }
        Change::DeleteMessage { task, message } => d.delete(
            "messages",
            &[of(task), ("message", message.as_str().into())],
        ),
        Change::RaiseFloor {
            target,
            channel,
            floor,
        } => {
            let keys = [
                ("target", target.as_str().into()),
                ("channel", channel.as_str().into()),
            ];
            let floor = ("floor", digits(*floor).into(), Keep::Larger);
            d.upsert("floors", &keys, &[floor])
        }
        Change::ForgetTask { task } => return Ok(forget(d, task).collect()),
    };
    Ok(vec![statement])
}
