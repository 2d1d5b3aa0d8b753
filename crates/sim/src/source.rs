//! A source Milvus 2.3.5, as far as its queue and its metadata go, and the truth about what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cdc_core::catalog::memory::MemoryCatalog;
use cdc_core::catalog::{
    Alias, Collection, Database, Index, LoadState, ObjectState, Partition, Shard,
};
use cdc_core::ids::{CollectionId, DbId, FieldId, IndexId, PChannel, PartitionId, VChannel};
use cdc_core::position::Position;
use cdc_core::route::hash::Value;
use cdc_core::source::memory::MemoryLog;
use cdc_core::target::memory::{Key, Row};
use cdc_core::tso::Tso;
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::messages;
use crate::retries::Retries;

/// Messages that have their timestamp and are not in the queue yet: of one request to one shard, in their order.
struct Request {
    channel: PChannel,
    ts: Tso,
    messages: Vec<Bytes>,
    /// A part of it is in the queue.
    has_begun: bool,
}

impl Request {
    fn new(channel: PChannel, ts: Tso, messages: Vec<Bytes>) -> Self {
        Self {
            channel,
            ts,
            messages,
            has_begun: false,
        }
    }
}

pub struct Live {
    pub catalog: Collection,
    /// Key to version and partition.
    pub rows: BTreeMap<i64, (i64, PartitionId)>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub inserts: u64,
    pub deletes: u64,
}

/// All that was ever done to the rows of one collection.
#[derive(Default)]
pub struct History {
    /// By key: when it became what.
    keys: BTreeMap<i64, Vec<(Tso, Option<i64>)>>,
    /// Which keys of which shard changed when, oldest first.
    changes: Vec<(Tso, usize, i64)>,
    times: BTreeSet<Tso>,
}

impl History {
    fn put(&mut self, ts: Tso, shard: usize, key: i64, version: Option<i64>) {
        self.keys.entry(key).or_default().push((ts, version));
        self.changes.push((ts, shard, key));
        self.times.insert(ts);
    }

    /// The version a key has at `ts`.
    pub fn at(&self, key: i64, ts: Tso) -> Option<i64> {
        let states = self.keys.get(&key)?;
        states.iter().rev().find(|(at, _)| *at <= ts)?.1
    }

    /// Keys and versions there were at `ts`.
    pub fn rows(&self, ts: Tso) -> impl Iterator<Item = (i64, i64)> {
        let keys = self.keys.keys();
        keys.filter_map(move |key| Some((*key, self.at(*key, ts)?)))
    }

    /// What changed on a shard in (`from`, `to`].
    pub fn changed(&self, shard: usize, from: Tso, to: Tso) -> impl Iterator<Item = i64> {
        let first = self.changes.partition_point(|(ts, ..)| *ts <= from);
        let changes = self.changes[first..].iter();
        let until = changes.take_while(move |(ts, ..)| *ts <= to);
        until
            .filter(move |(_, s, _)| *s == shard)
            .map(|(_, _, key)| *key)
    }

    /// Rows that were written.
    pub fn written(&self) -> usize {
        let all = self.keys.values().flatten();
        all.filter(|(_, version)| version.is_some()).count()
    }

    /// Whether something was written at this very time.
    pub fn has(&self, ts: Tso) -> bool {
        self.times.contains(&ts)
    }
}

