//! The lane without its I/O: the queue, who holds time, which tick is due.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::stream::{Origin, StreamCtl, Ticket};
use crate::ids::PartitionId;
use crate::route::encode::Entry;
use crate::route::tsmap::TsMap;
use crate::tso::Tso;

/// With no rows waiting to be shown, ticks are this far apart: within what F is raised ahead, so that no row that comes
/// after a pause waits for the disk.
const IDLE_TICK: Duration = Duration::from_millis(400);

/// What a consumer of a RocksMQ takes at least when it hears of a message (`mq.mqBufSize`, 16 by default), and what it
/// may leave until it hears of the next one: see [`State::unheard`].
const HEARD: usize = 16;
const MOST_UNHEARD: usize = 32 << 10;
/// The same where one begins anew, at a flush.
const MOST_READ_AGAIN: usize = 512 << 10;
/// What is reckoned with where others wrote before: bursts that were cut off, or a target that came back.
const UNKNOWN_UNHEARD: usize = 16 << 10;

/// A reader's connection to a lane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EdgeId(u64);

/// A message on its way.
#[derive(Debug)]
pub struct Outgoing {
    pub stream: Arc<StreamCtl>,
    pub bytes: Entry,
    /// Its largest target timestamp.
    pub ts: Tso,
    pub rows: u64,
    pub is_insert: bool,
    /// Whose rows they are, if of one partition: the target's id.
    pub partition: Option<PartitionId>,
    /// The source message it was made of: what a person may say skip to.
    pub origin: Option<Origin>,
    pub ticket: Option<Ticket>,
    /// Told when the message and a tick at or above it are acknowledged.
    pub ticked: Option<oneshot::Sender<Ticket>>,
}

/// What becomes true once everything that stands before it in the queue is acknowledged.
#[derive(Clone, Copy, Debug)]
enum Mark {
    /// This reader has pushed everything up to this source tick, and all of the stretches it raised up to this one.
    Passed(EdgeId, Tso, u64),
    /// This reader holds no longer, if it did not begin to hold again (its generation is still this one).
    Release(EdgeId, u64),
    Leave(EdgeId),
}

#[derive(Debug)]
enum Item {
    Message(Outgoing),
    Mark(Mark),
}

#[derive(Debug)]
struct Edge {
    /// No tick above what it passed is sent.
    holds: bool,
    /// It may send with its source timestamps: ends at once when it is to hold no longer, while `holds` ends only when
    /// what it pushed with source timestamps is acknowledged.
    natural: bool,
    /// Counts the times it began to hold.
    generation: u64,
    /// Source tick up to which everything of this reader is acknowledged here.
    tick: Tso,
    /// Everything it may replace or delete lies at or below: nothing of it is sent at or below, except naturally.
    raised: Tso,
    /// Stretches that are raised but not acknowledged as a whole yet, oldest first: the first target timestamp of each,
    /// and its number.
    open: VecDeque<(Tso, u64)>,
    /// The number of the last stretch that was raised.
    stretches: u64,
}

/// What goes out at once.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// Leads the messages, all of which are above it.
    pub(super) tick: Option<Tso>,
    pub(super) messages: Vec<Outgoing>,
    /// What is true once the messages are acknowledged.
    marks: Vec<Mark>,
}

impl Call {
    pub(super) fn max_ts(&self) -> Tso {
        self.messages
            .iter()
            .map(|m| m.ts)
            .max()
            .max(self.tick)
            .unwrap_or_default()
    }
}

