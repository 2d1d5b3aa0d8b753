//! The fail-over: a target becomes a Milvus of its own, and its tasks end for good.
//!
//! ```text
//! Running ─► draining ─► Promoting (stored: never runs again) ─► stopped ─► late calls are over ─► the target's time is
//! past all that was sent ─► its own ticks are switched on ─► read and written for a try ─► Promoted (stored)
//! ```
//!
//! Every step can be done again: whoever finds a task `Promoting` begins at the stop. A promotion is of a target: all
//! tasks that write to it go together.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::catalog::etcd::EtcdConfig;
use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{TargetKey, TaskId};
use cdc_core::promote::{SWITCH, TriedOut};
use cdc_core::store::ObjectPhase;
use cdc_core::target::carried_out_within;
use cdc_core::task::{Mode, TargetSpec};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{Inner, STOP_DEADLINE, Task, TaskError, Tasks, event, unix_ms};
use crate::store::{Desired, TaskWrite};

pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the target's etcd may not answer.
const ETCD_ANSWERS: Duration = Duration::from_secs(60);
/// A Milvus that reads its dynamic settings does so every 5 s; one that has not by now does not read them.
const ETCD_TAKES: Duration = Duration::from_secs(15);

/// What a person does where the key in etcd has no effect, or nobody gave an etcd. Tried on 2.3.5.
const BY_FILE: &str = "set common.ttMsgEnabled: true in the milvus.yaml of all components of the target: a running Milvus reads the file every 5 s, without a restart";

/// What a person wants of a promotion.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The target's own etcd, to switch its ticks on; without it a person does.
    pub etcd: Option<EtcdConfig>,
    /// How long each step may take, the wait for a person included.
    pub patience: Duration,
}

/// Whether it is under way, or how it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PromotionState {
    Promoting,
    Promoted,
    /// It ended at `step` and can be run again.
    Failed,
    /// The server was restarted on the way, or another one took over; run it again.
    Interrupted,
}

/// Where a promotion is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Promotion {
    pub state: PromotionState,
    /// `begin`, `draining`, `stopping`, `late calls`, `target time`, `switch`, `trying`, `done`; `stopped` if it was
    /// interrupted.
    #[schema(example = "switch")]
    pub step: String,
    /// What is being waited for, or how it ended.
    pub text: String,
    /// What a person has to do; empty if nothing.
    #[serde(default)]
    #[schema(required)]
    pub hint: String,
    #[schema(example = "http://standby:19530")]
    pub target: String,
    /// Those that end with it.
    #[schema(value_type = Vec<String>)]
    pub tasks: Vec<TaskId>,
    /// When the step began; unix milliseconds.
    pub since: u64,
}

/// A promotion that is under way, or has ended in this process.
pub(super) struct Job {
    cancel: CancellationToken,
    done: CancellationToken,
    /// Of whoever began it.
    etcd: Option<EtcdConfig>,
    shown: Mutex<Promotion>,
}

impl Job {
    pub(super) fn show(&self, step: &str, text: impl Into<String>, hint: &str) {
        let mut shown = self.shown.lock();
        if shown.step != step {
            shown.since = unix_ms();
            step.clone_into(&mut shown.step);
        }
        shown.text = text.into();
        hint.clone_into(&mut shown.hint);
    }

    fn end(&self, state: PromotionState, text: String, hint: String) {
        let mut shown = self.shown.lock();
        shown.state = state;
        shown.text = text;
        shown.hint = hint;
    }
}

