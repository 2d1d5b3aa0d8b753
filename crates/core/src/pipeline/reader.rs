//! Carries one source channel to its lanes: for every collection attached to it, or for one that catches up by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::TaskContext;
use super::books::Books;
use super::early::LINGER;
use super::objects::{Objects, Route};
use super::passes::{Pass, Read, Remainder, Turn};
use super::repeats::Repeats;
use super::stretch::Edges;
use crate::backoff::Backoff;
use crate::decode::Event;
use crate::error::Problem;
use crate::ids::{CollectionId, PChannel};
use crate::lane::Ticket;
use crate::lead::Lead;
use crate::position::Position;
use crate::source::{LogReader, RawMessage, SourceError, Start};
use crate::store::{Change, Progress};
use crate::tso::Tso;

/// W is raised this far ahead at least, so that it is written at most a few times a second.
const SENT_LEAD: Duration = Duration::from_millis(400);
/// With less than this part left of the lead, W is raised with that of another channel.
const SENT_USED: f64 = 0.5;
/// A reader that is less than this behind the others holds their ticks; one that is further behind does not.
pub(super) const NEAR: Duration = Duration::from_secs(3);
/// A reader that cannot read for this long no longer holds the others' ticks.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a task that ends waits for what follows a drop.
const DROPPED_WITHIN: Duration = Duration::from_secs(2);

/// Whose messages a reader carries.
#[derive(Clone)]
pub(crate) enum Scope {
    /// Of all collections attached to it.
    Main,
    /// Of one, until it has caught up with the channel's main reader.
    One(Arc<Route>),
}

/// Why a reader ended.
pub(crate) enum End {
    Stopped,
    /// The collection was dropped on this channel.
    Dropped,
    /// Caught up: the main reader carries it now.
    Joined,
    /// The queue no longer holds what comes next.
    Lost(SourceError),
    /// It panicked: a promise inside this program was broken.
    BrokeOff,
}

pub(super) struct Attached {
    pub(super) route: Arc<Route>,
    /// Messages up to here are another reader's, or before its start.
    pub(super) after: Option<Position>,
    /// Its drop was read: nothing of it follows.
    pub(super) dropped: bool,
}

pub(crate) struct Inner {
    pub(super) attached: BTreeMap<CollectionId, Attached>,
    pub(crate) edges: Edges,
    /// The last message read.
    pub(crate) at: Option<Position>,
    /// Tickets of messages that could not be carried: the checkpoint must not pass them.
    pub(super) stuck: Vec<(CollectionId, Ticket)>,
    pub(super) pass: Pass,
    pub(super) remainder: Option<Remainder>,
    pub(super) repeats: Repeats,
    /// The task ends: nothing above this source timestamp is sent any more, so that the next tick at or above it leaves
    /// nothing in doubt.
    pub(super) cut: Option<Tso>,
    /// Read, and put off: they could not be worked on while the channel's main reader was held.
    pub(super) put_off: VecDeque<Read>,
    /// When its collection was last about to be handed over to the main reader.
    pub(super) tried: Option<Instant>,
}

impl Inner {
    /// When something may be ready to be sent before its tick. Not of a stretch that is read more than once, nor at the
    /// end.
    fn early_at(&self) -> Option<Instant> {
        let once = matches!(self.pass, Pass::Once) && self.remainder.is_none();
        (once && self.cut.is_none()).then(|| self.edges.ready_at())?
    }
}