pub struct Source {
    pub history: BTreeMap<CollectionId, History>,
    /// By version: the partition its rows are in.
    pub places: BTreeMap<i64, PartitionId>,
    /// Dropped ones.
    pub gone: BTreeSet<PartitionId>,
    pub databases: BTreeMap<DbId, String>,
    /// Entries of dropped collections that are still there.
    tombstones: Vec<CollectionId>,
    /// Nobody who watches sees anything before this step.
    blind: u64,
    /// Channels to which nothing is written before this step.
    slow: BTreeMap<PChannel, u64>,
    pub log: MemoryLog,
    pub catalog: Arc<MemoryCatalog>,
    pub live: BTreeMap<CollectionId, Live>,
    pub sent: Sent,
    pub rng: StdRng,
    clock: Tso,
    channels: Vec<PChannel>,
    next_channel: usize,
    /// Channels a collection has lived on; those without one get no ticks.
    in_use: BTreeMap<PChannel, usize>,
    outbox: Vec<Request>,
    /// The last message of each request waits: of an upsert its delete, and no tick passes it.
    pub holds_last: bool,
    next_id: i64,
    next_key: i64,
    next_version: i64,
    next_msg: i64,
    /// Entries the watch shows a little later than a linearizable read: at this step.
    unseen: Vec<(u64, CollectionId)>,
    steps: u64,
    pub retries: Retries,
    /// Keys are in the shards in which a real proxy puts them: for those who read its rows. Without, by their remainder,
    /// as the seeds that failed once have it.
    pub hashes: bool,
}

impl Source {
    /// `retries`: the share of messages that come twice.
    pub fn new(channels: usize, epoch: Tso, seed: u64, retries: f64) -> Self {
        let source = Self {
            history: BTreeMap::new(),
            places: BTreeMap::new(),
            gone: BTreeSet::new(),
            databases: [(DbId(1), "default".to_owned())].into(),
            tombstones: Vec::new(),
            blind: 0,
            slow: BTreeMap::new(),
            log: MemoryLog::new(),
            catalog: Arc::new(MemoryCatalog::new()),
            live: BTreeMap::new(),
            sent: Sent::default(),
            rng: StdRng::seed_from_u64(seed),
            clock: epoch,
            channels: (0..channels)
                .map(|i| PChannel::new(format!("src-dml_{i}")))
                .collect(),
            next_channel: 0,
            in_use: BTreeMap::new(),
            outbox: Vec::new(),
            holds_last: false,
            next_id: 1000,
            next_key: 0,
            next_version: 0,
            next_msg: 0,
            unseen: Vec::new(),
            steps: 0,
            hashes: false,
            retries: Retries::new(retries, seed),
        };
        for channel in &source.channels {
            source.log.create_channel(channel);
        }
        source.catalog.set_tso(epoch);
        source
    }

    pub fn channel(&self, i: usize) -> PChannel {
        self.channels[i % self.channels.len()].clone()
    }

    fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn msg_id(&mut self) -> i64 {
        self.next_msg += 1;
        self.next_msg
    }

    pub fn ts(&mut self) -> Tso {
        self.clock = self.clock.next();
        self.catalog.set_tso(self.clock);
        self.clock
    }

    /// The last time it gave out, or later.
    pub fn now(&self) -> Tso {
        self.clock
    }

    /// What a client means by a name.
    pub fn named(&self, database: &str, name: &str) -> Option<CollectionId> {
        let (db, _) = self.databases.iter().find(|(_, n)| *n == database)?;
        let is = |l: &&Live| l.catalog.db == *db && l.catalog.name == name;
        let found = self.live.values().find(is).map(|l| l.catalog.id);
        let alias = || {
            let view = self.catalog.view();
            let alias = view.aliases.get(&(*db, name.to_owned()))?;
            self.live
                .contains_key(&alias.collection)
                .then_some(alias.collection)
        };
        found.or_else(alias)
    }

    /// Moves the source's clock on.
    pub fn advance(&mut self, ms: u64) {
        self.clock = Tso::from_millis(self.clock.millis() + ms);
        self.catalog.set_tso(self.clock);
    }

    pub fn find(&self, name: &str) -> CollectionId {
        let found = self.live.values().find(|l| l.catalog.name == name);
        found.unwrap().catalog.id
    }

    /// Its message first, on every shard's channel, then its entry with their positions.
    pub fn create(&mut self, name: &str, shards: usize) -> CollectionId {
        self.create_in(DbId(1), name, shards)
    }

