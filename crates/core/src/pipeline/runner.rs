//! A running task: connects, conducts, and begins again if something breaks off inside.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::conductor::{Command, Conductor, Ended, Said, broke_off};
use super::copying;
use super::durable::{Asked, Durable};
use super::objects::Objects;
use super::status::Board;
use super::{Meter, TaskContext, Wanted};
use crate::backoff::Backoff;
use crate::engine::Parts;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, TaskId};
use crate::lane::Budget;
use crate::store::{Change, TaskProgress};
use crate::target::hub::{Hub, Hubs, store_problem};
use crate::task::{Choice, Mode, TaskSpec, TaskStatus, Verdict};

/// How long a start waits for the target to name its nodes: one that takes long over it can take rows all the same.
const NODES_WITHIN: Duration = Duration::from_millis(500);

/// A running task.
pub(crate) struct TaskRunner {
    cancel: CancellationToken,
    drain: CancellationToken,
    board: Arc<Mutex<Board>>,
    commands: mpsc::Sender<Command>,
    done: CancellationToken,
    wanted: Wanted,
}

impl TaskRunner {
    pub(crate) fn spawn(spec: TaskSpec, parts: Arc<Parts>, hubs: Arc<Hubs>) -> Self {
        let (commands, mut inbox) = mpsc::channel(16);
        let runner = Self {
            cancel: CancellationToken::new(),
            drain: CancellationToken::new(),
            board: Arc::default(),
            commands,
            done: CancellationToken::new(),
            wanted: Arc::new(parking_lot::RwLock::new(Arc::new(spec))),
        };
        let (cancel, drain, board, done, wanted) = (
            runner.cancel.clone(),
            runner.drain.clone(),
            runner.board.clone(),
            runner.done.clone(),
            runner.wanted.clone(),
        );
        tokio::spawn(async move {
            let mut backoff = Backoff::new();
            let mut watched = false;
            while !cancel.is_cancelled() {
                // Ends what this conductor has started, and no other's.
                let own = cancel.child_token();
                let objects = Arc::new(Mutex::new(None));
                let conducted = AssertUnwindSafe(conduct(
                    (wanted.clone(), watched),
                    parts.clone(),
                    hubs.clone(),
                    (own.clone(), drain.clone()),
                    board.clone(),
                    &mut inbox,
                    objects.clone(),
                ));
                let outcome = tokio::select! {
                    outcome = conducted.catch_unwind() => outcome,
                    () = own.cancelled() => Ok(Ended::Drained),
                };
                own.cancel();
                let objects: Option<Arc<Objects>> = objects.lock().take();
                if let Some(objects) = &objects {
                    objects.ctx.hub.claims.leave_all(&objects.ctx.spec.id);
                }
                // What is left in lanes that other tasks share is read again from where the store says.
                for route in objects.iter().flat_map(|o| o.routes()) {
                    for shard in &route.shards {
                        shard.lane.purge(&route.stream);
                    }
                }
                match outcome {
                    Ok(Ended::Drained) => break,
                    Ok(Ended::TargetRestarted) => {
                        watched = true;
                        continue;
                    }
                    Err(_) => {}
                }
                board.lock().task_problem(Some(broke_off("the task")));
                backoff.wait().await;
            }
            done.cancel();
        });
        runner
    }

    pub(crate) async fn stop(&self, deadline: Duration) {
        // Whoever stops waiting for it has stopped it all the same.
        let _end = self.cancel.clone().drop_guard();
        self.drain.cancel();
        let _ = tokio::time::timeout(deadline, self.done.cancelled()).await;
        self.cancel.cancel();
        let _ = tokio::time::timeout(Duration::from_millis(500), self.done.cancelled()).await;
    }

    /// From now on this is what the task is asked to do. Its target and what it holds in memory stay as they are.
    pub(crate) fn change(&self, spec: TaskSpec) {
        *self.wanted.write() = Arc::new(spec);
    }

    pub(crate) fn status(&self, now: SystemTime) -> TaskStatus {
        self.board.lock().status(now)
    }