/// One reader, as the conductor and its like see it.
pub(crate) struct Reader {
    pub(super) ctx: Arc<TaskContext>,
    pub(super) objects: Arc<Objects>,
    pub(crate) channel: PChannel,
    pub(crate) scope: Scope,
    pub(crate) books: Mutex<Books>,
    /// Held while a batch is worked on.
    pub(crate) gate: tokio::sync::Mutex<Inner>,
    pub(crate) cancel: CancellationToken,
    pub(crate) problem: Mutex<Option<Problem>>,
    /// Lanes on which it is not at the source's times, as of the last tick.
    raised: Mutex<BTreeSet<String>>,
    /// C and W at the start: what lies between is in doubt.
    pub(super) applied: Tso,
    pub(super) in_doubt: Tso,
    pub(super) start: Position,
    /// Of a collection's own reader: see [`Reader::may_go_on_from`].
    pub(super) whole: Mutex<Option<Tso>>,
    lead: Mutex<Lead>,
    /// The largest timestamp for which W had to be on disk.
    used: AtomicU64,
    pub(super) followers: TaskTracker,
    /// It reads no more.
    pub(crate) over: AtomicBool,
    /// The last source tick it has passed, for who does not want to wait for its gate.
    passed: AtomicU64,
}

impl Reader {
    pub(crate) fn new(
        ctx: Arc<TaskContext>,
        objects: Arc<Objects>,
        channel: PChannel,
        scope: Scope,
        progress: Progress,
    ) -> Arc<Self> {
        let holds = matches!(scope, Scope::Main);
        let mut inner = Inner {
            attached: BTreeMap::new(),
            edges: Edges::new(ctx.clone(), progress, holds),
            at: progress.after.then_some(progress.position),
            stuck: Vec::new(),
            pass: Pass::Once,
            remainder: None,
            repeats: Repeats::default(),
            cut: None,
            put_off: VecDeque::new(),
            tried: None,
        };
        if let Scope::One(route) = &scope {
            // From the beginning, not with the first row: where an earlier reader of this collection has sent rows at
            // later times, this one is not at the source's times before its tick has passed them.
            for shard in route.shards_on(&channel) {
                inner.edges.join(&route.shards[shard]);
            }
            inner.attached.insert(
                route.source,
                Attached {
                    route: route.clone(),
                    after: None,
                    dropped: false,
                },
            );
        }
        let is_main = holds;
        let reader = Arc::new(Self {
            cancel: ctx.cancel.child_token(),
            ctx,
            objects,
            channel,
            scope,
            books: Mutex::new(Books::new(progress)),
            gate: tokio::sync::Mutex::new(inner),
            problem: Mutex::default(),
            raised: Mutex::default(),
            applied: progress.applied,
            start: progress.position,
            whole: Mutex::default(),
            in_doubt: progress.sent,
            lead: Mutex::new(Lead::new(SENT_LEAD)),
            used: AtomicU64::new(0),
            followers: TaskTracker::new(),
            over: AtomicBool::new(false),
            passed: AtomicU64::new(progress.applied.0),
        });
        if is_main {
            let mut mains = reader.ctx.mains.lock();
            mains.retain(|main| main.strong_count() > 0);
            mains.push(Arc::downgrade(&reader));
        }
        reader
    }

    /// Adds a collection whose messages up to `after` need not be carried. Only to a main reader.
    pub(crate) fn attach(&self, inner: &mut Inner, route: Arc<Route>, after: Option<Position>) {
        for shard in route.shards_on(&self.channel) {
            inner.edges.join(&route.shards[shard]);
        }
        self.note_raised(inner);
        let dropped = false;
        inner.attached.insert(
            route.source,
            Attached {
                route,
                after,
                dropped,
            },
        );
    }

    pub(super) fn last_tick(&self) -> Tso {
        Tso(self.passed.load(Ordering::Acquire))
    }

    pub(super) fn has_passed(&self, tick: Tso) {
        self.passed.fetch_max(tick.0, Ordering::AcqRel);
    }

    pub(super) fn note_raised(&self, inner: &Inner) {
        *self.raised.lock() = inner.edges.raised();
    }

    /// Whether rows of any collection come to the target at other times than the source's.
    pub(crate) fn raises(&self) -> bool {
        !self.raised.lock().is_empty()
    }

