//! Brings partitions, indexes, properties and load states of the target in line with the source's etcd.
//!
//! Level triggered: what counts is how things are, not which request made them so (2.3.5 does not write partition loads
//! to its replicate-msg channel at all, and a failed write there is only logged). Works outside the lanes, so that no
//! row waits for a load.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::TaskContext;
use super::aliases::Aliases;
use super::databases::Databases;
use super::objects::{Objects, PartitionAnswer, Route};
use super::properties::{At, Kept, Of, Properties};
use crate::backoff::Backoff;
use crate::catalog::properties::is_alterable;
use crate::catalog::{Collection, Index, LoadState, ObjectState, Partition};
use crate::error::{ErrorClass, Problem};
use crate::ids::CollectionId;
use crate::route::encode;
use crate::select::Operation;
use crate::store::{Change, ObjectPhase};
use crate::target::{Loaded, Target, TargetError, TargetIndex};
use crate::task::Mode;

/// Under this id the store's notes hold the collections that were loaded and still have to be flushed.
const LOADED_NOTE: CollectionId = CollectionId(-2);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How often the target is asked which collections it has: one call a database.
const MISS_EVERY: Duration = Duration::from_secs(30);

struct Try {
    backoff: Backoff,
    at: Instant,
}

impl Try {
    fn new() -> Self {
        Self {
            backoff: Backoff::new(),
            at: Instant::now(),
        }
    }
}

/// A collection that is in line with what the source had then.
struct Done {
    source: Arc<Collection>,
    route: Weak<Route>,
    /// It is looked at again then, whatever the source does.
    again: Option<Instant>,
}

pub(crate) async fn run(ctx: Arc<TaskContext>, objects: Arc<Objects>) {
    let mut views = ctx.parts.catalog.subscribe();
    let mut done: HashMap<CollectionId, Done> = HashMap::new();
    let mut skip = ctx.wanted().skip.clone();
    let mut tries: HashMap<CollectionId, Try> = HashMap::new();
    let mut databases = Databases::read(&ctx).await;
    let mut properties = Properties::read(&ctx, &objects).await;
    let mut aliases = Aliases::read(&ctx).await;
    let mut settling = Settling {
        loaded: read_note(&ctx, LOADED_NOTE).await,
        ctx: ctx.clone(),
    };
    let mut next_miss = Instant::now() + MISS_EVERY;
    loop {
        if Instant::now() >= next_miss {
            missing(&ctx, &objects).await;
            next_miss = Instant::now() + MISS_EVERY;
        }
        let view = views.borrow_and_update().clone();
        let wanted = ctx.wanted();
        if wanted.skip != skip {
            // What was left out is looked at anew.
            skip = wanted.skip.clone();
            done.clear();
        }
        databases.take_over(objects.take_made_databases());
        if let Err(problem) = databases.converge(&ctx, &view, &mut properties).await {
            tracing::debug!(task = %ctx.spec.id, "databases: {problem}");
        }
        let unlike = databases.give_properties(&ctx, &view, &mut properties);
        objects.of_databases(unlike.await);
        settling.settle(&objects).await;
        aliases.converge(&objects, &view).await;
        for route in objects.routes() {
            let Some(source) = view
                .collections
                .get(&route.source)
                .filter(|c| c.state == ObjectState::Created)
            else {
                continue;
            };
            let id = route.source;
            let identity = Arc::downgrade(&route);
            let same = done.get(&id).is_some_and(|done| {
                Arc::ptr_eq(&done.source, source)
                    && done.route.ptr_eq(&identity)
                    && done.again.is_none_or(|at| at > Instant::now())
            });
            if same || tries.get(&id).is_some_and(|t| t.at > Instant::now()) {
                continue;
            }
            let object = objects.get(id);
            if object.is_none_or(|o| o.phase != ObjectPhase::Live) {
                continue;
            }
            // First: what keeps its objects from being alike does not keep its name.
            let name = objects.is_to_be_renamed(&view, source).await;
            if matches!(name, Ok(true)) {
                objects.open_again(id);
                let again = tries.entry(id).or_insert_with(Try::new);
                again.at = Instant::now() + again.backoff.step();
                continue;
            }
            let means = (&mut settling, &mut properties);
            let done_so_far = converge(&ctx, &objects, &route, source, means).await;
            let done_so_far = done_so_far.and_then(|so_far| name.map(|_| so_far));
            match done_so_far {
                Ok(so_far) => {
                    let so_done = Done {
                        source: source.clone(),
                        route: identity,
                        again: so_far.again.map(|after| Instant::now() + after),
                    };
                    done.insert(id, so_done);
                    tries.remove(&id);
                    objects.converged(id, so_far.cannot);
                }
                Err(problem) => {
                    let entry = tries.entry(id).or_insert_with(Try::new);
                    if entry.backoff.attempt == 3 {
                        tracing::warn!(task = %ctx.spec.id, collection = %source.name, "{problem}");
                    }
                    entry.at = Instant::now() + entry.backoff.step();
                    objects.converged(id, Some(problem));
                }
            }
        }
        done.retain(|id, _| view.collections.contains_key(id));
        tries.retain(|id, _| view.collections.contains_key(id));
        properties.retain(|id| view.collections.contains_key(&id));
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = ctx.drain.cancelled() => return,
        }
    }
}

