//! Which target object stands for which source object; makes them and drops them.
//!
//! A source object is known by its id. Its name on the target is resolved once, when it is made; from then on the
//! target's id counts, and a name that has come to mean another object on the target is never touched.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use milvus::proto::schema::FieldSchema;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::TaskContext;
use super::converge::note_made;
use super::renames::{LATE, RefusedName};
use crate::catalog::Collection;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, DbId, FieldId, PChannel, PartitionId, TargetKey};
use crate::lane::{Lane, StreamCtl};
use crate::position::Position;
use crate::route::encode;
use crate::select::Name;
use crate::select::mapping::check as check_name;
use crate::store::{Change, CollectionObject, ObjectPhase, PartitionObject, TaskProgress};
use crate::target::grpc::user_schema;
use crate::target::hub::store_problem;
use crate::target::{TargetCollection, TargetError};
use crate::task::{Mode, OnConflict};
use crate::tso::Tso;

/// One shard of a collection: where it comes from, where it goes.
pub(crate) struct TargetShard {
    pub(crate) source: PChannel,
    pub(crate) to: encode::Shard,
    pub(crate) lane: Arc<Lane>,
    /// F when the way was found: no row of the collection that is on the target already is newer.
    pub(crate) floor: Tso,
}

#[derive(Clone, Debug)]
pub(crate) struct PartitionRoute {
    pub(crate) target: PartitionId,
    pub(crate) name: String,
}

/// A collection's way to the target, built only from what the target says of that very collection.
pub(crate) struct Route {
    pub(crate) source: CollectionId,
    pub(crate) primary_key: FieldId,
    pub(crate) has_partition_key: bool,
    /// In shard order.
    pub(crate) shards: Vec<TargetShard>,
    pub(crate) stream: Arc<StreamCtl>,
    pub(super) partitions: RwLock<BTreeMap<PartitionId, PartitionRoute>>,
}

impl Route {
    /// Shards that come from this source channel.
    pub(crate) fn shards_on<'a>(
        &'a self,
        channel: &'a PChannel,
    ) -> impl Iterator<Item = usize> + 'a {
        (0..self.shards.len()).filter(move |i| self.shards[*i].source == *channel)
    }
}

/// A collection that is there on the target.
pub(crate) struct Opened {
    pub(crate) route: Arc<Route>,
    /// It was there before, with rows: up to this source timestamp everything is in doubt.
    pub(crate) adopted: Option<Tso>,
    /// Met for the first time: to be stored together with the places where its reading begins, not before.
    pub(crate) fresh: Option<CollectionObject>,
}

/// A collection could not be made or found.
pub(crate) enum Obstacle {
    /// Dropped on the source in the meantime.
    Gone,
    /// What has its name on the target belongs to this source collection and has to go first.
    NameTaken(CollectionId),
    /// Something of that name is on the target that is not ours.
    Conflict(Problem),
    /// It can have no name there, or not the one that it is to have: for a person to change what is asked for.
    Unnamed(Problem),
    Failed(Problem),
}

/// What a partition id of a message means.
pub(crate) enum PartitionAnswer {
    Known(PartitionRoute),
    /// Dropped on the source: its rows are skipped.
    Gone,
    /// This older partition of the same name has to be dropped on the target first.
    NameTaken(PartitionId),
    Failed(Problem),
}

