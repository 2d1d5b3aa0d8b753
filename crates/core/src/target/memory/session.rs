//! The calls of one connection, with what the test made of the way there and back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::state::{self, State};
use super::{Fate, Inner, URI};
use crate::catalog::Collection;
use crate::ids::{PChannel, PartitionId};
use crate::target::grpc::user_schema;
use crate::target::{Loaded, Target, TargetCollection, TargetError, TargetIndex};
use crate::tso::Tso;

/// One client's connection.
pub(super) struct Session {
    pub(super) inner: Arc<Inner>,
    /// Of each call.
    pub(super) deadline: Duration,
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
        self.carried_out(call, fate, effect).await
    }

    async fn carried_out<T>(
        &self,
        call: &'static str,
        fate: Fate,
        effect: impl FnOnce(&mut State) -> Result<T, (i32, String)>,
    ) -> Result<T, TargetError> {
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
        self.carried_out(CALL, fate, |state| state.replicate(channel, &msgs, end))
            .await
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

    async fn flush(&self, database: &str, names: &[String]) -> Result<(), TargetError> {
        self.call("Flush", true, |state| {
            for name in names {
                state.flush(database, name);
            }
            Ok(())
        })
        .await
    }

    async fn is_flushed(
        &self,
        database: &str,
        name: &str,
        up_to: Tso,
    ) -> Result<bool, TargetError> {
        self.call("GetFlushState", false, |state| {
            let flushed = state.is_flushed(database, name, up_to);
            flushed.ok_or_else(|| not_found(name))
        })
        .await
    }

    async fn nodes(&self) -> Result<Option<BTreeSet<String>>, TargetError> {
        self.call("GetMetrics", false, |state| {
            let answer = ["datanode", "querynode"]
                .iter()
                .take(if state.node_is_silent { 1 } else { 2 })
                .map(|kind| format!("{kind} {}", state.incarnation));
            Ok(Some(answer.collect()))
        })
        .await
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
