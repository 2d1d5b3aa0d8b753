//! The writer for a target that is an ordinary Milvus: what a lane sends becomes Insert and Delete calls.
//!
//! Readers, stretches and lanes are the same as for a standby. A lane's channel stands for one shard of one collection
//! here ([`channels`]), and a stretch is sorted by time before it is sent, for these calls get their times from the
//! target. Ticks end in the lane: each row is there when its call is answered.
//!
//! - [`message`]: bytes of a lane's message to what has to be called. [`plan`]: in which calls, so that each key sees
//!   its deletes and inserts in their order. [`columns`]: columns of several messages as those of one. All three pure.
//! - [`PlainWriter`]: makes the calls, and knows of each message whether its rows are there.
//!
//! # Nothing twice
//!
//! A call to a lane's channel is repeated until it succeeds. It becomes several calls here, and an Insert that is
//! repeated doubles its rows. So the writer keeps, by message id, what is done. An Insert whose outcome is not known is
//! repeated only when it cannot be carried out any more ([`super::carried_out_within`]: the lane waits), and then behind
//! a Delete of its keys. What a process leaves behind is in doubt for the next one, which gets it as a Delete and an
//! Insert (window form) and waits for its calls to end as well.

mod columns;
pub(crate) mod message;
pub(crate) mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use milvus::proto::schema::CollectionSchema;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::message::Message;
use self::plan::{Step, plan};
use super::TargetError;
use crate::ids::{CollectionId, PChannel, VChannel};
use crate::route::encode::Entry;

/// Messages whose fate is kept for a channel: far more than one call has. What was taken back from its lane is never
/// sent again under its id, and is forgotten with the oldest.
const KEPT: usize = 64 << 10;

/// Rows of one partition, or of all if it is not named.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    pub database: String,
    pub collection: String,
    /// Empty: all for a delete; for an insert the default one, or that of the partition key.
    pub partition: String,
}

/// What the writer has to know of a collection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    /// Name of the primary key.
    pub(crate) primary: String,
    /// The target chooses the partition: naming one is refused.
    pub(crate) has_partition_key: bool,
    /// Fields whose values the target computes itself, and does not take.
    pub(crate) computed: BTreeSet<String>,
}

impl Table {
    pub(crate) fn of(schema: &CollectionSchema) -> Option<Self> {
        let primary = schema.fields.iter().find(|f| f.is_primary_key)?;
        let computed = schema.fields.iter().filter(|f| f.is_function_output);
        Some(Self {
            primary: primary.name.clone(),
            has_partition_key: schema.fields.iter().any(|f| f.is_partition_key),
            computed: computed.map(|f| f.name.clone()).collect(),
        })
    }
}

/// The two calls that change rows. Each ends, or can be carried out no more, within the time that is given.
#[async_trait]
pub trait RowCalls: Send + Sync {
    /// Adds rows. `columns`: each a FieldData as in Milvus' API, for `rows` rows.
    async fn insert(
        &self,
        at: &Place,
        columns: Vec<Bytes>,
        rows: u64,
        within: Duration,
    ) -> Result<(), TargetError>;
    /// Deletes the rows of a place that `expr` selects; none is not an error.
    async fn delete(&self, at: &Place, expr: &str, within: Duration) -> Result<(), TargetError>;
}

/// The channels that stand for the shards of a collection: a target's own ones are of no use to these calls, and it may
/// have fewer. One lane each, so that collections, and shards, do not wait for each other.
pub(crate) fn channels(collection: CollectionId, shards: usize) -> Vec<(VChannel, PChannel)> {
    let (id, prefix) = (collection.0, channel_prefix(collection));
    (0..shards)
        .map(|shard| {
            let channel = format!("{prefix}{shard}");
            let vchannel = VChannel::new(format!("{channel}_{id}v{shard}"));
            (vchannel, PChannel::new(channel))
        })
        .collect()
}

/// What the channels of a collection begin with.
pub(crate) fn channel_prefix(collection: CollectionId) -> String {
    format!("plain-{}-", collection.0)
}

/// What became of a message's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Done,
    /// They may be there, or come.
    Unknown,
}

/// By database and name.
type Tables = HashMap<(String, String), (CollectionId, Arc<Table>)>;
type Fates = Arc<tokio::sync::Mutex<BTreeMap<i64, Fate>>>;

/// See the module.
#[derive(Default)]
pub struct PlainWriter {
    tables: Mutex<Tables>,
    /// Of channels with a call that did not succeed.
    fates: Mutex<HashMap<PChannel, Fates>>,
}

impl PlainWriter {
    /// What the target says of a name: known before anything is written to it.
    pub fn learn(
        &self,
        database: &str,
        name: &str,
        collection: CollectionId,
        schema: &CollectionSchema,
    ) {
        let key = (database.to_owned(), name.to_owned());
        if let Some(table) = Table::of(schema) {
            self.tables
                .lock()
                .insert(key, (collection, Arc::new(table)));
        }
    }