/// The object table of a task.
pub(crate) struct Objects {
    pub(super) ctx: Arc<TaskContext>,
    pub(super) collections: Mutex<BTreeMap<CollectionId, CollectionObject>>,
    pub(super) partitions: Mutex<BTreeMap<PartitionId, PartitionObject>>,
    /// Messages a person said to leave out.
    skipped: Mutex<HashSet<(CollectionId, PChannel, Position)>>,
    pub(super) routes: RwLock<BTreeMap<CollectionId, Arc<Route>>>,
    /// Shards of one object may report their drop at the same moment.
    pub(super) dropping: tokio::sync::Mutex<()>,
    /// Held while what is known of a collection changes.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Held from the look at the source to the partition's being known: a drop that passes meanwhile waits.
    pub(super) making: tokio::sync::Mutex<()>,
    /// Source timestamps up to which the channels' main readers have applied everything.
    applied: Mutex<BTreeMap<PChannel, Tso>>,
    /// By collection and channel: the source timestamp of a drop that was read and is not carried.
    ends: Mutex<HashMap<(CollectionId, PChannel), Tso>>,
    /// Told when `applied` moved.
    pub(crate) moved: Notify,
    /// Told when the drop of a partition is complete.
    pub(crate) freed: Notify,
    /// Databases that were made for their first collection, until they are noted.
    made_databases: Mutex<BTreeMap<DbId, String>>,
    /// One at a time drops partitions whose drop is not read yet.
    pub(super) clearing: tokio::sync::Mutex<()>,
    /// Partitions and collections that are being dropped though their drop is not read, until they are known as dropped.
    pub(super) cleared: Mutex<HashSet<PartitionId>>,
    pub(super) cleared_collections: Mutex<HashSet<CollectionId>>,
    /// Held from the look whether a name on the target is free until it is stored who is to have it.
    pub(super) naming: tokio::sync::Mutex<()>,
    /// When a creation was called for once more, or found as begun: the earlier call may be carried out yet.
    pub(super) creating: Mutex<BTreeMap<CollectionId, Instant>>,
    /// When it was begun, or found as begun, to give a collection the name that is stored with it.
    pub(super) renaming: Mutex<BTreeMap<CollectionId, Instant>>,
    /// Names on the target that collections were to have and could not, since when, and why.
    pub(super) refused_names: Mutex<BTreeMap<CollectionId, RefusedName>>,
    /// The target has no ids for collections.
    pub(super) by_name: AtomicBool,
    /// The readers have begun.
    pub(super) has_begun: AtomicBool,
    /// Collections that are to be opened again, for the conductor.
    pub(super) to_open_again: Mutex<BTreeSet<CollectionId>>,
    /// What keeps a collection's indexes or load state from being as on the source.
    unequal: Mutex<BTreeMap<CollectionId, Problem>>,
    /// What keeps their aliases from being so.
    unaliased: Mutex<BTreeMap<CollectionId, Problem>>,
}

impl Objects {
    /// Routes of all collections that are open.
    pub(crate) fn routes(&self) -> Vec<Arc<Route>> {
        self.routes.read().values().cloned().collect()
    }

    pub(crate) fn set_applied(&self, channel: &PChannel, ts: Tso) {
        self.applied.lock().insert(channel.clone(), ts);
    }

    /// Whether everything of this collection of the source up to `ts` is applied.
    pub(crate) fn applied(&self, database: &str, name: &str, ts: Tso) -> bool {
        let source = Name::new(database, name);
        let route = self.live(&source).and_then(|o| self.route_of(o.source));
        route.is_some_and(|route| self.applied_by(&route, ts))
    }

    /// The collection that this name of the source means now.
    pub(crate) fn live(&self, source: &Name) -> Option<CollectionObject> {
        let collections = self.collections.lock();
        let is_live = |o: &&CollectionObject| o.phase == ObjectPhase::Live;
        let view = self.view();
        let meant = view.find(&source.database, &source.name);
        let meant = meant.and_then(|c| collections.get(&c.id)).filter(is_live);
        let mut live = collections.values().rev().filter(is_live);
        meant
            .or_else(|| live.find(|o| o.carried_name() == *source))
            .cloned()
    }

    /// The drop of a collection was read on a channel, and is not carried.
    pub(crate) fn ends_at(&self, id: CollectionId, channel: &PChannel, ts: Tso) {
        self.ends.lock().insert((id, channel.clone()), ts);
    }

    /// Whether the drop of a collection was read on all its channels, and everything before it is applied.
    pub(crate) fn is_through(&self, route: &Route) -> bool {
        let (ends, applied) = (self.ends.lock(), self.applied.lock());
        route.shards.iter().all(|shard| {
            let end = ends.get(&(route.source, shard.source.clone()));
            end.is_some_and(|end| applied.get(&shard.source).is_some_and(|at| at >= end))
        })
    }

    /// Up to where the main readers of all its channels have applied everything.
    pub(crate) fn applied_least(&self, route: &Route) -> Tso {
        let applied = self.applied.lock();
        let of = |shard: &TargetShard| applied.get(&shard.source).copied().unwrap_or_default();
        route.shards.iter().map(of).min().unwrap_or_default()
    }

    /// Whether the main readers of its channels have applied everything up to `ts`.
    pub(crate) fn applied_by(&self, route: &Route, ts: Tso) -> bool {
        let applied = self.applied.lock();
        route
            .shards
            .iter()
            .all(|shard| applied.get(&shard.source).is_some_and(|at| *at >= ts))
    }

