//! A stretch of one channel, from tick to tick: how it is read, and what ends it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::carry::name_taken;
use super::objects::{PartitionAnswer, TargetShard};
use super::reader::{End, Inner, NEAR, Reader, Scope};
use super::stretch::Planned;
use crate::decode::{DecodeError, Event, decode};
use crate::error::{ErrorClass, Problem};
use crate::position::Position;
use crate::route::tsmap::TsMap;
use crate::source::{RawMessage, Start};
use crate::task::Mode;
use crate::tso::Tso;

/// How long a reader of one collection waits for a partition's name to be free on the target.
const NAME_PATIENCE: Duration = Duration::from_secs(60);
/// The drop that frees a partition's name may still come by itself for this long; then it is made.
const DROP_READ_WITHIN: Duration = Duration::from_millis(500);

/// What comes of a batch, if it is not just the next one.
pub(super) enum Turn {
    End(End),
    /// The stretch is known to its end: it is read again from its beginning, to be sent.
    Again,
}

/// How a stretch is read.
///
/// Times between two ticks are not in order, so a stretch that has to be raised is kept until its tick. One that is too
/// large for that is read twice: first for its timestamps, then, with the map that they give, for its messages.
///
/// A target that gives the times itself has to be sent the messages in the order of time: there the second reading is one
/// of several, each of which keeps and sends what belongs to a part of the stretch's time, as much as there is room for.
pub(super) enum Pass {
    /// Once; what has to be raised is kept.
    Once,
    /// For the timestamps, by lane, of what goes to these lanes. What goes to others is sent.
    Times(BTreeMap<String, Vec<u64>>),
    /// With the maps, by lane, up to the tick at this position. What goes to other lanes was sent the first time.
    Mapped {
        maps: BTreeMap<String, Arc<TsMap>>,
        end: Position,
        tick: Tso,
        /// Where this second reading goes on.
        next: Start,
        part: Option<Part>,
    },
}

/// Of a stretch that is sent in the order of time: what this reading is for, above `above` and up to `up_to`.
#[derive(Clone, Copy)]
pub(super) struct Part {
    above: Tso,
    up_to: Tso,
}

/// What is behind a stretch that was read twice: messages above its tick that stand before it, for the lanes it was read
/// for. They are read once more, with the stretch they belong to.
pub(super) struct Remainder {
    /// The tick's place. Up to here messages to other lanes, and those up to the tick, are done.
    pub(super) until: Position,
    pub(super) lanes: BTreeSet<String>,
    /// Where that reading goes on.
    pub(super) next: Start,
}

/// How a message is sent.
pub(super) enum Take {
    Plain,
    /// With the map of its stretch.
    Mapped(Arc<TsMap>),
    /// With the part of its stretch that is being read.
    Kept,
}

/// A message as it was read.
pub(super) type Read = (Position, Bytes, Result<Event, DecodeError>);

