//! Which target partition stands for which source partition; made when the first row or the convergence needs it, dropped
//! when every shard has shown its drop.

use super::objects::{Objects, PartitionAnswer, PartitionRoute, Route};
use super::stretch::all_partitions;
use crate::catalog::{Collection, ObjectState};
use crate::error::{ErrorClass, Problem};
use crate::ids::PartitionId;
use crate::select::{Name, Operation};
use crate::store::{Change, ObjectPhase, PartitionObject};
use crate::task::Mode;
use crate::tso::Tso;

fn not_there() -> Problem {
    let why = "its collection is under none of its names on the target";
    Problem::new(ErrorClass::Transient, why, "tried again by itself")
}

impl Objects {
    pub(super) async fn put_partition(&self, object: PartitionObject) {
        self.ctx
            .commit(vec![Change::PutPartition {
                task: self.ctx.spec.id.clone(),
                object: object.clone(),
            }])
            .await;
        self.partitions.lock().insert(object.source, object);
    }

    /// The same of one that is known. `false` if its collection was forgotten meanwhile, and it with that: noted again it
    /// would be taken for one of the collection that is made anew.
    pub(super) async fn put_known_partition(&self, object: PartitionObject) -> bool {
        let _guard = self.changing.lock().await;
        let known = self.partitions.lock().contains_key(&object.source);
        if known {
            self.put_partition(object).await;
        }
        known
    }

    /// Maps the source's partitions that are on the target already by name, if their name is not another one's there.
    pub(super) async fn refresh_partitions(
        &self,
        route: &Route,
        source: &Collection,
    ) -> Result<(), Problem> {
        let to = &route.shards[0].to;
        // Also as it is before the target is asked: one that is dropped while it answers is in the answer still, and is
        // not the newer one of its name.
        let mut taken = self.names_taken(route);
        let found = self
            .ctx
            .hub
            .target
            .partitions(&to.database, &to.name)
            .await
            .map_err(|e| e.problem())?;
        taken.extend(self.names_taken(route));
        // Those that were made, whatever the source says of them by now: their drops are still to be carried.
        let made: Vec<PartitionObject> = self.partitions.lock().values().cloned().collect();
        for object in made {
            if object.collection == route.source
                && matches!(object.phase, ObjectPhase::Live | ObjectPhase::Dropping)
                && let Some(target) = object.target
                && found.iter().any(|(_, id)| *id == target)
            {
                let entry = PartitionRoute {
                    target,
                    name: object.name,
                };
                route.partitions.write().insert(object.source, entry);
            }
        }
        for partition in source.partitions.values() {
            let known = self.partitions.lock().get(&partition.id).map(|o| o.phase);
            let known = known.is_some_and(|phase| phase != ObjectPhase::Creating);
            if known || partition.state != ObjectState::Created {
                continue;
            }
            let mut taken = taken.iter();
            let is_taken = taken.any(|(id, name)| *id != partition.id && *name == partition.name);
            if !is_taken
                && let Some((name, id)) = found.iter().find(|(name, _)| *name == partition.name)
            {
                self.adopt_partition(route, partition.id, name, *id).await;
            }
        }
        Ok(())
    }

    /// The names that partitions of this collection have on the target, or are to have.
    fn names_taken(&self, route: &Route) -> Vec<(PartitionId, String)> {
        let partitions = self.partitions.lock();
        let of_it = partitions
            .values()
            .filter(|o| o.collection == route.source && o.phase != ObjectPhase::Dropped);
        of_it.map(|o| (o.source, o.name.clone())).collect()
    }

    async fn adopt_partition(
        &self,
        route: &Route,
        source: PartitionId,
        name: &str,
        target: PartitionId,
    ) {
        self.put_partition(PartitionObject {
            source,
            collection: route.source,
            name: name.to_owned(),
            phase: ObjectPhase::Live,
            target: Some(target),
            dropped_shards: Vec::new(),
        })
        .await;
        route.partitions.write().insert(
            source,
            PartitionRoute {
                target,
                name: name.to_owned(),
            },
        );
    }

    /// What the target knows of this partition, without asking anyone.
    pub(crate) fn known_partition(&self, route: &Route, id: PartitionId) -> Option<PartitionRoute> {
        route.partitions.read().get(&id).cloned()
    }