impl Tasks {
    /// Promotes the target of a task: begins, or joins the promotion that is under way. That goes on with the target's
    /// etcd if it is given now, or another one than before.
    ///
    /// # Errors
    /// There is no such task, or its target is no standby.
    pub async fn promote(&self, id: &str, wish: Wish) -> Result<Promotion, TaskError> {
        let inner = self.inner.clone();
        let task = self.get(id)?;
        if task.spec.target.mode == Mode::Plain {
            return Err(TaskError::Conflict(Problem::new(
                ErrorClass::Conflict,
                format!(
                    "task {id} is of mode plain: {} is a Milvus of its own and takes clients' writes already",
                    task.spec.target.uri
                ),
                "stop the source's clients, wait until the task's lag is small, pause the task, and let them write to the target",
            )));
        }
        let key = task.spec.target.key();
        let before = inner.promotions.lock().get(&key).cloned();
        if let Some(job) = before
            && !job.done.is_cancelled()
        {
            if wish.etcd.is_none() || wish.etcd == job.etcd {
                return Ok(job.shown.lock().clone());
            }
            job.cancel.cancel();
            let _ = tokio::time::timeout(2 * STOP_DEADLINE, job.done.cancelled()).await;
        }
        if let Desired::Promoted { .. } = task.desired {
            return self.promotion(id);
        }
        let job = Arc::new(Job {
            cancel: CancellationToken::new(),
            done: CancellationToken::new(),
            etcd: wish.etcd.clone(),
            shown: Mutex::new(Promotion {
                state: PromotionState::Promoting,
                step: String::new(),
                text: String::new(),
                hint: String::new(),
                target: task.spec.target.uri.clone(),
                tasks: inner
                    .tasks_to(&key)
                    .iter()
                    .map(|t| t.spec.id.clone())
                    .collect(),
                since: unix_ms(),
            }),
        });
        {
            let mut promotions = inner.promotions.lock();
            if let Some(other) = promotions.get(&key).filter(|job| !job.done.is_cancelled()) {
                return Ok(other.shown.lock().clone());
            }
            promotions.insert(key, job.clone());
        }
        job.show("begin", "the promotion begins", "");
        let shown = job.shown.lock().clone();
        tokio::spawn(async move {
            let cancelled = job.cancel.clone();
            let outcome = tokio::select! {
                outcome = inner.carry_out(&job, &task.spec.target, &wish) => outcome,
                () = cancelled.cancelled() => Err(Problem::new(
                    ErrorClass::Transient,
                    "it was broken off",
                    "run it again",
                )),
            };
            match outcome {
                Ok(text) => job.end(PromotionState::Promoted, text, AFTER.to_owned()),
                Err(problem) => {
                    tracing::warn!(target = %task.spec.target.uri, %problem, "a promotion did not get through");
                    let step = job.shown.lock().step.clone();
                    let again = "; then run promote again, it goes on where it was";
                    let text = format!("{step}: {}", problem.message);
                    job.end(PromotionState::Failed, text, problem.hint + again);
                }
            }
            job.done.cancel();
        });
        Ok(shown)
    }

    /// Where the promotion of a task's target is.
    ///
    /// # Errors
    /// There is no such task, or nobody promotes it.
    pub fn promotion(&self, id: &str) -> Result<Promotion, TaskError> {
        let task = self.get(id)?;
        let key = task.spec.target.key();
        let told = |state, step: &str, text: String, hint: &str, since| Promotion {
            state,
            step: step.to_owned(),
            text,
            hint: hint.to_owned(),
            target: task.spec.target.uri.clone(),
            tasks: vec![task.spec.id.clone()],
            since,
        };
        if let Desired::Promoted { since, reason, .. } = &task.desired {
            return Ok(told(
                PromotionState::Promoted,
                "done",
                reason.clone(),
                AFTER,
                *since,
            ));
        }
        if let Some(job) = self.inner.promotions.lock().get(&key) {
            return Ok(job.shown.lock().clone());
        }
        match &task.desired {
            Desired::Promoting { since, .. } => Ok(told(
                PromotionState::Interrupted,
                "stopped",
                "the server was restarted on the way, or another one took over".to_owned(),
                "run promote again, it goes on where it was",
                *since,
            )),
            _ => Err(TaskError::Conflict(Problem::new(
                ErrorClass::Conflict,
                format!("task {} is not being promoted", task.spec.id),
                "POST to the same path begins it",
            ))),
        }
    }
}

const AFTER: &str = "keep common.ttMsgEnabled true there: set it in its milvus.yaml, too, and leave the key in its etcd; set dataCoord.compaction.enableAutoCompaction true again, for the next restart; then let clients write to it, see docs/failover.md";

type Done<T> = Result<T, Problem>;

impl Inner {
    /// The tasks that write to a target and are not promoted.
    pub(super) fn tasks_to(&self, key: &TargetKey) -> Vec<Task> {
        let tasks = self.tasks.read();
        let to = |t: &&Task| {
            t.spec.target.key() == *key && !matches!(t.desired, Desired::Promoted { .. })
        };
        tasks.values().filter(to).cloned().collect()
    }

    /// Whether a promotion of its target is under way in this process.
    pub(super) fn is_promoting(&self, task: &Task) -> bool {
        let job = self.promotions.lock().get(&task.spec.target.key()).cloned();
        matches!(task.desired, Desired::Promoting { .. })
            && job.is_some_and(|job| !job.done.is_cancelled())
    }

