//! The store on SQLite: one writer that merges what waits into one transaction, and a few readers.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::ids::{CollectionId, PChannel, PartitionId, TargetKey, TaskId};
use cdc_core::store::{Change, Progress, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::schema::{self, OpenError};
use super::write::{TaskWrite, Write, apply};
use super::{Event, Logged, StoredTask, Unreadable};

/// Jobs that may wait for the writer; whoever comes then waits with its job in hand.
const QUEUE: usize = 256;
/// Jobs in one transaction.
const MERGE: usize = 64;

struct Job {
    writes: Vec<Write>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct SqliteStore {
    jobs: mpsc::Sender<Job>,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// The file is not ours, from a newer version, in use, or cannot be read.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let (connection, lock) = schema::prepare(path).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(schema::options(path))
            .await
            .map_err(|cause| OpenError::Sqlite {
                path: path.to_owned(),
                cause,
            })?;
        let (jobs, waiting) = mpsc::channel(QUEUE);
        // Ends when the last clone is gone.
        tokio::spawn(write_jobs(connection, waiting, lock));
        Ok(Self { jobs, readers })
    }

    /// Waits until what is queued now is written, at most for `deadline`, and closes the readers.
    pub async fn close(&self, deadline: Duration) {
        let (done, written) = oneshot::channel();
        let flush = async {
            if self
                .jobs
                .send(Job {
                    writes: Vec::new(),
                    done,
                })
                .await
                .is_ok()
            {
                let _ = written.await;
            }
            self.readers.close().await;
        };
        let _ = tokio::time::timeout(deadline, flush).await;
    }

    /// Writes changes of tasks and of their progress in one transaction.
    pub async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
        self.run(writes.into_iter().map(Write::Task).collect())
            .await
    }

    async fn run(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let (done, result) = oneshot::channel();
        let gone = || StoreError::Unavailable("the store is closed".to_owned());
        self.jobs
            .send(Job { writes, done })
            .await
            .map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Every task; one that cannot be read does not hide the others.
    pub async fn tasks(&self) -> Result<Vec<Result<StoredTask, Unreadable>>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, spec, desired, created, updated FROM tasks ORDER BY created, id",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.iter()
            .map(|row| {
                let id = TaskId::new(text(row, "id")?);
                Ok(stored_task(row, &id).map_err(|error| {
                    let cause = error.to_string();
                    Unreadable { id, cause }
                }))
            })
            .collect()
    }

    /// What is in the history behind the place `after`, of one task or of all, the oldest first.
    pub async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        let rows = sqlx::query(
            "SELECT seq, task, at, kind, text FROM events
             WHERE seq > ?1 AND (?2 IS NULL OR task = ?2) ORDER BY seq LIMIT ?3",
        )
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(of.map(TaskId::as_str))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.iter()
            .map(|row| {
                Ok(Logged {
                    seq: number(row, "seq")? as u64,
                    task: TaskId::new(text(row, "task")?),
                    event: Event {
                        at: number(row, "at")? as u64,
                        kind: text(row, "kind")?,
                        text: text(row, "text")?,
                    },
                })
            })
            .collect()
    }

    /// The history of a task, the newest first.
    pub async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query(
            "SELECT at, kind, text FROM events WHERE task = ? ORDER BY seq DESC LIMIT ?",
        )
        .bind(task.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.iter()
            .map(|row| {
                Ok(Event {
                    at: number(row, "at")? as u64,
                    kind: text(row, "kind")?,
                    text: text(row, "text")?,
                })
            })
            .collect()
    }
}

/// The one writer. While a transaction is being synced others queue up; they share the next sync.
async fn write_jobs(
    mut connection: SqliteConnection,
    mut waiting: mpsc::Receiver<Job>,
    _lock: File,
) {
    let mut jobs = Vec::with_capacity(MERGE);
    while waiting.recv_many(&mut jobs, MERGE).await > 0 {
        let merged = transaction(&mut connection, jobs.iter().flat_map(|job| &job.writes)).await;
        match merged {
            Err(_) if jobs.len() > 1 => {
                // One of them spoils it: each by itself, in the same order. Every write may be repeated.
                for job in jobs.drain(..) {
                    let result = transaction(&mut connection, job.writes.iter()).await;
                    let _ = job.done.send(result.map_err(unavailable));
                }
            }
            result => {
                let result = result.map_err(unavailable);
                for job in jobs.drain(..) {
                    let _ = job.done.send(result.clone());
                }
            }
        }
    }
    let _ = connection.close().await;
}