    /// Whether rows of this collection come to the target at other times than the source's.
    pub(crate) fn is_raised(&self, route: &Route) -> bool {
        let raised = self.raised.lock();
        let mut shards = route.shards_on(&self.channel);
        shards.any(|i| raised.contains(route.shards[i].lane.channel().as_str()))
    }

    /// Whether a new collection, created at `position` with timestamp `ts`, lies wholly before this main reader.
    pub(crate) fn is_before(&self, inner: &Inner, position: Position, ts: Tso) -> bool {
        // In a second reading what goes to other lanes is not looked at.
        !matches!(inner.pass, Pass::Mapped { .. })
            && ts > self.applied
            && inner.at.map_or(position >= self.start, |at| at < position)
    }

    pub(crate) fn carries(&self, inner: &Inner, collection: CollectionId) -> bool {
        inner.attached.contains_key(&collection)
    }

    /// Whether it carries a collection by this very route.
    pub(crate) fn carries_by(&self, inner: &Inner, route: &Arc<Route>) -> bool {
        inner
            .attached
            .get(&route.source)
            .is_some_and(|a| Arc::ptr_eq(&a.route, route))
    }

    /// Carries nothing, and nothing of it is under way.
    pub(crate) fn is_idle(&self, inner: &Inner) -> bool {
        inner.attached.is_empty() && self.books.lock().is_clean()
    }

    pub(crate) fn collections(&self, inner: &Inner) -> Vec<CollectionId> {
        inner.attached.keys().copied().collect()
    }

    /// The ways of what it carries, but of collections that are read to their drop.
    pub(crate) fn carried(&self, inner: &Inner) -> Vec<Arc<Route>> {
        let attached = inner.attached.values().filter(|a| !a.dropped);
        attached.map(|a| a.route.clone()).collect()
    }

    /// Takes a collection out. Its stuck tickets are returned: to be dropped once the store says where it goes on.
    pub(crate) fn detach(&self, inner: &mut Inner, collection: CollectionId) -> Vec<Ticket> {
        inner.attached.remove(&collection);
        let mut tickets = inner.edges.take_back(collection);
        self.leave_others(inner);
        let stuck = std::mem::take(&mut inner.stuck);
        let (taken, kept): (Vec<_>, Vec<_>) =
            stuck.into_iter().partition(|(c, _)| *c == collection);
        inner.stuck = kept;
        tickets.extend(taken.into_iter().map(|(_, ticket)| ticket));
        tickets
    }

    /// Leaves the lanes to which nothing goes that it carries.
    pub(crate) fn leave_others(&self, inner: &mut Inner) {
        let channel = &self.channel;
        inner.edges.keep_only(
            inner
                .attached
                .values()
                .flat_map(|a| a.route.shards_on(channel).map(|i| &a.route.shards[i])),
        );
    }

    /// What to store of this reader's progress.
    pub(crate) fn put(&self, progress: Progress, clean: bool) -> Change {
        let (task, channel) = (self.ctx.spec.id.clone(), self.channel.clone());
        match &self.scope {
            Scope::Main => Change::PutChannel {
                task,
                channel,
                progress,
                clean,
            },
            Scope::One(route) => Change::PutDetached {
                task,
                channel,
                collection: route.source,
                progress,
            },
        }
    }

    /// Reads until it is stopped or has nothing more to do.
    pub(crate) async fn run(&self, main: Option<Arc<Reader>>) -> End {
        let mut backoff = Backoff::new();
        let mut last_read = Instant::now();
        loop {
            let end = tokio::select! {
                end = self.read(main.as_deref(), &mut backoff, &mut last_read) => end,
                () = self.cancel.cancelled() => Ok(End::Stopped),
            };
            match end {
                Ok(end) => {
                    self.followers.close();
                    return end;
                }
                Err(lost @ SourceError::PositionLost { .. }) => return End::Lost(lost),
                Err(error) => {
                    let problem = error.problem();
                    if self.problem.lock().replace(problem.clone()).as_ref() != Some(&problem) {
                        tracing::warn!(task = %self.ctx.spec.id, channel = %self.channel, "{problem}");
                    }
                    if last_read.elapsed() > PATIENCE {
                        self.stop_holding(&mut *self.gate.lock().await);
                    }
                    // Where the task ends, what is read to a tick leaves nothing in doubt: worth some patience.
                    let over = self.books.lock().is_clean() || last_read.elapsed() > PATIENCE;
                    let drain = &self.ctx.drain;
                    tokio::select! {
                        () = backoff.wait() => {}
                        () = self.cancel.cancelled() => return End::Stopped,
                        () = drain.cancelled(), if over => return End::Stopped,
                    }
                }
            }
        }
    }

