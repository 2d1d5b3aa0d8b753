//! The tasks: what a person wants of them, kept in the store, and carried out by the corelib.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{PChannel, TaskId};
use cdc_core::position::Position;
use cdc_core::secret::Secret;
use cdc_core::store::{ProgressStore, StoreError, TaskProgress};
use cdc_core::task::{OnConflict, Selection, StartPoint, TargetSpec, TaskSpec, TaskStatus};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::request::{Answer, CreateTask};
use crate::runtime::Replication;
use crate::store::{Desired, Event, SqliteStore, StoredTask, TaskWrite};

/// How long a pause or delete waits for what is in flight.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer waits until a task that was just resumed knows its collections.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Settings that go into every task.
#[derive(Clone, Debug)]
pub struct TaskLimits {
    pub max_task_num: usize,
    pub memory_budget: usize,
    pub call_timeout: Duration,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    pub spec: TaskSpec,
    pub desired: Desired,
    /// Unix milliseconds.
    pub created: u64,
    pub updated: u64,
}

/// Why a request was not carried out.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TaskError {
    #[error("no task {0}")]
    NotFound(String),
    /// What was asked for cannot work: cause and way out.
    #[error("{0}")]
    Refused(Problem),
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The form in which a task is stored. It holds the token; it has no `Debug`.
#[derive(Serialize, Deserialize)]
struct StoredSpec {
    uri: String,
    token: String,
    connect_timeout_s: u64,
    selection: Selection,
    start: StartPoint,
    on_conflict: OnConflict,
    positions: BTreeMap<PChannel, Position>,
}

/// All tasks of this server. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    store: SqliteStore,
    replication: Arc<dyn Replication>,
    limits: TaskLimits,
    tasks: RwLock<BTreeMap<TaskId, Task>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    ready: AtomicBool,
}

