//! Whether the collections on a target are still those that the tasks made or took over there.

use std::sync::Arc;

use super::source::living;
use super::{Check, Patient, answers_to, names, some, within};
use crate::catalog::{Collection, ObjectState, View};
use crate::engine::target_problem;
use crate::ids::CollectionId;
use crate::select::Name;
use crate::store::{CollectionObject, ObjectPhase};
use crate::target::grpc::plain::PlainTarget;
use crate::target::{TargetCollection, TargetError};

/// A collection of a task, or one of the source that is on the target under its name.
struct Pair {
    database: String,
    name: String,
    /// What the task knows; `None` if it has not met the collection.
    object: Option<CollectionObject>,
    /// What the source says; `None` if it is dropped there, or the metadata cannot be read.
    source: Option<Arc<Collection>>,
}

pub(super) async fn look(
    target: &PlainTarget,
    view: Option<&View>,
    tasks: &[&Patient],
) -> Vec<Check> {
    if tasks.is_empty() {
        // Nobody's yet: what a task would meet there.
        let Some(view) = view else {
            return vec![
                Check::skipped(names::MAPPING, "no metadata and no task").about(target.uri()),
            ];
        };
        let pairs = living(view)
            .filter_map(|c| pair_of_source(view, c))
            .collect();
        return vec![examine(target, pairs).await.about(target.uri())];
    }
    let mut checks = Vec::new();
    for task in tasks {
        let pairs = pairs_of(task, view);
        checks.push(examine(target, pairs).await.about(task.spec.id.to_string()));
    }
    checks
}

fn pair_of_source(view: &View, collection: &Arc<Collection>) -> Option<Pair> {
    Some(Pair {
        database: view.database_name(collection.db)?.to_owned(),
        name: collection.name.clone(),
        object: None,
        source: Some(collection.clone()),
    })
}

fn pairs_of(task: &Patient, view: Option<&View>) -> Vec<Pair> {
    let known = &task.progress.collections;
    let mut pairs: Vec<Pair> = known
        .values()
        .filter(|object| object.phase == ObjectPhase::Live)
        // What the source has dropped goes from the target as soon as the task runs.
        .filter(|object| view.is_none_or(|view| lives(view, object.source)))
        .map(|object| Pair {
            database: object.database.clone(),
            name: object.name.clone(),
            source: view.and_then(|view| view.collections.get(&object.source).cloned()),
            object: Some(object.clone()),
        })
        .collect();
    if let Some(view) = view {
        let unmet = living(view)
            .filter(|c| !known.contains_key(&c.id))
            .filter_map(|c| pair_of_source(view, c))
            .filter(|pair| task.spec.selection.contains(&pair.database, &pair.name))
            .map(|pair| {
                let Name { database, name } = task.spec.target_of(&pair.database, &pair.name);
                Pair {
                    database,
                    name,
                    ..pair
                }
            });
        pairs.extend(unmet);
    }
    pairs
}

fn lives(view: &View, id: CollectionId) -> bool {
    let found = view.collections.get(&id);
    found.is_some_and(|c| c.state == ObjectState::Created)
}

