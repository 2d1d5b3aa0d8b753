//! What one change does to the tables.

use cdc_core::ids::TaskId;
use cdc_core::store::{Change, Progress};
use cdc_core::tso::Tso;
use serde::Serialize;
use sqlx::SqliteConnection;

use super::{DELETED, Desired, EVENTS_KEPT, Event, StoredTask};

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

/// 20 digits: orders as the numbers do.
pub(crate) fn digits(tso: Tso) -> String {
    format!("{:020}", tso.0)
}

fn json<T: Serialize>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

type Done = Result<(), sqlx::Error>;

pub(crate) async fn apply(c: &mut SqliteConnection, write: &Write) -> Done {
    match write {
        Write::Progress(change) => progress(c, change).await,
        Write::Task(write) => task(c, write).await,
    }
}

async fn task(c: &mut SqliteConnection, write: &TaskWrite) -> Done {
    match write {
        TaskWrite::Create(task) => {
            sqlx::query(
                "INSERT INTO tasks (id, spec, desired, created, updated) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(task.id.as_str())
            .bind(task.spec.as_str())
            .bind(json(&task.desired)?)
            .bind(task.created as i64)
            .bind(task.updated as i64)
            .execute(c)
            .await?;
        }
        TaskWrite::SetDesired { task, desired, at } => {
            let done = sqlx::query("UPDATE tasks SET desired = ?, updated = ? WHERE id = ?")
                .bind(json(desired)?)
                .bind(*at as i64)
                .bind(task.as_str())
                .execute(c)
                .await?;
            if done.rows_affected() == 0 {
                return Err(sqlx::Error::RowNotFound);
            }
        }
        TaskWrite::Delete(task) => {
            for sql in [
                "DELETE FROM tasks WHERE id = ?",
                "DELETE FROM events WHERE task = ?",
            ] {
                sqlx::query(sql)
                    .bind(task.as_str())
                    .execute(&mut *c)
                    .await?;
            }
            forget(c, task).await?;
        }
        TaskWrite::Event { task, event } => {
            sqlx::query("INSERT INTO events (task, at, kind, text) VALUES (?, ?, ?, ?)")
                .bind(task.as_str())
                .bind(event.at as i64)
                .bind(event.kind.as_str())
                .bind(event.text.as_str())
                .execute(&mut *c)
                .await?;
            sqlx::query(
                "DELETE FROM events WHERE task = ?1 AND seq <=
                 (SELECT seq FROM events WHERE task = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            )
            .bind(task.as_str())
            .bind(EVENTS_KEPT)
            .execute(&mut *c)
            .await?;
            if event.kind == DELETED {
                sqlx::query(
                    "DELETE FROM events WHERE kind = ?1 AND seq <=
                     (SELECT seq FROM events WHERE kind = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                )
                .bind(DELETED)
                .bind(EVENTS_KEPT)
                .execute(c)
                .await?;
            }
        }
    }
    Ok(())
}

async fn forget(c: &mut SqliteConnection, task: &TaskId) -> Done {
    for sql in [
        "DELETE FROM channels WHERE task = ?",
        "DELETE FROM detached WHERE task = ?",
        "DELETE FROM replicate WHERE task = ?",
        "DELETE FROM collections WHERE task = ?",
        "DELETE FROM partitions WHERE task = ?",
        "DELETE FROM notes WHERE task = ?",
    ] {
        sqlx::query(sql)
            .bind(task.as_str())
            .execute(&mut *c)
            .await?;
    }
    Ok(())
}

async fn progress(c: &mut SqliteConnection, change: &Change) -> Done {
    let query = match change {
        Change::PutChannel { task, channel, progress, clean } => {
            let sql = if *clean {
                "INSERT INTO channels (task, channel, position, after, applied, sent) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET position = excluded.position, after = excluded.after,
                 applied = excluded.applied, sent = excluded.sent"
            } else {
                "INSERT INTO channels (task, channel, position, after, applied, sent) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET position = excluded.position, after = excluded.after,
                 applied = excluded.applied, sent = max(sent, excluded.sent)"
            };
            let Progress { position, after, applied, sent } = progress;
            sqlx::query(sql)
                .bind(task.as_str())
                .bind(channel.as_str())
                .bind(json(position)?)
                .bind(*after)
                .bind(digits(*applied))
                .bind(digits(*sent))
        }
        Change::RaiseSent { task, channel, sent } => {
            sqlx::query("UPDATE channels SET sent = max(sent, ?) WHERE task = ? AND channel = ?")
                .bind(digits(*sent))
                .bind(task.as_str())
                .bind(channel.as_str())
        }
        Change::DeleteChannel { task, channel } => sqlx::query("DELETE FROM channels WHERE task = ? AND channel = ?")
            .bind(task.as_str())
            .bind(channel.as_str()),
        Change::PutDetached { task, channel, collection, progress } => sqlx::query(
            "INSERT OR REPLACE INTO detached (task, channel, collection, position, after, applied, sent)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(task.as_str())
        .bind(channel.as_str())
        .bind(collection.0)
        .bind(json(&progress.position)?)
        .bind(progress.after)
        .bind(digits(progress.applied))
        .bind(digits(progress.sent)),
        Change::DeleteDetached { task, channel, collection } => {
            sqlx::query("DELETE FROM detached WHERE task = ? AND channel = ? AND collection = ?")
                .bind(task.as_str())
                .bind(channel.as_str())
                .bind(collection.0)
        }
        Change::PutReplicate { task, position } => {
            sqlx::query("INSERT OR REPLACE INTO replicate (task, position) VALUES (?, ?)")
                .bind(task.as_str())
                .bind(json(position)?)
        }
        Change::PutCollection { task, object } => {
            sqlx::query("INSERT OR REPLACE INTO collections (task, source, object) VALUES (?, ?, ?)")
                .bind(task.as_str())
                .bind(object.source.0)
                .bind(json(object)?)
        }
        Change::DeleteCollection { task, source } => {
            sqlx::query("DELETE FROM collections WHERE task = ? AND source = ?").bind(task.as_str()).bind(source.0)
        }
        Change::PutPartition { task, object } => {
            sqlx::query("INSERT OR REPLACE INTO partitions (task, source, object) VALUES (?, ?, ?)")
                .bind(task.as_str())
                .bind(object.source.0)
                .bind(json(object)?)
        }
        Change::DeletePartition { task, source } => {
            sqlx::query("DELETE FROM partitions WHERE task = ? AND source = ?").bind(task.as_str()).bind(source.0)
        }
        Change::PutNote { task, collection, note } if note.is_empty() => {
            sqlx::query("DELETE FROM notes WHERE task = ? AND collection = ?").bind(task.as_str()).bind(collection.0)
        }
        Change::PutNote { task, collection, note } => {
            sqlx::query("INSERT OR REPLACE INTO notes (task, collection, note) VALUES (?, ?, ?)")
                .bind(task.as_str())
                .bind(collection.0)
                .bind(note.as_str())
        }
        Change::RaiseFloor { target, channel, floor } => sqlx::query(
            "INSERT INTO floors (target, channel, floor) VALUES (?, ?, ?)
             ON CONFLICT DO UPDATE SET floor = max(floor, excluded.floor)",
        )
        .bind(target.as_str())
        .bind(channel.as_str())
        .bind(digits(*floor)),
        Change::ForgetTask { task } => return forget(c, task).await,
    };
    query.execute(c).await?;
    Ok(())
}
