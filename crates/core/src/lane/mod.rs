//! One lane per target physical channel: what is sent there, in which calls, and which tick may follow.
//!
//! The lane's queue holds messages, and marks that say "this reader has passed source tick T". Rows do not wait for
//! ticks: they go out as they come. A tick goes out when every reader that holds this lane's time has passed it.
//!
//! # A call is an optional tick, then rows above it
//!
//! A tick never follows rows in one call, it leads the next call (or goes alone, when nothing waits). So a call whose
//! outcome is unknown can be repeated as it is, or in parts, with the same message ids and timestamps: between its first copy and its
//! second there is no tick that a reader of the target would count (a tick that was seen already is skipped), and within
//! one stretch between ticks the target drops a message id that it has seen. What remains is the copy that arrives
//! late: no later tick is sent before the deadline of every call of unknown outcome has passed.
//!
//! A tick that was acknowledged and is only said again, to wake the target's readers, is no such call: it says nothing,
//! whenever it arrives.

mod state;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backoff::Backoff;
use crate::error::{ErrorClass, Problem};
use crate::ids::PChannel;
use crate::lead::Lead;
use crate::route::encode::{self, Entry};
use crate::route::tsmap::TsMap;
use crate::target::hub::{Hub, store_problem};
use crate::target::{TargetError, carried_out_within};
use crate::task::Mode;
use crate::tso::Tso;

use state::{Call, State};
pub use state::{EdgeId, Outgoing};
pub use stream::{Budget, Cell, Origin, Poison, Sent, StreamCtl, Ticket};

/// F is raised this far ahead at least, so that it is written at most a few times a second.
const FLOOR_LEAD: Duration = Duration::from_millis(500);
/// With less than this part left of the lead, F is raised again while calls go on: none of them waits for the disk.
const FLOOR_LOW: f64 = 0.5;
/// With less than this part left, it is raised with that of another lane.
const FLOOR_USED: f64 = 0.75;
/// The target gives out segments for two seconds of its own time and refuses inserts beyond them ("failRemainRequest").
/// Inserts further ahead than this wait.
const AHEAD: Duration = Duration::from_millis(1500);
/// A wait for the target's clock of more than this is said to people.
const SKEW: Duration = Duration::from_secs(3);
/// How often the target's readers are woken while they may be behind.
const WAKE_EVERY: Duration = Duration::from_millis(5);
/// How often a refused call is repeated before its messages are tried one by one, and a refused message before it counts
/// as refused.
const REFUSALS: u32 = 3;
/// A message that is refused for no clear reason is kept for this long before its stream fails.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(30);

/// One lane. Its task ends when the last handle is dropped.
pub struct Lane {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    channel: PChannel,
    mode: Mode,
    state: Mutex<State>,
    wake: Notify,
    /// Told when a call with messages is done.
    over: Notify,
    problem: Mutex<Option<Problem>>,
    /// No tick before: a call of unknown outcome may still arrive.
    quiet_until: Mutex<Instant>,
    floor: Arc<Floor>,
}

