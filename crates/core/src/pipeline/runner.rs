//! Conducts one task: which collections it carries, what state each is in, who reads what.
//!
//! All decisions are made in one loop, [`Conductor::run`]; long work (calls to the target) runs in jobs whose outcomes
//! come back to the loop. Everything the loop does can be done again: it compares what should be with what is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::objects::{Objects, Obstacle, Opened, Route};
use super::reader::{End, Reader, Scope};
use super::status::Board;
use super::{Meter, TaskContext, converge, flushes};
use crate::backoff::Backoff;
use crate::catalog::{Collection, ObjectState, View};
use crate::engine::Parts;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::lane::Budget;
use crate::position::Position;
use crate::source::{SourceError, Start};
use crate::store::{Change, ObjectPhase, Progress, TaskProgress};
use crate::target::hub::{Hubs, store_problem};
use crate::task::{Choice, CollectionState, OnConflict, StartPoint, TaskSpec, TaskStatus};
use crate::tso::Tso;

/// Collections made on the target, or caught up, at the same time.
const JOBS: usize = 8;
const CHECKPOINT_EVERY: Duration = Duration::from_millis(1000);
const LOOK_EVERY: Duration = Duration::from_millis(250);

type Command = (String, String, Choice, oneshot::Sender<Result<(), Problem>>);

/// A running task.
pub(crate) struct TaskRunner {
    cancel: CancellationToken,
    drain: CancellationToken,
    board: Arc<Mutex<Board>>,
    commands: mpsc::Sender<Command>,
    done: CancellationToken,
}

impl TaskRunner {
    pub(crate) fn spawn(spec: TaskSpec, parts: Arc<Parts>, hubs: Arc<Hubs>) -> Self {
        let (commands, inbox) = mpsc::channel(16);
        let runner = Self {
            cancel: CancellationToken::new(),
            drain: CancellationToken::new(),
            board: Arc::default(),
            commands,
            done: CancellationToken::new(),
        };
        let (cancel, drain, board, done) = (
            runner.cancel.clone(),
            runner.drain.clone(),
            runner.board.clone(),
            runner.done.clone(),
        );
        tokio::spawn(async move {
            let stopped = cancel.clone();
            tokio::select! {
                () = conduct(spec, parts, hubs, cancel, drain, board, inbox) => {}
                () = stopped.cancelled() => {}
            }
            done.cancel();
        });
        runner
    }

    pub(crate) async fn stop(&self, deadline: Duration) {
        self.drain.cancel();
        let _ = tokio::time::timeout(deadline, self.done.cancelled()).await;
        self.cancel.cancel();
        let _ = tokio::time::timeout(Duration::from_millis(500), self.done.cancelled()).await;
    }

    pub(crate) fn status(&self) -> TaskStatus {
        self.board.lock().status()
    }