    pub fn create_in(&mut self, db: DbId, name: &str, shards: usize) -> CollectionId {
        let id = CollectionId(self.id());
        let partition = PartitionId(self.id());
        let ts = self.ts();
        let mut start_positions = std::collections::HashMap::new();
        let mut list = Vec::new();
        for shard in 0..shards {
            let pchannel = self.channels[self.next_channel % self.channels.len()].clone();
            self.next_channel += 1;
            let vchannel = VChannel::new(format!("{pchannel}_{id}v{shard}"));
            *self.in_use.entry(pchannel.clone()).or_default() += 1;
            let message = messages::create(id, name, ts, self.msg_id());
            let position = self.log.append(&pchannel, message);
            start_positions.insert(pchannel.clone(), position.to_bytes());
            list.push(Shard { vchannel, pchannel });
        }
        let default = Partition {
            id: partition,
            name: "_default".to_owned(),
            state: ObjectState::Created,
            create_ts: ts,
        };
        let collection = Collection {
            id,
            db,
            name: name.to_owned(),
            state: ObjectState::Created,
            schema: schema(name),
            create_ts: ts,
            shards: list,
            start_positions,
            consistency_level: 2,
            properties: Vec::new(),
            partitions: [(partition, default)].into(),
            indexes: BTreeMap::new(),
            load: LoadState::Released,
        };
        self.publish(collection.clone());
        let live = Live {
            catalog: collection,
            rows: BTreeMap::new(),
        };
        self.live.insert(id, live);
        id
    }

    /// For linearizable reads at once, for the watch perhaps a little later.
    fn publish(&mut self, collection: Collection) {
        let id = collection.id;
        if self.blind <= self.steps && self.rng.random_bool(0.5) {
            self.catalog.put_collection(collection);
        } else {
            self.catalog.put_collection_unseen(collection);
            let at = self.steps + self.rng.random_range(1..6);
            self.unseen.push((at, id));
        }
    }

    /// For linearizable reads and for the watch, if that is not blind.
    pub(crate) fn publish_now(&mut self, collection: Collection) {
        let id = collection.id;
        self.catalog.put_collection_unseen(collection);
        if self.blind <= self.steps {
            self.catalog.show_collection(id);
        } else {
            self.unseen.push((self.blind, id));
        }
    }

    /// The watch breaks, and for `ms` shows nothing; then all at once, without what is gone by then: as after a
    /// compaction.
    pub fn go_blind(&mut self, ms: u64, step: u64) {
        self.blind = self.blind.max(self.steps + ms / step);
    }

    /// Nothing is written to a channel for `ms`.
    pub fn slow_down(&mut self, channel: &PChannel, ms: u64, step: u64) {
        self.slow.insert(channel.clone(), self.steps + ms / step);
    }

    fn is_slow(&self, channel: &PChannel) -> bool {
        self.slow.get(channel).is_some_and(|at| *at > self.steps)
    }

    /// The entries of dropped collections go for good, those of the newest `spare` not yet.
    pub fn collect_garbage(&mut self, spare: usize) {
        let n = self.tombstones.len().saturating_sub(spare);
        for id in self.tombstones.drain(..n) {
            self.catalog.remove_collection_unseen(id);
            if self.blind <= self.steps {
                self.catalog.show_collection(id);
            } else {
                self.unseen.push((self.blind, id));
            }
        }
    }

    pub fn create_database(&mut self, name: &str) -> DbId {
        let id = DbId(self.id());
        self.databases.insert(id, name.to_owned());
        self.catalog.put_database(Database {
            id,
            name: name.to_owned(),
            properties: Vec::new(),
        });
        id
    }

    /// `false` if it is not empty, or the one that stays.
    pub fn drop_database(&mut self, id: DbId) -> bool {
        let used = self.live.values().any(|l| l.catalog.db == id);
        if used || id == DbId(1) || self.databases.remove(&id).is_none() {
            return false;
        }
        self.catalog.remove_database(id);
        true
    }

