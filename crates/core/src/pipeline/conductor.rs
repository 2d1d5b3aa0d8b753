//! Conducts one task: which collections it carries and what state each is in.
//!
//! All decisions are made in one loop, [`Conductor::run`]; long work (calls to the target) runs in jobs whose outcomes
//! come back to the loop. Everything the loop does can be done again: it compares what should be with what is.

mod copies;
mod leaving;
mod outcomes;
mod rounds;
mod show;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::copying::{self, Pace};
use super::objects::{Objects, Route};
use super::opening::{self, Answer, Opening, Ready, Stop};
use super::pulse::Pulse;
use super::reader::{End, Reader};
use super::settle::{self, Settled};
use super::status::Board;
use super::{TaskContext, converge, flushes};
use crate::backoff::Backoff;
use crate::catalog::{CatalogError, Collection, ObjectState, View};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, DbId, PChannel};
use crate::lane::StreamCtl;
use crate::position::Position;
use crate::select::Name;
use crate::snapshot::Snapshot;
use crate::store::{Change, CollectionObject, ObjectPhase, TaskProgress};
use crate::task::{Choice, Mode, TaskSpec, Verdict};
use crate::tso::Tso;

/// Collections made or dropped on the target at the same time.
const JOBS: usize = 8;
/// Of these, drops that are made from the table: each may wait for a tick for long, and what is new has to be opened.
const DROPS: usize = JOBS / 2;
const CHECKPOINT_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// While nothing happens and everything is where it should be, all collections are looked at no more often than this.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(1);
/// A collection that the source has dropped and whose drop is not read from the queue by then is dropped all the same.
const DROP_PATIENCE: Duration = Duration::from_secs(60);
/// At the start the readers wait this long for collections that cannot be opened at the moment.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// A collection that streamed for this long has left its earlier failures behind.
const STEADY: Duration = Duration::from_secs(60);

/// What a person says.
pub(super) enum Said {
    /// Of the collection of this database and name.
    Choice(String, String, Choice),
    /// Of the message of this key, and who.
    Verdict(String, Verdict, String),
}

pub(super) type Command = (Said, oneshot::Sender<Result<(), Problem>>);

/// A promise inside this program was broken: said, and the work is begun again.
pub(super) fn broke_off(what: &str) -> Problem {
    Problem::new(
        ErrorClass::Bug,
        format!("{what} broke off inside; it is begun again"),
        "please report it, with the log",
    )
}

/// Why a task is conducted no longer.
pub(super) enum Ended {
    Drained,
    /// It begins again, from the durable checkpoint.
    TargetRestarted,
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
    /// The rows it had are copied, or will be when it is its turn; its messages are not read before.
    Copying,
    Streaming,
    /// Tried again at this time.
    Retry(Instant),
    /// It is stored, but the source's metadata of it cannot be read; asked again at this time.
    Unread(Instant),
    Held(Held),
    /// The task is asked to carry it no longer: it stays on the target as it is, and what is stored of it says where it
    /// would go on. If the source has dropped it, which is asked for at this time, it is forgotten.
    Apart(Instant),
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
    /// How far the copy of the rows it had is, until it is done.
    pub(super) snapshot: Option<Snapshot>,
    /// A copy that is under way.
    copy: Option<copies::Copy>,
    /// Until there are readers.
    pulse: Option<Pulse>,
    /// The message that keeps it from going on.
    pub(super) poison: Option<(PChannel, Position)>,
    backoff: Backoff,
    pub(super) failing_since: Option<SystemTime>,
    /// Its last failure heals by itself.
    is_transient: bool,
    pub(super) streaming_since: Option<Instant>,
    /// First seen as dropped on the source.
    dropping_since: Option<Instant>,
    /// Dropped on the source, to stay on the target.
    staying: Option<Staying>,
    /// What this says of it: asked for each of many collections, with many patterns, it would be a load of its own.
    pub(super) asked: Option<(Arc<TaskSpec>, bool)>,
}

/// A collection that is to stay on the target, until everything of it is applied there.
#[derive(Default)]
struct Staying {
    /// All of it is up to here; asked for.
    end: Option<Tso>,
    asked: bool,
    /// How far it is, and since when.
    at: Option<(Tso, Instant)>,
    /// F of its lanes when all of it was applied: a tick that is behind them has shown it.
    floors: Option<Vec<Tso>>,
}

pub(super) enum Outcome {
    Opened(CollectionId, Result<Box<Ready>, Stop>),
    /// What stood for it on the target is gone, to be copied anew.
    TakenDown(CollectionId, Result<(), Problem>),
    Dropped(CollectionId, Result<(), Problem>),
    /// A source timestamp above everything of a collection that the source has dropped.
    End(CollectionId, Result<Tso, CatalogError>),
    /// What the source says of a collection that is stored and not in the view.
    Read(CollectionId, Result<Option<Arc<Collection>>, CatalogError>),
    BrokeOff(CollectionId),
}

