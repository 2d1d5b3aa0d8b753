//! Rules of requests with rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::acts::{Act, Answer, Done, Write};
use super::trace::{Message, Rows, Trace};
use super::{Broken, Outcome, Rule, ensure};
use crate::decode::RowsKind;
use crate::ids::{PartitionId, VChannel};
use crate::route::hash::Value;
use crate::tso::Tso;

/// Messages of one time, by shard, each shard's in their order; one that was written twice is in here once.
type Request<'a> = BTreeMap<&'a VChannel, Vec<(&'a Message, &'a Rows)>>;

fn requests(trace: &Trace) -> BTreeMap<Tso, Request<'_>> {
    let mut all: BTreeMap<Tso, Request<'_>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (channel, message, rows) in trace.rows() {
        if ids.insert((channel, message.id)) {
            let request = all.entry(rows.ts()).or_default();
            let shard = request.entry(&rows.vchannel).or_default();
            shard.push((message, rows));
        }
    }
    all
}

fn keys(of: &[(&Message, &Rows)], kind: RowsKind) -> Vec<i64> {
    let of = of.iter().filter(|(_, rows)| rows.kind == kind);
    of.flat_map(|(_, rows)| rows.keys.iter().copied()).collect()
}

fn all_keys(request: &Request<'_>, kind: RowsKind) -> BTreeSet<i64> {
    let shards = request.values();
    shards.flat_map(|shard| keys(shard, kind)).collect()
}

/// Requests that were answered.
fn answered(trace: &Trace) -> impl Iterator<Item = (&Done, &Answer, Write, &[i64])> {
    trace.acts.iter().filter_map(|done| match &done.act {
        Act::Write { write, keys, .. } => {
            let answer = done.answer.as_ref().ok()?;
            Some((done, answer, *write, keys.as_slice()))
        }
        _ => None,
    })
}

pub(super) fn one_time_one_request(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut collections = HashMap::new();
    for (_, message, rows) in trace.rows() {
        let ts = rows.ts();
        ensure(rows.times.iter().all(|t| *t == ts), || {
            format!("several times in {message:?}")
        })?;
        ensure(
            rows.keys.len() == rows.times.len() && rows.count == rows.keys.len() as u64,
            || format!("the numbers of rows differ in {message:?}"),
        )?;
        let of = *collections.entry(ts).or_insert(rows.collection);
        ensure(of == rows.collection, || {
            format!("{of} and {} have rows of {ts}", rows.collection)
        })?;
    }
    Ok(collections.len())
}

pub(super) fn times_follow_answers(_: Rule, trace: &Trace) -> Outcome<usize> {
    let timed = |of: &Done| of.answer.as_ref().map_or(Tso::ZERO, |a| a.ts);
    let mut ended: Vec<&Done> = answered(trace).map(|(done, ..)| done).collect();
    ended.retain(|done| timed(done) != Tso::ZERO);
    let mut began = ended.clone();
    ended.sort_unstable_by_key(|done| done.ended);
    began.sort_unstable_by_key(|done| done.began);
    let (mut largest, mut next) = (Tso::ZERO, 0);
    for done in &began {
        while let Some(before) = ended.get(next).filter(|b| b.ended < done.began) {
            largest = largest.max(timed(before));
            next += 1;
        }
        ensure(timed(done) > largest, || {
            format!("{done:?} began when {largest} had been answered")
        })?;
    }
    Ok(began.len())
}

pub(super) fn answered_is_written(_: Rule, trace: &Trace) -> Outcome<usize> {
    let requests = requests(trace);
    let mut seen = 0;
    for (done, answer, write, wanted) in answered(trace) {
        let wanted: BTreeSet<i64> = wanted.iter().copied().collect();
        let (inserts, deletes) = match write {
            Write::Insert => (true, false),
            Write::Upsert => (true, true),
            Write::Delete => (false, true),
        };
        let is = |request: &Request<'_>| {
            let is = |kind, there| {
                let keys = all_keys(request, kind);
                if there {
                    keys == wanted
                } else {
                    keys.is_empty()
                }
            };
            is(RowsKind::Insert, inserts) && is(RowsKind::Delete, deletes)
        };
        let found = match answer.ts {
            Tso::ZERO => requests.values().any(is),
            ts => requests.get(&ts).is_some_and(is),
        };
        ensure(found, || format!("nowhere, or otherwise: {done:?}"))?;
        seen += 1;
    }
    Ok(seen)
}

