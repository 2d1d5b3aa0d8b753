//! Collections that leave: dropped on the source, on the target, and forgotten.

use tokio::time::Instant;

use super::{Conductor, DROP_PATIENCE, DROPS, JOBS, LOOK_EVERY, Outcome, Phase};
use crate::catalog::{ObjectState, View};
use crate::ids::CollectionId;
use crate::pipeline::copying;
use crate::pipeline::objects::TargetShard;
use crate::select::Operation;
use crate::store::{Change, ObjectPhase};
use crate::task::CollectionState;

impl Conductor<'_> {
    /// Collections whose drop is complete on all shards, and those whose drop is not read from the queue.
    pub(super) async fn drops(&mut self, view: &View) {
        let mut finish = Vec::new();
        let mut from_table = Vec::new();
        let mut staying = Vec::new();
        let stay = self.ctx.wanted().skips(Operation::DropCollection);
        for (id, entry) in &mut self.entries {
            let busy = matches!(
                entry.phase,
                Phase::Dropping
                    | Phase::Dropped
                    | Phase::Opening
                    | Phase::Unread(_)
                    | Phase::Apart(_)
            );
            if busy || matches!(entry.phase, Phase::Retry(at) if at > Instant::now()) {
                continue;
            }
            let gone = view
                .collections
                .get(id)
                .is_none_or(|c| c.state == ObjectState::Dropping);
            let object = self.objects.look(*id, |object| {
                let shards = object.target_vchannels.len();
                let is_dropped_on_all = object.phase == ObjectPhase::Dropping
                    && shards > 0
                    && object.dropped_shards.len() >= shards;
                (is_dropped_on_all, object.phase)
            });
            let Some((is_dropped_on_all, phase)) = object else {
                // Not made yet: gone on the source, gone here.
                if gone {
                    entry.phase = Phase::Dropped;
                    self.board.lock().set(*id, CollectionState::Dropped);
                }
                continue;
            };
            if is_dropped_on_all {
                finish.push(*id);
                continue;
            }
            if !gone {
                entry.dropping_since = None;
                continue;
            }
            // Unless its drop was begun there.
            if stay && phase != ObjectPhase::Dropping {
                staying.push(*id);
                continue;
            }
            let since = *entry.dropping_since.get_or_insert_with(Instant::now);
            let now = match entry.phase {
                Phase::Streaming | Phase::Ready => since.elapsed() > DROP_PATIENCE,
                _ => true,
            };
            if now {
                from_table.push(*id);
            }
        }
        for id in staying {
            self.stay(id).await;
        }
        for id in finish {
            self.finish_drop(id).await;
        }
        let under_way = self.entries.values();
        let mut under_way = under_way.filter(|e| e.phase == Phase::Dropping).count();
        for id in from_table {
            // In the first round they are only noted.
            if self.first_round || (under_way < DROPS && self.jobs.len() < JOBS) {
                under_way += 1;
                self.drop_from_table(id).await;
                continue;
            }
            self.do_not_wait_for(id);
            // Nor is it opened in between.
            if let Some(entry) = self.entries.get_mut(&id)
                && matches!(entry.phase, Phase::Due | Phase::Retry(_))
            {
                entry.phase = Phase::Retry(Instant::now() + LOOK_EVERY);
                let why = "it is dropped on the target when others are".to_owned();
                self.board.lock().set(id, CollectionState::Waiting { why });
            }
        }
    }

    /// A collection that the source has dropped, and that is to stay on the target: it is let go once all that the source
    /// has of it is applied there. One that waits for a person is let go as it is.
    async fn stay(&mut self, id: CollectionId) {
        let catching = self.catching.keys().any(|(_, c)| *c == id);
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let mut ask = false;
        let let_go = match (&entry.phase, &entry.route) {
            (Phase::Held(_), _) => true,
            // There is nothing any more that the rest of its rows could be read from.
            _ if entry.snapshot.is_some() => true,
            (Phase::Streaming, Some(route)) if !catching => {
                let staying = entry.staying.get_or_insert_default();
                ask = staying.end.is_none() && !std::mem::replace(&mut staying.asked, true);
                let applied = self.objects.applied_least(route);
                if staying.at.is_none_or(|(at, _)| at != applied) {
                    staying.at = Some((applied, Instant::now()));
                }
                // A channel that nobody uses any more has no ticks, and nothing comes on it.
                let silent = |(_, since): (_, Instant)| since.elapsed() > DROP_PATIENCE;
                let mut mains = route.shards.iter().map(|s| self.mains.get(&s.source));
                let read = |m: Option<&std::sync::Arc<_>>| {
                    m.is_none_or(|m: &std::sync::Arc<crate::pipeline::reader::Reader>| {
                        m.problem.lock().is_none()
                    })
                };
                let through =
                    self.objects.is_through(route) || staying.end.is_some_and(|end| applied >= end);
                // Acknowledged is not shown: nobody would send the tick once it is let go.
                let floor = |s: &TargetShard| self.ctx.hub.floor(s.lane.channel());
                if through && staying.floors.is_none() {
                    staying.floors = Some(route.shards.iter().map(floor).collect());
                }
                let is_shown = staying.floors.as_ref().is_some_and(|floors| {
                    let mut lanes = route.shards.iter().zip(floors);
                    lanes.all(|(s, floor)| s.lane.hidden().is_none_or(|oldest| oldest > *floor))
                });
                is_shown || (staying.at.is_some_and(silent) && mains.all(read))
            }
            // It goes on first.
            _ => false,
        };
        if ask {
            let ctx = self.ctx.clone();
            self.start_job(id, async move {
                Outcome::End(id, ctx.catalog().tso_bound().await)
            });
        }
        if let_go {
            self.let_stay(id).await;
        }
    }

    async fn let_stay(&mut self, id: CollectionId) {
        self.do_not_wait_for(id);
        if let Some(route) = self.entries.get_mut(&id).and_then(|e| e.route.take()) {
            self.detach(id, &route).await;
        }
        self.objects.leave(id).await;
        self.forget_entry(id).await;
        let note = "dropped on the source; it stays on the target, for skip_operations has drop_collection";
        self.board.lock().note(id, note);
    }

    async fn finish_drop(&mut self, id: CollectionId) {
        self.do_not_wait_for(id);
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.phase = Phase::Dropping;
        for main in self.mains.values() {
            let mut inner = main.gate.lock().await;
            if main.carries(&inner, id) {
                drop(main.detach(&mut inner, id));
            } else {
                main.leave_others(&mut inner);
            }
        }
        let objects = self.objects.clone();
        self.start_job(id, async move {
            Outcome::Dropped(id, objects.finish_drop(id).await)
        });
    }

    /// A drop needs ticks, which after a crash wait for the deadline of the calls before it: the readers, and the rows of
    /// the other collections, do not wait for that. It is read by nobody while it is being dropped.
    fn do_not_wait_for(&mut self, id: CollectionId) {
        if let Some(first) = &mut self.first {
            first.remove(&id);
        }
    }

    pub(super) async fn drop_from_table(&mut self, id: CollectionId) {
        self.do_not_wait_for(id);
        let creating = self.objects.look(id, |o| o.phase) == Some(ObjectPhase::Creating);
        if creating && self.ctx.wanted().skips(Operation::DropCollection) {
            // Of one whose creation was begun it is not known whether it is there. If so it is empty, and stays.
            return self.let_stay(id).await;
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if self.first_round {
            // Asked for again by the first round that follows the readers' begin.
            entry.phase = Phase::Due;
            self.gone_first.insert(id);
            return;
        }
        entry.phase = Phase::Dropping;
        if let Some(route) = entry.route.take() {
            self.detach(id, &route).await;
        }
        let objects = self.objects.clone();
        self.start_job(id, async move {
            Outcome::Dropped(id, objects.drop_from_table(id).await)
        });
    }

    pub(super) async fn forget_entry(&mut self, id: CollectionId) {
        let keys: Vec<_> = self
            .catching
            .keys()
            .chain(self.stored.detached.keys())
            .filter(|(_, c)| *c == id)
            .cloned()
            .collect();
        let task = self.ctx.spec.id.clone();
        let mut changes = vec![Change::PutNote {
            task: task.clone(),
            collection: id,
            note: String::new(),
        }];
        if self.entries.get(&id).is_some_and(|e| e.snapshot.is_some()) {
            changes.push(copying::note(&self.ctx, id, None));
        }
        for key in keys {
            if let Some(reader) = self.catching.remove(&key) {
                reader.cancel.cancel();
            }
            self.stored.detached.remove(&key);
            let (channel, collection) = key;
            self.ctx.durable.lock().forget(&channel, collection);
            changes.push(Change::DeleteDetached {
                task: task.clone(),
                channel,
                collection,
            });
        }
        self.ctx.commit(changes).await;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Dropped;
            entry.route = None;
        }
        self.board.lock().set(id, CollectionState::Dropped);
    }

    /// What was dropped, and is no longer in the source's metadata either, is forgotten.
    pub(super) async fn forget_gone(&mut self, view: &View) {
        let gone: Vec<CollectionId> = self
            .entries
            .iter()
            .filter(|(id, e)| e.phase == Phase::Dropped && !view.collections.contains_key(id))
            .map(|(id, _)| *id)
            .collect();
        // Also what an earlier process dropped, and did not live to forget.
        let unmet = self.objects.dropped();
        let unmet = unmet
            .into_iter()
            .filter(|id| !self.entries.contains_key(id) && !view.collections.contains_key(id));
        let gone: Vec<CollectionId> = gone.into_iter().chain(unmet).collect();
        for id in gone {
            self.objects.forget(id, Vec::new()).await;
            self.entries.remove(&id);
            self.board.lock().remove(id);
        }
    }
}