    pub fn database_of(&self, id: CollectionId) -> String {
        let db = self.live[&id].catalog.db;
        self.databases.get(&db).cloned().unwrap_or_default()
    }

    /// Whether a living collection has this name, or an alias.
    pub fn is_taken(&self, db: DbId, name: &str) -> bool {
        let is = |l: &Live| l.catalog.db == db && l.catalog.name == name;
        let aliases = &self.catalog.view().aliases;
        self.live.values().any(is) || aliases.contains_key(&(db, name.to_owned()))
    }

    /// Gives a collection another name, maybe in another database. `false` if a living one has it, or an alias.
    pub fn rename(&mut self, id: CollectionId, db: DbId, name: &str) -> bool {
        let taken = self.is_taken(db, name);
        let view = self.catalog.view();
        let moves = self.live.get(&id).is_some_and(|l| l.catalog.db != db);
        // One that has aliases stays in its database.
        let bound = moves && view.aliases.values().any(|a| a.collection == id);
        if taken || bound || !self.databases.contains_key(&db) {
            return false;
        }
        self.ts();
        let Some(live) = self.live.get_mut(&id) else {
            return false;
        };
        live.catalog.db = db;
        live.catalog.name = name.to_owned();
        live.catalog.schema.name = name.to_owned();
        let entry = live.catalog.clone();
        self.publish_now(entry);
        true
    }

    /// `false` if it is the same one.
    pub fn swap_names(&mut self, one: CollectionId, other: CollectionId) -> bool {
        let named = |id| {
            let collection = &self.live.get(&id)?.catalog;
            Some((collection.db, collection.name.clone()))
        };
        let (Some(first), Some(second)) = (named(one), named(other)) else {
            return false;
        };
        one != other
            && self.rename(one, first.0, "between")
            && self.rename(other, first.0, &first.1)
            && self.rename(one, second.0, &second.1)
    }

    /// Makes an alias of a collection, or lets it stand for that. `false` if a collection has that name.
    pub fn put_alias(&mut self, of: CollectionId, name: &str) -> bool {
        let Some(db) = self.live.get(&of).map(|l| l.catalog.db) else {
            return false;
        };
        let is = |l: &Live| l.catalog.db == db && l.catalog.name == name;
        if self.live.values().any(is) {
            return false;
        }
        self.catalog.put_alias(Alias {
            name: name.to_owned(),
            db,
            collection: of,
        });
        true
    }

    pub fn drop_alias(&mut self, db: DbId, name: &str) {
        self.catalog.remove_alias(db, name);
    }

    /// Aliases of living collections: database, name, and of which.
    pub fn aliases(&self) -> Vec<(String, String, CollectionId)> {
        let view = self.catalog.view();
        let all = view.aliases.values();
        let of_living = all.filter(|a| self.live.contains_key(&a.collection));
        let database = |db: DbId| self.databases.get(&db).cloned().unwrap_or_default();
        let shown = of_living.map(|a| (database(a.db), a.name.clone(), a.collection));
        shown.collect()
    }

    /// Makes the index of a collection, or drops it if it is there and the collection is not loaded.
    pub fn toggle_index(&mut self, id: CollectionId) {
        let index = IndexId(self.id());
        let create_ts = self.ts();
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        let collection = &mut live.catalog;
        if collection.indexes.is_empty() {
            let entry = Index {
                id: index,
                field: FieldId(101),
                name: "of_version".to_owned(),
                params: Vec::new(),
                create_ts,
            };
            collection.indexes.insert(index, entry);
        } else if collection.load == LoadState::Released {
            collection.indexes.clear();
        }
        let collection = collection.clone();
        self.publish(collection);
    }

    /// Loads a collection that has an index, or releases it.
    pub fn toggle_load(&mut self, id: CollectionId) {
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        let collection = &mut live.catalog;
        collection.load = match &collection.load {
            LoadState::Released if !collection.indexes.is_empty() => {
                LoadState::Collection { replicas: 1 }
            }
            _ => LoadState::Released,
        };
        let collection = collection.clone();
        self.publish(collection);
    }