impl Lane {
    pub(crate) fn spawn(hub: Arc<Hub>, channel: PChannel, floor: Tso) -> Arc<Self> {
        let quiet_until = hub.quiet_until(&channel);
        let mut state = State::new(floor);
        if hub.was_cut_off() {
            state.may_be_far_behind();
        }
        let shared = Arc::new(Shared {
            channel,
            mode: hub.mode,
            state: Mutex::new(state),
            wake: Notify::new(),
            over: Notify::new(),
            problem: Mutex::default(),
            quiet_until: Mutex::new(quiet_until),
            floor: Arc::new(Floor::new(floor)),
        });
        let stop = CancellationToken::new();
        let sender = Sender {
            hub,
            shared: shared.clone(),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = sender.run() => {}
                () = stopped.cancelled() => {}
            }
        });
        Arc::new(Self {
            shared,
            _stop: stop.drop_guard(),
        })
    }

    pub fn channel(&self) -> &PChannel {
        &self.shared.channel
    }

    /// A reader begins to feed this lane, having passed source tick `tick`. If it `holds`, no tick above what it passed
    /// is sent. Rows of its collections that are there already have timestamps up to `floor`, or were sent here.
    pub fn join(&self, tick: Tso, holds: bool, floor: Tso) -> EdgeId {
        self.shared.state.lock().join(tick, holds, floor)
    }

    /// No tick before this moment: until then a call of an earlier process may still be carried out.
    pub fn hush(&self, until: Instant) {
        let mut quiet = self.shared.quiet_until.lock();
        *quiet = until.max(*quiet);
    }

    /// A reader no longer feeds this lane. What it pushed is sent, and until then it holds what it held.
    pub fn leave(&self, edge: EdgeId) {
        self.shared.state.lock().leave(edge);
        self.shared.wake.notify_one();
    }

    /// Lets a reader hold this lane's time, or hold it no longer once what it pushed is acknowledged.
    pub fn set_holds(&self, edge: EdgeId, holds: bool) {
        self.shared.state.lock().set_holds(edge, holds);
        self.shared.wake.notify_one();
    }

    /// Whether what is sent here gets its times from the target: it has to come in the order of the source's times, and no
    /// tick is sent.
    pub fn is_plain(&self) -> bool {
        self.shared.mode == Mode::Plain
    }

    /// Whether what this reader sends next, all of it above source tick `tick`, may keep its source timestamps.
    pub fn is_natural(&self, edge: EdgeId, tick: Tso) -> bool {
        self.shared.state.lock().is_natural(edge, tick)
    }

    /// Whether no message waits here or is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.state.lock().is_idle()
    }

    /// Whether a tick has shown what this reader has raised, and what it joined above.
    pub(crate) fn is_shown(&self, edge: EdgeId) -> bool {
        self.shared.state.lock().is_shown(edge)
    }

    /// Re-stamps a whole stretch of a reader above the lane's time; `in_doubt`: also above everything ever sent here.
    /// Until [`Lane::passed`] is called for the stretch, no tick goes above its first message.
    pub fn raise(&self, edge: EdgeId, sources: Vec<u64>, in_doubt: bool) -> TsMap {
        self.shared.state.lock().raise(edge, sources, in_doubt)
    }

    /// Whether a call whose answer was not seen may still be carried out, or one with messages is under way.
    pub fn is_hushed(&self) -> bool {
        *self.shared.quiet_until.lock() > Instant::now() || self.shared.state.lock().under_way
    }

    /// Until then a call whose answer was not seen may be carried out.
    pub(crate) fn quiet_until(&self) -> Instant {
        *self.shared.quiet_until.lock()
    }

    /// Whether all is sent, ticks may go, and something waits for one all the same.
    pub(crate) fn waits_for_a_tick(&self) -> bool {
        !self.is_hushed() && self.shared.state.lock().waits_for_a_tick()
    }

    /// The last tick sent.
    pub fn last_tick(&self) -> Tso {
        self.shared.state.lock().last_tick
    }

    /// The largest target timestamp that was acknowledged; at the start F.
    pub(crate) fn max_acknowledged(&self) -> Tso {
        self.shared.state.lock().max_acknowledged
    }

    /// The last tick that was acknowledged; zero before the first.
    pub(crate) fn acknowledged_tick(&self) -> Tso {
        self.shared.state.lock().acknowledged_tick
    }

    /// The oldest row that is acknowledged and that no tick has shown yet, as a target timestamp: the source's own, or a
    /// later one where it was raised.
    pub(crate) fn hidden(&self) -> Option<Tso> {
        self.shared.state.lock().hidden
    }

    pub fn push(&self, message: Outgoing) {
        self.shared.state.lock().push(message);
        self.shared.wake.notify_one();
    }

    /// This reader has pushed everything up to source tick `tick`.
    pub fn passed(&self, edge: EdgeId, tick: Tso) {
        self.shared.state.lock().passed(edge, tick);
        self.shared.wake.notify_one();
    }

    /// Takes back what waits here of a stream. Only after the store says where that stream goes on.
    pub fn purge(&self, stream: &Arc<StreamCtl>) {
        let taken = self.shared.state.lock().purge(stream);
        drop(taken);
        self.shared.wake.notify_one();
    }

    /// Waits until the call with messages that is under way is done, if there is one.
    pub(crate) async fn until_idle(&self) {
        let over = self.shared.over.notified();
        tokio::pin!(over);
        over.as_mut().enable();
        if self.shared.state.lock().under_way {
            over.await;
        }
    }

    /// Waits until nothing of a stream that gets no more messages is on its way: then no tick shows a part of it.
    pub(crate) async fn until_sent(&self, stream: &Arc<StreamCtl>) {
        let waits = || self.shared.state.lock().holds(stream);
        loop {
            while waits() {
                let over = self.shared.over.notified();
                tokio::pin!(over);
                over.as_mut().enable();
                if waits() {
                    over.await;
                }
            }
            // The last of them may be in hand. A call that is given back puts them into the queue again.
            self.until_idle().await;
            if !waits() {
                return;
            }
        }
    }

    /// Where F would soon have to be raised, and to what: done with another lane's.
    pub(crate) fn raise_too(&self, clock: Tso) -> Option<(Tso, Raising)> {
        let floor = &self.shared.floor;
        let used = Tso(floor.used.load(Ordering::Acquire));
        if used == Tso::ZERO || !floor.is_low(used, FLOOR_USED) {
            return None;
        }
        let to = floor.lead.lock().above(used, clock);
        let more = to > floor.on_disk();
        let raising = if more { floor.begin() } else { None };
        raising.map(|raising| (to, raising))
    }

    /// What keeps this lane from sending, while it lasts.
    pub fn problem(&self) -> Option<Problem> {
        self.shared.problem.lock().clone()
    }
}