    pub(crate) async fn choose(
        &self,
        database: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem> {
        self.say(Said::Choice(database.into(), name.into(), choice))
            .await
    }

    pub(crate) async fn judge(&self, key: &str, verdict: Verdict, by: &str) -> Result<(), Problem> {
        self.say(Said::Verdict(key.into(), verdict, by.into()))
            .await
    }

    async fn say(&self, said: Said) -> Result<(), Problem> {
        let gone = || Problem::new(ErrorClass::Transient, "the task is stopping", "try again");
        let (answer, outcome) = oneshot::channel();
        self.commands
            .send((said, answer))
            .await
            .map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// Under this id the store notes that a task was drained and no call of it can arrive any more.
pub(crate) const ENDED_WELL: CollectionId = CollectionId(-3);

pub(crate) fn ended_well(task: &TaskId, well: bool) -> Change {
    Change::PutNote {
        task: task.clone(),
        collection: ENDED_WELL,
        note: if well { "true" } else { "" }.to_owned(),
    }
}

/// The target's nodes at a beginning. `watched`: this task has seen them twice, and ended for that.
async fn nodes(hub: &Hub, stored: &TaskProgress, watched: bool) -> Asked {
    // What a target that is not replicated to has answered is in its own log: there is nothing to send again.
    if hub.mode == Mode::Plain {
        return Asked::NotNow;
    }
    let target = hub.target.clone();
    // Not dropped when it is waited for no longer: cancelled, it would leave a node out of what the next one hears.
    let asking = tokio::spawn(async move { target.nodes().await });
    // Where nothing is known of them yet, or they have changed, there is nothing to go by meanwhile.
    let first = Durable::known(stored).is_none();
    let answer = if watched || first {
        asking.await
    } else {
        match tokio::time::timeout(NODES_WITHIN, asking).await {
            Ok(answer) => answer,
            Err(_) => return Asked::NotNow,
        }
    };
    let asked = match answer {
        Ok(Ok(nodes)) => Asked::Told(nodes),
        _ => Asked::NotNow,
    };
    if watched { asked } else { asked.once(stored) }
}

/// Connects, loads what is stored, conducts. Returns when the task is drained. `watched`: see [`nodes`].
async fn conduct(
    (wanted, watched): (Wanted, bool),
    parts: Arc<Parts>,
    hubs: Arc<Hubs>,
    (cancel, drain): (CancellationToken, CancellationToken),
    board: Arc<Mutex<Board>>,
    inbox: &mut mpsc::Receiver<Command>,
    slot: Arc<Mutex<Option<Arc<Objects>>>>,
) -> Ended {
    let mut backoff = Backoff::new();
    let since = Instant::now();
    let spec = TaskSpec::clone(&wanted.read());
    let took = |what: &str| {
        let ms = since.elapsed().as_millis();
        tracing::debug!(task = %spec.id, ms, "{what}");
    };
    let (hub, stored, durable) = loop {
        let ready = async {
            let hub = hubs.get(&spec.target).await?;
            took("the target is connected");
            let stored = parts.store.load(&spec.id).await.map_err(store_problem)?;
            let nodes = nodes(&hub, &stored, watched).await;
            took("the target was asked for its nodes");
            let begun = Durable::begin(&spec.id, &stored, nodes);
            let mut changes = begun.changes;
            if begun.replayed.is_some() {
                // Rows that were copied are in no queue: what the target had not flushed of them is copied once more.
                changes.extend(copying::anew(&spec.id, &stored));
            }
            let stored = parts.store.commit(changes).await;
            stored.map_err(store_problem)?;
            if let Some(replayed) = begun.replayed {
                let (channels, from) = (replayed.len(), replayed.values().min());
                let from = from.map(ToString::to_string).unwrap_or_default();
                tracing::warn!(task = %spec.id, channels, from, "the target has restarted, or may have: what it had not flushed is sent again");
            }
            let stored = parts.store.load(&spec.id).await.map_err(store_problem)?;
            Ok::<_, Problem>((hub, stored, begun.durable))
        };
        match ready.await {
            Ok(ready) => break ready,
            Err(problem) => board.lock().task_problem(Some(problem)),
        }
        tokio::select! {
            () = backoff.wait() => {}
            () = drain.cancelled() => return Ended::Drained,
        }
    };
    took("what is stored is loaded");
    board.lock().task_problem(None);
    // What was sent last may still be carried out, unless the task ended by itself.
    // Drops of what no channel carries any more are sent, too.
    let begun = !stored.channels.is_empty()
        || !stored.detached.is_empty()
        || !stored.collections.is_empty();
    if begun && !stored.notes.contains_key(&ENDED_WELL) {
        hub.earlier_process_was_cut_off();
    }
    let ctx = Arc::new(TaskContext {
        budget: Budget::new(spec.memory_budget),
        hub,
        parts,
        cancel,
        drain,
        wake: Arc::new(Notify::new()),
        meter: Meter::default(),
        progress: tokio::sync::Mutex::default(),
        mains: Mutex::default(),
        durable: Mutex::new(durable),
        restarted: CancellationToken::new(),
        spec,
        wanted,
    });
    board.lock().attach(ctx.clone());
    if begun || stored.notes.contains_key(&ENDED_WELL) {
        ctx.commit(vec![ended_well(&ctx.spec.id, false)]).await;
    }
    let objects = Arc::new(Objects::new(ctx.clone(), &stored));
    *slot.lock() = Some(objects.clone());
    Conductor::new(ctx, objects, board, inbox, stored)
        .run()
        .await
}