    pub(crate) fn is_skipped(
        &self,
        collection: CollectionId,
        channel: &PChannel,
        position: Position,
    ) -> bool {
        let skipped = self.skipped.lock();
        !skipped.is_empty() && skipped.contains(&(collection, channel.clone(), position))
    }

    pub(crate) fn skip(&self, collection: CollectionId, channel: &PChannel, position: Position) {
        self.skipped
            .lock()
            .insert((collection, channel.clone(), position));
    }

    pub(crate) fn new(ctx: Arc<TaskContext>, progress: &TaskProgress) -> Self {
        Self {
            ctx,
            collections: Mutex::new(progress.collections.clone()),
            partitions: Mutex::new(progress.partitions.clone()),
            skipped: Mutex::default(),
            routes: RwLock::default(),
            dropping: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            making: tokio::sync::Mutex::default(),
            applied: Mutex::default(),
            ends: Mutex::default(),
            moved: Notify::new(),
            freed: Notify::new(),
            made_databases: Mutex::default(),
            clearing: tokio::sync::Mutex::default(),
            cleared: Mutex::default(),
            cleared_collections: Mutex::default(),
            naming: tokio::sync::Mutex::default(),
            creating: Mutex::default(),
            renaming: Mutex::default(),
            refused_names: Mutex::default(),
            by_name: AtomicBool::new(false),
            has_begun: AtomicBool::new(false),
            to_open_again: Mutex::default(),
            unequal: Mutex::default(),
            unaliased: Mutex::default(),
        }
    }

    /// Databases that were made for their first collection since the last call.
    pub(crate) fn take_made_databases(&self) -> BTreeMap<DbId, String> {
        std::mem::take(&mut *self.made_databases.lock())
    }

    /// Whether the drop of a collection, or of one of its partitions, has passed this shard, or is made before it is read:
    /// rows of it may be read, or be kept, all the same. They go to a standby under its id, which is gone; elsewhere they would go by name, to whatever
    /// has it by then.
    pub(super) fn is_dropped_on(&self, route: &Route, shard: usize, id: PartitionId) -> bool {
        if self.ctx.hub.mode != Mode::Plain {
            return false;
        }
        let collection = self.look(route.source, |o| {
            o.phase == ObjectPhase::Dropped || o.dropped_shards.contains(&shard)
        });
        let cleared = || {
            self.cleared.lock().contains(&id)
                || self.cleared_collections.lock().contains(&route.source)
        };
        let partition = || {
            let partitions = self.partitions.lock();
            let object = partitions.get(&id);
            object.is_some_and(|o| {
                o.phase == ObjectPhase::Dropped || o.dropped_shards.contains(&shard)
            })
        };
        collection == Some(true) || cleared() || partition()
    }

    /// The route of a collection that is open.
    pub(crate) fn route_of(&self, id: CollectionId) -> Option<Arc<Route>> {
        self.routes.read().get(&id).cloned()
    }

    /// Notes what keeps a collection's indexes or load state from being as on the source; `None`: nothing.
    pub(crate) fn converged(&self, id: CollectionId, problem: Option<Problem>) {
        let mut unequal = self.unequal.lock();
        match problem {
            Some(problem) => unequal.insert(id, problem),
            None => unequal.remove(&id),
        };
    }

    /// What was said of a collection that is forgotten.
    pub(super) fn forget_sayings(&self, id: CollectionId) {
        self.unequal.lock().remove(&id);
        self.creating.lock().remove(&id);
        self.renaming.lock().remove(&id);
        self.refused_names.lock().remove(&id);
        self.ends.lock().retain(|(of, _), _| *of != id);
        self.skipped.lock().retain(|(of, ..)| *of != id);
    }

    pub(crate) fn unequal(&self) -> BTreeMap<CollectionId, Problem> {
        let mut all = self.unaliased.lock().clone();
        all.extend(self.unequal.lock().clone());
        all
    }

    /// Notes what keeps aliases of collections from being as on the source.
    pub(super) fn aliased(&self, problems: BTreeMap<CollectionId, Problem>) {
        *self.unaliased.lock() = problems;
    }

    pub(crate) fn get(&self, id: CollectionId) -> Option<CollectionObject> {
        self.collections.lock().get(&id).cloned()
    }

