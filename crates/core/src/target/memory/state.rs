//! What a standby holds, and what becomes of a message that is written to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use milvus::proto::common::MsgBase;
use milvus::proto::msg::{
    DeleteRequest, DropCollectionRequest, DropPartitionRequest, InsertRequest, TimeTickMsg,
};
use milvus::proto::schema::i_ds::IdField;
use prost::Message;

use super::channel::{Channel, Rows};
use super::content::{Content, Copy, Kill, Numbers, first_partitions};
use super::message::{Columns, Entry, Head};
use super::properties::Lack;
use super::rules::Rule;
use super::{Key, Row, Shown, ShownKey, Written};
use crate::catalog::Collection;
use crate::decode::msg_type;
use crate::ids::{CollectionId, PChannel, PartitionId, VChannel};
use crate::tso::Tso;

/// Why a call is refused: code and text as 2.3.5 has them.
pub(super) type Refusal = (i32, String);

/// The proxy takes no request that is larger (64 MiB).
const MAX_REQUEST: usize = 64 << 20;

/// What becomes of a message: it is dropped at once, or taken.
enum Admitted {
    No,
    Yes {
        /// A recovery leaves it out.
        perishes: bool,
    },
}

/// Told of every tick that shows something.
pub(super) type Watcher = Box<dyn FnMut(Shown) + Send>;

#[derive(Default)]
pub(super) struct State {
    /// A Milvus of its own.
    pub(super) plain: bool,
    pub(super) databases: BTreeMap<String, BTreeMap<String, CollectionId>>,
    pub(super) database_properties: BTreeMap<String, Vec<(String, String)>>,
    /// By call.
    pub(super) lacks: BTreeMap<&'static str, Lack>,
    pub(super) asks_for_release: bool,
    /// Calls that were carried out.
    pub(super) called: BTreeSet<&'static str>,
    /// By database and alias.
    pub(super) aliases: BTreeMap<(String, String), CollectionId>,
    pub(super) collections: BTreeMap<CollectionId, Content>,
    channels: BTreeMap<PChannel, Channel>,
    next_id: i64,
    pub(super) clock: Tso,
    /// The rule that is not kept, if there is one.
    pub(super) broken: Option<Rule>,
    /// Restarts so far.
    pub(super) incarnation: u64,
    /// It leaves a node out of its topology.
    pub(super) node_is_silent: bool,
    pub(super) violations: Vec<String>,
    pub(super) refused: Vec<(String, String)>,
    pub(super) written: Written,
    next_channel: usize,
    pub(super) watcher: Option<Watcher>,
    trace: DefaultHasher,
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

    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
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
        if !self.keeps(Rule::NameAgainIsNew)
            && let Some((id, gone)) = self
                .collections
                .iter_mut()
                .find(|(_, c)| c.dropped && c.database == database && c.source.name == source.name)
        {
            gone.dropped = false;
            let names = self.databases.entry(database.to_owned()).or_default();
            names.insert(source.name.clone(), *id);
            return;
        }
        let id = CollectionId(self.id());
        let vchannels = self.shards(id, source.shards.len());
        let mut content = Content::new(database, source, ts, vchannels);
        content.broken = self.broken;
        if self.plain || !self.keeps(Rule::LoadNeedsTicks) {
            content.unticked.clear();
        }
        let mut names = first_partitions(source);
        if !self.keeps(Rule::KeyedPartitions) {
            names = vec!["_default".to_owned()];
        }
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

