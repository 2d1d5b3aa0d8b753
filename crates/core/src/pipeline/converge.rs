//! Brings databases, partitions, indexes and load states of the target in line with the source's etcd.
//!
//! Level triggered: what counts is how things are, not which request made them so (2.3.5 does not write partition loads
//! to its replicate-msg channel at all, and a failed write there is only logged). Works outside the lanes, so that no
//! row waits for a load.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::TaskContext;
use super::objects::{Objects, Route};
use crate::backoff::Backoff;
use crate::catalog::{Collection, Index, LoadState, ObjectState, View};
use crate::error::Problem;
use crate::ids::{CollectionId, DbId};
use crate::store::{Change, ObjectPhase};
use crate::target::{Loaded, Target, TargetError, TargetIndex};
use crate::task::Selection;

/// Under this id the store's notes hold the databases that were made, as JSON.
const DATABASES_NOTE: CollectionId = CollectionId(-1);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// The database that every Milvus has and nobody can drop.
const DEFAULT: &str = "default";

struct Try {
    backoff: Backoff,
    at: Instant,
}

pub(crate) async fn run(ctx: Arc<TaskContext>, objects: Arc<Objects>) {
    let mut views = ctx.parts.catalog.subscribe();
    let mut done: HashMap<CollectionId, (Arc<Collection>, usize)> = HashMap::new();
    let mut tries: HashMap<CollectionId, Try> = HashMap::new();
    let mut databases: BTreeMap<DbId, String> = load_databases(&ctx).await;
    loop {
        let view = views.borrow_and_update().clone();
        if ctx.spec.selection == Selection::All
            && let Err(problem) = converge_databases(&ctx, &view, &mut databases).await
        {
            tracing::debug!(task = %ctx.spec.id, "databases: {problem}");
        }
        for route in objects.routes() {
            let Some(source) = view
                .collections
                .get(&route.source)
                .filter(|c| c.state == ObjectState::Created)
            else {
                continue;
            };
            let id = route.source;
            let live = objects
                .get(id)
                .is_some_and(|o| o.phase == ObjectPhase::Live);
            let identity = Arc::as_ptr(&route) as usize;
            let same = done
                .get(&id)
                .is_some_and(|(seen, by)| Arc::ptr_eq(seen, source) && *by == identity);
            if !live || same || tries.get(&id).is_some_and(|t| t.at > Instant::now()) {
                continue;
            }
            match converge(ctx.hub.target.as_ref(), &objects, &route, source).await {
                Ok(()) => {
                    done.insert(id, (source.clone(), identity));
                    tries.remove(&id);
                }
                Err(problem) => {
                    let entry = tries.entry(id).or_insert_with(|| Try {
                        backoff: Backoff::new(),
                        at: Instant::now(),
                    });
                    if entry.backoff.attempt == 3 {
                        tracing::warn!(task = %ctx.spec.id, collection = %source.name, "{problem}");
                    }
                    entry.at = Instant::now() + entry.backoff.step();
                }
            }
        }
        done.retain(|id, _| view.collections.contains_key(id));
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = ctx.drain.cancelled() => return,
        }
    }
}

async fn load_databases(ctx: &TaskContext) -> BTreeMap<DbId, String> {
    let stored = ctx.parts.store.load(&ctx.spec.id).await.ok();
    let note = stored
        .and_then(|mut progress| progress.notes.remove(&DATABASES_NOTE))
        .unwrap_or_default();
    serde_json::from_str(&note).unwrap_or_default()
}

