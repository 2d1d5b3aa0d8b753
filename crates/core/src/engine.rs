//! The corelib's entrance: one engine reads one source for any number of tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::catalog::Catalog;
use crate::error::{ErrorClass, Problem, ProblemCode};
use crate::ids::TaskId;
use crate::pipeline::making::the_source_itself;
use crate::pipeline::runner::TaskRunner;
use crate::repair::{self, Repair, Repaired};
use crate::select::Name;
use crate::snapshot::SourceRows;
use crate::source::LogSource;
use crate::store::SharedStore;
use crate::target::hub::Hubs;
use crate::target::{Target, TargetConnector, TargetError};
use crate::task::{Choice, Mode, TargetSpec, TaskSpec, TaskStatus, Verdict};

/// What an engine is made of. The caller picks the backends.
pub struct Parts {
    pub catalog: Arc<dyn Catalog>,
    pub source: Arc<dyn LogSource>,
    /// The source's rows, where it is known how they are read.
    pub rows: Option<Arc<dyn SourceRows>>,
    pub store: SharedStore,
    pub connector: Arc<dyn TargetConnector>,
    /// Name of the source's replicate-msg channel, `{cluster prefix}-replicate-msg`.
    pub replicate_channel: String,
}

/// Collections of the source that a target is looked through for: one that is there is enough.
const LOOKED_AT: usize = 16;

/// Runs tasks against one source. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    parts: Arc<Parts>,
    hubs: Arc<Hubs>,
    tasks: Arc<Mutex<BTreeMap<TaskId, Arc<TaskRunner>>>>,
}

impl Engine {
    pub fn new(parts: Parts) -> Self {
        let hubs = Arc::new(Hubs::new(parts.connector.clone(), parts.store.clone()));
        Self {
            parts: Arc::new(parts),
            hubs,
            tasks: Arc::default(),
        }
    }

    /// Asks a target whether a task could write to it: reachable, login accepted, a version and a kind of server that
    /// take what is written in this mode. Writes nothing.
    pub async fn check_target(&self, target: &TargetSpec) -> Result<(), Problem> {
        let client = self
            .parts
            .connector
            .connect(target)
            .await
            .map_err(|e| target_problem(&e))?;
        client.probe().await.map_err(|e| target_problem(&e))?;
        if target.mode == Mode::Plain {
            self.check_is_another(client.as_ref(), target).await?;
        }
        Ok(())
    }

    /// Whether a target is not the source itself, by some of the source's collections.
    async fn check_is_another(
        &self,
        client: &dyn Target,
        target: &TargetSpec,
    ) -> Result<(), Problem> {
        let view = self.parts.catalog.subscribe().borrow().clone();
        for collection in view.collections.values().take(LOOKED_AT) {
            let Some(database) = view.databases.get(&collection.db) else {
                continue;
            };
            let found = client.describe(&database.name, &collection.name).await;
            let found = found.map_err(|e| target_problem(&e));
            if found.is_ok_and(|f| f.is_some_and(|f| f.id == collection.id)) {
                return Err(the_source_itself(&target.key()));
            }
        }
        Ok(())
    }

    /// Starts a task from its stored progress, or from its start point if it has none. Returns at once: what is not
    /// there yet (source, queue, target) is waited for, and said in the status.
    pub fn start(&self, spec: TaskSpec) -> Result<(), Problem> {
        let mut tasks = self.tasks.lock();
        if tasks.contains_key(&spec.id) {
            return Err(Problem::new(
                ErrorClass::Conflict,
                format!("task {} runs already", spec.id),
                "",
            ));
        }
        let runner = TaskRunner::spawn(spec.clone(), self.parts.clone(), self.hubs.clone());
        tasks.insert(spec.id, Arc::new(runner));
        Ok(())
    }

    /// Which of these collections are on a target, and whether they hold rows. Writes nothing.
    pub async fn on_target(
        &self,
        target: &TargetSpec,
        names: &BTreeSet<Name>,
    ) -> Result<BTreeMap<Name, bool>, Problem> {
        let problem = |e: TargetError| target_problem(&e);
        let client = self
            .parts
            .connector
            .connect(target)
            .await
            .map_err(problem)?;
        let databases = client.databases().await.map_err(problem)?;
        let mut found = BTreeMap::new();
        for database in databases {
            if names.iter().all(|n| n.database != database) {
                continue;
            }
            let there = client.collections(&database).await.map_err(problem)?;
            for name in names {
                if name.database == database && there.contains(&name.name) {
                    let rows = client.holds_rows(&database, &name.name).await;
                    found.insert(name.clone(), rows.map_err(problem)?);
                }
            }
        }
        Ok(found)
    }

    /// From now on a running task is asked for this: which collections, their names on the target, what is left out, where
    /// those that are added begin. The others go on as they are. Its target stays the one that it was started with.
    ///
    /// # Errors
    /// The task does not run.
    pub fn change(&self, spec: TaskSpec) -> Result<(), Problem> {
        self.runner(&spec.id)?.change(spec);
        Ok(())
    }

