//! The end of collections on the target: the message to every shard, a tick behind it, then the call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::objects::{Objects, Route};
use crate::catalog::ObjectState;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PartitionId};
use crate::lane::{EdgeId, Lane, Outgoing, StreamCtl, Ticket};
use crate::route::encode;
use crate::select::Name;
use crate::store::{Change, CollectionObject, ObjectPhase};
use crate::target::hub::store_problem;
use crate::target::{TargetCollection, TargetError};
use crate::tso::Tso;

/// A message that is to be shown. Dropped without [`Waiting::done`], it is taken back, if it is not sent yet.
struct Waiting<'a> {
    lane: &'a Lane,
    edge: EdgeId,
    stream: &'a Arc<StreamCtl>,
}

impl Waiting<'_> {
    fn done(self) {
        self.lane.leave(self.edge);
        std::mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.lane.leave(self.edge);
        self.lane.purge(self.stream);
    }
}

/// How long a drop message may take to be shown on its lane before the drop is tried again.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

impl Objects {
    /// Drops the target's collection by RPC, if it still is the one that was made for this source collection. Its drop
    /// messages are through.
    pub(crate) async fn finish_drop(&self, id: CollectionId) -> Result<(), Problem> {
        let Some(object) = self.get(id) else {
            return Ok(());
        };
        let target = &self.ctx.hub.target;
        // Until it is gone: a rename whose answer was not seen may come between the look and the drop.
        while let Some((at, found)) = self.whereabouts(&object).await.map_err(|e| e.problem())? {
            self.ctx.hub.until_ended(found.id).await;
            let now = self.ctx.hub.now().await.map_err(|e| e.problem())?;
            target
                .drop_collection(&at.database, &at.name, now)
                .await
                .map_err(|e| e.problem())?;
        }
        self.change(id, |object| object.phase = ObjectPhase::Dropped)
            .await;
        self.routes.write().remove(&id);
        self.ctx.hub.claims.leave(&self.ctx.spec.id, id);
        self.forget_partitions(id).await
    }

    /// The source has dropped it, and it stays on the target: it is nobody's there from now on.
    pub(crate) async fn leave(&self, id: CollectionId) {
        self.change(id, |object| object.phase = ObjectPhase::Dropped)
            .await;
        self.routes.write().remove(&id);
        self.ctx.hub.claims.leave(&self.ctx.spec.id, id);
        let _guard = self.changing.lock().await;
        self.ctx.commit(self.partition_deletes(id)).await;
        self.partitions.lock().retain(|_, p| p.collection != id);
    }

    /// Drops a collection whose drop is not read from the queue: it waits for a person, or its messages are gone.
    ///
    /// Asks the source once more, for what was dropped there never comes back under its id.
    pub(crate) async fn drop_from_table(&self, id: CollectionId) -> Result<(), Problem> {
        // Its name may be a newer one's by now.
        if self
            .get(id)
            .is_some_and(|o| o.phase == ObjectPhase::Dropped)
        {
            return self.forget_partitions(id).await;
        }
        let source = self.ctx.catalog().read_collection(id).await;
        if let Some(source) = source.map_err(|e| e.problem())?
            && source.state != ObjectState::Dropping
        {
            let why = format!("{} is there on the source after all", source.name);
            return Err(Problem::new(
                ErrorClass::Transient,
                why,
                "tried again by itself",
            ));
        }
        let Some(object) = self.get(id) else {
            return Ok(());
        };
        self.cleared_collections.lock().insert(id);
        let found = match object.target {
            Some(_) => self.whereabouts(&object).await,
            // Its create call was made, or was about to be: nothing was sent to it yet.
            None => self.empty_one(&object).await,
        };
        if let Some((at, found)) = found.map_err(|e| e.problem())? {
            // Its lanes have what was sent to it: none of that comes behind the drop.
            let shards = object.target_vchannels.len();
            let found = found.with_channels(self.ctx.hub.mode, shards);
            self.change(id, |object| object.target = Some(found.id))
                .await;
            self.drop_on_target(&at.database, &found, &object.dropped_shards)
                .await?;
        }
        self.finish_drop(id).await
    }

    /// The target's collection of its name, if it holds no rows.
    async fn empty_one(
        &self,
        object: &CollectionObject,
    ) -> Result<Option<(Name, TargetCollection)>, TargetError> {
        let (target, at) = (&self.ctx.hub.target, object.target_name());
        let Some(found) = target.describe(&at.database, &at.name).await? else {
            return Ok(None);
        };
        if self.made_for(found.id).is_some() {
            // Another one of ours that has come to that name.
            return Ok(None);
        }
        let empty = !target.holds_rows(&at.database, &at.name).await?;
        Ok(empty.then_some((at, found)))
    }

    /// Drops what stands for a collection on the target, to be made anew.
    pub(crate) async fn take_down(&self, id: CollectionId) -> Result<(), Problem> {
        let Some(object) = self.get(id) else {
            return Ok(());
        };
        let shards = object.target_vchannels.len();
        // Until it is gone: a rename whose answer was not seen may come between the look and the drop.
        while let Some((at, found)) = self.whereabouts(&object).await.map_err(|e| e.problem())? {
            let found = found.with_channels(self.ctx.hub.mode, shards);
            self.drop_on_target(&at.database, &found, &object.dropped_shards)
                .await?;
        }
        Ok(())
    }

