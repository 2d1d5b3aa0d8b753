//! From decoded messages to what a lane takes: one stretch between two source ticks, of one reader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::TaskContext;
use super::early;
use super::encoded::send;
use super::kept::Kept;
use super::objects::{PartitionRoute, Route, TargetShard};
use crate::decode::{Rows, RowsKind};
use crate::ids::{CollectionId, PartitionId};
use crate::lane::{Cell, EdgeId, Lane, Origin, Ticket};
use crate::position::Position;
use crate::route::tsmap::TsMap;
use crate::store::Progress;
use crate::task::Mode;
use crate::tso::Tso;

/// Where rows go within their collection.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Known(PartitionRoute),
    /// A partition whose name still is an older one's on the target: it is made when that is dropped.
    Awaited(PartitionId),
}

/// What is to be sent, before its target time is known.
#[derive(Clone)]
pub(crate) enum Act {
    Rows {
        rows: Rows,
        place: Place,
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
    pub(crate) origin: Origin,
    pub(crate) act: Act,
    /// Of the source message.
    pub(crate) bytes: usize,
    pub(crate) ticket: Ticket,
    pub(crate) ticked: Option<oneshot::Sender<Ticket>>,
    /// When it was read.
    pub(crate) since: Instant,
    /// Before its tick, which it is kept to.
    pub(crate) sent: bool,
}

/// A reader's way into one lane.
pub(crate) struct Edge {
    pub(crate) lane: Arc<Lane>,
    pub(crate) id: EdgeId,
    /// Messages of this stretch whose time has to be raised, which needs all of them.
    waiting: Kept,
}

impl Edge {
    /// Whether what is above source tick `tick` may be sent with its own time at once.
    fn is_natural(&self, tick: Tso) -> bool {
        !self.lane.is_plain() && self.lane.is_natural(self.id, tick)
    }

