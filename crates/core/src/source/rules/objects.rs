//! Rules of collections and partitions, in the metadata and in the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::acts::{Act, Done};
use super::trace::{Message, Rows, Trace, What};
use super::{Broken, Outcome, Rule, ensure};
use crate::catalog::{Collection, ObjectState};
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::position::Position;
use crate::tso::Tso;

/// Collections with their channels, each once.
fn channels(of: &Collection) -> BTreeSet<&PChannel> {
    of.shards.iter().map(|s| &s.pchannel).collect()
}

pub(super) fn creation_is_first(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for collection in trace.collections().values() {
        let id = collection.id;
        for channel in channels(collection) {
            let messages = trace.channels.get(channel);
            let messages = messages.map(Vec::as_slice).unwrap_or_default();
            let first = messages.iter().find(|m| m.collection() == Some(id));
            let Some(first) = first else {
                return Err(Broken(format!("{channel}: nothing of {id}")));
            };
            ensure(
                first.what == What::Create(id) && first.base == collection.create_ts,
                || format!("{channel}: first of {id}: {first:?}"),
            )?;
            let start = collection.start_positions.get(channel);
            let start = start.and_then(|b| Position::from_bytes(first.position.kind(), b).ok());
            ensure(start == Some(first.position), || {
                format!("{id} starts at {start:?}, and {first:?}")
            })?;
            let creations = messages.iter().filter(|m| m.what == What::Create(id));
            ensure(creations.count() == 1, || {
                format!("{channel}: {id} is made twice")
            })?;
            seen += 1;
        }
    }
    Ok(seen)
}

pub(super) fn shards_apart(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for collection in trace.collections().values() {
        let shards = collection.shards.len();
        ensure(channels(collection).len() == shards, || {
            format!("{:?}", collection.shards)
        })?;
        for (i, shard) in collection.shards.iter().enumerate() {
            let name = format!("{}_{}v{i}", shard.pchannel, collection.id);
            ensure(shard.vchannel.as_str() == name, || format!("{shard:?}"))?;
        }
        seen += usize::from(shards > 1);
    }
    Ok(seen)
}

pub(super) fn created_is_complete(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for collection in trace.states() {
        if collection.state != ObjectState::Created {
            continue;
        }
        let is = collection.primary_key().is_some()
            && !collection.partitions.is_empty()
            && !collection.shards.is_empty()
            && channels(collection)
                .iter()
                .all(|c| collection.start_positions.contains_key(*c));
        ensure(is, || format!("{collection:?}"))?;
        seen += 1;
    }
    Ok(seen)
}

pub(super) fn entry_before_rows(_: Rule, trace: &Trace) -> Outcome<usize> {
    let of_another: Vec<&Rows> = trace.of_another().collect();
    for (channel, rows, found) in &trace.first_rows {
        let found = found.as_ref();
        let is = |c: &Collection| {
            rows.partition == PartitionId(-1) || c.partitions.contains_key(&rows.partition)
        };
        let known = found.is_some_and(is) || found.is_some() && of_another.contains(&rows);
        ensure(known, || {
            format!("{channel}: {rows:?}, and the entry {found:?}")
        })?;
    }
    Ok(trace.first_rows.len())
}

pub(super) fn entry_before_drop(_: Rule, trace: &Trace) -> Outcome<usize> {
    let (mut collections, mut partitions) = (0, 0);
    for (channel, message) in trace.messages() {
        let entry = match &message.what {
            What::DropCollection { entry, .. } => {
                collections += 1;
                entry
            }
            What::DropPartition { entry, .. } => {
                partitions += 1;
                entry
            }
            _ => continue,
        };
        ensure(matches!(entry, None | Some(ObjectState::Dropping)), || {
            format!("{channel}: {message:?}")
        })?;
    }
    Ok(collections.min(partitions))
}

/// Of a collection, or of one of its partitions.
type Dropped = (CollectionId, Option<PartitionId>);

/// What is dropped by messages: on which channels, when, by which message. One that was written twice is the same one.
type Drops<'a> = BTreeMap<Dropped, BTreeMap<&'a PChannel, BTreeSet<(Tso, i64)>>>;

