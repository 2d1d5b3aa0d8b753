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

mod floor;
mod sender;
mod state;
mod stream;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::Problem;
use crate::ids::{PChannel, PartitionId};
use crate::route::tsmap::TsMap;
use crate::target::hub::Hub;
use crate::task::Mode;
use crate::tso::Tso;

pub(crate) use floor::Raising;
use floor::{FLOOR_USED, Floor};
use sender::Sender;
use state::State;
pub use state::{EdgeId, Outgoing};
pub use stream::{Budget, Cell, Origin, Poison, Sent, StreamCtl, Ticket};

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
    /// is sent. Rows of its collections that are there already have timestamps up to `floor`, or up to F when this lane
    /// began, or were sent here.
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

    /// A reader of the target has begun on this channel, far behind: it is woken until it has all.
    pub(crate) fn is_read_again(&self) {
        self.shared.state.lock().is_read_again();
        self.shared.wake.notify_one();
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

    /// Leaves out the rows of a partition of the target that wait here: it is about to be dropped.
    pub(crate) fn drop_rows(&self, partition: PartitionId) {
        let taken = self.shared.state.lock().drop_rows(partition);
        drop(taken);
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

#[cfg(test)]
mod tests;
