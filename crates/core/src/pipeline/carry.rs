//! One message of a channel: whose it is, where it goes, what has to follow it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::objects::{PartitionAnswer, Route};
use super::passes::{Pass, Take};
use super::reader::{Inner, Reader, Scope};
use super::stretch::{Act, Place, Planned, all_partitions};
use crate::backoff::Backoff;
use crate::decode::Rows;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PartitionId};
use crate::lane::{Poison, Ticket};
use crate::position::Position;
use crate::select::Operation;
use crate::tso::Tso;

impl Reader {
    /// The collection this message is for, if this reader is to carry the message.
    pub(super) fn wanted(
        &self,
        inner: &mut Inner,
        position: Position,
        collection: CollectionId,
        ts: Tso,
    ) -> Option<Arc<Route>> {
        let attached = inner.attached.get(&collection)?;
        let before = attached.dropped || attached.after.is_some_and(|after| position <= after);
        if before || ts <= self.applied || inner.cut.is_some_and(|cut| ts > cut) {
            return None;
        }
        let route = attached.route.clone();
        if self.objects.is_skipped(collection, &self.channel, position) {
            return None;
        }
        if route.stream.failed() {
            // Another channel's reader or a lane has failed it. It goes on from what is stored for this channel, which
            // must not pass this message.
            self.hold_back(inner, &route);
            return None;
        }
        Some(route)
    }

    /// The checkpoint does not pass this stretch until the collection is detached.
    pub(super) fn hold_back(&self, inner: &mut Inner, route: &Route) {
        if inner.stuck.iter().all(|(c, _)| *c != route.source) {
            let ticket = inner.edges.ticket(self.books.lock().cell(), 0);
            inner.stuck.push((route.source, ticket));
        }
    }

    pub(super) async fn rows(
        &self,
        inner: &mut Inner,
        position: Position,
        payload: Bytes,
        rows: Rows,
    ) {
        let bytes = payload.len();
        let ts = rows.max_ts();
        let Some(route) = self.wanted(inner, position, rows.collection, ts) else {
            return;
        };
        let shard = rows.vchannel.shard().filter(|s| {
            route
                .shards
                .get(*s)
                .is_some_and(|shard| shard.source == self.channel)
        });
        let Some(shard) = shard else {
            let why = format!(
                "{}: message {position} names the channel {}, which is not one of its collection's",
                self.channel, rows.vchannel
            );
            let problem = Problem::new(
                ErrorClass::Data,
                why,
                "resume the task with skip for this collection to leave the message out; please report it with the source's version",
            );
            let message = (position, payload);
            return self.poison(inner, message, Some(rows.collection), &problem);
        };
        if self.objects.is_dropped_on(&route, shard, rows.partition) {
            return;
        }
        let times = || rows.timestamps.clone();
        let Some(take) = self.passes(inner, &route.shards[shard], position, ts, times) else {
            return;
        };
        let place = match self.place(inner, &route, rows.partition, &take).await {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(problem) => return self.stick(inner, &route, &problem),
        };
        if matches!(take, Take::Plain) {
            self.books.lock().read(position, ts);
        }
        self.ctx
            .meter
            .rows_in
            .fetch_add(rows.timestamps.len() as u64, Ordering::Relaxed);
        let ticket = inner.edges.ticket(self.books.lock().cell(), bytes);
        let in_doubt = ts <= self.in_doubt;
        let planned = Planned {
            route,
            shard,
            origin: (self.channel.clone(), position),
            act: Act::Rows {
                rows,
                place,
                in_doubt,
            },
            bytes,
            ticket,
            ticked: None,
            since: Instant::now(),
            sent: false,
        };
        self.take(inner, planned, take);
    }

    /// `None`: the partition is gone on the source.
    pub(super) async fn place(
        &self,
        inner: &Inner,
        route: &Route,
        id: PartitionId,
        take: &Take,
    ) -> Result<Option<Place>, Problem> {
        if id.0 < 0 {
            return Ok(Some(Place::Known(all_partitions())));
        }
        match self.objects.partition(route, id).await {
            PartitionAnswer::Known(partition) => Ok(Some(Place::Known(partition))),
            PartitionAnswer::Gone => Ok(None),
            PartitionAnswer::Failed(problem) => Err(problem),
            // The drop of the older one needs ticks on its lanes. A reader that holds them has sent what it read of
            // this stretch with source timestamps, which a tick must not pass before the stretch is whole.
            PartitionAnswer::NameTaken(_)
                if matches!(self.scope, Scope::Main)
                    || inner.edges.holds
                    || matches!(take, Take::Mapped(_)) =>
            {
                Err(name_taken(id))
            }
            PartitionAnswer::NameTaken(_) => Ok(Some(Place::Awaited(id))),
        }
    }

    /// A message that cannot be carried: its collection fails, or, if it cannot be told, all that are attached.
    pub(super) fn poison(
        &self,
        inner: &mut Inner,
        (position, payload): (Position, Bytes),
        collection: Option<CollectionId>,
        problem: &Problem,
    ) {
        if inner.cut.is_some() {
            // The task ends: it is read again, whatever its time is.
            return self.books.lock().seen(position, Tso::MAX);
        }
        let hit: Vec<Arc<Route>> = inner
            .attached
            .values()
            .filter(|a| collection.is_none_or(|c| c == a.route.source))
            .filter(|a| a.after.is_none_or(|after| position > after))
            .filter(|a| {
                !self
                    .objects
                    .is_skipped(a.route.source, &self.channel, position)
            })
            .map(|a| a.route.clone())
            .collect();
        for route in hit {
            self.hold_back(inner, &route);
            if !route.stream.failed() {
                let poison = Poison {
                    channel: self.channel.clone(),
                    position,
                    payload: Some(payload.clone()),
                };
                route.stream.fail_at(poison, problem.clone());
            }
        }
    }

