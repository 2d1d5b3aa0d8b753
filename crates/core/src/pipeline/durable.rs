//! The durable checkpoint: up to where the target has everything on its own disks, and what follows when it restarts.
//! No I/O.
//!
//! A target acknowledges rows that are in its log and in the memory of its data and query nodes. When these restart they
//! read the log again, and a 2.3.5 can leave out rows while doing so, where collections share a physical channel. What it
//! has flushed it keeps. So a task knows two places on each channel: up to *applied* everything is acknowledged, up to
//! *durable* it is flushed. After a restart of the target it goes on from the durable place, with everything above in
//! doubt: that is replayed in window form, as after a crash of our own.
//!
//! Collections of one channel have one place, that of its main reader, except those that came later: they have their
//! own until the next round has them all.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{CollectionId, PChannel, TaskId};
use crate::position::Position;
use crate::store::{Change, ObjectPhase, Progress, TaskProgress};
use crate::tso::Tso;

/// Under this id the store keeps it, beside the notes on collections.
const NOTE: CollectionId = CollectionId(-4);

/// The target's nodes that hold data, each with its id and the start of its process.
pub(crate) type Nodes = BTreeSet<String>;

/// Everything up to source timestamp `applied` is flushed; what follows is at `position`, or behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) position: Position,
    pub(crate) after: bool,
    pub(crate) applied: Tso,
}

impl From<Progress> for Point {
    fn from(progress: Progress) -> Self {
        Self {
            position: progress.position,
            after: progress.after,
            applied: progress.applied,
        }
    }
}

