//! Conducts one task: which collections it carries and what state each is in.
//!
//! All decisions are made in one loop, [`Conductor::run`]; long work (calls to the target) runs in jobs whose outcomes
//! come back to the loop. Everything the loop does can be done again: it compares what should be with what is.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::objects::{Objects, Obstacle, Route};
use super::opening::{self, Answer, Opening, Ready, Stop};
use super::reader::{End, Reader};
use super::status::Board;
use super::{TaskContext, converge, flushes};
use crate::backoff::Backoff;
use crate::catalog::{CatalogError, Collection, ObjectState, View};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, DbId, PChannel};
use crate::position::Position;
use crate::store::{Change, CollectionObject, ObjectPhase, TaskProgress};
use crate::task::{Choice, CollectionState};

/// Collections made or dropped on the target at the same time.
const JOBS: usize = 8;
const CHECKPOINT_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A collection that the source has dropped and whose drop is not read from the queue by then is dropped all the same.
const DROP_PATIENCE: Duration = Duration::from_secs(60);
/// A collection that streamed for this long has left its earlier failures behind.
const STEADY: Duration = Duration::from_secs(60);

pub(super) type Command = (String, String, Choice, oneshot::Sender<Result<(), Problem>>);

/// A promise inside this program was broken: said, and the work is begun again.
pub(super) fn broke_off(what: &str) -> Problem {
    Problem::new(
        ErrorClass::Bug,
        format!("{what} broke off inside; it is begun again"),
        "please report it, with the log",
    )
}

/// Why a collection waits for a person.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Held {
    Conflict,
    /// The queue no longer holds where it would go on, on these channels.
    Lost(BTreeSet<PChannel>),
    Quarantined,
}

/// Where a collection stands.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Phase {
    /// To be opened as soon as a job is free.
    Due,
    /// A job is making or finding it on the target.
    Opening,
    /// Its route is there; in the first round the readers wait for each other.
    Ready,
    Streaming,
    /// Tried again at this time.
    Retry(Instant),
    /// It is stored, but the source's metadata of it cannot be read; asked again at this time.
    Unread(Instant),
    Held(Held),
    /// It goes from the target.
    Dropping,
    Dropped,
}

pub(super) struct Entry {
    pub(super) source: Arc<Collection>,
    pub(super) database: String,
    pub(super) phase: Phase,
    pub(super) route: Option<Arc<Route>>,
    /// A person's, as it is stored.
    pub(super) answer: Answer,
    /// The message that keeps it from going on.
    pub(super) poison: Option<(PChannel, Position)>,
    backoff: Backoff,
    failing_since: Option<SystemTime>,
    pub(super) streaming_since: Option<Instant>,
    /// First seen as dropped on the source.
    dropping_since: Option<Instant>,
}

pub(super) enum Outcome {
    Opened(CollectionId, Result<Ready, Stop>),
    Dropped(CollectionId, Result<(), Problem>),
    /// What the source says of a collection that is stored and not in the view.
    Read(CollectionId, Result<Option<Arc<Collection>>, CatalogError>),
    BrokeOff(CollectionId),
}

pub(super) struct Conductor<'a> {
    pub(super) ctx: Arc<TaskContext>,
    pub(super) objects: Arc<Objects>,
    pub(super) board: Arc<Mutex<Board>>,
    inbox: &'a mut mpsc::Receiver<Command>,
    /// Stored collections that have not been opened or read for the first time.
    first: Option<BTreeSet<CollectionId>>,
    /// As loaded at the start; its records of detached collections are kept as they are stored.
    pub(super) stored: TaskProgress,
    pub(super) mains: BTreeMap<PChannel, Arc<Reader>>,
    pub(super) catching: BTreeMap<(PChannel, CollectionId), Arc<Reader>>,
    pub(super) entries: BTreeMap<CollectionId, Entry>,
    jobs: JoinSet<Outcome>,
    pub(super) readers: JoinSet<(Arc<Reader>, End)>,
    side: JoinSet<&'static str>,
    pub(super) first_round: bool,
}

