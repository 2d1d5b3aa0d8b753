//! Traces in which one rule is broken: so that each is known to be noticed.

use std::sync::Arc;
use std::time::Duration;

use super::Rule;
use super::acts::{Act, Write};
use super::queue::silences;
use super::trace::{Message, Rows, Trace, What};
use crate::catalog::{Collection, ObjectState, View};
use crate::decode::RowsKind;
use crate::ids::{CollectionId, PartitionId};
use crate::tso::Tso;

/// Breaks a rule in a trace that keeps it; `false` if there is nothing in it to break.
pub fn spoil(rule: Rule, trace: &mut Trace) -> bool {
    spoilt(rule, trace).is_some()
}

fn spoilt(rule: Rule, trace: &mut Trace) -> Option<()> {
    match rule {
        Rule::TicksRise => {
            let ticks = |m: &&mut Message| m.what == What::Tick;
            longest(trace)?.iter_mut().rfind(ticks)?.base = Tso(1);
        }
        Rule::TickBounds => {
            let all = longest(trace)?;
            let at = all.iter().rposition(|m| m.rows().is_some())?;
            // Behind all ticks there are.
            let late = all.remove(at);
            all.push(late);
        }
        Rule::AnyOrder => in_order(trace),
        Rule::OnlyThese => {
            let create_partition = crate::decode::msg_type::CREATE_PARTITION;
            longest(trace)?.first_mut()?.what = What::Other(create_partition);
        }
        Rule::OneIdOneMessage => {
            let all = longest(trace)?;
            let mut rows = all.iter_mut().filter(|m| m.rows().is_some());
            let id = rows.next()?.id;
            rows.find(|m| m.id != id)?.id = id;
        }
        Rule::UnusedSilent => {
            let silences = silences(trace);
            let silence = silences.iter().rfind(|s| s.late().is_some())?;
            let (at, ts) = silence.late()?;
            let all = trace.channels.get_mut(&silence.channel)?;
            let mut late = all.iter().find(|m| m.what == What::Tick)?.clone();
            late.base = ts;
            all.insert(at, late);
        }
        Rule::BoundAboveAll => {
            let (ts, bound) = trace.bounds.last_mut()?;
            *bound = Tso(ts.0 - 1);
        }

        Rule::OneTimeOneRequest => rows(trace, |r| r.times.len() > 1)?.times[0].0 += 1,
        Rule::TimesFollowAnswers => {
            let (last, _) = write(trace, |_| true, true)?;
            trace.acts[last].answer.as_mut().ok()?.ts = Tso(1);
        }
        Rule::AnsweredIsWritten => {
            // Of a delete of keys that are not there.
            let (_, keys) = write(trace, |w| w == Write::Delete, false)?;
            for all in trace.channels.values_mut() {
                all.retain(|m| {
                    m.rows()
                        .is_none_or(|r| r.keys.iter().all(|k| !keys.contains(k)))
                });
            }
        }
        Rule::InTheirShard => {
            let collections = trace.collections();
            let of = |r: &Rows| collections.get(&r.collection);
            let apart = |r: &Rows| of(r).is_some_and(|c| c.shards.len() > 1);
            // A key of another shard: some of the next few is.
            let found = rows(trace, apart)?;
            let shards = collections.get(&found.collection)?.shards.len();
            let place = |key: i64| crate::route::hash::Value::Int(key).place(shards);
            let key = found.keys.first_mut()?;
            *key = (*key..*key + 1000).find(|k| place(*k) != place(*key))?;
        }
        Rule::PiecesInOrder => {
            let (first, _) = write(trace, |w| w == Write::Insert, false)?;
            let ts = trace.acts[first].answer.as_ref().ok()?.ts;
            rows(trace, |r| r.ts() == ts && r.keys.len() > 1)?
                .keys
                .reverse();
        }
        Rule::UpsertIsTwo => {
            let all = longest(trace)?;
            let half = |m: &Message| m.base == Tso::ZERO && m.rows().is_some();
            let insert = all.iter().position(half)?;
            let ts = all[insert].ts();
            let is =
                |m: &Message| m.ts() == ts && m.rows().is_some_and(|r| r.kind == RowsKind::Delete);
            let delete = all.iter().position(is)?;
            all.swap(insert, delete);
        }
        Rule::BaseTime => {
            let half = |m: &&mut Message| m.base == Tso::ZERO && m.rows().is_some();
            let message = longest(trace)?.iter_mut().find(half)?;
            message.base = message.ts();
        }
        Rule::DeletePartition => {
            let named = |done: &Act| {
                matches!(
                    done,
                    Act::Write {
                        write: Write::Delete,
                        partition: Some(_),
                        ..
                    }
                )
            };
            let done = trace
                .acts
                .iter()
                .find(|d| named(&d.act) && d.answer.is_ok())?;
            let Act::Write { keys, .. } = done.act.clone() else {
                return None;
            };
            let of_it = |r: &Rows| keys.contains(&r.keys[0]);
            rows(trace, of_it)?.partition = PartitionId(-1);
        }

        Rule::CreationIsFirst => {
            let all = longest(trace)?;
            let create = all.iter().position(|m| matches!(m.what, What::Create(_)))?;
            let id = all[create].collection()?;
            let of_it = |m: &Message| m.collection() == Some(id) && m.rows().is_some();
            let first = all.iter().position(of_it)?;
            all.swap(create, first);
        }
        Rule::ShardsApart => each(trace, |c| {
            if let [first, second, ..] = c.shards.as_mut_slice() {
                second.pchannel = first.pchannel.clone();
            }
        }),
        Rule::CreatedIsComplete => each(trace, |c| {
            c.partitions.clear();
        }),
        Rule::EntryBeforeRows => {
            let named = |r: &Rows| r.partition != PartitionId(-1);
            let mut first = trace.first_rows.iter_mut();
            let (_, rows, found) = first.find(|(_, rows, _)| named(rows))?;
            found.as_mut()?.partitions.remove(&rows.partition);
        }
        Rule::EntryBeforeDrop => {
            let drops = trace.channels.values_mut().flatten();
            let entry = drops.filter_map(|m| match &mut m.what {
                What::DropPartition { entry, .. } => Some(entry),
                _ => None,
            });
            *entry.last()? = Some(ObjectState::Created);
        }
        Rule::DropOnEachShard => {
            let dropped = |m: &Message| match m.what {
                What::DropCollection { collection, .. } => Some(collection),
                _ => None,
            };
            let mut all = trace.channels.values_mut();
            let all = all.find(|all| all.iter().any(|m| dropped(m).is_some()))?;
            let id = all.iter().find_map(dropped);
            all.retain(|m| dropped(m).is_none() || dropped(m) != id);
        }
        Rule::NothingAboveDrop => {
            let drops = trace.messages();
            let (channel, id) = drops
                .filter_map(|(channel, m)| match m.what {
                    What::DropCollection { collection, .. } => Some((channel, collection)),
                    _ => None,
                })
                .find(|(channel, id)| {
                    let mut all = trace.channels[*channel].iter();
                    all.any(|m| m.rows().is_some_and(|r| r.collection == *id))
                })?;
            let channel = channel.clone();
            let all = trace.channels.get_mut(&channel)?;
            let of_it = |m: &&mut Message| m.collection() == Some(id) && m.rows().is_some();
            let late = all.last()?.base.plus(Duration::from_secs(1));
            let message = all.iter_mut().find(of_it)?;
            let What::Rows(rows) = &mut message.what else {
                return None;
            };
            rows.times.fill(late);
        }
        Rule::DroppedStays => {
            let dropped = |c: &Collection| c.state == ObjectState::Dropping;
            let mut last = trace.last.values_mut();
            last.find(|(found, _)| found.as_ref().is_some_and(dropped))?
                .0 = None;
        }
        Rule::IdsRise => {
            let made = |act: &Act| matches!(act, Act::Create { .. });
            let mut made = trace.acts.iter_mut().filter(|done| made(&done.act));
            let answer = made.rfind(|done| done.shown.is_some())?;
            answer.answer.as_mut().ok()?.collection = Some(CollectionId(1));
        }
        Rule::EntryKeepsItself => {
            let mut last = trace.last.values_mut();
            last.find_map(|(found, _)| found.as_mut())?.create_ts.0 += 1;
        }
        Rule::StatesGoOn => {
            let dropping = |view: &View| {
                let mut all = view.collections.values();
                let found = all.find(|c| c.state == ObjectState::Dropping);
                found.map(|c| c.id)
            };
            let mut view = View::clone(trace.views.last()?);
            let id = dropping(&view)?;
            let collection = Arc::make_mut(view.collections.get_mut(&id)?);
            collection.state = ObjectState::Created;
            trace.views.push(Arc::new(view));
        }
        Rule::WatchCatchesUp => trace.last.values_mut().next()?.1 = false,
        Rule::EntryShows => {
            let shown = trace.acts.iter_mut().rfind(|done| done.shown.is_some())?;
            shown.shown = Some(false);
        }

        Rule::NamesAreOnce => {
            let view = trace.views.iter_mut().find(|view| {
                let living = view.collections.values();
                living.filter(|c| c.state == ObjectState::Created).count() > 1
            })?;
            let view = Arc::make_mut(view);
            let living = view.collections.values_mut();
            let mut living = living.filter(|c| c.state == ObjectState::Created);
            let (one, other) = (living.next()?, living.next()?);
            let other = Arc::make_mut(other);
            (other.db, other.name) = (one.db, one.name.clone());
        }
        Rule::TakenIsRefused
        | Rule::AliasBinds
        | Rule::DatabaseKeptWhileUsed
        | Rule::LoadNeedsIndex
        | Rule::LoadedIsKept => {
            let of_it = |by: Option<(Rule, bool)>| by == Some((rule, false));
            let done = trace.acts.iter_mut().find(|done| of_it(done.by))?;
            done.answer = Ok(super::Answer::default());
        }
    }
    Some(())
}

