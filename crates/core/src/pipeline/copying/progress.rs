//! How far a copy is, and how fast it may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::snapshot::{Snapshot, SnapshotSpec};
use crate::task::CollectionState;

/// What a copy is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::pipeline) enum Step {
    Waits,
    Begins,
    Loads,
    Copies,
    Flushes,
    Releases,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Step::Waits => "waits for its turn",
            Step::Begins => "begins",
            Step::Loads => "loads it on the source",
            Step::Copies => "copies",
            Step::Flushes => "waits until the target has flushed it",
            Step::Releases => "releases it on the source",
        })
    }
}

/// How far a copy is, for whoever looks.
#[derive(Debug)]
pub(in crate::pipeline) struct Progress {
    begun: Instant,
    /// Before this process or job.
    before: u64,
    /// By it.
    pub(super) copied: AtomicU64,
    pub(super) total: AtomicU64,
    pub(super) doubled: AtomicU64,
    step: Mutex<Step>,
    /// As it was stored last.
    pub(super) stored: Mutex<Snapshot>,
}

impl Progress {
    pub(in crate::pipeline) fn new(snapshot: &Snapshot) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            before: snapshot.copied,
            copied: AtomicU64::new(0),
            total: AtomicU64::new(snapshot.total),
            doubled: AtomicU64::new(snapshot.doubled),
            step: Mutex::new(Step::Waits),
            stored: Mutex::new(snapshot.clone()),
        })
    }

    /// How far it is, by what is stored.
    pub(in crate::pipeline) fn stored(&self) -> Snapshot {
        self.stored.lock().clone()
    }

    pub(super) fn is(&self, step: Step) {
        *self.step.lock() = step;
    }

    /// Whether rows are read and sent for it, or are about to be: others wait for their turn.
    pub(in crate::pipeline) fn is_at_work(&self) -> bool {
        *self.step.lock() != Step::Flushes
    }

    pub(in crate::pipeline) fn state(&self) -> CollectionState {
        let copied = self.copied.load(Ordering::Relaxed);
        let done = self.before + copied;
        let total = self.total.load(Ordering::Relaxed).max(done);
        let took = self.begun.elapsed().as_secs_f64();
        let pace = copied as f64 / took.max(0.001);
        let eta = (copied > 0).then(|| (total - done) as f64 / pace);
        CollectionState::Snapshotting {
            rows_copied: done,
            rows_total: total,
            rows_per_second: pace,
            eta_seconds: eta,
            doubled_keys: self.doubled.load(Ordering::Relaxed),
            step: self.step.lock().to_string(),
        }
    }
}

/// So many a second, over all that take from it.
pub(in crate::pipeline) struct Pace {
    rows: Option<f64>,
    bytes: Option<f64>,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(in crate::pipeline) fn new(spec: &SnapshotSpec) -> Self {
        Self {
            rows: spec.rows_per_second.map(|n| n.get() as f64),
            bytes: spec.bytes_per_second.map(|n| n.get() as f64),
            next: Mutex::default(),
        }
    }

    /// Waits until what is taken now may be sent.
    pub(super) async fn take(&self, rows: u64, bytes: usize) {
        let part = |of: Option<f64>, n: f64| of.map_or(0., |of| n / of.max(1.));
        let seconds = part(self.rows, rows as f64).max(part(self.bytes, bytes as f64));
        if seconds <= 0. {
            return;
        }
        let at = {
            let (mut next, now) = (self.next.lock(), Instant::now());
            let at = next.map_or(now, |next| next.max(now));
            *next = Some(at + Duration::from_secs_f64(seconds));
            at
        };
        tokio::time::sleep_until(at).await;
    }
}