impl Point {
    /// Where reading goes on that has come to `progress`: everything above this point is in doubt.
    fn replayed(self, progress: Progress) -> Option<Progress> {
        (self.applied < progress.applied).then_some(Progress {
            position: self.position,
            after: self.after,
            applied: self.applied,
            sent: progress.sent.max(progress.applied),
        })
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Durable {
    /// As they were while the points below were found; `None` if the target does not tell.
    pub(crate) nodes: Option<Nodes>,
    channels: BTreeMap<PChannel, Point>,
    #[serde(with = "own")]
    own: BTreeMap<(PChannel, CollectionId), Point>,
    #[serde(skip)]
    changed: bool,
}

/// JSON has no pairs as keys.
mod own {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{CollectionId, PChannel, Point};

    type Own = BTreeMap<(PChannel, CollectionId), Point>;

    pub(super) fn serialize<S: Serializer>(own: &Own, s: S) -> Result<S::Ok, S::Error> {
        let list: Vec<_> = own.iter().map(|((ch, c), p)| (ch, c, p)).collect();
        list.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Own, D::Error> {
        let list = Vec::<(PChannel, CollectionId, Point)>::deserialize(d)?;
        Ok(list.into_iter().map(|(ch, c, p)| ((ch, c), p)).collect())
    }
}

/// What a target says of its nodes.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Asked {
    /// `None`: it never does.
    Told(Option<Nodes>),
    /// Not at the moment: whoever watches it will see.
    NotNow,
}

/// How a task begins on a target.
pub(crate) struct Beginning {
    pub(crate) durable: Durable,
    /// To be stored before anything is read.
    pub(crate) changes: Vec<Change>,
    /// The target has restarted, or may have: source timestamps from which channels are replayed.
    pub(crate) replayed: Option<BTreeMap<PChannel, Tso>>,
}

impl Durable {
    /// What is stored, brought in line with the target's nodes as they are now.
    ///
    /// If these are not those of before, or cannot be told, everything goes back to its durable place. A task that has
    /// no such place yet has it where it stands.
    pub(crate) fn begin(task: &TaskId, stored: &TaskProgress, asked: Asked) -> Beginning {
        let known: Option<Self> = stored
            .notes
            .get(&NOTE)
            .and_then(|note| serde_json::from_str(note).ok());
        let mut changes = Vec::new();
        let mut replayed = None;
        let mut durable = match known {
            Some(durable) => {
                if let Asked::Told(nodes) = &asked
                    && (nodes.is_none() || durable.nodes != *nodes)
                {
                    let replayed = replayed.insert(BTreeMap::new());
                    durable.go_back(task, stored, &mut changes, replayed);
                }
                durable
            }
            None => Self::default(),
        };
        if let Asked::Told(nodes) = asked {
            durable.nodes = nodes;
        }
        for (channel, progress) in &stored.channels {
            let of_channel = durable.channels.entry(channel.clone());
            of_channel.or_insert((*progress).into());
        }
        durable
            .channels
            .retain(|channel, _| stored.channels.contains_key(channel));
        for (key, progress) in &stored.detached {
            durable.own.entry(key.clone()).or_insert((*progress).into());
        }
        let alive = |c: &CollectionId| {
            let object = stored.collections.get(c);
            object.is_some_and(|o| o.phase != ObjectPhase::Dropped)
        };
        durable.own.retain(|(_, c), _| alive(c));
        durable.changed = true;
        changes.extend(durable.note(task));
        Beginning {
            durable,
            changes,
            replayed,
        }
    }

    fn go_back(
        &self,
        task: &TaskId,
        stored: &TaskProgress,
        changes: &mut Vec<Change>,
        replayed: &mut BTreeMap<PChannel, Tso>,
    ) {
        let mut from = |channel: &PChannel, at: Tso| {
            let first = replayed.entry(channel.clone()).or_insert(at);
            *first = at.min(*first);
        };
        for (channel, progress) in &stored.channels {
            let point = self.channels.get(channel);
            if let Some(progress) = point.and_then(|p| p.replayed(*progress)) {
                from(channel, progress.applied);
                changes.push(Change::PutChannel {
                    task: task.clone(),
                    channel: channel.clone(),
                    progress,
                    clean: false,
                });
            }
        }
        for ((channel, collection), point) in &self.own {
            let of_channel = stored.channels.get(channel);
            let live = stored
                .collections
                .get(collection)
                .is_some_and(|o| matches!(o.phase, ObjectPhase::Live | ObjectPhase::Dropping));
            let apart = stored.detached.get(&(channel.clone(), *collection));
            // One that its channel carries by now goes back by itself: the channel goes back further, to where this
            // collection was not wanted yet.
            let progress = apart.or(of_channel.filter(|_| live));
            if let Some(progress) = progress.and_then(|p| point.replayed(*p)) {
                from(channel, progress.applied);
                changes.push(Change::PutDetached {
                    task: task.clone(),
                    channel: channel.clone(),
                    collection: *collection,
                    progress,
                });
            } else if let (None, Some(progress)) = (apart, of_channel.filter(|_| live)) {
                // Nothing of it is in doubt, but the channel goes back without it.
                changes.push(Change::PutDetached {
                    task: task.clone(),
                    channel: channel.clone(),
                    collection: *collection,
                    progress: *progress,
                });
            }
        }
    }

    /// What to store, if it has changed since the last call.
    pub(crate) fn note(&mut self, task: &TaskId) -> Option<Change> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        Some(Change::PutNote {
            task: task.clone(),
            collection: NOTE,
            note: serde_json::to_string(self).unwrap_or_default(),
        })
    }

    /// A channel gets its main reader.
    pub(crate) fn channel_begins(&mut self, channel: &PChannel, at: Progress) {
        self.channels.insert(channel.clone(), at.into());
        self.changed = true;
    }

    pub(crate) fn channel_ends(&mut self, channel: &PChannel) {
        self.changed |= self.channels.remove(channel).is_some();
    }

    /// A collection gets a reader of its own.
    pub(crate) fn goes_alone(&mut self, channel: &PChannel, c: CollectionId, at: Progress) {
        self.has_own(channel, c, at.into());
    }

    /// A collection is taken off its channel's main reader, which stands at `at`.
    pub(crate) fn taken_off(&mut self, channel: &PChannel, c: CollectionId, at: Progress) {
        let point = self.channels.get(channel).copied();
        self.has_own(channel, c, point.unwrap_or(at.into()));
    }

    fn has_own(&mut self, channel: &PChannel, c: CollectionId, point: Point) {
        if let Entry::Vacant(place) = self.own.entry((channel.clone(), c)) {
            place.insert(point);
            self.changed = true;
        }
    }

    /// It begins anew somewhere else on this channel, or is gone.
    pub(crate) fn forget(&mut self, channel: &PChannel, c: CollectionId) {
        self.changed |= self.own.remove(&(channel.clone(), c)).is_some();
    }

    /// A channel's main reader had come to `at`, and everything of the collections it carries is flushed.
    pub(crate) fn settled(
        &mut self,
        channel: &PChannel,
        at: Point,
        carried: impl Iterator<Item = CollectionId>,
    ) {
        for c in carried {
            self.own.remove(&(channel.clone(), c));
        }
        self.channels.insert(channel.clone(), at);
        self.changed = true;
    }

    /// The same of a collection's own reader.
    pub(crate) fn settled_alone(&mut self, channel: &PChannel, c: CollectionId, at: Point) {
        self.own.insert((channel.clone(), c), at);
        self.changed = true;
    }

    /// The place of a collection on a channel.
    pub(crate) fn of(&self, channel: &PChannel, c: CollectionId) -> Option<Point> {
        let own = self.own.get(&(channel.clone(), c));
        own.or_else(|| self.channels.get(channel)).copied()
    }

    /// As it is stored.
    pub(crate) fn stored(stored: &TaskProgress) -> Option<Self> {
        serde_json::from_str(stored.notes.get(&NOTE)?).ok()
    }

    /// The source timestamp of the oldest place on each channel that a restart of the target would need; that of a
    /// collection without any is `created`.
    pub(crate) fn oldest(
        &self,
        created: impl Fn(CollectionId) -> Option<Tso>,
    ) -> BTreeMap<PChannel, Tso> {
        let shared = self.channels.iter().map(|(ch, p)| (ch, p.applied));
        let own = self.own.iter();
        let own = own.map(|((ch, c), p)| (ch, p.applied.max(created(*c).unwrap_or_default())));
        let mut oldest: BTreeMap<PChannel, Tso> = BTreeMap::new();
        for (channel, ts) in shared.chain(own).filter(|(_, ts)| *ts > Tso::ZERO) {
            let at = oldest.entry(channel.clone()).or_insert(ts);
            *at = ts.min(*at);
        }
        oldest
    }

    /// The oldest message on each channel that a restart of the target would need.
    pub(crate) fn needed(&self) -> BTreeMap<PChannel, Position> {
        let mut needed: BTreeMap<PChannel, Position> = BTreeMap::new();
        let own = self.own.iter().map(|((channel, _), p)| (channel, p));
        for (channel, point) in self.channels.iter().chain(own) {
            let at = needed.entry(channel.clone()).or_insert(point.position);
            *at = point.position.min(*at);
        }
        needed
    }
}

#[cfg(test)]
mod tests;
