//! What a standby was given, read from its log: the RocksDB of its RocksMQ, opened beside the running server.
//!
//! A standby of 2.3.5 can itself lose or double rows (after a kill, where collections share a physical channel). When
//! source and target differ, the log tells whether the writer gave the standby the wrong rows or the standby lost the
//! right ones.
//!
//! # The rules
//! On each physical channel, in the order of the log:
//! - ticks never go back;
//! - no insert, delete or drop has a time at or below an earlier tick: readers may never see it;
//! - no message id comes twice, except with no larger tick in between: that is the retry of a call that had none, and
//!   readers drop the second one. Any other repeat is lost when the standby reads its log again.
//!
//! # The rows
//! An insert adds a copy. A delete at a time kills the copies of its key with a smaller one, in its partition or, with
//! -1, in all.

mod store;
pub mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use milvus::proto::common::{MsgHeader, MsgType};
use milvus::proto::msg;
use milvus::proto::schema::{CollectionSchema, FieldData};
use prost::Message;

use crate::client::{Key, from_columns, keys};
pub use store::list;

/// All partitions.
const EVERY: i64 = -1;
/// Broken rules kept with their text; the others are only counted.
const KEPT: usize = 50;
/// The log of a standby.
#[derive(Debug, Default)]
pub struct Log {
    channels: BTreeMap<String, Channel>,
    collections: BTreeMap<i64, Collection>,
    violations: Vec<String>,
    broken: usize,
}

/// One physical channel.
#[derive(Debug, Default)]
struct Channel {
    messages: u64,
    tick: u64,
    /// Messages with rows behind the last tick: no reader shows them yet.
    unticked: u64,
    /// Message id to the last tick before it.
    ids: HashMap<i64, u64>,
}

#[derive(Debug, Default)]
struct Collection {
    name: String,
    /// Of the primary key.
    key: String,
    inserts: Vec<(i64, Key, u64)>,
    deletes: HashMap<Key, Vec<(i64, u64)>>,
    /// Rows, first and last time of each segment.
    segments: BTreeMap<i64, (usize, u64, u64)>,
}

/// Partition id to keys with their number of copies.
pub type Rows = BTreeMap<i64, BTreeMap<Key, u64>>;