async fn examine(target: &PlainTarget, pairs: Vec<Pair>) -> Check {
    let count = pairs.len();
    let answers = answers_to(pairs.into_iter().map(|pair| async move {
        let described = target.describe(&pair.database, &pair.name).await;
        // Those of a Milvus of its own are its own affair: what stands for them there is as many as the task made.
        let made = pair.object.as_ref().map(|o| o.target_vchannels.len());
        let shards = || pair.source.as_ref().map_or(0, |source| source.shards.len());
        let shards = made.filter(|made| *made > 0).unwrap_or_else(shards);
        let described =
            described.map(|found| found.map(|found| found.with_channels(target.mode(), shards)));
        (pair, described)
    }));
    let answers = match within(names::MAPPING, answers).await {
        Ok(answers) => answers,
        Err(late) => return late,
    };
    let mut wrong: Vec<String> = Vec::new();
    let mut failed: Option<TargetError> = None;
    for (pair, described) in answers {
        match described {
            Ok(described) => wrong.extend(difference(&pair, described.as_ref())),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    wrong.sort();
    if !wrong.is_empty() {
        return Check::problem(
            names::MAPPING,
            format!("{} collection(s) do not fit: {}", wrong.len(), some(&wrong)),
            "drop or rename the one on the target with the task deleted, and let a new task make it; or answer its Conflict with recreate",
        );
    }
    match failed {
        Some(error) => Check::of(names::MAPPING, &target_problem(&error)),
        None => Check::ok(
            names::MAPPING,
            format!("{count} collection(s): shards and channels fit"),
        ),
    }
}

/// What does not fit, in words.
fn difference(pair: &Pair, there: Option<&TargetCollection>) -> Option<String> {
    let who = format!("{}.{}", pair.database, pair.name);
    let there = match (there, &pair.object) {
        (Some(there), _) => there,
        (None, Some(_)) => return Some(format!("{who} is not on the target any more")),
        // It will be made.
        (None, None) => return None,
    };
    if let Some(object) = &pair.object {
        if let Some(id) = object.target.filter(|id| *id != there.id) {
            return Some(format!(
                "{who} is another collection on the target now (id {} instead of {id})",
                there.id
            ));
        }
        if object.target.is_some() && object.target_vchannels != there.vchannels {
            return Some(format!(
                "{who} has the channels {} on the target instead of {}",
                some(&there.vchannels),
                some(&object.target_vchannels)
            ));
        }
    }
    // What is being read of the source is at most as new as what the task knows of it.
    let source = pair.source.as_ref()?;
    (source.shards.len() != there.vchannels.len()).then(|| {
        format!(
            "{who} has {} shard(s) on the source and {} on the target",
            source.shards.len(),
            there.vchannels.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CollectionId, VChannel};
    use crate::tso::Tso;

    fn channels(names: &[&str]) -> Vec<VChannel> {
        names.iter().map(|name| VChannel::new(*name)).collect()
    }

    fn there(id: i64, vchannels: &[&str]) -> TargetCollection {
        TargetCollection {
            properties: Vec::new(),
            by_name: false,
            id: CollectionId(id),
            name: "c".to_owned(),
            vchannels: channels(vchannels),
            pchannels: Vec::new(),
            schema: Default::default(),
        }
    }

    fn pair(target: Option<i64>) -> Pair {
        Pair {
            database: "db".to_owned(),
            name: "c".to_owned(),
            source: None,
            object: Some(CollectionObject {
                source: CollectionId(1),
                database: "db".to_owned(),
                name: "c".to_owned(),
                from: None,
                renamed: None,
                renaming: None,
                in_between: false,
                created: Tso::ZERO,
                phase: ObjectPhase::Live,
                target: target.map(CollectionId),
                target_vchannels: channels(&["p_5v0", "q_5v1"]),
                dropped_shards: Vec::new(),
                properties: Default::default(),
            }),
        }
    }

    #[test]
    fn only_the_very_collection_with_its_channels_fits() {
        let own = pair(Some(5));
        assert_eq!(difference(&own, Some(&there(5, &["p_5v0", "q_5v1"]))), None);
        for (found, part) in [
            (None, "not on the target any more"),
            (Some(there(6, &["p_5v0", "q_5v1"])), "id 6 instead of 5"),
            (Some(there(5, &["q_5v0", "p_5v1"])), "channels q_5v0, p_5v1"),
        ] {
            let text = difference(&own, found.as_ref()).unwrap();
            assert!(text.starts_with("db.c") && text.contains(part), "{text}");
        }
        // Not made yet: nothing to compare with.
        assert_eq!(difference(&pair(None), Some(&there(6, &["x_6v0"]))), None);
        let unknown = Pair {
            object: None,
            ..pair(None)
        };
        assert_eq!(difference(&unknown, None), None);
    }
}
