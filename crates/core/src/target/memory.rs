//! The in-memory twin of a 2.3.5 standby, for tests: what it accepts, what it loses, what it counts, and what must
//! never be done to it.
//!
//! It behaves as tried on the real server: a call with an invalid entry writes nothing; a message id that comes again
//! before the next tick is dropped by the readers; rows are there once a tick at or above them is written; a delete
//! kills the copies that are strictly older, in whatever order the two were written. What the real server accepts and
//! then suffers from (times at or below a tick, unknown shards, ids that come again later) is kept as a *violation*.

mod state;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use super::grpc::user_schema;
use super::{Loaded, Target, TargetCollection, TargetConnector, TargetError, TargetIndex};
use crate::catalog::Collection;
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::task::TargetSpec;
use crate::tso::Tso;
use state::State;

const URI: &str = "memory";

/// A primary key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    Int(i64),
    Text(String),
}

/// One physical copy of a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    pub partition: String,
    pub key: Key,
    /// Value of the first Int64 column that is not the key; 0 if there is none.
    pub version: i64,
}

/// Messages that were written, those dropped by the readers left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    pub calls: u64,
    pub inserts: u64,
    pub rows: u64,
    pub deletes: u64,
    pub drops: u64,
    pub ticks: u64,
    /// Messages dropped because their id came again before a tick.
    pub repeats: u64,
}

/// How often calls go wrong. Probabilities of one call.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Weather {
    /// Carried out, but the answer is lost.
    pub lost: f64,
    /// The answer is lost, and the call is carried out up to `late_by` later.
    pub late: f64,
    pub late_by: Duration,
    /// Does not get out.
    pub unreachable: f64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Well,
    Lost,
    Late(Duration),
    Unreachable,
}

struct Faults {
    weather: Weather,
    lose: usize,
    fail: usize,
    late: usize,
    late_by: Duration,
    rng: StdRng,
    latency: Duration,
}

struct Inner {
    state: Mutex<State>,
    faults: Mutex<Faults>,
    hung: watch::Sender<bool>,
    epoch: Tso,
    since: Instant,
}

/// A standby in memory. Clones share their content.
#[derive(Clone)]
pub struct MemoryTarget {
    inner: Arc<Inner>,
}

impl MemoryTarget {
    /// With `channels` physical channels, its clock starting at `epoch`; `seed` decides latencies and faults.
    pub fn new(channels: usize, epoch: Tso, seed: u64) -> Self {
        let faults = Faults {
            weather: Weather::default(),
            lose: 0,
            fail: 0,
            late: 0,
            late_by: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            latency: Duration::from_millis(4),
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State::new(channels)),
                faults: Mutex::new(faults),
                hung: watch::Sender::new(false),
                epoch,
                since: Instant::now(),
            }),
        }
    }

    /// What was done to it that a real standby would suffer from.
    pub fn violations(&self) -> Vec<String> {
        self.inner.state.lock().violations.clone()
    }

    /// The rows that `count(*)` counts, sorted. `None` if there is no such collection.
    pub fn rows(&self, database: &str, name: &str) -> Option<Vec<Row>> {
        self.inner.state.lock().rows(database, name)
    }

    /// All that was written for one key, in order of time, for the message of a test that fails.
    pub fn history(&self, database: &str, name: &str, key: &Key) -> Vec<String> {
        self.inner.state.lock().history(database, name, key)
    }

    pub fn written(&self) -> Written {
        self.inner.state.lock().written
    }

    /// Database and name of every collection there is.
    pub fn names(&self) -> Vec<(String, String)> {
        let state = self.inner.state.lock();
        let names = |(db, names): (&String, &std::collections::BTreeMap<String, CollectionId>)| {
            names
                .keys()
                .map(|name| (db.clone(), name.clone()))
                .collect::<Vec<_>>()
        };
        state.databases.iter().flat_map(names).collect()
    }

    pub fn last_tick(&self, channel: &PChannel) -> Tso {
        self.inner.state.lock().last_tick(channel)
    }

    /// Faults of all calls from now on, at random.
    pub fn set_weather(&self, weather: Weather) {
        self.inner.faults.lock().weather = weather;
    }

    /// A call takes up to this long to get there, and up to this long to be answered.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.faults.lock().latency = latency;
    }

    /// The next `n` writing calls are carried out, their answers are lost.
    pub fn lose_replies(&self, n: usize) {
        self.inner.faults.lock().lose = n;
    }

    /// The next `n` calls do not get out.
    pub fn fail_next(&self, n: usize) {
        self.inner.faults.lock().fail = n;
    }

    /// The answers of the next `n` ReplicateMessage calls are lost at once; the calls are carried out `by` later.
    pub fn delay_next(&self, n: usize, by: Duration) {
        let mut faults = self.inner.faults.lock();
        (faults.late, faults.late_by) = (n, by);
    }

    /// Calls hang from now on, until [`MemoryTarget::release`] or their deadline.
    pub fn hang(&self) {
        self.inner.hung.send_replace(true);
    }

    pub fn release(&self) {
        self.inner.hung.send_replace(false);
    }

    /// Refuses every insert and delete of this collection with code 1100, until [`MemoryTarget::accept`].
    pub fn refuse(&self, database: &str, name: &str) {
        let what = (database.to_owned(), name.to_owned());
        self.inner.state.lock().refused.push(what);
    }

    pub fn accept(&self, database: &str, name: &str) {
        let mut state = self.inner.state.lock();
        state.refused.retain(|(d, n)| d != database || n != name);
    }
}

