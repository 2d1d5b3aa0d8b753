//! Where the collections of a task go on: what the Go server has kept, against what is on the source and in its queue.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::catalog::{Collection, ObjectState, View};
use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::position::Position;
use cdc_core::source::{LogSource, SourceError};
use cdc_core::takeover::{self, goes_on};
use cdc_core::task::{GivenPosition, TaskSpec};
use cdc_core::tso::Tso;
use serde::Serialize;

use super::kept::{PositionInfo, Positions, REPLICATE};
use super::wish::{Left, left};

/// One collection on one channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Place {
    pub collection: String,
    pub channel: String,
    pub text: String,
}

/// What becomes of the positions of one task.
#[derive(Default)]
pub(super) struct Places {
    pub(super) given: BTreeMap<CollectionId, BTreeMap<PChannel, GivenPosition>>,
    pub(super) shown: Vec<Place>,
    pub(super) left: Vec<Left>,
}

/// What all tasks are looked at against.
pub(super) struct Source<'a> {
    pub(super) view: &'a View,
    pub(super) queue: &'a dyn LogSource,
}

const NO_PLACE: &str = "the Go server has no place of it: from its creation, or it waits and asks if the target has rows of it";

/// # Errors
/// Why the task cannot be taken now.
pub(super) async fn of_task(
    source: &Source<'_>,
    spec: &TaskSpec,
    kept: &[Positions],
) -> Result<Places, Vec<Left>> {
    let mut found = Places::default();
    let mut met = BTreeSet::new();
    for of in kept.iter().filter(|k| k.task_id == spec.id.as_str()) {
        let id = CollectionId(of.collection_id);
        if of.collection_id == REPLICATE {
            found.left.push(left(
                "its place in the replicate channel",
                "nothing: databases, indexes and load states are compared with the source, and flushes that were missed change no rows",
            ));
        } else if of.collection_id <= 0 {
            found.left.push(left(
                format!("a place of no collection ({})", of.collection_id),
                "nothing, if the task's collections are all below",
            ));
        } else if !of.positions.is_empty() && of.positions.values().all(|p| p.dropped) {
            // It was dropped on the target, too.
            met.insert(id);
        } else {
            met.insert(id);
            match source.view.collections.get(&id) {
                Some(c) if c.state != ObjectState::Dropping => {
                    collection(source, spec, c, of, &mut found).await?;
                }
                _ => found.left.push(left(
                    format!(
                        "collection {:?} ({id}) was dropped on the source while nobody read it",
                        of.collection_name
                    ),
                    "if it is on the target it stays there as it is; a new one under its name will wait and ask (recreate)",
                )),
            }
        }
    }
    for c in source.view.collections.values() {
        let database = source.view.database_name(c.db).unwrap_or_default();
        if c.state != ObjectState::Dropping
            && !met.contains(&c.id)
            && spec.selection.contains(database, &c.name)
        {
            for shard in &c.shards {
                found.shown.push(Place {
                    collection: format!("{database}.{}", c.name),
                    channel: shard.pchannel.to_string(),
                    text: NO_PLACE.to_owned(),
                });
            }
        }
    }
    Ok(found)
}

async fn collection(
    source: &Source<'_>,
    spec: &TaskSpec,
    c: &Collection,
    kept: &Positions,
    found: &mut Places,
) -> Result<(), Vec<Left>> {
    let database = source.view.database_name(c.db).unwrap_or_default();
    let name = format!("{database}.{}", c.name);
    if !spec.selection.contains(database, &c.name) {
        found.left.push(left(
            format!("the places of {name}, which is none of its collections (any more)"),
            "nothing, if that is so",
        ));
        return Ok(());
    }
    let mut places = BTreeMap::new();
    for shard in &c.shards {
        let channel = &shard.pchannel;
        let mut show = |text: String| {
            found.shown.push(Place {
                collection: name.clone(),
                channel: channel.to_string(),
                text,
            });
        };
        let Some(one) = of_channel(kept, channel) else {
            show(NO_PLACE.to_owned());
            continue;
        };
        let kind = source.queue.kind();
        let position = Position::from_bytes(kind, &one.data_pair.data).map_err(|e| {
            vec![left(
                format!("the place of {name} on {channel} is none of this queue: {e}"),
                "check that sourceConfig names the queue the Go server has read",
            )]
        })?;
        let not_after = millis(one);
        let at = takeover::Left {
            position,
            not_after,
        };
        let given = match goes_on(source.queue, c, channel, at).await {
            Ok(given) => {
                show(match given.applied {
                    Tso::ZERO => format!("at {position}, with all that follows"),
                    tick => format!("at {position}, behind the tick {tick}"),
                });
                given
            }
            Err(error @ SourceError::PositionLost { .. }) => {
                show(format!("at {position}, WHICH IS LOST"));
                found.left.push(left(
                    error.to_string(),
                    format!(
                        "{name} will be PositionLost and wait: answer it with resume (start: earliest or now)"
                    ),
                ));
                let before = not_after.map_or(0, |ms| Tso::from_millis(ms).0.saturating_sub(1));
                GivenPosition {
                    position,
                    applied: Tso(before),
                }
            }
            Err(error) => {
                let problem = error.problem();
                return Err(vec![left(
                    format!("where {name} goes on cannot be looked up now: {error}"),
                    problem.hint,
                )]);
            }
        };
        places.insert(channel.clone(), given);
    }
    if !places.is_empty() {
        found.given.insert(c.id, places);
    }
    Ok(())
}

/// By the key, else by the name beside the message's id: what a virtual channel's name is cut to depends on Milvus'
/// version.
fn of_channel<'a>(kept: &'a Positions, channel: &PChannel) -> Option<&'a PositionInfo> {
    let name = channel.as_str();
    kept.positions.get(name).or_else(|| {
        let mut all = kept.positions.values();
        all.find(|p| p.data_pair.key == name)
    })
}

fn millis(kept: &PositionInfo) -> Option<u64> {
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    positive(kept.time).or_else(|| positive(kept.start_time))
}

#[cfg(test)]
mod tests {
    use super::super::kept::KeyDataPair;
    use super::*;

    #[test]
    fn a_place_is_found_by_either_name_and_has_the_later_time() {
        let place = |key: &str, time, start_time| PositionInfo {
            start_time,
            time,
            data_pair: KeyDataPair {
                key: key.to_owned(),
                data: vec![1],
            },
            dropped: false,
        };
        let kept = Positions {
            positions: BTreeMap::from([
                ("by-dev-rootcoord-dml_0".to_owned(), place("x", 7, 3)),
                (
                    "by-dev-rootcoord-dml".to_owned(),
                    place("by-dev-rootcoord-dml_1", 0, 3),
                ),
                ("y".to_owned(), place("y", 0, 0)),
            ]),
            ..Positions::default()
        };
        let at = |name: &str| of_channel(&kept, &PChannel::new(name)).map(millis);
        assert_eq!(at("by-dev-rootcoord-dml_0"), Some(Some(7)));
        assert_eq!(at("by-dev-rootcoord-dml_1"), Some(Some(3)));
        assert_eq!(at("y"), Some(None));
        assert_eq!(at("z"), None);
    }
}