impl Tasks {
    pub fn new(store: SqliteStore, replication: Arc<dyn Replication>, limits: TaskLimits) -> Self {
        let inner = Inner {
            store,
            replication,
            limits,
            tasks: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            ready: AtomicBool::new(false),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Reads the stored tasks and starts those that shall run. A task a person paused stays paused.
    pub async fn recover(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        for stored in inner.store.tasks().await? {
            let spec = inner.decode(&stored)?;
            let StoredTask {
                id,
                desired,
                created,
                updated,
                ..
            } = stored;
            let task = Task {
                spec: spec.clone(),
                desired,
                created,
                updated,
            };
            let runs = task.desired == Desired::Running;
            inner.tasks.write().insert(id.clone(), task);
            if runs && let Err(problem) = inner.replication.start(spec) {
                tracing::error!(task = %id, %problem, "a stored task could not be started");
            }
        }
        inner.ready.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether [`Tasks::recover`] is through.
    pub fn ready(&self) -> bool {
        self.inner.ready.load(Ordering::SeqCst)
    }

    pub fn list(&self) -> Vec<Task> {
        self.inner.tasks.read().values().cloned().collect()
    }

    pub fn get(&self, id: &str) -> Result<Task, TaskError> {
        let task = self.inner.tasks.read().get(&TaskId::new(id)).cloned();
        task.ok_or_else(|| TaskError::NotFound(crate::fields::clip(id)))
    }

    /// What a running task says of itself.
    pub fn status(&self, id: &TaskId) -> Option<TaskStatus> {
        self.inner.replication.status(id)
    }

    pub async fn events(&self, id: &TaskId) -> Result<Vec<Event>, StoreError> {
        self.inner.store.events(id, 50).await
    }

    pub async fn progress(&self, id: &TaskId) -> Result<TaskProgress, StoreError> {
        self.inner.store.load(id).await
    }

    /// Makes a task and starts it. With a `task_id` that exists and asks for the same, that task.
    pub async fn create(&self, request: CreateTask) -> Result<TaskId, TaskError> {
        let inner = &self.inner;
        let id = request
            .id
            .clone()
            .unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        let spec = TaskSpec {
            id: TaskId::new(id),
            target: inner.target(request.uri, request.token, request.connect_timeout),
            selection: request.selection,
            start: request.start,
            positions: request.positions,
            on_conflict: request.on_conflict,
            memory_budget: inner.limits.memory_budget,
        };
        if let Some(same) = inner.check_room(&spec)? {
            return Ok(same);
        }
        // The slow part, with nothing locked.
        inner
            .replication
            .check_source()
            .await
            .map_err(TaskError::Refused)?;
        inner
            .replication
            .check_target(&spec.target)
            .await
            .map_err(TaskError::Refused)?;

        let _changing = inner.changing.lock().await;
        if let Some(same) = inner.check_room(&spec)? {
            return Ok(same);
        }
        let now = unix_ms();
        let task = Task {
            spec: spec.clone(),
            desired: Desired::Running,
            created: now,
            updated: now,
        };
        let text = format!("created for {}", spec.target.uri);
        inner
            .store
            .write_tasks(vec![
                TaskWrite::Create(encode(&task)?),
                event(&spec.id, "created", text),
            ])
            .await?;
        inner.tasks.write().insert(spec.id.clone(), task);
        tracing::info!(task = %spec.id, target = %spec.target.uri, "task created");
        inner
            .replication
            .start(spec.clone())
            .map_err(TaskError::Refused)?;
        Ok(spec.id)
    }

    /// Stops a task for as long as a person wants. A paused task stays as it is.
    pub async fn pause(&self, id: &str) -> Result<(), TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = self.get(id)?;
        if task.desired == Desired::Running {
            let reason = "paused by a request".to_owned();
            let desired = Desired::Paused {
                by: "http".to_owned(),
                since: unix_ms(),
                reason: reason.clone(),
            };
            inner
                .set_desired(&task.spec.id, desired, "paused", reason)
                .await?;
        }
        inner.replication.stop(&task.spec.id, STOP_DEADLINE).await;
        Ok(())
    }

    /// Lets a task run, and hands it a person's answers. A running task goes on.
    pub async fn resume(&self, id: &str, answers: Vec<Answer>) -> Result<(), TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = self.get(id)?;
        if task.desired != Desired::Running {
            inner
                .set_desired(
                    &task.spec.id,
                    Desired::Running,
                    "resumed",
                    "resumed by a request".to_owned(),
                )
                .await?;
        }
        if inner.replication.status(&task.spec.id).is_none() {
            inner
                .replication
                .start(task.spec.clone())
                .map_err(TaskError::Refused)?;
        }
        for answer in answers {
            inner.answer(&task.spec.id, answer).await?;
        }
        Ok(())
    }

    /// Stops a task and forgets it, with its progress. What is known of the target's time stays.
    pub async fn delete(&self, id: &str) -> Result<(), TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = self.get(id)?;
        inner.replication.stop(&task.spec.id, STOP_DEADLINE).await;
        let deleted = inner
            .store
            .write_tasks(vec![TaskWrite::Delete(task.spec.id.clone())])
            .await;
        if let Err(error) = deleted {
            // It is still there and still shall run.
            if task.desired == Desired::Running {
                let _ = inner.replication.start(task.spec);
            }
            return Err(error.into());
        }
        inner.tasks.write().remove(&task.spec.id);
        tracing::info!(task = %task.spec.id, "task deleted");
        Ok(())
    }

    /// Stops everything; what a person wants stays as it is.
    pub async fn shut_down(&self, deadline: Duration) {
        self.inner.replication.stop_all(deadline).await;
        self.inner.store.close(Duration::from_millis(300)).await;
    }
}

impl Inner {
    fn target(&self, uri: String, token: Secret, connect_timeout: Duration) -> TargetSpec {
        TargetSpec {
            uri,
            token,
            connect_timeout,
            call_timeout: self.limits.call_timeout,
        }
    }