#[derive(Debug)]
pub(super) struct State {
    /// The largest tick that was sent, or tried.
    pub(super) last_tick: Tso,
    pub(super) acknowledged_tick: Tso,
    /// The largest timestamp that was given to a message or tick.
    max_sent: Tso,
    /// The largest timestamp that was acknowledged.
    pub(super) max_acknowledged: Tso,
    /// The smallest acknowledged row that no tick has shown yet.
    pub(super) hidden: Option<Tso>,
    edges: BTreeMap<EdgeId, Edge>,
    next_edge: u64,
    queue: VecDeque<Item>,
    waiting: Vec<(Tso, oneshot::Sender<Ticket>, Option<Ticket>)>,
    /// A call with messages was gathered and is not done: it is being sent, or about to be.
    pub(super) under_way: bool,
    /// Messages on the channel that the target's own readers may not have taken yet.
    ///
    /// A consumer of 2.3.5's RocksMQ is woken by each message, takes as many as its buffer holds (16), and the rest when
    /// the next one wakes it. After a burst on a busy machine it is left behind by thousands, and comes back at 16 for
    /// each tick: minutes (seen). So a burst is followed by ticks that say nothing new, for as long as it may need them.
    unheard: usize,
    /// What was written to the channel since the last call of [`State::flushes`], and before that since the last but one;
    /// at the beginning by an earlier process.
    written: usize,
    written_before: usize,
}

impl State {
    pub(super) fn new(floor: Tso) -> Self {
        Self {
            last_tick: floor,
            acknowledged_tick: Tso::ZERO,
            max_sent: floor,
            max_acknowledged: floor,
            hidden: None,
            edges: BTreeMap::new(),
            next_edge: 0,
            queue: VecDeque::new(),
            waiting: Vec::new(),
            under_way: false,
            unheard: 0,
            written: 0,
            written_before: UNKNOWN_UNHEARD,
        }
    }

    /// Nothing is left to send, and something waits until it is shown.
    pub(super) fn waits_for_a_tick(&self) -> bool {
        self.queue.is_empty() && !self.waiting.is_empty()
    }

    /// The tick that wakes the target's readers once more, if they may need it: one that was there for sure. Any other
    /// would say something.
    pub(super) fn wake_up(&mut self) -> Option<Tso> {
        if !self.may_be_behind() {
            return None;
        }
        self.unheard = self.unheard.saturating_sub(HEARD);
        self.written = self.written.saturating_add(1);
        Some(self.acknowledged_tick)
    }

    pub(super) fn may_be_behind(&self) -> bool {
        self.unheard > 0 && self.acknowledged_tick > Tso::ZERO
    }

    /// A reader of the target has begun anew, at its last flush: everything that was written since may be before it.
    pub(super) fn is_read_again(&mut self) {
        let all = self.written.saturating_add(self.written_before);
        self.unheard = self.unheard.max(all.min(MOST_READ_AGAIN));
    }

    /// What was written two calls ago is flushed by now.
    pub(super) fn flushes(&mut self) {
        self.written_before = std::mem::take(&mut self.written);
    }

    /// The target was away, or an earlier process was cut off: how far its readers are behind is not known.
    pub(super) fn may_be_far_behind(&mut self) {
        self.unheard = self.unheard.max(UNKNOWN_UNHEARD);
    }

    /// `floor`: rows that this reader may replace or delete can be as new as this. Those that an earlier reader of the
    /// same collection sent here are at or below `max_sent`.
    pub(super) fn join(&mut self, tick: Tso, holds: bool, floor: Tso) -> EdgeId {
        let id = EdgeId(self.next_edge);
        self.next_edge += 1;
        self.edges.insert(
            id,
            Edge {
                holds,
                natural: holds,
                generation: 0,
                tick,
                raised: self.max_sent.max(floor),
                open: VecDeque::new(),
                stretches: 0,
            },
        );
        id
    }

    pub(super) fn leave(&mut self, id: EdgeId) {
        if let Some(edge) = self.edges.get_mut(&id) {
            edge.natural = false;
            self.queue.push_back(Item::Mark(Mark::Leave(id)));
        }
    }

    pub(super) fn set_holds(&mut self, id: EdgeId, holds: bool) {
        let Some(edge) = self.edges.get_mut(&id) else {
            return;
        };
        if holds {
            edge.generation += 1;
            (edge.holds, edge.natural) = (true, true);
        } else if edge.natural {
            edge.natural = false;
            // Not at once: what it pushed with source timestamps may still wait here, and no tick may pass it.
            let release = Mark::Release(id, edge.generation);
            self.queue.push_back(Item::Mark(release));
        }
    }

    pub(super) fn is_natural(&self, edge: EdgeId, tick: Tso) -> bool {
        // The order of the queue keeps edge.tick <= tick, so while it holds, no tick above `tick` is sent.
        self.edges.get(&edge).is_some_and(|e| {
            e.natural && e.open.is_empty() && tick >= self.last_tick && tick >= e.raised
        })
    }

