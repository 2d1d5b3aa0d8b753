//! A real target, by Milvus' gRPC API.

mod call;
mod durable;
mod gather;
mod names;
mod once;
pub mod plain;
mod properties;
mod replicate;
mod rows;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use milvus::proto::common::{KeyValuePair, MsgBase, MsgType, ReplicateInfo, SegmentState};
use milvus::proto::milvus as rpc;
use milvus::proto::schema::CollectionSchema;
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use self::call::{answer_call, chain, status_call};
use self::names::Named;
use super::plain::PlainWriter;
use super::{Loaded, Target, TargetCollection, TargetConnector, TargetError, TargetIndex};
use crate::catalog::Collection;
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::route::encode::Entry;
use crate::select::Name;
use crate::task::{Mode, TargetSpec};
use crate::tls::{self, FieldNames};
use crate::tso::Tso;

/// Answers can be long (describe of many partitions); tonic's default is 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// What a request calls the settings of TLS.
const TLS_FIELDS: FieldNames = FieldNames {
    trusted: "milvus_connect_param.dial_config.ca_pem_path (or server_pem_path)",
    certificate: "milvus_connect_param.dial_config.client_pem_path",
    key: "milvus_connect_param.dial_config.client_key_path",
    name: "milvus_connect_param.dial_config.server_name",
    switch: "https:// and enable_tls",
};

/// Connects to real servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcConnector;

#[async_trait]
impl TargetConnector for GrpcConnector {
    async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError> {
        Ok(Arc::new(GrpcTarget::connect(spec).await?))
    }
}

struct GrpcTarget {
    uri: String,
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
    call_timeout: Duration,
    /// Plain mode.
    writer: Option<PlainWriter>,
}

#[allow(deprecated, reason = "it is what a standby of 2.3 to 2.5 reads")]
fn replicated(msg_type: MsgType, ts: Tso) -> Option<MsgBase> {
    let info = ReplicateInfo {
        is_replicate: true,
        msg_timestamp: ts.0,
        ..Default::default()
    };
    Some(MsgBase {
        msg_type: msg_type as i32,
        replicate_info: Some(info),
        ..Default::default()
    })
}

fn pairs(list: &[(String, String)]) -> Vec<KeyValuePair> {
    list.iter()
        .map(|(key, value)| KeyValuePair {
            key: key.clone(),
            value: value.clone(),
        })
        .collect()
}

impl GrpcTarget {
    async fn connect(spec: &TargetSpec) -> Result<Self, TargetError> {
        let uri = spec.uri.clone();
        let refuse = |cause: String, hint: &str| TargetError::Configuration {
            uri: uri.clone(),
            cause,
            hint: hint.into(),
        };
        let form = "milvus_connect_param.uri has the form http://host:port or https://host:port";
        let secure = tls::Address::parse(&spec.uri);
        let plain = secure.as_ref().map(|server| server.plain().to_string());
        let endpoint = Endpoint::from_shared(plain.unwrap_or_else(|| spec.uri.clone()))
            .map_err(|e| refuse(e.to_string(), form))?
            .connect_timeout(spec.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20);
        let authorization = if spec.token.is_empty() {
            None
        } else {
            let value = base64::engine::general_purpose::STANDARD.encode(spec.token.expose());
            let mut value = MetadataValue::try_from(value).map_err(|_| {
                refuse(
                    "the token cannot be sent".into(),
                    "check milvus_connect_param.token",
                )
            })?;
            value.set_sensitive(true);
            Some(value)
        };
        let connected = match secure {
            Some(server) => tls::connect(&endpoint, &spec.tls, server, spec.connect_timeout).await,
            None => gather::connect(&endpoint, spec.connect_timeout).await,
        };
        let channel = connected.map_err(|e| no_connection(uri.clone(), &e))?;
        let target = Self {
            uri: spec.uri.clone(),
            channel,
            authorization,
            call_timeout: spec.call_timeout,
            writer: (spec.mode == Mode::Plain).then(PlainWriter::default),
        };
        if spec.mode == Mode::Replicate {
            target.check_version().await?;
        }
        Ok(target)
    }

    /// What a request of a standby's writer begins with.
    fn base(&self, msg_type: MsgType, ts: Tso) -> Option<MsgBase> {
        match self.mode() {
            Mode::Replicate => replicated(msg_type, ts),
            Mode::Plain => None,
        }
    }

