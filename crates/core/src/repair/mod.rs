//! Rows of a collection copied anew, past the queue: what a comparison has found wrong on the target, while the task
//! stands still.
//!
//! Who asks has read the keys on the source, with Strong consistency, at some moment not before `read_at`. Each key is
//! deleted on the target and, where the source has it, inserted again, at one new time above everything that was ever
//! sent there. That is right in the end, whatever the source writes meanwhile, if two things hold:
//!
//! - *What was read is not older than what is applied*: `applied <= read_at` on each of the collection's channels. Else a
//!   newer row, which the task had carried already, would be replaced by an older one for good.
//! - *All that may be newer than what is applied, and was read, is in doubt*: W of these channels is raised to a bound of
//!   every timestamp the source has given out, on disk, before anything is sent. When the task goes on it carries what
//!   lies in (applied, W] in window form, above the repair: an insert that the repair had in it already replaces it. Above
//!   W are only rows that were written later than they were read.
//!
//! So for each key the last thing that is sent is what the source did last, and one copy of it; a key that the source did
//! not touch keeps what was read. What was sent is not in the queue again: until the target has flushed it, a restart of a
//! 2.3.5 can lose it, as [`crate::pipeline`]'s durable checkpoint cannot know of it.

pub(crate) mod columns;
mod send;

use std::collections::{BTreeMap, BTreeSet};

use cdc_keys::Key;
use milvus::proto::schema::{FieldData, IDs, LongArray, StringArray, i_ds::IdField};

use crate::catalog::{Collection, ObjectState};
use crate::engine::{Parts, target_problem};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::pipeline::runner::{ENDED_WELL, ended_well};
use crate::route::encode::Shard;
use crate::route::hash::{self, Value};
use crate::store::{Change, ObjectPhase, TaskProgress};
use crate::target::TargetCollection;
use crate::target::hub::{Hubs, store_problem};
use crate::task::{Mode, TaskSpec};
use crate::tso::Tso;

/// Keys of one repair: it is one call to each channel, more or less.
pub const MOST_KEYS: usize = 1000;
const AGAIN: &str = "compare again: milvus-cdc verify --repair";

/// Primary keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keys {
    Int(Vec<i64>),
    Str(Vec<String>),
}

/// Of one kind, as those of a collection are.
impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        let (mut ints, mut strings) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                Key::Int(key) => ints.push(key),
                Key::Str(key) => strings.push(key),
            }
        }
        match strings.is_empty() {
            true => Keys::Int(ints),
            false => Keys::Str(strings),
        }
    }
}