pub(super) struct Conductor<'a> {
    pub(super) ctx: Arc<TaskContext>,
    pub(super) objects: Arc<Objects>,
    pub(super) board: Arc<Mutex<Board>>,
    inbox: &'a mut mpsc::Receiver<Command>,
    /// Stored collections that have not been opened or read for the first time, and are not being dropped.
    first: Option<BTreeSet<CollectionId>>,
    /// Gone on the source, met in the first round: dropped from the table once the readers have begun. The drop's tick
    /// would show what they have to send anew, an upsert of which only half was sent, say.
    pub(super) gone_first: BTreeSet<CollectionId>,
    /// As loaded at the start; its records of detached collections are kept as they are stored.
    pub(super) stored: TaskProgress,
    pub(super) mains: BTreeMap<PChannel, Arc<Reader>>,
    pub(super) catching: BTreeMap<(PChannel, CollectionId), Arc<Reader>>,
    pub(super) entries: BTreeMap<CollectionId, Entry>,
    pub(super) jobs: JoinSet<Outcome>,
    pub(super) readers: JoinSet<(Arc<Reader>, End)>,
    pub(super) side: JoinSet<&'static str>,
    pub(super) first_round: bool,
    /// A round that moves the durable checkpoint, if one is under way.
    rounds: JoinSet<Settled>,
    begun: Instant,
    /// Some collection was last said to come at other times than the source's.
    shown_raised: bool,
    /// As of the last look.
    pub(super) asked_for: Option<Arc<TaskSpec>>,
    /// Collections of the source that are none of the task's, as of these.
    refused: HashMap<CollectionId, (Arc<Collection>, Arc<TaskSpec>)>,
    /// Rows that a stream had when everything of it was flushed.
    flushed: HashMap<CollectionId, (Weak<StreamCtl>, u64)>,
    /// Of all copies.
    pace: Arc<Pace>,
}

impl<'a> Conductor<'a> {
    pub(super) fn new(
        ctx: Arc<TaskContext>,
        objects: Arc<Objects>,
        board: Arc<Mutex<Board>>,
        inbox: &'a mut mpsc::Receiver<Command>,
        stored: TaskProgress,
    ) -> Self {
        let pace = Arc::new(Pace::new(&ctx.spec.snapshot));
        Self {
            ctx,
            objects,
            board,
            inbox,
            first: None,
            gone_first: BTreeSet::new(),
            stored,
            mains: BTreeMap::new(),
            catching: BTreeMap::new(),
            entries: BTreeMap::new(),
            jobs: JoinSet::new(),
            readers: JoinSet::new(),
            side: JoinSet::new(),
            first_round: true,
            rounds: JoinSet::new(),
            begun: Instant::now(),
            shown_raised: false,
            asked_for: None,
            refused: HashMap::new(),
            flushed: HashMap::new(),
            pace,
        }
    }

