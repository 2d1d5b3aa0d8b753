//! What a message in flight belongs to: its collection, its reader's books, the memory budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Problem;
use crate::ids::{CollectionId, PChannel};
use crate::position::Position;

/// A message of the source: its channel and its place there.
pub type Origin = (PChannel, Position);

/// A message that a stream stops at.
#[derive(Clone, Debug)]
pub struct Poison {
    pub channel: PChannel,
    pub position: Position,
    /// Its bytes, if they are at hand.
    pub payload: Option<Bytes>,
}

/// What the target has acknowledged of a task.
#[derive(Debug, Default)]
pub struct Sent {
    pub messages: AtomicU64,
    pub bytes: AtomicU64,
    pub rows: AtomicU64,
}

/// Messages that the target refuses for no clear reason: one a lane, and since when. A stream has several lanes, and
/// each counts for itself.
#[derive(Debug, Default)]
struct Suspects {
    since: HashMap<PChannel, (Option<Origin>, Instant)>,
    last: Option<Origin>,
}

/// One collection's stream within a task, from its attachment to its detachment.
#[derive(Debug)]
pub struct StreamCtl {
    pub collection: CollectionId,
    failed: AtomicBool,
    released: AtomicBool,
    problem: Mutex<Option<Problem>>,
    /// The message that cannot be carried, if that is why it failed.
    poison: Mutex<Option<Poison>>,
    suspects: Mutex<Suspects>,
    /// Rows acknowledged by the target.
    pub rows: AtomicU64,
    /// The same of the whole task.
    pub(super) sent: Arc<Sent>,
    wake: Arc<Notify>,
}

impl StreamCtl {
    /// `wake` is told when the stream fails.
    pub fn new(collection: CollectionId, wake: Arc<Notify>, sent: Arc<Sent>) -> Arc<Self> {
        Arc::new(Self {
            collection,
            failed: AtomicBool::new(false),
            released: AtomicBool::new(false),
            problem: Mutex::default(),
            poison: Mutex::default(),
            suspects: Mutex::default(),
            rows: AtomicU64::new(0),
            sent,
            wake,
        })
    }

    pub(super) fn acknowledged(&self, bytes: usize, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.sent.messages.fetch_add(1, Ordering::Relaxed);
        self.sent.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.sent.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// The stream cannot go on: its messages stay where they are until its owner has stored where it goes on.
    pub fn fail(&self, problem: Problem) {
        *self.problem.lock() = Some(problem);
        self.failed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Fails because of this message, which no other try will carry.
    pub fn fail_at(&self, poison: Poison, problem: Problem) {
        *self.poison.lock() = Some(poison);
        self.fail(problem);
    }

    pub fn poison(&self) -> Option<Poison> {
        self.poison.lock().clone()
    }

    /// Notes that the target refused this message for no clear reason on this lane; since when it does.
    pub(super) fn suspect(&self, lane: &PChannel, origin: Option<&Origin>) -> Instant {
        let mut suspects = self.suspects.lock();
        suspects.last = origin.cloned();
        let (noted, since) = suspects
            .since
            .entry(lane.clone())
            .or_insert_with(|| (origin.cloned(), Instant::now()));
        if noted.as_ref() != origin {
            (*noted, *since) = (origin.cloned(), Instant::now());
        }
        *since
    }

    /// The message that the target refuses for no clear reason: one that a person may say skip to.
    pub fn refused(&self) -> Option<Origin> {
        self.suspects.lock().last.clone()
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Its messages are taken back: what still comes back of it is dropped. Called under the lane's lock.
    pub(super) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    pub(crate) fn released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    pub fn problem(&self) -> Option<Problem> {
        self.problem.lock().clone()
    }
}

/// Counts the messages of one stretch that are not acknowledged yet.
#[derive(Debug, Default)]
pub struct Cell {
    open: AtomicUsize,
}

impl Cell {
    pub fn is_done(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }
}

/// Bytes that a task's messages may take in memory.
///
/// A reader that holds little (its reserve) may always read on, so that the slowest one is never stopped by those ahead
/// of it. Above its reserve it waits until no more than half is used: the other half is for what readers take without
/// asking, their reserves and the batch in the hands of each. With a reserve of 1/64 that does for 16 readers; the total
/// is passed only by more of them, or by messages that are larger than a reserve.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    used: AtomicUsize,
    freed: Notify,
}

impl Budget {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            used: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Waits until a reader that holds `own` bytes, `reserve` of which are always granted, may read on.
    pub async fn room(&self, own: &AtomicUsize, reserve: usize) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that what is freed in between is not missed.
            freed.as_mut().enable();
            if own.load(Ordering::Relaxed) <= reserve || self.used() < self.total / 2 {
                return;
            }
            freed.await;
        }
    }

