//! Rules of the channels.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use super::record::AFTERWARDS;
use super::trace::{Message, Trace, What};
use super::{Outcome, Rule, ensure};
use crate::ids::PChannel;
use crate::tso::Tso;

pub(super) fn ticks_rise(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for (channel, all) in &trace.channels {
        let mut last = Tso::ZERO;
        for tick in all.iter().filter_map(Message::tick) {
            ensure(last <= tick, || {
                format!("{channel}: the tick {tick} behind {last}")
            })?;
            last = tick;
            seen += 1;
        }
    }
    Ok(seen)
}

pub(super) fn tick_bounds(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for (channel, all) in &trace.channels {
        let mut last = Tso::ZERO;
        for message in all {
            match message.tick() {
                Some(tick) => last = last.max(tick),
                None => {
                    ensure(message.ts() > last, || {
                        format!("{channel}: behind the tick {last} stands {message:?}")
                    })?;
                    seen += 1;
                }
            }
        }
    }
    Ok(seen)
}

pub(super) fn any_order(_: Rule, trace: &Trace) -> Outcome<usize> {
    Ok(inversions(trace))
}

/// Messages with rows behind one of a larger time, with no tick between.
fn inversions(trace: &Trace) -> usize {
    let mut seen = 0;
    for all in trace.channels.values() {
        let mut largest = Tso::ZERO;
        for message in all {
            if message.what == What::Tick {
                largest = Tso::ZERO;
            } else if message.rows().is_some() {
                seen += usize::from(message.ts() < largest);
                largest = largest.max(message.ts());
            }
        }
    }
    seen
}

pub(super) fn only_these(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut kinds = [0; 6];
    for (channel, message) in trace.messages() {
        let kind = match &message.what {
            What::Tick => 0,
            What::Rows(rows) => 1 + usize::from(rows.kind == crate::decode::RowsKind::Delete),
            What::Create(_) => 3,
            What::DropCollection { .. } => 4,
            What::DropPartition { .. } => 5,
            What::Other(_) => kinds.len(),
        };
        ensure(kind < kinds.len(), || format!("{channel}: {message:?}"))?;
        kinds[kind] += 1;
    }
    // Of the rarest.
    Ok(kinds.into_iter().min().unwrap_or_default())
}

pub(super) fn one_id_one_message(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = HashMap::new();
    for (channel, message, rows) in trace.rows() {
        if let Some(before) = seen.insert((channel, message.id), (rows, message.base)) {
            ensure(before == (rows, message.base), || {
                format!("{channel}: {} is {before:?} and {message:?}", message.id)
            })?;
        }
    }
    Ok(seen.len())
}

/// How long ticks may go on behind the last drop.
const LINGERING: Duration = Duration::from_secs(3);

/// A time in which no collection lives on a channel.
pub(super) struct Silence {
    pub(super) channel: PChannel,
    /// Of the drop before it.
    from: Tso,
    /// Of the creation behind it, or the end of all.
    until: Tso,
    /// Its messages.
    at: Range<usize>,
}

impl Silence {
    /// One so long that a tick in it would be one too many, with the place and the time of such a tick.
    pub(super) fn late(&self) -> Option<(usize, Tso)> {
        let late = self.from.plus(LINGERING).next();
        (self.until > self.from.plus(AFTERWARDS)).then_some((self.at.end, late))
    }
}

/// What came to nothing lives for ever: its channels stay in use ([`Trace::ghosts`]).
pub(super) fn silences(trace: &Trace) -> Vec<Silence> {
    let end = trace.messages().filter_map(|(_, m)| m.tick()).max();
    let end = end.unwrap_or_default();
    let mut found = Vec::new();
    for (channel, all) in &trace.channels {
        let mut living = BTreeSet::new();
        let mut dropped = None;
        let mut silence = |from, until, at| {
            let channel = channel.clone();
            found.push(Silence {
                channel,
                from,
                until,
                at,
            });
        };
        for (at, message) in all.iter().enumerate() {
            match message.what {
                What::Create(id) => {
                    living.insert(id);
                    if let Some((from, begin)) = dropped.take() {
                        silence(from, message.base, begin..at);
                    }
                }
                What::DropCollection { collection, .. } => {
                    living.remove(&collection);
                    if living.is_empty() {
                        dropped.get_or_insert((message.base, at + 1));
                    }
                }
                _ => {}
            }
        }
        if let Some((from, begin)) = dropped {
            silence(from, end, begin..all.len());
        }
    }
    found
}

pub(super) fn unused_silent(_: Rule, trace: &Trace) -> Outcome<usize> {
    let silences = silences(trace);
    for silence in &silences {
        let silent_from = silence.from.plus(LINGERING);
        let all = trace.channels.get(&silence.channel);
        let messages = all.and_then(|all| all.get(silence.at.clone()));
        let late = messages
            .into_iter()
            .flatten()
            .find(|m| m.base > silent_from);
        ensure(late.is_none(), || {
            let (channel, from) = (&silence.channel, silence.from);
            format!("{channel}: nothing lives there since {from}, and there is {late:?}")
        })?;
    }
    // Only those that were long enough.
    Ok(silences.iter().filter_map(Silence::late).count())
}

pub(super) fn bound_above_all(_: Rule, trace: &Trace) -> Outcome<usize> {
    for (ts, bound) in &trace.bounds {
        ensure(ts <= bound, || format!("{bound} when {ts} had been read"))?;
    }
    Ok(trace.bounds.len())
}
