//! The tasks: what a person wants of them, kept in the store, and carried out by the corelib.

mod answers;
mod doubts;
mod drain;
mod edit;
mod making;
mod patients;
mod plan;
mod promote;
mod quarantine;
mod repair;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::select::Name;
use cdc_core::source::reach::Held;
use cdc_core::store::{StoreError, TaskProgress};
use cdc_core::task::{Mode, TargetSpec, TaskSpec, TaskStatus};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::config::Config;
use crate::request::{Answer, CreateTask, Given};
use crate::runtime::Replication;
use crate::store::{
    DELETED, Desired, Event, Logged, SharedTaskStore, TaskStore, TaskWrite, Unreadable,
};
use doubts::{Doubt, Doubts, Found};
pub(crate) use making::{Read, check_room, creation, read, task};
pub use patients::stored_patients;
pub use plan::{Plan, Planned};
use promote::Job;
pub use promote::{Promotion, PromotionState, Wish};
use stored::{decode, encode};

/// How long a pause or delete waits for what is in flight.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Settings that go into every task.
#[derive(Clone, Debug)]
pub struct TaskLimits {
    pub max_task_num: usize,
    pub memory_budget: usize,
    pub durable_every: Duration,
    pub call_timeout: Duration,
    /// How long a person's answer waits for its collection to ask, and again for its confirmation.
    pub answer_deadline: Duration,
}