async fn converge_databases(
    ctx: &TaskContext,
    view: &View,
    made: &mut BTreeMap<DbId, String>,
) -> Result<(), Problem> {
    let target = &ctx.hub.target;
    let before = made.clone();
    for (id, database) in &view.databases {
        if made.get(id) != Some(&database.name) {
            target
                .create_database(&database.name)
                .await
                .map_err(|e| e.problem())?;
            made.insert(*id, database.name.clone());
        }
    }
    let gone: Vec<_> = made
        .iter()
        .filter(|(id, _)| !view.databases.contains_key(id))
        .map(|(i, n)| (*i, n.clone()))
        .collect();
    for (id, name) in gone {
        let again = view.databases.values().any(|d| d.name == name);
        if !again && name != DEFAULT {
            let there = target
                .databases()
                .await
                .map_err(|e| e.problem())?
                .contains(&name);
            // Its collections' drops may still be on their way.
            if there
                && !target
                    .collections(&name)
                    .await
                    .map_err(|e| e.problem())?
                    .is_empty()
            {
                continue;
            }
            if there {
                target.drop_database(&name).await.map_err(|e| e.problem())?;
            }
        }
        made.remove(&id);
    }
    if *made != before {
        let note = serde_json::to_string(&made).unwrap_or_default();
        let task = ctx.spec.id.clone();
        ctx.commit(vec![Change::PutNote {
            task,
            collection: DATABASES_NOTE,
            note,
        }])
        .await;
    }
    Ok(())
}

/// One collection: partitions, then indexes (which needs it released), then what is loaded.
async fn converge(
    target: &dyn Target,
    objects: &Objects,
    route: &Route,
    source: &Collection,
) -> Result<(), Problem> {
    let to = &route.shards[0].to;
    let (db, name) = (to.database.as_str(), to.name.as_str());
    let problem = |e: TargetError| e.problem();
    for partition in source
        .partitions
        .values()
        .filter(|p| p.state == ObjectState::Created)
    {
        if let super::objects::PartitionAnswer::Failed(problem) =
            objects.partition(route, partition.id).await
        {
            return Err(problem);
        }
    }
    let wanted: Vec<TargetIndex> = source
        .indexes
        .values()
        .filter_map(|i| target_index(source, i))
        .collect();
    let found = target.indexes(db, name).await.map_err(problem)?;
    let extra: Vec<_> = found
        .iter()
        .filter(|f| !wanted.iter().any(|w| same_index(w, f)))
        .collect();
    let missing: Vec<_> = wanted
        .iter()
        .filter(|w| !found.iter().any(|f| same_index(w, f)))
        .collect();
    let loaded = target.loaded(db, name, None).await.map_err(problem)? == Loaded::Yes;
    if loaded && (source.load == LoadState::Released || !extra.is_empty()) {
        target.release(db, name, &[]).await.map_err(problem)?;
    }
    for index in extra {
        target.drop_index(db, name, index).await.map_err(problem)?;
    }
    for index in missing {
        target
            .create_index(db, name, index)
            .await
            .map_err(problem)?;
    }
    match &source.load {
        LoadState::Released => {}
        LoadState::Collection { replicas } => {
            target
                .load(db, name, &[], *replicas)
                .await
                .map_err(problem)?;
        }
        LoadState::Partitions {
            replicas,
            partitions,
        } => {
            let mut load = Vec::new();
            let mut release = Vec::new();
            for partition in source
                .partitions
                .values()
                .filter(|p| p.state == ObjectState::Created)
            {
                let is = target
                    .loaded(db, name, Some(&partition.name))
                    .await
                    .map_err(problem)?
                    == Loaded::Yes;
                match (partitions.contains(&partition.id), is) {
                    (true, false) => load.push(partition.name.clone()),
                    (false, true) => release.push(partition.name.clone()),
                    _ => {}
                }
            }
            if !release.is_empty() {
                target.release(db, name, &release).await.map_err(problem)?;
            }
            if !load.is_empty() {
                target
                    .load(db, name, &load, *replicas)
                    .await
                    .map_err(problem)?;
            }
        }
    }
    Ok(())
}

fn target_index(source: &Collection, index: &Index) -> Option<TargetIndex> {
    let field = source
        .schema
        .fields
        .iter()
        .find(|f| f.field_id == index.field.0)?;
    Some(TargetIndex {
        name: index.name.clone(),
        field: field.name.clone(),
        params: index.params.clone(),
    })
}

/// Whether the target's index is the one that is wanted: name, field, and the parameters both of them state.
fn same_index(wanted: &TargetIndex, found: &TargetIndex) -> bool {
    wanted.name == found.name
        && wanted.field == found.field
        && wanted.params.iter().all(|(key, value)| {
            found
                .params
                .iter()
                .find(|(k, _)| k == key)
                .is_none_or(|(_, v)| v == value)
        })
}
