//! Collections that wait for a person, and what the person says.
//!
//! An answer is stored, together with what it changes, before it is said to be taken; it is forgotten when it is carried
//! out. So it survives whatever happens in between.

use std::collections::BTreeSet;

use super::conductor::{Conductor, Entry, Held, Phase, note};
use super::copying::unreadable;
use super::opening::Reset;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::source::SourceError;
use crate::store::Change;
use crate::task::{Choice, CollectionState, OnConflict};

impl Conductor<'_> {
    /// The queue no longer holds where a collection would go on, on one channel or several.
    pub(super) fn lost(&mut self, id: CollectionId, lost: &[SourceError]) {
        let mut channels = BTreeSet::new();
        for error in lost {
            if let SourceError::PositionLost { channel, .. } = error {
                channels.insert(channel.clone());
            }
        }
        let Some(SourceError::PositionLost {
            channel,
            wanted,
            first,
            last,
        }) = lost.first()
        else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = match &entry.phase {
                // On another channel before, and nobody answered yet.
                Phase::Held(Held::Lost(before)) => {
                    Phase::Held(Held::Lost(before.union(&channels).cloned().collect()))
                }
                _ => Phase::Held(Held::Lost(channels)),
            };
        }
        let choices = vec![
            "earliest: go on at the first message the queue holds; what was written between is missed".to_owned(),
            "now: go on behind the last message; everything up to now is missed".to_owned(),
            "positions: go on at given messages; what was written before them is missed".to_owned(),
            "snapshot: drop it on the target, and copy the rows that the source has now; nothing is missed".to_owned(),
        ];
        let state = CollectionState::PositionLost {
            channel: channel.clone(),
            wanted: wanted.to_string(),
            first: first.map(|p| p.to_string()),
            last: last.map(|p| p.to_string()),
            choices,
        };
        let mut board = self.board.lock();
        board.set(id, state);
        for error in lost {
            board.error(id, error.problem());
        }
    }

    /// The one that waits, else the newest.
    fn find(&self, database: &str, name: &str) -> Option<CollectionId> {
        let named = |e: &Entry| {
            e.database == database && e.source.name == name && e.phase != Phase::Dropped
        };
        let mut found = None;
        for (id, entry) in self.entries.iter().filter(|(_, e)| named(e)) {
            if matches!(entry.phase, Phase::Held(_)) {
                return Some(*id);
            }
            found = Some(*id);
        }
        found
    }

    /// A person's answer. It is stored when this returns.
    pub(super) async fn choose(
        &mut self,
        database: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem> {
        let Some(id) = self.find(database, name) else {
            let why = format!("the task has no collection {database}.{name}");
            return Err(Problem::new(
                ErrorClass::Configuration,
                why,
                "see the task's collections",
            ));
        };
        let Some(entry) = self.entries.get(&id) else {
            return Ok(());
        };
        let mut answer = entry.answer.clone();
        let mut changes = Vec::new();
        let mut forget = false;
        match (&entry.phase, choice) {
            (Phase::Held(Held::Conflict), Choice::Conflict(choice)) => {
                let (records, sent) = self.records(id, None);
                answer.on_conflict = Some(choice);
                answer.sent = answer.sent.max(sent);
                changes.extend(self.deletes(id, &records));
                forget = true;
            }
            (Phase::Held(Held::Lost(_)), Choice::Snapshot) => {
                if self.ctx.parts.rows.is_none() {
                    return Err(unreadable());
                }
                // Of one that we made, that one is dropped, whatever it is called by then; see [`Conductor::taken_down`].
                if self.objects.get(id).is_none_or(|o| o.target.is_none()) {
                    answer.on_conflict = Some(OnConflict::Recreate);
                }
                answer.snapshot = true;
            }
            (Phase::Held(Held::Lost(lost)), choice @ (Choice::Start(_) | Choice::At(_))) => {
                let (records, sent) = self.records(id, Some(lost));
                for channel in lost {
                    let reset = match &choice {
                        Choice::Start(start) => Reset::Start(*start),
                        Choice::At(positions) => match positions.get(channel) {
                            Some(given) => Reset::At(*given),
                            None => {
                                let why = format!(
                                    "{database}.{name} has lost its position on {channel}, for which none is given"
                                );
                                let hint = "give a position for each of its channels that lost theirs, or a start";
                                return Err(Problem::new(ErrorClass::Configuration, why, hint));
                            }
                        },
                        _ => continue,
                    };
                    answer.reset.insert(channel.clone(), reset);
                }
                answer.sent = answer.sent.max(sent);
                changes.extend(self.deletes(id, &records));
            }
            (phase, Choice::Skip)
                if matches!(phase, Phase::Held(Held::Quarantined) | Phase::Retry(_))
                    && entry.poison.is_some() =>
            {
                let poison = entry.poison.clone();
                answer.skipped.extend(poison.clone());
                changes.extend(poison.and_then(|at| self.dropped(id, &at, "skip")));
            }
            (phase, _) => {
                let takes = match phase {
                    Phase::Held(Held::Conflict) => "waits for on_conflict (adopt or recreate)",
                    Phase::Held(Held::Lost(_)) => {
                        "waits for start (earliest, now or snapshot) or positions"
                    }
                    Phase::Held(Held::Quarantined) => "waits for skip",
                    _ => "does not wait for a choice",
                };
                let why = format!("{database}.{name} {takes}");
                return Err(not_waiting(&why));
            }
        }
        changes.push(note(&self.ctx, id, &answer));
        if forget {
            self.objects.forget(id, changes).await;
        } else {
            self.ctx.commit(changes).await;
        }
        let lost: Option<BTreeSet<PChannel>> = match &entry_phase(&self.entries, id) {
            Some(Phase::Held(Held::Lost(lost))) => Some(lost.clone()),
            _ => None,
        };
        if forget {
            self.stored.detached.retain(|(_, c), _| *c != id);
        } else if let Some(lost) = lost {
            self.stored
                .detached
                .retain(|(channel, c), _| *c != id || !lost.contains(channel));
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            for (channel, position) in &answer.skipped {
                self.objects.skip(id, channel, *position);
            }
            entry.poison = None;
            entry.answer = answer;
            entry.phase = Phase::Due;
        }
        Ok(())
    }

    /// Records of a collection that goes by itself, on these channels or all; and how far any of them was sent.
    pub(super) fn records(
        &self,
        id: CollectionId,
        on: Option<&BTreeSet<PChannel>>,
    ) -> (Vec<PChannel>, crate::tso::Tso) {
        let mut sent = crate::tso::Tso::ZERO;
        let mut channels = Vec::new();
        for ((channel, c), progress) in &self.stored.detached {
            if *c == id && on.is_none_or(|on| on.contains(channel)) {
                sent = sent.max(progress.sent);
                channels.push(channel.clone());
            }
        }
        (channels, sent)
    }

    pub(super) fn deletes(&self, id: CollectionId, channels: &[PChannel]) -> Vec<Change> {
        channels
            .iter()
            .map(|channel| Change::DeleteDetached {
                task: self.ctx.spec.id.clone(),
                channel: channel.clone(),
                collection: id,
            })
            .collect()
    }
}

pub(super) fn not_waiting(why: &str) -> Problem {
    Problem::new(ErrorClass::Conflict, why, "see its state")
}

fn entry_phase(
    entries: &std::collections::BTreeMap<CollectionId, Entry>,
    id: CollectionId,
) -> Option<Phase> {
    entries.get(&id).map(|e| e.phase.clone())
}