fn drops(trace: &Trace) -> Drops<'_> {
    let mut all = Drops::new();
    for (channel, message) in trace.messages() {
        let of = match &message.what {
            What::DropCollection { collection, .. } => (*collection, None),
            What::DropPartition {
                collection,
                partition,
                ..
            } => (*collection, Some(*partition)),
            _ => continue,
        };
        let on = all.entry(of).or_default().entry(channel).or_default();
        on.insert((message.base, message.id));
    }
    all
}

/// What is dropped by its entry, at the end.
fn dropped(trace: &Trace) -> BTreeSet<Dropped> {
    let last = trace.last.values().filter_map(|(found, _)| found.as_ref());
    let is = |state| state == ObjectState::Dropping;
    let of = |c: &Collection| {
        let partitions = c.partitions.values();
        let partitions = partitions.filter(|p| c.state == ObjectState::Created && is(p.state));
        let mut all: Vec<_> = partitions.map(|p| (c.id, Some(p.id))).collect();
        all.extend(is(c.state).then_some((c.id, None)));
        all
    };
    last.flat_map(of).collect()
}

pub(super) fn drop_on_each_shard(_: Rule, trace: &Trace) -> Outcome<usize> {
    let collections = trace.collections();
    let drops = drops(trace);
    for of in dropped(trace) {
        ensure(drops.contains_key(&of), || {
            format!("no message of the drop of {of:?}")
        })?;
    }
    let (mut of_collections, mut of_partitions) = (0, 0);
    for (of, on) in &drops {
        let collection = collections.get(&of.0);
        let wanted = collection.map(channels).unwrap_or_default();
        let found: BTreeSet<&PChannel> = on.keys().copied().collect();
        ensure(wanted == found, || format!("{of:?}: {on:?}"))?;
        let times: BTreeSet<Tso> = on.values().flatten().map(|(ts, _)| *ts).collect();
        let once = on.values().all(|messages| messages.len() == 1);
        ensure(once && times.len() == 1, || format!("{of:?}: {on:?}"))?;
        for channel in on.keys() {
            let all = trace.channels.get(*channel);
            let ticks = all.into_iter().flatten().filter_map(Message::tick);
            ensure(ticks.max() >= times.last().copied(), || {
                format!("{channel}: no tick behind the drop of {of:?}")
            })?;
        }
        match of.1 {
            None => of_collections += 1,
            Some(_) => of_partitions += 1,
        }
    }
    Ok(of_collections.min(of_partitions))
}

pub(super) fn nothing_above_drop(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut times: HashMap<Dropped, Tso> = HashMap::new();
    for (of, on) in drops(trace) {
        times.extend(on.into_values().flatten().map(|(ts, _)| (of, ts)));
    }
    let mut seen = 0;
    for (channel, message, rows) in trace.rows() {
        for of in [None, Some(rows.partition)] {
            let Some(dropped) = times.get(&(rows.collection, of)) else {
                continue;
            };
            ensure(message.ts() < *dropped, || {
                format!("{channel}: dropped at {dropped}, {message:?}")
            })?;
            seen += 1;
        }
    }
    Ok(seen)
}

pub(super) fn dropped_stays(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for (of, _) in drops(trace) {
        let found = trace.last.get(&of.0).and_then(|(found, _)| found.as_ref());
        let state = match of.1 {
            None => found.map(|c| c.state),
            Some(partition) => found.and_then(|c| c.partitions.get(&partition).map(|p| p.state)),
        };
        ensure(state == Some(ObjectState::Dropping), || {
            format!("{of:?} is {state:?} at the end")
        })?;
        seen += 1;
    }
    Ok(seen)
}

