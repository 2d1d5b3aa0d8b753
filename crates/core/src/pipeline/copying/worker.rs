//! One of those that copy a collection: pages from the source, messages to the lanes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cdc_keys::Key;
use tokio::sync::Notify;

use super::{Copier, later, no_partition_key, rows_of_a_page};
use crate::error::Problem;
use crate::ids::PartitionId;
use crate::lane::{Cell, EdgeId, Outgoing, StreamCtl, Ticket, Way};
use crate::pipeline::objects::{PartitionAnswer, PartitionRoute, TargetShard};
use crate::pipeline::stretch::all_partitions;
use crate::repair::Keys;
use crate::route::encode;
use crate::route::hash::Value;
use crate::snapshot::{Page, Pages, Part, Piece, bytes_of};
use crate::tso::Tso;

/// One of those that copy a collection: its ways into the lanes, each with a time of its own.
pub(super) struct Worker {
    copier: Arc<Copier>,
    /// By the lane's channel.
    ways: BTreeMap<String, Way>,
    stream: Arc<StreamCtl>,
    /// Told when the stream fails.
    wake: Arc<Notify>,
    /// Counts pages: the source times that the lanes are told of.
    time: u64,
}

/// Rows of one shard and partition.
#[derive(Default)]
struct Group {
    rows: Vec<usize>,
    keys: Vec<Key>,
}

impl Worker {
    pub(super) fn new(copier: Arc<Copier>) -> Self {
        let (wake, sent) = (Arc::new(Notify::new()), copier.ctx.meter.sent.clone());
        Self {
            stream: StreamCtl::new(copier.source.id, wake.clone(), sent),
            ways: BTreeMap::new(),
            time: copier.at.0,
            wake,
            copier,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), Problem> {
        while let Some((piece, window)) = self.copier.take().await? {
            self.piece(&piece, window).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, piece: &Piece, window: bool) -> Result<(), Problem> {
        let copier = self.copier.clone();
        let Part { partition, range } = copier.part(piece)?;
        let mut pages = Pages::new(&copier.rows, &copier.of, partition, range, copier.at);
        let (mut rows, mut doubled) = (0, 0);
        while let Some(page) = pages.next(copier.page_rows()).await? {
            // What was read by this name is of this collection.
            copier.same().await?;
            let count = page.rows.len() as u64;
            let bytes = bytes_of(&page.columns);
            copier.row_bytes.store(page.row_bytes(), Ordering::Relaxed);
            copier.pace.take(count, bytes).await;
            doubled += page.doubled;
            copier
                .progress
                .doubled
                .fetch_add(page.doubled, Ordering::Relaxed);
            self.page(piece, &page, window).await?;
            rows += count;
            copier.progress.copied.fetch_add(count, Ordering::Relaxed);
        }
        // Nor was what it showed as nothing of another one.
        copier.same().await?;
        copier.done(piece, rows, doubled).await;
        Ok(())
    }

    /// Sends a page, and waits until all of it is acknowledged.
    async fn page(&mut self, piece: &Piece, page: &Page, window: bool) -> Result<(), Problem> {
        let copier = self.copier.clone();
        let route = &copier.route;
        let by_row = match piece.partition {
            Some(_) => Vec::new(),
            None => copier.partitions_of(&page.columns)?,
        };
        let mut groups: BTreeMap<(usize, PartitionId), Group> = BTreeMap::new();
        for (key, row) in page.keys.iter().zip(&page.rows) {
            let hashed = match key {
                Key::Int(key) => Value::Int(*key),
                Key::Str(key) => Value::Str(key),
            };
            let partition = match piece.partition {
                Some(partition) => partition,
                None => *by_row.get(*row).ok_or_else(no_partition_key)?,
            };
            let group = groups
                .entry((hashed.place(route.shards.len()), partition))
                .or_default();
            group.rows.push(*row);
            group.keys.push(key.clone());
        }
        // Before a time is taken on the lanes: their ticks wait from then on.
        let mut parts = Vec::new();
        let most = rows_of_a_page(page.row_bytes()) as usize;
        for ((shard, partition), group) in groups {
            let to = match copier.objects.partition(route, partition).await {
                PartitionAnswer::Known(to) => to,
                // With its rows.
                PartitionAnswer::Gone => continue,
                PartitionAnswer::NameTaken(_) => {
                    return Err(later("an older partition of that name is dropped first"));
                }
                PartitionAnswer::Failed(problem) => return Err(problem),
            };
            // A message has a limit in the target's queue, which a page of rows that are larger than was thought may pass.
            for (rows, keys) in group.rows.chunks(most).zip(group.keys.chunks(most)) {
                let columns = copier.columns(&page.columns, rows)?;
                let keys: Keys = keys.iter().cloned().collect();
                parts.push((shard, to.clone(), columns, keys));
            }
        }
        self.time += 1;
        let time = self.time;
        let (cell, own): (Arc<Cell>, Arc<AtomicUsize>) = Default::default();
        let mut maps = BTreeMap::new();
        for (shard, to, columns, keys) in parts {
            let shard = &route.shards[shard];
            let channel = shard.lane.channel().as_str().to_owned();
            let edge = self.way(shard);
            let map = maps.entry(channel).or_insert_with(|| {
                let map = shard.lane.raise(edge, vec![time], window);
                (shard.lane.clone(), edge, map)
            });
            let ts = Tso(map.2.get(time));
            let hub = &copier.ctx.hub;
            let PartitionRoute { target, name } = &to;
            let times = vec![time; keys.len()];
            let push = |bytes: bytes::Bytes, rows, is_insert| {
                let ticket = Ticket::new(&cell, &own, &copier.ctx.budget, bytes.len());
                shard.lane.push(Outgoing {
                    stream: self.stream.clone(),
                    bytes: bytes.into(),
                    ts,
                    rows,
                    is_insert,
                    partition: None,
                    origin: None,
                    ticket: Some(ticket),
                    ticked: None,
                });
            };
            if window {
                // Where rows are read by partition, a key may be in another one too.
                let all = all_partitions();
                let within = match piece.partition {
                    Some(_) => &to,
                    None => &all,
                };
                let (target, name) = (within.target, &within.name);
                let id = hub.message_id();
                push(
                    encode::delete_of(keys.ids(), &times, &shard.to, target, name, &map.2, id),
                    0,
                    false,
                );
            }
            let row_ids = times.iter().map(|_| hub.message_id()).collect();
            let id = hub.message_id();
            push(
                encode::insert_of(columns, row_ids, &shard.to, *target, name, ts, id),
                keys.len() as u64,
                true,
            );
        }
        for (lane, edge, _) in maps.into_values() {
            lane.passed(edge, Tso(time));
        }
        loop {
            tokio::select! {
                () = copier.ctx.budget.emptied(&own) => {}
                () = self.wake.notified() => {}
            }
            if let Some(problem) = self.stream.problem().filter(|_| self.stream.failed()) {
                return Err(problem);
            }
            if cell.is_done() {
                return Ok(());
            }
        }
    }

    fn way(&mut self, shard: &TargetShard) -> EdgeId {
        let (lane, time) = (&shard.lane, self.copier.at);
        let way = self
            .ways
            .entry(lane.channel().as_str().to_owned())
            .or_insert_with(|| Way {
                edge: lane.join(time, false, shard.floor),
                lane: lane.clone(),
                stream: self.stream.clone(),
            });
        way.edge
    }
}
