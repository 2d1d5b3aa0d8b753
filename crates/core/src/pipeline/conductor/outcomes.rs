//! What comes back of the jobs and of the streams, and the state in which a collection is then.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Conductor, FIRST_PATIENCE, Held, Outcome, Phase, STEADY, broke_off, note};
use crate::backoff::Backoff;
use crate::catalog::ObjectState;
use crate::error::{ErrorClass, Problem};
use crate::ids::CollectionId;
use crate::lane::Poison;
use crate::pipeline::copying;
use crate::pipeline::objects::Obstacle;
use crate::pipeline::opening::{Ready, Stop};
use crate::store::{Change, ObjectPhase};
use crate::task::CollectionState;

/// A collection that is to be renamed has sent what it had in hand within this, or that is sent again later.
const SENT_WITHIN: Duration = Duration::from_millis(500);

impl Conductor<'_> {
    pub(super) async fn outcome(&mut self, outcome: Outcome) {
        let id = match &outcome {
            Outcome::Opened(id, _)
            | Outcome::TakenDown(id, _)
            | Outcome::Dropped(id, _)
            | Outcome::Read(id, _)
            | Outcome::End(id, _)
            | Outcome::BrokeOff(id) => *id,
        };
        match outcome {
            Outcome::Opened(_, Ok(ready)) => self.opened(id, *ready).await,
            Outcome::Opened(_, Err(Stop::Lost(lost))) => self.lost(id, &lost),
            Outcome::Opened(_, Err(Stop::Unread(error))) => self.failed(id, error.problem()),
            Outcome::Opened(_, Err(Stop::Target(obstacle))) => self.obstacle(id, obstacle).await,
            Outcome::TakenDown(_, Ok(())) => self.taken_down(id).await,
            Outcome::Dropped(_, Ok(())) => self.forget_entry(id).await,
            Outcome::TakenDown(_, Err(problem)) | Outcome::Dropped(_, Err(problem)) => {
                self.failed(id, problem);
            }
            Outcome::End(_, end) => {
                if let Some(staying) = self.entries.get_mut(&id).and_then(|e| e.staying.as_mut()) {
                    // Asked again by the next look, if there was no answer.
                    staying.asked = end.is_ok();
                    staying.end = end.ok();
                }
            }
            Outcome::Read(_, found) if self.is_apart(id) => self.read_apart(id, found).await,
            Outcome::Read(_, Ok(Some(collection))) => {
                if let Some(entry) = self.entries.get_mut(&id)
                    && matches!(entry.phase, Phase::Unread(_))
                {
                    entry.source = collection;
                    entry.phase = Phase::Due;
                    return;
                }
            }
            // Gone: its drop is made, when there is room for it.
            Outcome::Read(_, Ok(None)) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.phase = Phase::Retry(Instant::now());
                }
            }
            Outcome::Read(_, Err(error)) => {
                let mut board = self.board.lock();
                board.error(id, error.problem());
            }
            Outcome::BrokeOff(_) => self.failed(id, broke_off("the work on this collection")),
        }
        // One whose opening failed for the moment is waited for a little: what its earlier process had sent in part would
        // be shown by the ticks of the others, which begin without it.
        let again = self.begun.elapsed() < FIRST_PATIENCE
            && self
                .entries
                .get(&id)
                .is_some_and(|e| matches!(e.phase, Phase::Retry(_)) && e.is_transient);
        if let Some(first) = &mut self.first
            && !again
        {
            first.remove(&id);
        }
    }

    /// Collections that are to go on under another name on the target.
    pub(super) async fn open_again(&mut self) {
        if self.first_round {
            return;
        }
        for id in self.objects.take_to_open_again() {
            let streams = |e: &super::Entry| e.phase == Phase::Streaming;
            if self.entries.get(&id).is_some_and(streams) {
                // Before what goes on is raised.
                let why = "it is about to get another name on the target".to_owned();
                self.board.lock().set(id, CollectionState::Waiting { why });
                if let Some(route) = self.entries.get_mut(&id).and_then(|e| e.route.take()) {
                    self.detach_within(id, &route, SENT_WITHIN).await;
                }
                self.objects.routes.write().remove(&id);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.phase = Phase::Due;
                }
            }
        }
    }

    async fn obstacle(&mut self, id: CollectionId, obstacle: Obstacle) {
        match obstacle {
            // It may have been made already, or half.
            Obstacle::Gone
                if self
                    .objects
                    .get(id)
                    .is_some_and(|o| o.phase != ObjectPhase::Dropped) =>
            {
                self.drop_from_table(id).await;
            }
            Obstacle::Gone => self.forget_entry(id).await,
            Obstacle::NameTaken(holder) => {
                let alive = self.entries.get(&holder).filter(|h| {
                    h.dropping_since.is_none() && h.source.state == ObjectState::Created
                });
                if let Some(problem) = self.one_name(id, holder) {
                    return self.unnamed(id, problem);
                }
                if let Some(holder) = alive {
                    let why = format!(
                        "its name on the target belongs to {}, which was renamed on the source and still has it there",
                        holder.source.name
                    );
                    let hint = "goes on by itself when that one is renamed there; if it lasts, see what it says";
                    return self.failed(id, Problem::new(ErrorClass::Transient, why, hint));
                }
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.phase = Phase::Retry(Instant::now() + Duration::from_millis(100));
                    let why = "the older one of its name is dropped on the target first".to_owned();
                    self.board.lock().set(id, CollectionState::Waiting { why });
                }
            }
            Obstacle::Conflict(problem) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.phase = Phase::Held(Held::Conflict);
                }
                let choices = vec!["adopt".to_owned(), "recreate".to_owned()];
                let state = CollectionState::Conflict {
                    problem: problem.clone(),
                    choices,
                };
                let mut board = self.board.lock();
                board.set(id, state);
                board.error(id, problem);
            }
            Obstacle::Unnamed(problem) => self.unnamed(id, problem),
            Obstacle::Failed(problem) => self.failed(id, problem),
        }
    }

    /// A collection is there. A fresh one is stored together with the places where its reading begins: one without them
    /// would be taken for one that its channels' main readers carry.
    async fn opened(&mut self, id: CollectionId, ready: Ready) {
        let Ready {
            route,
            fresh,
            records,
            snapshot,
        } = ready;
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let task = &self.ctx.spec.id;
        let mut changes: Vec<Change> = records
            .iter()
            .map(|(channel, progress)| Change::PutDetached {
                task: task.clone(),
                channel: channel.clone(),
                collection: id,
                progress: *progress,
            })
            .collect();
        for (channel, _) in &records {
            // It begins here; what is known of an earlier stretch of it means nothing any more.
            self.ctx.durable.lock().forget(channel, id);
        }
        let answer = entry.answer.done();
        if answer != entry.answer {
            changes.push(note(&self.ctx, id, &answer));
        }
        if fresh.is_some() && snapshot != entry.snapshot {
            changes.push(copying::note(&self.ctx, id, snapshot.as_ref()));
            entry.snapshot = snapshot;
        }
        if let Some(snapshot) = &mut entry.snapshot
            && let Some(begin) = records.iter().map(|(_, p)| p.applied).max()
            && begin > snapshot.at
        {
            // Its messages begin later now: what is read from here on must not be older.
            snapshot.at = begin;
            changes.push(copying::note(&self.ctx, id, Some(snapshot)));
        }
        match fresh {
            Some(object) => self.objects.put_with(object, changes).await,
            None if !changes.is_empty() => self.ctx.commit(changes).await,
            None => {}
        }
        for (channel, progress) in records {
            self.stored.detached.insert((channel, id), progress);
        }
        entry.answer = answer;
        entry.route = Some(route);
        entry.phase = match entry.snapshot {
            Some(_) => Phase::Copying,
            None => Phase::Ready,
        };
    }

    pub(in crate::pipeline) fn failed(&mut self, id: CollectionId, problem: Problem) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry
            .streaming_since
            .take()
            .is_some_and(|since| since.elapsed() > STEADY)
        {
            entry.backoff = Backoff::new();
            entry.failing_since = None;
        }
        entry.is_transient = problem.class == ErrorClass::Transient;
        let since = *entry.failing_since.get_or_insert_with(SystemTime::now);
        entry.phase = Phase::Retry(Instant::now() + entry.backoff.step());
        let attempt = entry.backoff.attempt;
        let mut board = self.board.lock();
        board.set(
            id,
            CollectionState::Failing {
                problem: problem.clone(),
                attempt,
                since,
            },
        );
        board.error(id, problem);
    }

    /// Streams that cannot go on leave their readers; the store says where each goes on, then memory lets go.
    pub(in crate::pipeline) async fn failures(&mut self) {
        let failed: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(id, e)| {
                e.route
                    .as_ref()
                    .filter(|r| r.stream.failed())
                    .map(|r| (*id, r.clone()))
            })
            .collect();
        for (id, route) in failed {
            let problem = route
                .stream
                .problem()
                .unwrap_or_else(|| Problem::new(ErrorClass::Bug, "failed", ""));
            self.detach(id, &route).await;
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.route = None;
            if let Some(poison) = route.stream.poison() {
                self.keep(id, &poison, &problem).await;
                let Poison {
                    channel, position, ..
                } = poison;
                let Some(entry) = self.entries.get_mut(&id) else {
                    continue;
                };
                entry.phase = Phase::Held(Held::Quarantined);
                entry.poison = Some((channel.clone(), position));
                let position = position.to_string();
                let state = CollectionState::Quarantined {
                    problem: problem.clone(),
                    channel,
                    position,
                };
                let mut board = self.board.lock();
                board.set(id, state);
                board.error(id, problem);
            } else {
                entry.poison = route.stream.refused();
                // It may have been taken since, and the stream fail for another reason.
                let refused = route.stream.refused().filter(|(channel, position)| {
                    let goes_on = self.stored.detached.get(&(channel.clone(), id));
                    goes_on.is_none_or(|p| (p.position, p.after) <= (*position, false))
                });
                if let Some((channel, position)) = refused {
                    let poison = Poison {
                        channel,
                        position,
                        payload: None,
                    };
                    self.keep(id, &poison, &problem).await;
                }
                self.failed(id, problem);
            }
        }
    }
}