/// A way into a lane for one stream alone. Dropped, it takes back what is not sent.
pub(crate) struct Way {
    pub(crate) lane: Arc<Lane>,
    pub(crate) edge: EdgeId,
    pub(crate) stream: Arc<StreamCtl>,
}

impl Drop for Way {
    fn drop(&mut self) {
        // Nothing is left of what was sent; of what was not, nobody waits for it any more.
        self.lane.purge(&self.stream);
        self.lane.leave(self.edge);
    }
}

/// How many of these messages have up to `limit` bytes, one at least, and how many bytes they have.
fn first(messages: &[Outgoing], limit: usize) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for message in messages {
        if count > 0 && bytes + message.bytes.len() > limit {
            break;
        }
        count += 1;
        bytes += message.bytes.len();
    }
    (count, bytes)
}

/// F as it is on disk, and how it is raised.
struct Floor {
    on_disk: AtomicU64,
    /// The largest timestamp that was sent, or is about to be.
    used: AtomicU64,
    /// A commit of a larger F is on its way.
    raising: AtomicBool,
    lead: Mutex<Lead>,
}

impl Floor {
    fn new(on_disk: Tso) -> Self {
        Self {
            on_disk: AtomicU64::new(on_disk.0),
            used: AtomicU64::new(0),
            raising: AtomicBool::new(false),
            lead: Mutex::new(Lead::new(FLOOR_LEAD)),
        }
    }

    fn on_disk(&self) -> Tso {
        Tso(self.on_disk.load(Ordering::Acquire))
    }

    fn is_low(&self, ts: Tso, part: f64) -> bool {
        self.lead.lock().is_low(ts, self.on_disk(), part)
    }

    /// If no commit of it is on its way.
    fn begin(self: &Arc<Self>) -> Option<Raising> {
        let begun = !self.raising.swap(true, Ordering::AcqRel);
        begun.then(|| Raising(self.clone()))
    }
}

/// A larger F on its way to the disk. Dropped, it is there, or it is not on its way any more.
pub(crate) struct Raising(Arc<Floor>);

impl Raising {
    /// It is on disk.
    pub(crate) fn done(self, to: Tso) {
        self.0.on_disk.fetch_max(to.0, Ordering::AcqRel);
    }
}

impl Drop for Raising {
    fn drop(&mut self) {
        self.0.raising.store(false, Ordering::Release);
    }
}

struct Sender {
    hub: Arc<Hub>,
    shared: Arc<Shared>,
}

impl Sender {
    async fn run(mut self) {
        loop {
            let quiet_until = *self.shared.quiet_until.lock();
            let may_tick = Instant::now() >= quiet_until;
            let limit = self.hub.flow.call_limit();
            let call = self.shared.state.lock().gather(may_tick, limit);
            let Some(call) = call else {
                let behind = !self.is_plain() && self.shared.state.lock().may_be_behind();
                tokio::select! {
                    () = self.shared.wake.notified() => {}
                    () = tokio::time::sleep_until(quiet_until), if !may_tick => {}
                    () = tokio::time::sleep(WAKE_EVERY), if behind => {
                        let tick = self.shared.state.lock().wake_up();
                        // Says nothing that was not said: whether it arrives does not matter.
                        if let Some(tick) = tick && self.say_again(tick).await.is_err() {
                            self.shared.state.lock().may_be_far_behind();
                            tokio::time::sleep(Duration::from_millis(200)).await;
                        }
                    }
                }
                continue;
            };
            self.deliver(call).await;
            self.shared.over.notify_waiters();
        }
    }

    fn is_plain(&self) -> bool {
        self.shared.mode == Mode::Plain
    }