impl Keys {
    pub fn len(&self) -> usize {
        match self {
            Keys::Int(all) => all.len(),
            Keys::Str(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn values(&self) -> Vec<Value<'_>> {
        match self {
            Keys::Int(all) => all.iter().map(|k| Value::Int(*k)).collect(),
            Keys::Str(all) => all.iter().map(|k| Value::Str(k)).collect(),
        }
    }

    /// As texts, to be set against each other.
    fn shown(&self) -> Vec<String> {
        let show = |v: Value<'_>| match v {
            Value::Int(v) => v.to_string(),
            Value::Str(v) => format!("{v:?}"),
        };
        self.values().into_iter().map(show).collect()
    }

    pub(crate) fn ids(&self) -> IDs {
        let id_field = match self {
            Keys::Int(data) => IdField::IntId(LongArray { data: data.clone() }),
            Keys::Str(data) => IdField::StrId(StringArray { data: data.clone() }),
        };
        IDs {
            id_field: Some(id_field),
        }
    }
}

/// Rows that the source has, of one partition and one shard.
#[derive(Clone, PartialEq, Debug)]
pub struct NewRows {
    /// The source's id.
    pub partition: PartitionId,
    pub shard: usize,
    /// Each field once, by its name; the ids are set here.
    pub columns: Vec<FieldData>,
}

/// What is to be copied anew.
#[derive(Clone, PartialEq, Debug)]
pub struct Repair {
    /// The source's id.
    pub collection: CollectionId,
    /// The source's id of the partition in which the keys are looked at; `None`: the whole collection.
    pub partition: Option<PartitionId>,
    /// A timestamp of the source that was given out before the rows were read, with Strong consistency.
    pub read_at: Tso,
    /// All keys, each once: those without a row in `rows` are deleted.
    pub keys: Keys,
    pub rows: Vec<NewRows>,
    /// Ask the target to flush the collection behind it.
    pub flush: bool,
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repaired {
    /// Of the collection, on both sides.
    pub database: String,
    pub name: String,
    /// Keys that have the source's row now.
    pub replaced: usize,
    /// Keys that are gone.
    pub deleted: usize,
}

/// An insert, checked.
struct Insert {
    partition: (PartitionId, String),
    shard: usize,
    columns: Vec<FieldData>,
    rows: usize,
}

/// What goes to the target, by the target's ids.
struct Plan {
    /// In shard order, of what the target itself says of the collection.
    shards: Vec<(PChannel, Shard)>,
    /// Where the keys are deleted.
    within: (PartitionId, String),
    keys: Keys,
    inserts: Vec<Insert>,
    time: Tso,
}

/// # Errors
/// What was asked for does not fit, or the rows were read too early: nothing was sent. The target does not take it, or
/// does not answer in time: part of it may be there, and the same can be asked for again.
pub(crate) async fn repair(
    parts: &Parts,
    hubs: &Hubs,
    spec: &TaskSpec,
    wanted: &Repair,
) -> Result<Repaired, Problem> {
    let source = parts.catalog.read_collection(wanted.collection).await;
    let source = source
        .map_err(|e| e.problem())?
        .filter(|c| c.state == ObjectState::Created)
        .ok_or_else(|| {
            refused(
                format!("the source has no collection {}", wanted.collection),
                AGAIN,
            )
        })?;
    let inserts = checked(&source, wanted).map_err(|why| {
        let hint = "send what the source's own query has answered; nothing was changed";
        Problem::new(
            ErrorClass::Data,
            format!("{} ({}): {why}", source.name, source.id),
            hint,
        )
    })?;
    if spec.target.mode == Mode::Plain {
        return Err(refused(
            format!(
                "task {} is of mode plain, whose targets cannot be repaired yet",
                spec.id
            ),
            "the target takes clients' writes: copy or delete there what verify names",
        ));
    }
    let hub = hubs.get(&spec.target).await?;
    let stored = parts.store.load(&spec.id).await.map_err(store_problem)?;
    let object = stored
        .collections
        .get(&source.id)
        .filter(|o| o.phase == ObjectPhase::Live);
    let object = object.ok_or_else(|| {
        refused(
            format!("task {} does not carry {} ({})", spec.id, source.name, source.id),
            "let the task run until the collection is Streaming, or repair by the task that carries it",
        )
    })?;
    let (database, name) = (&object.database, &object.name);
    let mut changes = in_doubt(spec, &stored, &source, wanted.read_at)?;
    let found = hub.target.describe(database, name).await;
    let found = found.map_err(|e| target_problem(&e))?;
    let shards = found
        .filter(|found| Some(found.id) == object.target)
        .map(|found| shards(&source, database, &found))
        .ok_or_else(|| {
            refused(
                format!("{database}.{name} is no longer on the target: someone dropped or replaced it there"),
                "resume the task and answer what it asks",
            )
        })??;
    let there = hub.target.partitions(database, name).await;
    let there = there.map_err(|e| target_problem(&e))?;
    let partition = |id: PartitionId| -> Result<(PartitionId, String), Problem> {
        let known = stored
            .partitions
            .get(&id)
            .filter(|p| p.collection == source.id && p.phase == ObjectPhase::Live);
        let known = known.and_then(|p| Some((p.target?, p.name.clone())));
        known
            .filter(|(target, _)| there.iter().any(|(_, id)| id == target))
            .ok_or_else(|| {
                let name = source.partitions.get(&id).map_or("", |p| p.name.as_str());
                refused(
                    format!("{database}.{}: the partition {name} ({id}) is not on the target, or the task does not carry it", object.name),
                    "resume the task: it makes partitions by itself; then compare again",
                )
            })
    };
    let plan = Plan {
        shards,
        within: match wanted.partition {
            Some(id) => partition(id)?,
            None => (PartitionId(-1), String::new()),
        },
        keys: wanted.keys.clone(),
        inserts: inserts
            .into_iter()
            .map(|(of, insert)| {
                Ok(Insert {
                    partition: partition(of)?,
                    ..insert
                })
            })
            .collect::<Result<_, Problem>>()?,
        time: wanted.read_at,
    };
    let bound = parts.catalog.tso_bound().await.map_err(|e| e.problem())?;
    raise(&mut changes, bound.max(wanted.read_at));
    // Until everything is answered: what is sent now may be carried out after this process is gone.
    changes.push(ended_well(&spec.id, false));
    parts.store.commit(changes).await.map_err(store_problem)?;
    if !stored.notes.contains_key(&ENDED_WELL) {
        hub.earlier_process_was_cut_off();
    }
    send::send(&hub, source.id, &plan).await?;
    if !hub.is_hushed() {
        let well = vec![ended_well(&spec.id, true)];
        parts.store.commit(well).await.map_err(store_problem)?;
    }
    if wanted.flush {
        send::flush(&hub, database, name).await;
    }
    let replaced = plan.inserts.iter().map(|i| i.rows).sum();
    Ok(Repaired {
        database: database.clone(),
        name: name.clone(),
        replaced,
        deleted: wanted.keys.len() - replaced,
    })
}

fn refused(why: String, hint: &str) -> Problem {
    Problem::new(ErrorClass::Conflict, why, hint)
}

/// The channels on which this collection goes on, with what raises W there; `sent` is still as it is stored.
fn in_doubt(
    spec: &TaskSpec,
    stored: &TaskProgress,
    source: &Collection,
    read_at: Tso,
) -> Result<Vec<Change>, Problem> {
    let channels: BTreeSet<&PChannel> = source.shards.iter().map(|s| &s.pchannel).collect();
    let mut changes = Vec::new();
    for channel in channels {
        let task = spec.id.clone();
        let own = stored.detached.get(&(channel.clone(), source.id));
        let (progress, change) = match (own, stored.channels.get(channel)) {
            (Some(progress), _) => {
                let change = Change::PutDetached {
                    task,
                    channel: channel.clone(),
                    collection: source.id,
                    progress: *progress,
                };
                (progress, change)
            }
            (None, Some(progress)) => {
                let change = Change::RaiseSent {
                    task,
                    channel: channel.clone(),
                    sent: progress.sent,
                };
                (progress, change)
            }
            (None, None) => {
                return Err(refused(
                    format!(
                        "task {} has not begun to read {channel}, a channel of {}",
                        spec.id, source.name
                    ),
                    "let the task run until the collection is Streaming",
                ));
            }
        };
        if progress.applied > read_at {
            return Err(refused(
                format!(
                    "the rows of {} were read at {read_at}, and the task has applied {channel} up to {} since: they may be old",
                    source.name, progress.applied
                ),
                "pause the task first, then read the rows, then repair",
            ));
        }
        changes.push(change);
    }
    Ok(changes)
}

fn raise(changes: &mut [Change], bound: Tso) {
    for change in changes {
        match change {
            Change::RaiseSent { sent, .. } => *sent = bound.max(*sent),
            Change::PutDetached { progress, .. } => progress.sent = bound.max(progress.sent),
            _ => {}
        }
    }
}

/// In shard order, from what the target says of this very collection: a wrong channel is accepted and kills it.
fn shards(
    source: &Collection,
    database: &str,
    found: &TargetCollection,
) -> Result<Vec<(PChannel, Shard)>, Problem> {
    let wrong = |why: &str| {
        refused(
            format!("{database}.{}: {why}", found.name),
            "resume the task and see what it says of the collection",
        )
    };
    if found.vchannels.len() != source.shards.len() {
        return Err(wrong("it has another number of shards on the target"));
    }
    let mut all = BTreeMap::new();
    for (vchannel, pchannel) in found.vchannels.iter().zip(&found.pchannels) {
        if vchannel.pchannel() != *pchannel {
            return Err(wrong("the target names a channel that is not its own"));
        }
        let shard = Shard {
            collection: found.id,
            vchannel: vchannel.clone(),
            database: database.to_owned(),
            name: found.name.clone(),
        };
        all.insert(vchannel.shard(), (pchannel.clone(), shard));
    }
    let complete = (0..source.shards.len()).all(|i| all.contains_key(&Some(i)));
    match complete && all.len() == source.shards.len() {
        true => Ok(all.into_values().collect()),
        false => Err(wrong("the target's channels are not numbered from 0 on")),
    }
}

/// The inserts, with the source's id of their partition: every row fits the schema, is of one of the keys, and where the
/// source's proxy itself would have put it. Else a delete of the source would not find it later.
fn checked(source: &Collection, wanted: &Repair) -> Result<Vec<(PartitionId, Insert)>, String> {
    let fields = &source.schema.fields;
    let name_of = |is: fn(&&milvus::proto::schema::FieldSchema) -> bool| {
        fields.iter().find(is).map(|f| f.name.as_str())
    };
    let primary = name_of(|f| f.is_primary_key).ok_or("its fields are not known yet")?;
    let partition_key = name_of(|f| f.is_partition_key);
    if wanted.keys.is_empty() || wanted.keys.len() > MOST_KEYS {
        return Err(format!(
            "keys: {} of them; 1 to {MOST_KEYS} expected",
            wanted.keys.len()
        ));
    }
    let shown = wanted.keys.shown();
    let keys: BTreeSet<&String> = shown.iter().collect();
    if keys.len() < shown.len() {
        return Err("keys: one of them is there twice".to_owned());
    }
    let known = |id: PartitionId| match source.partitions.get(&id) {
        Some(p) if p.state == ObjectState::Created => Ok(p),
        _ => Err(format!("the source has no partition {id}")),
    };
    if let Some(id) = wanted.partition {
        known(id)?;
    }
    let mut done = BTreeSet::new();
    let mut inserts = Vec::new();
    for (i, new) in wanted.rows.iter().enumerate() {
        let at = |why: String| format!("rows[{i}]: {why}");
        let partition = known(new.partition).map_err(&at)?;
        if wanted.partition.is_some_and(|p| p != new.partition) {
            return Err(at(format!(
                "they are of the partition {}, the keys of another one",
                partition.name
            )));
        }
        if new.shard >= source.shards.len() {
            return Err(at(format!(
                "shard {}: 0 to {} expected",
                new.shard,
                source.shards.len() - 1
            )));
        }
        let of_them = columns::column(&new.columns, primary)
            .ok_or_else(|| at(format!("{primary}: integers or strings expected")))?;
        let rows = of_them.len();
        let columns = columns::fit(&source.schema, &new.columns, rows).map_err(&at)?;
        for (value, key) in of_them.values().into_iter().zip(of_them.shown()) {
            if !keys.contains(&key) || !done.insert(key.clone()) {
                return Err(at(format!("{key} is not one of the keys, or there twice")));
            }
            let place = value.place(source.shards.len());
            if place != new.shard {
                return Err(at(format!(
                    "{key} is of shard {place}, not of shard {}",
                    new.shard
                )));
            }
        }
        if let Some(field) = partition_key {
            let all = source.partitions.values().map(|p| p.name.as_str());
            let order = hash::in_order(all)
                .ok_or_else(|| at(format!("{}: its partitions are not numbered", source.name)))?;
            let values = columns::column(&columns, field)
                .ok_or_else(|| at(format!("{field}: integers or strings expected")))?;
            for (value, text) in values.values().into_iter().zip(values.shown()) {
                let place = order[value.place(order.len())];
                if place != partition.name {
                    return Err(at(format!(
                        "{field} {text} is of the partition {place}, not of {}",
                        partition.name
                    )));
                }
            }
        } else if wanted.partition.is_none() && source.partitions.len() > 1 {
            return Err(
                "partition: missing; without a partition key a repair is of one partition"
                    .to_owned(),
            );
        }
        let insert = Insert {
            partition: (new.partition, partition.name.clone()),
            shard: new.shard,
            columns,
            rows,
        };
        inserts.push((new.partition, insert));
    }
    Ok(inserts)
}

#[cfg(test)]
mod tests;