impl Reader {
    /// Works on a batch. `Some` when it is not the next batch that has to come.
    ///
    /// `joining`: while the main reader is held. What needs ticks of its lanes is put off then.
    pub(super) async fn work(
        &self,
        inner: &mut Inner,
        batch: Vec<RawMessage>,
        draining: bool,
        joining: bool,
    ) -> Option<Turn> {
        let again = matches!(inner.pass, Pass::Mapped { .. });
        let bytes: usize = batch.iter().map(|m| m.payload.len()).sum();
        if !again {
            let meter = &self.ctx.meter;
            meter
                .messages_in
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
            meter.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let mut todo: VecDeque<Read> = std::mem::take(&mut inner.put_off);
        todo.extend(
            batch
                .into_iter()
                .map(|m| (m.position, m.payload.clone(), decode(&m.payload))),
        );
        self.reserve(
            inner,
            todo.iter().filter_map(|(_, _, event)| event.as_ref().ok()),
        )
        .await;
        while let Some((position, payload, event)) = todo.pop_front() {
            self.see(inner, position, &event);
            let turn = match event {
                Ok(Event::Tick(tick)) => {
                    if joining && inner.edges.awaited(tick).is_some() {
                        todo.push_front((position, payload, Ok(Event::Tick(tick))));
                        inner.put_off = todo;
                        return None;
                    }
                    self.tick(inner, position, tick, draining).await
                }
                Ok(Event::Rows(rows))
                    if inner.repeats.is_repeated(rows.id, position, rows.max_ts()) =>
                {
                    tracing::debug!(channel = %self.channel, %position, "its producer wrote it twice");
                    None
                }
                Ok(Event::Rows(rows)) => {
                    self.rows(inner, position, payload, rows).await;
                    None
                }
                Ok(Event::DropCollection { collection, ts }) => {
                    let end = self.drop_collection(inner, position, collection, ts)
                        && matches!(self.scope, Scope::One(_));
                    end.then_some(Turn::End(End::Dropped))
                }
                Ok(Event::DropPartition {
                    collection,
                    partition,
                    ts,
                }) => {
                    self.drop_partition(inner, position, collection, partition, ts)
                        .await;
                    None
                }
                Ok(Event::Other(_)) => None,
                Err(error) => {
                    let problem = Problem::new(
                        ErrorClass::Data,
                        format!(
                            "{}: message {position} ({} bytes): {error}",
                            self.channel,
                            payload.len()
                        ),
                        "resume the task with skip for this collection to go on behind the message, or recreate it",
                    );
                    let message = (position, payload);
                    self.poison(inner, message, error.collection, &problem);
                    None
                }
            };
            if matches!(turn, Some(Turn::Again)) {
                return turn;
            }
            match (&mut inner.pass, &mut inner.remainder) {
                (Pass::Mapped { next, .. }, _) => *next = Start::After(position),
                (_, Some(remainder)) if position < remainder.until => {
                    remainder.next = Start::After(position);
                }
                _ => {
                    inner.remainder = None;
                    inner.at = Some(position);
                }
            }
            if turn.is_some() {
                return turn;
            }
            self.give_up_keeping(inner);
        }
        None
    }

    /// Where a main reader goes on has to be right for every collection that may be joined to it, and where a reader that
    /// ends goes on for what it leaves out.
    pub(super) fn see(
        &self,
        inner: &Inner,
        position: Position,
        event: &Result<Event, DecodeError>,
    ) {
        let whole = matches!(self.scope, Scope::Main) || inner.cut.is_some();
        if !whole || matches!(inner.pass, Pass::Mapped { .. }) {
            return;
        }
        let ts = match event {
            Ok(Event::Rows(rows)) => rows.max_ts(),
            Ok(Event::DropCollection { ts, .. } | Event::DropPartition { ts, .. }) => *ts,
            _ => return,
        };
        if ts > inner.edges.tick {
            self.books.lock().seen(position, ts);
        }
    }

    /// A tick of the source: the stretch before it is complete.
    pub(super) async fn tick(
        &self,
        inner: &mut Inner,
        position: Position,
        tick: Tso,
        draining: bool,
    ) -> Option<Turn> {
        // Behind the cut everything is left out: not all that is up to this tick is done.
        let tick = inner.cut.map_or(tick, |cut| tick.min(cut));
        if tick <= inner.edges.tick {
            return None;
        }
        match std::mem::replace(&mut inner.pass, Pass::Once) {
            Pass::Once => {}
            Pass::Times(times) => {
                // Read again, with the rest.
                for attached in inner.attached.values_mut() {
                    attached.dropped = false;
                }
                let mut maps = BTreeMap::new();
                let plain = self.ctx.hub.mode == Mode::Plain;
                for (lane, mut times) in times {
                    if plain {
                        maps.insert(lane, Arc::new(TsMap::Natural));
                        continue;
                    }
                    times.retain(|ts| *ts <= tick.0);
                    if let Some(map) = inner.edges.raise(&lane, times) {
                        maps.insert(lane, Arc::new(map));
                    }
                }
                let part = plain.then_some(Part {
                    above: inner.edges.tick,
                    up_to: tick,
                });
                inner.pass = Pass::Mapped {
                    maps,
                    end: position,
                    tick,
                    next: self.stretch_start(),
                    part,
                };
                return Some(Turn::Again);
            }
            again @ Pass::Mapped { end, .. } if position < end => {
                inner.pass = again;
                return None;
            }
            Pass::Mapped {
                maps,
                end,
                tick,
                part: Some(Part { up_to, .. }),
                ..
            } if up_to < tick => {
                self.leave_out_gone(inner);
                inner.edges.send_part(up_to);
                let part = Part {
                    above: up_to,
                    up_to: tick,
                };
                inner.pass = Pass::Mapped {
                    maps,
                    end,
                    tick,
                    next: self.stretch_start(),
                    part: Some(part),
                };
                return Some(Turn::Again);
            }
            Pass::Mapped { maps, .. } => {
                inner.remainder = Some(Remainder {
                    until: position,
                    lanes: maps.into_keys().collect(),
                    next: Start::After(position),
                });
            }
        }
        if self.await_partitions(inner, tick).await.is_err() {
            return None;
        }
        self.leave_out_gone(inner);
        inner.edges.close(tick);
        self.has_passed(tick);
        inner.repeats.close(tick);
        self.books.lock().close(position, tick);
        if let Some(remainder) = &mut inner.remainder {
            match self.books.lock().begun_at() {
                (from, false) if from <= remainder.until => {
                    remainder.next = Start::At(from);
                    inner.at = Some(position);
                    return Some(Turn::Again);
                }
                _ => inner.remainder = None,
            }
        }
        if matches!(self.scope, Scope::Main) {
            let near = inner.edges.behind() < NEAR;
            self.hold(inner, near);
            self.note_raised(inner);
        }
        let books = self.books.lock();
        let at_rest = draining && !books.has_above() && tick >= books.joined;
        at_rest.then_some(Turn::End(End::Stopped))
    }

    /// In plain mode rows go by name: those that were kept while their partition was dropped must not go to a newer one.
    pub(super) fn leave_out_gone(&self, inner: &mut Inner) {
        if self.ctx.hub.mode == Mode::Plain {
            let gone = |route: &_, shard, id| self.objects.is_dropped_on(route, shard, id);
            inner.edges.leave_out(gone);
        }
    }

    /// Where the present stretch begins.
    fn stretch_start(&self) -> Start {
        match self.books.lock().begun_at() {
            (from, true) => Start::After(from),
            (from, false) => Start::At(from),
        }
    }

    /// Before a stretch ends: rows of partitions whose names are older ones' on the target wait until those are dropped
    /// there, for which what lies before these rows has to be sent. `Err`: their stream has failed.
    pub(super) async fn await_partitions(&self, inner: &mut Inner, tick: Tso) -> Result<(), ()> {
        let Scope::One(route) = &self.scope else {
            return Ok(());
        };
        let deadline = Instant::now() + NAME_PATIENCE;
        while let Some((first, partitions)) = inner.edges.awaited(tick) {
            // The drop needs ticks on the lanes, which must not wait for this reader.
            inner.edges.set_holds(false);
            self.leave_out_gone(inner);
            inner.edges.send_below(first);
            // Registered before the look, so that a drop that ends in between is not missed.
            let freed = self.objects.freed.notified();
            for partition in partitions {
                match self.objects.partition(route, partition).await {
                    PartitionAnswer::Known(found) => inner.edges.resolve(partition, Some(&found)),
                    PartitionAnswer::Gone => inner.edges.resolve(partition, None),
                    PartitionAnswer::NameTaken(holder) if Instant::now() < deadline => {
                        if tokio::time::timeout(DROP_READ_WITHIN, freed).await.is_err()
                            && let Err(problem) = self.objects.clear_partition(route, holder).await
                        {
                            tracing::debug!(task = %self.ctx.spec.id, "{problem}");
                        }
                        break;
                    }
                    PartitionAnswer::NameTaken(_) => {
                        self.stick(inner, route, &name_taken(partition));
                        return Err(());
                    }
                    PartitionAnswer::Failed(problem) => {
                        self.stick(inner, route, &problem);
                        return Err(());
                    }
                }
            }
        }
        Ok(())
    }

    /// When what is kept of a stretch is too much for the budget, only its timestamps are kept.
    pub(super) fn give_up_keeping(&self, inner: &mut Inner) {
        let gathered = inner.edges.gathered();
        let budget = &self.ctx.budget;
        let too_much = gathered > self.ctx.reserve()
            && (budget.used() > budget.total() / 4 * 3 || gathered > budget.total() / 2);
        if !too_much {
            return;
        }
        if let Pass::Mapped { part, maps, .. } = &mut inner.pass {
            if let Some(part) = part
                && let Some(up_to) = inner.edges.halve(|lane| maps.contains_key(lane))
            {
                part.up_to = up_to;
            }
            return;
        }
        let times = match &mut inner.pass {
            Pass::Times(times) => times,
            pass => {
                *pass = Pass::Times(BTreeMap::new());
                match pass {
                    Pass::Times(times) => times,
                    _ => return,
                }
            }
        };
        for (lane, more) in inner.edges.give_up() {
            times.entry(lane).or_default().extend(more);
        }
        // Read again, with the rest.
        for attached in inner.attached.values_mut() {
            attached.dropped = false;
        }
    }

    /// How a message to this shard is taken in the present pass. `None`: not at all.
    pub(super) fn passes(
        &self,
        inner: &mut Inner,
        shard: &TargetShard,
        position: Position,
        ts: Tso,
        times: impl FnOnce() -> Vec<u64>,
    ) -> Option<Take> {
        let lane = shard.lane.channel().as_str();
        // Up to the last tick everything was sent with an earlier stretch, if this one is not read for the first time.
        let due = ts > inner.edges.tick;
        if let Some(remainder) = &inner.remainder
            && position <= remainder.until
            && (!due || !remainder.lanes.contains(lane))
        {
            return None;
        }
        match &mut inner.pass {
            Pass::Once => Some(Take::Plain),
            Pass::Times(of) => match of.get_mut(lane) {
                Some(all) => {
                    all.extend(times());
                    self.books.lock().read(position, ts);
                    None
                }
                None => Some(Take::Plain),
            },
            Pass::Mapped {
                maps, tick, part, ..
            } => maps
                .get(lane)
                .filter(|_| due && ts <= *tick)
                .filter(|_| part.is_none_or(|part| part.above < ts && ts <= part.up_to))
                .map(|map| match part {
                    Some(_) => Take::Kept,
                    None => Take::Mapped(map.clone()),
                }),
        }
    }

    pub(super) fn take(&self, inner: &mut Inner, planned: Planned, take: Take) {
        match take {
            Take::Plain => inner.edges.take(planned),
            Take::Mapped(map) => inner.edges.send_mapped(planned, &map),
            Take::Kept => inner.edges.keep(planned),
        }
    }
}
