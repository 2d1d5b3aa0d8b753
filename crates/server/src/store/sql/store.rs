//! The store on a SQL database: one writer that merges what waits into one transaction, and a few readers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connection::{Connection, Pool, Row, Target, Value};
use super::dialect::{Database, Dialect, Statement};
use super::schema::{OpenSqlError, SqlServer};
use super::writer::{Job, Writer, unavailable};
use super::{owner, read};
use crate::store::owner::{Claim, Taken, Term};
use crate::store::{
    Backend, Event, Logged, OpenError, SharedTaskStore, StoredTask, TaskStore, TaskWrite,
    Unreadable, Write, sqlite,
};

/// Jobs that may wait for the writer; whoever comes then waits with its job in hand.
const QUEUE: usize = 256;
/// How long a read may take.
const READ: Duration = Duration::from_secs(10);

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct SqlStore {
    dialect: Dialect,
    jobs: mpsc::Sender<Job>,
    readers: Pool,
    /// The owner's epoch that goes with every write; 0 writes nothing on a store that is shared.
    epoch: i64,
    seen: Arc<Mutex<Option<owner::Seen>>>,
}

impl SqlStore {
    /// Opens the SQLite file, or makes it. A second process is refused.
    ///
    /// # Errors
    /// The file is not ours, from a newer version, in use, or cannot be read.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let (connection, lock) = sqlite::prepare(path).await?;
        let dialect = Dialect {
            database: Database::Sqlite,
            prefix: String::new(),
        };
        let target = Target::Sqlite(sqlite::options(path));
        let writer = Writer {
            dialect,
            target,
            connection: Some(Connection::Sqlite(connection)),
            used: Instant::now(),
            _lock: Some(lock),
        };
        let store = Self::start(writer);
        // A connection that reads: what it may find wrong is said now.
        let look = store.dialect.select("tasks", &["id"], &[], " LIMIT 1");
        let looked = store.readers.fetch(&look).await;
        looked.map_err(|cause| OpenError::Sqlite {
            path: path.to_owned(),
            cause,
        })?;
        Ok(store)
    }

    /// Opens the store in a database server, and makes its tables if they are not there. The handle reads; for writing
    /// take the ownership first.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or its tables are of a newer version.
    pub async fn connect(server: &SqlServer) -> Result<Self, OpenSqlError> {
        server.prepare().await?;
        let writer = Writer {
            dialect: server.dialect.clone(),
            target: server.target.clone(),
            connection: None,
            used: Instant::now(),
            _lock: None,
        };
        Ok(Self::start(writer))
    }

    /// Opens the SQLite file to look at it, also while a server has it open. Every write fails.
    ///
    /// # Errors
    /// The file is not ours, of a newer version, or cannot be read.
    pub fn look(path: &Path) -> Result<Self, OpenError> {
        sqlite::check(path)?;
        let dialect = Dialect {
            database: Database::Sqlite,
            prefix: String::new(),
        };
        let options = sqlite::options(path)
            .create_if_missing(false)
            .read_only(true);
        Ok(Self::reading(dialect, &Target::Sqlite(options)))
    }

    /// The same with the store in a database server; `None` if there is none yet. Makes no tables.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or its tables are of a newer version.
    pub async fn look_at(server: &SqlServer) -> Result<Option<Self>, OpenSqlError> {
        let there = server.is_there().await?;
        Ok(there.then(|| Self::reading(server.dialect.clone(), &server.target)))
    }

    fn reading(dialect: Dialect, target: &Target) -> Self {
        // Nobody takes jobs.
        let (jobs, _) = mpsc::channel(1);
        Self {
            dialect,
            jobs,
            readers: Pool::new(target),
            epoch: 0,
            seen: Arc::default(),
        }
    }

    fn start(writer: Writer) -> Self {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let store = Self {
            dialect: writer.dialect.clone(),
            jobs,
            readers: Pool::new(&writer.target),
            epoch: 0,
            seen: Arc::default(),
        };
        // Ends when the last clone is gone.
        tokio::spawn(writer.run(waiting));
        store
    }

    fn is_shared(&self) -> bool {
        self.dialect.database != Database::Sqlite
    }

    async fn run(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let (done, result) = oneshot::channel();
        let gone = || StoreError::Unavailable("the store is closed".to_owned());
        let epoch = self.is_shared().then_some(self.epoch);
        let job = Job {
            writes,
            epoch,
            done,
        };
        self.jobs.send(job).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    async fn fetch(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        in_time(self.readers.fetch(&statement)).await
    }
}