    /// Whether a tick has shown what this reader has raised, and what it joined above.
    pub(super) fn is_shown(&self, edge: EdgeId) -> bool {
        let edge = self.edges.get(&edge);
        edge.is_some_and(|e| self.acknowledged_tick >= e.raised)
    }

    pub(super) fn raise(&mut self, id: EdgeId, sources: Vec<u64>, in_doubt: bool) -> TsMap {
        let Some(edge) = self.edges.get_mut(&id) else {
            return TsMap::raise(sources, self.max_sent);
        };
        let mut floor = self.last_tick.max(edge.raised);
        if in_doubt {
            floor = floor.max(self.max_sent);
        }
        let map = TsMap::raise(sources, floor);
        if let Some((first, last)) = map.range() {
            edge.raised = last;
            edge.stretches += 1;
            edge.open.push_back((first, edge.stretches));
            self.max_sent = self.max_sent.max(last);
        }
        map
    }

    /// Whether messages of a stream wait here.
    pub(super) fn holds(&self, stream: &Arc<StreamCtl>) -> bool {
        let is = |item: &Item| matches!(item, Item::Message(m) if Arc::ptr_eq(&m.stream, stream));
        self.queue.iter().any(is)
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.under_way && !self.queue.iter().any(|i| matches!(i, Item::Message(_)))
    }

    pub(super) fn push(&mut self, message: Outgoing) {
        // Its place is on disk already, before this message.
        if message.stream.released() {
            return;
        }
        self.max_sent = self.max_sent.max(message.ts);
        self.queue.push_back(Item::Message(message));
    }

    pub(super) fn passed(&mut self, id: EdgeId, tick: Tso) {
        let Some(stretches) = self.edges.get(&id).map(|e| e.stretches) else {
            return;
        };
        // Of marks with no message between them the last one of a reader counts: they do not pile up while a call is
        // stuck.
        for item in self.queue.iter_mut().rev() {
            match item {
                Item::Mark(Mark::Passed(of, at, up_to)) if *of == id => {
                    (*at, *up_to) = (tick, stretches);
                    return;
                }
                Item::Mark(_) => {}
                Item::Message(_) => break,
            }
        }
        self.queue
            .push_back(Item::Mark(Mark::Passed(id, tick, stretches)));
    }

    pub(super) fn purge(&mut self, stream: &Arc<StreamCtl>) -> Vec<Outgoing> {
        stream.release();
        self.take_out(|m| Arc::ptr_eq(&m.stream, stream))
    }

    /// Takes out the rows of a partition that wait here.
    pub(super) fn drop_rows(&mut self, partition: PartitionId) -> Vec<Outgoing> {
        self.take_out(|m| m.partition == Some(partition))
    }

    fn take_out(&mut self, is: impl Fn(&Outgoing) -> bool) -> Vec<Outgoing> {
        let mut taken = Vec::new();
        for item in std::mem::take(&mut self.queue) {
            match item {
                Item::Message(m) if is(&m) => taken.push(m),
                other => self.queue.push_back(other),
            }
        }
        taken
    }

    /// The next call, if there is anything to do: of one message, or of several with up to `limit` bytes.
    pub(super) fn gather(&mut self, may_tick: bool, limit: usize) -> Option<Call> {
        let mut call = Call {
            tick: if may_tick { self.due() } else { None },
            ..Call::default()
        };
        let mut size = 0;
        let mut stuck = VecDeque::new();
        while let Some(item) = self.queue.pop_front() {
            match item {
                // Its messages wait where they are until its owner takes them back.
                Item::Message(m) if m.stream.failed() => stuck.push_back(Item::Message(m)),
                Item::Message(m) => {
                    if size > 0 && size + m.bytes.len() > limit {
                        self.queue.push_front(Item::Message(m));
                        break;
                    }
                    size += m.bytes.len();
                    call.messages.push(m);
                }
                Item::Mark(mark) => call.marks.push(mark),
            }
        }
        while let Some(item) = stuck.pop_back() {
            self.queue.push_front(item);
        }
        if let Some(tick) = call.tick {
            self.last_tick = tick;
            self.max_sent = self.max_sent.max(tick);
        }
        self.under_way = !call.messages.is_empty();
        let nothing = call.tick.is_none() && call.messages.is_empty() && call.marks.is_empty();
        (!nothing).then_some(call)
    }