/// Ends the streams of collections that someone has dropped on the target: they are opened again, which finds out what
/// there is to ask a person. One with rows would fail by itself, one without would be gone without a word.
async fn missing(ctx: &TaskContext, objects: &Objects) {
    let target = &ctx.hub.target;
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for route in objects.routes() {
        let to = &route.shards[0].to;
        if !names.contains_key(&to.database) {
            // A database that is gone has none.
            let found = match target.collections(&to.database).await {
                Err(error) if error.is_not_found() => Vec::new(),
                Err(_) => return,
                Ok(found) => found,
            };
            names.insert(to.database.clone(), found.into_iter().collect());
        }
        let there = names
            .get(&to.database)
            .is_some_and(|n| n.contains(&to.name));
        let live = || {
            let object = objects.get(route.source);
            object.is_some_and(|o| o.phase == ObjectPhase::Live)
        };
        if there || !live() {
            continue;
        }
        // Only this very collection counts, and only if we have not dropped it meanwhile.
        let is_it = match target.describe(&to.database, &to.name).await {
            Ok(found) => found.is_some_and(|f| f.id == to.collection),
            // The name stands for another one.
            Err(error) if error.is_alias() => false,
            Err(_) => continue,
        };
        if !is_it && live() {
            let why = format!("{}.{} is no longer on the target", to.database, to.name);
            let problem = Problem::new(ErrorClass::Transient, why, "looked at again");
            route.stream.fail(problem);
        }
    }
}

/// Collections that were loaded on the target and have to be flushed once they are.
///
/// A 2.3.5 that loads a collection whose channel another loaded collection shares may leave out rows that are not
/// flushed yet: its readers of one channel are merged at different places (seen; the rows came back with a flush, for
/// its data node has them). So every load is followed by a flush, also after a crash in between.
struct Settling {
    ctx: Arc<TaskContext>,
    loaded: BTreeSet<CollectionId>,
}

impl Settling {
    /// Before the load. Only a standby needs it.
    async fn begin(&mut self, id: CollectionId) {
        if self.ctx.hub.mode == Mode::Replicate && self.loaded.insert(id) {
            self.store().await;
        }
    }

    /// Flushes what is loaded by now.
    async fn settle(&mut self, objects: &Objects) {
        let before = self.loaded.len();
        for id in self.loaded.clone() {
            let live = objects
                .get(id)
                .is_some_and(|o| o.phase == ObjectPhase::Live);
            let Some(route) = objects.route_of(id).filter(|_| live) else {
                if objects
                    .get(id)
                    .is_none_or(|o| o.phase == ObjectPhase::Dropped)
                {
                    self.loaded.remove(&id);
                }
                continue;
            };
            let to = &route.shards[0].to;
            let target = &self.ctx.hub.target;
            let flushed = match target.loaded(&to.database, &to.name, &[]).await {
                Ok(Loaded::Yes) => {
                    let name = std::slice::from_ref(&to.name);
                    let flushed = target.flush(&to.database, name).await.is_ok();
                    if flushed {
                        // Its query nodes have begun to read, from where it was flushed before.
                        for shard in &route.shards {
                            shard.lane.is_read_again();
                        }
                    }
                    flushed
                }
                // Released again: the next load comes with its own flush.
                Ok(Loaded::No) => true,
                Ok(Loaded::Loading) | Err(_) => false,
            };
            if flushed {
                self.loaded.remove(&id);
            }
        }
        if self.loaded.len() != before {
            self.store().await;
        }
    }

    async fn store(&self) {
        write_note(&self.ctx, LOADED_NOTE, &self.loaded).await;
    }
}