    async fn carry_out(&self, job: &Job, target: &TargetSpec, wish: &Wish) -> Done<String> {
        let key = target.key();
        if let Some(etcd) = &wish.etcd {
            // Before there is no way back.
            job.show("begin", "looking at the target's etcd", "");
            self.replication.check_switch(etcd).await?;
        }
        let left = self.drain(job, &key, wish.patience).await;
        let ids = self.stop_for_good(job, &key).await?;
        job.shown.lock().tasks.clone_from(&ids);
        job.show(
            "late calls",
            "the tasks are stopped; waiting until none of their calls can arrive any more",
            "",
        );
        tokio::time::sleep(carried_out_within(self.limits.call_timeout)).await;
        self.await_time(job, target, wish.patience).await?;
        self.switch(job, target, wish).await?;
        let tried = self.try_out(job, target, &ids, wish.patience).await?;
        let reason = format!(
            "promoted: {} collection(s) with {} row(s) were read with Strong consistency, {} are not loaded, an insert was tried{left}",
            tried.read, tried.rows, tried.not_loaded
        );
        self.settle(&key, &reason).await?;
        Ok(reason)
    }

    /// From here on no task to this target runs again, whatever happens.
    async fn stop_for_good(&self, job: &Job, key: &TargetKey) -> Done<Vec<TaskId>> {
        job.show("stopping", "stopping the tasks for good", "");
        let _changing = self.changing.lock().await;
        let tasks = self.tasks_to(key);
        let desired = Desired::Promoting {
            by: "http".to_owned(),
            since: unix_ms(),
        };
        let new = tasks
            .iter()
            .filter(|t| !matches!(t.desired, Desired::Promoting { .. }))
            .map(|t| t.spec.id.clone())
            .collect();
        let text = "stopped for good: its target is being promoted";
        self.set_all(new, &desired, "promoting", text).await?;
        let ids: Vec<TaskId> = tasks.into_iter().map(|task| task.spec.id).collect();
        futures::future::join_all(
            ids.iter()
                .map(|id| self.replication.stop(id, STOP_DEADLINE)),
        )
        .await;
        Ok(ids)
    }

    /// Until the target's oracle is past F of every channel: its first own tick is above all that was ever sent.
    async fn await_time(&self, job: &Job, target: &TargetSpec, patience: Duration) -> Done<()> {
        const STEP: &str = "target time";
        let key = &target.key();
        let floors = retry(job, STEP, patience, || async move {
            self.store.floors(key).await.map_err(|e| {
                Problem::new(
                    ErrorClass::Transient,
                    e.to_string(),
                    "check the store of metaStoreConfig",
                )
            })
        })
        .await?;
        let Some((channel, floor)) = floors.into_iter().max_by_key(|(_, floor)| *floor) else {
            return Ok(());
        };
        let channel = &channel;
        retry(job, STEP, patience, || async move {
            let now = self.replication.target_time(target).await?;
            if now > floor {
                return Ok(());
            }
            Err(Problem::new(
                ErrorClass::Transient,
                format!(
                    "the target's time is {:.1} s before the last that was sent ({channel})",
                    now.behind(floor).as_secs_f64()
                ),
                "wait; if it is much, the clocks of source and target differ by that",
            ))
        })
        .await
    }

    async fn switch(&self, job: &Job, target: &TargetSpec, wish: &Wish) -> Done<()> {
        const STEP: &str = "switch";
        if let Some(etcd) = &wish.etcd {
            let patience = wish.patience.min(ETCD_ANSWERS);
            retry(job, STEP, patience, || async move {
                // Somebody may have done it.
                match self.replication.is_standby(target).await {
                    Ok(false) => Ok(()),
                    _ => self.replication.switch_on(etcd).await,
                }
            })
            .await?;
        }
        let since = Instant::now();
        retry(job, STEP, wish.patience, || async move {
            if !self.replication.is_standby(target).await? {
                return Ok(());
            }
            let (text, hint) = match &wish.etcd {
                Some(_) if since.elapsed() < ETCD_TAKES => (
                    "the key is set in the target's etcd; a Milvus reads it every 5 s",
                    String::new(),
                ),
                Some(_) => (
                    "the target is still a standby: it does not take the key that is set in this etcd",
                    format!(
                        "{BY_FILE}. Why: this etcd or rootPath is another Milvus'; or it is the target's embedded etcd (etcd.use.embed), from which no settings are read; or the target once could not read its etcd for 3 s and has not read settings since (2.3.5; a restart helps)"
                    ),
                ),
                None => (
                    "the target is still a standby (common.ttMsgEnabled is false)",
                    format!(
                        "{BY_FILE}; or, unless its etcd is embedded, put the key {{etcd.rootPath of the target}}/{SWITCH} with the value true into its etcd (etcdctl put by-dev/{SWITCH} true)"
                    ),
                ),
            };
            Err(Problem::new(ErrorClass::Transient, text, hint))
        })
        .await
    }

