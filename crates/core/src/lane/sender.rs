//! What a lane's task does: one call after the other, each until it is acknowledged or its streams have failed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::floor::{FLOOR_LOW, Raising};
use super::state::{Call, Outgoing};
use crate::backoff::Backoff;
use crate::error::{ErrorClass, Problem};
use crate::route::encode::{self, Entry};
use crate::target::hub::{Hub, store_problem};
use crate::target::{TargetError, carried_out_within};
use crate::task::Mode;
use crate::tso::Tso;

/// The target gives out segments for two seconds of its own time and refuses inserts beyond them ("failRemainRequest").
/// Inserts further ahead than this wait.
const AHEAD: Duration = Duration::from_millis(1500);
/// A wait for the target's clock of more than this is said to people.
const SKEW: Duration = Duration::from_secs(3);
/// How often the target's readers are woken while they may be behind.
const WAKE_EVERY: Duration = Duration::from_millis(5);
/// A target flushes by itself what it has for so long (`dataNode.segment.syncPeriod`, 600 s).
const FLUSHED_WITHIN: Duration = Duration::from_secs(660);
/// How often a refused call is repeated before its messages are tried one by one, and a refused message before it counts
/// as refused.
const REFUSALS: u32 = 3;
/// A message that is refused for no clear reason is kept for this long before its stream fails.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Sender {
    pub(super) hub: Arc<Hub>,
    pub(super) shared: Arc<Shared>,
}

impl Sender {
    pub(super) async fn run(mut self) {
        let mut since = Instant::now();
        loop {
            if since.elapsed() > FLUSHED_WITHIN {
                since = Instant::now();
                self.shared.state.lock().flushes();
            }
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