    fn start(&self, inner: &Inner) -> Start {
        if let Pass::Mapped { next, .. } = inner.pass {
            return next;
        }
        if let Some(remainder) = &inner.remainder {
            return remainder.next;
        }
        match inner.at {
            Some(position) => Start::After(position),
            None => Start::At(self.books.lock().progress().position),
        }
    }

    /// Reads from where the last try ended.
    async fn read(
        &self,
        main: Option<&Reader>,
        backoff: &mut Backoff,
        last_read: &mut Instant,
    ) -> Result<End, SourceError> {
        let start = self.start(&*self.gate.lock().await);
        let mut log = self.ctx.parts.source.open(&self.channel, start).await?;
        let reserve = self.ctx.reserve();
        let own = self.gate.lock().await.edges.own.clone();
        let mut draining = false;
        loop {
            // What is kept to the end of a stretch goes only when the stretch is read to its end.
            if !draining && self.gate.lock().await.edges.gathered() == 0 {
                self.ctx.budget.room(&own, reserve).await;
            }
            let put_off = !self.gate.lock().await.put_off.is_empty();
            let next = tokio::time::timeout(PATIENCE, self.next(&mut *log, reserve));
            let batch = tokio::select! {
                batch = next, if !put_off => match batch {
                    Ok(batch) => batch?,
                    // A channel in use has ticks: this one is not, or its source is down. Others need not wait for it.
                    Err(_) => {
                        self.stop_holding(&mut *self.gate.lock().await);
                        if draining {
                            return Ok(End::Stopped);
                        }
                        continue;
                    }
                },
                () = std::future::ready(()), if put_off => Vec::new(),
                () = self.ctx.drain.cancelled(), if !draining => {
                    draining = true;
                    let mut inner = self.gate.lock().await;
                    let mut books = self.books.lock();
                    let cut = books.highest().unwrap_or_default().max(books.joined);
                    // At a tick: nothing is sent behind it, no need to read on to the next.
                    if books.is_clean() || cut <= inner.edges.tick {
                        return Ok(End::Stopped);
                    }
                    inner.cut = Some(cut);
                    drop(books);
                    continue;
                }
            };
            *last_read = Instant::now();
            *backoff = Backoff::new();
            *self.problem.lock() = None;
            let mut inner = self.gate.lock().await;
            let mut turn = self.work(&mut inner, batch, draining, false).await;
            if let (None, Some(main)) = (&turn, main)
                && self.near(&mut inner)
            {
                turn = self.join(&mut inner, main, &mut *log).await?;
            }
            match turn {
                Some(Turn::End(End::Dropped)) => {
                    self.last_words(&mut inner);
                    drop(inner);
                    // What it sent is acknowledged, then its record goes.
                    let over = async {
                        self.ctx.drain.cancelled().await;
                        tokio::time::sleep(DROPPED_WITHIN).await;
                    };
                    tokio::select! {
                        () = self.followers.wait() => return Ok(End::Dropped),
                        // The tick may be one that nobody brings any more: the drop is read again.
                        () = over => return Ok(End::Stopped),
                    }
                }
                Some(Turn::End(end)) => return Ok(end),
                Some(Turn::Again) => {
                    let start = self.start(&inner);
                    drop(inner);
                    log = self.ctx.parts.source.open(&self.channel, start).await?;
                }
                // Where one batch follows the other there is no moment without.
                None if inner.early_at().is_some_and(|at| at <= *last_read) => {
                    self.send_early(&mut inner, *last_read);
                }
                None => {}
            }
        }
    }

