//! Carries one source channel to its lanes: for every collection attached to it, or for one that catches up by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::TaskContext;
use super::books::Books;
use super::objects::{Objects, PartitionAnswer, PartitionRoute, Route};
use super::stretch::{Act, Edges, Planned, all_partitions};
use crate::backoff::Backoff;
use crate::decode::{Event, Rows, decode};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::lane::Ticket;
use crate::position::Position;
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
}

struct Attached {
    route: Arc<Route>,
    /// Messages up to here are another reader's, or before its start.
    after: Option<Position>,
}

pub(crate) struct Inner {
    attached: HashMap<CollectionId, Attached>,
    pub(crate) edges: Edges,
    /// The last message read.
    pub(crate) at: Option<Position>,
    /// Tickets of messages that could not be carried: the checkpoint must not pass them.
    stuck: Vec<(CollectionId, Ticket)>,
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
        };
        if let Scope::One(route) = &scope {
            inner.attached.insert(
                route.source,
                Attached {
                    route: route.clone(),
                    after: None,
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
        })
    }

    /// Adds a collection whose messages up to `after` need not be carried. Only to a main reader.
    pub(crate) fn attach(&self, inner: &mut Inner, route: Arc<Route>, after: Option<Position>) {
        for shard in route.shards_on(&self.channel) {
            inner.edges.join(&route.shards[shard].lane);
        }
        inner
            .attached
            .insert(route.source, Attached { route, after });
    }

    /// Whether a new collection, created at `position` with timestamp `ts`, lies wholly before this main reader.
    pub(crate) fn is_before(&self, inner: &Inner, position: Position, ts: Tso) -> bool {
        ts > self.applied && inner.at.map_or(position >= self.start, |at| at < position)
    }

    pub(crate) fn carries(&self, inner: &Inner, collection: CollectionId) -> bool {
        inner.attached.contains_key(&collection)
    }

    pub(crate) fn collections(&self, inner: &Inner) -> Vec<CollectionId> {
        inner.attached.keys().copied().collect()
    }

    /// Takes a collection out. Its stuck tickets are returned: to be dropped once the store says where it goes on.
    pub(crate) fn detach(&self, inner: &mut Inner, collection: CollectionId) -> Vec<Ticket> {
        inner.attached.remove(&collection);
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
        taken.into_iter().map(|(_, ticket)| ticket).collect()
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
        let reserve = (self.ctx.budget.total() / 32).max(64 << 10);
        let own = self.gate.lock().await.edges.own.clone();
        let mut draining = false;
        loop {
            if !draining && !self.gate.lock().await.edges.is_gathering() {
                self.ctx.budget.room(&own, reserve).await;
            }
            let batch = tokio::select! {
                batch = tokio::time::timeout(PATIENCE, log.next(reserve)) => match batch {
                    Ok(batch) => batch?,
                    // A channel in use has ticks: this one is not, or its source is down. Others need not wait for it.
                    Err(_) => {
                        self.stop_holding(&mut *self.gate.lock().await);
                        continue;
                    }
                },
                () = self.ctx.drain.cancelled(), if !draining => {
                    draining = true;
                    // At a tick: nothing is sent behind it, no need to read on to the next.
                    if self.books.lock().is_clean() {
                        return Ok(End::Stopped);
                    }
                    continue;
                }
            };
            *last_read = Instant::now();
            *backoff = Backoff::new();
            *self.problem.lock() = None;
            let mut inner = self.gate.lock().await;
            let mut end = self.work(&mut inner, batch, draining).await;
            if let (None, Some(main)) = (&end, main)
                && self.near(&mut inner)
            {
                end = self.join(&mut inner, main, &mut *log).await?;
            }
            match end {
                Some(End::Dropped) => return Ok(self.last_words(&mut inner).await),
                Some(end) => return Ok(end),
                None => {}
            }
        }
    }

    /// Works on a batch. `Some` when the reader is through.
    async fn work(&self, inner: &mut Inner, batch: Vec<RawMessage>, draining: bool) -> Option<End> {
        use std::sync::atomic::Ordering::Relaxed;
        self.ctx
            .meter
            .messages_in
            .fetch_add(batch.len() as u64, Relaxed);
        let decoded: Vec<_> = batch
            .into_iter()
            .map(|m| {
                self.ctx
                    .meter
                    .bytes_in
                    .fetch_add(m.payload.len() as u64, Relaxed);
                (m.position, m.payload.len(), decode(&m.payload))
            })
            .collect();
        self.reserve(
            inner,
            decoded
                .iter()
                .filter_map(|(_, _, event)| event.as_ref().ok()),
        )
        .await;
        for (position, bytes, event) in decoded {
            let mut end = None;
            match event {
                Ok(Event::Tick(tick)) => {
                    if tick > inner.edges.tick {
                        inner.edges.close(tick);
                        self.books.lock().close(position, tick);
                        if matches!(self.scope, Scope::Main) {
                            let near = inner.edges.behind() < NEAR;
                            self.hold(inner, near);
                        }
                        if draining && !self.books.lock().has_above() {
                            end = Some(End::Stopped);
                        }
                    }
                }
                Ok(Event::Rows(rows)) => self.rows(inner, position, bytes, rows).await,
                Ok(Event::DropCollection { collection, ts }) => {
                    if self.drop_collection(inner, position, collection, ts)
                        && matches!(self.scope, Scope::One(_))
                    {
                        end = Some(End::Dropped);
                    }
                }
                Ok(Event::DropPartition {
                    collection,
                    partition,
                    ts,
                }) => {
                    self.drop_partition(inner, position, collection, partition, ts)
                        .await;
                }
                Ok(Event::Other(_)) => {}
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
                }
            }
            inner.at = Some(position);
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// The collection this message is for, if this reader is to carry the message.
    fn wanted(
        &self,
        inner: &Inner,
        position: Position,
        collection: CollectionId,
        ts: Tso,
    ) -> Option<Arc<Route>> {
        let attached = inner.attached.get(&collection)?;
        let before = attached.after.is_some_and(|after| position <= after);
        (!before && ts > self.applied && !attached.route.stream.failed())
            .then(|| attached.route.clone())
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
                "please report it with the source's version",
            );
            return self.poison(inner, position, Some(rows.collection), &problem);
        };
        let partition = match self.partition(inner, &route, rows.partition).await {
            Ok(Some(partition)) => partition,
            Ok(None) => return,
            Err(problem) => return self.stick(inner, &route, &problem),
        };
        self.books.lock().read(position, ts);
        let ticket = inner.edges.ticket(self.books.lock().cell(), bytes);
        let in_doubt = ts <= self.in_doubt;
        inner.edges.take(Planned {
            route,
            shard,
            act: Act::Rows {
                rows,
                partition,
                in_doubt,
            },
            ticket,
            ticked: None,
        });
    }

    /// `None`: the partition is gone on the source.
    async fn partition(
        &self,
        inner: &mut Inner,
        route: &Route,
        id: PartitionId,
    ) -> Result<Option<PartitionRoute>, Problem> {
        if id.0 < 0 {
            return Ok(Some(all_partitions()));
        }
        let deadline = Instant::now() + NAME_PATIENCE;
        loop {
            // Registered before the look, so that a drop that ends in between is not missed.
            let freed = self.objects.freed.notified();
            match self.objects.partition(route, id).await {
                PartitionAnswer::Known(partition) => return Ok(Some(partition)),
                PartitionAnswer::Gone => return Ok(None),
                PartitionAnswer::Failed(problem) => return Err(problem),
                PartitionAnswer::NameTaken => {
                    // The drop of the older one needs ticks on its lanes, which a main reader holds while it waits here.
                    if matches!(self.scope, Scope::Main) || Instant::now() > deadline {
                        let why = format!(
                            "partition {id} waits until the older one of its name is dropped on the target"
                        );
                        return Err(Problem::new(
                            ErrorClass::Transient,
                            why,
                            "goes on by itself",
                        ));
                    }
                    // The older one's drop may stand in this same stretch: it goes out now, and its tick must not wait
                    // for this reader.
                    inner.edges.set_holds(false);
                    inner.edges.send_drops();
                    let _ = tokio::time::timeout(Duration::from_secs(1), freed).await;
                }
            }
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
            if !route.stream.failed() {
                let ticket = inner.edges.ticket(self.books.lock().cell(), 0);
                inner.stuck.push((route.source, ticket));
                route
                    .stream
                    .fail_at(&self.channel, position, problem.clone());
            }
        }
    }

    fn stick(&self, inner: &mut Inner, route: &Route, problem: &Problem) {
        if !route.stream.failed() {
            let ticket = inner.edges.ticket(self.books.lock().cell(), 0);
            inner.stuck.push((route.source, ticket));
            route.stream.fail(problem.clone());
        }
    }

    /// Forwards the drop to the shards on this channel. `false` if it is none of ours.
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
        self.books.lock().read(position, ts);
        for shard in route.shards_on(&self.channel).collect::<Vec<_>>() {
            let (ticket, ticked) = self.follow(inner, {
                let (objects, ctx, route) = (self.objects.clone(), self.ctx.clone(), route.clone());
                async move {
                    objects.shard_dropped(id, shard, route.shards.len()).await;
                    ctx.wake.notify_one();
                }
            });
            let act = Act::DropCollection { ts };
            inner.edges.take(Planned {
                route: route.clone(),
                shard,
                act,
                ticket,
                ticked,
            });
        }
        if matches!(self.scope, Scope::Main) {
            // Nothing of it follows; its lanes are left once the drop has been shown to them, with the next tick.
            if let Some(attached) = inner.attached.get_mut(&id) {
                attached.after = Some(position_max(position));
            }
        }
        true
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
        self.books.lock().read(position, ts);
        for shard in route.shards_on(&self.channel).collect::<Vec<_>>() {
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
            let act = Act::DropPartition {
                partition: known.clone(),
                ts,
            };
            inner.edges.take(Planned {
                route: route.clone(),
                shard,
                act,
                ticket,
                ticked,
            });
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
        near && inner.edges.is_natural() && self.at_tick(inner)
    }

    /// Hands the collection over to the main reader, at one message for both.
    async fn join(
        &self,
        inner: &mut Inner,
        main: &Reader,
        log: &mut dyn crate::source::LogReader,
    ) -> Result<Option<End>, SourceError> {
        let Scope::One(route) = &self.scope else {
            return Ok(None);
        };
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut theirs = main.gate.lock().await;
        // The main reader stands still now; read up to where it is, to the next tick from there.
        while theirs.at > inner.at || !(inner.edges.is_natural() && self.at_tick(inner)) {
            let batch = match tokio::time::timeout_at(deadline, log.next(256 << 10)).await {
                Ok(batch) => batch?,
                Err(_) => return Ok(None),
            };
            if let Some(end) = self.work(inner, batch, false).await {
                return Ok(Some(end));
            }
        }
        while !self.books.lock().is_clean() {
            if Instant::now() > deadline || route.stream.failed() {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let guard = self.ctx.progress.lock().await;
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
        Ok(Some(End::Joined))
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

/// A position behind every other of the same queue.
fn position_max(like: Position) -> Position {
    match like {
        Position::Natsmq(_) => Position::Natsmq(u64::MAX),
        Position::Rocksmq(_) => Position::Rocksmq(i64::MAX),
        Position::Kafka(_) => Position::Kafka(i64::MAX),
        Position::Pulsar { .. } => Position::Pulsar {
            ledger: u64::MAX,
            entry: u64::MAX,
            batch: i32::MAX,
        },
    }
}
