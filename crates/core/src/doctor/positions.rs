//! Whether the queue still holds what the tasks have to read, and for how long it will.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{age, bounds, living, time_at};
use super::{Check, Patient, answers_to, label, names, some, spoken, within};
use crate::catalog::{Collection, View};
use crate::ids::{CollectionId, PChannel};
use crate::position::Position;
use crate::source::{Bounds, LogSource, SourceError, Start};
use crate::task::StartPoint;
use crate::tso::Tso;

/// Less than this part of what the queue holds left behind a task is worth a word.
const LOW: f64 = 0.2;
/// A task this far behind is not just busy.
const BEHIND: f64 = 600.0;

/// Where something goes on reading.
#[derive(Clone, Debug)]
struct Need {
    channel: PChannel,
    start: Start,
    /// Who needs it.
    whose: String,
    /// What is applied up to there; zero if nothing is known.
    applied: Tso,
}

impl Need {
    fn position(&self) -> Option<Position> {
        match self.start {
            Start::At(p) | Start::After(p) => Some(p),
            Start::Earliest | Start::Latest => None,
        }
    }
}

pub(super) async fn all(
    view: Option<&View>,
    queue: Option<&dyn LogSource>,
    tasks: &[Patient],
) -> Vec<Check> {
    let Some(queue) = queue else {
        return vec![Check::skipped(names::POSITIONS, "no queue")];
    };
    let mut checks = Vec::new();
    for task in tasks {
        let needs = of_task(view, queue, task);
        let check = match within(names::POSITIONS, examine(queue, &needs, true)).await {
            Ok(check) => check,
            Err(late) => late,
        };
        checks.push(check.about(task.spec.id.to_string()));
    }
    if tasks.is_empty() {
        checks.push(match view {
            None => Check::skipped(names::POSITIONS, "no metadata and no task"),
            Some(view) => {
                let needs = of_catalog(view, queue);
                match within(names::POSITIONS, examine(queue, &needs, false)).await {
                    Ok(check) => check,
                    Err(late) => late,
                }
            }
        });
    }
    checks
}

/// What a task has to read: where its channels and its detached collections go on, and where collections begin that it
/// has not met yet.
fn of_task(view: Option<&View>, queue: &dyn LogSource, task: &Patient) -> Vec<Need> {
    let progress = &task.progress;
    let name = |id: &CollectionId| match progress.collections.get(id) {
        Some(object) => object.carried_name().to_string(),
        None => format!("collection {id}"),
    };
    let channels = progress
        .channels
        .iter()
        .map(|(channel, p)| (channel, p, "the task".to_owned()));
    let detached = progress
        .detached
        .iter()
        .map(|((channel, id), p)| (channel, p, name(id)));
    let mut needs: Vec<Need> = channels
        .chain(detached)
        .map(|(channel, p, whose)| Need {
            channel: channel.clone(),
            start: match p.after {
                true => Start::After(p.position),
                false => Start::At(p.position),
            },
            whose,
            applied: p.applied,
        })
        .collect();
    let met = |c: &Collection| {
        progress.collections.contains_key(&c.id)
            || progress.detached.keys().any(|(_, id)| *id == c.id)
            || progress.notes.contains_key(&c.id)
    };
    let Some(view) = view else { return needs };
    for collection in living(view).filter(|c| !met(c)) {
        let Some(database) = view.database_name(collection.db) else {
            continue;
        };
        let spec = &task.spec;
        if !spec.selection.contains(database, &collection.name) {
            continue;
        }
        let start = spec.start_of(database, &collection.name, collection.create_ts);
        let from_creation = start == StartPoint::Created;
        let given = spec.positions.get(&collection.id);
        for shard in &collection.shards {
            let given = given.and_then(|of| of.get(&shard.pchannel));
            let position = match given {
                Some(given) => Some(given.position),
                None if from_creation => start_of(queue, collection, &shard.pchannel),
                None => None,
            };
            needs.extend(position.map(|position| Need {
                channel: shard.pchannel.clone(),
                start: Start::At(position),
                whose: label(view, collection),
                applied: Tso::ZERO,
            }));
        }
    }
    needs
}

/// Where every collection begins.
fn of_catalog(view: &View, queue: &dyn LogSource) -> Vec<Need> {
    let shards = living(view).flat_map(|c| c.shards.iter().map(move |shard| (c, shard)));
    shards
        .filter_map(|(c, shard)| {
            Some(Need {
                channel: shard.pchannel.clone(),
                start: Start::At(start_of(queue, c, &shard.pchannel)?),
                whose: label(view, c),
                applied: Tso::ZERO,
            })
        })
        .collect()
}

