//! How far a copy is, and how fast it may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::doctor::spoken;
use crate::error::{ErrorClass, Problem};
use crate::snapshot::{Snapshot, SnapshotSpec};
use crate::task::CollectionState;

/// From then on the pace of a copy says how long the rest takes.
const PACE_KNOWN: Duration = Duration::from_secs(10);

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
    /// Since when rows are copied.
    copies_since: Mutex<Option<Instant>>,
    /// Before this process or job.
    before: u64,
    /// By it.
    pub(super) copied: AtomicU64,
    pub(super) total: AtomicU64,
    pub(super) doubled: AtomicU64,
    step: Mutex<Step>,
    /// A limit of the task.
    rows_per_second: Option<f64>,
    /// How long the source's queue keeps the messages that come behind the copy, if it says so.
    pub(super) kept: Mutex<Option<Duration>>,
    /// As it was stored last.
    pub(super) stored: Mutex<Snapshot>,
}

impl Progress {
    pub(in crate::pipeline) fn new(snapshot: &Snapshot, spec: &SnapshotSpec) -> Arc<Self> {
        Arc::new(Self {
            copies_since: Mutex::default(),
            before: snapshot.copied,
            copied: AtomicU64::new(0),
            total: AtomicU64::new(snapshot.total),
            doubled: AtomicU64::new(snapshot.doubled),
            step: Mutex::new(Step::Waits),
            rows_per_second: spec.rows_per_second.map(|n| n.get() as f64),
            kept: Mutex::default(),
            stored: Mutex::new(snapshot.clone()),
        })
    }

    /// How far it is, by what is stored.
    pub(in crate::pipeline) fn stored(&self) -> Snapshot {
        self.stored.lock().clone()
    }

    pub(super) fn is(&self, step: Step) {
        if step == Step::Copies {
            *self.copies_since.lock() = Some(Instant::now());
        }
        *self.step.lock() = step;
    }

    /// For how long rows have been copied.
    fn took(&self) -> Duration {
        self.copies_since
            .lock()
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether rows are read and sent for it, or are about to be: others wait for their turn.
    pub(in crate::pipeline) fn is_at_work(&self) -> bool {
        *self.step.lock() != Step::Flushes
    }

    /// Rows a second so far.
    fn pace(&self) -> f64 {
        self.copied.load(Ordering::Relaxed) as f64 / self.took().as_secs_f64().max(0.001)
    }

    /// Seconds until all is copied: at the pace so far, or, before there is one, that of the task's limit.
    fn eta(&self, left: u64) -> Option<f64> {
        let pace = Some(self.pace()).filter(|pace| *pace > 0.);
        Some(left as f64 / pace.or(self.rows_per_second)?)
    }

    /// What is to be said of a copy that takes longer than the queue keeps what comes behind it.
    pub(in crate::pipeline) fn too_slow(&self) -> Option<Problem> {
        let kept = (*self.kept.lock())?;
        let took = self.took();
        let total = self.total.load(Ordering::Relaxed);
        let done = self.before + self.copied.load(Ordering::Relaxed);
        // A pace of the first moments is none.
        let whole = if took >= PACE_KNOWN {
            took.as_secs_f64() + self.eta(total.saturating_sub(done))?
        } else {
            total.saturating_sub(self.before) as f64 / self.rows_per_second?
        };
        (whole > kept.as_secs_f64()).then(|| {
            let why = format!(
                "its copy will take about {}, and the source's queue keeps the messages that come behind it for {}: it would have to begin anew",
                spoken(whole),
                spoken(kept.as_secs_f64())
            );
            let hint = "raise rows_per_second and bytes_per_second of the task, or let the queue keep messages longer until it is done";
            Problem::new(ErrorClass::Conflict, why, hint)
        })
    }

    pub(in crate::pipeline) fn state(&self) -> CollectionState {
        let copied = self.copied.load(Ordering::Relaxed);
        let done = self.before + copied;
        let total = self.total.load(Ordering::Relaxed).max(done);
        let listed = total > 0;
        CollectionState::Snapshotting {
            rows_copied: done,
            rows_total: total,
            rows_per_second: self.pace(),
            eta_seconds: listed.then(|| self.eta(total - done)).flatten(),
            queue_keeps_seconds: self.kept.lock().map(|kept| kept.as_secs_f64()),
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