impl TaskLimits {
    pub fn of(config: &Config) -> Self {
        Self {
            max_task_num: config.max_task_num,
            memory_budget: config.memory_budget,
            durable_every: config.durable_every,
            call_timeout: config.call_timeout,
            answer_deadline: ANSWER_DEADLINE,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    pub spec: TaskSpec,
    pub given: Given,
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
    /// Of those that could not be carried.
    #[error("no message {0} is kept")]
    NoMessage(String),
    /// What was asked for cannot work: cause and way out.
    #[error("{0}")]
    Refused(Problem),
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(Problem),
    #[error("task {id} cannot be read: {cause}")]
    Unreadable { id: String, cause: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What this server is to the tasks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It does not know the tasks yet.
    Starting,
    /// It shows them; the server of this name runs them.
    Waiting {
        owner: String,
    },
    Owner,
}

/// All tasks of this server. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    store: SharedTaskStore,
    replication: Arc<dyn Replication>,
    limits: TaskLimits,
    tasks: RwLock<BTreeMap<TaskId, Task>>,
    /// Stored tasks that this program does not understand. They are shown and can be deleted.
    unreadable: RwLock<BTreeMap<TaskId, Unreadable>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    standing: RwLock<Standing>,
    /// By target: the promotion that is under way, or the last one of this process.
    promotions: Mutex<BTreeMap<TargetKey, Arc<Job>>>,
    /// Changes whenever something was added to the history.
    history: watch::Sender<()>,
    doubts: Mutex<Doubts>,
}

impl Tasks {
    pub fn new(
        store: impl TaskStore + 'static,
        replication: Arc<dyn Replication>,
        limits: TaskLimits,
    ) -> Self {
        let inner = Inner {
            store: Arc::new(store),
            replication,
            limits,
            tasks: RwLock::default(),
            unreadable: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            standing: RwLock::new(Standing::Starting),
            promotions: Mutex::default(),
            history: watch::Sender::new(()),
            doubts: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Reads the stored tasks and starts those that shall run. A task a person paused stays paused.
    pub async fn recover(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let read = inner.read().await?;
        let specs: Vec<TaskSpec> = read
            .tasks
            .values()
            .filter(|task| task.desired == Desired::Running)
            .map(|task| task.spec.clone())
            .collect();
        inner.show(read);
        for spec in specs {
            let id = spec.id.clone();
            if let Err(problem) = inner.replication.start(spec) {
                tracing::error!(task = %id, %problem, "a stored task could not be started");
            }
        }
        *inner.standing.write() = Standing::Owner;
        Ok(())
    }

    /// From now on another server runs the tasks; this one shows them.
    pub fn wait_for(&self, owner: &str) {
        promote::forget(&self.inner);
        *self.inner.standing.write() = Standing::Waiting {
            owner: owner.to_owned(),
        };
    }

    /// Reads the tasks again that another server may have changed.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let _changing = self.inner.changing.lock().await;
        let read = self.inner.read().await?;
        self.inner.show(read);
        Ok(())
    }

    pub fn standing(&self) -> Standing {
        self.inner.standing.read().clone()
    }

    pub fn list(&self) -> Vec<Task> {
        self.inner.tasks.read().values().cloned().collect()
    }

    /// Stored tasks that cannot be read.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.inner.unreadable.read().values().cloned().collect()
    }

    pub fn get(&self, id: &str) -> Result<Task, TaskError> {
        let key = TaskId::new(id);
        let task = self.inner.tasks.read().get(&key).cloned();
        task.ok_or_else(|| match self.inner.unreadable.read().get(&key) {
            Some(Unreadable { id, cause }) => TaskError::Unreadable {
                id: id.to_string(),
                cause: cause.clone(),
            },
            None => TaskError::NotFound(crate::fields::clip(id)),
        })
    }

    /// Deadline of one call that writes to a target.
    pub fn call_timeout(&self) -> Duration {
        self.inner.limits.call_timeout
    }

    /// What a running task says of itself.
    pub fn status(&self, id: &TaskId) -> Option<TaskStatus> {
        self.inner.replication.status(id)
    }

    pub async fn events(&self, id: &TaskId) -> Result<Vec<Event>, StoreError> {
        self.inner.store.events(id, 50).await
    }

    /// The history behind the place `after`, of one task or of all, the oldest first.
    pub async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        self.inner.store.history(of, after, limit).await
    }

    /// Says when something may have been added to the history.
    pub fn history_changes(&self) -> watch::Receiver<()> {
        self.inner.history.subscribe()
    }

    /// What these channels of the source's queue hold, as of the last minute.
    pub async fn reach(&self, channels: &BTreeSet<PChannel>) -> BTreeMap<PChannel, Held> {
        if channels.is_empty() {
            return BTreeMap::new();
        }
        self.inner.replication.reach(channels).await
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
        let asked = request.mode;
        let mut task = making::task(request, TaskId::new(id), unix_ms(), &inner.limits);
        if asked.is_none()
            && let Some(there) = inner.tasks.read().get(&task.spec.id)
        {
            task.spec.target.mode = there.spec.target.mode;
        }
        let mut spec = task.spec.clone();
        if let Some(same) = inner.check_room(&spec, &[])? {
            return Ok(same);
        }
        // The slow part, with nothing locked.
        inner
            .replication
            .check_source()
            .await
            .map_err(TaskError::Refused)?;
        spec.target.mode = inner.find_mode(asked, &spec.target).await?;
        task.spec.target.mode = spec.target.mode;

        // Where it cannot be told what is there, the task tells when it meets it.
        let present = inner.replication.collections().await.unwrap_or_default();
        let _changing = inner.changing.lock().await;
        if let Some(same) = inner.check_room(&spec, &present)? {
            return Ok(same);
        }
        let text = format!("created for {}, {}", spec.target.uri, spec.target.mode);
        if let Err(error) = inner.write(creation(&task, text)?).await {
            let doubt = Doubt::Created(Box::new(task.clone()));
            if inner.found(&spec.id, doubt, &error).await != Found::Done {
                return Err(error.into());
            }
        }
        inner.doubts.lock().remove(&spec.id);
        if let Err(problem) = inner.replication.start(spec.clone()) {
            // Refused as a whole: an error that leaves a task behind would be taken for no task.
            if let Err(error) = inner.write(deletion(&spec.id)).await {
                tracing::error!(task = %spec.id, %error, "a task that could not be started is still stored");
                inner.tasks.write().insert(spec.id.clone(), task);
            }
            return Err(TaskError::Refused(problem));
        }
        tracing::info!(task = %spec.id, target = %spec.target.uri, "task created");
        inner.tasks.write().insert(spec.id.clone(), task);
        Ok(spec.id)
    }

    /// Stops a task for as long as a person wants. A paused task stays as it is. `by`: who wants it; `reason`: why.
    pub async fn pause(&self, id: &str, by: &str, reason: Option<String>) -> Result<(), TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = self.get(id)?;
        if let Some(refusal) = promote::refusal(&task) {
            return Err(refusal);
        }
        if task.desired == Desired::Running {
            let reason = reason.unwrap_or_else(|| "paused by a request".to_owned());
            let text = format!("{by}: {reason}");
            let desired = Desired::Paused {
                by: by.to_owned(),
                since: unix_ms(),
                reason,
            };
            inner
                .set_desired(&task.spec.id, desired, "paused", text)
                .await?;
        }
        inner.replication.stop(&task.spec.id, STOP_DEADLINE).await;
        Ok(())
    }

    /// Lets a task run, and hands it a person's answers. A running task goes on.
    pub async fn resume(&self, id: &str, answers: Vec<Answer>) -> Result<(), TaskError> {
        let (id, fresh) = self.let_run(id).await?;
        if answers.is_empty() {
            return Ok(());
        }
        // With nothing locked: collections may take a while until they know what they wait for.
        self.inner.answer(&id, &answers, fresh).await
    }