    /// Stops a task: intake ends, what is in flight is drained and the checkpoint stored, within `deadline`; what is
    /// not drained by then is in doubt and replayed safely at the next start. Unknown tasks are stopped already.
    pub async fn stop(&self, task: &TaskId, deadline: Duration) {
        let runner = self.tasks.lock().remove(task);
        if let Some(runner) = runner {
            runner.stop(deadline).await;
        }
    }

    /// Stops every task at the same time.
    pub async fn stop_all(&self, deadline: Duration) {
        let runners: Vec<_> = std::mem::take(&mut *self.tasks.lock())
            .into_values()
            .collect();
        futures::future::join_all(runners.iter().map(|runner| runner.stop(deadline))).await;
    }

    /// What a running task says of itself; `None` if it does not run.
    pub fn status(&self, task: &TaskId) -> Option<TaskStatus> {
        self.status_at(task, SystemTime::now())
    }

    /// The same with another clock than this machine's to measure lags against.
    pub fn status_at(&self, task: &TaskId, now: SystemTime) -> Option<TaskStatus> {
        let runner = self.tasks.lock().get(task).cloned();
        runner.map(|runner| runner.status(now))
    }

    /// A person's answer for the collection `database.name` of a running task.
    pub async fn choose(
        &self,
        task: &TaskId,
        database: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem> {
        self.runner(task)?.choose(database, name, choice).await
    }

    /// What a person, `by`, says of a message of a running task that could not be carried: see
    /// [`crate::quarantine::Record::key`].
    ///
    /// # Errors
    /// There is no such message, or its collection does not wait at it now.
    pub async fn judge(
        &self,
        task: &TaskId,
        key: &str,
        verdict: Verdict,
        by: &str,
    ) -> Result<(), Problem> {
        self.runner(task)?.judge(key, verdict, by).await
    }

    fn runner(&self, task: &TaskId) -> Result<Arc<TaskRunner>, Problem> {
        let runner = self.tasks.lock().get(task).cloned();
        runner.ok_or_else(|| {
            Problem::new(
                ErrorClass::Conflict,
                format!("task {task} does not run"),
                "resume it first",
            )
        })
    }

    /// Copies rows of a stopped task's collection to the target anew, or deletes them there: [`crate::repair`]. The caller
    /// does not start the task meanwhile.
    ///
    /// # Errors
    /// The task runs, what is asked for does not fit, or the target does not take it.
    pub async fn repair(&self, spec: &TaskSpec, wanted: &Repair) -> Result<Repaired, Problem> {
        if self.tasks.lock().contains_key(&spec.id) {
            return Err(Problem::new(
                ErrorClass::Conflict,
                format!("task {} runs", spec.id),
                "pause it first, then read the rows, then repair",
            ));
        }
        repair::repair(&self.parts, &self.hubs, spec, wanted).await
    }

    /// Forgets a stopped task's progress. What is known of the target's time stays.
    pub async fn forget(&self, task: &TaskId) -> Result<(), Problem> {
        self.parts
            .store
            .commit(vec![crate::store::Change::ForgetTask {
                task: task.clone(),
            }])
            .await
            .map_err(|e| Problem::new(ErrorClass::Transient, e.to_string(), "try again"))
    }
}

/// A refused login is told apart from other errors of what was asked for.
pub(crate) fn target_problem(error: &TargetError) -> Problem {
    // 1400: not authenticated, 1401: not permitted (`pkg/util/merr`). A gRPC status that says so comes as
    // `Configuration` with the token's name in its hint.
    let login = match error {
        TargetError::Refused { code, .. } => matches!(code, 1400 | 1401),
        TargetError::Configuration { hint, .. } => hint.contains("milvus_connect_param.token"),
        _ => false,
    };
    let problem = error.problem();
    match login {
        true => Problem {
            hint: "check milvus_connect_param.token (user:password or an API key) and that this user may do everything on the target".to_owned(),
            ..problem
        }
        .with_code(ProblemCode::Login),
        false => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_told_apart() {
        let refused = |code| TargetError::Refused {
            uri: "http://h:1".to_owned(),
            call: "Connect",
            code,
            reason: "r".to_owned(),
        };
        for code in [1400, 1401] {
            let problem = target_problem(&refused(code));
            assert_eq!(problem.code, Some(ProblemCode::Login));
            assert!(problem.hint.contains("token"), "{problem:?}");
        }
        assert_eq!(target_problem(&refused(1100)).code, None);
        let no_standby = TargetError::Configuration {
            uri: "http://h:1".to_owned(),
            cause: "no standby".to_owned(),
            hint: "set common.ttMsgEnabled=false".to_owned(),
        };
        assert_eq!(target_problem(&no_standby).code, None);
    }
}