    /// Takes something that was done to it into the trace.
    pub(super) fn note(&mut self, what: impl Hash) {
        (self.clock, what).hash(&mut self.trace);
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// One ReplicateMessage: all entries are looked at before the first is written ([`Rule::InvalidWritesNothing`]). Of
    /// the entries the first `most` are written.
    pub(super) fn replicate(
        &mut self,
        channel: &PChannel,
        msgs: &[Bytes],
        end: Tso,
        most: usize,
    ) -> Result<(), Refusal> {
        self.note((channel, msgs, end, most));
        if tracing::enabled!(target: "standby", tracing::Level::TRACE) {
            let read = msgs.iter().map(|m| TimeTickMsg::decode(m.clone()));
            let read = read.map(|head| head.unwrap_or_default().base.unwrap_or_default());
            let list: Vec<_> = read.map(|b| (b.msg_type, b.msg_id, b.timestamp)).collect();
            let clock = self.clock.millis();
            tracing::trace!(target: "standby", clock, %channel, most, ?list);
        }
        self.written.calls += 1;
        if channel.as_str().is_empty() && self.keeps(Rule::EmptyRefused) {
            return Err((
                1100,
                "invalid channel name for the replicate message request".to_owned(),
            ));
        }
        let size: usize = msgs.iter().map(Bytes::len).sum();
        if size > MAX_REQUEST && self.keeps(Rule::TooLargeRefused) {
            return Err((1102, "received message larger than max".to_owned()));
        }
        let mut entries = Vec::with_capacity(msgs.len());
        for msg in msgs {
            match self.read(msg, end) {
                Ok(entry) => entries.push(entry),
                Err(refusal) => {
                    if !self.keeps(Rule::InvalidWritesNothing) {
                        entries.into_iter().for_each(|e| self.write(channel, e));
                    }
                    return Err(refusal);
                }
            }
        }
        if entries.is_empty() && self.keeps(Rule::EmptyRefused) {
            return Err((65535, "empty msgs".to_owned()));
        }
        if !self.channels.contains_key(channel) {
            if !self.keeps(Rule::UnknownPlaceLost) {
                return Err((65535, "no such channel".to_owned()));
            }
            self.violation(format!("{channel}: no such channel"));
            return Ok(());
        }
        for entry in entries.into_iter().take(most) {
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
        if known && !ahead || !self.keeps(Rule::SegmentByClock) {
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

    /// What the target would suffer from, by this rule.
    fn broken(&mut self, rule: Rule, what: &str) {
        self.violation(format!("{what} [{rule:?}]"));
    }

    /// Whether the message counts: not one that its readers have seen since the last tick.
    fn admit(&mut self, name: &PChannel, head: &mut Head, what: &str) -> Admitted {
        let drops = self.keeps(Rule::RepeatDropped);
        let Some(channel) = self.channels.get_mut(name) else {
            return Admitted::No;
        };
        let seen = channel.ids.insert(head.id, head.last);
        let last_tick = channel.last_tick;
        let mut perishes = false;
        match seen {
            // One tick shows both ([`Rule::RepeatDropped`]).
            Some(at) if at == head.last && at > last_tick && !head.is_drop => {
                self.written.repeats += 1;
                if drops {
                    return Admitted::No;
                }
            }
            Some(at) if at == head.last && at > last_tick => {}
            Some(_) => {
                perishes |= self.keeps(Rule::RepeatLostOnRecovery);
                let id = head.id;
                let why = format!("{name}: {what} repeats message id {id} of another time");
                self.broken(Rule::RepeatLostOnRecovery, &why);
            }
            None => {}
        }
        if head.first <= last_tick {
            let why = format!(
                "{name}: stale {what}: its time {} is not above the tick {} ({} ms)",
                head.first.0,
                last_tick.0,
                head.first.behind(last_tick).as_millis()
            );
            self.broken(Rule::StaleTaken, &why);
            if !self.keeps(Rule::StaleTaken) {
                return Admitted::No;
            }
            head.last = head.last.max(last_tick.next());
        }
        Admitted::Yes { perishes }
    }

    /// The shard a message is for, if it is one of that collection's on this channel.
    fn shard(&mut self, name: &PChannel, collection: i64, shard: &str, what: &str) -> bool {
        let vchannel = VChannel::new(shard);
        let known = self
            .collections
            .get(&CollectionId(collection))
            .is_some_and(|c| c.vchannels.contains(&vchannel));
        let dies = self.keeps(Rule::UnknownShardKills);
        if (!known || vchannel.pchannel() != *name) && dies {
            let why = format!(
                "{name}: {what} for shard {shard:?} of collection {collection}, which is not one of its shards here"
            );
            self.broken(Rule::UnknownShardKills, &why);
        }
        known
    }

    fn write(&mut self, name: &PChannel, entry: Entry) {
        match entry {
            Entry::Insert(insert) => self.insert(name, insert),
            Entry::Delete(delete) => self.delete(name, delete),
            Entry::DropCollection(drop) => {
                let base = drop.base.unwrap_or_default();
                self.drop(name, &base, drop.collection_id, None);
            }
            Entry::DropPartition(drop) => {
                let base = drop.base.unwrap_or_default();
                let partition = Some(PartitionId(drop.partition_id));
                self.drop(name, &base, drop.collection_id, partition);
            }
            Entry::Tick(tick) => {
                let base = tick.base.unwrap_or_default();
                self.written.ticks += 1;
                let counts = !self.keeps(Rule::StaleTickIgnored);
                let Some(channel) = self.channels.get_mut(name) else {
                    return;
                };
                if base.timestamp > channel.last_tick.0 || counts {
                    channel.last_tick = Tso(base.timestamp);
                    self.show(name);
                }
            }
            Entry::Other => {}
        }
    }

    /// [`Rule::TickShows`].
    fn show(&mut self, name: &PChannel) {
        for content in self.collections.values_mut() {
            content.unticked.remove(name);
        }
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        let tick = channel.last_tick;
        let (mut shown, again) = channel.shown();
        if !self.keeps(Rule::RepeatDropped) {
            shown.extend(again);
        } else {
            for rows in again {
                self.written.repeats += 1;
                if let Some(content) = self.collections.get_mut(&rows.collection) {
                    content.forget(&rows.numbers);
                }
            }
        }
        let mut keys: BTreeMap<_, Vec<Tso>> = BTreeMap::new();
        for rows in shown {
            for (key, ts) in rows.keys {
                let key = (rows.collection, rows.vchannel.clone(), key);
                keys.entry(key).or_default().push(ts);
            }
        }
        let Some(mut watcher) = self.watcher.take() else {
            return;
        };
        let mut list = Vec::new();
        for ((collection, vchannel, key), times) in keys {
            let Some(content) = self.collections.get(&collection) else {
                continue;
            };
            let Some(shard) = content.vchannels.iter().position(|v| *v == vchannel) else {
                continue;
            };
            let last = |v: &VChannel| if *v == vchannel { tick } else { Tso::ZERO };
            let rows = content.seen(&key, &last).map(|(row, _)| row).collect();
            list.push(ShownKey {
                source: content.source.id,
                target: collection,
                shard,
                times,
                rows,
                key,
            });
        }
        let mut shards = Vec::new();
        for (id, content) in self.collections.iter().filter(|(_, c)| !c.dropped) {
            for (shard, on) in content.pchannels.iter().enumerate() {
                if on == name {
                    shards.push((content.source.id, *id, shard));
                }
            }
        }
        watcher(Shown {
            shards,
            channel: name.clone(),
            tick,
            keys: list,
        });
        self.watcher = Some(watcher);
    }

    fn hide(&mut self, name: &PChannel, head: &Head, perishes: bool, mut rows: Rows) {
        if self.watcher.is_none() {
            rows.keys.clear();
        }
        if let Some(channel) = self.channels.get_mut(name) {
            channel.hide(head, perishes, Some(rows));
        }
    }

    /// What a recovery leaves out, by collection.
    pub(super) fn perishable(&mut self) -> Vec<(CollectionId, Numbers)> {
        let all = self.channels.values_mut();
        all.flat_map(Channel::perishable).collect()
    }

    fn insert(&mut self, name: &PChannel, insert: InsertRequest) {
        let what = format!("insert into {}", insert.collection_name);
        let mut head = Head::of_rows(insert.base.as_ref(), &insert.timestamps);
        let Admitted::Yes { perishes } = self.admit(name, &mut head, &what) else {
            return;
        };
        if !self.shard(name, insert.collection_id, &insert.shard_name, &what) {
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
        let from = content.inserts;
        for (row, ts) in insert.timestamps.iter().enumerate() {
            let key = columns.keys[row].clone();
            let number = content.inserts;
            content.inserts += 1;
            content.copies.entry(key).or_default().push(Copy {
                number,
                version: columns.versions.get(row).copied().unwrap_or_default(),
                partition,
                vchannel: vchannel.clone(),
                ts: Tso(*ts),
                end: head.last,
            });
        }
        let times = insert.timestamps.into_iter().map(Tso);
        let rows = Rows {
            collection: CollectionId(insert.collection_id),
            vchannel,
            numbers: Numbers {
                copies: from..content.inserts,
                kills: 0..0,
            },
            keys: columns.keys.into_iter().zip(times).collect(),
        };
        self.hide(name, &head, perishes, rows);
    }

    fn delete(&mut self, name: &PChannel, delete: DeleteRequest) {
        let what = format!("delete from {}", delete.collection_name);
        let mut head = Head::of_rows(delete.base.as_ref(), &delete.timestamps);
        let Admitted::Yes { perishes } = self.admit(name, &mut head, &what) else {
            return;
        };
        if !self.shard(name, delete.collection_id, &delete.shard_name, &what) {
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
        let from = content.deletes;
        for (key, ts) in keys.iter().zip(&delete.timestamps) {
            let number = content.deletes;
            content.deletes += 1;
            content.kills.entry(key.clone()).or_default().push(Kill {
                number,
                partition,
                vchannel: vchannel.clone(),
                ts: Tso(*ts),
                end: head.last,
            });
        }
        let times = delete.timestamps.into_iter().map(Tso);
        let rows = Rows {
            collection: CollectionId(delete.collection_id),
            vchannel,
            numbers: Numbers {
                copies: 0..0,
                kills: from..content.deletes,
            },
            keys: keys.into_iter().zip(times).collect(),
        };
        self.hide(name, &head, perishes, rows);
    }

    fn drop(
        &mut self,
        name: &PChannel,
        base: &MsgBase,
        collection: i64,
        partition: Option<PartitionId>,
    ) {
        let what = format!("drop of collection {collection}, partition {partition:?}");
        let ts = Tso(base.timestamp);
        let mut head = Head {
            id: base.msg_id,
            first: ts,
            last: ts,
            is_drop: true,
        };
        if let Admitted::No = self.admit(name, &mut head, &what) {
            return;
        }
        if let Some(channel) = self.channels.get_mut(name) {
            channel.hide(&head, false, None);
        }
        let hides = !self.keeps(Rule::DropMessageHidesNothing);
        self.written.drops += 1;
        let known = self.collections.get_mut(&CollectionId(collection));
        match known {
            Some(content)
                if content.pchannels.contains(name)
                    && partition.is_none_or(|p| content.partition_ids.contains(&p)) =>
            {
                if hides {
                    content.copies.clear();
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
        self.find(database, name)
            .map(|content| content.history(key))
            .unwrap_or_default()
    }

    /// The rows `count(*)` counts: every copy that a tick has shown and no shown delete has killed, in order of
    /// partition, key and version.
    pub(super) fn rows(&mut self, database: &str, name: &str) -> Option<Vec<Row>> {
        let id = *self.databases.get(database)?.get(name)?;
        let shown = self.keeps(Rule::TickShows);
        let tick = |c: &PChannel| match shown {
            true => self.last_tick(c),
            false => Tso::MAX,
        };
        let mut rows = self.collections.get(&id)?.rows(tick);
        if !self.keeps(Rule::CopiesCount) {
            rows.dedup_by(|a, b| a.key == b.key);
        }
        Some(rows)
    }
}
