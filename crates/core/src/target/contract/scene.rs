//! A collection on a standby, and what scenarios do with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::messages::{self, Place, Rows};
use super::{Broken, Outcome, Seen, Standby};
use crate::catalog::{Collection, LoadState, ObjectState, Partition, Shard};
use crate::ids::{CollectionId, DbId, PChannel, PartitionId, VChannel};
use crate::route::encode::Entry;
use crate::target::{Loaded, Target, TargetCollection, TargetError, TargetIndex};
use crate::tso::Tso;

pub(super) const DB: &str = "default";
/// What is expected to happen happens within this, on a machine that is busy as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is expected not to happen has not happened within this: a tick is shown some 30 ms after its answer.
const GRACE: Duration = Duration::from_millis(700);
const PAUSE: Duration = Duration::from_millis(50);

/// Of messages and of the collections of the source, never twice in a process.
static NEXT: AtomicI64 = AtomicI64::new(1_000);

pub(super) fn fresh() -> i64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether it is so; what was expected otherwise.
pub(super) fn ensure(is: bool, what: impl FnOnce() -> String) -> Outcome {
    match is {
        true => Ok(()),
        false => Err(Broken(what())),
    }
}

/// A refusal whose text has this in it.
pub(super) fn refused<T>(what: &str, answer: Result<T, TargetError>, text: &str) -> Outcome {
    match answer {
        Err(e) if matches!(e, TargetError::Refused { .. }) && e.to_string().contains(text) => {
            Ok(())
        }
        Err(e) => Err(Broken(format!("{what}: refused otherwise: {e}"))),
        Ok(_) => Err(Broken(format!("{what}: it is done"))),
    }
}