async fn in_time<T>(read: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(READ, read).await {
        Ok(rows) => rows.map_err(unavailable),
        Err(_) => Err(StoreError::Unavailable(format!(
            "no answer within {} s",
            READ.as_secs()
        ))),
    }
}

#[async_trait]
impl ProgressStore for SqlStore {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        let statements = read::progress_statements(&self.dialect, task);
        // One transaction: all tables at the same instant.
        let begin = self.dialect.begin_snapshot();
        read::progress(in_time(self.readers.snapshot(begin, &statements)).await?)
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        let of = [("target", Value::from(target.as_str()))];
        let floors = self
            .dialect
            .select("floors", &["channel", "floor"], &of, "");
        self.fetch(floors)
            .await?
            .into_iter()
            .map(read::floor)
            .collect()
    }

    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        let parts = read::message_statement(&self.dialect, task, message);
        read::message(self.fetch(parts).await?)
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.run(changes.into_iter().map(Write::Progress).collect())
            .await
    }
}

#[async_trait]
impl TaskStore for SqlStore {
    async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
        self.run(writes.into_iter().map(Write::Task).collect())
            .await
    }

    async fn tasks(&self) -> Result<Vec<Result<StoredTask, Unreadable>>, StoreError> {
        let columns = ["id", "spec", "desired", "created", "updated"];
        let all = self
            .dialect
            .select("tasks", &columns, &[], " ORDER BY created, id");
        self.fetch(all).await?.into_iter().map(read::task).collect()
    }

    async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError> {
        let of = [("task", Value::from(task.as_str()))];
        let newest = format!(" ORDER BY {} DESC LIMIT {limit}", self.dialect.name("seq"));
        let columns = ["at", "kind", "text"];
        let events = self.dialect.select("events", &columns, &of, &newest);
        self.fetch(events)
            .await?
            .into_iter()
            .map(read::event)
            .collect()
    }

    async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let history = self.dialect.history(of.map(TaskId::as_str), after, limit);
        let rows = self.fetch(history).await?;
        rows.into_iter().map(read::logged).collect()
    }

    async fn close(&self, deadline: Duration) {
        let (done, written) = oneshot::channel();
        let flush = async {
            let last = Job {
                writes: Vec::new(),
                epoch: None,
                done,
            };
            if self.jobs.send(last).await.is_ok() {
                let _ = written.await;
            }
            self.readers.close().await;
        };
        let _ = tokio::time::timeout(deadline, flush).await;
    }
}

#[async_trait]
impl Backend for SqlStore {
    async fn take(&self, claim: &Claim) -> Result<Taken, StoreError> {
        match self.is_shared() {
            true => owner::take(&self.readers, &self.dialect, claim, &self.seen).await,
            // Whoever has the file open owns it.
            false => Ok(Taken::Ours(Term::endless(&claim.name))),
        }
    }

    async fn renew(&self, term: &Term) -> Result<bool, StoreError> {
        match self.is_shared() {
            true => owner::renew(&self.readers, &self.dialect, term).await,
            false => Ok(true),
        }
    }

    async fn release(&self, term: &Term) -> Result<(), StoreError> {
        match self.is_shared() {
            true => owner::release(&self.readers, &self.dialect, term).await,
            false => Ok(()),
        }
    }

    fn of_term(&self, term: &Term) -> SharedTaskStore {
        Arc::new(Self {
            epoch: term.epoch,
            ..self.clone()
        })
    }
}