    /// Nothing is there under this name any more.
    pub fn forget(&self, database: &str, name: &str) {
        let key = (database.to_owned(), name.to_owned());
        self.tables.lock().remove(&key);
    }

    /// `None`: the name means another collection, or none.
    fn table(&self, at: &Place, collection: CollectionId) -> Option<Arc<Table>> {
        let key = (at.database.clone(), at.collection.clone());
        let tables = self.tables.lock();
        let (id, table) = tables.get(&key)?;
        (*id == collection).then(|| table.clone())
    }

    /// Writes what a lane sends to `channel`, in its order. After an error it may be called with the same messages once
    /// more, all or some of them, in the same order.
    ///
    /// # Errors
    /// Some of it is not written, or may not be: what is, is known here. A message that is none writes nothing.
    pub async fn write(
        &self,
        calls: &dyn RowCalls,
        uri: &str,
        channel: &PChannel,
        msgs: &[Entry],
        within: Duration,
    ) -> Result<(), TargetError> {
        let end = Instant::now() + within;
        // Half of it is for the calls that are begun last.
        let worth_beginning = within / 2;
        let refusal = |code, reason| TargetError::Refused {
            uri: uri.to_owned(),
            call: "Insert",
            code,
            reason,
        };
        let refused = |reason: String| refusal(1100, reason);
        let read: Result<Vec<Option<Message>>, String> = msgs.iter().map(Message::read).collect();
        let messages: Vec<Message> = read.map_err(refused)?.into_iter().flatten().collect();
        if messages.is_empty() {
            return Ok(());
        }
        let mut tables = Vec::with_capacity(messages.len());
        for Message { at, collection, .. } in &messages {
            let gone = || {
                let why = format!(
                    "{}.{} is another collection by now, or none",
                    at.database, at.collection
                );
                // As the target says it of a name that is not there.
                refusal(100, why)
            };
            tables.push(self.table(at, *collection).ok_or_else(gone)?);
        }
        let of_channel = self
            .fates
            .lock()
            .entry(channel.clone())
            .or_default()
            .clone();
        // Whoever had it ended with its call.
        let mut fates = of_channel.lock().await;
        let ids: Vec<i64> = messages.iter().map(|m| m.id).collect();
        let todo = messages
            .into_iter()
            .zip(tables)
            .filter(|(m, _)| fates.get(&m.id) != Some(&Fate::Done));
        let unknown = |id: i64| fates.get(&id) == Some(&Fate::Unknown);
        let steps = plan(todo, unknown).map_err(refused)?;
        for (n, step) in steps.into_iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            if n > 0 && left < worth_beginning {
                return Err(TargetError::Unfinished {
                    uri: uri.to_owned(),
                    call: step.call(),
                    within,
                });
            }
            // Before the call: whoever drops it here never hears of its end.
            let begun = step.inserted().iter().map(|id| (*id, Fate::Unknown));
            fates.extend(begun);
            let outcome = run(calls, &step, left).await;
            tracing::trace!(%channel, ?outcome, "{step}");
            match outcome {
                Ok(()) => fates.extend(step.done().iter().map(|id| (*id, Fate::Done))),
                Err(error) => {
                    if writes_nothing(&error) {
                        fates.retain(|id, _| !step.fresh().contains(id));
                    }
                    return Err(error);
                }
            }
        }
        for id in ids {
            fates.remove(&id);
        }
        while fates.len() > KEPT {
            fates.pop_first();
        }
        let nothing = fates.is_empty();
        drop(fates);
        if nothing {
            self.fates.lock().remove(channel);
        }
        Ok(())
    }
}

async fn run(calls: &dyn RowCalls, step: &Step, within: Duration) -> Result<(), TargetError> {
    match step {
        // Of no rows.
        Step::Delete { expr, .. } if expr.is_empty() => Ok(()),
        Step::Delete { at, expr, .. } => calls.delete(at, expr, within).await,
        Step::Insert {
            at, columns, rows, ..
        } => calls.insert(at, columns.clone(), *rows, within).await,
    }
}

/// Whether a refusal is one of a whole request before any of it is written. Others may come when some of its shards have
/// their rows already.
fn writes_nothing(error: &TargetError) -> bool {
    match error {
        TargetError::Unreachable { .. } | TargetError::Configuration { .. } => true,
        TargetError::Unknown { .. } | TargetError::Unfinished { .. } => false,
        // 8, 9: rate and quota; 100 to 108, 200, 800: what is named is not there, or not so; 1100 to 1102: parameters;
        // 1303: a standby; 1400, 1401: login (`pkg/util/merr`). 10 is a call that is not there, 1 a proxy that begins.
        TargetError::Refused { code, .. } => {
            matches!(
                code,
                1 | 8 | 9 | 10 | 100..=109 | 200 | 202 | 800 | 1100..=1102 | 1303 | 1400 | 1401
            )
        }
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
