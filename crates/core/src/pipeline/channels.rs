//! Which reader carries which collection: one main reader a source channel, and one for each collection that is not
//! where its channel's main reader is.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::conductor::{Conductor, Phase, broke_off};
use super::objects::Route;
use super::reader::{End, Reader, Scope};
use super::runner::ended_well;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::source::SourceError;
use crate::store::{Change, ObjectPhase, Progress};
use crate::tso::Tso;

/// What a stop waits for is said this often.
const DRAIN_SAID_EVERY: Duration = Duration::from_secs(5);
/// So long nothing moves before a stop waits no more for ticks that nobody brings.
const IN_VAIN: Duration = Duration::from_secs(2);
/// Collections that catch up at the same time, on all their channels: a collection may need them all.
const CATCHING: usize = 8;

impl Conductor<'_> {
    /// Intake ends at the next tick of each channel; then what is in flight is awaited and stored.
    pub(super) async fn drain(&mut self) {
        self.stop_copies().await;
        // Whatever cannot end in time: what has, is stored as ended.
        let mut round = tokio::time::interval(Duration::from_millis(20));
        let mut say = Instant::now() + DRAIN_SAID_EVERY;
        let mut in_vain = None;
        loop {
            if Instant::now() >= say {
                say = Instant::now() + DRAIN_SAID_EVERY;
                self.say_what_is_waited_for();
            }
            tokio::select! {
                Some(Ok((reader, end))) = self.readers.join_next(), if !self.readers.is_empty() => {
                    self.ended(reader, end).await;
                }
                _ = round.tick() => {}
            }
            self.failures().await;
            self.checkpoint(true).await;
            let all = self.mains.values().chain(self.catching.values());
            let ended = all.clone().all(|r| r.over.load(Ordering::Acquire));
            // Not only clean ones: one that could not read to its tick has something in doubt, which its W says.
            if self.readers.is_empty() && ended && all.clone().all(|r| r.books.lock().is_settled())
            {
                break;
            }
            // What is left may wait for a tick, and whoever has to bring it has read on to none: half of an upsert of theirs
            // may be sent, which no tick may pass. It is sent again at the next start.
            let waits = || {
                let routes = self.objects.routes();
                let mut shards = routes.iter().flat_map(|r| &r.shards);
                shards.any(|s| s.lane.waits_for_a_tick())
            };
            if self.readers.is_empty() && ended && waits() {
                let since = *in_vain.get_or_insert_with(Instant::now);
                if since.elapsed() > IN_VAIN {
                    break;
                }
            } else {
                in_vain = None;
            }
        }
        self.checkpoint(true).await;
        // A drop under way must not be sent behind the look below.
        self.jobs.shutdown().await;
        self.side.shutdown().await;
        // Of any lane: drops made from the table go to lanes that no collection here has any more.
        if !self.ctx.hub.is_hushed() {
            let task = &self.ctx.spec.id;
            self.ctx.commit(vec![ended_well(task, true)]).await;
        }
    }

    fn say_what_is_waited_for(&self) {
        for reader in self.mains.values().chain(self.catching.values()) {
            let over = reader.over.load(Ordering::Acquire);
            let waits = reader.books.lock().waits_for();
            if over && waits.is_none() {
                continue;
            }
            let (task, channel) = (&self.ctx.spec.id, &reader.channel);
            let problem = reader.problem.lock().clone();
            let alone = matches!(reader.scope, Scope::One(_));
            tracing::info!(%task, %channel, alone, reads = !over, ?waits, ?problem, "the stop waits for a channel");
        }
    }

    pub(super) async fn checkpoint(&mut self, clean: bool) {
        let _guard = self.ctx.progress.lock().await;
        let mut changes = Vec::new();
        for reader in self.mains.values().chain(self.catching.values()) {
            let mut books = reader.books.lock();
            // The main reader it joined goes on from its own record: a second one would be read, and sent, once more.
            if books.retired {
                continue;
            }
            // W is lowered only where nothing can be sent any more.
            if clean && reader.over.load(Ordering::Acquire) && books.is_clean() {
                let progress = books.clean();
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

    /// First round: every stored channel gets its main reader, with everything that belongs to it attached before it
    /// reads. What is not ready by then is detached first.
    pub(super) async fn begin(&mut self) {
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
                // Of one whose metadata was not read it is not known which channels it is on.
                let unread = entry.source.shards.is_empty();
                let here = unread || entry.source.shards.iter().any(|s| s.pchannel == channel);
                let anew = entry.answer.reset.contains_key(&channel);
                if !here
                    || anew
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
            for id in &detach {
                let mut durable = self.ctx.durable.lock();
                durable.taken_off(&channel, *id, progress);
            }
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
        self.mains.insert(main.channel.clone(), main.clone());
        self.start_reader(main, None);
    }

    fn start_reader(&mut self, reader: Arc<Reader>, main: Option<Arc<Reader>>) {
        self.readers.spawn(async move {
            let reading = AssertUnwindSafe(reader.run(main)).catch_unwind();
            let end = reading.await.unwrap_or(End::BrokeOff);
            // Under the gate: who joins a collection to this reader looks there.
            let mut inner = reader.gate.lock().await;
            reader.over.store(true, Ordering::Release);
            // It passes no tick any more, and the drops of others need ticks: where a task ends, a reader that ended
            // first kept them waiting, and itself.
            reader.stop_holding(&mut inner);
            if reader.ctx.drain.is_cancelled() {
                // What waits for a tick that it does not read is never sent.
                drop(inner.edges.give_up());
            }
            drop(inner);
            (reader, end)
        });
    }

    /// Gives every ready collection its readers: earliest start first, so that one main reader serves all.
    pub(super) async fn attach_ready(&mut self) {
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
            let mut whole = true;
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
                if !self.attach_shard(id, &route, &channel).await {
                    whole = false;
                    break;
                }
            }
            if whole && let Some(entry) = self.entries.get_mut(&id) {
                entry.phase = Phase::Streaming;
                entry.streaming_since = Some(Instant::now());
            }
        }
    }

    /// `false`: not now, there are enough that catch up.
    async fn attach_shard(
        &mut self,
        id: CollectionId,
        route: &Arc<Route>,
        channel: &PChannel,
    ) -> bool {
        let key = (channel.clone(), id);
        if self.catching.contains_key(&key) {
            return true;
        }
        let main = self.mains.get(channel).cloned();
        if let Some(main) = &main {
            let mut inner = main.gate.lock().await;
            if main.carries_by(&inner, route) {
                return true;
            }
            if main.carries(&inner, id) && !self.stored.detached.contains_key(&key) {
                // By a way that is no more. Never so by what is known; if so, it goes on from there by itself.
                let _guard = self.ctx.progress.lock().await;
                let progress = main.books.lock().progress();
                self.ctx.durable.lock().taken_off(channel, id, progress);
                let change = Change::PutDetached {
                    task: self.ctx.spec.id.clone(),
                    channel: channel.clone(),
                    collection: id,
                    progress,
                };
                self.ctx.commit(vec![change]).await;
                self.stored.detached.insert(key.clone(), progress);
                drop(main.detach(&mut inner, id));
            }
        }
        let task = self.ctx.spec.id.clone();
        let Some(progress) = self.stored.detached.get(&key).copied() else {
            let dropping = self
                .objects
                .get(id)
                .is_none_or(|o| o.phase != ObjectPhase::Live);
            if !dropping {
                // Never so by what is known. Not carried silently to nowhere.
                let why = format!("it has no place on {channel} to go on from");
                let hint = "please report it; delete the task and create it again with recreate";
                self.failed(id, Problem::new(ErrorClass::Bug, why, hint));
                return false;
            }
            // Its drop on this channel is done, or it is being dropped: nothing to read.
            return true;
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
                self.ctx.durable.lock().channel_begins(channel, progress);
                self.ctx.commit(vec![change, forget]).await;
                self.stored.detached.remove(&key);
                let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
                let main = Reader::new(ctx, objects, channel.clone(), Scope::Main, progress);
                main.attach(&mut *main.gate.lock().await, route.clone(), None);
                self.start_main(main);
                return true;
            }
            Some(main) if fresh => {
                let mut inner = main.gate.lock().await;
                if main.is_before(&inner, progress.position, created) {
                    self.ctx.commit(vec![forget]).await;
                    self.stored.detached.remove(&key);
                    main.attach(&mut inner, route.clone(), None);
                    return true;
                }
            }
            _ => {}
        }
        let others: BTreeSet<_> = self.catching.keys().map(|(_, c)| *c).collect();
        if others.len() >= CATCHING && !others.contains(&id) {
            return false;
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
                self.ctx.durable.lock().channel_begins(channel, start);
                self.ctx.commit(vec![change]).await;
                let (ctx, objects) = (self.ctx.clone(), self.objects.clone());
                let main = Reader::new(ctx, objects, channel.clone(), Scope::Main, start);
                self.start_main(main.clone());
                main
            }
        };
        self.ctx.durable.lock().goes_alone(channel, id, progress);
        self.ctx.commit(Vec::new()).await;
        let scope = Scope::One(route.clone());
        let reader = Reader::new(
            self.ctx.clone(),
            self.objects.clone(),
            channel.clone(),
            scope,
            progress,
        );
        self.catching.insert(key, reader.clone());
        self.start_reader(reader, Some(main));
        true
    }

    /// Main readers that carry nothing any more end: an unused channel has no ticks, and its age means nothing.
    pub(super) async fn close_idle(&mut self) {
        let mut idle = Vec::new();
        for (channel, main) in &self.mains {
            // Whoever holds the gate works on something.
            let Ok(inner) = main.gate.try_lock() else {
                continue;
            };
            if main.is_idle(&inner) && self.catching.keys().all(|(c, _)| c != channel) {
                idle.push(channel.clone());
            }
        }
        let mut changes = Vec::new();
        for channel in idle {
            if let Some(main) = self.mains.remove(&channel) {
                main.cancel.cancel();
            }
            self.ctx.durable.lock().channel_ends(&channel);
            changes.push(Change::DeleteChannel {
                task: self.ctx.spec.id.clone(),
                channel,
            });
        }
        if !changes.is_empty() {
            self.ctx.commit(changes).await;
        }
    }

    /// Takes a collection off all its readers. Its place in each channel is on disk before the channel may pass it.
    pub(super) async fn detach(&mut self, id: CollectionId, route: &Arc<Route>) {
        self.detach_within(id, route, Duration::ZERO).await;
    }

    /// The same; what was sent of it in part is sent whole, if that takes no longer than `within`. Otherwise a reader may
    /// see the one half of an upsert before it goes on.
    pub(super) async fn detach_within(
        &mut self,
        id: CollectionId,
        route: &Arc<Route>,
        within: Duration,
    ) {
        self.stop_copy(id).await;
        let mut tickets = Vec::new();
        // Its own readers first: one of them may be about to join a main reader.
        let own: Vec<_> = self
            .catching
            .keys()
            .filter(|(_, c)| *c == id)
            .cloned()
            .collect();
        for key in own {
            if let Some(reader) = self.catching.remove(&key) {
                reader.cancel.cancel();
                // The gate: what it was working on is then either in its books or not sent.
                let mut inner = reader.gate.lock().await;
                let _guard = self.ctx.progress.lock().await;
                if reader.books.lock().retired {
                    self.stored.detached.remove(&key);
                    continue;
                }
                let progress = reader.books.lock().progress();
                self.ctx.commit(vec![reader.put(progress, false)]).await;
                self.stored.detached.insert(key, progress);
                tickets.extend(reader.detach(&mut inner, id));
                inner.edges.leave();
            }
        }
        for (channel, main) in &self.mains {
            let mut inner = main.gate.lock().await;
            if !main.carries(&inner, id) {
                // It may have been about to take it over.
                main.leave_others(&mut inner);
                continue;
            }
            let _guard = self.ctx.progress.lock().await;
            let progress = main.books.lock().progress();
            self.ctx.durable.lock().taken_off(channel, id, progress);
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
        let sent = route
            .shards
            .iter()
            .map(|s| s.lane.until_sent(&route.stream));
        if !within.is_zero() {
            // What is left then is taken back.
            let _ = tokio::time::timeout(within, futures::future::join_all(sent)).await;
        }
        for shard in &route.shards {
            shard.lane.purge(&route.stream);
        }
        drop(tickets);
    }

    /// A reader ended by itself.
    pub(super) async fn ended(&mut self, reader: Arc<Reader>, end: End) {
        let channel = reader.channel.clone();
        match &reader.scope {
            Scope::One(route) => {
                let id = route.source;
                let key = (channel.clone(), id);
                // Another one may be in its place already.
                if !self
                    .catching
                    .get(&key)
                    .is_some_and(|r| Arc::ptr_eq(r, &reader))
                {
                    return;
                }
                match end {
                    End::Joined => {
                        self.catching.remove(&key);
                        self.stored.detached.remove(&key);
                    }
                    End::Dropped => {
                        self.catching.remove(&key);
                        self.stored.detached.remove(&key);
                        let change = Change::DeleteDetached {
                            task: self.ctx.spec.id.clone(),
                            channel,
                            collection: id,
                        };
                        self.ctx.commit(vec![change]).await;
                    }
                    End::Lost(lost) => {
                        self.take_off(id).await;
                        self.lost(id, &[lost]);
                    }
                    End::BrokeOff => {
                        self.take_off(id).await;
                        self.failed(id, broke_off("the reader of this collection"));
                    }
                    End::Stopped => {}
                }
            }
            Scope::Main => {
                if !self
                    .mains
                    .get(&channel)
                    .is_some_and(|r| Arc::ptr_eq(r, &reader))
                {
                    return;
                }
                let lost = match end {
                    End::Lost(lost) => Some(lost),
                    End::BrokeOff => None,
                    End::Stopped | End::Joined | End::Dropped => return,
                };
                let ids = reader.collections(&*reader.gate.lock().await);
                for id in ids {
                    self.take_off(id).await;
                    match &lost {
                        Some(lost) => self.lost(id, std::slice::from_ref(lost)),
                        None => self.failed(id, broke_off("the reader of its channel")),
                    }
                }
                self.mains.remove(&channel);
                // Those that were on their way to it go on to its successor.
                let coming: Vec<_> = self
                    .catching
                    .keys()
                    .filter(|(on, _)| *on == channel)
                    .map(|(_, id)| *id)
                    .collect();
                for id in coming {
                    self.take_off(id).await;
                    // From where it goes on the queue holds no more than from where its main reader would have: its own
                    // reader, which ends here, would have found that.
                    let place = self.stored.detached.get(&(channel.clone(), id));
                    if let (Some(place), Some(lost)) = (place, &lost)
                        && let SourceError::PositionLost { wanted, .. } = lost
                        && place.position <= *wanted
                    {
                        self.lost(id, std::slice::from_ref(lost));
                        continue;
                    }
                    let why = format!("the reader of {channel} has ended");
                    let hint = "goes on by itself";
                    self.failed(id, Problem::new(ErrorClass::Transient, why, hint));
                }
                self.ctx.durable.lock().channel_ends(&channel);
                let change = Change::DeleteChannel {
                    task: self.ctx.spec.id.clone(),
                    channel,
                };
                self.ctx.commit(vec![change]).await;
            }
        }
    }

    pub(super) async fn take_off(&mut self, id: CollectionId) {
        let route = self.entries.get_mut(&id).and_then(|e| e.route.take());
        if let Some(route) = route {
            self.detach(id, &route).await;
        }
    }
}