    /// The entry first, then the message on every shard's channel; the ticks that follow are above it.
    pub fn drop_collection(&mut self, id: CollectionId) {
        let Some(live) = self.live.remove(&id) else {
            return;
        };
        let mut entry = live.catalog.clone();
        entry.state = ObjectState::Dropping;
        self.publish_now(entry);
        self.tombstones.push(id);
        self.advance(1);
        let ts = self.ts();
        for shard in &live.catalog.shards {
            let message = messages::drop_collection(id, &live.catalog.name, ts, self.msg_id());
            self.outbox
                .push(Request::new(shard.pchannel.clone(), ts, vec![message]));
        }
        // A tick at or above the drop is guaranteed, then an unused channel has none.
        let shards = live.catalog.shards.iter();
        self.slow
            .retain(|slow, _| shards.clone().all(|s| s.pchannel != *slow));
        self.flush();
        self.tick();
        for shard in &live.catalog.shards {
            *self.in_use.entry(shard.pchannel.clone()).or_default() -= 1;
        }
    }

    pub fn create_partition(&mut self, id: CollectionId, name: &str) -> PartitionId {
        let partition = PartitionId(self.id());
        let create_ts = self.ts();
        let entry = Partition {
            id: partition,
            name: name.to_owned(),
            state: ObjectState::Created,
            create_ts,
        };
        let live = self.live.get_mut(&id).unwrap();
        live.catalog.partitions.insert(partition, entry);
        let catalog = live.catalog.clone();
        self.publish(catalog);
        partition
    }

    pub fn drop_partition(&mut self, id: CollectionId, partition: PartitionId) {
        let live = self.live.get_mut(&id).unwrap();
        let mut dropped = live.catalog.partitions.get(&partition).unwrap().clone();
        dropped.state = ObjectState::Dropping;
        let name = dropped.name.clone();
        live.catalog.partitions.insert(partition, dropped);
        live.rows.retain(|_, (_, p)| *p != partition);
        let catalog = live.catalog.clone();
        self.gone.insert(partition);
        self.publish_now(catalog.clone());
        let ts = self.ts();
        for shard in &catalog.shards {
            let message = messages::drop_partition(id, partition, &name, ts, self.msg_id());
            self.outbox
                .push(Request::new(shard.pchannel.clone(), ts, vec![message]));
        }
    }

    pub fn default_partition(&self, id: CollectionId) -> PartitionId {
        let partitions = &self.live[&id].catalog.partitions;
        let found = partitions.values().find(|p| p.name == "_default");
        found.unwrap().id
    }

    /// One request of new rows with `padding` bytes each.
    pub fn insert(
        &mut self,
        id: CollectionId,
        partition: PartitionId,
        rows: usize,
        padding: usize,
    ) {
        let keys: Vec<i64> = (0..rows as i64).map(|i| self.next_key + i).collect();
        self.next_key += rows as i64;
        self.write(id, partition, &keys, false, padding);
    }

    /// One request that replaces rows, some of which may not be there yet.
    pub fn upsert(&mut self, id: CollectionId, partition: PartitionId, rows: usize) {
        let mut keys = self.some_keys(id, Some(partition), rows);
        if keys.is_empty() || self.rng.random_bool(0.3) {
            keys.push(self.next_key);
            self.next_key += 1;
        }
        self.write(id, partition, &keys, true, 0);
    }

    fn some_keys(
        &mut self,
        id: CollectionId,
        partition: Option<PartitionId>,
        n: usize,
    ) -> Vec<i64> {
        let rows = &self.live[&id].rows;
        let mut keys: Vec<i64> = rows
            .iter()
            .filter(|(_, (_, p))| partition.is_none_or(|wanted| wanted == *p))
            .map(|(key, _)| *key)
            .collect();
        keys.shuffle(&mut self.rng);
        keys.truncate(n);
        keys
    }