/// Polls until `done` says so.
pub(super) async fn until(what: &str, mut done: impl AsyncFnMut() -> Outcome) -> Outcome {
    let end = Instant::now() + PATIENCE;
    loop {
        match done().await {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() >= end => {
                return Err(Broken(format!("{what}: not within {PATIENCE:?}: {e}")));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// A collection as a source has it.
pub(super) fn source(name: &str, shards: usize, partitions: usize) -> Collection {
    let id = CollectionId(fresh());
    let shard = |n: usize| Shard {
        vchannel: VChannel::new(format!("src_{id}v{n}")),
        pchannel: PChannel::new("src"),
    };
    let partition = |n: usize| {
        let partition = Partition {
            id: PartitionId(fresh()),
            name: match partitions {
                1 => "_default".to_owned(),
                _ => format!("_default_{n}"),
            },
            state: ObjectState::Created,
            create_ts: Tso::ZERO,
        };
        (partition.id, partition)
    };
    Collection {
        id,
        db: DbId(1),
        name: name.to_owned(),
        state: ObjectState::Created,
        schema: messages::schema(name, partitions > 1),
        create_ts: Tso::ZERO,
        shards: (0..shards).map(shard).collect(),
        start_positions: std::collections::HashMap::new(),
        consistency_level: 2,
        properties: Vec::new(),
        partitions: (0..partitions).map(partition).collect(),
        indexes: BTreeMap::new(),
        load: LoadState::Released,
    }
}

pub(super) fn index() -> TargetIndex {
    let params = [
        ("index_type", "FLAT"),
        ("metric_type", "L2"),
        ("params", "{}"),
    ];
    TargetIndex {
        name: "by_vector".to_owned(),
        field: "vector".to_owned(),
        params: params.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
    }
}

pub(super) struct Scene<'a> {
    pub(super) standby: &'a dyn Standby,
    pub(super) target: Arc<dyn Target>,
    pub(super) source: Collection,
    pub(super) there: TargetCollection,
    pub(super) partitions: BTreeMap<String, PartitionId>,
}

impl<'a> Scene<'a> {
    /// Creates it, without an index.
    pub(super) async fn bare(standby: &'a dyn Standby, name: &str, shards: usize) -> Outcome<Self> {
        // Its own on a server that others use too.
        let name = format!("{name}_{}", fresh());
        Self::create(standby, source(&name, shards, 1)).await
    }

    pub(super) async fn create(standby: &'a dyn Standby, source: Collection) -> Outcome<Self> {
        let target = standby.target();
        let ts = target.now().await?;
        target.create_collection(DB, &source, ts).await?;
        let mut there = None;
        until("it is there", async || {
            there = target.describe(DB, &source.name).await?;
            ensure(there.is_some(), || "not to be found".to_owned())
        })
        .await?;
        let there = there.ok_or_else(|| Broken("not to be found".to_owned()))?;
        ensure(there.vchannels.len() == source.shards.len(), || {
            format!("{} shards: {:?}", source.shards.len(), there.vchannels)
        })?;
        let mut scene = Self {
            standby,
            target,
            source,
            there,
            partitions: BTreeMap::new(),
        };
        scene.look_for_partitions().await?;
        Ok(scene)
    }

    /// Creates it, and has it loaded.
    pub(super) async fn loaded(
        standby: &'a dyn Standby,
        name: &str,
        shards: usize,
    ) -> Outcome<Self> {
        let scene = Self::bare(standby, name, shards).await?;
        scene.load().await?;
        Ok(scene)
    }

    pub(super) fn name(&self) -> &str {
        &self.source.name
    }

    pub(super) async fn look_for_partitions(&mut self) -> Outcome {
        let list = self.target.partitions(DB, self.name()).await?;
        self.partitions = list.into_iter().collect();
        Ok(())
    }

    /// Creates a partition; its id.
    pub(super) async fn partition(&mut self, name: &str) -> Outcome<PartitionId> {
        let ts = self.ts().await?;
        let target = self.target.clone();
        target.create_partition(DB, self.name(), name, ts).await?;
        self.look_for_partitions().await?;
        let found = self.partitions.get(name).copied();
        found.ok_or_else(|| Broken(format!("partition {name} is not there")))
    }

    pub(super) async fn load(&self) -> Outcome {
        self.target.create_index(DB, self.name(), &index()).await?;
        self.target.load(DB, self.name(), &[], 1).await?;
        self.wait_loaded().await
    }

    /// With ticks all the while.
    pub(super) async fn wait_loaded(&self) -> Outcome {
        until("it is loaded", async || {
            self.tick_all().await?;
            let loaded = self.target.loaded(DB, self.name(), &[]).await?;
            ensure(loaded == Loaded::Yes, || format!("{loaded:?}"))?;
            self.standby.read(self.name()).await.map(drop)
        })
        .await
    }

    pub(super) async fn release(&self) -> Outcome {
        Ok(self.target.release(DB, self.name(), &[]).await?)
    }

    /// A fresh time of the target's: larger than all before.
    pub(super) async fn ts(&self) -> Outcome<Tso> {
        Ok(self.target.now().await?)
    }

    pub(super) fn channel(&self, shard: usize) -> PChannel {
        self.there.vchannels[shard].pchannel()
    }

    pub(super) fn place(&self, shard: usize) -> Place {
        Place {
            collection: self.there.id,
            name: self.source.name.clone(),
            partition: self
                .partitions
                .get("_default")
                .copied()
                .unwrap_or(PartitionId(0)),
            vchannel: self.there.vchannels[shard].clone(),
        }
    }

    /// One message for the default partition of a shard.
    pub(super) fn rows(&self, shard: usize, keys: &[i64], ts: Tso) -> Rows {
        Rows {
            to: self.place(shard),
            id: fresh(),
            rows: keys.iter().map(|key| (*key, ts)).collect(),
            version: 1,
            ballast: 0,
        }
    }

    pub(super) async fn try_send(&self, shard: usize, msgs: Vec<Bytes>) -> Result<(), TargetError> {
        let end = self.target.now().await?;
        let channel = self.channel(shard);
        let msgs = msgs.into_iter().map(Entry::from).collect();
        self.target.replicate(&channel, msgs, end, end).await
    }

    pub(super) async fn send(&self, shard: usize, msgs: Vec<Bytes>) -> Outcome {
        Ok(self.try_send(shard, msgs).await?)
    }

    pub(super) async fn tick(&self, shard: usize, ts: Tso) -> Outcome {
        self.send(shard, vec![messages::tick(ts, fresh())]).await
    }

    /// A fresh tick on every channel.
    pub(super) async fn tick_all(&self) -> Outcome {
        for shard in 0..self.there.vchannels.len() {
            let ts = self.ts().await?;
            self.tick(shard, ts).await?;
        }
        Ok(())
    }

    /// Inserts one key into the default partition of shard 0, with a fresh time and without a tick.
    pub(super) async fn put(&self, key: i64) -> Outcome<Tso> {
        let ts = self.ts().await?;
        self.send(0, vec![self.rows(0, &[key], ts).insert()])
            .await?;
        Ok(ts)
    }

    async fn is(&self, wanted: &Seen) -> Outcome {
        let seen = self.standby.read(self.name()).await?;
        ensure(seen == *wanted, || format!("{seen:?}, not {wanted:?}"))
    }

    /// Sooner or later exactly these keys are seen, one copy of each and all of version 1.
    pub(super) async fn sees(&self, what: &str, keys: &[i64]) -> Outcome {
        self.sees_rows(what, &seen(keys)).await
    }

    pub(super) async fn sees_rows(&self, what: &str, wanted: &Seen) -> Outcome {
        until(what, async || self.is(wanted).await).await
    }

    /// Sooner or later `count(*)` is this.
    pub(super) async fn counts(&self, what: &str, copies: usize) -> Outcome {
        until(what, async || {
            let seen = self.standby.read(self.name()).await?;
            ensure(seen.count == copies, || format!("{seen:?}"))
        })
        .await
    }

    /// With ticks until it is done.
    pub(super) async fn ticking<T>(&self, done: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let ticks = async {
            loop {
                if let Err(e) = self.tick_all().await {
                    return e;
                }
                sleep(PAUSE).await;
            }
        };
        tokio::select! {
            outcome = done => outcome,
            error = ticks => Err(error),
        }
    }

    /// These keys are seen, and nothing else comes for a while.
    pub(super) async fn still(&self, what: &str, keys: &[i64]) -> Outcome {
        self.sees(what, keys).await?;
        let wanted = seen(keys);
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            self.is(&wanted)
                .await
                .map_err(|e| Broken(format!("{what}, and after a while: {e}")))?;
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// One copy of each key, of version 1.
pub(super) fn seen(keys: &[i64]) -> Seen {
    let mut rows: Vec<_> = keys.iter().map(|key| (*key, 1)).collect();
    rows.sort_unstable();
    Seen {
        count: rows.len(),
        rows,
    }
}