    pub(super) async fn run(&mut self) -> Ended {
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
                changed = views.changed() => if changed.is_err() { return Ended::Drained },
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = self.ctx.drain.cancelled() => return Ended::Drained,
            }
        }
        self.board.lock().task_problem(None);
        self.took("the source's metadata is read");
        self.start_side("the convergence");
        self.start_side("the flushes");
        // A standby may lose what it has answered, until it is flushed.
        let may_lose = self.ctx.hub.mode == Mode::Replicate;
        if may_lose {
            self.start_side("the watch on the target");
        }
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut checkpoint = tokio::time::interval(CHECKPOINT_EVERY);
        let every = self.ctx.spec.durable_every;
        let mut settle = tokio::time::interval_at(Instant::now() + every, every);
        settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut happened, mut looked) = (true, Instant::now());
        loop {
            happened |=
                views.has_changed().unwrap_or(true) || looked.elapsed() >= LOOK_AT_ALL_EVERY;
            if happened || !self.is_settled() {
                looked = Instant::now();
                let view = views.borrow_and_update().clone();
                self.reconcile(&view).await;
            } else {
                self.show_readers();
            }
            happened = true;
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return Ended::Drained },
                _ = look.tick() => happened = false,
                () = self.ctx.wake.notified() => {}
                _ = checkpoint.tick() => {
                    self.checkpoint(false).await;
                    happened = false;
                }
                Some(Ok(outcome)) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    self.outcome(outcome).await;
                    // All that are done, before everything is looked at once.
                    while let Some(Ok(outcome)) = self.jobs.try_join_next() {
                        self.outcome(outcome).await;
                    }
                }
                Some(Ok((reader, end))) = self.readers.join_next(), if !self.readers.is_empty() => {
                    self.ended(reader, end).await;
                }
                Some(Ok(what)) = self.side.join_next(), if !self.side.is_empty() => {
                    if !self.ctx.drain.is_cancelled() {
                        self.start_side(what);
                    }
                }
                Some((said, answer)) = self.inbox.recv() => {
                    let _ = answer.send(match said {
                        Said::Choice(database, name, choice) => self.choose(&database, &name, choice).await,
                        Said::Verdict(key, verdict, by) => self.judge(&key, verdict, &by).await,
                    });
                }
                _ = settle.tick(), if may_lose && self.rounds.is_empty() && !self.first_round => self.start_round().await,
                Some(Ok(settled)) = self.rounds.join_next(), if !self.rounds.is_empty() => self.settled(settled).await,
                () = self.ctx.restarted.cancelled() => {
                    // Nothing of them may be noted behind what the next beginning stores.
                    self.stop_copies().await;
                    return Ended::TargetRestarted;
                }
                () = self.ctx.drain.cancelled() => {
                    self.drain().await;
                    return Ended::Drained;
                }
            }
        }
    }

    /// Whether every collection is where it stays until something happens, and is said to be where it is.
    fn is_settled(&self) -> bool {
        let rests = |phase: &Phase| {
            use Phase::{Apart, Dropped, Held, Streaming};
            matches!(phase, Streaming | Held(_) | Apart(_) | Dropped)
        };
        // An edit is looked at like anything else that happens.
        let asked_for = self.asked_for.as_ref();
        let as_wanted = asked_for.is_some_and(|asked| Arc::ptr_eq(asked, &self.ctx.wanted()));
        as_wanted
            && !self.first_round
            && !self.shown_raised
            && self.jobs.is_empty()
            && self.catching.is_empty()
            && !self.mains.values().any(|main| main.raises())
            && self.entries.values().all(|e| rests(&e.phase))
    }

    /// What a start waits for, for the log.
    fn took(&self, what: &str) {
        let (task, ms) = (&self.ctx.spec.id, self.begun.elapsed().as_millis());
        tracing::debug!(%task, ms, "{what}");
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
                    "the watch on the target" => {
                        settle::watch(&ctx).await;
                        ctx.restarted.cancel();
                    }
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

    pub(super) fn start_job(
        &mut self,
        id: CollectionId,
        job: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.jobs.spawn(async move {
            let outcome = AssertUnwindSafe(job).catch_unwind().await;
            outcome.unwrap_or(Outcome::BrokeOff(id))
        });
    }

    /// Compares what should be with what is.
    async fn reconcile(&mut self, view: &View) {
        self.meet(view);
        self.select(view).await;
        self.open_again().await;
        self.failures().await;
        self.drops(view).await;
        self.open_due();
        self.copies().await;
        self.pulses();
        if self.begun.elapsed() >= FIRST_PATIENCE
            && let Some(first) = &mut self.first
        {
            let entries = &self.entries;
            first.retain(|id| {
                entries
                    .get(id)
                    .is_some_and(|e| !matches!(e.phase, Phase::Retry(_)))
            });
        }
        if self.first_round && self.first.as_ref().is_some_and(BTreeSet::is_empty) {
            self.first_round = false;
            self.took("what is stored is found on the target");
            self.begin().await;
            self.gone_first.clear();
            self.took("reading begins");
        }
        if !self.first_round {
            self.attach_ready().await;
            self.close_idle().await;
        }
        self.settle().await;
        self.forget_gone(view).await;
        self.show();
    }

    /// New collections of the view that belong to this task; in the first view also those that are stored.
    fn meet(&mut self, view: &View) {
        let wanted = self.ctx.wanted();
        for collection in view.collections.values() {
            if let Some(entry) = self.entries.get_mut(&collection.id) {
                if entry.source.db != collection.db
                    && let Some(database) = view.database_name(collection.db)
                {
                    database.clone_into(&mut entry.database);
                }
                entry.source = collection.clone();
                if matches!(entry.phase, Phase::Unread(_)) {
                    entry.phase = Phase::Due;
                }
                continue;
            }
            let known = self.objects.get(collection.id);
            // A database is gone from the view at once, its dropped collections are there for long.
            let of_known = || known.as_ref().map(|o| o.carried_name().database);
            let of_view = view.database_name(collection.db).map(str::to_owned);
            let Some(database) = of_view.or_else(of_known) else {
                continue;
            };
            let alive = collection.state == ObjectState::Created;
            let refused = self
                .refused
                .get(&collection.id)
                .is_some_and(|(of, by)| Arc::ptr_eq(of, collection) && Arc::ptr_eq(by, &wanted));
            let ours = !refused && wanted.selection.contains(&database, &collection.name);
            if !ours && !refused {
                let refused = (collection.clone(), wanted.clone());
                self.refused.insert(collection.id, refused);
            }
            let wanted = match &known {
                // Of one that was made what was asked for then counts, and what is asked for now: see `select`.
                Some(object) if object.phase == ObjectPhase::Creating => ours,
                Some(object) => object.phase != ObjectPhase::Dropped,
                None => ours && alive,
            };
            if wanted {
                self.enter(collection.clone(), database, Phase::Due);
            }
        }
        self.refused
            .retain(|id, _| view.collections.contains_key(id));
        if self.first.is_some() {
            return;
        }
        let mut first = BTreeSet::new();
        for object in self.objects.all() {
            if object.phase == ObjectPhase::Dropped {
                continue;
            }
            let id = object.source;
            let from = object.carried_name();
            let creating = object.phase == ObjectPhase::Creating;
            if creating && !wanted.selection.contains(&from.database, &from.name) {
                continue;
            }
            if !self.entries.contains_key(&id) {
                let phase = Phase::Unread(Instant::now());
                self.enter(Arc::new(unread(&object)), from.database, phase);
            }
            let apart = |e: &Entry| matches!(e.phase, Phase::Apart(_));
            if !creating && !self.entries.get(&id).is_some_and(apart) {
                first.insert(id);
            }
        }
        self.first = Some(first);
        // Where the task has begun again: what it was about to make then may be gone since, and nobody would take it down.
        let entries = &self.entries;
        self.board.lock().keep(|id| entries.contains_key(&id));
    }

    fn enter(&mut self, source: Arc<Collection>, database: String, phase: Phase) {
        let note = self.stored.notes.get(&source.id);
        let answer: Option<Answer> = note.and_then(|note| serde_json::from_str(note).ok());
        let phase = match self.begins_apart(source.id, answer.as_ref()) {
            true => Phase::Apart(Instant::now()),
            false => phase,
        };
        let entry = Entry {
            database,
            phase,
            route: None,
            answer: answer.unwrap_or_default(),
            snapshot: self
                .stored
                .notes
                .get(&copying::note_of(source.id))
                .and_then(|note| serde_json::from_str(note).ok()),
            copy: None,
            pulse: None,
            poison: None,
            backoff: Backoff::new(),
            failing_since: None,
            is_transient: false,
            streaming_since: None,
            dropping_since: None,
            staying: None,
            asked: None,
            source,
        };
        for (channel, position) in &entry.answer.skipped {
            self.objects.skip(entry.source.id, channel, *position);
        }
        self.entries.insert(entry.source.id, entry);
    }

    fn open_due(&mut self) {
        let now = Instant::now();
        let wanted = self.ctx.wanted();
        let objects = self.objects.clone();
        // By the name on the target.
        let key_of = |id: CollectionId, e: &Entry| {
            let known = objects.look(id, |o| Name::new(o.database.as_str(), o.name.as_str()));
            known.unwrap_or_else(|| wanted.target_of(&e.database, &e.source.name))
        };
        let mut under_way: BTreeSet<Name> = self
            .entries
            .iter()
            .filter(|(_, e)| e.phase == Phase::Opening)
            .map(|(id, e)| key_of(*id, e))
            .collect();
        let mut start = Vec::new();
        for (id, entry) in &mut self.entries {
            if self.jobs.len() + start.len() >= JOBS {
                break;
            }
            let may_be_due = matches!(entry.phase, Phase::Unread(_) | Phase::Due | Phase::Retry(_));
            if !may_be_due || self.gone_first.contains(id) {
                continue;
            }
            let key = key_of(*id, entry);
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
            if self.first_round && entry.answer.takes_down() {
                // The drop's tick would show what the others have to send anew.
                if let Some(first) = &mut self.first {
                    first.remove(id);
                }
                continue;
            }
            under_way.insert(key);
            entry.phase = Phase::Opening;
            let opening = Opening {
                source: entry.source.clone(),
                database: entry.database.clone(),
                answer: entry.answer.clone(),
                // In the first round all wait for each other.
                may_rename: !self.first_round,
            };
            start.push((*id, Some(opening)));
        }
        for (id, opening) in start {
            let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
            let made = || objects.look(id, |o| o.target.is_some()) == Some(true);
            match opening {
                Some(opening) if opening.answer.snapshot && made() => {
                    self.start_job(id, async move {
                        Outcome::TakenDown(id, objects.take_down(id).await)
                    });
                }
                Some(opening) => self.start_job(id, async move {
                    Outcome::Opened(id, opening::open(ctx, objects, opening).await.map(Box::new))
                }),
                None => self.start_job(id, async move {
                    let read = ctx.catalog().read_collection(id).await;
                    Outcome::Read(id, read.map(|found| found.map(Arc::new)))
                }),
            }
        }
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
        name: object.carried_name().name,
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
