//! Collections whose rows are copied before their messages are carried: begun, ended, begun anew.

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Conductor, Phase, broke_off, note};
use crate::ids::CollectionId;
use crate::pipeline::copying::{self, Stopped};
use crate::pipeline::pulse::Pulse;
use crate::source::SourceError;
use crate::store::Change;
use crate::task::Mode;
use crate::tso::Tso;

/// Collections copied at the same time.
const COPIES: usize = 2;

/// A copy under way.
pub(in crate::pipeline) struct Copy {
    pub(super) progress: std::sync::Arc<copying::Progress>,
    job: AbortOnDropHandle<Result<Tso, Stopped>>,
}

impl Conductor<'_> {
    /// Begins copies where there is room, and takes what came of those that have ended.
    pub(super) async fn copies(&mut self) {
        let over = |e: &super::Entry| e.copy.as_ref().is_some_and(|c| c.job.is_finished());
        let ended: Vec<CollectionId> = self
            .entries
            .iter()
            .filter(|(_, e)| over(e))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.copied(id).await;
        }
        if self.first_round || self.ctx.drain.is_cancelled() {
            return;
        }
        let at_work = |e: &&super::Entry| e.copy.as_ref().is_some_and(|c| c.progress.is_at_work());
        let mut under_way = self.entries.values().filter(at_work).count();
        for (id, entry) in &mut self.entries {
            if under_way >= COPIES {
                break;
            }
            let (Phase::Copying, None, Some(route), Some(snapshot)) =
                (&entry.phase, &entry.copy, &entry.route, &entry.snapshot)
            else {
                continue;
            };
            under_way += 1;
            let places = self.stored.detached.iter();
            let places = places
                .filter(|((_, of), _)| of == id)
                .map(|((channel, _), progress)| (channel.clone(), *progress))
                .collect();
            let progress = copying::Progress::new(snapshot, &self.ctx.spec.snapshot);
            let job = copying::copy(
                self.ctx.clone(),
                self.objects.clone(),
                (entry.source.clone(), entry.database.clone()),
                route.clone(),
                (snapshot.clone(), places),
                (progress.clone(), self.pace.clone()),
            );
            let wake = self.ctx.wake.clone();
            let job = AbortOnDropHandle::new(tokio::spawn(async move {
                let end = job.await;
                wake.notify_one();
                end
            }));
            entry.copy = Some(Copy { progress, job });
        }
    }

    /// Those of the target's channels that nobody brings ticks to, because the rows of their collection come first.
    pub(super) fn pulses(&mut self) {
        if self.ctx.hub.mode == Mode::Plain || self.first_round {
            return;
        }
        for entry in self.entries.values_mut() {
            use Phase::{Copying, Due, Opening, Retry};
            let before = matches!(entry.phase, Copying | Due | Opening | Retry(_));
            if !before || entry.snapshot.is_none() {
                entry.pulse = None;
            } else if entry.pulse.is_none()
                && let Some(route) = &entry.route
            {
                entry.pulse = Some(Pulse::start(&self.ctx.hub, route));
            }
        }
    }

    /// Ends the copy of a collection: when this returns, nothing more of it is sent.
    pub(in crate::pipeline) async fn stop_copy(&mut self, id: CollectionId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if let Some(Copy { progress, job }) = entry.copy.take() {
            job.abort();
            let _ = job.await;
            entry.snapshot = Some(progress.stored());
        }
    }

    pub(in crate::pipeline) async fn stop_copies(&mut self) {
        let ids: Vec<CollectionId> = self.entries.keys().copied().collect();
        for id in ids {
            self.stop_copy(id).await;
        }
    }

    async fn copied(&mut self, id: CollectionId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let Some(Copy { progress, job }) = entry.copy.take() else {
            return;
        };
        entry.snapshot = Some(progress.stored());
        match job.await {
            Ok(Ok(bound)) => self.goes_on(id, bound).await,
            Ok(Err(Stopped::Lost(lost))) => {
                let snapshot = self.entries.get(&id).and_then(|e| e.snapshot.as_ref());
                if snapshot.is_some_and(|s| s.adopted) {
                    // What would be dropped is not ours alone.
                    self.take_off(id).await;
                    self.lost(id, &lost);
                } else {
                    self.copy_anew(id, &lost).await;
                }
            }
            Ok(Err(Stopped::Failed(problem))) => {
                self.take_off(id).await;
                self.failed(id, problem);
            }
            Err(_) => {
                self.take_off(id).await;
                self.failed(id, broke_off("the copy of its rows"));
            }
        }
    }

    /// All its rows are there. What the source has given out since its places were noted, up to now, is in doubt: it may
    /// be in what was copied.
    async fn goes_on(&mut self, id: CollectionId, bound: Tso) {
        let task = self.ctx.spec.id.clone();
        let mut changes = vec![copying::note(&self.ctx, id, None)];
        for ((channel, of), progress) in &mut self.stored.detached {
            if *of == id {
                progress.sent = progress.sent.max(bound);
                changes.push(Change::PutDetached {
                    task: task.clone(),
                    channel: channel.clone(),
                    collection: id,
                    progress: *progress,
                });
            }
        }
        self.ctx.commit(changes).await;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.snapshot = None;
            entry.failing_since = None;
            entry.phase = Phase::Ready;
        }
    }

    /// The queue has lost the place from which its messages were to be read: what was copied is of no use.
    async fn copy_anew(&mut self, id: CollectionId, lost: &[SourceError]) {
        tracing::warn!(
            task = %self.ctx.spec.id,
            collection = %id,
            "while its rows were copied the queue let go of the messages behind them ({}); the copy begins anew",
            lost.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        );
        self.take_off(id).await;
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let mut answer = entry.answer.clone();
        answer.snapshot = true;
        answer.release |= entry.snapshot.as_ref().is_some_and(|s| s.release);
        let changes = vec![
            note(&self.ctx, id, &answer),
            copying::note(&self.ctx, id, None),
        ];
        self.ctx.commit(changes).await;
        let mut board = self.board.lock();
        for error in lost {
            board.error(id, error.problem());
        }
        drop(board);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.answer = answer;
            entry.snapshot = None;
            entry.phase = Phase::Retry(Instant::now());
        }
    }

    /// The target's collection that is to be copied anew is gone: from now on it is one that is met for the first time.
    /// Until then it was known as ours, so that it is found under whatever name it had, and goes if the source drops it.
    pub(super) async fn taken_down(&mut self, id: CollectionId) {
        let (records, _) = self.records(id, None);
        let records = self.deletes(id, &records);
        self.objects.forget(id, records).await;
        self.stored.detached.retain(|(_, of), _| *of != id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Due;
        }
    }

    /// Brings what is copied to the board.
    pub(super) fn show_copies(&self) {
        let mut board = self.board.lock();
        for (id, entry) in &self.entries {
            if entry.phase != Phase::Copying {
                continue;
            }
            let waiting = || {
                entry
                    .snapshot
                    .as_ref()
                    .map(|s| copying::Progress::new(s, &self.ctx.spec.snapshot).state())
            };
            let state = entry.copy.as_ref().map(|c| c.progress.state());
            if let Some(state) = state.or_else(waiting) {
                board.set(*id, state);
            }
        }
    }
}
