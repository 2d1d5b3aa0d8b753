//! What each call of a target does to the twin.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;

use super::calls::{REPLICATE, Session, not_found, unknown};
use super::rules::Rule;
use super::{Fate, URI};
use crate::catalog::Collection;
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::route::encode::Entry;
use crate::select::Name;
use crate::target::grpc::user_schema;
use crate::target::{Loaded, Target, TargetCollection, TargetError, TargetIndex};
use crate::task::Mode;
use crate::tso::Tso;

#[async_trait]
impl Target for Session {
    fn mode(&self) -> Mode {
        match self.writer {
            None => Mode::Replicate,
            Some(_) => Mode::Plain,
        }
    }

    async fn probe(&self) -> Result<(), TargetError> {
        self.call("probe", false, |_| Ok(())).await
    }

    async fn replicate(
        &self,
        channel: &PChannel,
        msgs: Vec<Entry>,
        _begin: Tso,
        end: Tso,
    ) -> Result<(), TargetError> {
        if let Some(writer) = &self.writer {
            return writer.write(self, URI, channel, &msgs, self.deadline).await;
        }
        let msgs: Vec<Bytes> = msgs.iter().map(Entry::whole).collect();
        let fate = self.inner.fate(REPLICATE, true, true);
        if let Fate::Late(by) = fate {
            // The request is in the network: its sender has no say any more, and may be dead when it arrives. The server
            // drops it once its deadline has passed.
            let (inner, channel) = (self.inner.clone(), channel.clone());
            let by = by.min(self.deadline);
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                inner.now();
                let _ = inner
                    .state
                    .lock()
                    .replicate(&channel, &msgs, end, msgs.len());
            });
            self.inner.travel().await;
            return Err(unknown(REPLICATE));
        }
        let most = match fate {
            Fate::Partly(part) if self.inner.keeps(Rule::PartlyWritten) => {
                (msgs.len() as f64 * part) as usize
            }
            Fate::First(first) if self.inner.keeps(Rule::PartlyWritten) => first,
            _ => msgs.len(),
        };
        let channel = channel.clone();
        self.carried_out(REPLICATE, fate, true, move |state| {
            state.replicate(&channel, &msgs, end, most)
        })
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
        let name = name.to_owned();
        self.call("CreateDatabase", true, move |state| {
            state.databases.entry(name).or_default();
            Ok(())
        })
        .await
    }

    async fn drop_database(&self, name: &str) -> Result<(), TargetError> {
        let name = name.to_owned();
        self.call("DropDatabase", true, move |state| {
            let used = state.databases.get(&name).is_some_and(|d| !d.is_empty());
            if used && state.keeps(Rule::UsedIsKept) {
                let why = format!("database:{name} not empty, must drop all collections before");
                return Err((65535, why));
            }
            state.databases.remove(&name);
            state.database_properties.remove(&name);
            Ok(())
        })
        .await
    }

    async fn describe_database(&self, name: &str) -> Result<Vec<(String, String)>, TargetError> {
        let name = name.to_owned();
        self.call("DescribeDatabase", false, move |state| {
            state.properties_of_database(&name)
        })
        .await
    }

    async fn alter_database(
        &self,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        let (name, set, gone) = (name.to_owned(), set.to_vec(), gone.to_vec());
        self.call("AlterDatabase", true, move |state| {
            state.alter_database(&name, set, &gone)
        })
        .await
    }

    async fn collections(&self, database: &str) -> Result<Vec<String>, TargetError> {
        let database = database.to_owned();
        self.call("ShowCollections", false, move |state| {
            let names = state.databases.get(&database);
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
        let found_in = database.to_owned();
        let (database, name) = (database.to_owned(), name.to_owned());
        let described = self.call("DescribeCollection", false, move |state| {
            if let Some(of) = state.aliases.get(&(database.clone(), name.clone())) {
                return Err((1601, format!("{database}.{name} is an alias of {of}")));
            }
            let Some(id) = state.databases.get(&database).and_then(|d| d.get(&name)) else {
                return Ok(None);
            };
            let id = *id;
            Ok(state
                .find(&database, &name)
                .map(|content| TargetCollection {
                    id,
                    name: name.clone(),
                    vchannels: content.vchannels.clone(),
                    pchannels: content.vchannels.iter().map(|v| v.pchannel()).collect(),
                    schema: user_schema(&content.source),
                    properties: content.source.properties.clone(),
                    by_name: false,
                }))
        });
        let mut described = described.await?;
        if let (Some(writer), Some(found)) = (&self.writer, &mut described) {
            writer.learn(&found_in, &found.name, found.id, &found.schema);
            found.vchannels.clear();
            found.pchannels.clear();
        }
        Ok(described)
    }

    async fn create_collection(
        &self,
        database: &str,
        source: &Collection,
        ts: Tso,
    ) -> Result<(), TargetError> {
        let (database, source) = (database.to_owned(), source.clone());
        self.call("CreateCollection", true, move |state| {
            if ts == Tso::ZERO {
                let why = "the cdc timestamp is not set in the request for the backup instance";
                return Err((1100, why.to_owned()));
            }
            if !state.databases.contains_key(&database) {
                return Err((65535, format!("database:{database} not found")));
            }
            if state
                .aliases
                .contains_key(&(database.clone(), source.name.clone()))
            {
                return Err((1601, "alias and collection name conflict".to_owned()));
            }
            let again = state.keeps(Rule::AgainIsFine);
            if let Some(there) = state.find(&database, &source.name)
                && again
            {
                let same = there.vchannels.len() == source.shards.len()
                    && there.has_first_partitions()
                    && user_schema(&there.source) == user_schema(&source);
                if same {
                    return Ok(());
                }
                let why = format!(
                    "create duplicate collection with different parameters, collection: {}",
                    source.name
                );
                return Err((65535, why));
            }
            state.create(&database, &source, ts);
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
        let (database, name) = (database.to_owned(), name.to_owned());
        self.call("DropCollection", true, move |state| {
            if let Some(content) = state.find(&database, &name) {
                content.dropped = true;
            }
            let id = state.databases.get(&database).and_then(|d| d.get(&name));
            if let Some(id) = id.copied() {
                state.aliases.retain(|_, of| *of != id);
            }
            if let Some(names) = state.databases.get_mut(&database) {
                names.remove(&name);
            }
            Ok(())
        })
        .await
    }

    async fn rename_collection(
        &self,
        database: &str,
        name: &str,
        to: &Name,
    ) -> Result<(), TargetError> {
        let (database, name, to) = (database.to_owned(), name.to_owned(), to.clone());
        self.call("RenameCollection", true, move |state| {
            state.rename(&database, &name, &to)
        })
        .await
    }

    async fn alter_collection(
        &self,
        database: &str,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        let (set, gone) = (set.to_vec(), gone.to_vec());
        let (database, name) = (database.to_owned(), name.to_owned());
        self.call("AlterCollection", true, move |state| {
            state.alter_collection((&database, &name), set, &gone)
        })
        .await
    }

    async fn alias(
        &self,
        database: &str,
        alias: &str,
    ) -> Result<Option<CollectionId>, TargetError> {
        let (database, alias) = (database.to_owned(), alias.to_owned());
        self.call("DescribeCollection", false, move |state| {
            if state.find(&database, &alias).is_some() {
                return Err((1601, format!("{alias} is a collection")));
            }
            Ok(state.aliases.get(&(database, alias)).copied())
        })
        .await
    }

    async fn put_alias(
        &self,
        database: &str,
        alias: &str,
        name: &str,
        moved: bool,
    ) -> Result<(), TargetError> {
        let (database, alias, name) = (database.to_owned(), alias.to_owned(), name.to_owned());
        self.call("AlterAlias", true, move |state| {
            state.put_alias(&database, &alias, &name, moved)
        })
        .await
    }

    async fn drop_alias(&self, database: &str, alias: &str) -> Result<(), TargetError> {
        let of = (database.to_owned(), alias.to_owned());
        self.call("DropAlias", true, move |state| {
            state.aliases.remove(&of);
            Ok(())
        })
        .await
    }

    async fn holds_rows(&self, database: &str, name: &str) -> Result<bool, TargetError> {
        let (database, name) = (database.to_owned(), name.to_owned());
        self.call("GetPersistentSegmentInfo", true, move |state| {
            let holds = state.find(&database, &name).map(|c| c.holds_rows());
            if state.names_segments(&database, &name) == Some(false) {
                state.flush(&database, &name);
            }
            holds.ok_or_else(|| not_found(&name))
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
        let (database, name) = (database.to_owned(), name.to_owned());
        let partition = partition.to_owned();
        self.call("CreatePartition", true, move |state| {
            let (id, clock) = (state.id(), state.clock);
            let content = state.find(&database, &name);
            let content = content.filter(|c| c.takes_partitions_at(clock));
            let content = content.ok_or_else(|| not_found(&name))?;
            if !content.partitions.contains_key(&partition) {
                content.add_partition(&partition, PartitionId(id));
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
        let partition = partition.to_owned();
        self.with("DropPartition", database, name, move |_, content| {
            let used = content.keeps(Rule::UsedIsKept);
            if used && content.partitions.get(&partition).is_some_and(|p| p.loaded) {
                let why =
                    "partition cannot be dropped, partition is loaded, please release it first";
                return Err((65535, why.to_owned()));
            }
            content.partitions.remove(&partition);
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
        let index = index.clone();
        self.with("CreateIndex", database, name, move |_, content| {
            if !content.indexes.contains(&index) {
                content.indexes.push(index);
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
        let index = index.clone();
        self.with("DropIndex", database, name, move |_, content| {
            let used = content.keeps(Rule::UsedIsKept);
            if used && (content.loaded || content.partitions.values().any(|p| p.loaded)) {
                let why = "index cannot be dropped, collection is loaded, please release it first";
                return Err((65535, why.to_owned()));
            }
            content.indexes.retain(|i| i.name != index.name);
            Ok(())
        })
        .await
    }

    async fn alter_index(
        &self,
        database: &str,
        name: &str,
        index: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        let (database, name, index) = (database.to_owned(), name.to_owned(), index.to_owned());
        let (set, gone) = (set.to_vec(), gone.to_vec());
        self.call("AlterIndex", true, move |state| {
            state.alter_index((&database, &name, &index), set, &gone)
        })
        .await
    }

    async fn loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<Loaded, TargetError> {
        let partitions = partitions.to_vec();
        self.with("GetLoadState", database, name, move |_, content| {
            let parts = &content.partitions;
            let loaded = if partitions.is_empty() {
                content.loaded || parts.values().any(|p| p.loaded)
            } else {
                let mut named = partitions.iter();
                named.all(|name| parts.get(name).is_some_and(|p| p.loaded))
            };
            Ok(match loaded {
                true if content.unticked.is_empty() => Loaded::Yes,
                true => Loaded::Loading,
                false => Loaded::No,
            })
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
        let partitions = partitions.to_vec();
        self.with("LoadCollection", database, name, move |_, content| {
            if content.indexes.is_empty() && content.keeps(Rule::UsedIsKept) {
                let why = format!("index not found[collection={}]", content.source.name);
                return Err((700, why));
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
        let partitions = partitions.to_vec();
        self.with("ReleaseCollection", database, name, move |_, content| {
            content.loaded &= !partitions.is_empty();
            for (name, partition) in &mut content.partitions {
                partition.loaded &= !(partitions.is_empty() || partitions.contains(name));
            }
            Ok(())
        })
        .await
    }

    async fn flush(&self, database: &str, names: &[String]) -> Result<(), TargetError> {
        let (database, names) = (database.to_owned(), names.to_vec());
        self.call("Flush", true, move |state| {
            for name in &names {
                state.flush(&database, name);
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
        let (database, name) = (database.to_owned(), name.to_owned());
        self.call("GetFlushState", false, move |state| {
            let flushed = state.is_flushed(&database, &name, up_to);
            flushed.ok_or_else(|| not_found(&name))
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