    /// Whether there is room for this task; the id of one that is the same already.
    fn check_room(&self, spec: &TaskSpec) -> Result<Option<TaskId>, TaskError> {
        let conflict = |message: String, hint: &str| {
            TaskError::Conflict(Problem::new(ErrorClass::Conflict, message, hint))
        };
        let tasks = self.tasks.read();
        if let Some(there) = tasks.get(&spec.id) {
            if there.spec == *spec {
                return Ok(Some(spec.id.clone()));
            }
            let message = format!("task {} exists and asks for something else", spec.id);
            return Err(conflict(message, "delete it first, or leave out task_id"));
        }
        let same = |t: &&Task| {
            t.spec.target.uri == spec.target.uri && t.spec.selection.overlaps(&spec.selection)
        };
        if let Some(other) = tasks.values().find(same) {
            let message = format!(
                "task {} carries some of these collections to {} already",
                other.spec.id, spec.target.uri
            );
            return Err(conflict(
                message,
                "delete that task first, or choose other collections or another target",
            ));
        }
        if tasks.len() >= self.limits.max_task_num {
            let message = format!("there are {} tasks, which is maxTaskNum", tasks.len());
            return Err(conflict(
                message,
                "delete a task, or raise maxTaskNum and restart",
            ));
        }
        Ok(None)
    }

    async fn set_desired(
        &self,
        id: &TaskId,
        desired: Desired,
        kind: &str,
        text: String,
    ) -> Result<(), StoreError> {
        let at = unix_ms();
        let set = TaskWrite::SetDesired {
            task: id.clone(),
            desired: desired.clone(),
            at,
        };
        self.store
            .write_tasks(vec![set, event(id, kind, text)])
            .await?;
        if let Some(task) = self.tasks.write().get_mut(id) {
            task.desired = desired;
            task.updated = at;
        }
        tracing::info!(task = %id, "task {kind}");
        Ok(())
    }

    async fn answer(&self, id: &TaskId, answer: Answer) -> Result<(), TaskError> {
        let Answer {
            database,
            name,
            choice,
        } = answer;
        let known = || {
            let status = self.replication.status(id);
            status.is_some_and(|s| {
                s.collections
                    .iter()
                    .any(|c| c.database == database && c.name == name)
            })
        };
        let deadline = tokio::time::Instant::now() + ANSWER_DEADLINE;
        while !known() {
            if tokio::time::Instant::now() > deadline {
                let message = format!("task {id} has no collection {database}.{name}");
                return Err(TaskError::Conflict(Problem::new(
                    ErrorClass::Conflict,
                    message,
                    "see get",
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let text = format!("{database}.{name}: {choice:?}");
        self.replication
            .choose(id, &database, &name, choice)
            .await
            .map_err(TaskError::Conflict)?;
        self.store
            .write_tasks(vec![event(id, "answered", text)])
            .await?;
        Ok(())
    }

    fn decode(&self, stored: &StoredTask) -> Result<TaskSpec, StoreError> {
        let spec: StoredSpec = serde_json::from_str(&stored.spec).map_err(|e| {
            StoreError::Corrupt(format!(
                "task {}: unreadable at column {}",
                stored.id,
                e.column()
            ))
        })?;
        Ok(TaskSpec {
            id: stored.id.clone(),
            target: self.target(
                spec.uri,
                Secret::new(spec.token),
                Duration::from_secs(spec.connect_timeout_s),
            ),
            selection: spec.selection,
            start: spec.start,
            positions: spec.positions,
            on_conflict: spec.on_conflict,
            memory_budget: self.limits.memory_budget,
        })
    }
}

fn encode(task: &Task) -> Result<StoredTask, StoreError> {
    let TaskSpec {
        id,
        target,
        selection,
        start,
        positions,
        on_conflict,
        ..
    } = task.spec.clone();
    let spec = StoredSpec {
        uri: target.uri,
        token: target.token.expose().to_owned(),
        connect_timeout_s: target.connect_timeout.as_secs(),
        selection,
        start,
        on_conflict,
        positions,
    };
    let spec = serde_json::to_string(&spec).map_err(|e| StoreError::Corrupt(e.to_string()))?;
    Ok(StoredTask {
        id,
        spec,
        desired: task.desired.clone(),
        created: task.created,
        updated: task.updated,
    })
}

fn event(task: &TaskId, kind: &str, text: String) -> TaskWrite {
    TaskWrite::Event {
        task: task.clone(),
        event: Event {
            at: unix_ms(),
            kind: kind.to_owned(),
            text,
        },
    }
}

pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