    async fn version(&self) -> Result<String, TargetError> {
        let mut client = self.client();
        let answer = self
            .call(
                "GetVersion",
                client.get_version(self.request(rpc::GetVersionRequest {})),
            )
            .await?;
        self.check("GetVersion", answer.status)?;
        Ok(answer.version)
    }

    /// Refuses versions that do not take replicated messages.
    async fn check_version(&self) -> Result<(), TargetError> {
        let version = self.version().await?;
        let mut numbers = version
            .trim_start_matches('v')
            .split(['.', '-'])
            .map(|n| n.parse::<u32>().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if (major, minor) >= (2, 6) || major == 2 && minor < 3 {
            return Err(TargetError::Configuration {
                uri: self.uri.clone(),
                cause: format!("it is Milvus {version}, which does not take replicated messages"),
                hint: "a target of 2.3.2 to 2.5 is needed in this mode; 2.6 and later removed ReplicateMessage".into(),
            });
        }
        Ok(())
    }

    /// Whether there is a sealed or flushed segment of it.
    async fn names_segments(&self, database: &str, name: &str) -> Result<bool, TargetError> {
        let request = rpc::GetPersistentSegmentInfoRequest {
            db_name: database.into(),
            collection_name: name.into(),
            ..Default::default()
        };
        let answer = answer_call!(
            self,
            "GetPersistentSegmentInfo",
            get_persistent_segment_info,
            request
        );
        let named = |s: &rpc::PersistentSegmentInfo| s.state != SegmentState::Dropped as i32;
        Ok(answer.infos.iter().any(named))
    }

    async fn flush_all(
        &self,
        database: &str,
        names: &[String],
    ) -> Result<rpc::FlushResponse, TargetError> {
        let request = rpc::FlushRequest {
            base: self.base(MsgType::Flush, Tso::ZERO),
            db_name: database.into(),
            collection_names: names.to_vec(),
        };
        Ok(answer_call!(self, "Flush", flush, request))
    }
}

/// Why there is no connection.
fn no_connection(uri: String, error: &(dyn std::error::Error + 'static)) -> TargetError {
    match tls::fault(error) {
        Some(fault) => TargetError::Configuration {
            uri,
            cause: fault.to_string(),
            hint: fault.hint(&TLS_FIELDS),
        },
        None => TargetError::Unreachable {
            uri,
            call: "connect",
            cause: chain(error),
        },
    }
}

#[async_trait]
impl Target for GrpcTarget {
    fn mode(&self) -> Mode {
        match self.writer {
            None => Mode::Replicate,
            Some(_) => Mode::Plain,
        }
    }

    /// Asks with an empty channel name: a standby complains about the name (1100), a normal server about itself (1900).
    async fn probe(&self) -> Result<(), TargetError> {
        if self.writer.is_some() {
            return self.probe_plain().await;
        }
        let refuse = |cause: String| {
            TargetError::Configuration {
            uri: self.uri.clone(),
            cause,
            hint: "make the target a standby: set common.ttMsgEnabled to false in its milvus.yaml and restart it".into(),
        }
        };
        match self.probe_replicate().await {
            Ok(()) | Err(TargetError::Refused { code: 1100, .. }) => Ok(()),
            Err(TargetError::Refused {
                code: 1900, reason, ..
            }) => Err(refuse(format!(
                "it is not a standby and takes no replicated messages: {reason}"
            ))),
            Err(TargetError::Refused { reason, .. }) if reason.contains("invalid channel name") => {
                Ok(())
            }
            Err(TargetError::Refused { reason, code, .. }) => Err(refuse(format!(
                "it takes no replicated messages: {reason} (code {code})"
            ))),
            Err(other) => Err(other),
        }
    }

    async fn replicate(
        &self,
        channel: &PChannel,
        msgs: Vec<Entry>,
        begin: Tso,
        end: Tso,
    ) -> Result<(), TargetError> {
        let Some(writer) = &self.writer else {
            return replicate::send(self, channel, msgs, begin, end).await;
        };
        let within = self.call_timeout;
        writer.write(self, &self.uri, channel, &msgs, within).await
    }

    async fn now(&self) -> Result<Tso, TargetError> {
        // The target's time counts for nothing where it gives it itself, and not every server tells it.
        if self.writer.is_some() {
            return Ok(Tso::now());
        }
        let answer = answer_call!(
            self,
            "AllocTimestamp",
            alloc_timestamp,
            rpc::AllocTimestampRequest::default()
        );
        Ok(Tso(answer.timestamp))
    }

    async fn databases(&self) -> Result<Vec<String>, TargetError> {
        Ok(answer_call!(
            self,
            "ListDatabases",
            list_databases,
            rpc::ListDatabasesRequest::default()
        )
        .db_names)
    }

    async fn create_database(&self, name: &str) -> Result<(), TargetError> {
        let base = self.base(MsgType::CreateDatabase, Tso::ZERO);
        let request = rpc::CreateDatabaseRequest {
            base,
            db_name: name.into(),
            ..Default::default()
        };
        match status_call!(self, "CreateDatabase", create_database, request) {
            Err(e) if e.already_exists() => Ok(()),
            other => other,
        }
    }

    async fn drop_database(&self, name: &str) -> Result<(), TargetError> {
        let base = self.base(MsgType::DropDatabase, Tso::ZERO);
        status_call!(
            self,
            "DropDatabase",
            drop_database,
            rpc::DropDatabaseRequest {
                base,
                db_name: name.into(),
            }
        )
    }

    async fn describe_database(&self, name: &str) -> Result<Vec<(String, String)>, TargetError> {
        self.properties_of_database(name).await
    }

    async fn alter_database(
        &self,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        self.change_database(name, set, gone).await
    }

    async fn collections(&self, database: &str) -> Result<Vec<String>, TargetError> {
        let request = rpc::ShowCollectionsRequest {
            db_name: database.into(),
            ..Default::default()
        };
        Ok(answer_call!(self, "ShowCollections", show_collections, request).collection_names)
    }

    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, TargetError> {
        let found = match self.named(database, name).await? {
            None => {
                self.forget(database, name);
                return Ok(None);
            }
            Some(Named::Alias(of)) => {
                let why = format!("{database}.{name} is an alias of collection {of} there");
                return Err(self.name_or_alias(why));
            }
            Some(Named::Collection(found)) => *found,
        };
        if let Some(writer) = &self.writer {
            writer.learn(database, name, found.id, &found.schema);
        }
        Ok(Some(found))
    }

    async fn rename_collection(
        &self,
        database: &str,
        name: &str,
        to: &Name,
    ) -> Result<(), TargetError> {
        self.rename(database, name, to).await
    }

    async fn alter_collection(
        &self,
        database: &str,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        self.change_collection(database, name, set, gone).await
    }

    async fn alias(
        &self,
        database: &str,
        alias: &str,
    ) -> Result<Option<CollectionId>, TargetError> {
        match self.named(database, alias).await? {
            None => Ok(None),
            Some(Named::Alias(of)) => Ok(Some(of)),
            Some(Named::Collection(_)) => {
                let why = format!("{database}.{alias} is a collection there");
                Err(self.name_or_alias(why))
            }
        }
    }

    async fn put_alias(
        &self,
        database: &str,
        alias: &str,
        name: &str,
        moved: bool,
    ) -> Result<(), TargetError> {
        self.set_alias(database, alias, name, moved).await
    }

    async fn drop_alias(&self, database: &str, alias: &str) -> Result<(), TargetError> {
        self.unset_alias(database, alias).await
    }

    async fn create_collection(
        &self,
        database: &str,
        source: &Collection,
        ts: Tso,
    ) -> Result<(), TargetError> {
        let num_partitions = if source.has_partition_key() {
            source.partitions.len() as i64
        } else {
            0
        };
        status_call!(
            self,
            "CreateCollection",
            create_collection,
            rpc::CreateCollectionRequest {
                base: self.base(MsgType::CreateCollection, ts),
                db_name: database.into(),
                collection_name: source.name.clone(),
                schema: match self.mode() {
                    Mode::Replicate => user_schema(source),
                    Mode::Plain => rows::plain_schema(source),
                }
                .encode_to_vec(),
                shards_num: source.shards.len() as i32,
                consistency_level: source.consistency_level,
                properties: pairs(&source.own_properties()),
                num_partitions,
            }
        )
    }

    async fn drop_collection(
        &self,
        database: &str,
        name: &str,
        ts: Tso,
    ) -> Result<(), TargetError> {
        self.forget(database, name);
        let base = self.base(MsgType::DropCollection, ts);
        status_call!(
            self,
            "DropCollection",
            drop_collection,
            rpc::DropCollectionRequest {
                base,
                db_name: database.into(),
                collection_name: name.into()
            }
        )
    }

    async fn holds_rows(&self, database: &str, name: &str) -> Result<bool, TargetError> {
        if self.writer.is_some() {
            return self.counts_rows(database, name).await;
        }
        if self.names_segments(database, name).await? {
            return Ok(true);
        }
        // Rows that were just written are in a growing segment, which is not named there: the proxy asks the data
        // coordinator for sealed, flushing and flushed ones (internal/proxy/impl.go, GetPersistentSegmentInfo; seen on
        // 2.3.5). A flush seals what grows, and says which segments those are.
        let answer = match self.flush_all(database, &[name.to_owned()]).await {
            Ok(answer) => answer,
            // It seals before it asks the data nodes (internal/datacoord/services.go, Flush; seen on 2.3.5).
            Err(error) if error.is_unwatched() => return self.names_segments(database, name).await,
            Err(error) => return Err(error),
        };
        let sealed = answer.coll_seg_i_ds.values();
        let flushed = answer.flush_coll_seg_i_ds.values();
        Ok(sealed.chain(flushed).any(|ids| !ids.data.is_empty()))
    }

    async fn partitions(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Vec<(String, PartitionId)>, TargetError> {
        let request = rpc::ShowPartitionsRequest {
            db_name: database.into(),
            collection_name: name.into(),
            ..Default::default()
        };
        let answer = answer_call!(self, "ShowPartitions", show_partitions, request);
        let mut ids = answer.partition_i_ds.into_iter();
        let named = |partition: String| {
            let id = ids.next().unwrap_or_default();
            let id = rows::id_or_hash(id, &[database, name, &partition]);
            (partition, PartitionId(id))
        };
        Ok(answer.partition_names.into_iter().map(named).collect())
    }

    async fn create_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        ts: Tso,
    ) -> Result<(), TargetError> {
        let base = self.base(MsgType::CreatePartition, ts);
        let (db_name, collection_name, partition_name) =
            (database.into(), name.into(), partition.into());
        let request = rpc::CreatePartitionRequest {
            base,
            db_name,
            collection_name,
            partition_name,
        };
        status_call!(self, "CreatePartition", create_partition, request)
    }

    async fn drop_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        ts: Tso,
    ) -> Result<(), TargetError> {
        let base = self.base(MsgType::DropPartition, ts);
        let (db_name, collection_name, partition_name) =
            (database.into(), name.into(), partition.into());
        let request = rpc::DropPartitionRequest {
            base,
            db_name,
            collection_name,
            partition_name,
        };
        status_call!(self, "DropPartition", drop_partition, request)
    }

    async fn indexes(&self, database: &str, name: &str) -> Result<Vec<TargetIndex>, TargetError> {
        let mut client = self.client();
        let request = rpc::DescribeIndexRequest {
            db_name: database.into(),
            collection_name: name.into(),
            ..Default::default()
        };
        let mut answer = self
            .call(
                "DescribeIndex",
                client.describe_index(self.request(request)),
            )
            .await?;
        match self.check("DescribeIndex", answer.status.take()) {
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            other => other?,
        }
        let index = |i: rpc::IndexDescription| TargetIndex {
            name: i.index_name,
            field: i.field_name,
            params: i.params.into_iter().map(|p| (p.key, p.value)).collect(),
        };
        Ok(answer.index_descriptions.into_iter().map(index).collect())
    }

    async fn create_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError> {
        let request = rpc::CreateIndexRequest {
            base: self.base(MsgType::CreateIndex, Tso::ZERO),
            db_name: database.into(),
            collection_name: name.into(),
            field_name: index.field.clone(),
            index_name: index.name.clone(),
            extra_params: pairs(&index.params),
        };
        let named = |p: &KeyValuePair| p.key == "index_type";
        let mut typed = request.clone();
        match status_call!(self, "CreateIndex", create_index, request) {
            // Of a scalar field: 2.3 has one type and need not be told, milvus-lite has to.
            Err(TargetError::Refused { reason, .. })
                if self.writer.is_some()
                    && reason.contains("index_type")
                    && !typed.extra_params.iter().any(named) =>
            {
                let kind = ("index_type".to_owned(), "INVERTED".to_owned());
                typed.extra_params.extend(pairs(&[kind]));
                status_call!(self, "CreateIndex", create_index, typed)
            }
            other => other,
        }
    }

    async fn drop_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError> {
        status_call!(
            self,
            "DropIndex",
            drop_index,
            rpc::DropIndexRequest {
                base: self.base(MsgType::DropIndex, Tso::ZERO),
                db_name: database.into(),
                collection_name: name.into(),
                field_name: index.field.clone(),
                index_name: index.name.clone(),
            }
        )
    }

    async fn alter_index(
        &self,
        database: &str,
        name: &str,
        index: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        self.change_index((database, name, index), set, gone).await
    }

    async fn loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<Loaded, TargetError> {
        let request = rpc::GetLoadStateRequest {
            db_name: database.into(),
            collection_name: name.into(),
            partition_names: partitions.to_vec(),
            ..Default::default()
        };
        let answer = answer_call!(self, "GetLoadState", get_load_state, request);
        // LoadState: 0 NotExist, 1 NotLoad, 2 Loading, 3 Loaded.
        Ok(match answer.state {
            3 => Loaded::Yes,
            2 => Loaded::Loading,
            _ => Loaded::No,
        })
    }

    async fn load(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
        replicas: i32,
    ) -> Result<(), TargetError> {
        if partitions.is_empty() {
            let request = rpc::LoadCollectionRequest {
                base: self.base(MsgType::LoadCollection, Tso::ZERO),
                db_name: database.into(),
                collection_name: name.into(),
                replica_number: replicas,
                ..Default::default()
            };
            return status_call!(self, "LoadCollection", load_collection, request);
        }
        let request = rpc::LoadPartitionsRequest {
            base: self.base(MsgType::LoadPartitions, Tso::ZERO),
            db_name: database.into(),
            collection_name: name.into(),
            partition_names: partitions.to_vec(),
            replica_number: replicas,
            ..Default::default()
        };
        let loaded = async { status_call!(self, "LoadPartitions", load_partitions, request) };
        match loaded.await {
            // milvus-lite has no such call: it loads collections.
            Err(TargetError::Refused { code: 10, .. }) if self.writer.is_some() => {
                self.load(database, name, &[], replicas).await
            }
            other => other,
        }
    }

    async fn release(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<(), TargetError> {
        if partitions.is_empty() {
            let base = self.base(MsgType::ReleaseCollection, Tso::ZERO);
            let request = rpc::ReleaseCollectionRequest {
                base,
                db_name: database.into(),
                collection_name: name.into(),
            };
            return status_call!(self, "ReleaseCollection", release_collection, request);
        }
        let request = rpc::ReleasePartitionsRequest {
            base: self.base(MsgType::ReleasePartitions, Tso::ZERO),
            db_name: database.into(),
            collection_name: name.into(),
            partition_names: partitions.to_vec(),
        };
        let released =
            async { status_call!(self, "ReleasePartitions", release_partitions, request) };
        match released.await {
            // Where they cannot be released they need not be.
            Err(TargetError::Refused { code: 10, .. }) if self.writer.is_some() => Ok(()),
            other => other,
        }
    }

    async fn flush(&self, database: &str, names: &[String]) -> Result<(), TargetError> {
        self.flush_all(database, names).await.map(drop)
    }

    async fn is_flushed(
        &self,
        database: &str,
        name: &str,
        up_to: Tso,
    ) -> Result<bool, TargetError> {
        self.flushed_up_to(database, name, up_to).await
    }

    async fn nodes(&self) -> Result<Option<BTreeSet<String>>, TargetError> {
        self.data_nodes().await
    }
}

/// The schema as a client would send it: in field id order, without the system fields and `$meta`, which the target
/// adds by itself and refuses to be given.
pub(crate) fn user_schema(source: &Collection) -> CollectionSchema {
    let mut schema = source.schema.clone();
    schema.fields.retain(|f| f.field_id >= 100 && !f.is_dynamic);
    schema.name = source.name.clone();
    schema
}
