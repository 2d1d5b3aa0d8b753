//! From decoded messages to what a lane takes: one stretch between two source ticks, of one reader.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::TaskContext;
use super::objects::{PartitionRoute, Route, TargetShard};
use crate::decode::{Rows, RowsKind, keys};
use crate::error::{ErrorClass, Problem};
use crate::ids::PartitionId;
use crate::lane::{Cell, EdgeId, Lane, Outgoing, Ticket};
use crate::route::encode;
use crate::route::tsmap::TsMap;
use crate::store::Progress;
use crate::tso::Tso;

/// What is to be sent, before its target time is known.
pub(crate) enum Act {
    Rows {
        rows: Rows,
        partition: PartitionRoute,
        in_doubt: bool,
    },
    DropCollection {
        ts: Tso,
    },
    DropPartition {
        partition: PartitionRoute,
        ts: Tso,
    },
}

pub(crate) struct Planned {
    pub(crate) route: Arc<Route>,
    pub(crate) shard: usize,
    pub(crate) act: Act,
    pub(crate) ticket: Ticket,
    pub(crate) ticked: Option<oneshot::Sender<Ticket>>,
}

/// A reader's way into one lane.
pub(crate) struct Edge {
    pub(crate) lane: Arc<Lane>,
    pub(crate) id: EdgeId,
    /// Messages of this stretch whose time has to be raised, which needs all of them.
    waiting: Vec<Planned>,
}

impl Edge {
    /// Raises and sends what waits up to source timestamp `ts`.
    fn send_up_to(&mut self, ctx: &TaskContext, ts: Tso) {
        let (due, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|p| p.act.ts() <= ts);
        self.waiting = later;
        if due.is_empty() {
            return;
        }
        let in_doubt = due
            .iter()
            .any(|p| matches!(p.act, Act::Rows { in_doubt: true, .. }));
        let map = self.lane.raise(
            self.id,
            due.iter().flat_map(|p| p.act.timestamps()).collect(),
            in_doubt,
        );
        for planned in due {
            send(ctx, &self.lane, planned, &map);
        }
    }
}

/// A reader's ways into all its lanes.
pub(crate) struct Edges {
    ctx: Arc<TaskContext>,
    pub(crate) edges: HashMap<String, Edge>,
    pub(crate) own: Arc<AtomicUsize>,
    /// The last source tick passed.
    pub(crate) tick: Tso,
    /// Whether this reader's time holds its lanes' ticks.
    pub(crate) holds: bool,
    /// W at the start: up to here everything is raised above what may have been sent before.
    in_doubt: Tso,
}

impl Edges {
    pub(crate) fn new(ctx: Arc<TaskContext>, progress: Progress, holds: bool) -> Self {
        Self {
            ctx,
            edges: HashMap::new(),
            own: Arc::default(),
            tick: progress.applied,
            in_doubt: progress.sent,
            holds,
        }
    }

    pub(crate) fn join(&mut self, lane: &Arc<Lane>) -> &mut Edge {
        let (tick, holds) = (self.tick, self.holds);
        self.edges
            .entry(lane.channel().as_str().to_owned())
            .or_insert_with(|| Edge {
                lane: lane.clone(),
                id: lane.join(tick, holds),
                waiting: Vec::new(),
            })
    }

    pub(crate) fn ticket(&self, cell: &Arc<Cell>, bytes: usize) -> Ticket {
        Ticket::new(cell, &self.own, &self.ctx.budget, bytes)
    }

    /// Sends at once what may keep its time, keeps the rest to the end of the stretch.
    pub(crate) fn take(&mut self, planned: Planned) {
        let (tick, in_doubt) = (self.tick, self.in_doubt);
        let ctx = self.ctx.clone();
        let lane = planned.route.shards[planned.shard].lane.clone();
        let edge = self.join(&lane);
        if edge.waiting.is_empty() && tick >= in_doubt && edge.lane.is_natural(edge.id, tick) {
            send(&ctx, &edge.lane, planned, &TsMap::Natural);
        } else {
            edge.waiting.push(planned);
        }
    }

    /// The stretch ends with source tick `tick`: what waited is raised and sent.
    pub(crate) fn close(&mut self, tick: Tso) {
        for edge in self.edges.values_mut() {
            // What is above the tick waits for the next: an upsert's halves may stand on both sides of a tick, and equal
            // times have to stay equal.
            edge.send_up_to(&self.ctx, tick);
            edge.lane.passed(edge.id, tick);
        }
        self.tick = self.tick.max(tick);
    }

    /// Sends what waits up to the last drop of a partition, before its stretch ends: what comes behind it needs the drop
    /// to be done. (Two unordered requests for one key on both sides of this point could change places; their order was
    /// never defined by their client.)
    pub(crate) fn send_drops(&mut self) {
        let tick = self.tick;
        for edge in self.edges.values_mut() {
            let drop = edge
                .waiting
                .iter()
                .filter(|p| matches!(p.act, Act::DropPartition { .. }))
                .map(|p| p.act.ts())
                .max();
            if let Some(drop) = drop {
                edge.send_up_to(&self.ctx, drop);
                edge.lane.passed(edge.id, tick);
            }
        }
    }

    pub(crate) fn set_holds(&mut self, holds: bool) {
        self.holds = holds;
        for edge in self.edges.values() {
            edge.lane.set_holds(edge.id, holds);
        }
    }