impl Inner {
    fn now(&self) -> Tso {
        let mut state = self.state.lock();
        let now = self.epoch.plus(self.since.elapsed());
        state.clock = now.max(state.clock.next());
        state.clock
    }

    fn fate(&self, writes: bool, replicate: bool) -> Fate {
        let mut faults = self.faults.lock();
        if faults.fail > 0 {
            faults.fail -= 1;
            return Fate::Unreachable;
        }
        if writes && faults.lose > 0 {
            faults.lose -= 1;
            return Fate::Lost;
        }
        if replicate && faults.late > 0 {
            faults.late -= 1;
            return Fate::Late(faults.late_by);
        }
        let weather = faults.weather;
        let mut dice: f64 = faults.rng.random();
        for (odds, fate) in [
            (weather.unreachable, Fate::Unreachable),
            (if writes { weather.lost } else { 0.0 }, Fate::Lost),
            (
                if replicate { weather.late } else { 0.0 },
                Fate::Late(weather.late_by),
            ),
        ] {
            if dice < odds {
                return match fate {
                    Fate::Late(by) => Fate::Late(by.mul_f64(faults.rng.random())),
                    other => other,
                };
            }
            dice -= odds;
        }
        Fate::Well
    }

    /// The time on the wire, one way.
    async fn travel(&self) {
        let wait = {
            let mut faults = self.faults.lock();
            let part = faults.rng.random::<f64>();
            faults.latency.mul_f64(part)
        };
        tokio::time::sleep(wait).await;
        let mut hung = self.hung.subscribe();
        // The sender lives in `self`: this cannot fail.
        let _ = hung.wait_for(|hung| !hung).await;
    }
}

#[async_trait]
impl TargetConnector for MemoryTarget {
    async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError> {
        Ok(Arc::new(Session {
            inner: self.inner.clone(),
            deadline: spec.call_timeout,
        }))
    }
}

/// One client's connection.
struct Session {
    inner: Arc<Inner>,
    deadline: Duration,
}

fn unknown(call: &'static str) -> TargetError {
    TargetError::Unknown {
        uri: URI.to_owned(),
        call,
        cause: "made to be lost by a test".to_owned(),
    }
}

fn refused(call: &'static str, (code, reason): (i32, String)) -> TargetError {
    TargetError::Refused {
        uri: URI.to_owned(),
        call,
        code,
        reason,
    }
}

fn not_found(what: &str) -> (i32, String) {
    (100, format!("collection not found[collection={what}]"))
}

impl Session {
    /// A call with its ways there and back. It is carried out at one instant, or not at all.
    async fn call<T>(
        &self,
        call: &'static str,
        writes: bool,
        effect: impl FnOnce(&mut State) -> Result<T, (i32, String)>,
    ) -> Result<T, TargetError> {
        let fate = self.inner.fate(writes, false);
        let way = async {
            self.inner.travel().await;
            if fate == Fate::Unreachable {
                return Err(TargetError::Unreachable {
                    uri: URI.to_owned(),
                    call,
                    cause: "made to fail by a test".to_owned(),
                });
            }
            self.inner.now();
            let result = effect(&mut self.inner.state.lock());
            self.inner.travel().await;
            if fate == Fate::Lost {
                return Err(unknown(call));
            }
            result.map_err(|why| refused(call, why))
        };
        match tokio::time::timeout(self.deadline, way).await {
            Ok(result) => result,
            Err(_) => Err(unknown(call)),
        }
    }
}