/// What was noted; the default if nothing was. Waits for the store: what was made must not be forgotten.
pub(super) async fn read_note<T: DeserializeOwned + Default>(
    ctx: &TaskContext,
    id: CollectionId,
) -> T {
    let mut backoff = Backoff::new();
    loop {
        match ctx.parts.store.load(&ctx.spec.id).await {
            Ok(mut progress) => {
                let note = progress.notes.remove(&id).unwrap_or_default();
                return serde_json::from_str(&note).unwrap_or_default();
            }
            Err(error) => tracing::warn!(task = %ctx.spec.id, %error, "cannot read the notes"),
        }
        backoff.wait().await;
    }
}

pub(super) async fn write_note<T: Serialize>(ctx: &TaskContext, id: CollectionId, value: &T) {
    let note = serde_json::to_string(value).unwrap_or_default();
    let task = ctx.spec.id.clone();
    ctx.commit(vec![Change::PutNote {
        task,
        collection: id,
        note,
    }])
    .await;
}

/// How far a collection is in line.
#[derive(Default)]
struct SoFar {
    /// It is to be looked at again after this.
    again: Option<Duration>,
    /// What the target cannot have.
    cannot: Option<Problem>,
    /// What it did not do now.
    failed: Option<Problem>,
}

impl SoFar {
    fn add(&mut self, kept: Result<Kept, Problem>) {
        match kept {
            Ok(Kept::Alike | Kept::Absent) => {}
            Ok(Kept::Again(after)) => {
                self.again = Some(self.again.map_or(after, |before| before.min(after)));
            }
            Ok(Kept::Not(problem)) => drop(self.cannot.get_or_insert(problem)),
            Err(problem) => drop(self.failed.get_or_insert(problem)),
        }
    }
}

/// One collection: partitions, then indexes and properties (some of which need it released), then what is loaded.
async fn converge(
    ctx: &TaskContext,
    objects: &Objects,
    route: &Route,
    source: &Collection,
    (settling, properties): (&mut Settling, &mut Properties),
) -> Result<SoFar, Problem> {
    let target = ctx.hub.target.as_ref();
    let to = &route.shards[0].to;
    let (db, name) = (to.database.as_str(), to.name.as_str());
    let problem = |e: TargetError| e.problem();
    let created: Vec<&Partition> = source
        .partitions
        .values()
        .filter(|p| p.state == ObjectState::Created)
        .collect();
    for partition in &created {
        match objects.partition(route, partition.id).await {
            PartitionAnswer::Known(_) | PartitionAnswer::Gone => {}
            PartitionAnswer::Failed(problem) => return Err(problem),
            // Not forgotten: nothing else makes a partition that never gets a row.
            PartitionAnswer::NameTaken(holder) => {
                // Its drop may have been read by nobody who could wait for it.
                objects.clear_partition(route, holder).await?;
                return Err(Problem::new(
                    ErrorClass::Transient,
                    format!(
                        "partition {}.{}/{} waits until the older one of its name is dropped on the target",
                        db, name, partition.name
                    ),
                    "goes on by itself",
                ));
            }
        }
    }
    let spec = ctx.wanted();
    let carries = |operation| !spec.skips(operation);
    let wanted: Vec<TargetIndex> = source
        .indexes
        .values()
        .filter_map(|i| target_index(source, i))
        .collect();
    let found = target.indexes(db, name).await.map_err(problem)?;
    let extra: Vec<_> = found
        .iter()
        .filter(|f| !wanted.iter().any(|w| same_index(w, f)))
        .filter(|_| carries(Operation::DropIndex))
        .collect();
    // One whose place an index has that stays is not made: the target would refuse it.
    let free = |w: &TargetIndex| {
        let mut in_the_way = found
            .iter()
            .filter(|f| f.field == w.field || f.name == w.name);
        carries(Operation::DropIndex) || in_the_way.next().is_none()
    };
    let missing: Vec<_> = wanted
        .iter()
        .filter(|w| !found.iter().any(|f| same_index(w, f)))
        .filter(|w| carries(Operation::CreateIndex) && free(w))
        .collect();
    let loaded = target.loaded(db, name, &[]).await.map_err(problem)? != Loaded::No;
    let release = source.load == LoadState::Released && carries(Operation::Release);
    if loaded && (release || !extra.is_empty()) {
        target.release(db, name, &[]).await.map_err(problem)?;
    }
    for index in extra {
        target.drop_index(db, name, index).await.map_err(problem)?;
    }
    for index in missing {
        if let Some(of) = source.indexes.values().find(|i| i.name == index.name) {
            let of_index = Of::Index(source.id, of.id);
            properties.about_to_set(of_index, &of.properties()).await;
        }
        target
            .create_index(db, name, index)
            .await
            .map_err(problem)?;
    }
    // What keeps them from being alike does not keep the collection from being loaded.
    let so_far = give_properties(ctx, to, source, properties).await;
    let names = |of: &[&Partition]| -> Vec<String> { of.iter().map(|p| p.name.clone()).collect() };
    match &source.load {
        _ if !carries(Operation::Load) => {}
        LoadState::Released => {}
        LoadState::Collection { replicas } => {
            // Not again where nothing is missing: a load names the indexes of the moment, and one that names others
            // than the first did is refused.
            // Where partitions are the target's own, it may have others.
            let of = match ctx.hub.mode {
                Mode::Plain if route.has_partition_key => Vec::new(),
                _ => names(&created),
            };
            if target.loaded(db, name, &of).await.map_err(problem)? == Loaded::No {
                settling.begin(route.source).await;
                load(target, db, name, (&[], &[]), *replicas).await?;
            }
        }
        LoadState::Partitions {
            replicas,
            partitions,
        } => {
            let mut missing = Vec::new();
            let mut extra = Vec::new();
            for partition in &created {
                let is = target
                    .loaded(db, name, std::slice::from_ref(&partition.name))
                    .await
                    .map_err(problem)?
                    != Loaded::No;
                match (partitions.contains(&partition.id), is) {
                    (true, false) => missing.push(partition.name.clone()),
                    (false, true) => extra.push(partition.name.clone()),
                    _ => {}
                }
            }
            if !extra.is_empty() && carries(Operation::Release) {
                target.release(db, name, &extra).await.map_err(problem)?;
            }
            if !missing.is_empty() {
                let wanted: Vec<&Partition> = created
                    .iter()
                    .copied()
                    .filter(|p| partitions.contains(&p.id))
                    .collect();
                settling.begin(route.source).await;
                load(target, db, name, (&missing, &names(&wanted)), *replicas).await?;
            }
        }
    }
    match so_far.failed {
        Some(problem) => Err(problem),
        None => Ok(so_far),
    }
}

