//! F, the largest timestamp that may have been sent, as it is on disk: raised before anything above it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::lead::Lead;
use crate::tso::Tso;

/// F is raised this far ahead at least, so that it is written at most a few times a second.
const FLOOR_LEAD: Duration = Duration::from_millis(500);
/// With less than this part left of the lead, F is raised again while calls go on: none of them waits for the disk.
pub(super) const FLOOR_LOW: f64 = 0.5;
/// With less than this part left, it is raised with that of another lane.
pub(super) const FLOOR_USED: f64 = 0.75;

/// F as it is on disk, and how it is raised.
pub(super) struct Floor {
    pub(super) on_disk: AtomicU64,
    /// The largest timestamp that was sent, or is about to be.
    pub(super) used: AtomicU64,
    /// A commit of a larger F is on its way.
    pub(super) raising: AtomicBool,
    pub(super) lead: Mutex<Lead>,
}

impl Floor {
    pub(super) fn new(on_disk: Tso) -> Self {
        Self {
            on_disk: AtomicU64::new(on_disk.0),
            used: AtomicU64::new(0),
            raising: AtomicBool::new(false),
            lead: Mutex::new(Lead::new(FLOOR_LEAD)),
        }
    }

    pub(super) fn on_disk(&self) -> Tso {
        Tso(self.on_disk.load(Ordering::Acquire))
    }

    pub(super) fn is_low(&self, ts: Tso, part: f64) -> bool {
        self.lead.lock().is_low(ts, self.on_disk(), part)
    }

    /// If no commit of it is on its way.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Raising> {
        let begun = !self.raising.swap(true, Ordering::AcqRel);
        begun.then(|| Raising(self.clone()))
    }
}

/// A larger F on its way to the disk. Dropped, it is there, or it is not on its way any more.
pub(crate) struct Raising(pub(super) Arc<Floor>);

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