    pub(super) fn acknowledged(&mut self, call: Call) {
        self.under_way = false;
        let written = call.messages.len() + usize::from(call.tick.is_some());
        self.written = self.written.saturating_add(written);
        let most = self.unheard.max(MOST_UNHEARD);
        self.unheard = (self.unheard + written).saturating_sub(HEARD).min(most);
        if let Some(tick) = call.tick {
            self.max_acknowledged = self.max_acknowledged.max(tick);
            self.acknowledged_tick = self.acknowledged_tick.max(tick);
            if self.hidden.is_some_and(|ts| ts <= tick) {
                self.hidden = None;
            }
            let mut later = Vec::new();
            for (ts, waiter, ticket) in self.waiting.drain(..) {
                if ts > tick {
                    later.push((ts, waiter, ticket));
                } else if let Some(ticket) = ticket {
                    let _ = waiter.send(ticket);
                }
            }
            self.waiting = later;
        }
        for mut message in call.messages {
            self.max_acknowledged = self.max_acknowledged.max(message.ts);
            self.hidden = Some(self.hidden.map_or(message.ts, |ts| ts.min(message.ts)));
            message
                .stream
                .acknowledged(message.bytes.len(), message.rows);
            if let Some(waiter) = message.ticked.take() {
                self.waiting
                    .push((message.ts, waiter, message.ticket.take()));
            }
        }
        for mark in call.marks {
            self.apply(mark);
        }
    }

    fn apply(&mut self, mark: Mark) {
        match mark {
            Mark::Passed(id, tick, up_to) => {
                let Some(edge) = self.edges.get_mut(&id) else {
                    return;
                };
                edge.tick = edge.tick.max(tick);
                edge.open.retain(|(_, stretch)| *stretch > up_to);
            }
            Mark::Release(id, generation) => {
                if let Some(edge) = self.edges.get_mut(&id)
                    && edge.generation == generation
                {
                    edge.holds = false;
                }
            }
            Mark::Leave(id) => {
                self.edges.remove(&id);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn waiting_marks(&self) -> usize {
        self.queue
            .iter()
            .filter(|i| matches!(i, Item::Mark(_)))
            .count()
    }

    /// Part of a call is acknowledged, `kept` is not.
    pub(super) fn give_back(&mut self, mut call: Call, kept: Vec<Outgoing>) {
        // A message that will be tried again keeps the ticks from passing it; one of a stream that failed does not.
        let again = kept
            .iter()
            .any(|m| !m.stream.failed() && !m.stream.released());
        let marks = if again {
            std::mem::take(&mut call.marks)
        } else {
            Vec::new()
        };
        self.acknowledged(call);
        for mark in marks.into_iter().rev() {
            self.queue.push_front(Item::Mark(mark));
        }
        // A stream that was taken back in the meantime goes on from its record.
        for message in kept.into_iter().rev().filter(|m| !m.stream.released()) {
            self.queue.push_front(Item::Message(message));
        }
    }

    /// The tick that may be sent now and is worth a call.
    fn due(&self) -> Option<Tso> {
        let held = self
            .edges
            .values()
            .filter(|e| e.holds)
            .map(|e| e.tick)
            .min();
        let open = self
            .edges
            .values()
            .filter_map(|e| e.open.front().map(|(first, _)| *first))
            .min()
            .map(|ts| Tso(ts.0.saturating_sub(1)));
        let tick = match held {
            Some(tick) => tick,
            // Nobody's source time counts here: show what was sent.
            None => self.max_acknowledged,
        };
        let tick = open.map_or(tick, |open| open.min(tick));
        let worth = self.hidden.is_some_and(|ts| ts <= tick)
            || self.waiting.iter().any(|(ts, ..)| *ts <= tick)
            || self.last_tick.behind(tick) >= IDLE_TICK;
        (tick > self.last_tick && worth).then_some(tick)
    }
}
