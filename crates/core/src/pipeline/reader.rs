//! Carries one source channel to its lanes: for every collection attached to it, or for one that catches up by itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::TaskContext;
use super::books::Books;
use super::objects::{Objects, PartitionAnswer, Route, TargetShard};
use super::stretch::{Act, Edges, Place, Planned, all_partitions};
use crate::backoff::Backoff;
use crate::decode::{DecodeError, Event, Rows, decode};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::lane::Ticket;
use crate::position::Position;
use crate::route::tsmap::TsMap;
use crate::source::{RawMessage, SourceError, Start};
use crate::store::{Change, Progress};
use crate::tso::Tso;

/// W is raised this far ahead, so that it is written at most twice a second.
const SENT_LEAD: Duration = Duration::from_millis(400);
/// A reader that is less than this behind the others holds their ticks; one that is further behind does not.
const NEAR: Duration = Duration::from_secs(3);
/// A reader that cannot read for this long no longer holds the others' ticks.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a reader of one collection waits for a partition's name to be free on the target.
const NAME_PATIENCE: Duration = Duration::from_secs(60);
/// The drop that frees a partition's name may still come by itself for this long; then it is made.
const DROP_READ_WITHIN: Duration = Duration::from_millis(500);

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

/// What comes of a batch, if it is not just the next one.
enum Turn {
    End(End),
    /// The stretch is known to its end: it is read again from its beginning, to be sent.
    Again,
}

struct Attached {
    route: Arc<Route>,
    /// Messages up to here are another reader's, or before its start.
    after: Option<Position>,
    /// Its drop was read: nothing of it follows.
    dropped: bool,
}

/// How a stretch is read.
///
/// Times between two ticks are not in order, so a stretch that has to be raised is kept until its tick. One that is too
/// large for that is read twice: first for its timestamps, then, with the map that they give, for its messages.
enum Pass {
    /// Once; what has to be raised is kept.
    Once,
    /// For the timestamps, by lane, of what goes to these lanes. What goes to others is sent.
    Times(HashMap<String, Vec<u64>>),
    /// With the maps, by lane, up to the tick at this position. What goes to other lanes was sent the first time.
    Mapped {
        maps: HashMap<String, Arc<TsMap>>,
        end: Position,
        tick: Tso,
        /// Where this second reading goes on.
        next: Start,
    },
}

/// What is behind a stretch that was read twice: messages above its tick that stand before it, for the lanes it was read
/// for. They are read once more, with the stretch they belong to.
struct Remainder {
    /// The tick's place. Up to here messages to other lanes, and those up to the tick, are done.
    until: Position,
    lanes: HashSet<String>,
    /// Where that reading goes on.
    next: Start,
}

/// How a message is sent.
enum Take {
    Plain,
    /// With the map of its stretch.
    Mapped(Arc<TsMap>),
}

/// A message as it was read, with its size.
type Read = (Position, usize, Result<Event, DecodeError>);

pub(crate) struct Inner {
    attached: HashMap<CollectionId, Attached>,
    pub(crate) edges: Edges,
    /// The last message read.
    pub(crate) at: Option<Position>,
    /// Tickets of messages that could not be carried: the checkpoint must not pass them.
    stuck: Vec<(CollectionId, Ticket)>,
    pass: Pass,
    remainder: Option<Remainder>,
    /// The task ends: nothing above this source timestamp is sent any more, so that the next tick at or above it leaves
    /// nothing in doubt.
    cut: Option<Tso>,
    /// Read, and put off: they could not be worked on while the channel's main reader was held.
    put_off: VecDeque<Read>,
}