    /// Finds a partition, making it on the target if it is alive on the source.
    pub(crate) async fn partition(&self, route: &Route, id: PartitionId) -> PartitionAnswer {
        if let Some(known) = self.known_partition(route, id) {
            return PartitionAnswer::Known(known);
        }
        if self.ctx.hub.mode == Mode::Plain && route.has_partition_key {
            // The target chooses it, and may have others than the source.
            return PartitionAnswer::Known(all_partitions());
        }
        let _guard = self.making.lock().await;
        if let Some(known) = self.known_partition(route, id) {
            return PartitionAnswer::Known(known);
        }
        let made = self.partitions.lock().get(&id).cloned();
        match made.map(|made| (made.phase, made.target, made.name)) {
            Some((ObjectPhase::Dropped, ..)) => return PartitionAnswer::Gone,
            // By another way: this one was found while it was being made.
            Some((ObjectPhase::Live, Some(target), name)) => {
                let there = match self.partitions_of(route).await {
                    Ok(there) => there,
                    Err(problem) => return PartitionAnswer::Failed(problem),
                };
                if there.iter().any(|(_, id)| *id == target) {
                    let known = PartitionRoute { target, name };
                    route.partitions.write().insert(id, known.clone());
                    return PartitionAnswer::Known(known);
                }
            }
            _ => {}
        }
        let source = match self.ctx.catalog().read_collection(route.source).await {
            Ok(Some(source)) => source,
            Ok(None) => return PartitionAnswer::Gone,
            Err(e) => return PartitionAnswer::Failed(e.problem()),
        };
        let Some(partition) = source
            .partitions
            .get(&id)
            .filter(|p| p.state != ObjectState::Dropping)
        else {
            return PartitionAnswer::Gone;
        };
        let taken = self
            .partitions
            .lock()
            .values()
            .find(|o| {
                o.collection == route.source
                    && o.source != id
                    && o.name == partition.name
                    && o.phase != ObjectPhase::Dropped
            })
            .map(|o| o.source);
        if let Some(holder) = taken {
            let gone = source
                .partitions
                .get(&holder)
                .is_none_or(|p| p.state == ObjectState::Dropping);
            if !gone || !self.ctx.wanted().skips(Operation::DropPartition) {
                return PartitionAnswer::NameTaken(holder);
            }
            // Its drop is not carried: the newer one has its place, with what is in it. Rows of both go there.
            let there = match self.partitions_of(route).await {
                Ok(there) => there,
                Err(problem) => return PartitionAnswer::Failed(problem),
            };
            if let Some((name, target)) = there.into_iter().find(|(n, _)| *n == partition.name) {
                self.adopt_partition(route, id, &name, target).await;
                return PartitionAnswer::Known(PartitionRoute { target, name });
            }
        }
        match self
            .make_partition(route, id, &partition.name, partition.create_ts)
            .await
        {
            Ok(made) => PartitionAnswer::Known(made),
            Err(problem) => PartitionAnswer::Failed(problem),
        }
    }

    /// The drop of a partition passes that no row went to: it must not be made any more. `Some` if it is on the target, or
    /// its creation was under way.
    pub(crate) async fn bury(
        &self,
        route: &Route,
        id: PartitionId,
    ) -> Result<Option<PartitionRoute>, Problem> {
        let _guard = self.making.lock().await;
        if let Some(known) = self.known_partition(route, id) {
            return Ok(Some(known));
        }
        // Not by this way, but it was made: the mark below must not take the place of what is known of it.
        let made = self.partitions.lock().get(&id).cloned();
        if let Some(made) = made.filter(|o| o.phase != ObjectPhase::Dropped)
            && let Some(made) = self.found(route, made).await?
            && let Some(target) = made.target
        {
            let name = made.name;
            return Ok(Some(PartitionRoute { target, name }));
        }
        self.put_partition(PartitionObject {
            source: id,
            collection: route.source,
            name: String::new(),
            phase: ObjectPhase::Dropped,
            target: None,
            dropped_shards: Vec::new(),
        })
        .await;
        Ok(None)
    }

    /// The target's partitions of a collection, under the name that it has there now.
    async fn partitions_of(&self, route: &Route) -> Result<Vec<(String, PartitionId)>, Problem> {
        let at = self.place(route).await?.ok_or_else(not_there)?;
        let there = self.ctx.hub.target.partitions(&at.database, &at.name);
        there.await.map_err(|e| e.problem())
    }