    async fn try_out(
        &self,
        job: &Job,
        target: &TargetSpec,
        ids: &[TaskId],
        patience: Duration,
    ) -> Done<TriedOut> {
        const STEP: &str = "trying";
        let mut collections = BTreeSet::new();
        for id in ids {
            let progress = retry(job, STEP, patience, || async move {
                self.store.load(id).await.map_err(|e| {
                    Problem::new(
                        ErrorClass::Transient,
                        e.to_string(),
                        "check the store of metaStoreConfig",
                    )
                })
            })
            .await?;
            let live = progress.collections.into_values();
            collections.extend(
                live.filter(|object| object.phase == ObjectPhase::Live)
                    .map(|object| (object.database, object.name)),
            );
        }
        let collections: Vec<(String, String)> = collections.into_iter().collect();
        job.show(
            STEP,
            "reading with Strong consistency and inserting for a try",
            "",
        );
        let collections = &collections;
        retry(job, STEP, patience, || async move {
            self.replication.try_out(target, collections).await
        })
        .await
    }

    async fn settle(&self, key: &TargetKey, reason: &str) -> Done<()> {
        let _changing = self.changing.lock().await;
        let tasks = self.tasks_to(key).into_iter().map(|t| t.spec.id).collect();
        let desired = Desired::Promoted {
            by: "http".to_owned(),
            since: unix_ms(),
            reason: reason.to_owned(),
        };
        self.set_all(tasks, &desired, "promoted", reason).await
    }

    /// Sets what is wanted of several tasks in one write. `changing` is held.
    /// Whether the store, which did not say so, has stored it.
    async fn all_are(&self, ids: &[TaskId], desired: &Desired) -> bool {
        let Ok(read) = self.read().await else {
            return false;
        };
        let is = |id: &TaskId| read.tasks.get(id).is_some_and(|t| t.desired == *desired);
        ids.iter().all(is)
    }

    async fn set_all(
        &self,
        ids: Vec<TaskId>,
        desired: &Desired,
        kind: &str,
        text: &str,
    ) -> Done<()> {
        let at = unix_ms();
        let writes = ids.iter().flat_map(|id| {
            let set = TaskWrite::SetDesired {
                task: id.clone(),
                desired: desired.clone(),
                at,
            };
            [set, event(id, kind, text.to_owned())]
        });
        if let Err(error) = self.write(writes.collect()).await
            && !self.all_are(&ids, desired).await
        {
            return Err(Problem::new(
                ErrorClass::Transient,
                error.to_string(),
                "check the store of metaStoreConfig; it may have been stored all the same: ask for the promotion again",
            ));
        }
        let mut all = self.tasks.write();
        for id in &ids {
            if let Some(task) = all.get_mut(id) {
                task.desired = desired.clone();
                task.updated = at;
            }
            tracing::info!(task = %id, "task {kind}");
        }
        Ok(())
    }
}

/// Repeats what may come to work by itself, and shows why it does not yet.
async fn retry<T, F: Future<Output = Done<T>> + Send>(
    job: &Job,
    step: &str,
    patience: Duration,
    attempt: impl Fn() -> F,
) -> Done<T> {
    let end = Instant::now() + patience;
    loop {
        let problem = match attempt().await {
            Ok(done) => return Ok(done),
            Err(problem) => problem,
        };
        job.show(step, problem.message.clone(), &problem.hint);
        let hopeless = problem.class == ErrorClass::Configuration;
        if hopeless || Instant::now() >= end {
            return Err(problem);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why a task that is or was promoted cannot do what was asked; `None` for any other.
pub(super) fn refusal(task: &Task) -> Option<TaskError> {
    let (message, hint) = match &task.desired {
        Desired::Promoted { reason, .. } => (
            format!(
                "task {} is promoted for good: its target is a Milvus of its own now ({reason})",
                task.spec.id
            ),
            "to replicate to it again make it a fresh standby, delete this task and create a new one (docs/failover.md)",
        ),
        Desired::Promoting { .. } => (
            format!(
                "task {} is stopped for good: its target is being promoted",
                task.spec.id
            ),
            "run promote again if nobody does; there is no way back",
        ),
        Desired::Running | Desired::Paused { .. } => return None,
    };
    Some(TaskError::Conflict(Problem::new(
        ErrorClass::Conflict,
        message,
        hint,
    )))
}

/// As [`break_off`]; where they were is for whoever owns the tasks to say from now on.
pub(super) fn forget(inner: &Inner) {
    break_off(inner);
    inner.promotions.lock().clear();
}

/// Ends every promotion that is under way; it can be run again.
pub(super) fn break_off(inner: &Inner) {
    for job in inner.promotions.lock().values() {
        job.cancel.cancel();
    }
}