    /// Something of what is known of a collection, without a copy of all of it.
    pub(crate) fn look<T>(
        &self,
        id: CollectionId,
        at: impl FnOnce(&CollectionObject) -> T,
    ) -> Option<T> {
        self.collections.lock().get(&id).map(at)
    }

    /// Those that are dropped.
    pub(crate) fn dropped(&self) -> Vec<CollectionId> {
        let collections = self.collections.lock();
        let dropped = |o: &&CollectionObject| o.phase == ObjectPhase::Dropped;
        collections
            .values()
            .filter(dropped)
            .map(|o| o.source)
            .collect()
    }

    pub(crate) fn all(&self) -> Vec<CollectionObject> {
        self.collections.lock().values().cloned().collect()
    }

    /// Stores a fresh object with `records`, at once.
    pub(crate) async fn put_with(&self, object: CollectionObject, mut records: Vec<Change>) {
        let task = self.ctx.spec.id.clone();
        records.push(Change::PutCollection {
            task,
            object: object.clone(),
        });
        self.ctx.commit(records).await;
        self.collections.lock().insert(object.source, object);
    }

    pub(super) async fn put(&self, object: CollectionObject) {
        self.ctx
            .commit(vec![Change::PutCollection {
                task: self.ctx.spec.id.clone(),
                object: object.clone(),
            }])
            .await;
        self.collections.lock().insert(object.source, object);
    }

    /// Makes the collection on the target, or finds the one made before, and builds its route.
    ///
    /// `choice`: what to do with something of that name that is not ours.
    pub(crate) async fn open(
        &self,
        source: &Collection,
        database: &str,
        choice: OnConflict,
    ) -> Result<Opened, Obstacle> {
        let target = &self.ctx.hub.target;
        let failed = |e: crate::target::TargetError| Obstacle::Failed(e.problem());
        let wanted = self.ctx.wanted();
        let known = self.get(source.id);
        if let Some(object) = known.as_ref().filter(|o| o.phase != ObjectPhase::Creating) {
            if object.phase == ObjectPhase::Dropped {
                return Err(Obstacle::Gone);
            }
            let found = self.whereabouts(object).await.map_err(failed)?;
            return match found {
                Some(found) => {
                    self.claim(&found.0, source.id)?;
                    let found = self.follow_name(source, found).await?;
                    let found = found.with_channels(self.ctx.hub.mode, source.shards.len());
                    let database = self.look(source.id, |o| o.database.clone());
                    let database = database.unwrap_or_else(|| object.database.clone());
                    Ok(Opened {
                        route: self.route(source, &database, &found).await?,
                        adopted: None,
                        fresh: None,
                    })
                }
                None => Err(Obstacle::Conflict(Problem::new(
                    ErrorClass::Conflict,
                    format!(
                        "{}.{} is no longer on the target: someone dropped or replaced it there",
                        object.database, object.name
                    ),
                    "choose recreate to make it anew and copy what the queue still holds",
                ))),
            };
        }
        let from = Name::new(database, source.name.as_str());
        // One whose creation was begun keeps the name that it was to have, as long as it may be made under that.
        let begun = match &known {
            Some(object) if self.may_be_made(object, &from).await.map_err(failed)? => {
                known.as_ref()
            }
            _ => None,
        };
        let to = match begun {
            Some(object) => object.target_name(),
            None => wanted.target_of(database, &source.name),
        };
        check_name(&to).map_err(|why| {
            let why = format!("{from} would be {to} on the target: {why}");
            let hint = "give the collection another name with the task's mapping, or exclude it";
            Obstacle::Unnamed(Problem::new(ErrorClass::Conflict, why, hint))
        })?;
        let database = to.database.as_str();
        self.is_free_for(source, &to)?;
        self.claim(&to, source.id)?;
        if source.schema.fields.iter().all(|f| !f.is_primary_key) {
            return Err(Obstacle::Failed(Problem::new(
                ErrorClass::Transient,
                "its fields are not there yet",
                "",
            )));
        }
        self.database_for(source.db, Some(&from.database), database)
            .await?;
        let mut adopted = false;
        let mut there = false;
        if let Some(found) = self.described(source, database, &to.name).await? {
            // Another one of ours that has come to the name, or is just being made.
            self.is_free_for(source, &to)?;
            if let Some(other) = self.made_for(found.id).filter(|id| *id != source.id) {
                return Err(Obstacle::NameTaken(other));
            }
            // Our own create whose answer we never saw is empty as well: nothing was sent to it yet.
            let empty = !target
                .holds_rows(database, &to.name)
                .await
                .map_err(failed)?;
            let alike = found.vchannels.len() == source.shards.len()
                && same_schema(source, &found, self.ctx.hub.mode);
            if choice == OnConflict::Recreate && !(empty && alike) {
                self.drop_on_target(database, &found, &[])
                    .await
                    .map_err(Obstacle::Failed)?;
            } else if alike && (empty || choice == OnConflict::Adopt) {
                there = true;
                adopted = !empty;
            } else {
                return Err(Obstacle::Conflict(on_target(
                    source, database, &found, empty, alike,
                )));
            }
        }
        let mut object = CollectionObject {
            source: source.id,
            database: database.to_owned(),
            name: to.name.clone(),
            // It may have been renamed since that was begun.
            from: match begun {
                Some(object) => object.from.clone(),
                None => (from != to).then(|| from.clone()),
            },
            renamed: None,
            renaming: None,
            in_between: false,
            created: source.create_ts,
            phase: ObjectPhase::Creating,
            target: None,
            target_vchannels: Vec::new(),
            dropped_shards: Vec::new(),
        };
        {
            let _naming = self.naming.lock().await;
            self.is_free_for(source, &to)?;
            self.put(object.clone()).await;
        }
        if !there {
            let now = self.ctx.hub.now().await.map_err(failed)?;
            let named = match to.name == source.name {
                true => None,
                false => Some(Collection {
                    name: to.name.clone(),
                    ..source.clone()
                }),
            };
            if known.is_some() {
                self.creating.lock().insert(source.id, Instant::now());
            }
            target
                .create_collection(
                    database,
                    named.as_ref().unwrap_or(source),
                    source.create_ts.min(now),
                )
                .await
                .map_err(failed)?;
        }
        let found = self
            .described(source, database, &to.name)
            .await?
            .ok_or_else(|| {
                let why = format!("{to} was made on the target but is not visible there yet");
                Obstacle::Failed(Problem::new(
                    ErrorClass::Transient,
                    why,
                    "tried again by itself",
                ))
            })?;
        if let Some(other) = self.made_for(found.id).filter(|other| *other != source.id) {
            return Err(Obstacle::NameTaken(other));
        }
        object.phase = ObjectPhase::Live;
        object.target = Some(found.id);
        object.target_vchannels = found.vchannels.clone();
        let adopted = if adopted {
            Some(self.adopt(&found).await.map_err(Obstacle::Failed)?)
        } else {
            None
        };
        let route = self.route(source, database, &found).await?;
        Ok(Opened {
            route,
            adopted,
            fresh: Some(object),
        })
    }