    /// A partition that was made. If only its intent is known, as it is found on the target; `None`: it is not there.
    pub(super) async fn found(
        &self,
        route: &Route,
        made: PartitionObject,
    ) -> Result<Option<PartitionObject>, Problem> {
        if made.target.is_some() {
            return Ok(Some(made));
        }
        let Some(at) = self.place(route).await? else {
            return Ok(None);
        };
        let target = &self.ctx.hub.target;
        let there = target.partitions(&at.database, &at.name).await;
        let there = match there {
            Err(e) if e.is_not_found() => return Ok(None),
            there => there.map_err(|e| e.problem())?,
        };
        // Of this name there is one intent or partition at a time.
        let Some((name, id)) = there.into_iter().find(|(name, _)| *name == made.name) else {
            return Ok(None);
        };
        self.adopt_partition(route, made.source, &name, id).await;
        Ok(self.partitions.lock().get(&made.source).cloned())
    }

    async fn make_partition(
        &self,
        route: &Route,
        source: PartitionId,
        name: &str,
        ts: Tso,
    ) -> Result<PartitionRoute, Problem> {
        let at = self.place(route).await?.ok_or_else(not_there)?;
        let target = &self.ctx.hub.target;
        let now = self.ctx.hub.now().await.map_err(|e| e.problem())?;
        if !route.has_partition_key {
            // The intent first: of a call whose answer is lost it is not known whether there is something to drop.
            let intent = PartitionObject {
                source,
                collection: route.source,
                name: name.to_owned(),
                phase: ObjectPhase::Creating,
                target: None,
                dropped_shards: Vec::new(),
            };
            self.put_partition(intent).await;
            target
                .create_partition(&at.database, &at.name, name, ts.min(now))
                .await
                .map_err(|e| e.problem())?;
        }
        let found = target
            .partitions(&at.database, &at.name)
            .await
            .map_err(|e| e.problem())?;
        let Some((_, id)) = found.into_iter().find(|(found, _)| found == name) else {
            let why = format!("partition {name} of {at} is not on the target yet");
            return Err(Problem::new(
                ErrorClass::Transient,
                why,
                "tried again by itself",
            ));
        };
        self.adopt_partition(route, source, name, id).await;
        Ok(PartitionRoute {
            target: id,
            name: name.to_owned(),
        })
    }

    /// The drop of a partition is applied on one shard; after the last one it is dropped by RPC.
    pub(crate) async fn partition_dropped(
        &self,
        route: &Route,
        id: PartitionId,
        shard: usize,
    ) -> Result<(), Problem> {
        let _guard = self.dropping.lock().await;
        let Some(mut object) = self.partitions.lock().get(&id).cloned() else {
            return Ok(());
        };
        if object.phase == ObjectPhase::Dropped {
            return Ok(());
        }
        object.phase = ObjectPhase::Dropping;
        if !object.dropped_shards.contains(&shard) {
            object.dropped_shards.push(shard);
        }
        let known = self.put_known_partition(object.clone()).await;
        if !known || object.dropped_shards.len() < route.shards.len() {
            return Ok(());
        }
        let to = &route.shards[0].to;
        let target = &self.ctx.hub.target;
        // Its collection's own drop, or its database's, may be quicker: nothing is left to drop then.
        let at = self.place(route).await?;
        let at = at.unwrap_or_else(|| Name::new(to.database.as_str(), to.name.as_str()));
        let found = match target.partitions(&at.database, &at.name).await {
            Ok(found) => found,
            Err(e) if e.is_not_found() => {
                let there = target.describe(&at.database, &at.name).await;
                match there.map_err(|e| e.problem())? {
                    Some(there) if there.id == to.collection => return Err(e.problem()),
                    _ => Vec::new(),
                }
            }
            Err(e) => return Err(e.problem()),
        };
        if let Some((_, found)) = found.iter().find(|(_, id)| Some(*id) == object.target) {
            self.ctx.hub.drop_rows(to.collection, *found).await;
            let now = self.ctx.hub.now().await.map_err(|e| e.problem())?;
            // A loaded partition cannot be dropped.
            target
                .release(&at.database, &at.name, std::slice::from_ref(&object.name))
                .await
                .map_err(|e| e.problem())?;
            target
                .drop_partition(&at.database, &at.name, &object.name, now)
                .await
                .map_err(|e| e.problem())?;
        }
        object.phase = ObjectPhase::Dropped;
        self.put_known_partition(object).await;
        route.partitions.write().remove(&id);
        self.freed.notify_waiters();
        self.ctx.wake.notify_one();
        Ok(())
    }
}