    /// Whether it keeps messages to the end of the stretch.
    pub(crate) fn is_gathering(&self) -> bool {
        self.edges.values().any(|e| !e.waiting.is_empty())
    }

    pub(crate) fn is_natural(&self) -> bool {
        self.edges
            .values()
            .all(|e| e.waiting.is_empty() && e.lane.is_natural(e.id, self.tick))
    }

    /// How far this reader lies behind the last tick of its foremost lane.
    pub(crate) fn behind(&self) -> std::time::Duration {
        self.edges
            .values()
            .map(|e| self.tick.behind(e.lane.last_tick()))
            .max()
            .unwrap_or_default()
    }

    pub(crate) fn leave(&mut self) {
        for edge in self.edges.values() {
            edge.lane.leave(edge.id);
        }
        self.edges.clear();
    }

    /// Leaves the lanes that none of `routes` uses.
    pub(crate) fn keep_only<'a>(&mut self, used: impl Iterator<Item = &'a TargetShard>) {
        let used: Vec<&str> = used.map(|shard| shard.lane.channel().as_str()).collect();
        self.edges.retain(|name, edge| {
            let keep = used.contains(&name.as_str()) || !edge.waiting.is_empty();
            if !keep {
                edge.lane.leave(edge.id);
            }
            keep
        });
    }
}

impl Drop for Edges {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Act {
    /// Its largest source timestamp.
    pub(crate) fn ts(&self) -> Tso {
        match self {
            Act::Rows { rows, .. } => rows.max_ts(),
            Act::DropCollection { ts } | Act::DropPartition { ts, .. } => *ts,
        }
    }

    fn timestamps(&self) -> Vec<u64> {
        match self {
            Act::Rows { rows, .. } => rows.timestamps.clone(),
            Act::DropCollection { ts } | Act::DropPartition { ts, .. } => vec![ts.0],
        }
    }
}

/// Encodes and pushes. An insert in doubt goes with a delete of its keys at the same time: that kills an earlier copy
/// and spares the insert.
fn send(ctx: &TaskContext, lane: &Lane, planned: Planned, map: &TsMap) {
    let Planned {
        route,
        shard,
        act,
        ticket,
        ticked,
    } = planned;
    let to = &route.shards[shard].to;
    let push = |bytes: Bytes, ts: Tso, rows: u64, is_insert: bool, ticket, ticked| {
        ctx.meter.messages_out.fetch_add(1, Ordering::Relaxed);
        ctx.meter
            .bytes_out
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        ctx.meter.rows_out.fetch_add(rows, Ordering::Relaxed);
        let stream = route.stream.clone();
        lane.push(Outgoing {
            stream,
            bytes,
            ts,
            rows,
            is_insert,
            ticket: Some(ticket),
            ticked,
        });
    };
    match act {
        Act::Rows {
            rows,
            partition,
            in_doubt,
        } => {
            let ts = Tso(rows
                .timestamps
                .iter()
                .map(|ts| map.get(*ts))
                .max()
                .unwrap_or_default());
            let count = rows.timestamps.len() as u64;
            let PartitionRoute { target, name } = &partition;
            if in_doubt && rows.kind == RowsKind::Insert {
                let Some(found) = keys::primary_keys(&rows.body, route.primary_key) else {
                    route.stream.fail(Problem::new(
                        ErrorClass::Data,
                        format!(
                            "an insert of {}.{} has no key column {}",
                            to.database, to.name, route.primary_key
                        ),
                        "please report it with the source's version",
                    ));
                    // Kept in flight: the checkpoint must not pass it.
                    push(Bytes::new(), ts, 0, false, ticket, ticked);
                    return;
                };
                let delete = encode::delete_of(
                    found,
                    &rows.timestamps,
                    to,
                    *target,
                    name,
                    map,
                    ctx.hub.message_id(),
                );
                let insert = encode::rows(&rows, to, *target, name, map, ctx.hub.message_id());
                // Both before any tick: they have one time, and a tick is never between messages of one stretch's time.
                lane.push(Outgoing {
                    stream: route.stream.clone(),
                    bytes: delete,
                    ts,
                    rows: 0,
                    is_insert: false,
                    ticket: None,
                    ticked: None,
                });
                push(insert, ts, count, true, ticket, ticked);
                return;
            }
            let bytes = encode::rows(&rows, to, *target, name, map, ctx.hub.message_id());
            push(
                bytes,
                ts,
                count,
                rows.kind == RowsKind::Insert,
                ticket,
                ticked,
            );
        }
        Act::DropCollection { ts } => {
            let ts = map.get(ts.0);
            push(
                encode::drop_collection(to, ts, ctx.hub.message_id()),
                Tso(ts),
                0,
                false,
                ticket,
                ticked,
            );
        }
        Act::DropPartition {
            partition: PartitionRoute { target, name },
            ts,
        } => {
            let ts = map.get(ts.0);
            let bytes = encode::drop_partition(to, target, &name, ts, ctx.hub.message_id());
            push(bytes, Tso(ts), 0, false, ticket, ticked);
        }
    }
}

/// All partitions.
pub(crate) fn all_partitions() -> PartitionRoute {
    PartitionRoute {
        target: PartitionId(-1),
        name: String::new(),
    }
}