/// One reader, as the conductor and its like see it.
pub(crate) struct Reader {
    ctx: Arc<TaskContext>,
    objects: Arc<Objects>,
    pub(crate) channel: PChannel,
    pub(crate) scope: Scope,
    pub(crate) books: Mutex<Books>,
    /// Held while a batch is worked on.
    pub(crate) gate: tokio::sync::Mutex<Inner>,
    pub(crate) cancel: CancellationToken,
    pub(crate) problem: Mutex<Option<Problem>>,
    /// C and W at the start: what lies between is in doubt.
    applied: Tso,
    in_doubt: Tso,
    start: Position,
    followers: TaskTracker,
    /// It reads no more.
    pub(crate) over: AtomicBool,
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
            attached: HashMap::new(),
            edges: Edges::new(ctx.clone(), progress, holds),
            at: progress.after.then_some(progress.position),
            stuck: Vec::new(),
            pass: Pass::Once,
            remainder: None,
            cut: None,
            put_off: VecDeque::new(),
        };
        if let Scope::One(route) = &scope {
            inner.attached.insert(
                route.source,
                Attached {
                    route: route.clone(),
                    after: None,
                    dropped: false,
                },
            );
        }
        Arc::new(Self {
            cancel: ctx.cancel.child_token(),
            ctx,
            objects,
            channel,
            scope,
            books: Mutex::new(Books::new(progress)),
            gate: tokio::sync::Mutex::new(inner),
            problem: Mutex::default(),
            applied: progress.applied,
            start: progress.position,
            in_doubt: progress.sent,
            followers: TaskTracker::new(),
            over: AtomicBool::new(false),
        })
    }

    /// Adds a collection whose messages up to `after` need not be carried. Only to a main reader.
    pub(crate) fn attach(&self, inner: &mut Inner, route: Arc<Route>, after: Option<Position>) {
        for shard in route.shards_on(&self.channel) {
            inner.edges.join(&route.shards[shard]);
        }
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

    /// Takes a collection out. Its stuck tickets are returned: to be dropped once the store says where it goes on.
    pub(crate) fn detach(&self, inner: &mut Inner, collection: CollectionId) -> Vec<Ticket> {
        inner.attached.remove(&collection);
        let mut tickets = inner.edges.take_back(collection);
        let channel = &self.channel;
        inner.edges.keep_only(
            inner
                .attached
                .values()
                .flat_map(|a| a.route.shards_on(channel).map(|i| &a.route.shards[i])),
        );
        let stuck = std::mem::take(&mut inner.stuck);
        let (taken, kept): (Vec<_>, Vec<_>) =
            stuck.into_iter().partition(|(c, _)| *c == collection);
        inner.stuck = kept;
        tickets.extend(taken.into_iter().map(|(_, ticket)| ticket));
        tickets
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
    pub(crate) async fn run(self: Arc<Self>, main: Option<Arc<Reader>>) -> End {
        let end = self.read_on(main).await;
        // Under the gate: who joins a collection to this reader looks there.
        let _inner = self.gate.lock().await;
        self.over.store(true, Ordering::Release);
        end
    }

    async fn read_on(&self, main: Option<Arc<Reader>>) -> End {
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
                    tokio::select! {
                        () = backoff.wait() => {}
                        () = self.cancel.cancelled() => return End::Stopped,
                        () = self.ctx.drain.cancelled() => return End::Stopped,
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
            let batch = tokio::select! {
                batch = tokio::time::timeout(PATIENCE, log.next(reserve)), if !put_off => match batch {
                    Ok(batch) => batch?,
                    // A channel in use has ticks: this one is not, or its source is down. Others need not wait for it.
                    Err(_) => {
                        self.stop_holding(&mut *self.gate.lock().await);
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
                Some(Turn::End(End::Dropped)) => return Ok(self.last_words(&mut inner).await),
                Some(Turn::End(end)) => return Ok(end),
                Some(Turn::Again) => {
                    let start = self.start(&inner);
                    drop(inner);
                    log = self.ctx.parts.source.open(&self.channel, start).await?;
                }
                None => {}
            }
        }
    }

    /// Works on a batch. `Some` when it is not the next batch that has to come.
    ///
    /// `joining`: while the main reader is held. What needs ticks of its lanes is put off then.
    async fn work(
        &self,
        inner: &mut Inner,
        batch: Vec<RawMessage>,
        draining: bool,
        joining: bool,
    ) -> Option<Turn> {
        let again = matches!(inner.pass, Pass::Mapped { .. });
        let bytes: usize = batch.iter().map(|m| m.payload.len()).sum();
        if !again {
            let meter = &self.ctx.meter;
            meter
                .messages_in
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
            meter.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let mut todo: VecDeque<Read> = std::mem::take(&mut inner.put_off);
        todo.extend(
            batch
                .into_iter()
                .map(|m| (m.position, m.payload.len(), decode(&m.payload))),
        );
        self.reserve(
            inner,
            todo.iter().filter_map(|(_, _, event)| event.as_ref().ok()),
        )
        .await;
        while let Some((position, bytes, event)) = todo.pop_front() {
            self.see(inner, position, &event);
            let turn = match event {
                Ok(Event::Tick(tick)) => {
                    if joining && inner.edges.awaited(tick).is_some() {
                        todo.push_front((position, bytes, Ok(Event::Tick(tick))));
                        inner.put_off = todo;
                        return None;
                    }
                    self.tick(inner, position, tick, draining).await
                }
                Ok(Event::Rows(rows)) => {
                    self.rows(inner, position, bytes, rows).await;
                    None
                }
                Ok(Event::DropCollection { collection, ts }) => {
                    let end = self.drop_collection(inner, position, collection, ts)
                        && matches!(self.scope, Scope::One(_));
                    end.then_some(Turn::End(End::Dropped))
                }
                Ok(Event::DropPartition {
                    collection,
                    partition,
                    ts,
                }) => {
                    self.drop_partition(inner, position, collection, partition, ts)
                        .await;
                    None
                }
                Ok(Event::Other(_)) => None,
                Err(error) => {
                    let problem = Problem::new(
                        ErrorClass::Data,
                        format!(
                            "{}: message {position} ({bytes} bytes): {error}",
                            self.channel
                        ),
                        "resume the task with skip for this collection to go on behind the message, or recreate it",
                    );
                    self.poison(inner, position, error.collection, &problem);
                    None
                }
            };
            if matches!(turn, Some(Turn::Again)) {
                return turn;
            }
            match (&mut inner.pass, &mut inner.remainder) {
                (Pass::Mapped { next, .. }, _) => *next = Start::After(position),
                (_, Some(remainder)) if position < remainder.until => {
                    remainder.next = Start::After(position);
                }
                _ => {
                    inner.remainder = None;
                    inner.at = Some(position);
                }
            }
            if turn.is_some() {
                return turn;
            }
            self.give_up_keeping(inner);
        }
        None
    }

    /// Where a main reader goes on has to be right for every collection that may be joined to it, and where a reader that
    /// ends goes on for what it leaves out.
    fn see(&self, inner: &Inner, position: Position, event: &Result<Event, DecodeError>) {
        let whole = matches!(self.scope, Scope::Main) || inner.cut.is_some();
        if !whole || matches!(inner.pass, Pass::Mapped { .. }) {
            return;
        }
        let ts = match event {
            Ok(Event::Rows(rows)) => rows.max_ts(),
            Ok(Event::DropCollection { ts, .. } | Event::DropPartition { ts, .. }) => *ts,
            _ => return,
        };
        if ts > inner.edges.tick {
            self.books.lock().seen(position, ts);
        }
    }

    /// A tick of the source: the stretch before it is complete.
    async fn tick(
        &self,
        inner: &mut Inner,
        position: Position,
        tick: Tso,
        draining: bool,
    ) -> Option<Turn> {
        // Behind the cut everything is left out: not all that is up to this tick is done.
        let tick = inner.cut.map_or(tick, |cut| tick.min(cut));
        if tick <= inner.edges.tick {
            return None;
        }
        match std::mem::replace(&mut inner.pass, Pass::Once) {
            Pass::Once => {}
            Pass::Times(times) => {
                let mut maps = HashMap::new();
                for (lane, mut times) in times {
                    times.retain(|ts| *ts <= tick.0);
                    if let Some(map) = inner.edges.raise(&lane, times) {
                        maps.insert(lane, Arc::new(map));
                    }
                }
                let next = match self.books.lock().begun_at() {
                    (from, true) => Start::After(from),
                    (from, false) => Start::At(from),
                };
                inner.pass = Pass::Mapped {
                    maps,
                    end: position,
                    tick,
                    next,
                };
                return Some(Turn::Again);
            }
            again @ Pass::Mapped { end, .. } if position < end => {
                inner.pass = again;
                return None;
            }
            Pass::Mapped { maps, .. } => {
                inner.remainder = Some(Remainder {
                    until: position,
                    lanes: maps.into_keys().collect(),
                    next: Start::After(position),
                });
            }
        }
        if self.await_partitions(inner, tick).await.is_err() {
            return None;
        }
        inner.edges.close(tick);
        self.books.lock().close(position, tick);
        if let Some(remainder) = &mut inner.remainder {
            match self.books.lock().begun_at() {
                (from, false) if from <= remainder.until => {
                    remainder.next = Start::At(from);
                    inner.at = Some(position);
                    return Some(Turn::Again);
                }
                _ => inner.remainder = None,
            }
        }
        if matches!(self.scope, Scope::Main) {
            let near = inner.edges.behind() < NEAR;
            self.hold(inner, near);
        }
        let books = self.books.lock();
        let at_rest = draining && !books.has_above() && tick >= books.joined;
        at_rest.then_some(Turn::End(End::Stopped))
    }

    /// Before a stretch ends: rows of partitions whose names are older ones' on the target wait until those are dropped
    /// there, for which what lies before these rows has to be sent. `Err`: their stream has failed.
    async fn await_partitions(&self, inner: &mut Inner, tick: Tso) -> Result<(), ()> {
        let Scope::One(route) = &self.scope else {
            return Ok(());
        };
        let deadline = Instant::now() + NAME_PATIENCE;
        while let Some((first, partitions)) = inner.edges.awaited(tick) {
            // The drop needs ticks on the lanes, which must not wait for this reader.
            inner.edges.set_holds(false);
            inner.edges.send_below(first);
            // Registered before the look, so that a drop that ends in between is not missed.
            let freed = self.objects.freed.notified();
            for partition in partitions {
                match self.objects.partition(route, partition).await {
                    PartitionAnswer::Known(found) => inner.edges.resolve(partition, Some(&found)),
                    PartitionAnswer::Gone => inner.edges.resolve(partition, None),
                    PartitionAnswer::NameTaken(holder) if Instant::now() < deadline => {
                        if tokio::time::timeout(DROP_READ_WITHIN, freed).await.is_err()
                            && let Err(problem) = self.objects.clear_partition(route, holder).await
                        {
                            tracing::debug!(task = %self.ctx.spec.id, "{problem}");
                        }
                        break;
                    }
                    PartitionAnswer::NameTaken(_) => {
                        self.stick(inner, route, &name_taken(partition));
                        return Err(());
                    }
                    PartitionAnswer::Failed(problem) => {
                        self.stick(inner, route, &problem);
                        return Err(());
                    }
                }
            }
        }
        Ok(())
    }

    /// When what is kept of a stretch is too much for the budget, only its timestamps are kept.
    fn give_up_keeping(&self, inner: &mut Inner) {
        let gathered = inner.edges.gathered();
        let budget = &self.ctx.budget;
        let too_much = gathered > self.ctx.reserve()
            && (budget.used() > budget.total() / 4 * 3 || gathered > budget.total() / 2);
        if !too_much || matches!(inner.pass, Pass::Mapped { .. }) {
            return;
        }
        let times = match &mut inner.pass {
            Pass::Times(times) => times,
            pass => {
                *pass = Pass::Times(HashMap::new());
                match pass {
                    Pass::Times(times) => times,
                    _ => return,
                }
            }
        };
        for (lane, more) in inner.edges.give_up() {
            times.entry(lane).or_default().extend(more);
        }
        // Read again, with the rest.
        for attached in inner.attached.values_mut() {
            attached.dropped = false;
        }
    }

    /// How a message to this shard is taken in the present pass. `None`: not at all.
    fn passes(
        &self,
        inner: &mut Inner,
        shard: &TargetShard,
        position: Position,
        ts: Tso,
        times: impl FnOnce() -> Vec<u64>,
    ) -> Option<Take> {
        let lane = shard.lane.channel().as_str();
        // Up to the last tick everything was sent with an earlier stretch, if this one is not read for the first time.
        let due = ts > inner.edges.tick;
        if let Some(remainder) = &inner.remainder
            && position <= remainder.until
            && (!due || !remainder.lanes.contains(lane))
        {
            return None;
        }
        match &mut inner.pass {
            Pass::Once => Some(Take::Plain),
            Pass::Times(of) => match of.get_mut(lane) {
                Some(all) => {
                    all.extend(times());
                    self.books.lock().read(position, ts);
                    None
                }
                None => Some(Take::Plain),
            },
            Pass::Mapped { maps, tick, .. } => maps
                .get(lane)
                .filter(|_| due && ts <= *tick)
                .map(|map| Take::Mapped(map.clone())),
        }
    }

    fn take(&self, inner: &mut Inner, planned: Planned, take: Take) {
        match take {
            Take::Plain => inner.edges.take(planned),
            Take::Mapped(map) => inner.edges.send_mapped(planned, &map),
        }
    }

    /// The collection this message is for, if this reader is to carry the message.
    fn wanted(
        &self,
        inner: &mut Inner,
        position: Position,
        collection: CollectionId,
        ts: Tso,
    ) -> Option<Arc<Route>> {
        let attached = inner.attached.get(&collection)?;
        let before = attached.dropped || attached.after.is_some_and(|after| position <= after);
        if before || ts <= self.applied || inner.cut.is_some_and(|cut| ts > cut) {
            return None;
        }
        let route = attached.route.clone();
        if route.stream.failed() {
            // Another channel's reader or a lane has failed it. It goes on from what is stored for this channel, which
            // must not pass this message.
            self.hold_back(inner, &route);
            return None;
        }
        Some(route)
    }

    /// The checkpoint does not pass this stretch until the collection is detached.
    fn hold_back(&self, inner: &mut Inner, route: &Route) {
        if inner.stuck.iter().all(|(c, _)| *c != route.source) {
            let ticket = inner.edges.ticket(self.books.lock().cell(), 0);
            inner.stuck.push((route.source, ticket));
        }
    }

    /// W on disk above everything in this batch, before any of it is sent.
    async fn reserve(&self, inner: &Inner, events: impl Iterator<Item = &Event>) {
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
            return;
        }
        let sent = highest.plus(SENT_LEAD);
        let (task, channel) = (self.ctx.spec.id.clone(), self.channel.clone());
        let guard = self.ctx.progress.lock().await;
        let change = match &self.scope {
            Scope::Main => Change::RaiseSent {
                task,
                channel,
                sent,
            },
            Scope::One(_) => {
                let mut progress = self.books.lock().progress();
                progress.sent = sent;
                self.put(progress, false)
            }
        };
        self.ctx.commit(vec![change]).await;
        self.books.lock().sent = sent;
        drop(guard);
    }

    async fn rows(&self, inner: &mut Inner, position: Position, bytes: usize, rows: Rows) {
        let ts = rows.max_ts();
        let Some(route) = self.wanted(inner, position, rows.collection, ts) else {
            return;
        };
        let shard = rows.vchannel.shard().filter(|s| {
            route
                .shards
                .get(*s)
                .is_some_and(|shard| shard.source == self.channel)
        });
        let Some(shard) = shard else {
            let why = format!(
                "{}: message {position} names the channel {}, which is not one of its collection's",
                self.channel, rows.vchannel
            );
            let problem = Problem::new(
                ErrorClass::Data,
                why,
                "resume the task with skip for this collection to leave the message out; please report it with the source's version",
            );
            return self.poison(inner, position, Some(rows.collection), &problem);
        };
        let times = || rows.timestamps.clone();
        let Some(take) = self.passes(inner, &route.shards[shard], position, ts, times) else {
            return;
        };
        let place = match self.place(inner, &route, rows.partition, &take).await {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(problem) => return self.stick(inner, &route, &problem),
        };
        if matches!(take, Take::Plain) {
            self.books.lock().read(position, ts);
        }
        self.ctx
            .meter
            .rows_in
            .fetch_add(rows.timestamps.len() as u64, Ordering::Relaxed);
        let ticket = inner.edges.ticket(self.books.lock().cell(), bytes);
        let in_doubt = ts <= self.in_doubt;
        let planned = Planned {
            route,
            shard,
            origin: (self.channel.clone(), position),
            act: Act::Rows {
                rows,
                place,
                in_doubt,
            },
            bytes,
            ticket,
            ticked: None,
        };
        self.take(inner, planned, take);
    }

    /// `None`: the partition is gone on the source.
    async fn place(
        &self,
        inner: &Inner,
        route: &Route,
        id: PartitionId,
        take: &Take,
    ) -> Result<Option<Place>, Problem> {
        if id.0 < 0 {
            return Ok(Some(Place::Known(all_partitions())));
        }
        match self.objects.partition(route, id).await {
            PartitionAnswer::Known(partition) => Ok(Some(Place::Known(partition))),
            PartitionAnswer::Gone => Ok(None),
            PartitionAnswer::Failed(problem) => Err(problem),
            // The drop of the older one needs ticks on its lanes. A reader that holds them has sent what it read of
            // this stretch with source timestamps, which a tick must not pass before the stretch is whole.
            PartitionAnswer::NameTaken(_)
                if matches!(self.scope, Scope::Main)
                    || inner.edges.holds
                    || matches!(take, Take::Mapped(_)) =>
            {
                Err(name_taken(id))
            }
            PartitionAnswer::NameTaken(_) => Ok(Some(Place::Awaited(id))),
        }
    }

    /// A message that cannot be carried: its collection fails, or, if it cannot be told, all that are attached.
    fn poison(
        &self,
        inner: &mut Inner,
        position: Position,
        collection: Option<CollectionId>,
        problem: &Problem,
    ) {
        let hit: Vec<Arc<Route>> = inner
            .attached
            .values()
            .filter(|a| collection.is_none_or(|c| c == a.route.source))
            .filter(|a| a.after.is_none_or(|after| position > after))
            .filter(|a| {
                !self
                    .objects
                    .is_skipped(a.route.source, &self.channel, position)
            })
            .map(|a| a.route.clone())
            .collect();
        for route in hit {
            self.hold_back(inner, &route);
            if !route.stream.failed() {
                route
                    .stream
                    .fail_at(&self.channel, position, problem.clone());
            }
        }
    }

    fn stick(&self, inner: &mut Inner, route: &Route, problem: &Problem) {
        self.hold_back(inner, route);
        if !route.stream.failed() {
            route.stream.fail(problem.clone());
        }
    }

    /// Forwards the drop to the shards on this channel. `false` if it is none of ours, or not sent yet.
    fn drop_collection(
        &self,
        inner: &mut Inner,
        position: Position,
        id: CollectionId,
        ts: Tso,
    ) -> bool {
        let Some(route) = self.wanted(inner, position, id, ts) else {
            return false;
        };
        let mut taken = 0;
        for shard in route.shards_on(&self.channel).collect::<Vec<_>>() {
            let times = || vec![ts.0];
            let Some(take) = self.passes(inner, &route.shards[shard], position, ts, times) else {
                continue;
            };
            taken += 1;
            let (ticket, ticked) = self.follow(inner, {
                let (objects, ctx, route) = (self.objects.clone(), self.ctx.clone(), route.clone());
                async move {
                    objects.shard_dropped(id, shard, route.shards.len()).await;
                    ctx.wake.notify_one();
                }
            });
            if matches!(take, Take::Plain) {
                self.books.lock().read(position, ts);
            }
            let planned = Planned {
                route: route.clone(),
                shard,
                origin: (self.channel.clone(), position),
                act: Act::DropCollection { ts },
                bytes: 0,
                ticket,
                ticked,
            };
            self.take(inner, planned, take);
        }
        if taken > 0
            && matches!(self.scope, Scope::Main)
            && let Some(attached) = inner.attached.get_mut(&id)
        {
            // Nothing of it follows; its lanes are left once the drop has been shown to them, with the next tick.
            attached.dropped = true;
        }
        taken > 0
    }

    async fn drop_partition(
        &self,
        inner: &mut Inner,
        position: Position,
        collection: CollectionId,
        partition: PartitionId,
        ts: Tso,
    ) {
        let Some(route) = self.wanted(inner, position, collection, ts) else {
            return;
        };
        // Never made on the target: nothing to drop there.
        let Some(known) = self.objects.bury(&route, partition).await else {
            return;
        };
        for shard in route.shards_on(&self.channel).collect::<Vec<_>>() {
            let times = || vec![ts.0];
            let Some(take) = self.passes(inner, &route.shards[shard], position, ts, times) else {
                continue;
            };
            let (ticket, ticked) = self.follow(inner, {
                let (objects, route) = (self.objects.clone(), route.clone());
                async move {
                    let mut backoff = Backoff::new();
                    while let Err(problem) =
                        objects.partition_dropped(&route, partition, shard).await
                    {
                        tracing::warn!(%partition, "{problem}");
                        backoff.wait().await;
                    }
                }
            });
            if matches!(take, Take::Plain) {
                self.books.lock().read(position, ts);
            }
            let planned = Planned {
                route: route.clone(),
                shard,
                origin: (self.channel.clone(), position),
                act: Act::DropPartition {
                    partition: known.clone(),
                    ts,
                },
                bytes: 0,
                ticket,
                ticked,
            };
            self.take(inner, planned, take);
        }
    }

    /// A ticket for a message after which `then` has to be done, once it and a tick are acknowledged: the checkpoint
    /// passes the message only after that.
    fn follow(
        &self,
        inner: &Inner,
        then: impl Future<Output = ()> + Send + 'static,
    ) -> (Ticket, Option<oneshot::Sender<Ticket>>) {
        let ticket = inner.edges.ticket(self.books.lock().cell(), 0);
        let (ticked, done) = oneshot::channel::<Ticket>();
        let cancel = self.ctx.cancel.clone();
        self.followers.spawn(async move {
            let work = async {
                if let Ok(ticket) = done.await {
                    then.await;
                    drop(ticket);
                }
            };
            tokio::select! {
                () = work => {}
                () = cancel.cancelled() => {}
            }
        });
        (ticket, Some(ticked))
    }

    /// The end of a collection that has a reader of its own: what it sent is acknowledged, then its record goes.
    async fn last_words(&self, inner: &mut Inner) -> End {
        self.followers.close();
        // What waits for a partition's name goes with the collection.
        if let Some((_, partitions)) = inner.edges.awaited(Tso::MAX) {
            for partition in partitions {
                inner.edges.resolve(partition, None);
            }
        }
        // It must not hold its lanes below the drop's own (raised) time; their other readers show it, or the lane does.
        inner.edges.set_holds(false);
        inner.edges.close(Tso::MAX);
        self.followers.wait().await;
        End::Dropped
    }

    /// Whether this collection's reader is so near its main reader that it can be joined to it. When near, it holds its
    /// lanes' ticks for a moment, so that its times come to be natural.
    fn near(&self, inner: &mut Inner) -> bool {
        let near = inner.edges.behind() < NEAR && inner.edges.tick > Tso::ZERO;
        self.hold(inner, near);
        near && inner.remainder.is_none() && inner.edges.is_natural() && self.at_tick(inner)
    }

    /// Hands the collection over to the main reader, at one message for both.
    async fn join(
        &self,
        inner: &mut Inner,
        main: &Reader,
        log: &mut dyn crate::source::LogReader,
    ) -> Result<Option<Turn>, SourceError> {
        let Scope::One(route) = &self.scope else {
            return Ok(None);
        };
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut theirs = main.gate.lock().await;
        // A main reader that drains may have stopped already.
        if main.over.load(Ordering::Acquire) || self.ctx.drain.is_cancelled() {
            return Ok(None);
        }
        // The main reader stands still now; read up to where it is, to the next tick from there.
        while theirs.at > inner.at || !(inner.edges.is_natural() && self.at_tick(inner)) {
            let batch = match tokio::time::timeout_at(deadline, log.next(256 << 10)).await {
                Ok(batch) => batch?,
                Err(_) => return Ok(None),
            };
            if let Some(turn) = self.work(inner, batch, false, true).await {
                return Ok(Some(turn));
            }
            if !inner.put_off.is_empty() {
                return Ok(None);
            }
        }
        // What it sent is acknowledged within a call or two.
        while !self.books.lock().is_clean() {
            if Instant::now() > deadline || route.stream.failed() {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let guard = self.ctx.progress.lock().await;
        if route.stream.failed() || self.cancel.is_cancelled() {
            return Ok(None);
        }
        let (task, channel) = (self.ctx.spec.id.clone(), self.channel.clone());
        let sent = self.books.lock().sent;
        self.ctx
            .commit(vec![
                Change::RaiseSent {
                    task: task.clone(),
                    channel: channel.clone(),
                    sent,
                },
                Change::DeleteDetached {
                    task,
                    channel,
                    collection: route.source,
                },
            ])
            .await;
        {
            let mut books = main.books.lock();
            books.sent = books.sent.max(sent);
            books.joined = books.joined.max(inner.edges.tick);
        }
        main.attach(&mut theirs, route.clone(), inner.at);
        self.books.lock().retired = true;
        inner.edges.leave();
        drop(guard);
        Ok(Some(Turn::End(End::Joined)))
    }

    fn hold(&self, inner: &mut Inner, near: bool) {
        if !near {
            self.stop_holding(inner);
        } else if !inner.edges.holds {
            inner.edges.set_holds(true);
        }
    }

    /// Not while something above the last tick was sent with its source time: a tick could pass it before its other half
    /// (an upsert's delete) is read.
    fn stop_holding(&self, inner: &mut Inner) {
        if inner.edges.holds && !self.books.lock().has_above() {
            inner.edges.set_holds(false);
        }
    }

    fn at_tick(&self, inner: &Inner) -> bool {
        self.books.lock().ends_at(inner.at)
    }
}

fn name_taken(partition: PartitionId) -> Problem {
    Problem::new(
        ErrorClass::Transient,
        format!(
            "partition {partition} waits until the older one of its name is dropped on the target"
        ),
        "goes on by itself",
    )
}
