//! What the task is asked to carry now, against what it carries: collections that are left out stand apart, those that are
//! wanted again go on; which ones can have no name on the target.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::conductor::{Conductor, Held, Phase, note};
use super::copying;
use super::opening::Answer;
use crate::catalog::{CatalogError, Collection, ObjectState, View};
use crate::error::{ErrorClass, Problem};
use crate::ids::CollectionId;
use crate::store::{Change, CollectionObject, ObjectPhase, Progress};
use crate::task::CollectionState;

/// How often the source is asked whether a collection that stands apart, and is not in its metadata, is gone; how often a
/// collection that can have no name is tried again, and one that is wanted again and could not be.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Conductor<'_> {
    /// By the name under which it was met, if it was: what a rename on the source does is another matter.
    fn is_wanted(&self, id: CollectionId) -> bool {
        let met = self.objects.look(id, CollectionObject::source_name);
        let wanted = self.ctx.wanted();
        met.is_some_and(|met| wanted.selection.contains(&met.database, &met.name))
    }

    /// Whether a collection that is entered stood apart when the task was last at work, or is left out since.
    pub(super) fn begins_apart(&self, id: CollectionId, answer: Option<&Answer>) -> bool {
        let live = self.objects.look(id, |o| o.phase) == Some(ObjectPhase::Live);
        live && (answer.is_some_and(|a| a.apart) || !self.is_wanted(id))
    }

    pub(super) fn is_apart(&self, id: CollectionId) -> bool {
        let entry = self.entries.get(&id);
        entry.is_some_and(|e| matches!(e.phase, Phase::Apart(_)))
    }

    /// Not before the readers have begun: until then the place of a collection is that of its channels.
    pub(super) async fn select(&mut self, view: &View) {
        if self.first_round {
            return;
        }
        let now = Instant::now();
        self.edited();
        let mut leave = Vec::new();
        let mut come = Vec::new();
        let mut look = Vec::new();
        let spec = self.ctx.wanted();
        for (id, entry) in &mut self.entries {
            let met = self.objects.look(*id, |o| {
                let known = entry.asked.as_ref();
                let known = known.filter(|(by, _)| Arc::ptr_eq(by, &spec));
                known.map(|(_, is)| *is).ok_or_else(|| o.source_name())
            });
            let wanted = match met {
                Some(Ok(wanted)) => wanted,
                Some(Err(name)) => {
                    let is = spec.selection.contains(&name.database, &name.name);
                    entry.asked = Some((spec.clone(), is));
                    is
                }
                None => spec.selection.contains(&entry.database, &entry.source.name),
            };
            match entry.phase {
                Phase::Apart(at) if at > now => {}
                Phase::Apart(_) => {
                    let there = view.collections.get(id).map(|c| c.state);
                    match there {
                        Some(ObjectState::Created) if wanted => come.push(*id),
                        Some(ObjectState::Created) => {
                            if !entry.answer.apart {
                                leave.push(*id);
                            }
                        }
                        other => look.push((*id, other.is_some())),
                    }
                }
                Phase::Opening | Phase::Dropping | Phase::Dropped => {}
                _ if wanted => {}
                _ => leave.push(*id),
            }
        }
        for id in leave {
            self.stand_apart(id).await;
        }
        for id in come {
            self.come_back(id).await;
        }
        for (id, is_dropping) in look {
            if is_dropping {
                self.forget_apart(id).await;
                continue;
            }
            self.put_off(id);
            let ctx = self.ctx.clone();
            self.start_job(id, async move {
                let read = ctx.catalog().read_collection(id).await;
                super::conductor::Outcome::Read(id, read.map(|found| found.map(Arc::new)))
            });
        }
    }

    /// What waits for a person may not have to any more.
    fn edited(&mut self) {
        let spec = self.ctx.wanted();
        let before = self.asked_for.replace(spec.clone());
        let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &spec)) else {
            return;
        };
        let anew = before.on_conflict != spec.on_conflict
            || before.mapping != spec.mapping
            || before.starts != spec.starts
            || before.positions != spec.positions;
        for entry in self.entries.values_mut().filter(|_| anew) {
            match entry.phase {
                Phase::Held(Held::Conflict | Held::Lost(_)) => entry.phase = Phase::Due,
                Phase::Retry(_) => entry.phase = Phase::Retry(Instant::now()),
                _ => {}
            }
        }
    }

    fn put_off(&mut self, id: CollectionId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Apart(Instant::now() + LOOK_AGAIN);
        }
    }

    /// Where it would go on is stored; what was made of it stays.
    async fn stand_apart(&mut self, id: CollectionId) {
        let phase = self.objects.look(id, |o| o.phase);
        if phase == Some(ObjectPhase::Dropping) {
            // It is gone in a moment.
            return;
        }
        self.take_off(id).await;
        self.objects.routes.write().remove(&id);
        self.objects.converged(id, None);
        self.ctx.hub.claims.leave(&self.ctx.spec.id, id);
        self.board.lock().remove(id);
        if phase != Some(ObjectPhase::Live) {
            // Nothing of it was begun.
            self.entries.remove(&id);
            return;
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.phase = Phase::Apart(Instant::now());
        entry.answer.apart = true;
        entry.poison = None;
        let change = note(&self.ctx, id, &entry.answer);
        self.ctx.commit(vec![change]).await;
        tracing::info!(task = %self.ctx.spec.id, collection = %id, "the task carries it no longer; it stays on the target as it is");
    }

    /// It goes on where it was. What the target holds of it may have been another task's meanwhile: everything up to now
    /// is in doubt.
    async fn come_back(&mut self, id: CollectionId) {
        let now = match self.ctx.catalog().tso_bound().await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(task = %self.ctx.spec.id, collection = %id, "it is wanted again, and waits: {error}");
                return self.put_off(id);
            }
        };
        let task = self.ctx.spec.id.clone();
        let mut changes = Vec::new();
        for ((channel, of), progress) in &mut self.stored.detached {
            if *of == id {
                *progress = Progress {
                    sent: progress.sent.max(now),
                    ..*progress
                };
                changes.push(Change::PutDetached {
                    task: task.clone(),
                    channel: channel.clone(),
                    collection: id,
                    progress: *progress,
                });
            }
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.answer.apart = false;
        entry.phase = Phase::Due;
        if let Some(snapshot) = &mut entry.snapshot {
            *snapshot = snapshot.anew();
            changes.push(copying::note(&self.ctx, id, Some(snapshot)));
        }
        changes.push(note(&self.ctx, id, &entry.answer));
        self.ctx.commit(changes).await;
    }

    /// What the source says of one that stands apart and is not in the view.
    pub(super) async fn read_apart(
        &mut self,
        id: CollectionId,
        found: Result<Option<Arc<Collection>>, CatalogError>,
    ) {
        let gone = match found {
            Ok(found) => found.is_none_or(|c| c.state == ObjectState::Dropping),
            Err(_) => false,
        };
        if gone {
            self.forget_apart(id).await;
        }
    }

    /// The source has dropped it: on the target it is nobody's.
    async fn forget_apart(&mut self, id: CollectionId) {
        let task = self.ctx.spec.id.clone();
        let mut changes = vec![Change::PutNote {
            task: task.clone(),
            collection: id,
            note: String::new(),
        }];
        if self.entries.get(&id).is_some_and(|e| e.snapshot.is_some()) {
            changes.push(copying::note(&self.ctx, id, None));
        }
        let keys = self.stored.detached.keys().filter(|(_, c)| *c == id);
        for (channel, collection) in keys.cloned().collect::<Vec<_>>() {
            self.stored.detached.remove(&(channel.clone(), collection));
            self.ctx.durable.lock().forget(&channel, collection);
            changes.push(Change::DeleteDetached {
                task: task.clone(),
                channel,
                collection,
            });
        }
        self.objects.forget(id, changes).await;
        self.entries.remove(&id);
        self.board.lock().remove(id);
    }

    /// Why two collections that both are there cannot both have their name on the target, if it is for what the task is
    /// asked to do.
    pub(super) fn one_name(&self, id: CollectionId, holder: CollectionId) -> Option<Problem> {
        let (later, earlier) = (self.entries.get(&id)?, self.entries.get(&holder)?);
        let names = |o: &CollectionObject| (o.carried_name(), o.target_name());
        let (met, to) = self.objects.look(holder, names)?;
        let there = earlier.source.state == ObjectState::Created;
        let renamed = earlier.source.name != met.name || earlier.database != met.database;
        let apart = matches!(earlier.phase, Phase::Apart(_));
        if !there || (renamed && !apart) {
            return None;
        }
        let why = format!(
            "{}.{} would be {to} on the target, which {met} is{}",
            later.database,
            later.source.name,
            if apart {
                ", though the task carries that one no longer"
            } else {
                ""
            }
        );
        let hint =
            "give one of the two another name with the task's mapping, or exclude the later one";
        Some(Problem::new(ErrorClass::Conflict, why, hint))
    }

    /// It waits for a person to change what the task is asked to do, and tries by itself whether that was done.
    pub(super) fn unnamed(&mut self, id: CollectionId, problem: Problem) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.phase = Phase::Retry(Instant::now() + LOOK_AGAIN);
        entry.failing_since.get_or_insert_with(SystemTime::now);
        let state = CollectionState::Conflict {
            problem: problem.clone(),
            choices: Vec::new(),
        };
        let mut board = self.board.lock();
        board.set(id, state);
        board.error(id, problem);
    }
}
