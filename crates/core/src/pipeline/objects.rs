//! Which target object stands for which source object: the table, as it is stored, and what is known beside it.
//!
//! A source object is known by its id. Its name on the target is resolved when it is made, and when it is renamed there
//! (`making.rs`, `renames.rs`); otherwise the target's id counts, and a name that has come to mean another object on the
//! target is never touched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::TaskContext;
use super::renames::Names;
use crate::error::Problem;
use crate::ids::{CollectionId, DbId, FieldId, PChannel, PartitionId};
use crate::lane::{Lane, StreamCtl};
use crate::position::Position;
use crate::route::encode;
use crate::select::Name;
use crate::store::{Change, CollectionObject, ObjectPhase, PartitionObject, TaskProgress};
use crate::task::Mode;
use crate::tso::Tso;

/// One shard of a collection: where it comes from, where it goes.
pub(crate) struct TargetShard {
    pub(crate) source: PChannel,
    pub(crate) to: encode::Shard,
    pub(crate) lane: Arc<Lane>,
    /// No row of the collection that is on the target already is newer, but for what the lane knows of.
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
    pub(super) made_databases: Mutex<BTreeMap<DbId, String>>,
    /// One at a time drops partitions whose drop is not read yet.
    pub(super) clearing: tokio::sync::Mutex<()>,
    /// Partitions and collections that are being dropped though their drop is not read, until they are known as dropped.
    pub(super) cleared: Mutex<HashSet<PartitionId>>,
    pub(super) cleared_collections: Mutex<HashSet<CollectionId>>,
    pub(super) names: Names,
    /// What keeps a collection's indexes or load state from being as on the source.
    unequal: Mutex<BTreeMap<CollectionId, Problem>>,
    /// What keeps their aliases from being so.
    unaliased: Mutex<BTreeMap<CollectionId, Problem>>,
    /// What keeps properties of databases from being so.
    databases: Mutex<Vec<Problem>>,
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
            names: Names::default(),
            unequal: Mutex::default(),
            unaliased: Mutex::default(),
            databases: Mutex::default(),
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
        self.names.forget(id);
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

    /// Notes what keeps properties of databases from being as on the source.
    pub(super) fn of_databases(&self, problems: Vec<Problem>) {
        *self.databases.lock() = problems;
    }

    pub(crate) fn unlike_databases(&self) -> Vec<Problem> {
        self.databases.lock().clone()
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
