//! The one writer. While a transaction is being written others queue up; they share the next one.

use std::fs::File;
use std::time::Duration;

use cdc_core::store::StoreError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connection::{Connection, Target};
use super::dialect::{Database, Dialect};
use super::{owner, write};
use crate::store::Write;

/// Jobs in one transaction.
const MERGE: usize = 64;
/// Longest a transaction may take before the connection is given up, and with it the transaction. Longer than the
/// server's own limits.
const DEADLINE: Duration = Duration::from_secs(10);
/// A connection that was not used for this long is tried before it is. Shorter than the server's `wait_timeout`.
const FRESH: Duration = Duration::from_secs(2);

pub(super) struct Job {
    pub(super) writes: Vec<Write>,
    /// The epoch of the owner that writes; `None` where a file lock keeps everybody else out.
    pub(super) epoch: Option<i64>,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
}

/// Why a transaction was not committed.
enum Broken {
    Sql(sqlx::Error),
    Store(StoreError),
}

impl From<sqlx::Error> for Broken {
    fn from(error: sqlx::Error) -> Self {
        Broken::Sql(error)
    }
}

pub(super) struct Writer {
    pub(super) dialect: Dialect,
    pub(super) target: Target,
    pub(super) connection: Option<Connection>,
    pub(super) used: Instant,
    /// Held for as long as we write.
    pub(super) _lock: Option<File>,
}

impl Writer {
    /// Ends when the last handle of the store is gone.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(MERGE);
        while waiting.recv_many(&mut jobs, MERGE).await > 0 {
            let merged = self.transaction(&jobs).await;
            match merged {
                Err(_) if jobs.len() > 1 => {
                    // One of them spoils it: each by itself, in the same order. Every write may be repeated.
                    for job in jobs.drain(..) {
                        let result = self.transaction(std::slice::from_ref(&job)).await;
                        let _ = job.done.send(result);
                    }
                }
                result => {
                    for job in jobs.drain(..) {
                        let _ = job.done.send(result.clone());
                    }
                }
            }
        }
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    async fn transaction(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
        let work = async {
            self.connect().await?;
            let Some(connection) = self.connection.as_mut() else {
                return Ok(());
            };
            let outcome = transaction(connection, &self.dialect, jobs).await;
            if outcome.is_err() && connection.raw("ROLLBACK").await.is_err() {
                // Whatever is left of the transaction ends with the connection.
                self.connection = None;
            }
            outcome
        };
        let outcome = tokio::time::timeout(DEADLINE, work).await;
        self.used = Instant::now();
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Broken::Store(error))) => Err(error),
            Ok(Err(Broken::Sql(error))) => Err(unavailable(error)),
            Err(_) => {
                self.connection = None;
                Err(StoreError::Unavailable(format!(
                    "no answer within {} s",
                    DEADLINE.as_secs()
                )))
            }
        }
    }

    async fn connect(&mut self) -> Result<(), sqlx::Error> {
        if let Some(connection) = self.connection.as_mut()
            && self.dialect.database != Database::Sqlite
            && self.used.elapsed() > FRESH
            && connection.ping().await.is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(Connection::open(&self.target).await?);
        }
        Ok(())
    }
}

async fn transaction(c: &mut Connection, d: &Dialect, jobs: &[Job]) -> Result<(), Broken> {
    c.raw(d.begin()).await?;
    let mut epochs: Vec<i64> = jobs.iter().filter_map(|job| job.epoch).collect();
    epochs.dedup();
    if !epochs.is_empty() {
        owner::check(c, d, &epochs).await?.map_err(Broken::Store)?;
    }
    let mut all = Vec::new();
    for write in jobs.iter().flat_map(|job| &job.writes) {
        all.extend(write::statements(d, write).map_err(Broken::Store)?);
    }
    for statement in d.merged(all) {
        let hit = c.execute(&statement).await?;
        if statement.must_hit && hit == 0 {
            return Err(sqlx::Error::RowNotFound.into());
        }
    }
    c.raw("COMMIT").await?;
    Ok(())
}

pub(super) fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