    /// Says whether the task had to be started.
    async fn let_run(&self, id: &str) -> Result<(TaskId, bool), TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = self.get(id)?;
        if let Some(refusal) = promote::refusal(&task) {
            return Err(refusal);
        }
        let id = task.spec.id.clone();
        inner.certain(&id)?;
        if task.desired != Desired::Running {
            let text = "resumed by a request".to_owned();
            inner
                .set_desired(&id, Desired::Running, "resumed", text)
                .await?;
        }
        if inner.replication.status(&id).is_some() {
            return Ok((id, false));
        }
        inner
            .replication
            .start(task.spec)
            .map_err(TaskError::Refused)?;
        Ok((id, true))
    }

    /// Stops a task and forgets it, with its progress. What is known of the target's time stays.
    pub async fn delete(&self, id: &str) -> Result<(), TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = match self.get(id) {
            Err(TaskError::Unreadable { .. }) => {
                let id = TaskId::new(id);
                inner.write(deletion(&id)).await?;
                inner.unreadable.write().remove(&id);
                return Ok(());
            }
            other => other?,
        };
        if inner.is_promoting(&task) {
            return Err(promote::refusal(&task).unwrap_or(TaskError::NotFound(id.to_owned())));
        }
        inner.replication.stop(&task.spec.id, STOP_DEADLINE).await;
        if let Err(error) = inner.write(deletion(&task.spec.id)).await {
            let found = inner.found(&task.spec.id, Doubt::Deleted, &error).await;
            // It is still there and still shall run.
            if found == Found::NotDone && task.desired == Desired::Running {
                let _ = inner.replication.start(task.spec.clone());
            }
            if found != Found::Done {
                return Err(error.into());
            }
        }
        inner.tasks.write().remove(&task.spec.id);
        tracing::info!(task = %task.spec.id, "task deleted");
        Ok(())
    }

    /// Stops everything; what a person wants stays as it is.
    pub async fn shut_down(&self, deadline: Duration) {
        promote::break_off(&self.inner);
        // Whoever does not keep the deadline is left in doubt, which the next start sorts out.
        let grace = deadline + Duration::from_millis(600);
        let stop = self.inner.replication.stop_all(deadline);
        if tokio::time::timeout(grace, stop).await.is_err() {
            tracing::warn!("some tasks did not stop in time");
        }
        self.inner.store.close(Duration::from_millis(300)).await;
    }
}

impl Inner {
    /// How this target can be written to: as was asked for, or as what it is.
    async fn find_mode(&self, asked: Option<Mode>, target: &TargetSpec) -> Result<Mode, TaskError> {
        let check = async |mode| {
            let target = TargetSpec {
                mode,
                ..target.clone()
            };
            let checked = self.replication.check_target(&target).await;
            checked.map(|()| mode)
        };
        let found = match asked {
            Some(mode) => check(mode).await,
            None => match check(Mode::Plain).await {
                // A standby says so, and takes the other mode; else what is wrong is said as it was found first.
                Err(problem) if problem.class == ErrorClass::Configuration => {
                    check(Mode::Replicate).await.map_err(|_| problem)
                }
                other => other,
            },
        };
        found.map_err(TaskError::Refused)
    }

    async fn read(&self) -> Result<Read, StoreError> {
        making::read(self.store.as_ref(), &self.limits).await
    }

    fn show(&self, read: Read) {
        let mut unreadable = self.unreadable.write();
        for Unreadable { id, cause } in read.unreadable.values() {
            if !unreadable.contains_key(id) {
                tracing::error!(task = %id, %cause, "a stored task cannot be read; the others go on");
            }
        }
        *unreadable = read.unreadable;
        *self.tasks.write() = read.tasks;
        self.doubts.lock().clear();
    }

    /// Whether there is room for this task; the id of one that is the same already.
    fn check_room(&self, spec: &TaskSpec, present: &[Name]) -> Result<Option<TaskId>, TaskError> {
        let unreadable = self.unreadable.read();
        let tasks = self.tasks.read();
        making::check_room(&tasks, &unreadable, &self.limits, spec, present)
    }

    /// Writes, and says so to those who follow the history.
    async fn write(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
        self.store.write_tasks(writes).await?;
        self.history.send_replace(());
        Ok(())
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
        self.write(vec![set, event(id, kind, text)]).await?;
        if let Some(task) = self.tasks.write().get_mut(id) {
            task.desired = desired;
            task.updated = at;
        }
        tracing::info!(task = %id, "task {kind}");
        Ok(())
    }
}

/// A task and its history go; that it was deleted stays for a while.
fn deletion(task: &TaskId) -> Vec<TaskWrite> {
    let gone = event(task, DELETED, "deleted by a request".to_owned());
    vec![TaskWrite::Delete(task.clone()), gone]
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