    /// Whether a collection whose creation was begun is on the target under the name it was to have, or may be made there
    /// yet; also where its name on the source is still the same.
    async fn may_be_made(
        &self,
        object: &CollectionObject,
        now: &Name,
    ) -> Result<bool, TargetError> {
        if object.carried_name() == *now {
            return Ok(true);
        }
        let at = object.target_name();
        match self.ctx.hub.target.describe(&at.database, &at.name).await {
            Err(error) if error.is_alias() || error.is_not_found() => {}
            // Some other one, or ours: which of them is asked of its rows.
            Ok(Some(found)) if self.made_for(found.id).is_none() => return Ok(true),
            found => drop(found?),
        }
        let mut creating = self.creating.lock();
        let since = creating.entry(object.source).or_insert_with(Instant::now);
        Ok(since.elapsed() < LATE)
    }

    /// Whether no other collection has a name on the target, or may get it.
    fn is_free_for(&self, source: &Collection, to: &Name) -> Result<(), Obstacle> {
        let collections = self.collections.lock();
        let mut others = collections.values().filter(|o| o.source != source.id);
        match others.find(|o| self.holds(o, to)) {
            Some(holder) => Err(Obstacle::NameTaken(holder.source)),
            None => Ok(()),
        }
    }

    /// The source's collection that one of the target's stands for.
    pub(super) fn made_for(&self, target: CollectionId) -> Option<CollectionId> {
        let collections = self.collections.lock();
        let is =
            |o: &&CollectionObject| o.target == Some(target) && o.phase != ObjectPhase::Dropped;
        collections.values().find(is).map(|o| o.source)
    }