    pub(super) fn stick(&self, inner: &mut Inner, route: &Route, problem: &Problem) {
        self.hold_back(inner, route);
        if !route.stream.failed() {
            route.stream.fail(problem.clone());
        }
    }

    /// Forwards the drop to the shards on this channel. `false` if it is none of ours, or not sent yet.
    pub(super) fn drop_collection(
        &self,
        inner: &mut Inner,
        position: Position,
        id: CollectionId,
        ts: Tso,
    ) -> bool {
        let Some(route) = self.wanted(inner, position, id, ts) else {
            return false;
        };
        // It stays on the target; the conductor lets it go once everything before this is applied.
        if self.ctx.wanted().skips(Operation::DropCollection) {
            self.objects.ends_at(id, &self.channel, ts);
            return false;
        }
        let (mut taken, mut left) = (0, false);
        for shard in route.shards_on(&self.channel).collect::<Vec<_>>() {
            let times = || vec![ts.0];
            let Some(take) = self.passes(inner, &route.shards[shard], position, ts, times) else {
                // To be sent in the second reading.
                left |= matches!(inner.pass, Pass::Times(_));
                continue;
            };
            taken += 1;
            let (ticket, ticked) = self.follow(inner, {
                let (objects, ctx, route) = (self.objects.clone(), self.ctx.clone(), route.clone());
                async move {
                    objects.shard_dropped(id, shard, route.shards.len()).await;
                    ctx.wake.notify_one();
                }
            });
            if matches!(take, Take::Plain) {
                self.books.lock().read(position, ts);
            }
            let planned = Planned {
                route: route.clone(),
                shard,
                origin: (self.channel.clone(), position),
                act: Act::DropCollection { ts },
                bytes: 0,
                ticket,
                ticked,
                since: Instant::now(),
                sent: false,
            };
            self.take(inner, planned, take);
        }
        if taken > 0
            && !left
            && matches!(self.scope, Scope::Main)
            && let Some(attached) = inner.attached.get_mut(&id)
        {
            // Nothing of it follows; its lanes are left once the drop has been shown to them, with the next tick.
            attached.dropped = true;
        }
        taken > 0 && !left
    }

    pub(super) async fn drop_partition(
        &self,
        inner: &mut Inner,
        position: Position,
        collection: CollectionId,
        partition: PartitionId,
        ts: Tso,
    ) {
        let Some(route) = self.wanted(inner, position, collection, ts) else {
            return;
        };
        // It stays on the target, and is that of a newer one of its name, if there comes one.
        if self.ctx.wanted().skips(Operation::DropPartition) {
            return;
        }
        // Never made on the target: nothing to drop there.
        let known = match self.objects.bury(&route, partition).await {
            Ok(Some(known)) => known,
            Ok(None) => return,
            Err(problem) => return self.stick(inner, &route, &problem),
        };
        for shard in route.shards_on(&self.channel).collect::<Vec<_>>() {
            let times = || vec![ts.0];
            let Some(take) = self.passes(inner, &route.shards[shard], position, ts, times) else {
                continue;
            };
            let (ticket, ticked) = self.follow(inner, {
                let (objects, route) = (self.objects.clone(), route.clone());
                async move {
                    let mut backoff = Backoff::new();
                    while let Err(problem) =
                        objects.partition_dropped(&route, partition, shard).await
                    {
                        tracing::warn!(%partition, "{problem}");
                        backoff.wait().await;
                    }
                }
            });
            if matches!(take, Take::Plain) {
                self.books.lock().read(position, ts);
            }
            let planned = Planned {
                route: route.clone(),
                shard,
                origin: (self.channel.clone(), position),
                act: Act::DropPartition {
                    partition: known.clone(),
                    ts,
                },
                bytes: 0,
                ticket,
                ticked,
                since: Instant::now(),
                sent: false,
            };
            self.take(inner, planned, take);
        }
    }

    /// A ticket for a message after which `then` has to be done, once it and a tick are acknowledged: the checkpoint
    /// passes the message only after that.
    pub(super) fn follow(
        &self,
        inner: &Inner,
        then: impl Future<Output = ()> + Send + 'static,
    ) -> (Ticket, Option<oneshot::Sender<Ticket>>) {
        let ticket = inner.edges.ticket(self.books.lock().cell(), 0);
        let (ticked, done) = oneshot::channel::<Ticket>();
        let cancel = self.ctx.cancel.clone();
        self.followers.spawn(async move {
            let work = async {
                if let Ok(ticket) = done.await {
                    then.await;
                    drop(ticket);
                }
            };
            tokio::select! {
                () = work => {}
                () = cancel.cancelled() => {}
            }
        });
        (ticket, Some(ticked))
    }
}

pub(super) fn name_taken(partition: PartitionId) -> Problem {
    Problem::new(
        ErrorClass::Transient,
        format!(
            "partition {partition} waits until the older one of its name is dropped on the target"
        ),
        "goes on by itself",
    )
}
