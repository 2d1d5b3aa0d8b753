//! A task at work.
//!
//! [`runner`] keeps a task running, [`conductor`] knows which collections there are and what state each is in;
//! [`opening`] makes one ready to be read, [`channels`] says which reader reads it, [`answers`] takes what a person says
//! of it, [`quarantine`] keeps the messages it stopped at. [`reader`] carries one source channel to its lanes, for all
//! collections attached to it or for one that catches up by itself: [`passes`] is how it reads from tick to tick,
//! [`carry`] what it does with one message, [`repeats`] which ones their producer wrote twice, [`join`] how it hands a
//! collection over; [`stretch`] is what it sends between two ticks, [`kept`] what waits for the second, [`early`] what need not, [`encoded`] makes the messages, [`books`] what of that may be stored. [`objects`]
//! knows which target object stands for which source object and makes them, [`partitions`] the same for partitions,
//! [`drops`] ends them, [`selected`] lets collections go that the task is asked to carry no longer. [`converge`] brings indexes and load states in line with the source, [`databases`] those, [`properties`] what can be altered of each; [`flushes`]
//! carries flush requests. [`copying`] carries the rows that were there before, [`pulse`] brings ticks meanwhile. [`durable`] is up to where the target has everything on disk, [`settle`] moves it and watches
//! for restarts of the target.

mod aliases;
mod answers;
pub(crate) mod books;
mod carry;
mod channels;
mod conductor;
pub(crate) mod converge;
pub(crate) mod copying;
mod databases;
pub(crate) mod drops;
pub(crate) mod durable;
mod early;
mod encoded;
pub(crate) mod flushes;
mod join;
mod kept;
pub(crate) mod making;
mod objects;
mod opening;
mod partitions;
mod passes;
mod properties;
mod pulse;
mod quarantine;
pub(crate) mod reader;
mod renames;
mod repeats;
pub(crate) mod runner;
mod selected;
mod settle;
pub(crate) mod status;
pub(crate) mod stretch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::engine::Parts;
use crate::lane::{Budget, Sent};
use crate::store::Change;
use crate::target::hub::Hub;
use crate::task::{Counters, TaskSpec};

/// What the parts of one task share.
pub(crate) struct TaskContext {
    /// As the task began. What may change while it runs (which collections, their names, what is left out, where those
    /// that are added begin) is asked of [`TaskContext::wanted`].
    pub(crate) spec: TaskSpec,
    pub(crate) wanted: Wanted,
    pub(crate) parts: Arc<Parts>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) budget: Arc<Budget>,
    /// Ends everything at once.
    pub(crate) cancel: CancellationToken,
    /// Ends intake: readers stop at their next tick.
    pub(crate) drain: CancellationToken,
    /// The conductor has something to look at.
    pub(crate) wake: Arc<Notify>,
    pub(crate) meter: Meter,
    /// Held while checkpoints are computed and written, and while a stream moves from one reader's books to another's.
    pub(crate) progress: tokio::sync::Mutex<()>,
    /// The readers of whole channels: their W is raised together.
    pub(crate) mains: parking_lot::Mutex<Vec<Weak<reader::Reader>>>,
    /// Stored with the next commit after it has changed.
    pub(crate) durable: parking_lot::Mutex<durable::Durable>,
    /// The target has restarted: the task begins again, from the durable checkpoint.
    pub(crate) restarted: CancellationToken,
}

/// What a task is asked to do now. Whoever edits it puts another one in.
pub(crate) type Wanted = Arc<parking_lot::RwLock<Arc<TaskSpec>>>;

impl TaskContext {
    pub(crate) fn wanted(&self) -> Arc<TaskSpec> {
        self.wanted.read().clone()
    }

    /// Bytes that every reader may hold whatever the others do.
    pub(crate) fn reserve(&self) -> usize {
        (self.budget.total() / 64).max(64 << 10)
    }

    pub(crate) fn catalog(&self) -> &dyn Catalog {
        self.parts.catalog.as_ref()
    }

    /// Commits, and tries until it succeeds: nothing can go on while the store does not take it.
    pub(crate) async fn commit(&self, mut changes: Vec<Change>) {
        changes.extend(self.durable.lock().note(&self.spec.id));
        tracing::trace!(task = %self.spec.id, ?changes, "to the store");
        let mut backoff = crate::backoff::Backoff::new();
        while let Err(error) = self.parts.store.commit(changes.clone()).await {
            tracing::warn!(task = %self.spec.id, %error, "cannot store progress; trying again");
            backoff.wait().await;
        }
    }
}

/// Counters since the start of the task.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) messages_in: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) rows_in: AtomicU64,
    pub(crate) sent: Arc<Sent>,
}

impl Meter {
    pub(crate) fn counters(&self, in_flight: usize) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            messages_in: get(&self.messages_in),
            bytes_in: get(&self.bytes_in),
            rows_in: get(&self.rows_in),
            messages_out: get(&self.sent.messages),
            rows_out: get(&self.sent.rows),
            bytes_out: get(&self.sent.bytes),
            in_flight_bytes: in_flight as u64,
        }
    }
}
