//! What is said of the task's collections: each look brings it to the board.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Conductor, Entry, Phase};
use crate::ids::{CollectionId, PChannel};
use crate::pipeline::objects::Route;
use crate::select::Name;
use crate::store::{CollectionObject, ObjectPhase, Progress};
use crate::task::{CollectionState, StartPoint};

impl Conductor<'_> {
    /// Where a collection goes on, on the channels on which nobody reads it now. `places`: its records of its own.
    fn places(
        &self,
        id: CollectionId,
        entry: &Entry,
        mut places: BTreeMap<PChannel, Progress>,
    ) -> BTreeMap<PChannel, Progress> {
        if matches!(entry.phase, Phase::Dropping | Phase::Dropped) {
            return BTreeMap::new();
        }
        let stored = self.stored.collections.get(&id);
        if self.first_round && stored.is_some_and(|o| o.phase != ObjectPhase::Creating) {
            // No channel has its reader yet. Of one whose metadata is not read its channels are not known.
            let unread = entry.source.shards.is_empty();
            for (channel, progress) in &self.stored.channels {
                if unread || entry.source.shards.iter().any(|s| s.pchannel == *channel) {
                    places.entry(channel.clone()).or_insert(*progress);
                }
            }
        }
        places
    }

    /// Whether nothing of a collection has been begun, and all of it is wanted.
    fn is_pending(&self, id: CollectionId, entry: &Entry) -> bool {
        let phase = matches!(
            entry.phase,
            Phase::Due | Phase::Opening | Phase::Retry(_) | Phase::Held(_)
        );
        let (spec, source) = (self.ctx.wanted(), &entry.source);
        phase
            && !spec.positions.contains_key(&id)
            && spec.start_of(&entry.database, &source.name, source.create_ts) != StartPoint::Now
            && self
                .objects
                .get(id)
                .is_none_or(|o| o.phase == ObjectPhase::Creating)
    }

    /// Brings the board up to date.
    pub(super) fn show(&mut self) {
        let health = self.ctx.catalog().health();
        let mut any_raised = false;
        let mut board = self.board.lock();
        board.source(&health);
        board.databases(self.objects.unlike_databases());
        let unequal = self.objects.unequal();
        let mut detached: HashMap<CollectionId, BTreeMap<PChannel, Progress>> = HashMap::new();
        for ((channel, id), progress) in &self.stored.detached {
            let places = detached.entry(*id).or_default();
            places.insert(channel.clone(), *progress);
        }
        let wanted = self.ctx.wanted();
        for (id, entry) in &self.entries {
            if matches!(entry.phase, Phase::Apart(_)) {
                continue;
            }
            let slow = entry.copy.as_ref().and_then(|c| c.progress.too_slow());
            board.collection(
                *id,
                &entry.database,
                &entry.source,
                entry.route.as_ref(),
                unequal.get(id).or(slow.as_ref()),
            );
            let own = Name::new(entry.database.as_str(), entry.source.name.as_str());
            let to = self
                .objects
                .look(*id, CollectionObject::target_name)
                .unwrap_or_else(|| wanted.target_of(&own.database, &own.name));
            board.target(*id, Some(to).filter(|to| *to != own));
            let places = self.places(*id, entry, detached.remove(id).unwrap_or_default());
            let nothing = places.is_empty() && self.is_pending(*id, entry);
            board.places(*id, places, nothing.then_some(entry.source.create_ts));
            match entry.phase {
                Phase::Due | Phase::Opening | Phase::Ready if entry.failing_since.is_none() => {
                    board.set(
                        *id,
                        CollectionState::Waiting {
                            why: "being made on the target".to_owned(),
                        },
                    );
                }
                Phase::Streaming => {
                    let alone = self.catching.keys().any(|(_, c)| c == id);
                    let is_raised = |route: &Arc<Route>| {
                        let mut mains = route.shards.iter().map(|s| self.mains.get(&s.source));
                        mains.any(|main| main.is_some_and(|main| main.is_raised(route)))
                    };
                    let raised = alone || entry.route.as_ref().is_some_and(is_raised);
                    any_raised |= raised;
                    board.streaming(*id, raised);
                }
                _ => {}
            }
        }
        drop(board);
        self.shown_raised = any_raised;
        self.show_copies();
        self.show_readers();
    }

    /// How far the readers are.
    pub(super) fn show_readers(&self) {
        for (channel, main) in &self.mains {
            self.objects
                .set_applied(channel, main.books.lock().progress().applied);
        }
        self.objects.moved.notify_waiters();
        let mut board = self.board.lock();
        board.readers(self.mains.values().chain(self.catching.values()));
    }
}