#[async_trait]
impl Target for Session {
    async fn probe_standby(&self) -> Result<(), TargetError> {
        self.call("probe", false, |_| Ok(())).await
    }

    async fn replicate(
        &self,
        channel: &PChannel,
        msgs: Vec<Bytes>,
        _begin: Tso,
        end: Tso,
    ) -> Result<(), TargetError> {
        const CALL: &str = "ReplicateMessage";
        let fate = self.inner.fate(true, true);
        if let Fate::Late(by) = fate {
            // The request is in the network: its sender has no say any more, and may be dead when it arrives. The server
            // drops it once its deadline has passed.
            let (inner, channel) = (self.inner.clone(), channel.clone());
            let by = by.min(self.deadline);
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                inner.now();
                let _ = inner.state.lock().replicate(&channel, &msgs, end);
            });
            self.inner.travel().await;
            return Err(unknown(CALL));
        }
        let way = async {
            self.inner.travel().await;
            if fate == Fate::Unreachable {
                return Err(TargetError::Unreachable {
                    uri: URI.to_owned(),
                    call: CALL,
                    cause: "made to fail by a test".to_owned(),
                });
            }
            self.inner.now();
            let result = self.inner.state.lock().replicate(channel, &msgs, end);
            self.inner.travel().await;
            if fate == Fate::Lost {
                return Err(unknown(CALL));
            }
            result.map_err(|why| refused(CALL, why))
        };
        match tokio::time::timeout(self.deadline, way).await {
            Ok(result) => result,
            Err(_) => Err(unknown(CALL)),
        }
    }

    async fn now(&self) -> Result<Tso, TargetError> {
        self.call("AllocTimestamp", false, |state| Ok(state.clock))
            .await
    }

    async fn databases(&self) -> Result<Vec<String>, TargetError> {
        self.call("ListDatabases", false, |state| {
            Ok(state.databases.keys().cloned().collect())
        })
        .await
    }

    async fn create_database(&self, name: &str) -> Result<(), TargetError> {
        self.call("CreateDatabase", true, |state| {
            state.databases.entry(name.to_owned()).or_default();
            Ok(())
        })
        .await
    }

    async fn drop_database(&self, name: &str) -> Result<(), TargetError> {
        self.call("DropDatabase", true, |state| {
            if state.databases.get(name).is_some_and(|d| !d.is_empty()) {
                let why = format!("database:{name} not empty, must drop all collections before");
                return Err((65535, why));
            }
            state.databases.remove(name);
            Ok(())
        })
        .await
    }

    async fn collections(&self, database: &str) -> Result<Vec<String>, TargetError> {
        self.call("ShowCollections", false, |state| {
            let names = state.databases.get(database);
            Ok(names
                .map(|n| n.keys().cloned().collect())
                .unwrap_or_default())
        })
        .await
    }

    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, TargetError> {
        self.call("DescribeCollection", false, |state| {
            let Some(id) = state.databases.get(database).and_then(|d| d.get(name)) else {
                return Ok(None);
            };
            let (id, clock) = (*id, state.clock);
            Ok(state
                .find(database, name)
                .filter(|content| content.create_ts <= clock)
                .map(|content| TargetCollection {
                    id,
                    name: name.to_owned(),
                    vchannels: content.vchannels.clone(),
                    pchannels: content.vchannels.iter().map(|v| v.pchannel()).collect(),
                    schema: user_schema(&content.source),
                }))
        })
        .await
    }

    async fn create_collection(
        &self,
        database: &str,
        source: &Collection,
        ts: Tso,
    ) -> Result<(), TargetError> {
        self.call("CreateCollection", true, |state| {
            if ts == Tso::ZERO {
                let why = "the cdc timestamp is not set in the request for the backup instance";
                return Err((1100, why.to_owned()));
            }
            if !state.databases.contains_key(database) {
                return Err((800, format!("database not found[database={database}]")));
            }
            if let Some(there) = state.find(database, &source.name) {
                let same = there.vchannels.len() == source.shards.len()
                    && user_schema(&there.source) == user_schema(source);
                if same {
                    return Ok(());
                }
                let why = format!(
                    "create duplicate collection with different parameters, collection: {}",
                    source.name
                );
                return Err((65535, why));
            }
            state.create(database, source, ts);
            Ok(())
        })
        .await
    }

    async fn drop_collection(
        &self,
        database: &str,
        name: &str,
        _ts: Tso,
    ) -> Result<(), TargetError> {
        self.call("DropCollection", true, |state| {
            if let Some(content) = state.find(database, name) {
                content.dropped = true;
            }
            if let Some(names) = state.databases.get_mut(database) {
                names.remove(name);
            }
            Ok(())
        })
        .await
    }

    async fn holds_rows(&self, database: &str, name: &str) -> Result<bool, TargetError> {
        self.with("GetPersistentSegmentInfo", database, name, |_, content| {
            Ok(content.holds_rows())
        })
        .await
    }

    async fn partitions(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Vec<(String, PartitionId)>, TargetError> {
        self.with("ShowPartitions", database, name, |_, content| {
            let list = content.partitions.iter();
            Ok(list.map(|(name, p)| (name.clone(), p.id)).collect())
        })
        .await
    }

    async fn create_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        _ts: Tso,
    ) -> Result<(), TargetError> {
        self.with("CreatePartition", database, name, |id, content| {
            if !content.partitions.contains_key(partition) {
                content.add_partition(partition, PartitionId(id));
            }
            Ok(())
        })
        .await
    }

    async fn drop_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        _ts: Tso,
    ) -> Result<(), TargetError> {
        self.with("DropPartition", database, name, |_, content| {
            if content.partitions.get(partition).is_some_and(|p| p.loaded) {
                let why =
                    "partition cannot be dropped, partition is loaded, please release it first";
                return Err((65535, why.to_owned()));
            }
            content.partitions.remove(partition);
            Ok(())
        })
        .await
    }

    async fn indexes(&self, database: &str, name: &str) -> Result<Vec<TargetIndex>, TargetError> {
        self.with("DescribeIndex", database, name, |_, content| {
            Ok(content.indexes.clone())
        })
        .await
    }

    async fn create_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError> {
        self.with("CreateIndex", database, name, |_, content| {
            if !content.indexes.contains(index) {
                content.indexes.push(index.clone());
            }
            Ok(())
        })
        .await
    }

    async fn drop_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError> {
        self.with("DropIndex", database, name, |_, content| {
            if content.loaded || content.partitions.values().any(|p| p.loaded) {
                let why = "index cannot be dropped, collection is loaded, please release it first";
                return Err((65535, why.to_owned()));
            }
            content.indexes.retain(|i| i.name != index.name);
            Ok(())
        })
        .await
    }

    async fn loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<Loaded, TargetError> {
        self.with("GetLoadState", database, name, |_, content| {
            let parts = &content.partitions;
            let loaded = if partitions.is_empty() {
                content.loaded || parts.values().any(|p| p.loaded)
            } else {
                let mut named = partitions.iter();
                named.all(|name| parts.get(name).is_some_and(|p| p.loaded))
            };
            Ok(if loaded { Loaded::Yes } else { Loaded::No })
        })
        .await
    }

    async fn load(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
        _replicas: i32,
    ) -> Result<(), TargetError> {
        self.with("LoadCollection", database, name, |_, content| {
            if content.indexes.is_empty() {
                let why = "there is no vector index on collection, please create index firstly";
                return Err((700, why.to_owned()));
            }
            content.loaded |= partitions.is_empty();
            for (name, partition) in &mut content.partitions {
                partition.loaded |= partitions.is_empty() || partitions.contains(name);
            }
            Ok(())
        })
        .await
    }

    async fn release(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<(), TargetError> {
        self.with("ReleaseCollection", database, name, |_, content| {
            content.loaded &= !partitions.is_empty();
            for (name, partition) in &mut content.partitions {
                partition.loaded &= !(partitions.is_empty() || partitions.contains(name));
            }
            Ok(())
        })
        .await
    }

    async fn flush(&self, _database: &str, _names: &[String]) -> Result<(), TargetError> {
        self.call("Flush", true, |_| Ok(())).await
    }
}

impl Session {
    /// A call about one collection; the number it is given is a fresh id.
    async fn with<T>(
        &self,
        call: &'static str,
        database: &str,
        name: &str,
        effect: impl FnOnce(i64, &mut state::Content) -> Result<T, (i32, String)>,
    ) -> Result<T, TargetError> {
        self.call(call, true, |state| {
            let (id, clock) = (state.id(), state.clock);
            match state.find(database, name) {
                Some(content) if content.create_ts <= clock => effect(id, content),
                _ => Err(not_found(name)),
            }
        })
        .await
    }
}