    /// The next batch. While there is none, what need not wait for its tick goes.
    async fn next(
        &self,
        log: &mut dyn LogReader,
        reserve: usize,
    ) -> Result<Vec<RawMessage>, SourceError> {
        let next = log.next(reserve);
        tokio::pin!(next);
        let mut looked = Instant::now();
        loop {
            let early = self.gate.lock().await.early_at();
            // What was read just now may have taken its time until here.
            let early = early.map(|at| at.max(looked + LINGER));
            tokio::select! {
                biased;
                batch = &mut next => return batch,
                () = tokio::time::sleep_until(early.unwrap_or(looked)), if early.is_some() => {
                    looked = Instant::now();
                    self.send_early(&mut *self.gate.lock().await, looked);
                }
            }
        }
    }

    fn send_early(&self, inner: &mut Inner, now: Instant) {
        if inner.early_at().is_some() {
            self.leave_out_gone(inner);
            inner.edges.send_early(now);
        }
    }

    /// W on disk above everything in this batch, before any of it is sent.
    pub(super) async fn reserve(&self, inner: &Inner, events: impl Iterator<Item = &Event>) {
        let highest = events
            .filter_map(|event| match event {
                Event::Rows(rows) if inner.attached.contains_key(&rows.collection) => {
                    Some(rows.max_ts())
                }
                _ => None,
            })
            .max();
        let Some(highest) = highest else { return };
        if highest <= self.books.lock().sent {
            self.used.fetch_max(highest.0, Ordering::AcqRel);
            return;
        }
        let guard = self.ctx.progress.lock().await;
        self.used.fetch_max(highest.0, Ordering::AcqRel);
        // Raised with another one's meanwhile?
        if self.books.lock().sent >= highest {
            return;
        }
        let clock = self.ctx.hub.clock();
        let sent = self.lead.lock().raise(highest, clock);
        let change = match &self.scope {
            Scope::Main => self.raise_sent(sent),
            Scope::One(_) => {
                let mut progress = self.books.lock().progress();
                progress.sent = sent;
                self.put(progress, false)
            }
        };
        let mut changes = vec![change];
        let others = self.raise_too(clock);
        changes.extend(others.iter().map(|(main, sent)| main.raise_sent(*sent)));
        self.ctx.commit(changes).await;
        self.books.lock().sent = sent;
        for (main, sent) in others {
            main.books.lock().sent = sent;
        }
        drop(guard);
    }

    fn raise_sent(&self, sent: Tso) -> Change {
        Change::RaiseSent {
            task: self.ctx.spec.id.clone(),
            channel: self.channel.clone(),
            sent,
        }
    }

    /// The other readers of whole channels whose W would soon have to be raised, and to what. Under the lock of progress.
    fn raise_too(&self, clock: Tso) -> Vec<(Arc<Reader>, Tso)> {
        let mains = self.ctx.mains.lock();
        let mains = mains.iter().filter_map(Weak::upgrade);
        let others = mains.filter(|main| !std::ptr::eq(Arc::as_ptr(main), self));
        others
            .filter_map(|main| {
                let used = Tso(main.used.load(Ordering::Acquire));
                let sent = main.books.lock().sent;
                let ended = main.over.load(Ordering::Acquire) || main.cancel.is_cancelled();
                let lead = main.lead.lock();
                if ended || used == Tso::ZERO || !lead.is_low(used, sent, SENT_USED) {
                    return None;
                }
                let to = lead.above(used, clock);
                drop(lead);
                (to > sent).then_some((main, to))
            })
            .collect()
    }
}