/// The properties of a collection and of its indexes.
async fn give_properties(
    ctx: &TaskContext,
    to: &encode::Shard,
    source: &Collection,
    properties: &mut Properties,
) -> SoFar {
    let mut so_far = SoFar::default();
    let wanted = ctx.wanted();
    let at = At {
        database: &to.database,
        name: &to.name,
        index: "",
        may_release: !wanted.skips(Operation::Load),
    };
    if !wanted.skips(Operation::AlterCollection) {
        let of = Of::Collection(source.id);
        so_far.add(properties.converge(of, at, &source.own_properties()).await);
    }
    if wanted.skips(Operation::AlterIndex) {
        return so_far;
    }
    for index in source.indexes.values() {
        let of = Of::Index(source.id, index.id);
        let at = At {
            index: &index.name,
            ..at
        };
        so_far.add(properties.converge(of, at, &index.properties()).await);
    }
    properties.forget_others(source).await;
    so_far
}

/// Loads the partitions that are `missing`; `all`: those that have to be loaded at the end. Empty: the collection.
///
/// A collection of which a part was loaded before one of its indexes was made takes no further load ("can't change the
/// index for loaded collection", seen on 2.3.5), and none with another number of replicas. The source came there by a
/// release too.
async fn load(
    target: &dyn Target,
    db: &str,
    name: &str,
    (missing, all): (&[String], &[String]),
    replicas: i32,
) -> Result<(), Problem> {
    match target.load(db, name, missing, replicas).await {
        Err(TargetError::Refused {
            code: 1100, reason, ..
        }) if reason.contains("can't change") => {
            target
                .release(db, name, &[])
                .await
                .map_err(|e| e.problem())?;
            target.load(db, name, all, replicas).await
        }
        other => other,
    }
    .map_err(|e| e.problem())
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

/// Whether the target's index is the one that is wanted: name, field, and the parameters both of them state, but for
/// those that can be changed.
fn same_index(wanted: &TargetIndex, found: &TargetIndex) -> bool {
    let mut fixed = wanted.params.iter().filter(|(key, _)| !is_alterable(key));
    wanted.name == found.name
        && wanted.field == found.field
        && fixed.all(|(key, value)| {
            found
                .params
                .iter()
                .find(|(k, _)| k == key)
                .is_none_or(|(_, v)| v == value)
        })
}