pub(super) fn ids_rise(_: Rule, trace: &Trace) -> Outcome<usize> {
    let collections = trace.collections();
    let mut ids = BTreeSet::new();
    for collection in collections.values() {
        let partitions = collection.partitions.keys().map(|p| p.0);
        for id in partitions.chain([collection.id.0]) {
            ensure(ids.insert(id), || format!("{id} is used twice"))?;
        }
    }
    // Of those with nothing beside them: what is answered may be one that has come to this name meanwhile.
    let made = |done: &&Done| matches!(done.act, Act::Create { .. }) && done.shown.is_some();
    let made = trace.acts.iter().filter(made);
    let made = made.filter_map(|done| Some((done, done.answer.as_ref().ok()?.collection?)));
    let made: Vec<_> = made.collect();
    let mut seen = 0;
    for (done, id) in &made {
        for (later, other) in made.iter().filter(|(later, _)| later.began > done.ended) {
            ensure(other > id, || {
                format!("{id} of {done:?}, {other} of {later:?}")
            })?;
            seen += 1;
        }
    }
    Ok(seen)
}

pub(super) fn entry_keeps_itself(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut first: HashMap<CollectionId, &Collection> = HashMap::new();
    let mut partitions = HashMap::new();
    let mut seen = 0;
    for now in trace.states().filter(|c| !c.shards.is_empty()) {
        let before = *first.entry(now.id).or_insert(now);
        let same = before.shards == now.shards
            && before.create_ts == now.create_ts
            && before.start_positions == now.start_positions;
        ensure(same, || format!("{before:?} became {now:?}"))?;
        for partition in now.partitions.values() {
            let is = (now.id, partition.name.clone(), partition.create_ts);
            let before = partitions.entry(partition.id).or_insert_with(|| is.clone());
            ensure(*before == is, || format!("{before:?} became {is:?}"))?;
        }
        // Seen under another name.
        seen += usize::from((before.db, &before.name) != (now.db, &now.name));
    }
    Ok(seen)
}

/// How far a life has come; what is gone is not in here.
fn age(state: ObjectState) -> u8 {
    match state {
        ObjectState::Creating => 0,
        ObjectState::Created => 1,
        ObjectState::Dropping => 2,
    }
}

/// Of a collection and all its partitions. One that is gone has come to its end.
fn not_behind(before: &Collection, now: Option<&Collection>) -> bool {
    let Some(now) = now else {
        return before.state == ObjectState::Dropping;
    };
    let on = |before: ObjectState, now: ObjectState| age(now) >= age(before);
    let of_partition = |(id, p): (&PartitionId, &crate::catalog::Partition)| {
        let now = now.partitions.get(id);
        now.map_or(p.state == ObjectState::Dropping, |now| {
            on(p.state, now.state)
        })
    };
    on(before.state, now.state) && before.partitions.iter().all(of_partition)
}

pub(super) fn states_go_on(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for pair in trace.views.windows(2) {
        for (id, before) in &pair[0].collections {
            let now = pair[1].collections.get(id).map(AsRef::as_ref);
            ensure(not_behind(before, now), || {
                format!("the watch: {before:?}, then {now:?}")
            })?;
            seen += usize::from(now.is_some_and(|now| now.state != before.state));
        }
    }
    for read in &trace.reads {
        let shown = trace.views.get(read.view);
        let shown = shown.and_then(|view| view.collections.get(&read.id));
        let Some(shown) = shown else { continue };
        ensure(not_behind(shown, read.found.as_ref()), || {
            format!("the watch showed {shown:?}, then a read {:?}", read.found)
        })?;
    }
    Ok(seen)
}

pub(super) fn watch_catches_up(_: Rule, trace: &Trace) -> Outcome<usize> {
    for (id, (found, same)) in &trace.last {
        ensure(*same, || {
            format!("the watch does not come to show of {id}: {found:?}")
        })?;
    }
    Ok(trace.last.len())
}

pub(super) fn entry_shows(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut kinds = HashMap::new();
    for done in &trace.acts {
        if let Some(shown) = done.shown {
            ensure(shown, || format!("not to be seen: {done:?}"))?;
            *kinds.entry(std::mem::discriminant(&done.act)).or_insert(0) += 1;
        }
    }
    // All of them: databases, collections, partitions, indexes, loads (made and dropped each), names, aliases.
    const KINDS: usize = 13;
    let rarest = kinds.values().min().copied().unwrap_or_default();
    Ok(if kinds.len() == KINDS { rarest } else { 0 })
}