    pub(crate) async fn choose(
        &self,
        database: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem> {
        let gone = || Problem::new(ErrorClass::Transient, "the task is stopping", "try again");
        let (answer, outcome) = oneshot::channel();
        self.commands
            .send((database.into(), name.into(), choice, answer))
            .await
            .map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// Connects, loads what is stored, conducts. Returns when the task is drained.
async fn conduct(
    spec: TaskSpec,
    parts: Arc<Parts>,
    hubs: Arc<Hubs>,
    cancel: CancellationToken,
    drain: CancellationToken,
    board: Arc<Mutex<Board>>,
    inbox: mpsc::Receiver<Command>,
) {
    let mut backoff = Backoff::new();
    let (hub, stored) = loop {
        let ready = async {
            let stored = parts.store.load(&spec.id).await.map_err(store_problem)?;
            Ok::<_, Problem>((hubs.get(&spec.target).await?, stored))
        };
        match ready.await {
            Ok(ready) => break ready,
            Err(problem) => board.lock().task_problem(Some(problem)),
        }
        tokio::select! {
            () = backoff.wait() => {}
            () = drain.cancelled() => return,
        }
    };
    board.lock().task_problem(None);
    let ctx = Arc::new(TaskContext {
        budget: Budget::new(spec.memory_budget),
        hub,
        parts,
        cancel,
        drain,
        wake: Arc::new(Notify::new()),
        meter: Meter::default(),
        progress: tokio::sync::Mutex::default(),
        spec,
    });
    board.lock().attach(ctx.clone());
    let objects = Arc::new(Objects::new(ctx.clone(), &stored));
    let mut conductor = Conductor {
        objects,
        board,
        inbox,
        stored,
        mains: BTreeMap::new(),
        catching: BTreeMap::new(),
        entries: BTreeMap::new(),
        jobs: JoinSet::new(),
        readers: JoinSet::new(),
        side: JoinSet::new(),
        first_round: true,
        ctx,
    };
    conductor.run().await;
}

/// Where a collection stands.
enum Phase {
    /// To be opened as soon as a job is free.
    Due,
    /// A job is making or finding it on the target.
    Opening,
    /// Its route is there; in the first round the readers wait for each other.
    Ready,
    Streaming,
    /// Tried again at this time.
    Retry(Instant),
    /// Waits for a person.
    Held,
    /// Its drop is complete on all shards; the RPC is on its way.
    Dropping,
    Dropped,
}

struct Entry {
    source: Arc<Collection>,
    database: String,
    phase: Phase,
    route: Option<Arc<Route>>,
    on_conflict: OnConflict,
    /// The message that keeps it from going on.
    poison: Option<(PChannel, Position)>,
    /// Set when the collection is taken over as it is on the target: everything up to here is in doubt.
    adopted_at: Option<Tso>,
    start: StartPoint,
    positions: BTreeMap<PChannel, Position>,
    backoff: Backoff,
    failing_since: Option<SystemTime>,
    /// First seen as dropped on the source, while its drop message has not come.
    dropping_since: Option<Instant>,
}

enum Outcome {
    Opened(CollectionId, Result<Opened, Obstacle>),
    Dropped(CollectionId, Result<(), Problem>),
}

struct Conductor {
    ctx: Arc<TaskContext>,
    objects: Arc<Objects>,
    board: Arc<Mutex<Board>>,
    inbox: mpsc::Receiver<Command>,
    /// As loaded at the start; consulted until every stored stream has its reader.
    stored: TaskProgress,
    mains: BTreeMap<PChannel, Arc<Reader>>,
    catching: BTreeMap<(PChannel, CollectionId), Arc<Reader>>,
    entries: BTreeMap<CollectionId, Entry>,
    jobs: JoinSet<Outcome>,
    readers: JoinSet<(PChannel, Option<CollectionId>, End)>,
    side: JoinSet<()>,
    first_round: bool,
}

impl Conductor {
    async fn run(&mut self) {
        let mut views = self.ctx.parts.catalog.subscribe();
        // The first view that was really read has a revision.
        loop {
            if views.borrow_and_update().revision > 0 {
                break;
            }
            if let Some(error) = self.ctx.catalog().health().error {
                self.board.lock().task_problem(Some(error.problem()));
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = self.ctx.drain.cancelled() => return,
            }
        }
        self.board.lock().task_problem(None);
        self.side
            .spawn(converge::run(self.ctx.clone(), self.objects.clone()));
        self.side.spawn(flushes::run(
            self.ctx.clone(),
            self.objects.clone(),
            self.stored.replicate,
        ));
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut checkpoint = tokio::time::interval(CHECKPOINT_EVERY);
        loop {
            let view = views.borrow_and_update().clone();
            self.reconcile(&view).await;
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
                () = self.ctx.wake.notified() => {}
                _ = checkpoint.tick() => self.checkpoint(false).await,
                Some(Ok(outcome)) = self.jobs.join_next(), if !self.jobs.is_empty() => self.outcome(outcome).await,
                Some(Ok((channel, one, end))) = self.readers.join_next(), if !self.readers.is_empty() => {
                    self.ended(channel, one, end).await;
                }
                Some((database, name, choice, answer)) = self.inbox.recv() => {
                    let _ = answer.send(self.choose(&database, &name, choice).await);
                }
                () = self.ctx.drain.cancelled() => return self.drain().await,
            }
        }
    }

    /// Intake ends at the next tick of each channel; then what is in flight is awaited and stored.
    async fn drain(&mut self) {
        while let Some(ended) = self.readers.join_next().await {
            if let Ok((channel, one, end)) = ended {
                self.ended(channel, one, end).await;
            }
        }
        let all_done = || {
            self.mains
                .values()
                .chain(self.catching.values())
                .all(|r| r.books.lock().is_clean())
        };
        while !all_done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.checkpoint(true).await;
    }

    async fn checkpoint(&mut self, clean: bool) {
        let _guard = self.ctx.progress.lock().await;
        let mut changes = Vec::new();
        for reader in self.mains.values().chain(self.catching.values()) {
            let mut books = reader.books.lock();
            if clean && books.is_clean() {
                let mut progress = books.progress();
                progress.sent = progress.applied;
                changes.push(reader.put(progress, true));
            } else if let Some(progress) = books.news() {
                changes.push(reader.put(progress, false));
            }
        }
        if changes.is_empty() {
            return;
        }
        self.ctx.commit(changes).await;
        self.board.lock().checkpoint_moved();
    }

    /// Compares what should be with what is.
    async fn reconcile(&mut self, view: &View) {
        self.meet(view);
        self.failures().await;
        self.drops(view).await;
        self.open_due();
        if self.first_round
            && self
                .entries
                .values()
                .all(|e| !matches!(e.phase, Phase::Due | Phase::Opening))
        {
            self.first_round = false;
            self.begin().await;
        }
        if !self.first_round {
            self.attach_ready().await;
        }
        self.show();
    }

    /// New collections of the view that belong to this task.
    fn meet(&mut self, view: &View) {
        for collection in view.collections.values() {
            if let Some(entry) = self.entries.get_mut(&collection.id) {
                entry.source = collection.clone();
                continue;
            }
            let known = self.objects.get(collection.id);
            // A database is gone from the view at once, its dropped collections are there for long.
            let database = known
                .as_ref()
                .map(|o| o.database.as_str())
                .or_else(|| view.database_name(collection.db));
            let Some(database) = database.map(str::to_owned) else {
                continue;
            };
            let alive = collection.state == ObjectState::Created;
            let ours = self
                .ctx
                .spec
                .selection
                .contains(&database, &collection.name);
            let wanted = match &known {
                Some(object) => object.phase != ObjectPhase::Dropped,
                None => ours && alive,
            };
            if !wanted {
                continue;
            }
            let entry = Entry {
                source: collection.clone(),
                database,
                phase: Phase::Due,
                route: None,
                on_conflict: self.ctx.spec.on_conflict,
                poison: None,
                adopted_at: None,
                start: self.ctx.spec.start,
                positions: self.ctx.spec.positions.clone(),
                backoff: Backoff::new(),
                failing_since: None,
                dropping_since: None,
            };
            self.entries.insert(collection.id, entry);
        }
    }

    fn open_due(&mut self) {
        let now = Instant::now();
        for (id, entry) in &mut self.entries {
            if self.jobs.len() >= JOBS {
                return;
            }
            let due = match entry.phase {
                Phase::Due => true,
                Phase::Retry(at) => at <= now,
                _ => false,
            };
            if !due {
                continue;
            }
            entry.phase = Phase::Opening;
            let (objects, source, database) = (
                self.objects.clone(),
                entry.source.clone(),
                entry.database.clone(),
            );
            let (id, choice) = (*id, entry.on_conflict);
            self.jobs.spawn(async move {
                Outcome::Opened(id, objects.open(&source, &database, choice).await)
            });
        }
    }

    async fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Opened(id, Ok(opened)) => self.opened(id, opened).await,
            Outcome::Opened(id, Err(obstacle)) => match obstacle {
                Obstacle::Gone => self.forget_entry(id).await,
                Obstacle::NameTaken => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.phase = Phase::Retry(Instant::now() + Duration::from_millis(100));
                    }
                }
                Obstacle::Conflict(problem) => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.phase = Phase::Held;
                        entry.on_conflict = OnConflict::Ask;
                        let choices = vec!["adopt".to_owned(), "recreate".to_owned()];
                        self.board.lock().set(
                            id,
                            CollectionState::Conflict {
                                problem: problem.clone(),
                                choices,
                            },
                        );
                        self.board.lock().error(id, problem);
                    }
                }
                Obstacle::Failed(problem) => self.failed(id, problem),
            },
            Outcome::Dropped(id, Ok(())) => self.forget_entry(id).await,
            Outcome::Dropped(id, Err(problem)) => self.failed(id, problem),
        }
    }

    /// A collection is there. A fresh one is stored together with the places where its reading begins: one without them
    /// would be taken for one that its channels' main readers carry.
    async fn opened(&mut self, id: CollectionId, opened: Opened) {
        let Opened {
            route,
            adopted,
            fresh,
        } = opened;
        if adopted {
            match self.adopt(&route).await {
                Ok(at) => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.adopted_at = at.max(entry.adopted_at);
                    }
                }
                Err(problem) => return self.failed(id, problem),
            }
        }
        if let Some(object) = fresh {
            let channels: BTreeSet<_> = route.shards.iter().map(|s| s.source.clone()).collect();
            let mut records = Vec::new();
            for channel in channels {
                match self.first_progress(id, &channel).await {
                    Ok(progress) => records.push((channel, progress)),
                    Err(lost @ SourceError::PositionLost { .. }) => return self.lost(id, &lost),
                    Err(error) => return self.failed(id, error.problem()),
                }
            }
            let task = &self.ctx.spec.id;
            let put = |(channel, progress): &(PChannel, Progress)| Change::PutDetached {
                task: task.clone(),
                channel: channel.clone(),
                collection: id,
                progress: *progress,
            };
            self.objects
                .put_with(object, records.iter().map(put).collect())
                .await;
            for (channel, progress) in records {
                self.stored.detached.insert((channel, id), progress);
            }
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.route = Some(route);
            entry.phase = Phase::Ready;
        }
    }

    /// A collection taken over as it is: its rows may carry any time up to now, ours or the source's.
    async fn adopt(&self, route: &Route) -> Result<Option<Tso>, Problem> {
        let source = self
            .ctx
            .catalog()
            .tso_bound()
            .await
            .map_err(|e| e.problem())?;
        let target = self.ctx.hub.target.now().await.map_err(|e| e.problem())?;
        for shard in &route.shards {
            shard.lane.lift(source.max(target));
        }
        Ok(Some(source))
    }

    fn failed(&mut self, id: CollectionId, problem: Problem) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let since = *entry.failing_since.get_or_insert_with(SystemTime::now);
        entry.phase = Phase::Retry(Instant::now() + entry.backoff.step());
        let attempt = entry.backoff.attempt;
        let mut board = self.board.lock();
        board.set(
            id,
            CollectionState::Failing {
                problem: problem.clone(),
                attempt,
                since,
            },
        );
        board.error(id, problem);
    }

    /// Streams that cannot go on leave their readers; the store says where each goes on, then memory lets go.
    async fn failures(&mut self) {
        let failed: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(id, e)| {
                e.route
                    .as_ref()
                    .filter(|r| r.stream.failed())
                    .map(|r| (*id, r.clone()))
            })
            .collect();
        for (id, route) in failed {
            let problem = route
                .stream
                .problem()
                .unwrap_or_else(|| Problem::new(ErrorClass::Bug, "failed", ""));
            self.detach(id, &route).await;
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.route = None;
            if let Some((channel, position)) = route.stream.poison() {
                entry.phase = Phase::Held;
                entry.poison = Some((channel.clone(), position));
                let position = position.to_string();
                let state = CollectionState::Quarantined {
                    problem: problem.clone(),
                    channel,
                    position,
                };
                let mut board = self.board.lock();
                board.set(id, state);
                board.error(id, problem);
            } else {
                self.failed(id, problem);
            }
        }
    }

    /// Takes a collection off all its readers. Its place in each channel is on disk before the channel may pass it.
    async fn detach(&mut self, id: CollectionId, route: &Arc<Route>) {
        let mut tickets = Vec::new();
        for (channel, main) in &self.mains {
            let mut inner = main.gate.lock().await;
            if !main.carries(&inner, id) {
                continue;
            }
            let _guard = self.ctx.progress.lock().await;
            let progress = {
                let mut books = main.books.lock();
                books.progress()
            };
            let (task, channel) = (self.ctx.spec.id.clone(), channel.clone());
            let change = Change::PutDetached {
                task,
                channel: channel.clone(),
                collection: id,
                progress,
            };
            self.ctx.commit(vec![change]).await;
            self.stored.detached.insert((channel, id), progress);
            tickets.extend(main.detach(&mut inner, id));
        }
        let own: Vec<_> = self
            .catching
            .keys()
            .filter(|(_, c)| *c == id)
            .cloned()
            .collect();
        for key in own {
            if let Some(reader) = self.catching.remove(&key) {
                reader.cancel.cancel();
                // The gate first: what it was working on is then either in its books or not sent.
                let mut inner = reader.gate.lock().await;
                let _guard = self.ctx.progress.lock().await;
                if reader.books.lock().retired {
                    continue;
                }
                let progress = reader.books.lock().progress();
                self.ctx.commit(vec![reader.put(progress, false)]).await;
                self.stored.detached.insert(key, progress);
                tickets.extend(reader.detach(&mut inner, id));
                inner.edges.leave();
            }
        }
        for shard in &route.shards {
            shard.lane.purge(&route.stream);
        }
        drop(tickets);
    }

    /// Collections whose drop is complete on all shards, and those whose drop message never came.
    async fn drops(&mut self, view: &View) {
        let mut finish = Vec::new();
        for (id, entry) in &mut self.entries {
            if matches!(
                entry.phase,
                Phase::Dropping | Phase::Dropped | Phase::Opening
            ) {
                continue;
            }
            let Some(object) = self.objects.get(*id) else {
                // Not made yet: gone on the source, gone here.
                let alive = view
                    .collections
                    .get(id)
                    .is_some_and(|c| c.state != ObjectState::Dropping);
                if !alive {
                    entry.phase = Phase::Dropped;
                }
                continue;
            };
            let shards = entry.source.shards.len();
            if object.phase == ObjectPhase::Dropping && object.dropped_shards.len() >= shards {
                finish.push(*id);
                continue;
            }
            let gone = view
                .collections
                .get(id)
                .is_none_or(|c| c.state == ObjectState::Dropping);
            if gone && entry.dropping_since.is_none() {
                entry.dropping_since = Some(Instant::now());
            }
        }
        for id in finish {
            self.finish_drop(id).await;
        }
    }

    async fn finish_drop(&mut self, id: CollectionId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.phase = Phase::Dropping;
        for main in self.mains.values() {
            let mut inner = main.gate.lock().await;
            if main.carries(&inner, id) {
                drop(main.detach(&mut inner, id));
            }
        }
        let objects = self.objects.clone();
        self.jobs
            .spawn(async move { Outcome::Dropped(id, objects.finish_drop(id).await) });
    }

    async fn forget_entry(&mut self, id: CollectionId) {
        let keys: Vec<_> = self
            .catching
            .keys()
            .chain(self.stored.detached.keys())
            .filter(|(_, c)| *c == id)
            .cloned()
            .collect();
        let mut changes = Vec::new();
        for key in keys {
            if let Some(reader) = self.catching.remove(&key) {
                reader.cancel.cancel();
            }
            self.stored.detached.remove(&key);
            let (channel, collection) = key;
            changes.push(Change::DeleteDetached {
                task: self.ctx.spec.id.clone(),
                channel,
                collection,
            });
        }
        if !changes.is_empty() {
            self.ctx.commit(changes).await;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Dropped;
            entry.route = None;
        }
        self.board.lock().set(id, CollectionState::Dropped);
    }

    /// First round: every stored channel gets its main reader, with everything that belongs to it attached before it
    /// reads. What is not ready by then is detached first.
    async fn begin(&mut self) {
        let channels: Vec<_> = self.stored.channels.clone().into_iter().collect();
        for (channel, progress) in channels {
            let main = Reader::new(
                self.ctx.clone(),
                self.objects.clone(),
                channel.clone(),
                Scope::Main,
                progress,
            );
            let mut inner = main.gate.lock().await;
            let mut detach = Vec::new();
            for object in self.objects.all() {
                let id = object.source;
                let Some(entry) = self.entries.get_mut(&id) else {
                    continue;
                };
                let here = entry.source.shards.iter().any(|s| s.pchannel == channel);
                if !here
                    || object.phase == ObjectPhase::Dropped
                    || self.stored.detached.contains_key(&(channel.clone(), id))
                {
                    continue;
                }
                if self
                    .stored
                    .collections
                    .get(&id)
                    .is_none_or(|o| o.phase == ObjectPhase::Creating)
                {
                    // Met in this round: no reader has anything of it yet.
                    continue;
                }
                match (&entry.phase, &entry.route) {
                    (Phase::Ready, Some(route)) => main.attach(&mut inner, route.clone(), None),
                    _ => detach.push(id),
                }
            }
            drop(inner);
            let task = self.ctx.spec.id.clone();
            let changes: Vec<_> = detach
                .iter()
                .map(|id| Change::PutDetached {
                    task: task.clone(),
                    channel: channel.clone(),
                    collection: *id,
                    progress,
                })
                .collect();
            if !changes.is_empty() {
                self.ctx.commit(changes).await;
            }
            for id in detach {
                self.stored.detached.insert((channel.clone(), id), progress);
            }
            self.start_main(main);
        }
    }

    fn start_main(&mut self, main: Arc<Reader>) {
        let channel = main.channel.clone();
        self.mains.insert(channel.clone(), main.clone());
        self.readers
            .spawn(async move { (channel, None, main.run(None).await) });
    }

    /// Gives every ready collection its readers: earliest start first, so that one main reader serves all.
    async fn attach_ready(&mut self) {
        let mut ready = BTreeSet::new();
        for (id, entry) in &self.entries {
            if matches!(entry.phase, Phase::Ready) {
                ready.insert((entry.source.create_ts, *id));
            }
        }
        for (_, id) in ready {
            let Some(entry) = self.entries.get(&id) else {
                continue;
            };
            let (Some(route), source) = (entry.route.clone(), entry.source.clone()) else {
                continue;
            };
            let mut problem = None;
            let channels: BTreeSet<_> = source.shards.iter().map(|s| s.pchannel.clone()).collect();
            let dropped = self
                .objects
                .get(id)
                .map(|o| o.dropped_shards)
                .unwrap_or_default();
            for channel in channels {
                if source
                    .shards
                    .iter()
                    .enumerate()
                    .all(|(i, s)| s.pchannel != channel || dropped.contains(&i))
                {
                    continue;
                }
                if let Err(error) = self.attach_shard(id, &route, &channel).await {
                    problem = Some(error);
                    break;
                }
            }
            match problem {
                None => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.phase = Phase::Streaming;
                        entry.failing_since = None;
                        entry.backoff = Backoff::new();
                    }
                }
                Some(lost @ SourceError::PositionLost { .. }) => self.lost(id, &lost),
                Some(error) => {
                    self.detach(id, &route).await;
                    self.failed(id, error.problem());
                }
            }
        }
    }

    async fn attach_shard(
        &mut self,
        id: CollectionId,
        route: &Arc<Route>,
        channel: &PChannel,
    ) -> Result<(), SourceError> {
        let key = (channel.clone(), id);
        if self.catching.contains_key(&key) {
            return Ok(());
        }
        let main = self.mains.get(channel).cloned();
        if let Some(main) = &main
            && main.carries(&*main.gate.lock().await, id)
        {
            return Ok(());
        }
        let task = self.ctx.spec.id.clone();
        let Some(progress) = self.stored.detached.get(&key).copied() else {
            // Its drop on this channel is done, or it is being dropped: nothing to read.
            return Ok(());
        };
        let fresh = progress.applied == Tso::ZERO && progress.sent == Tso::ZERO && !progress.after;
        let created = self
            .entries
            .get(&id)
            .map_or(Tso::ZERO, |e| e.source.create_ts);
        let forget = Change::DeleteDetached {
            task: task.clone(),
            channel: channel.clone(),
            collection: id,
        };
        match main {
            None if fresh => {
                let change = Change::PutChannel {
                    task,
                    channel: channel.clone(),
                    progress,
                    clean: true,
                };
                self.ctx.commit(vec![change, forget]).await;
                self.stored.detached.remove(&key);
                let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
                let main = Reader::new(ctx, objects, channel.clone(), Scope::Main, progress);
                main.attach(&mut *main.gate.lock().await, route.clone(), None);
                self.start_main(main);
                return Ok(());
            }
            Some(main) if fresh => {
                let mut inner = main.gate.lock().await;
                if main.is_before(&inner, progress.position, created) {
                    self.ctx.commit(vec![forget]).await;
                    self.stored.detached.remove(&key);
                    main.attach(&mut inner, route.clone(), None);
                    return Ok(());
                }
            }
            _ => {}
        }
        // It goes by itself, from its record, until it meets the main reader.
        let main = match self.mains.get(channel) {
            Some(main) => main.clone(),
            None => {
                let start = Progress {
                    sent: Tso::ZERO,
                    ..progress
                };
                let change = Change::PutChannel {
                    task,
                    channel: channel.clone(),
                    progress: start,
                    clean: true,
                };
                self.ctx.commit(vec![change]).await;
                let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
                let main = Reader::new(ctx, objects, channel.clone(), Scope::Main, start);
                self.start_main(main.clone());
                main
            }
        };
        let scope = Scope::One(route.clone());
        let reader = Reader::new(
            self.ctx.clone(),
            self.objects.clone(),
            channel.clone(),
            scope,
            progress,
        );
        self.catching.insert(key, reader.clone());
        let channel = channel.clone();
        self.readers
            .spawn(async move { (channel, Some(id), reader.run(Some(main)).await) });
        Ok(())
    }

    /// Where a collection that was never read begins on a channel.
    async fn first_progress(
        &self,
        id: CollectionId,
        channel: &PChannel,
    ) -> Result<Progress, SourceError> {
        let source = &self.ctx.parts.source;
        let configuration = |cause: String| SourceError::Configuration {
            address: String::new(),
            cause,
            hint: "check that sourceConfig names the queue of this source".to_owned(),
        };
        let Some(entry) = self.entries.get(&id) else {
            return Err(configuration("no such collection".into()));
        };
        let sent = entry.adopted_at.unwrap_or(Tso::ZERO);
        let bounds = source.bounds(channel).await?;
        if let Some(position) = entry.positions.get(channel) {
            return Ok(Progress {
                position: *position,
                after: false,
                applied: Tso::ZERO,
                sent,
            });
        }
        let progress = match (entry.start, bounds) {
            (StartPoint::Earliest, Some(bounds)) => Progress {
                position: bounds.first,
                after: false,
                applied: Tso::ZERO,
                sent,
            },
            (StartPoint::Now, Some(bounds)) => Progress {
                position: bounds.last,
                after: true,
                applied: Tso::ZERO,
                sent,
            },
            _ => {
                let bytes = entry.source.start_positions.get(channel).ok_or_else(|| {
                    configuration(format!(
                        "{}.{} has no start position on {channel}",
                        entry.database, entry.source.name
                    ))
                })?;
                let position = Position::from_bytes(source.kind(), bytes)
                    .map_err(|e| configuration(e.to_string()))?;
                Progress {
                    position,
                    after: false,
                    applied: Tso::ZERO,
                    sent,
                }
            }
        };
        // A quick look tells whether it is still there, before anything is built on it.
        let start = if progress.after {
            Start::After(progress.position)
        } else {
            Start::At(progress.position)
        };
        if !progress.after && bounds.is_none_or(|b| progress.position < b.first) {
            let (first, last) = (bounds.map(|b| b.first), bounds.map(|b| b.last));
            return Err(SourceError::PositionLost {
                channel: channel.clone(),
                wanted: progress.position,
                first,
                last,
            });
        }
        source.open(channel, start).await.map(drop)?;
        Ok(progress)
    }

    fn lost(&mut self, id: CollectionId, lost: &SourceError) {
        let SourceError::PositionLost {
            channel,
            wanted,
            first,
            last,
        } = lost
        else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Held;
        }
        let choices = vec![
            "earliest: go on at the first message the queue holds; what was written between is missed".to_owned(),
            "now: go on behind the last message; everything up to now is missed".to_owned(),
            "positions: go on at given messages; what was written before them is missed".to_owned(),
        ];
        let state = CollectionState::PositionLost {
            channel: channel.clone(),
            wanted: wanted.to_string(),
            first: first.map(|p| p.to_string()),
            last: last.map(|p| p.to_string()),
            choices,
        };
        let mut board = self.board.lock();
        board.set(id, state);
        board.error(id, lost.problem());
    }

    /// A reader ended by itself.
    async fn ended(&mut self, channel: PChannel, one: Option<CollectionId>, end: End) {
        let _ = &end;
        match (one, end) {
            (Some(id), End::Joined) => {
                self.catching.remove(&(channel.clone(), id));
                self.stored.detached.remove(&(channel, id));
            }
            (Some(id), End::Dropped) => {
                let key = (channel.clone(), id);
                self.catching.remove(&key);
                self.stored.detached.remove(&key);
                let change = Change::DeleteDetached {
                    task: self.ctx.spec.id.clone(),
                    channel,
                    collection: id,
                };
                self.ctx.commit(vec![change]).await;
            }
            (Some(id), End::Lost(lost)) => {
                if let Some(route) = self.entries.get(&id).and_then(|e| e.route.clone()) {
                    self.detach(id, &route).await;
                }
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.route = None;
                }
                self.lost(id, &lost);
            }
            (None, End::Lost(lost)) => {
                let Some(main) = self.mains.get(&channel).cloned() else {
                    return;
                };
                let ids = main.collections(&*main.gate.lock().await);
                for id in ids {
                    if let Some(route) = self.entries.get(&id).and_then(|e| e.route.clone()) {
                        self.detach(id, &route).await;
                    }
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.route = None;
                    }
                    self.lost(id, &lost);
                }
                self.mains.remove(&channel);
                let change = Change::DeleteChannel {
                    task: self.ctx.spec.id.clone(),
                    channel,
                };
                self.ctx.commit(vec![change]).await;
            }
            (_, End::Stopped | End::Joined | End::Dropped) => {}
        }
    }

    /// A person's answer.
    async fn choose(&mut self, database: &str, name: &str, choice: Choice) -> Result<(), Problem> {
        let found = self
            .entries
            .iter()
            .find(|(_, e)| {
                e.database == database
                    && e.source.name == name
                    && !matches!(e.phase, Phase::Dropped)
            })
            .map(|(id, _)| *id);
        let Some(id) = found else {
            let why = format!("the task has no collection {database}.{name}");
            return Err(Problem::new(
                ErrorClass::Configuration,
                why,
                "see the task's collections",
            ));
        };
        let waits = self
            .entries
            .get(&id)
            .is_some_and(|e| matches!(e.phase, Phase::Held));
        if !waits {
            let why = format!("{database}.{name} does not wait for a choice");
            return Err(Problem::new(ErrorClass::Conflict, why, "see its state"));
        }
        let task = self.ctx.spec.id.clone();
        let records: Vec<_> = self
            .stored
            .detached
            .keys()
            .filter(|(_, c)| *c == id)
            .cloned()
            .collect();
        if !matches!(choice, Choice::Skip) {
            // It begins anew; what an earlier stretch of it sent stays in doubt.
            let sent = records
                .iter()
                .filter_map(|key| self.stored.detached.get(key))
                .map(|p| p.sent)
                .max();
            let changes = records.iter().map(|(channel, c)| Change::DeleteDetached {
                task: task.clone(),
                channel: channel.clone(),
                collection: *c,
            });
            self.ctx.commit(changes.collect()).await;
            self.stored.detached.retain(|(_, c), _| *c != id);
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.adopted_at = entry.adopted_at.max(sent.filter(|s| *s > Tso::ZERO));
            }
        }
        match &choice {
            Choice::Conflict(answer) => {
                self.objects.forget(id).await;
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.on_conflict = *answer;
                }
            }
            Choice::Start(start) => {
                self.objects.forget(id).await;
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.start = *start;
                    entry.on_conflict = OnConflict::Adopt;
                }
            }
            Choice::At(positions) => {
                self.objects.forget(id).await;
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.positions = positions.clone();
                    entry.on_conflict = OnConflict::Adopt;
                }
            }
            Choice::Skip => {
                let poison = self.entries.get_mut(&id).and_then(|e| e.poison.take());
                let Some((channel, position)) = poison else {
                    let why = format!("{database}.{name} is not stopped by a message");
                    return Err(Problem::new(
                        ErrorClass::Conflict,
                        why,
                        "see its state for the choices there are",
                    ));
                };
                self.objects.skip(id, &channel, position);
            }
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Due;
        }
        Ok(())
    }

    /// Brings the board up to date.
    fn show(&mut self) {
        let mut board = self.board.lock();
        for (id, entry) in &self.entries {
            board.collection(
                *id,
                &entry.database,
                &entry.source.name,
                entry.route.as_ref(),
            );
            match entry.phase {
                Phase::Due | Phase::Opening | Phase::Ready if entry.failing_since.is_none() => {
                    board.set(
                        *id,
                        CollectionState::Waiting {
                            why: "being made on the target".to_owned(),
                        },
                    );
                }
                Phase::Streaming => {
                    let raised = self.catching.keys().any(|(_, c)| c == id);
                    board.streaming(*id, raised);
                }
                _ => {}
            }
        }
        for (channel, main) in &self.mains {
            self.objects
                .set_applied(channel, main.books.lock().progress().applied);
        }
        self.objects.moved.notify_waiters();
        board.readers(self.mains.values().chain(self.catching.values()));
    }
}