pub(super) fn in_their_shard(_: Rule, trace: &Trace) -> Outcome<usize> {
    let collections = trace.collections();
    let mut seen = 0;
    for (channel, message, rows) in trace.rows() {
        let Some(collection) = collections.get(&rows.collection) else {
            return Err(Broken(format!("no entry was seen of {message:?}")));
        };
        let mut shards = collection.shards.iter();
        let shard = shards.position(|s| s.vchannel == rows.vchannel && s.pchannel == *channel);
        let shard = shard.ok_or_else(|| Broken(format!("no shard on {channel}: {message:?}")))?;
        ensure(rows.vchannel.pchannel() == *channel, || {
            format!("{channel}: {message:?}")
        })?;
        for key in &rows.keys {
            let place = Value::Int(*key).place(collection.shards.len());
            ensure(place == shard, || {
                format!("the key {key} of shard {place} in {message:?}")
            })?;
            seen += usize::from(collection.shards.len() > 1);
        }
    }
    Ok(seen)
}

pub(super) fn pieces_in_order(_: Rule, trace: &Trace) -> Outcome<usize> {
    let requests = requests(trace);
    let mut seen = 0;
    for (_, answer, write, wanted) in answered(trace) {
        let Some(request) = requests.get(&answer.ts).filter(|_| write != Write::Delete) else {
            continue;
        };
        for (shard, messages) in request {
            let found = keys(messages, RowsKind::Insert);
            let here: BTreeSet<i64> = found.iter().copied().collect();
            let here: Vec<i64> = wanted
                .iter()
                .copied()
                .filter(|k| here.contains(k))
                .collect();
            ensure(here == found, || {
                format!(
                    "{shard}: {found:?} at {}, {here:?} in the request",
                    answer.ts
                )
            })?;
            let inserts = messages.iter().filter(|(_, r)| r.kind == RowsKind::Insert);
            seen += usize::from(inserts.count() > 1);
        }
    }
    Ok(seen)
}

pub(super) fn upsert_is_two(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for (ts, request) in requests(trace) {
        for (shard, messages) in &request {
            let kinds = messages.iter().map(|(_, rows)| rows.kind);
            let inserts = kinds.clone().filter(|k| *k == RowsKind::Insert).count();
            let deletes = kinds.clone().count() - inserts;
            if inserts == 0 || deletes == 0 {
                continue;
            }
            let in_order = kinds.clone().take(inserts).all(|k| k == RowsKind::Insert);
            let text = || format!("{shard} at {ts}: {messages:?}");
            ensure(in_order && deletes == 1, text)?;
            let sorted = |kind| {
                let mut keys = keys(messages, kind);
                keys.sort_unstable();
                keys
            };
            ensure(sorted(RowsKind::Insert) == sorted(RowsKind::Delete), text)?;
            let partitions: BTreeSet<_> = messages.iter().map(|(_, r)| r.partition).collect();
            ensure(partitions.len() == 1, text)?;
            seen += 1;
        }
    }
    Ok(seen)
}

pub(super) fn base_time(_: Rule, trace: &Trace) -> Outcome<usize> {
    let times: BTreeSet<Tso> = answered(trace).map(|(_, answer, ..)| answer.ts).collect();
    let (mut whole, mut half) = (0, 0);
    for (ts, request) in requests(trace) {
        for messages in request.values() {
            let upsert = messages.iter().any(|(_, r)| r.kind == RowsKind::Insert)
                && messages.iter().any(|(_, r)| r.kind == RowsKind::Delete);
            for (message, rows) in messages {
                // One that was not answered may have been cut off before its delete.
                let cut = message.base == Tso::ZERO && !times.contains(&ts);
                let none = (upsert || cut) && rows.kind == RowsKind::Insert;
                let wanted = if none { Tso::ZERO } else { ts };
                ensure(message.base == wanted, || format!("{message:?}"))?;
                half += usize::from(none);
                whole += usize::from(!none);
            }
        }
    }
    Ok(half.min(whole))
}

pub(super) fn delete_partition(_: Rule, trace: &Trace) -> Outcome<usize> {
    let requests = requests(trace);
    let (mut named, mut all) = (0, 0);
    for (done, answer, write, wanted) in answered(trace) {
        let Act::Write { partition, .. } = &done.act else {
            continue;
        };
        // Without its time only one whose keys no other request has.
        let is = |request: &Request<'_>| {
            all_keys(request, RowsKind::Delete) == wanted.iter().copied().collect()
                && all_keys(request, RowsKind::Insert).is_empty()
        };
        let mut found = match answer.ts {
            Tso::ZERO => requests.values().filter(|r| is(r)).collect::<Vec<_>>(),
            ts => requests.get(&ts).into_iter().collect(),
        };
        let Some(request) = found
            .pop()
            .filter(|_| write == Write::Delete && found.is_empty())
        else {
            continue;
        };
        for (message, rows) in request.values().flatten() {
            let is_all = rows.partition == PartitionId(-1);
            ensure(is_all == partition.is_none(), || {
                format!("{message:?} of {:?}", done.act)
            })?;
        }
        match partition {
            Some(_) => named += 1,
            None => all += 1,
        }
    }
    Ok(named.min(all))
}