    /// One request with rows of these keys; its time.
    pub fn write(
        &mut self,
        id: CollectionId,
        partition: PartitionId,
        keys: &[i64],
        upsert: bool,
        padding: usize,
    ) -> Tso {
        self.next_version += 1;
        let version = self.next_version;
        let ts = self.ts();
        let shards = self.live[&id].catalog.shards.clone();
        for (i, shard) in shards.iter().enumerate() {
            let here: Vec<i64> = self.shard_keys(keys, shards.len(), i);
            if here.is_empty() {
                continue;
            }
            let mut messages = Vec::new();
            let to = messages::To {
                collection: id,
                partition,
                vchannel: &shard.vchannel,
            };
            // Pieces of one request share its timestamp.
            let piece = if padding > 0 { here.len() } else { 7 };
            for here in here.chunks(piece) {
                let base_ts = if upsert { Tso::ZERO } else { ts };
                let msg_id = self.msg_id();
                messages.push(messages::insert(
                    &to, here, version, ts, base_ts, msg_id, padding,
                ));
                self.sent.inserts += 1;
            }
            if upsert {
                messages.push(messages::delete(&to, &here, ts, self.msg_id()));
                self.sent.deletes += 1;
            }
            self.outbox
                .push(Request::new(shard.pchannel.clone(), ts, messages));
        }
        self.places.insert(version, partition);
        let rows = &mut self.live.get_mut(&id).unwrap().rows;
        let history = self.history.entry(id).or_default();
        for key in keys {
            rows.insert(*key, (version, partition));
            let shard = shard_of(*key, shards.len(), self.hashes);
            history.put(ts, shard, *key, Some(version));
        }
        ts
    }

    pub fn delete(&mut self, id: CollectionId, n: usize) {
        let partition = self.default_partition(id);
        let of = self.rng.random_bool(0.5).then_some(partition);
        let mut keys = self.some_keys(id, of, n);
        // Of keys that are not there as well.
        keys.push(-1 - self.rng.random_range(0..100));
        self.delete_keys(id, of, &keys);
    }

    /// One request that deletes these keys in a partition, or in all; its time.
    pub fn delete_keys(&mut self, id: CollectionId, of: Option<PartitionId>, keys: &[i64]) -> Tso {
        let ts = self.ts();
        let shards = self.live[&id].catalog.shards.clone();
        for (i, shard) in shards.iter().enumerate() {
            let here: Vec<i64> = self.shard_keys(keys, shards.len(), i);
            if here.is_empty() {
                continue;
            }
            let to = messages::To {
                collection: id,
                partition: of.unwrap_or(PartitionId(-1)),
                vchannel: &shard.vchannel,
            };
            let message = messages::delete(&to, &here, ts, self.msg_id());
            self.sent.deletes += 1;
            self.outbox
                .push(Request::new(shard.pchannel.clone(), ts, vec![message]));
        }
        let rows = &mut self.live.get_mut(&id).unwrap().rows;
        let history = self.history.entry(id).or_default();
        for key in keys {
            let place = rows.get(key).map(|(_, partition)| *partition);
            if of.is_none() || place.is_none() || of == place {
                let shard = shard_of(*key, shards.len(), self.hashes);
                history.put(ts, shard, *key, None);
                rows.remove(key);
            }
        }
        ts
    }

    /// A message as it is, on a channel.
    pub fn raw(&mut self, channel: &PChannel, payload: Bytes) -> Position {
        self.log.append(channel, payload)
    }

    /// Rows of any kind into any collection.
    pub fn random_write(&mut self, ids: &[CollectionId]) {
        let id = ids[self.rng.random_range(0..ids.len())];
        if !self.live.contains_key(&id) {
            return;
        }
        let partition = self.default_partition(id);
        let rows = self.rng.random_range(1..12);
        match self.rng.random_range(0..10) {
            0..4 => self.insert(id, partition, rows, 0),
            4..8 => self.upsert(id, partition, rows),
            _ => self.delete(id, rows),
        }
    }