/// The channel with the most rows.
fn longest(trace: &mut Trace) -> Option<&mut Vec<Message>> {
    let rows = |all: &Vec<Message>| all.iter().filter(|m| m.rows().is_some()).count();
    trace.channels.values_mut().max_by_key(|all| rows(all))
}

fn rows(trace: &mut Trace, is: impl Fn(&Rows) -> bool) -> Option<&mut Rows> {
    let all = trace.channels.values_mut().flatten();
    let mut rows = all.filter_map(|m| match &mut m.what {
        What::Rows(rows) => Some(rows),
        _ => None,
    });
    rows.find(|rows| is(rows))
}

/// An answered request of a kind, the last or the first one: its place among the acts, and its keys. Keys that other
/// requests have as well are left out.
fn write(trace: &Trace, is: impl Fn(Write) -> bool, last: bool) -> Option<(usize, Vec<i64>)> {
    let all = trace.acts.iter().enumerate();
    let mut all = all.filter_map(|(i, done)| match &done.act {
        Act::Write { write, keys, .. } if is(*write) && done.answer.is_ok() => {
            // Those that no other one has, or there would be something left of it.
            let alone = keys.iter().all(|k| *k < 0) || *write != Write::Delete;
            (alone && keys.len() > 2).then(|| (i, keys.clone()))
        }
        _ => None,
    });
    if last { all.last() } else { all.next() }
}

/// Changes collections wherever they were seen.
fn each(trace: &mut Trace, change: impl Fn(&mut Collection)) {
    for view in &mut trace.views {
        for collection in Arc::make_mut(view).collections.values_mut() {
            change(Arc::make_mut(collection));
        }
    }
    let reads = trace.reads.iter_mut().map(|read| &mut read.found);
    let last = trace.last.values_mut().map(|(found, _)| found);
    for collection in reads.chain(last).flatten() {
        change(collection);
    }
}

/// Sorts what stands between two ticks.
fn in_order(trace: &mut Trace) {
    for all in trace.channels.values_mut() {
        for between in all.split_mut(|m| m.what == What::Tick) {
            between.sort_by_key(Message::ts);
        }
    }
}