    /// Makes the database for a collection, if it is not there. `from`: the source's.
    pub(super) async fn database_for(
        &self,
        source: DbId,
        from: Option<&str>,
        database: &str,
    ) -> Result<(), Obstacle> {
        let target = &self.ctx.hub.target;
        let failed = |e: crate::target::TargetError| Obstacle::Failed(e.problem());
        let databases = target.databases().await.map_err(failed)?;
        if databases.iter().any(|d| d == database) {
            return Ok(());
        }
        // One that stands for the source's: others never go with it.
        let mapped = from.and_then(|from| self.ctx.wanted().mapping.database(from));
        if mapped.as_deref() == Some(database) {
            let made = {
                let mut made = self.made_databases.lock();
                made.insert(source, database.to_owned());
                made.clone()
            };
            // Before the call: one that a crash leaves behind has to go with its database on the source.
            note_made(&self.ctx, &made).await;
        }
        target.create_database(database).await.map_err(failed)
    }

    fn claim(&self, to: &Name, source: CollectionId) -> Result<(), Obstacle> {
        let task = &self.ctx.spec.id;
        self.ctx
            .hub
            .claims
            .take(to, task, source)
            .map_err(|other| {
                let why = format!("task {other} writes {to} on this target");
                let hint = "exclude it from one of the two tasks, or give it another name with the mapping of one";
                Obstacle::Unnamed(Problem::new(ErrorClass::Conflict, why, hint))
            })
    }

    /// A collection taken over as it is: its rows may carry any time up to now, ours or the source's. F is raised above
    /// them on its channels, on disk, before anything is sent.
    async fn adopt(&self, found: &TargetCollection) -> Result<Tso, Problem> {
        let source = self.ctx.catalog().tso_bound().await;
        let source = source.map_err(|e| e.problem())?;
        let target = self.ctx.hub.target.now().await.map_err(|e| e.problem())?;
        for channel in &found.pchannels {
            self.ctx
                .hub
                .raise_floor(channel, source.max(target))
                .await
                .map_err(store_problem)?;
        }
        Ok(source)
    }

    async fn route(
        &self,
        source: &Collection,
        database: &str,
        found: &TargetCollection,
    ) -> Result<Arc<Route>, Obstacle> {
        let name = format!("{database}.{}", found.name);
        if found.vchannels.len() != source.shards.len()
            || found.pchannels.len() != source.shards.len()
        {
            return Err(Obstacle::Conflict(Problem::new(
                ErrorClass::Conflict,
                format!(
                    "{name} has {} shards on the target, {} on the source",
                    found.vchannels.len(),
                    source.shards.len()
                ),
                "choose recreate",
            )));
        }
        let mut shards = Vec::new();
        for (i, shard) in source.shards.iter().enumerate() {
            // By shard number, not by place in the list.
            let at = found
                .vchannels
                .iter()
                .position(|v| v.shard() == Some(i))
                .unwrap_or(i);
            let (vchannel, pchannel) = (found.vchannels[at].clone(), &found.pchannels[at]);
            if vchannel.pchannel() != *pchannel {
                let why = format!("{name}: the target's channel {vchannel} is not on {pchannel}");
                return Err(Obstacle::Failed(Problem::new(
                    ErrorClass::Bug,
                    why,
                    "please report it",
                )));
            }
            let (database, name) = (database.to_owned(), found.name.clone());
            shards.push(TargetShard {
                source: shard.pchannel.clone(),
                to: encode::Shard {
                    collection: found.id,
                    vchannel,
                    database,
                    name,
                },
                lane: self.ctx.hub.lane(pchannel),
                floor: self.ctx.hub.floor(pchannel),
            });
        }
        let Some(primary_key) = source.primary_key() else {
            return Err(Obstacle::Failed(Problem::new(
                ErrorClass::Transient,
                "its fields are not there yet",
                "",
            )));
        };
        let route = Arc::new(Route {
            source: source.id,
            primary_key,
            has_partition_key: source.has_partition_key(),
            shards,
            stream: StreamCtl::new(
                source.id,
                self.ctx.wake.clone(),
                self.ctx.meter.sent.clone(),
            ),
            partitions: RwLock::default(),
        });
        self.refresh_partitions(&route, source)
            .await
            .map_err(Obstacle::Failed)?;
        self.routes.write().insert(source.id, route.clone());
        Ok(route)
    }

