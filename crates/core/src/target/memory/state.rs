//! What a standby holds, and what becomes of a message that is written to it.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use milvus::proto::msg::{
    DeleteRequest, DropCollectionRequest, DropPartitionRequest, InsertRequest, TimeTickMsg,
};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::scalar_field::Data;
use prost::Message;

use super::flushed::Flushes;
use super::{Key, Row, Written};
use crate::catalog::Collection;
use crate::decode::msg_type;
use crate::ids::{CollectionId, PChannel, PartitionId, VChannel};
use crate::target::TargetIndex;
use crate::tso::Tso;

/// Why a call is refused: code and text as 2.3.5 has them.
pub(super) type Refusal = (i32, String);

/// The proxy takes no request that is larger (64 MiB).
const MAX_REQUEST: usize = 64 << 20;

pub(super) struct TargetPartition {
    pub(super) id: PartitionId,
    pub(super) loaded: bool,
}

/// One physical row.
struct Copy {
    key: Key,
    version: i64,
    partition: PartitionId,
    vchannel: VChannel,
    ts: Tso,
}

struct Kill {
    /// In the order of writing, over all keys.
    number: usize,
    /// `None`: in all partitions.
    partition: Option<PartitionId>,
    vchannel: VChannel,
    ts: Tso,
}

pub(super) struct Content {
    pub(super) database: String,
    pub(super) source: Collection,
    pub(super) create_ts: Tso,
    pub(super) vchannels: Vec<VChannel>,
    pub(super) partitions: BTreeMap<String, TargetPartition>,
    pub(super) indexes: Vec<TargetIndex>,
    pub(super) loaded: bool,
    /// Dropped by RPC.
    pub(super) dropped: bool,
    copies: Vec<Copy>,
    kills: HashMap<Key, Vec<Kill>>,
    /// Partition ids of all times, so that one that was dropped is told from one that never was.
    partition_ids: Vec<PartitionId>,
    /// Channels that have read the drop of a partition or of the collection (`None`).
    drops: Vec<(VChannel, Option<PartitionId>)>,
    deletes: usize,
    pub(super) flushes: Flushes,
}

impl Content {
    pub(super) fn add_partition(&mut self, name: &str, id: PartitionId) {
        self.partition_ids.push(id);
        self.partitions
            .insert(name.to_owned(), TargetPartition { id, loaded: false });
    }

    pub(super) fn holds_rows(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Rows and deletes so far.
    pub(super) fn written(&self) -> (usize, usize) {
        (self.copies.len(), self.deletes)
    }

    /// Whether rows and deletes up to `up_to` are among the first that were written.
    pub(super) fn all_below(&self, copies: usize, kills: usize, up_to: Tso) -> bool {
        let later = self.copies.get(copies..).unwrap_or_default();
        let mut deletes = self.kills.values().flatten();
        later.iter().all(|c| c.ts > up_to) && deletes.all(|k| k.number < kills || k.ts > up_to)
    }

    /// Forgets all rows and deletes but the first that were written.
    pub(super) fn keep(&mut self, copies: usize, kills: usize) {
        self.copies.truncate(copies);
        for of_key in self.kills.values_mut() {
            of_key.retain(|k| k.number < kills);
        }
        self.deletes = self.deletes.min(kills);
    }
}

#[derive(Default)]
struct Channel {
    last_tick: Tso,
    /// Effective ticks so far: message ids may repeat only while this stands still.
    ticks: u64,
    ids: HashMap<i64, u64>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) databases: BTreeMap<String, BTreeMap<String, CollectionId>>,
    pub(super) collections: HashMap<CollectionId, Content>,
    channels: BTreeMap<PChannel, Channel>,
    next_id: i64,
    pub(super) clock: Tso,
    /// Restarts so far.
    pub(super) incarnation: u64,
    /// It leaves a node out of its topology.
    pub(super) node_is_silent: bool,
    pub(super) violations: Vec<String>,
    pub(super) refused: Vec<(String, String)>,
    pub(super) written: Written,
    next_channel: usize,
}