async fn transaction<'a>(
    connection: &mut SqliteConnection,
    writes: impl Iterator<Item = &'a Write>,
) -> Result<(), sqlx::Error> {
    // Dropped without a commit it is rolled back.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for write in writes {
        apply(&mut transaction, write).await?;
    }
    transaction.commit().await
}

fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn corrupt(column: &str, cause: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("column {column}: {cause}"))
}

fn text(row: &SqliteRow, column: &str) -> Result<String, StoreError> {
    row.try_get(column).map_err(|e| corrupt(column, e))
}

fn number(row: &SqliteRow, column: &str) -> Result<i64, StoreError> {
    row.try_get(column).map_err(|e| corrupt(column, e))
}

fn tso(row: &SqliteRow, column: &str) -> Result<Tso, StoreError> {
    text(row, column)?
        .parse()
        .map(Tso)
        .map_err(|e| corrupt(column, e))
}

fn parse<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    serde_json::from_str(&text(row, column)?).map_err(|e| corrupt(column, e))
}

fn stored_task(row: &SqliteRow, id: &TaskId) -> Result<StoredTask, StoreError> {
    Ok(StoredTask {
        id: id.clone(),
        spec: text(row, "spec")?,
        desired: parse(row, "desired")?,
        created: number(row, "created")? as u64,
        updated: number(row, "updated")? as u64,
    })
}

fn progress(row: &SqliteRow) -> Result<Progress, StoreError> {
    Ok(Progress {
        position: parse(row, "position")?,
        after: number(row, "after")? != 0,
        applied: tso(row, "applied")?,
        sent: tso(row, "sent")?,
    })
}

#[async_trait]
impl ProgressStore for SqliteStore {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        // One transaction: all tables at the same instant.
        let mut reader = self.readers.begin().await.map_err(unavailable)?;
        let mut rows = Vec::new();
        for sql in [
            "SELECT * FROM channels WHERE task = ?",
            "SELECT * FROM detached WHERE task = ?",
            "SELECT * FROM replicate WHERE task = ?",
            "SELECT * FROM collections WHERE task = ?",
            "SELECT * FROM partitions WHERE task = ?",
            "SELECT * FROM notes WHERE task = ?",
        ] {
            rows.push(
                sqlx::query(sql)
                    .bind(task.as_str())
                    .fetch_all(&mut *reader)
                    .await
                    .map_err(unavailable)?,
            );
        }
        let mut all = TaskProgress::default();
        let table = |n: usize| rows.get(n).into_iter().flatten();
        for row in table(0) {
            all.channels
                .insert(PChannel::new(text(row, "channel")?), progress(row)?);
        }
        for row in table(1) {
            let key = (
                PChannel::new(text(row, "channel")?),
                CollectionId(number(row, "collection")?),
            );
            all.detached.insert(key, progress(row)?);
        }
        for row in table(2) {
            all.replicate = Some(parse(row, "position")?);
        }
        for row in table(3) {
            all.collections
                .insert(CollectionId(number(row, "source")?), parse(row, "object")?);
        }
        for row in table(4) {
            all.partitions
                .insert(PartitionId(number(row, "source")?), parse(row, "object")?);
        }
        for row in table(5) {
            all.notes
                .insert(CollectionId(number(row, "collection")?), text(row, "note")?);
        }
        Ok(all)
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        let rows = sqlx::query("SELECT channel, floor FROM floors WHERE target = ?")
            .bind(target.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        rows.iter()
            .map(|row| Ok((PChannel::new(text(row, "channel")?), tso(row, "floor")?)))
            .collect()
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.run(changes.into_iter().map(Write::Progress).collect())
            .await
    }
}