    /// The target's collection of a name, with a channel for each of the source's shards.
    async fn described(
        &self,
        source: &Collection,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, Obstacle> {
        let hub = &self.ctx.hub;
        let found = hub.target.describe(database, name).await;
        let found = found.map_err(|e| Obstacle::Failed(e.problem()))?;
        if hub.mode == Mode::Plain && found.as_ref().is_some_and(|f| f.id == source.id) {
            return Err(Obstacle::Conflict(the_source_itself(&hub.key)));
        }
        Ok(found.map(|f| f.with_channels(hub.mode, source.shards.len())))
    }

    /// The drop of a collection is applied on one shard; `true` after the last one.
    pub(crate) async fn shard_dropped(
        &self,
        id: CollectionId,
        shard: usize,
        shards: usize,
    ) -> bool {
        let all = |object: &CollectionObject| {
            object.phase == ObjectPhase::Dropped || object.dropped_shards.len() >= shards
        };
        let changed = self.change(id, |object| {
            if object.phase == ObjectPhase::Dropped {
                return;
            }
            object.phase = ObjectPhase::Dropping;
            if !object.dropped_shards.contains(&shard) {
                object.dropped_shards.push(shard);
            }
        });
        changed.await.as_ref().is_some_and(all)
    }

    /// Changes what is known of a collection, on disk first. One change after the other: a drop that ends and a shard's
    /// drop that is shown must not undo each other. `None` if nothing is known of it.
    pub(super) async fn change(
        &self,
        id: CollectionId,
        how: impl FnOnce(&mut CollectionObject),
    ) -> Option<CollectionObject> {
        let _guard = self.changing.lock().await;
        let mut object = self.get(id)?;
        how(&mut object);
        self.put(object.clone()).await;
        Some(object)
    }
}

/// Ids of collections are unique: who has one of the same id and name is the source.
pub(crate) fn the_source_itself(target: &TargetKey) -> Problem {
    Problem::new(
        ErrorClass::Configuration,
        format!("{target} is the source itself"),
        "choose another target: what is written there would be read again",
    )
}

/// What a person has to know of something on the target that is in the way.
fn on_target(
    source: &Collection,
    database: &str,
    found: &TargetCollection,
    empty: bool,
    alike: bool,
) -> Problem {
    let rows = if empty { "no rows" } else { "rows in it" };
    let what = if alike {
        rows.to_owned()
    } else if found.vchannels.len() != source.shards.len() {
        format!(
            "{} shards ({} on the source) and {rows}",
            found.vchannels.len(),
            source.shards.len()
        )
    } else {
        format!("another schema and {rows}")
    };
    let hint = if alike {
        "choose adopt (go on into it: rows of the same keys are replaced) or recreate (drop it there and copy anew)"
    } else {
        "choose recreate (drop it there and copy anew), or drop it yourself"
    };
    let why = format!(
        "{database}.{} is on the target already, with {what}",
        found.name
    );
    Problem::new(ErrorClass::Conflict, why, hint)
}

/// Whether rows of one fit the other: fields by id, name, type and parameters. In plain mode field ids are the target's
/// own, and it is given the keys that the source made.
fn same_schema(source: &Collection, found: &TargetCollection, mode: Mode) -> bool {
    let plain = mode == Mode::Plain;
    let wanted = user_schema(source);
    let sorted = |f: &FieldSchema| {
        let mut params: Vec<_> = f
            .type_params
            .iter()
            .map(|p| (p.key.clone(), p.value.clone()))
            .collect();
        params.sort();
        params
    };
    let same = |a: &FieldSchema, b: &FieldSchema| {
        (plain || a.field_id == b.field_id)
            && a.name == b.name
            && a.data_type == b.data_type
            && a.element_type == b.element_type
            && a.is_primary_key == b.is_primary_key
            && a.is_partition_key == b.is_partition_key
            && (plain && !b.auto_id || a.auto_id == b.auto_id)
            && sorted(a) == sorted(b)
    };
    let mut fields: Vec<_> = found
        .schema
        .fields
        .iter()
        .filter(|f| !f.is_dynamic && (plain || f.field_id >= 100))
        .collect();
    if !plain {
        fields.sort_by_key(|f| f.field_id);
    }
    wanted.enable_dynamic_field == found.schema.enable_dynamic_field
        && wanted.fields.len() == fields.len()
        && wanted.fields.iter().zip(fields).all(|(a, b)| same(a, b))
}