/// A message as the proxy has read it.
enum Entry {
    Insert(InsertRequest),
    Delete(DeleteRequest),
    DropCollection(DropCollectionRequest),
    DropPartition(DropPartitionRequest),
    Tick(TimeTickMsg),
    /// Of a type that the table allows and this model does not know more of.
    Other,
}

impl State {
    pub(super) fn new(channels: usize) -> Self {
        let channels = (0..channels)
            .map(|i| (PChannel::new(format!("tgt-dml_{i}")), Channel::default()))
            .collect();
        Self {
            databases: [("default".to_owned(), BTreeMap::new())].into(),
            channels,
            next_id: 440_000,
            ..Self::default()
        }
    }

    pub(super) fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    /// Names of the shards of a new collection: the channels are taken in turn, so that collections share them.
    fn shards(&mut self, id: CollectionId, count: usize) -> Vec<VChannel> {
        let names: Vec<_> = self.channels.keys().cloned().collect();
        (0..count)
            .map(|shard| {
                let pchannel = &names[self.next_channel % names.len()];
                self.next_channel += 1;
                VChannel::new(format!("{pchannel}_{id}v{shard}"))
            })
            .collect()
    }

    pub(super) fn create(&mut self, database: &str, source: &Collection, ts: Tso) {
        let id = CollectionId(self.id());
        let vchannels = self.shards(id, source.shards.len());
        let mut content = Content {
            database: database.to_owned(),
            source: source.clone(),
            create_ts: ts,
            vchannels,
            partitions: BTreeMap::new(),
            indexes: Vec::new(),
            loaded: false,
            dropped: false,
            copies: Vec::new(),
            kills: HashMap::new(),
            partition_ids: Vec::new(),
            drops: Vec::new(),
            deletes: 0,
            flushes: Flushes::default(),
        };
        let names: Vec<String> = if source.has_partition_key() {
            (0..source.partitions.len())
                .map(|i| format!("_default_{i}"))
                .collect()
        } else {
            vec!["_default".to_owned()]
        };
        for name in names {
            let partition = PartitionId(self.id());
            content.add_partition(&name, partition);
        }
        self.collections.insert(id, content);
        self.databases
            .entry(database.to_owned())
            .or_default()
            .insert(source.name.clone(), id);
    }

    pub(super) fn find(&mut self, database: &str, name: &str) -> Option<&mut Content> {
        let id = self.databases.get(database)?.get(name)?;
        self.collections.get_mut(id)
    }

    pub(super) fn last_tick(&self, channel: &PChannel) -> Tso {
        self.channels
            .get(channel)
            .map_or(Tso::ZERO, |channel| channel.last_tick)
    }