    /// Waits until whoever holds `own` bytes holds none.
    pub async fn emptied(&self, own: &AtomicUsize) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if own.load(Ordering::Relaxed) == 0 {
                return;
            }
            freed.await;
        }
    }
}

/// A message's stay: counted in its stretch, in its reader and in the budget from creation to drop. Dropped when the
/// message is acknowledged, or when its stream is detached.
#[derive(Debug)]
pub struct Ticket {
    cell: Arc<Cell>,
    own: Arc<AtomicUsize>,
    budget: Arc<Budget>,
    bytes: usize,
}

impl Ticket {
    pub fn new(
        cell: &Arc<Cell>,
        own: &Arc<AtomicUsize>,
        budget: &Arc<Budget>,
        bytes: usize,
    ) -> Self {
        cell.open.fetch_add(1, Ordering::AcqRel);
        own.fetch_add(bytes, Ordering::Relaxed);
        budget.used.fetch_add(bytes, Ordering::Relaxed);
        Self {
            cell: cell.clone(),
            own: own.clone(),
            budget: budget.clone(),
            bytes,
        }
    }

    /// Another one for the same message: it is done when both are.
    pub(crate) fn twin(&self) -> Self {
        Self::new(&self.cell, &self.own, &self.budget, self.bytes)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.own.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.cell.open.fetch_sub(1, Ordering::AcqRel);
        self.budget.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_holds_more_than_its_reserve_waits_until_half_is_free() {
        let budget = Budget::new(100);
        let (cell, own, others) = (Arc::default(), Arc::default(), Arc::default());
        let waits = |own: &AtomicUsize| budget.room(own, 10).now_or_never().is_none();
        let _own = Ticket::new(&cell, &own, &budget, 11);
        let less = Ticket::new(&cell, &others, &budget, 38);
        assert!(!waits(&own), "49 are used, less than half");
        let more = Ticket::new(&cell, &others, &budget, 60);
        assert!(waits(&own), "109 are used");
        drop(less);
        assert!(waits(&own), "71 are used");
        // Within its reserve it never waits, whatever is used.
        assert!(!waits(&AtomicUsize::new(10)));
        let waiting = {
            let (budget, own) = (budget.clone(), own.clone());
            tokio::spawn(async move { budget.room(&own, 10).await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(more);
        let told = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        told.expect("what is freed is told to who waits").unwrap();
        // Exactly half is not free.
        let _half = Ticket::new(&cell, &others, &budget, 39);
        assert!(waits(&own));
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_lane_refuses_is_not_forgotten_for_another_ones() {
        let stream = StreamCtl::new(CollectionId(1), Arc::default(), Arc::default());
        let lanes = [PChannel::new("l0"), PChannel::new("l1")];
        let origins = [1, 2].map(|n| (PChannel::new("s"), Position::Natsmq(n)));
        let begun = Instant::now();
        for _ in 0..5 {
            for (lane, origin) in lanes.iter().zip(&origins) {
                assert_eq!(stream.suspect(lane, Some(origin)), begun);
                assert_eq!(stream.refused().as_ref(), Some(origin));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // Another message of the same lane begins anew.
        let later = (PChannel::new("s"), Position::Natsmq(3));
        assert_eq!(stream.suspect(&lanes[0], Some(&later)), Instant::now());
        assert_eq!(stream.suspect(&lanes[1], Some(&origins[1])), begun);
    }
}