    /// Some of what waits goes to the queue, in any order but that of one request; perhaps a tick.
    pub fn step(&mut self, ms: u64) {
        self.steps += 1;
        self.advance(ms);
        let due: Vec<_> = self
            .unseen
            .extract_if(.., |(at, _)| *at <= self.steps && self.blind <= self.steps)
            .collect();
        for (_, id) in due {
            // Its newest state, which may be another by now.
            self.catalog.show_collection(id);
        }
        self.append(0.7);
        if self.rng.random_bool(0.7) {
            self.tick();
        }
    }

    fn append(&mut self, odds: f64) {
        let mut waiting = std::mem::take(&mut self.outbox);
        waiting.shuffle(&mut self.rng);
        for mut request in waiting {
            let odds = if odds < 1.0 && self.is_slow(&request.channel) {
                0.0
            } else {
                odds
            };
            let held = usize::from(self.holds_last);
            while request.messages.len() > held && self.rng.random_bool(odds) {
                let message = request.messages.remove(0);
                request.has_begun = true;
                self.log.append(&request.channel, message.clone());
                self.retries
                    .written(&self.log, &request.channel, request.ts, message);
            }
            if !request.messages.is_empty() {
                self.outbox.push(request);
            }
        }
    }

    /// Everything that waits goes to the queue.
    pub fn flush(&mut self) {
        self.append(1.0);
    }

    /// Whether the queue has a part of a request.
    pub fn is_in_between(&self) -> bool {
        self.outbox.iter().any(|request| request.has_begun)
    }

    /// A tick on every channel in use, below everything that is not in its queue.
    pub fn tick(&mut self) {
        let now = self.clock;
        self.clock = self.clock.next();
        let used: Vec<_> = self
            .in_use
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(c, _)| c.clone())
            .collect();
        for channel in used
            .into_iter()
            .filter(|c| !self.is_slow(c))
            .collect::<Vec<_>>()
        {
            let waiting = self.outbox.iter().filter(|r| r.channel == channel);
            let oldest = waiting.map(|r| r.ts).min();
            let tick = oldest.map_or(now, |ts| Tso(ts.0 - 1));
            self.retries.before(&self.log, &channel, tick);
            let message = messages::tick(tick, self.msg_id());
            self.log.append(&channel, message);
        }
    }

    /// What the target has to hold of a collection.
    /// The keys of shard `shard` of `shards`.
    fn shard_keys(&self, keys: &[i64], shards: usize, shard: usize) -> Vec<i64> {
        let of = |key: &&i64| shard_of(**key, shards, self.hashes) == shard;
        keys.iter().filter(of).copied().collect()
    }

    pub fn expected(&self, id: CollectionId) -> Vec<Row> {
        let live = &self.live[&id];
        let row = |(key, (version, partition)): (&i64, &(i64, PartitionId))| Row {
            partition: live.catalog.partitions[partition].name.clone(),
            key: Key::Int(*key),
            version: *version,
        };
        let mut rows: Vec<Row> = live.rows.iter().map(row).collect();
        rows.sort();
        rows
    }
}

fn shard_of(key: i64, shards: usize, hashes: bool) -> usize {
    match hashes {
        true => Value::Int(key).place(shards),
        false => key.rem_euclid(shards as i64) as usize,
    }
}

fn schema(name: &str) -> CollectionSchema {
    let field = |id: i64, name: &str, data_type: DataType| FieldSchema {
        field_id: id,
        name: name.to_owned(),
        data_type: data_type as i32,
        is_primary_key: id == 100,
        ..Default::default()
    };
    CollectionSchema {
        name: name.to_owned(),
        fields: vec![
            field(0, "RowID", DataType::Int64),
            field(1, "Timestamp", DataType::Int64),
            field(100, "pk", DataType::Int64),
            field(101, "version", DataType::Int64),
            field(102, "payload", DataType::VarChar),
        ],
        ..Default::default()
    }
}