    /// One ReplicateMessage: all entries are looked at before the first is written.
    pub(super) fn replicate(
        &mut self,
        channel: &PChannel,
        msgs: &[Bytes],
        end: Tso,
    ) -> Result<(), Refusal> {
        self.written.calls += 1;
        if channel.as_str().is_empty() {
            return Err((
                1100,
                "invalid channel name for the replicate message request".to_owned(),
            ));
        }
        if msgs.iter().map(Bytes::len).sum::<usize>() > MAX_REQUEST {
            return Err((1102, "received message larger than max".to_owned()));
        }
        let entries = msgs
            .iter()
            .map(|msg| self.read(msg, end))
            .collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err((65535, "empty msgs".to_owned()));
        }
        if !self.channels.contains_key(channel) {
            self.violation(format!("{channel}: no such channel"));
            return Ok(());
        }
        for entry in entries {
            self.write(channel, entry);
        }
        Ok(())
    }

    fn read(&self, msg: &Bytes, end: Tso) -> Result<Entry, Refusal> {
        let undecodable = |e: prost::DecodeError| (65535, e.to_string());
        // Every message has its base in field 1; the rest is skipped here.
        let head = TimeTickMsg::decode(msg.clone()).map_err(undecodable)?;
        let Some(base) = &head.base else {
            return Err((1901, "invalid replicate msg bytes".to_owned()));
        };
        let entry = match base.msg_type {
            msg_type::INSERT => {
                let insert = InsertRequest::decode(msg.clone()).map_err(undecodable)?;
                self.allocate(&insert, end)?;
                self.taken(insert.collection_id)?;
                Entry::Insert(insert)
            }
            msg_type::DELETE => {
                let delete = DeleteRequest::decode(msg.clone()).map_err(undecodable)?;
                self.taken(delete.collection_id)?;
                Entry::Delete(delete)
            }
            msg_type::DROP_COLLECTION => Entry::DropCollection(
                DropCollectionRequest::decode(msg.clone()).map_err(undecodable)?,
            ),
            msg_type::DROP_PARTITION => Entry::DropPartition(
                DropPartitionRequest::decode(msg.clone()).map_err(undecodable)?,
            ),
            msg_type::TIME_TICK => Entry::Tick(head),
            100 | 102..=107 | 200 | 205 | 206 | 300 | 302 | 402 | 1208 | 1801 | 1802 => {
                Entry::Other
            }
            _ => return Err((1901, "invalid replicate msg type".to_owned())),
        };
        Ok(entry)
    }

    /// What the proxy asks for an insert's segment: it fails for a collection it does not have, and for a time that is
    /// too far ahead of its clock.
    fn allocate(&self, insert: &InsertRequest, end: Tso) -> Result<(), Refusal> {
        let known = self
            .collections
            .get(&CollectionId(insert.collection_id))
            .is_some_and(|c| !c.dropped);
        let ahead = self.clock.behind(end).as_millis() > 2000;
        if known && !ahead {
            return Ok(());
        }
        let text = "getSegmentID failed: SegmentIDAllocator failRemainRequest unexpected error";
        Err((65535, text.to_owned()))
    }

    fn taken(&self, id: i64) -> Result<(), Refusal> {
        let refused = self.collections.get(&CollectionId(id)).is_some_and(|c| {
            self.refused
                .contains(&(c.database.clone(), c.source.name.clone()))
        });
        if refused {
            return Err((1100, "refused by the test".to_owned()));
        }
        Ok(())
    }

    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Whether the message counts: not one whose id its readers have seen since the last tick.
    fn admit(&mut self, name: &PChannel, id: i64, ts: Tso, what: &str) -> bool {
        let Some(channel) = self.channels.get_mut(name) else {
            return false;
        };
        let seen = channel.ids.insert(id, channel.ticks);
        let stale = ts <= channel.last_tick;
        let (ticks, last_tick) = (channel.ticks, channel.last_tick);
        match seen {
            Some(at) if at == ticks => {
                self.written.repeats += 1;
                return false;
            }
            Some(_) => self.violation(format!(
                "{name}: {what} repeats message id {id} of before the last tick"
            )),
            None => {}
        }
        if stale {
            self.violation(format!(
                "{name}: stale {what}: its time {} is not above the tick {} ({} ms)",
                ts.0,
                last_tick.0,
                ts.behind(last_tick).as_millis()
            ));
        }
        true
    }

    /// The shard a message is for, if it is one of that collection's on this channel.
    fn shard(&mut self, name: &PChannel, collection: i64, shard: &str, what: &str) -> bool {
        let vchannel = VChannel::new(shard);
        let known = self
            .collections
            .get(&CollectionId(collection))
            .is_some_and(|c| c.vchannels.contains(&vchannel));
        if !known || vchannel.pchannel() != *name {
            self.violation(format!(
                "{name}: {what} for shard {shard:?} of collection {collection}, which is not one of its shards here"
            ));
        }
        known
    }

    fn write(&mut self, name: &PChannel, entry: Entry) {
        match entry {
            Entry::Insert(insert) => self.insert(name, insert),
            Entry::Delete(delete) => self.delete(name, delete),
            Entry::DropCollection(drop) => {
                let base = drop.base.unwrap_or_default();
                self.drop(
                    name,
                    base.msg_id,
                    Tso(base.timestamp),
                    drop.collection_id,
                    None,
                );
            }
            Entry::DropPartition(drop) => {
                let base = drop.base.unwrap_or_default();
                let partition = Some(PartitionId(drop.partition_id));
                let ts = Tso(base.timestamp);
                self.drop(name, base.msg_id, ts, drop.collection_id, partition);
            }
            Entry::Tick(tick) => {
                let base = tick.base.unwrap_or_default();
                self.written.ticks += 1;
                let Some(channel) = self.channels.get_mut(name) else {
                    return;
                };
                if base.timestamp > channel.last_tick.0 {
                    channel.last_tick = Tso(base.timestamp);
                    channel.ticks += 1;
                }
            }
            Entry::Other => {}
        }
    }

    fn insert(&mut self, name: &PChannel, insert: InsertRequest) {
        let what = format!("insert into {}", insert.collection_name);
        let base = insert.base.as_ref();
        let id = base.map_or(0, |b| b.msg_id);
        let first = insert.timestamps.iter().min().copied().unwrap_or_default();
        if !self.admit(name, id, Tso(first), &what)
            || !self.shard(name, insert.collection_id, &insert.shard_name, &what)
        {
            return;
        }
        self.written.inserts += 1;
        self.written.rows += insert.timestamps.len() as u64;
        let Some(content) = self
            .collections
            .get_mut(&CollectionId(insert.collection_id))
        else {
            return;
        };
        let partition = PartitionId(insert.partition_id);
        if !content.partition_ids.contains(&partition) {
            self.violations
                .push(format!("{name}: {what}: unknown partition {partition}"));
            return;
        }
        let Some(columns) = Columns::of(&insert, &content.source) else {
            self.violations.push(format!(
                "{name}: {what}: columns without keys, or of unequal length"
            ));
            return;
        };
        let vchannel = VChannel::new(insert.shard_name);
        for (row, ts) in insert.timestamps.iter().enumerate() {
            content.copies.push(Copy {
                key: columns.keys[row].clone(),
                version: columns.versions.get(row).copied().unwrap_or_default(),
                partition,
                vchannel: vchannel.clone(),
                ts: Tso(*ts),
            });
        }
    }

    fn delete(&mut self, name: &PChannel, delete: DeleteRequest) {
        let what = format!("delete from {}", delete.collection_name);
        let base = delete.base.as_ref();
        let id = base.map_or(0, |b| b.msg_id);
        let first = delete.timestamps.iter().min().copied().unwrap_or_default();
        if !self.admit(name, id, Tso(first), &what)
            || !self.shard(name, delete.collection_id, &delete.shard_name, &what)
        {
            return;
        }
        self.written.deletes += 1;
        let Some(content) = self
            .collections
            .get_mut(&CollectionId(delete.collection_id))
        else {
            return;
        };
        let partition = (delete.partition_id >= 0).then_some(PartitionId(delete.partition_id));
        if partition.is_some_and(|p| !content.partition_ids.contains(&p)) {
            self.violations
                .push(format!("{name}: {what}: unknown partition {partition:?}"));
            return;
        }
        let keys: Vec<Key> = match delete.primary_keys.and_then(|ids| ids.id_field) {
            Some(IdField::IntId(ids)) => ids.data.into_iter().map(Key::Int).collect(),
            Some(IdField::StrId(ids)) => ids.data.into_iter().map(Key::Text).collect(),
            _ => delete
                .int64_primary_keys
                .into_iter()
                .map(Key::Int)
                .collect(),
        };
        if keys.len() != delete.timestamps.len() {
            self.violations
                .push(format!("{name}: {what}: keys and times of unequal number"));
        }
        let vchannel = VChannel::new(delete.shard_name);
        for (key, ts) in keys.into_iter().zip(delete.timestamps) {
            let number = content.deletes;
            content.deletes += 1;
            content.kills.entry(key).or_default().push(Kill {
                number,
                partition,
                vchannel: vchannel.clone(),
                ts: Tso(ts),
            });
        }
    }

    fn drop(
        &mut self,
        name: &PChannel,
        id: i64,
        ts: Tso,
        collection: i64,
        partition: Option<PartitionId>,
    ) {
        let what = format!("drop of collection {collection}, partition {partition:?}");
        if !self.admit(name, id, ts, &what) {
            return;
        }
        self.written.drops += 1;
        let known = self.collections.get_mut(&CollectionId(collection));
        let here = |c: &Content| -> Vec<VChannel> {
            c.vchannels
                .iter()
                .filter(|v| v.pchannel() == *name)
                .cloned()
                .collect()
        };
        match known {
            Some(content)
                if !here(content).is_empty()
                    && partition.is_none_or(|p| content.partition_ids.contains(&p)) =>
            {
                for vchannel in here(content) {
                    content.drops.push((vchannel, partition));
                }
            }
            _ => self.violation(format!("{name}: {what}: not one that lives here")),
        }
    }

    /// The last tick of each channel.
    pub(super) fn ticks(&self) -> HashMap<PChannel, Tso> {
        let ticks = self.channels.iter();
        ticks
            .map(|(name, channel)| (name.clone(), channel.last_tick))
            .collect()
    }

    /// All that was written for one key, for the message of a test that fails.
    pub(super) fn history(&mut self, database: &str, name: &str, key: &Key) -> Vec<String> {
        let Some(content) = self.find(database, name) else {
            return Vec::new();
        };
        let copies = content.copies.iter().filter(|copy| copy.key == *key);
        let mut lines: Vec<_> = copies
            .map(|c| (c.ts, format!("insert at {}, version {}", c.ts, c.version)))
            .collect();
        let kills = content.kills.get(key).into_iter().flatten();
        lines.extend(kills.map(|k| (k.ts, format!("delete at {}", k.ts))));
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// The rows `count(*)` counts: every copy that a tick has shown and no shown delete has killed, in order of
    /// partition, key and version.
    pub(super) fn rows(&mut self, database: &str, name: &str) -> Option<Vec<Row>> {
        let id = *self.databases.get(database)?.get(name)?;
        let ticks = self.ticks();
        let content = self.collections.get(&id)?;
        let shown = |vchannel: &VChannel, ts: Tso| {
            ticks
                .get(&vchannel.pchannel())
                .is_some_and(|tick| ts <= *tick)
        };
        let names: HashMap<PartitionId, &String> = content
            .partitions
            .iter()
            .map(|(name, p)| (p.id, name))
            .collect();
        let dropped = |copy: &Copy| {
            content.drops.iter().any(|(vchannel, partition)| {
                *vchannel == copy.vchannel && partition.is_none_or(|p| p == copy.partition)
            })
        };
        let killed = |copy: &Copy| {
            content.kills.get(&copy.key).is_some_and(|kills| {
                kills.iter().any(|kill| {
                    kill.vchannel == copy.vchannel
                        && kill.ts > copy.ts
                        && kill.partition.is_none_or(|p| p == copy.partition)
                        && shown(&kill.vchannel, kill.ts)
                })
            })
        };
        let mut rows: Vec<Row> = content
            .copies
            .iter()
            .filter(|copy| shown(&copy.vchannel, copy.ts) && !dropped(copy) && !killed(copy))
            .filter_map(|copy| {
                Some(Row {
                    partition: (*names.get(&copy.partition)?).clone(),
                    key: copy.key.clone(),
                    version: copy.version,
                })
            })
            .collect();
        rows.sort();
        Some(rows)
    }
}

struct Columns {
    keys: Vec<Key>,
    /// Of the first other Int64 column, if there is one.
    versions: Vec<i64>,
}

impl Columns {
    fn of(insert: &InsertRequest, source: &Collection) -> Option<Self> {
        let rows = insert.timestamps.len();
        let pk = source.primary_key()?;
        let mut keys = None;
        let mut versions = Vec::new();
        for column in &insert.fields_data {
            let Some(Field::Scalars(scalars)) = &column.field else {
                continue;
            };
            match &scalars.data {
                Some(Data::LongData(longs)) if column.field_id == pk.0 => {
                    keys = Some(longs.data.iter().copied().map(Key::Int).collect());
                }
                Some(Data::StringData(texts)) if column.field_id == pk.0 => {
                    keys = Some(texts.data.iter().cloned().map(Key::Text).collect());
                }
                Some(Data::LongData(longs)) if versions.is_empty() => {
                    versions.clone_from(&longs.data);
                }
                _ => {}
            }
        }
        let keys: Vec<Key> = keys?;
        let even = keys.len() == rows && (versions.is_empty() || versions.len() == rows);
        even.then_some(Self { keys, versions })
    }
}