    /// Raises and sends what waits up to source timestamp `ts`.
    fn send_up_to(&mut self, ctx: &TaskContext, ts: Tso) {
        let mut due = self.waiting.take(|p| p.act.ts() <= ts);
        if due.is_empty() {
            return;
        }
        if self.lane.is_plain() {
            // Stable: what has one time stays in its order, but for the halves of an upsert, which is a delete first.
            due.sort_by_key(|p| (p.act.ts(), !p.act.is_delete()));
            due = early::left(due, self.waiting.all_mut());
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
    edges: BTreeMap<String, Edge>,
    pub(crate) own: Arc<AtomicUsize>,
    /// The last source tick passed.
    pub(crate) tick: Tso,
    /// Whether this reader's time holds its lanes' ticks.
    pub(crate) holds: bool,
    /// The largest timestamp that was sent as it is.
    natural: Tso,
    /// What was sent before its tick and is above the last one, and its time: read again, it is in doubt.
    early: BTreeMap<Position, Tso>,
    /// W at the start: up to here everything is raised above what may have been sent before.
    in_doubt: Tso,
}

impl Edges {
    pub(crate) fn new(ctx: Arc<TaskContext>, progress: Progress, holds: bool) -> Self {
        Self {
            ctx,
            edges: BTreeMap::new(),
            own: Arc::default(),
            tick: progress.applied,
            natural: Tso::ZERO,
            early: BTreeMap::new(),
            in_doubt: progress.sent,
            holds,
        }
    }

    /// Whether something above the last tick was sent as it is: a tick must not pass it before its stretch is whole, for
    /// the other half of an upsert may still come.
    pub(crate) fn has_natural_above(&self) -> bool {
        self.natural > self.tick
    }

    pub(crate) fn join(&mut self, shard: &TargetShard) -> &mut Edge {
        let (tick, holds) = (self.tick, self.holds);
        self.edges
            .entry(shard.lane.channel().as_str().to_owned())
            .or_insert_with(|| Edge {
                lane: shard.lane.clone(),
                id: shard.lane.join(tick, holds, shard.floor),
                waiting: Kept::default(),
            })
    }

    pub(crate) fn ticket(&self, cell: &Arc<Cell>, bytes: usize) -> Ticket {
        Ticket::new(cell, &self.own, &self.ctx.budget, bytes)
    }

    /// Sends at once what may keep its time, keeps the rest to the end of the stretch.
    pub(crate) fn take(&mut self, mut planned: Planned) {
        self.doubt(&mut planned);
        let (tick, in_doubt) = (self.tick, self.in_doubt);
        let ctx = self.ctx.clone();
        let route = planned.route.clone();
        let edge = self.join(&route.shards[planned.shard]);
        let natural = tick >= in_doubt && edge.is_natural(tick);
        // Nothing at or below a tick follows it. If it did, it would not be lost, but raised.
        let may_go = |planned: &Planned| !planned.is_awaiting() && planned.act.first_ts() > tick;
        if !natural || !may_go(&planned) || !edge.waiting.all().iter().all(may_go) {
            edge.waiting.push(planned);
            return;
        }
        let mut last = planned.act.ts();
        if !edge.waiting.is_empty() {
            // It was read before the stretch below it was acknowledged: where rows flow without a pause, something always
            // was.
            for waiting in edge.waiting.take(|_| true) {
                last = last.max(waiting.act.ts());
                send(&ctx, &edge.lane, waiting, &TsMap::Natural);
            }
        }
        send(&ctx, &edge.lane, planned, &TsMap::Natural);
        self.natural = self.natural.max(last);
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
        self.early.retain(|_, ts| *ts > tick);
    }

    /// What was sent early and is read again.
    fn doubt(&self, planned: &mut Planned) {
        if self.early.contains_key(&planned.origin.1) {
            planned.act.doubt();
        }
    }

    /// When something may be ready to go before its tick.
    pub(crate) fn ready_at(&self) -> Option<Instant> {
        let plain = self.ctx.hub.mode == Mode::Plain;
        if !plain || self.tick < self.in_doubt || self.gathered() > self.ctx.reserve() {
            return None;
        }
        let all = self.edges.values().map(|e| e.waiting.all());
        let first = all.filter_map(early::first).min()?;
        Some(first + early::LINGER)
    }

    /// Sends what need not wait for its tick, where the lane is at rest: what comes meanwhile goes together. Only where
    /// [`Self::ready_at`] says that there may be something.
    pub(crate) fn send_early(&mut self, now: Instant) {
        let tick = self.tick;
        let ctx = self.ctx.clone();
        for edge in self.edges.values_mut() {
            let lane = &edge.lane;
            if !lane.is_idle() || !lane.is_natural(edge.id, tick) {
                continue;
            }
            for place in early::ready(edge.waiting.all(), now) {
                let Some(kept) = edge.waiting.all_mut().get_mut(place) else {
                    continue;
                };
                let (position, ts) = (kept.origin.1, kept.act.ts());
                if kept.act.first_ts() <= tick {
                    continue;
                }
                kept.sent = true;
                let planned = Planned {
                    route: kept.route.clone(),
                    shard: kept.shard,
                    origin: kept.origin.clone(),
                    act: kept.act.clone(),
                    bytes: kept.bytes,
                    ticket: kept.ticket.twin(),
                    ticked: None,
                    since: kept.since,
                    sent: true,
                };
                self.early.insert(position, ts);
                self.natural = self.natural.max(ts);
                send(&ctx, lane, planned, &TsMap::Natural);
            }
        }
    }

    /// The first source timestamp up to `tick` of rows whose partition cannot be made yet, and the partitions awaited.
    pub(crate) fn awaited(&self, tick: Tso) -> Option<(Tso, BTreeSet<PartitionId>)> {
        let awaiting = self
            .edges
            .values()
            .flat_map(|e| e.waiting.all())
            .filter(|p| p.act.ts() <= tick)
            .filter_map(|p| match p.act {
                Act::Rows {
                    place: Place::Awaited(id),
                    ..
                } => Some((p.act.first_ts(), id)),
                _ => None,
            });
        let all: Vec<_> = awaiting.collect();
        let first = all.iter().map(|(ts, _)| *ts).min()?;
        Some((first, all.into_iter().map(|(_, id)| id).collect()))
    }

    /// Sends what waits below source timestamp `cut`, before its stretch ends: what follows needs some of it to be done.
    /// Halves of an upsert share their timestamp and so are on one side of the cut.
    pub(crate) fn send_below(&mut self, cut: Tso) {
        let tick = self.tick;
        for edge in self.edges.values_mut() {
            edge.send_up_to(&self.ctx, Tso(cut.0.saturating_sub(1)));
            edge.lane.passed(edge.id, tick);
        }
    }

    /// An awaited partition is there (`Some`), or is gone on the source, with its rows.
    pub(crate) fn resolve(&mut self, partition: PartitionId, found: Option<&PartitionRoute>) {
        for edge in self.edges.values_mut() {
            edge.waiting.retain(|planned| {
                let Act::Rows { place, .. } = &mut planned.act else {
                    return true;
                };
                match place {
                    Place::Awaited(id) if *id == partition => {}
                    _ => return true,
                }
                if let Some(route) = found {
                    *place = Place::Known(route.clone());
                }
                found.is_some()
            });
        }
    }

    pub(crate) fn set_holds(&mut self, holds: bool) {
        self.holds = holds;
        for edge in self.edges.values() {
            edge.lane.set_holds(edge.id, holds);
        }
    }

    /// Bytes of the messages kept to the end of the stretch.
    pub(crate) fn gathered(&self) -> usize {
        self.edges.values().map(|e| e.waiting.bytes()).sum()
    }

    /// Gives up what it keeps: per lane the timestamps, to raise them all when the stretch is known to its end. What was
    /// kept is read again then.
    pub(crate) fn give_up(&mut self) -> BTreeMap<String, Vec<u64>> {
        let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (lane, edge) in &mut self.edges {
            for planned in edge.waiting.take(|_| true) {
                times
                    .entry(lane.clone())
                    .or_default()
                    .extend(planned.act.timestamps());
            }
        }
        times
    }

    /// The re-stamping of a whole stretch on a lane, from its timestamps alone.
    pub(crate) fn raise(&mut self, lane: &str, times: Vec<u64>) -> Option<TsMap> {
        let in_doubt = self.tick < self.in_doubt;
        let edge = self.edges.get(lane)?;
        Some(edge.lane.raise(edge.id, times, in_doubt))
    }

    /// Sends a message of a stretch that was raised as a whole before.
    pub(crate) fn send_mapped(&mut self, planned: Planned, map: &TsMap) {
        let ctx = self.ctx.clone();
        let route = planned.route.clone();
        let edge = self.join(&route.shards[planned.shard]);
        send(&ctx, &edge.lane, planned, map);
    }

    /// Leaves out what is kept of rows that are `gone` by now.
    pub(crate) fn leave_out(&mut self, gone: impl Fn(&Route, usize, PartitionId) -> bool) {
        for edge in self.edges.values_mut() {
            edge.waiting.retain(|planned| match &planned.act {
                Act::Rows { rows, .. } => !gone(&planned.route, planned.shard, rows.partition),
                _ => true,
            });
        }
    }

    /// Keeps a message of a stretch that is read in parts.
    pub(crate) fn keep(&mut self, mut planned: Planned) {
        self.doubt(&mut planned);
        let route = planned.route.clone();
        let edge = self.join(&route.shards[planned.shard]);
        edge.waiting.push(planned);
    }

    /// Gives up the later half of what it keeps of the lanes that are read again, by source time, and says up to when it
    /// has all. Nothing if all of it has one time.
    pub(crate) fn halve(&mut self, is_read_again: impl Fn(&str) -> bool) -> Option<Tso> {
        let again = self.edges.iter().filter(|(lane, _)| is_read_again(lane));
        let mut by_time: BTreeMap<Tso, usize> = BTreeMap::new();
        for planned in again.flat_map(|(_, e)| e.waiting.all()) {
            *by_time.entry(planned.act.ts()).or_default() += planned.bytes;
        }
        let half = by_time.values().sum::<usize>() / 2;
        let (mut bytes, mut up_to) = (0, *by_time.first_key_value()?.0);
        for (ts, more) in &by_time {
            bytes += more;
            if bytes > half {
                break;
            }
            up_to = *ts;
        }
        if up_to == *by_time.last_key_value()?.0 {
            return None;
        }
        for (_, edge) in self
            .edges
            .iter_mut()
            .filter(|(lane, _)| is_read_again(lane))
        {
            edge.waiting.retain(|p| p.act.ts() <= up_to);
        }
        Some(up_to)
    }

    /// Sends what is kept up to source timestamp `ts`, which is not a tick.
    pub(crate) fn send_part(&mut self, ts: Tso) {
        for edge in self.edges.values_mut() {
            edge.send_up_to(&self.ctx, ts);
        }
    }

    /// Takes out what is kept of a collection.
    pub(crate) fn take_back(&mut self, collection: CollectionId) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        for edge in self.edges.values_mut() {
            let taken = edge.waiting.take(|p| p.route.source == collection);
            tickets.extend(taken.into_iter().map(|p| p.ticket));
        }
        tickets
    }

    pub(crate) fn is_natural(&self) -> bool {
        let in_doubt = self.tick < self.in_doubt;
        !in_doubt
            && self
                .edges
                .values()
                .all(|e| e.waiting.is_empty() && e.lane.is_natural(e.id, self.tick))
    }

    /// Whether what comes next for this shard is sent with the source's times.
    pub(crate) fn is_natural_on(&self, shard: &TargetShard) -> bool {
        let edge = self.edges.get(shard.lane.channel().as_str());
        let natural = edge.is_some_and(|e| e.waiting.is_empty() && e.is_natural(self.tick));
        natural && self.tick >= self.in_doubt
    }

    /// What another reader has sent with the source's times above the last tick is this one's from now on.
    pub(crate) fn go_on_with(&mut self, other: &Edges) {
        self.natural = self.natural.max(other.natural);
    }

    /// Lanes on which what it sends next has other times than the source's, or what had is not shown yet.
    pub(crate) fn raised(&self) -> BTreeSet<String> {
        let in_doubt = self.tick < self.in_doubt;
        // Where the target gives the times, none of them is the source's.
        let raised = |edge: &Edge| {
            !edge.lane.is_plain()
                && (in_doubt
                    || !edge.lane.is_natural(edge.id, self.tick)
                    || !edge.lane.is_shown(edge.id))
        };
        let edges = self.edges.iter().filter(|(_, edge)| raised(edge));
        edges.map(|(lane, _)| lane.clone()).collect()
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

impl Planned {
    fn is_awaiting(&self) -> bool {
        matches!(
            self.act,
            Act::Rows {
                place: Place::Awaited(_),
                ..
            }
        )
    }
}

impl Act {
    /// Rows that may be there already.
    pub(super) fn doubt(&mut self) {
        if let Act::Rows { in_doubt, .. } = self {
            *in_doubt = true;
        }
    }

    /// Its smallest source timestamp.
    fn first_ts(&self) -> Tso {
        match self {
            Act::Rows { rows, .. } => {
                Tso(rows.timestamps.iter().copied().min().unwrap_or_default())
            }
            Act::DropCollection { ts } | Act::DropPartition { ts, .. } => *ts,
        }
    }

    pub(super) fn is_delete(&self) -> bool {
        matches!(self, Act::Rows { rows, .. } if rows.kind == RowsKind::Delete)
    }

    /// Its largest source timestamp.
    pub(crate) fn ts(&self) -> Tso {
        match self {
            Act::Rows { rows, .. } => rows.max_ts(),
            Act::DropCollection { ts } | Act::DropPartition { ts, .. } => *ts,
        }
    }

    pub(crate) fn timestamps(&self) -> Vec<u64> {
        match self {
            Act::Rows { rows, .. } => rows.timestamps.clone(),
            Act::DropCollection { ts } | Act::DropPartition { ts, .. } => vec![ts.0],
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