impl<'a> Conductor<'a> {
    pub(super) fn new(
        ctx: Arc<TaskContext>,
        objects: Arc<Objects>,
        board: Arc<Mutex<Board>>,
        inbox: &'a mut mpsc::Receiver<Command>,
        stored: TaskProgress,
    ) -> Self {
        Self {
            ctx,
            objects,
            board,
            inbox,
            first: None,
            stored,
            mains: BTreeMap::new(),
            catching: BTreeMap::new(),
            entries: BTreeMap::new(),
            jobs: JoinSet::new(),
            readers: JoinSet::new(),
            side: JoinSet::new(),
            first_round: true,
        }
    }

    pub(super) async fn run(&mut self) {
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
        self.start_side("the convergence");
        self.start_side("the flushes");
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
                Some(Ok((reader, end))) = self.readers.join_next(), if !self.readers.is_empty() => {
                    self.ended(reader, end).await;
                }
                Some(Ok(what)) = self.side.join_next(), if !self.side.is_empty() => {
                    if !self.ctx.drain.is_cancelled() {
                        self.start_side(what);
                    }
                }
                Some((database, name, choice, answer)) = self.inbox.recv() => {
                    let _ = answer.send(self.choose(&database, &name, choice).await);
                }
                () = self.ctx.drain.cancelled() => return self.drain().await,
            }
        }
    }

    /// Work beside the conductor. It ends only with the task; if it breaks off, it is begun again after a moment.
    fn start_side(&mut self, what: &'static str) {
        let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
        let at = self.stored.replicate;
        let board = self.board.clone();
        self.side.spawn(async move {
            let work = async {
                match what {
                    "the flushes" => flushes::run(ctx, objects, at).await,
                    _ => converge::run(ctx, objects).await,
                }
            };
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                board.lock().task_problem(Some(broke_off(what)));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            what
        });
    }

    fn start_job(&mut self, id: CollectionId, job: impl Future<Output = Outcome> + Send + 'static) {
        self.jobs.spawn(async move {
            let outcome = AssertUnwindSafe(job).catch_unwind().await;
            outcome.unwrap_or(Outcome::BrokeOff(id))
        });
    }

    /// Compares what should be with what is.
    async fn reconcile(&mut self, view: &View) {
        self.meet(view);
        self.failures().await;
        self.drops(view).await;
        self.open_due();
        if self.first_round && self.first.as_ref().is_some_and(BTreeSet::is_empty) {
            self.first_round = false;
            self.begin().await;
        }
        if !self.first_round {
            self.attach_ready().await;
            self.close_idle().await;
        }
        self.forget_gone(view).await;
        self.show();
    }

    /// New collections of the view that belong to this task; in the first view also those that are stored.
    fn meet(&mut self, view: &View) {
        for collection in view.collections.values() {
            if let Some(entry) = self.entries.get_mut(&collection.id) {
                entry.source = collection.clone();
                if matches!(entry.phase, Phase::Unread(_)) {
                    entry.phase = Phase::Due;
                }
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
            if wanted {
                self.enter(collection.clone(), database, Phase::Due);
            }
        }
        if self.first.is_some() {
            return;
        }
        let mut first = BTreeSet::new();
        for object in self.objects.all() {
            if object.phase == ObjectPhase::Dropped {
                continue;
            }
            let id = object.source;
            if object.phase != ObjectPhase::Creating {
                first.insert(id);
            }
            if !self.entries.contains_key(&id) {
                let phase = Phase::Unread(Instant::now());
                self.enter(Arc::new(unread(&object)), object.database, phase);
            }
        }
        self.first = Some(first);
    }

    fn enter(&mut self, source: Arc<Collection>, database: String, phase: Phase) {
        let note = self.stored.notes.get(&source.id);
        let answer = note.and_then(|note| serde_json::from_str(note).ok());
        let entry = Entry {
            database,
            phase,
            route: None,
            answer: answer.unwrap_or_default(),
            poison: None,
            backoff: Backoff::new(),
            failing_since: None,
            streaming_since: None,
            dropping_since: None,
            source,
        };
        for (channel, position) in &entry.answer.skipped {
            self.objects.skip(entry.source.id, channel, *position);
        }
        self.entries.insert(entry.source.id, entry);
    }

    fn open_due(&mut self) {
        let now = Instant::now();
        let mut under_way: BTreeSet<(String, String)> = self
            .entries
            .values()
            .filter(|e| e.phase == Phase::Opening)
            .map(|e| (e.database.clone(), e.source.name.clone()))
            .collect();
        let mut start = Vec::new();
        for (id, entry) in &mut self.entries {
            if self.jobs.len() + start.len() >= JOBS {
                break;
            }
            let key = (entry.database.clone(), entry.source.name.clone());
            match entry.phase {
                Phase::Unread(at) if at <= now => {}
                // Two of one name would find each other's half on the target.
                Phase::Due if !under_way.contains(&key) => {}
                Phase::Retry(at) if at <= now && !under_way.contains(&key) => {}
                _ => continue,
            }
            if matches!(entry.phase, Phase::Unread(_)) {
                entry.phase = Phase::Unread(now + Duration::from_secs(5));
                start.push((*id, None));
                continue;
            }
            under_way.insert(key);
            entry.phase = Phase::Opening;
            let opening = Opening {
                source: entry.source.clone(),
                database: entry.database.clone(),
                answer: entry.answer.clone(),
            };
            start.push((*id, Some(opening)));
        }
        for (id, opening) in start {
            let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
            match opening {
                Some(opening) => self.start_job(id, async move {
                    Outcome::Opened(id, opening::open(ctx, objects, opening).await)
                }),
                None => self.start_job(id, async move {
                    let read = ctx.catalog().read_collection(id).await;
                    Outcome::Read(id, read.map(|found| found.map(Arc::new)))
                }),
            }
        }
    }

    async fn outcome(&mut self, outcome: Outcome) {
        let id = match &outcome {
            Outcome::Opened(id, _)
            | Outcome::Dropped(id, _)
            | Outcome::Read(id, _)
            | Outcome::BrokeOff(id) => *id,
        };
        match outcome {
            Outcome::Opened(_, Ok(ready)) => self.opened(id, ready).await,
            Outcome::Opened(_, Err(Stop::Lost(lost))) => self.lost(id, &lost),
            Outcome::Opened(_, Err(Stop::Unread(error))) => self.failed(id, error.problem()),
            Outcome::Opened(_, Err(Stop::Target(obstacle))) => self.obstacle(id, obstacle).await,
            Outcome::Dropped(_, Ok(())) => self.forget_entry(id).await,
            Outcome::Dropped(_, Err(problem)) => self.failed(id, problem),
            Outcome::Read(_, Ok(Some(collection))) => {
                if let Some(entry) = self.entries.get_mut(&id)
                    && matches!(entry.phase, Phase::Unread(_))
                {
                    entry.source = collection;
                    entry.phase = Phase::Due;
                    return;
                }
            }
            Outcome::Read(_, Ok(None)) => self.drop_from_table(id).await,
            Outcome::Read(_, Err(error)) => {
                let mut board = self.board.lock();
                board.error(id, error.problem());
            }
            Outcome::BrokeOff(_) => self.failed(id, broke_off("the work on this collection")),
        }
        if let Some(first) = &mut self.first {
            first.remove(&id);
        }
    }

    async fn obstacle(&mut self, id: CollectionId, obstacle: Obstacle) {
        match obstacle {
            // It may have been made already, or half.
            Obstacle::Gone
                if self
                    .objects
                    .get(id)
                    .is_some_and(|o| o.phase != ObjectPhase::Dropped) =>
            {
                self.drop_from_table(id).await;
            }
            Obstacle::Gone => self.forget_entry(id).await,
            Obstacle::NameTaken(holder) => {
                let alive = self.entries.get(&holder).filter(|h| {
                    h.dropping_since.is_none() && h.source.state == ObjectState::Created
                });
                if let Some(holder) = alive {
                    let why = format!(
                        "its name on the target belongs to {}, which was renamed on the source; renames are not carried yet",
                        holder.source.name
                    );
                    let hint = "drop one of the two on the source, or give this one another name";
                    return self.failed(id, Problem::new(ErrorClass::Conflict, why, hint));
                }
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.phase = Phase::Retry(Instant::now() + Duration::from_millis(100));
                    let why = "the older one of its name is dropped on the target first".to_owned();
                    self.board.lock().set(id, CollectionState::Waiting { why });
                }
            }
            Obstacle::Conflict(problem) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.phase = Phase::Held(Held::Conflict);
                }
                let choices = vec!["adopt".to_owned(), "recreate".to_owned()];
                let state = CollectionState::Conflict {
                    problem: problem.clone(),
                    choices,
                };
                let mut board = self.board.lock();
                board.set(id, state);
                board.error(id, problem);
            }
            Obstacle::Failed(problem) => self.failed(id, problem),
        }
    }

    /// A collection is there. A fresh one is stored together with the places where its reading begins: one without them
    /// would be taken for one that its channels' main readers carry.
    async fn opened(&mut self, id: CollectionId, ready: Ready) {
        let Ready {
            route,
            fresh,
            records,
        } = ready;
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let task = &self.ctx.spec.id;
        let mut changes: Vec<Change> = records
            .iter()
            .map(|(channel, progress)| Change::PutDetached {
                task: task.clone(),
                channel: channel.clone(),
                collection: id,
                progress: *progress,
            })
            .collect();
        let answer = entry.answer.done();
        if answer != entry.answer {
            changes.push(note(&self.ctx, id, &answer));
        }
        match fresh {
            Some(object) => self.objects.put_with(object, changes).await,
            None if !changes.is_empty() => self.ctx.commit(changes).await,
            None => {}
        }
        for (channel, progress) in records {
            self.stored.detached.insert((channel, id), progress);
        }
        entry.answer = answer;
        entry.route = Some(route);
        entry.phase = Phase::Ready;
    }

    pub(super) fn failed(&mut self, id: CollectionId, problem: Problem) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry
            .streaming_since
            .take()
            .is_some_and(|since| since.elapsed() > STEADY)
        {
            entry.backoff = Backoff::new();
            entry.failing_since = None;
        }
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
    pub(super) async fn failures(&mut self) {
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
                entry.phase = Phase::Held(Held::Quarantined);
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
                entry.poison = route.stream.refused();
                self.failed(id, problem);
            }
        }
    }

    /// Collections whose drop is complete on all shards, and those whose drop is not read from the queue.
    async fn drops(&mut self, view: &View) {
        let mut finish = Vec::new();
        let mut from_table = Vec::new();
        for (id, entry) in &mut self.entries {
            let busy = matches!(
                entry.phase,
                Phase::Dropping | Phase::Dropped | Phase::Opening | Phase::Unread(_)
            );
            if busy || matches!(entry.phase, Phase::Retry(at) if at > Instant::now()) {
                continue;
            }
            let gone = view
                .collections
                .get(id)
                .is_none_or(|c| c.state == ObjectState::Dropping);
            let Some(object) = self.objects.get(*id) else {
                // Not made yet: gone on the source, gone here.
                if gone {
                    entry.phase = Phase::Dropped;
                    self.board.lock().set(*id, CollectionState::Dropped);
                }
                continue;
            };
            let shards = object.target_vchannels.len();
            if object.phase == ObjectPhase::Dropping
                && shards > 0
                && object.dropped_shards.len() >= shards
            {
                finish.push(*id);
                continue;
            }
            if !gone {
                entry.dropping_since = None;
                continue;
            }
            let since = *entry.dropping_since.get_or_insert_with(Instant::now);
            let now = match entry.phase {
                Phase::Streaming | Phase::Ready => since.elapsed() > DROP_PATIENCE,
                _ => true,
            };
            if now {
                from_table.push(*id);
            }
        }
        for id in finish {
            self.finish_drop(id).await;
        }
        for id in from_table {
            if self.jobs.len() < JOBS {
                self.drop_from_table(id).await;
            }
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
        self.start_job(id, async move {
            Outcome::Dropped(id, objects.finish_drop(id).await)
        });
    }

    async fn drop_from_table(&mut self, id: CollectionId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.phase = Phase::Dropping;
        if let Some(route) = entry.route.take() {
            self.detach(id, &route).await;
        }
        let objects = self.objects.clone();
        self.start_job(id, async move {
            Outcome::Dropped(id, objects.drop_from_table(id).await)
        });
    }

    async fn forget_entry(&mut self, id: CollectionId) {
        let keys: Vec<_> = self
            .catching
            .keys()
            .chain(self.stored.detached.keys())
            .filter(|(_, c)| *c == id)
            .cloned()
            .collect();
        let task = self.ctx.spec.id.clone();
        let mut changes = vec![Change::PutNote {
            task: task.clone(),
            collection: id,
            note: String::new(),
        }];
        for key in keys {
            if let Some(reader) = self.catching.remove(&key) {
                reader.cancel.cancel();
            }
            self.stored.detached.remove(&key);
            let (channel, collection) = key;
            changes.push(Change::DeleteDetached {
                task: task.clone(),
                channel,
                collection,
            });
        }
        self.ctx.commit(changes).await;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Dropped;
            entry.route = None;
        }
        self.board.lock().set(id, CollectionState::Dropped);
    }

    /// What was dropped, and is no longer in the source's metadata either, is forgotten.
    async fn forget_gone(&mut self, view: &View) {
        let gone: Vec<CollectionId> = self
            .entries
            .iter()
            .filter(|(id, e)| e.phase == Phase::Dropped && !view.collections.contains_key(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.objects.forget(id, Vec::new()).await;
            self.entries.remove(&id);
            self.board.lock().remove(id);
        }
    }

    /// Brings the board up to date.
    fn show(&mut self) {
        let health = self.ctx.catalog().health();
        let mut board = self.board.lock();
        board.source(&health);
        let unequal = self.objects.unequal();
        for (id, entry) in &self.entries {
            board.collection(
                *id,
                &entry.database,
                &entry.source,
                entry.route.as_ref(),
                unequal.get(id),
            );
            let waits = matches!(entry.phase, Phase::Held(_) | Phase::Retry(_));
            let stored = self
                .stored
                .detached
                .iter()
                .filter(|((_, c), _)| waits && c == id);
            let places = stored.map(|((channel, _), p)| (channel.clone(), *p));
            board.places(*id, places.collect());
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

/// A person's answer as the store keeps it.
pub(super) fn note(ctx: &TaskContext, collection: CollectionId, answer: &Answer) -> Change {
    let note = if *answer == Answer::default() {
        String::new()
    } else {
        serde_json::to_string(answer).unwrap_or_default()
    };
    Change::PutNote {
        task: ctx.spec.id.clone(),
        collection,
        note,
    }
}

/// What is known of a collection whose metadata is not in the view.
fn unread(object: &CollectionObject) -> Collection {
    Collection {
        id: object.source,
        db: DbId(0),
        name: object.name.clone(),
        state: ObjectState::Created,
        schema: Default::default(),
        create_ts: object.created,
        shards: Vec::new(),
        start_positions: Default::default(),
        consistency_level: 0,
        properties: Vec::new(),
        partitions: BTreeMap::new(),
        indexes: BTreeMap::new(),
        load: Default::default(),
    }
}
