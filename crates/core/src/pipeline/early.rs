//! What goes to a target that gives the times itself before its tick, so that it is seen a tick earlier.
//!
//! Such a target is sent a stretch in the order of time, which is known at its tick. Rows that are inserted need no order
//! among each other, though: only a delete of one of their keys does. So an insert goes a moment after it was read, if no
//! delete that waits has one of its keys, and is kept to its tick all the same: a delete at or before its time may be read
//! behind it, and takes the row away when it is sent. Then the insert is made once more behind that delete, with a delete
//! of its own before it.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::stretch::{Act, Place, Planned};
use crate::decode::RowsKind;
use crate::target::plain::message::{Key, Keys};

/// An upsert is an insert and behind it a delete of the same time: within this the second one is read.
pub(super) const LINGER: Duration = Duration::from_millis(10);
/// A tick comes several times a second. Where there is none, nothing is looked at again and again.
const GIVEN_UP: Duration = Duration::from_secs(1);

/// Keys that are looked at each time; with more of them all waits for the tick.
const LOOKED_AT: usize = 4096;

/// Keys of which nothing may go before the rest. `all`: of some message they are not known.
#[derive(Default)]
struct Held {
    keys: HashSet<Key>,
    all: bool,
}

impl Held {
    fn add(&mut self, keys: Option<&Keys>) {
        match keys {
            Some(keys) => self.keys.extend(keys.each()),
            None => self.all = true,
        }
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.all
    }

    fn has(&self, keys: Option<&Keys>) -> bool {
        self.all || keys.is_none_or(|keys| keys.each().any(|key| self.keys.contains(&key)))
    }

    /// Looks into its columns only if there is something to find.
    fn hits(&self, planned: &Planned) -> bool {
        !self.is_empty() && self.has(planned.keys().as_ref())
    }
}

impl Planned {
    fn keys(&self) -> Option<Keys> {
        match &self.act {
            Act::Rows { rows, .. } => Keys::of_rows(rows, self.route.primary_key),
            Act::DropCollection { .. } | Act::DropPartition { .. } => None,
        }
    }

    /// An insert that no earlier process may have sent, and whose partition is there.
    fn is_free(&self) -> bool {
        let Act::Rows {
            rows,
            place: Place::Known(_),
            in_doubt: false,
        } = &self.act
        else {
            return false;
        };
        rows.kind == RowsKind::Insert
    }

    fn deletes(&self) -> bool {
        match &self.act {
            Act::Rows { rows, in_doubt, .. } => rows.kind == RowsKind::Delete || *in_doubt,
            Act::DropCollection { .. } | Act::DropPartition { .. } => false,
        }
    }

    /// What is there of it goes before it comes again.
    fn once_more(&mut self) {
        self.sent = false;
        self.act.doubt();
    }
}

/// Since when the first of them waits that may be ready some time.
pub(super) fn first(kept: &[Planned]) -> Option<Instant> {
    let now = Instant::now();
    let waits = |p: &&Planned| p.is_free() && !p.sent && p.since + GIVEN_UP > now;
    // They are kept in the order in which they were read.
    kept.iter().find(waits).map(|p| p.since)
}

/// Which of what is kept of a lane may go now, by their places, in the order of time. With a drop among it nothing may.
pub(super) fn ready(kept: &[Planned], now: Instant) -> Vec<usize> {
    let young = |p: &Planned| p.since + LINGER > now;
    let waits = |p: &Planned| p.is_free() && !p.sent;
    if !kept.iter().any(|p| waits(p) && !young(p)) {
        return Vec::new();
    }
    let mut held = Held::default();
    let mut rows = 0;
    for other in kept.iter().filter(|p| !p.is_free()) {
        match &other.act {
            Act::Rows { rows: more, .. } => {
                rows += more.timestamps.len();
                if rows > LOOKED_AT {
                    return Vec::new();
                }
                held.add(other.keys().as_ref());
            }
            Act::DropCollection { .. } | Act::DropPartition { .. } => return Vec::new(),
        }
    }
    let mut ready = Vec::new();
    for (place, planned) in kept.iter().enumerate() {
        if !waits(planned) || young(planned) {
            continue;
        }
        if held.hits(planned) {
            // What has one of the other keys of this one must not overtake it.
            held.add(planned.keys().as_ref());
        } else {
            ready.push(place);
        }
    }
    ready.sort_by_key(|place| kept[*place].act.ts());
    ready
}

/// Of what is `due` now, in the order in which it is sent, what is still to be sent: not the inserts that are there and
/// that nothing before them deletes. Those `later` that are there and are deleted now are sent when they are due.
pub(super) fn left(due: Vec<Planned>, later: &mut [Planned]) -> Vec<Planned> {
    let sent = |p: &Planned| p.sent;
    if !due.iter().any(sent) && !later.iter().any(sent) {
        return due;
    }
    let mut deleted = Held::default();
    let mut all = Vec::with_capacity(due.len());
    for mut planned in due {
        if planned.sent {
            if !deleted.hits(&planned) {
                continue;
            }
            planned.once_more();
        }
        if planned.deletes() {
            deleted.add(planned.keys().as_ref());
        }
        all.push(planned);
    }
    for planned in later.iter_mut().filter(|p| p.sent) {
        if deleted.hits(planned) {
            planned.once_more();
        }
    }
    all
}