fn start_of(queue: &dyn LogSource, c: &Collection, channel: &PChannel) -> Option<Position> {
    Position::from_bytes(queue.kind(), c.start_positions.get(channel)?).ok()
}

/// `needed`: a task needs them now, rather than one that somebody may create.
async fn examine(queue: &dyn LogSource, needs: &[Need], needed: bool) -> Check {
    let channels: BTreeSet<PChannel> = needs.iter().map(|need| need.channel.clone()).collect();
    let held = bounds(queue, channels.clone()).await;
    let suspects = needs.iter().filter(|need| {
        let bounds = held.get(&need.channel).and_then(|held| held.as_ref().ok());
        !surely_held(need, bounds.and_then(Option::as_ref))
    });
    // The queue itself knows best what it still holds.
    let asked = suspects.map(|need| async move {
        let opened = queue.open(&need.channel, need.start).await;
        (need, opened.err())
    });
    let outcomes = answers_to(asked).await;
    let mut lost: Vec<String> = Vec::new();
    let mut failed = None;
    for (need, error) in outcomes {
        match error {
            Some(SourceError::PositionLost { .. }) => {
                let now = match held.get(&need.channel) {
                    Some(Ok(Some(Bounds { first, last }))) => format!("{first} to {last}"),
                    _ => "nothing".to_owned(),
                };
                let wanted = need.position().map(|p| p.to_string()).unwrap_or_default();
                lost.push(format!(
                    "{} at {} of {} (the queue holds {now})",
                    need.whose, wanted, need.channel
                ));
            }
            Some(error) => failed = failed.or(Some(error)),
            None => {}
        }
    }
    lost.sort();
    if !lost.is_empty() {
        let text = format!("{} position(s) have expired: {}", lost.len(), some(&lost));
        return match needed {
            true => Check::problem(
                names::POSITIONS,
                text,
                "what lies between is only in the source's storage: answer with resume (start: earliest or now, or positions), and keep messages longer (the queue's retention) than a task may stand still",
            ),
            false => Check::warning(
                names::POSITIONS,
                text,
                "a new task finds these in PositionLost; create it with start: earliest or now for them",
            ),
        };
    }
    if let (false, Some(SourceError::NoSuchChannel { .. })) = (needed, &failed) {
        return Check::skipped(names::POSITIONS, "channels are missing");
    }
    if let Some(error) = failed {
        return Check::of(names::POSITIONS, &error.problem());
    }
    if needs.is_empty() {
        return Check::ok(names::POSITIONS, "nothing has to be read yet");
    }
    headroom(queue, needs, &channels).await
}

/// Whether what the channel holds says it without asking.
fn surely_held(need: &Need, bounds: Option<&Bounds>) -> bool {
    match (need.position(), bounds) {
        (Some(p), Some(held)) => held.first <= p && p <= held.last,
        _ => false,
    }
}

/// All is there; how far behind its oldest message the tasks are.
async fn headroom(queue: &dyn LogSource, needs: &[Need], channels: &BTreeSet<PChannel>) -> Check {
    let oldest = needs
        .iter()
        .filter(|need| need.applied > Tso::ZERO)
        .min_by_key(|need| need.applied);
    let there = format!(
        "all {} on {} channel(s) are in the queue",
        needs.len(),
        channels.len()
    );
    let firsts = answers_to(channels.iter().map(|channel| async move {
        let first = time_at(queue, channel, Start::Earliest).await?;
        Some((channel.clone(), first))
    }));
    let firsts: BTreeMap<PChannel, Tso> = firsts.await.into_iter().flatten().collect();
    let least = needs
        .iter()
        .filter(|need| need.applied > Tso::ZERO)
        .filter_map(|need| {
            let first = firsts.get(&need.channel)?;
            Some((need, first.behind(need.applied).as_secs_f64()))
        })
        .min_by(|a, b| a.1.total_cmp(&b.1));
    let (Some(oldest), Some((need, room))) = (oldest, least) else {
        let reach = firsts.values().max().map(|first| age(*first));
        return match reach {
            Some(reach) => Check::ok(
                names::POSITIONS,
                format!("{there}, which reaches back {}", spoken(reach)),
            ),
            None => Check::ok(names::POSITIONS, there),
        };
    };
    let behind = age(oldest.applied).max(0.0);
    let text = format!(
        "{there}; the oldest is {} behind now, and the queue reaches back {} before it",
        spoken(behind),
        spoken(room)
    );
    let own = age(need.applied).max(0.0);
    if own > BEHIND && room < LOW * (own + room) {
        return Check::warning(
            names::POSITIONS,
            text,
            "if the queue has begun to forget (its retention), let the task run, or keep messages longer, before its position expires",
        );
    }
    Check::ok(names::POSITIONS, text)
}