    /// Sends a call until it is acknowledged, or its messages are given back because their stream failed.
    async fn deliver(&mut self, call: Call) {
        // What a target without ticks has answered can be read: its tick says so here, and goes nowhere.
        let own_tick = call.tick.filter(|_| !self.is_plain());
        if !self.is_plain() {
            self.reserve(call.max_ts()).await;
        }
        if call.messages.is_empty() && own_tick.is_none() {
            self.shared.state.lock().acknowledged(call);
            return;
        }
        let mut backoff = Backoff::new();
        let (mut refused, mut tick, mut sent) = (0, own_tick, 0);
        while tick.is_some() || sent < call.messages.len() {
            // All of it, unless calls have become smaller since: one whose outcome is not known may be repeated in
            // parts, for there is no other tick between them.
            let error = match self.send(tick, &call.messages[sent..]).await {
                Ok(more) => {
                    (tick, sent) = (None, sent + more);
                    continue;
                }
                Err(TargetError::Unfinished { .. }) => continue,
                Err(error) => error,
            };
            self.report(&error);
            if matches!(
                error,
                TargetError::Unreachable { .. } | TargetError::Unknown { .. }
            ) {
                self.shared.state.lock().may_be_far_behind();
            }
            if self.is_plain() && error.is_not_found() {
                return self.leave(call, sent, &error);
            }
            // With a tick alone nothing of ours can be wrong.
            if error.is_about_messages() && !call.messages.is_empty() {
                refused += 1;
                if refused >= REFUSALS {
                    return self.one_by_one(call, tick, sent).await;
                }
            }
            backoff.wait().await;
        }
        *self.shared.problem.lock() = None;
        self.shared.state.lock().acknowledged(call);
    }

    /// What the messages are for is not there under its name, and what will be there is something else: their streams look
    /// anew. The first `sent` of them are done.
    fn leave(&self, mut call: Call, sent: usize, error: &TargetError) {
        let kept = call.messages.split_off(sent);
        for message in &kept {
            message.stream.fail(error.problem());
        }
        *self.shared.problem.lock() = None;
        self.shared.state.lock().give_back(call, kept);
    }