    /// Drops a collection as the target describes it, whatever it was made for; its shards in `done` have had their
    /// message.
    pub(super) async fn drop_on_target(
        &self,
        database: &str,
        found: &TargetCollection,
        done: &[usize],
    ) -> Result<(), Problem> {
        let stream = StreamCtl::new(found.id, self.ctx.wake.clone(), self.ctx.meter.sent.clone());
        for (i, (vchannel, pchannel)) in found.vchannels.iter().zip(&found.pchannels).enumerate() {
            if done.contains(&vchannel.shard().unwrap_or(i)) {
                continue;
            }
            let to = encode::Shard {
                collection: found.id,
                vchannel: vchannel.clone(),
                database: database.to_owned(),
                name: found.name.clone(),
            };
            let lane = self.ctx.hub.lane(pchannel);
            let encode = |ts: Tso, msg_id| encode::drop_collection(&to, ts.0, msg_id);
            if !self.show(&lane, &stream, encode).await {
                let why = format!(
                    "the drop of {database}.{} is not shown on {pchannel} yet",
                    found.name
                );
                return Err(Problem::new(
                    ErrorClass::Transient,
                    why,
                    "tried again by itself",
                ));
            }
        }
        self.ctx.hub.until_ended(found.id).await;
        let target = &self.ctx.hub.target;
        let now = self.ctx.hub.now().await.map_err(|e| e.problem())?;
        target
            .release(database, &found.name, &[])
            .await
            .map_err(|e| e.problem())?;
        target
            .drop_collection(database, &found.name, now)
            .await
            .map_err(|e| e.problem())
    }

    /// Drops a partition whose name is needed by a newer one and whose drop is not read yet: the source takes the name as
    /// free before it writes the drop to the channels, so that rows of the newer one may stand before it.
    pub(super) async fn clear_partition(
        &self,
        route: &Route,
        id: PartitionId,
    ) -> Result<(), Problem> {
        let _one = self.clearing.lock().await;
        self.cleared.lock().insert(id);
        let Some(mut object) = self.partitions.lock().get(&id).cloned() else {
            return Ok(());
        };
        if object.phase == ObjectPhase::Creating {
            let _guard = self.making.lock().await;
            match self.found(route, object.clone()).await? {
                Some(found) => object = found,
                None => {
                    object.phase = ObjectPhase::Dropped;
                    self.put_known_partition(object).await;
                    self.freed.notify_waiters();
                    return Ok(());
                }
            }
        }
        let (Some(target), false) = (object.target, object.phase == ObjectPhase::Dropped) else {
            return Ok(());
        };
        let stream = StreamCtl::new(
            route.source,
            self.ctx.wake.clone(),
            self.ctx.meter.sent.clone(),
        );
        for (i, shard) in route.shards.iter().enumerate() {
            if object.dropped_shards.contains(&i) {
                continue;
            }
            let encode = |ts: Tso, msg_id| {
                encode::drop_partition(&shard.to, target, &object.name, ts.0, msg_id)
            };
            if !self.show(&shard.lane, &stream, encode).await {
                let why = format!(
                    "the drop of partition {} of {}.{} is not shown yet",
                    object.name, shard.to.database, shard.to.name
                );
                return Err(Problem::new(
                    ErrorClass::Transient,
                    why,
                    "tried again by itself",
                ));
            }
            self.partition_dropped(route, id, i).await?;
        }
        // Once more, if all was shown before and the call has failed since.
        self.partition_dropped(route, id, 0).await
    }

    /// Sends one message above everything sent on its lane, and waits until a tick has shown it.
    async fn show(
        &self,
        lane: &Lane,
        stream: &Arc<StreamCtl>,
        encode: impl FnOnce(Tso, i64) -> Bytes,
    ) -> bool {
        let edge = lane.join(Tso::ZERO, false, self.ctx.hub.of_others(lane.channel()));
        let ts = Tso(lane.raise(edge, vec![1], true).get(1));
        let (cell, own) = (Arc::default(), Arc::default());
        let (ticked, shown) = oneshot::channel();
        lane.push(Outgoing {
            stream: stream.clone(),
            bytes: encode(ts, self.ctx.hub.message_id()).into(),
            ts,
            rows: 0,
            is_insert: false,
            partition: None,
            origin: None,
            ticket: Some(Ticket::new(&cell, &own, &self.ctx.budget, 0)),
            ticked: Some(ticked),
        });
        lane.passed(edge, Tso(1));
        // Whoever stops waiting takes it back.
        let waiting = Waiting { lane, edge, stream };
        let shown = tokio::time::timeout(SHOWN_WITHIN, shown).await;
        let is_shown = matches!(shown, Ok(Ok(_)));
        if is_shown {
            waiting.done();
        }
        is_shown
    }

    async fn forget_partitions(&self, id: CollectionId) -> Result<(), Problem> {
        let _guard = self.changing.lock().await;
        let changes = self.partition_deletes(id);
        let store = &self.ctx.parts.store;
        store.commit(changes).await.map_err(store_problem)?;
        self.partitions.lock().retain(|_, p| p.collection != id);
        Ok(())
    }

    fn partition_deletes(&self, id: CollectionId) -> Vec<Change> {
        let task = &self.ctx.spec.id;
        self.partitions
            .lock()
            .values()
            .filter(|p| p.collection == id)
            .map(|p| Change::DeletePartition {
                task: task.clone(),
                source: p.source,
            })
            .collect()
    }

    /// Forgets a collection, so that it is met anew, together with `also`: at once or not at all.
    pub(crate) async fn forget(&self, id: CollectionId, also: Vec<Change>) {
        let _guard = self.changing.lock().await;
        let mut changes = also;
        changes.push(Change::DeleteCollection {
            task: self.ctx.spec.id.clone(),
            source: id,
        });
        changes.extend(self.partition_deletes(id));
        self.ctx.commit(changes).await;
        self.collections.lock().remove(&id);
        self.routes.write().remove(&id);
        self.ctx.hub.claims.leave(&self.ctx.spec.id, id);
        self.partitions.lock().retain(|_, p| p.collection != id);
        self.forget_sayings(id);
    }
}