impl Log {
    /// Reads the log as it is now. `dir` is `rocksmq.path` of the standby.
    ///
    /// # Errors
    /// It is no RocksMQ, or has a message that cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut messages = store::read(dir)?;
        messages.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut log = Self::default();
        for (topic, id, payload) in messages {
            log.message(&topic, &payload)
                .with_context(|| format!("message {id} of {topic}"))?;
        }
        Ok(log)
    }

    /// Broken rules, one a line.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The channels that end in messages which no tick follows, one a line: readers do not show these yet.
    pub fn unticked(&self) -> Vec<String> {
        self.channels
            .iter()
            .filter(|(_, c)| c.unticked > 0)
            .map(|(name, c)| c.line(name))
            .collect()
    }

    /// The rows that readers of the log have to have of this collection, whatever was dropped later.
    pub fn rows(&self, collection: i64) -> Rows {
        let mut rows = Rows::new();
        let Some(c) = self.collections.get(&collection) else {
            return rows;
        };
        for (partition, key, ts) in &c.inserts {
            let dead = c.deletes.get(key).is_some_and(|all| {
                all.iter()
                    .any(|(p, at)| (*p == EVERY || p == partition) && at > ts)
            });
            if !dead {
                *rows
                    .entry(*partition)
                    .or_default()
                    .entry(key.clone())
                    .or_default() += 1;
            }
        }
        rows
    }

    fn broken(&mut self, text: String) {
        self.broken += 1;
        if self.violations.len() < KEPT {
            self.violations.push(text);
        }
    }

    fn message(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        let base = MsgHeader::decode(payload)?.base.unwrap_or_default();
        let channel = self.channels.entry(topic.to_owned()).or_default();
        channel.messages += 1;
        let tick = channel.tick;
        match base.msg_type() {
            MsgType::TimeTick => {
                channel.tick = tick.max(base.timestamp);
                channel.unticked = 0;
                if base.timestamp < tick {
                    self.broken(format!(
                        "{topic}: the tick {} after the tick {tick}",
                        base.timestamp
                    ));
                }
            }
            MsgType::CreateCollection => {
                let m = msg::CreateCollectionRequest::decode(payload)?;
                let schema = match m.collection_schema {
                    Some(schema) => schema,
                    #[allow(deprecated)] // what 2.3 fills
                    None => CollectionSchema::decode(m.schema.as_slice())?,
                };
                let c = self.collections.entry(m.collection_id).or_default();
                c.key = schema
                    .fields
                    .into_iter()
                    .find(|f| f.is_primary_key)
                    .map(|f| f.name)
                    .unwrap_or_default();
            }
            MsgType::Insert => {
                let m = msg::InsertRequest::decode(payload)?;
                if self.fresh(topic, "insert", base.msg_id, least(&m.timestamps)) {
                    self.insert(m)?;
                }
            }
            MsgType::Delete => {
                let m = msg::DeleteRequest::decode(payload)?;
                if self.fresh(topic, "delete", base.msg_id, least(&m.timestamps)) {
                    let c = self.collections.entry(m.collection_id).or_default();
                    for (key, ts) in keys(m.primary_keys).into_iter().zip(m.timestamps) {
                        c.deletes.entry(key).or_default().push((m.partition_id, ts));
                    }
                }
            }
            kind @ (MsgType::DropCollection | MsgType::DropPartition) => {
                self.fresh(topic, kind.as_str_name(), base.msg_id, base.timestamp);
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks id and time; whether readers take it.
    fn fresh(&mut self, topic: &str, what: &str, id: i64, ts: u64) -> bool {
        let channel = self.channels.entry(topic.to_owned()).or_default();
        let tick = channel.tick;
        channel.unticked += 1;
        let before = channel.ids.insert(id, tick);
        if ts <= tick {
            self.broken(format!(
                "{topic}: {what} {id} at {ts}, not above the tick {tick}"
            ));
        }
        match before {
            Some(before) if before < tick => {
                self.broken(format!(
                    "{topic}: {what} with the id {id}, which was used before the tick {tick}"
                ));
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    fn insert(&mut self, m: msg::InsertRequest) -> Result<()> {
        let c = self.collections.entry(m.collection_id).or_default();
        // 2.3.5 leaves the names out of its own CreateCollection.
        c.name = format!("{}.{}", m.db_name, m.collection_name);
        let column: Vec<FieldData> = m
            .fields_data
            .into_iter()
            .filter(|f| f.field_name == c.key)
            .collect();
        if column.is_empty() {
            bail!(
                "an insert of {} ({}) without the key {:?}",
                c.name,
                m.collection_id,
                c.key
            );
        }
        let segment = c.segments.entry(m.segment_id).or_insert((0, u64::MAX, 0));
        segment.0 += m.timestamps.len();
        for ts in &m.timestamps {
            segment.1 = segment.1.min(*ts);
            segment.2 = segment.2.max(*ts);
        }
        for (row, ts) in from_columns(column)?.into_iter().zip(m.timestamps) {
            let key = row.get(&c.key).and_then(|v| v.key());
            let key = key.context("a row whose key is neither number nor text")?;
            c.inserts.push((m.partition_id, key, ts));
        }
        Ok(())
    }
}

impl Channel {
    fn line(&self, name: &str) -> String {
        format!(
            "{name}: {} messages, the last tick is {} ({:.3}), {} messages behind it",
            self.messages,
            self.tick,
            seconds(self.tick),
            self.unticked
        )
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, c) in &self.collections {
            let rows = self.rows(*id);
            let copies: u64 = rows.values().flat_map(BTreeMap::values).sum();
            let keys: usize = rows.values().map(BTreeMap::len).sum();
            writeln!(
                f,
                "collection {id} {}: {keys} keys, {copies} copies",
                c.name
            )?;
            for (segment, (rows, first, last)) in &c.segments {
                let (first, last) = (seconds(*first), seconds(*last));
                writeln!(
                    f,
                    "  segment {segment}: {rows} rows, from {first:.3} to {last:.3}"
                )?;
            }
        }
        for (name, c) in &self.channels {
            writeln!(f, "{}", c.line(name))?;
        }
        let messages: u64 = self.channels.values().map(|c| c.messages).sum();
        writeln!(f, "{} channels, {messages} messages", self.channels.len())?;
        for v in &self.violations {
            writeln!(f, "against the rules: {v}")?;
        }
        match self.broken {
            0 => write!(f, "the log keeps the rules"),
            n => write!(f, "{n} messages go against the rules"),
        }
    }
}

/// Unix time of a timestamp.
fn seconds(ts: u64) -> f64 {
    (ts >> 18) as f64 / 1000.0
}

fn least(of: &[u64]) -> u64 {
    of.iter().copied().min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use milvus::proto::common::MsgBase;
    use milvus::proto::schema::{
        DataType, FieldSchema, IDs, LongArray, ScalarField, field_data, i_ds, scalar_field,
    };

    use super::*;

    const TOPIC: &str = "t-rootcoord-dml_0";

    fn base(kind: MsgType, id: i64, ts: u64) -> Option<MsgBase> {
        Some(MsgBase {
            msg_id: id,
            timestamp: ts,
            ..MsgBase::new(kind)
        })
    }

    fn tick(ts: u64) -> Vec<u8> {
        let base = base(MsgType::TimeTick, 0, ts);
        msg::TimeTickMsg { base }.encode_to_vec()
    }

    fn insert(id: i64, key: i64, ts: u64) -> Vec<u8> {
        let longs = scalar_field::Data::LongData(LongArray { data: vec![key] });
        msg::InsertRequest {
            base: base(MsgType::Insert, id, ts),
            collection_id: 7,
            partition_id: 1,
            timestamps: vec![ts],
            fields_data: vec![FieldData {
                field_name: "pk".into(),
                r#type: DataType::Int64.into(),
                field: Some(field_data::Field::Scalars(ScalarField {
                    data: Some(longs),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn delete(id: i64, key: i64, ts: u64, partition: i64) -> Vec<u8> {
        msg::DeleteRequest {
            base: base(MsgType::Delete, id, ts),
            collection_id: 7,
            partition_id: partition,
            timestamps: vec![ts],
            primary_keys: Some(IDs {
                id_field: Some(i_ds::IdField::IntId(LongArray { data: vec![key] })),
            }),
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn log(messages: &[Vec<u8>]) -> Log {
        let schema = CollectionSchema {
            fields: vec![FieldSchema {
                name: "pk".into(),
                is_primary_key: true,
                ..Default::default()
            }],
            ..Default::default()
        };
        #[allow(deprecated)] // what 2.3 fills
        let create = msg::CreateCollectionRequest {
            base: base(MsgType::CreateCollection, 1, 1),
            collection_id: 7,
            schema: schema.encode_to_vec(),
            ..Default::default()
        };
        let mut log = Log::default();
        log.message(TOPIC, &create.encode_to_vec()).unwrap();
        for m in messages {
            log.message(TOPIC, m).unwrap();
        }
        log
    }

    #[test]
    fn deletes_kill_older_copies_of_their_partition() {
        let log = log(&[
            insert(1, 5, 10),
            insert(2, 6, 10),
            delete(3, 5, 10, EVERY),
            delete(4, 6, 11, 2),
            tick(20),
            insert(5, 6, 21),
            delete(6, 5, 22, 1),
            insert(7, 5, 22),
        ]);
        assert!(log.violations().is_empty(), "{log}");
        let rows = &log.rows(7)[&1];
        assert_eq!(rows[&Key::Int(5)], 1);
        assert_eq!(rows[&Key::Int(6)], 2);
    }

    #[test]
    fn a_repeated_id_is_a_retry_until_a_tick_has_passed() {
        let retry = log(&[
            tick(5),
            insert(1, 5, 10),
            tick(5),
            insert(1, 5, 10),
            tick(10),
        ]);
        assert!(retry.violations().is_empty(), "{retry}");
        assert_eq!(retry.rows(7)[&1][&Key::Int(5)], 1);

        let repeat = log(&[insert(1, 5, 10), tick(10), insert(1, 5, 11)]);
        assert_eq!(repeat.violations().len(), 1, "{repeat}");
    }

    #[test]
    fn time_that_goes_back_is_told() {
        let back = log(&[tick(9), tick(8), insert(1, 5, 9), tick(12)]);
        assert_eq!(back.violations().len(), 2, "{back}");
    }
}