    /// Finds the messages the target does not take: a call with one of them writes nothing. Those it says are wrong fail
    /// their streams; those it refuses for no clear reason are kept, with what follows them in their streams, and fail
    /// them after a while. The others go out.
    ///
    /// `tick`: if it is not acknowledged yet; the first `sent` messages are.
    async fn one_by_one(&mut self, mut call: Call, tick: Option<Tso>, sent: usize) {
        if let Some(tick) = tick {
            let mut backoff = Backoff::new();
            while let Err(error) = self.send(Some(tick), &[]).await {
                self.report(&error);
                backoff.wait().await;
            }
        }
        let mut messages = std::mem::take(&mut call.messages);
        let rest = messages.split_off(sent);
        let mut sent = messages;
        let mut kept: Vec<Outgoing> = Vec::new();
        for message in rest {
            let behind = kept.iter().any(|k| Arc::ptr_eq(&k.stream, &message.stream));
            if behind || message.stream.failed() || !self.send_one(&message).await {
                kept.push(message);
            } else {
                sent.push(message);
            }
        }
        call.messages = sent;
        *self.shared.problem.lock() = None;
        let again = kept.iter().any(|m| !m.stream.failed());
        self.shared.state.lock().give_back(call, kept);
        if again {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whether the target took it.
    async fn send_one(&mut self, message: &Outgoing) -> bool {
        let mut backoff = Backoff::new();
        let mut refused = 0;
        loop {
            let error = match self.send(None, std::slice::from_ref(message)).await {
                Ok(_) => return true,
                Err(TargetError::Unfinished { .. }) => continue,
                Err(error) => error,
            };
            self.report(&error);
            if self.is_plain() && error.is_not_found() {
                message.stream.fail(error.problem());
                return false;
            }
            if error.is_about_messages() {
                refused += 1;
            }
            if refused >= REFUSALS {
                // Tried again from its record, ever more rarely, unless a person says skip.
                let stream = &message.stream;
                let since = stream.suspect(&self.shared.channel, message.origin.as_ref());
                if error.class() == ErrorClass::Data || since.elapsed() > REFUSAL_PATIENCE {
                    stream.fail(error.problem());
                }
                return false;
            }
            backoff.wait().await;
        }
    }

    /// Sends a tick that was acknowledged before. Whenever it arrives, it says nothing: no later tick waits for it.
    async fn say_again(&mut self, tick: Tso) -> Result<(), TargetError> {
        let entries = vec![encode::tick(tick, self.hub.message_id()).into()];
        let target = &self.hub.target;
        target
            .replicate(&self.shared.channel, entries, tick, tick)
            .await
    }

    /// Sends the tick and the messages, or as many of these as may go at once: how many.
    async fn send(
        &mut self,
        tick: Option<Tso>,
        messages: &[Outgoing],
    ) -> Result<usize, TargetError> {
        if self.is_plain() {
            self.until_ended().await;
        } else {
            self.until_near(messages).await?;
        }
        let mut count = messages.len();
        let place = self
            .hub
            .flow
            .enter(|limit| {
                let bytes;
                (count, bytes) = first(messages, limit);
                bytes
            })
            .await;
        let messages = &messages[..count];
        let mut entries: Vec<Entry> = Vec::with_capacity(messages.len() + 1);
        if let Some(tick) = tick {
            entries.push(encode::tick(tick, self.hub.message_id()).into());
        }
        entries.extend(messages.iter().map(|m| m.bytes.clone()));
        let end = messages
            .iter()
            .map(|m| m.ts)
            .max()
            .or(tick)
            .unwrap_or_default();
        let begin = tick
            .or_else(|| messages.iter().map(|m| m.ts).min())
            .unwrap_or_default();
        let until = Instant::now() + carried_out_within(self.hub.call_timeout);
        // Dropped without an answer, it leaves word for the next lane to this channel.
        let unanswered = self.hub.unanswered(&self.shared.channel, until);
        let result = self
            .hub
            .target
            .replicate(&self.shared.channel, entries, begin, end)
            .await;
        place.over(result.is_ok(), self.hub.call_timeout);
        match &result {
            Err(error) if error.outcome_unknown() => {
                let mut quiet = self.shared.quiet_until.lock();
                *quiet = until.max(*quiet);
            }
            _ => unanswered.answered(),
        }
        result.map(|()| count)
    }

    /// F on disk at or above `ts` before `ts` is sent.
    async fn reserve(&mut self, ts: Tso) {
        let floor = &self.shared.floor;
        floor.used.fetch_max(ts.0, Ordering::AcqRel);
        if ts <= floor.on_disk() {
            if floor.is_low(ts, FLOOR_LOW)
                && let Some(raising) = floor.begin()
            {
                self.raise_ahead(ts, raising);
            }
            return;
        }
        let to = floor.lead.lock().raise(ts, self.hub.clock());
        let mut backoff = Backoff::new();
        loop {
            match self.hub.raise_floor(&self.shared.channel, to).await {
                Ok(()) => break,
                Err(error) => *self.shared.problem.lock() = Some(store_problem(error)),
            }
            backoff.wait().await;
        }
        floor.on_disk.fetch_max(to.0, Ordering::AcqRel);
    }

    /// Commits a larger F beside the calls. If that fails, the next call above F waits for one that does not.
    fn raise_ahead(&self, ts: Tso, raising: Raising) {
        let (hub, channel) = (self.hub.clone(), self.shared.channel.clone());
        let to = raising.0.lead.lock().raise(ts, hub.clock());
        tokio::spawn(async move {
            if hub.raise_floor(&channel, to).await.is_ok() {
                raising.done(to);
            }
        });
    }

    /// Waits until no call whose answer was not seen can be carried out any more: behind what is sent next it would bring
    /// its rows a second time.
    async fn until_ended(&self) {
        loop {
            let quiet_until = *self.shared.quiet_until.lock();
            if quiet_until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(quiet_until).await;
        }
    }

    /// Waits until the target's clock has come near the inserts of a call.
    ///
    /// The end of a request is what the target chooses the rows' segment by: it takes one that stays open until then.
    /// With an earlier end a row could go into a segment that is sealed and written out before the row's own time has
    /// passed, and be lost. So the end is never less than the rows' times, and rows too far ahead wait: nobody could
    /// query them before that time anyway.
    async fn until_near(&self, messages: &[Outgoing]) -> Result<(), TargetError> {
        let Some(end) = messages.iter().filter(|m| m.is_insert).map(|m| m.ts).max() else {
            return Ok(());
        };
        loop {
            let ahead = self.hub.now().await?.plus(AHEAD).behind(end);
            if ahead.is_zero() {
                return Ok(());
            }
            if ahead > SKEW {
                let why = format!(
                    "{}: rows are {:.1} s ahead of the target's clock and wait for it",
                    self.shared.channel,
                    (ahead + AHEAD).as_secs_f64()
                );
                let hint = "set the clocks of source and target alike (NTP)";
                let problem = Problem::new(ErrorClass::Transient, why, hint);
                *self.shared.problem.lock() = Some(problem);
            }
            tokio::time::sleep(ahead.min(Duration::from_secs(1))).await;
        }
    }

    fn report(&self, error: &TargetError) {
        let problem = error.problem();
        let mut current = self.shared.problem.lock();
        if current.as_ref() != Some(&problem) {
            tracing::warn!(channel = %self.shared.channel, class = %problem.class, "{problem}");
            *current = Some(problem);
        }
    }
}

#[cfg(test)]
mod tests;
