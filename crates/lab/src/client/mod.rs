//! Calls to Milvus as a client makes them, thin: every request has its database and its deadline, every refusal names
//! the call, the code and the reason.

mod rows;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use milvus::proto::common::{
    ConsistencyLevel, KeyValuePair, LoadState, MsgBase, MsgType, ReplicateInfo, SegmentState,
    Status,
};
use milvus::proto::milvus::milvus_service_client::MilvusServiceClient;
use milvus::proto::milvus::{
    self as pb, DescribeCollectionResponse, IndexDescription, MutationResult,
    ReplicateMessageRequest,
};
use milvus::proto::schema::{CollectionSchema, IDs, i_ds};
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

pub use rows::{Key, META, Row, Value, from_columns, to_columns};

/// Larger than any answer a test asks for; tonic's own limit is 4 MiB.
const ANSWER_LIMIT: usize = 512 << 20;

/// A refusal by the server.
#[derive(Debug, Clone)]
pub struct Refused {
    pub call: String,
    /// `merr` code; the old enum's value where the server fills only that.
    pub code: i32,
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: code {}: {}", self.call, self.code, self.reason)
    }
}

impl std::error::Error for Refused {}

/// A connection to one Milvus. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: MilvusServiceClient<Channel>,
    name: String,
    deadline: Duration,
    authorization: Option<MetadataValue<Ascii>>,
    /// Source time put into `base.replicateInfo` of DDL; `None` for an ordinary client.
    replicate: Option<u64>,
}

/// What a new collection is made of besides its schema.
#[derive(Debug, Clone)]
pub struct CollectionOptions {
    pub shards: i32,
    pub consistency: ConsistencyLevel,
    pub properties: Vec<(String, String)>,
    /// Of a collection with a partition key; 0 leaves it to the server.
    pub partitions: i64,
}

/// What a query asks for.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    pub db: &'a str,
    pub collection: &'a str,
    /// Empty: all.
    pub partitions: &'a [String],
    pub expr: &'a str,
    pub output: &'a [String],
    pub consistency: ConsistencyLevel,
}

trait HasStatus {
    fn status(&self) -> Option<&Status>;
}

impl HasStatus for Status {
    fn status(&self) -> Option<&Status> {
        Some(self)
    }
}

macro_rules! has_status {
    ($($answer:ty),* $(,)?) => {
        $(impl HasStatus for $answer {
            fn status(&self) -> Option<&Status> {
                self.status.as_ref()
            }
        })*
    };
}

has_status!(
    MutationResult,
    DescribeCollectionResponse,
    pb::ListDatabasesResponse,
    pb::ShowCollectionsResponse,
    pb::ShowPartitionsResponse,
    pb::DescribeIndexResponse,
    pb::GetLoadStateResponse,
    pb::FlushResponse,
    pb::GetFlushStateResponse,
    pb::GetPersistentSegmentInfoResponse,
    pb::QueryResults,
    pb::AllocTimestampResponse,
    pb::ReplicateMessageResponse,
    pb::GetVersionResponse,
);

#[allow(deprecated)] // error_code is all that 2.2 fills, and 2.3 fills both
fn accept<A: HasStatus>(call: &str, answer: A) -> Result<A> {
    let Some(status) = answer.status() else {
        return Ok(answer);
    };
    let code = if status.code == 0 {
        status.error_code
    } else {
        status.code
    };
    if code == 0 {
        return Ok(answer);
    }
    Err(Refused {
        call: call.to_owned(),
        code,
        reason: status.reason.clone(),
    }
    .into())
}

macro_rules! call {
    ($client:expr, $method:ident, $request:expr, $what:expr) => {{
        let client = $client;
        let what = format!("{}: {} {}", client.name, stringify!($method), $what);
        let mut request = tonic::Request::new($request);
        request.set_timeout(client.deadline);
        if let Some(login) = &client.authorization {
            request
                .metadata_mut()
                .insert("authorization", login.clone());
        }
        let mut inner = client.inner.clone();
        match tokio::time::timeout(client.deadline, inner.$method(request)).await {
            Err(_) => Err(anyhow::anyhow!(
                "{what}: no answer within {:?}",
                client.deadline
            )),
            Ok(Err(status)) => Err(anyhow::anyhow!(
                "{what}: gRPC {:?}: {}",
                status.code(),
                status.message()
            )),
            Ok(Ok(answer)) => accept(&what, answer.into_inner()),
        }
    }};
}

fn pairs(of: &[(String, String)]) -> Vec<KeyValuePair> {
    of.iter()
        .map(|(key, value)| KeyValuePair {
            key: key.clone(),
            value: value.clone(),
        })
        .collect()
}

impl Client {
    /// Connects to `uri` (`http://host:port`). `name` is what errors call this server.
    ///
    /// # Errors
    /// A wrong address, or nobody answers there.
    pub async fn connect(name: &str, uri: &str) -> Result<Self> {
        Self::connect_as(name, uri, None, None).await
    }

    /// As [`Client::connect`], to a server with TLS (`https://host:port`) or one that asks for a login, `user:password`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_as(
        name: &str,
        uri: &str,
        tls: Option<ClientTlsConfig>,
        login: Option<&str>,
    ) -> Result<Self> {
        let mut endpoint = Endpoint::from_shared(uri.to_owned())
            .with_context(|| format!("the address {uri}"))?
            .connect_timeout(Duration::from_secs(10));
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).context("the settings of TLS")?;
        }
        let authorization = login
            .map(|login| {
                base64::engine::general_purpose::STANDARD
                    .encode(login)
                    .parse()
            })
            .transpose()
            .context("the login")?;
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("connect to {name} at {uri}"))?;
        let inner = MilvusServiceClient::new(channel)
            .max_decoding_message_size(ANSWER_LIMIT)
            .max_encoding_message_size(ANSWER_LIMIT);
        Ok(Self {
            inner,
            name: name.to_owned(),
            deadline: Duration::from_secs(60),
            authorization,
            replicate: None,
        })
    }

    /// The same connection with another deadline per call (60 s otherwise).
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same connection as a replicator: DDL carries `base.replicateInfo` with this source time. The only way to
    /// do DDL on a standby that does not disturb it.
    #[must_use]
    pub fn replicating(mut self, source_time: u64) -> Self {
        self.replicate = Some(source_time);
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The generated client, for what is not wrapped here.
    pub fn raw(&self) -> MilvusServiceClient<Channel> {
        self.inner.clone()
    }

    #[allow(deprecated)] // replicateInfo: no other way up to 2.5
    fn base(&self, kind: MsgType) -> Option<MsgBase> {
        let replicate_info = self.replicate.map(|ts| ReplicateInfo {
            is_replicate: true,
            msg_timestamp: ts,
            replicate_id: String::new(),
        });
        Some(MsgBase {
            replicate_info,
            ..MsgBase::new(kind)
        })
    }

    /// The server's version, `v2.3.5`.
    pub async fn version(&self) -> Result<String> {
        Ok(call!(self, get_version, pb::GetVersionRequest {}, "")?.version)
    }

    /// A timestamp of the server's oracle.
    pub async fn alloc_timestamp(&self) -> Result<u64> {
        Ok(call!(
            self,
            alloc_timestamp,
            pb::AllocTimestampRequest {
                base: self.base(MsgType::Undefined)
            },
            ""
        )?
        .timestamp)
    }

    // --- databases

    pub async fn create_database(&self, db: &str) -> Result<()> {
        let request = pb::CreateDatabaseRequest {
            base: self.base(MsgType::CreateDatabase),
            db_name: db.to_owned(),
            ..Default::default()
        };
        call!(self, create_database, request, db).map(drop)
    }

    pub async fn drop_database(&self, db: &str) -> Result<()> {
        let request = pb::DropDatabaseRequest {
            base: self.base(MsgType::DropDatabase),
            db_name: db.to_owned(),
        };
        call!(self, drop_database, request, db).map(drop)
    }

    pub async fn databases(&self) -> Result<Vec<String>> {
        let request = pb::ListDatabasesRequest {
            base: self.base(MsgType::ListDatabases),
        };
        Ok(call!(self, list_databases, request, "")?.db_names)
    }

    // --- collections

    pub async fn create_collection(
        &self,
        db: &str,
        schema: &CollectionSchema,
        options: &CollectionOptions,
    ) -> Result<()> {
        let request = pb::CreateCollectionRequest {
            base: self.base(MsgType::CreateCollection),
            db_name: db.to_owned(),
            collection_name: schema.name.clone(),
            schema: schema.encode_to_vec(),
            shards_num: options.shards,
            consistency_level: options.consistency.into(),
            properties: pairs(&options.properties),
            num_partitions: options.partitions,
        };
        call!(
            self,
            create_collection,
            request,
            format!("{db}.{}", schema.name)
        )
        .map(drop)
    }

    pub async fn drop_collection(&self, db: &str, collection: &str) -> Result<()> {
        let request = pb::DropCollectionRequest {
            base: self.base(MsgType::DropCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
        };
        call!(self, drop_collection, request, format!("{db}.{collection}")).map(drop)
    }

    pub async fn collections(&self, db: &str) -> Result<Vec<String>> {
        let request = pb::ShowCollectionsRequest {
            base: self.base(MsgType::ShowCollections),
            db_name: db.to_owned(),
            ..Default::default()
        };
        Ok(call!(self, show_collections, request, db)?.collection_names)
    }

    pub async fn describe(&self, db: &str, collection: &str) -> Result<DescribeCollectionResponse> {
        let request = pb::DescribeCollectionRequest {
            base: self.base(MsgType::DescribeCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        call!(
            self,
            describe_collection,
            request,
            format!("{db}.{collection}")
        )
    }

    // --- partitions

    pub async fn create_partition(
        &self,
        db: &str,
        collection: &str,
        partition: &str,
    ) -> Result<()> {
        let request = pb::CreatePartitionRequest {
            base: self.base(MsgType::CreatePartition),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_name: partition.to_owned(),
        };
        call!(
            self,
            create_partition,
            request,
            format!("{db}.{collection}/{partition}")
        )
        .map(drop)
    }

    pub async fn drop_partition(&self, db: &str, collection: &str, partition: &str) -> Result<()> {
        let request = pb::DropPartitionRequest {
            base: self.base(MsgType::DropPartition),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_name: partition.to_owned(),
        };
        call!(
            self,
            drop_partition,
            request,
            format!("{db}.{collection}/{partition}")
        )
        .map(drop)
    }

    /// Names with ids.
    pub async fn partitions(&self, db: &str, collection: &str) -> Result<Vec<(String, i64)>> {
        let request = pb::ShowPartitionsRequest {
            base: self.base(MsgType::ShowPartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        let answer = call!(self, show_partitions, request, format!("{db}.{collection}"))?;
        Ok(answer
            .partition_names
            .into_iter()
            .zip(answer.partition_i_ds)
            .collect())
    }

    // --- indexes

    pub async fn create_index(
        &self,
        db: &str,
        collection: &str,
        field: &str,
        name: &str,
        params: &[(String, String)],
    ) -> Result<()> {
        let request = pb::CreateIndexRequest {
            base: self.base(MsgType::CreateIndex),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            field_name: field.to_owned(),
            index_name: name.to_owned(),
            extra_params: pairs(params),
        };
        call!(
            self,
            create_index,
            request,
            format!("{db}.{collection} {field}")
        )
        .map(drop)
    }

    pub async fn drop_index(
        &self,
        db: &str,
        collection: &str,
        field: &str,
        name: &str,
    ) -> Result<()> {
        let request = pb::DropIndexRequest {
            base: self.base(MsgType::DropIndex),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            field_name: field.to_owned(),
            index_name: name.to_owned(),
        };
        call!(
            self,
            drop_index,
            request,
            format!("{db}.{collection} {field}")
        )
        .map(drop)
    }

    /// All indexes; none is not an error.
    pub async fn indexes(&self, db: &str, collection: &str) -> Result<Vec<IndexDescription>> {
        let request = pb::DescribeIndexRequest {
            base: self.base(MsgType::DescribeIndex),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        match call!(self, describe_index, request, format!("{db}.{collection}")) {
            Ok(answer) => Ok(answer.index_descriptions),
            // 700: IndexNotFound; 25 is its old number.
            Err(e)
                if e.downcast_ref::<Refused>()
                    .is_some_and(|r| r.code == 700 || r.code == 25) =>
            {
                Ok(Vec::new())
            }
            Err(e) => Err(e),
        }
    }

    // --- load state

    pub async fn load(&self, db: &str, collection: &str) -> Result<()> {
        let request = pb::LoadCollectionRequest {
            base: self.base(MsgType::LoadCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            replica_number: 1,
            ..Default::default()
        };
        call!(self, load_collection, request, format!("{db}.{collection}")).map(drop)
    }

    pub async fn release(&self, db: &str, collection: &str) -> Result<()> {
        let request = pb::ReleaseCollectionRequest {
            base: self.base(MsgType::ReleaseCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
        };
        call!(
            self,
            release_collection,
            request,
            format!("{db}.{collection}")
        )
        .map(drop)
    }

    pub async fn load_partitions(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<()> {
        let request = pb::LoadPartitionsRequest {
            base: self.base(MsgType::LoadPartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
            replica_number: 1,
            ..Default::default()
        };
        call!(
            self,
            load_partitions,
            request,
            format!("{db}.{collection} {partitions:?}")
        )
        .map(drop)
    }

    pub async fn release_partitions(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<()> {
        let request = pb::ReleasePartitionsRequest {
            base: self.base(MsgType::ReleasePartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
        };
        call!(
            self,
            release_partitions,
            request,
            format!("{db}.{collection} {partitions:?}")
        )
        .map(drop)
    }

    /// Of the collection, or of the partitions if any are given.
    pub async fn load_state(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<LoadState> {
        let request = pb::GetLoadStateRequest {
            base: self.base(MsgType::Undefined),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
        };
        let answer = call!(
            self,
            get_load_state,
            request,
            format!("{db}.{collection} {partitions:?}")
        )?;
        Ok(LoadState::try_from(answer.state).unwrap_or(LoadState::NotExist))
    }

    /// Waits until it is loaded.
    ///
    /// # Errors
    /// It is not within `deadline`.
    pub async fn wait_loaded(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
        deadline: Duration,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let state = self.load_state(db, collection, partitions).await?;
            if state == LoadState::Loaded {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "{}: {db}.{collection} {partitions:?} is {state:?} after {deadline:?}",
                    self.name
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    // --- rows

    /// Inserts rows given as columns; the answer has the keys and the timestamp.
    pub async fn insert(
        &self,
        db: &str,
        schema: &CollectionSchema,
        partition: &str,
        rows: &[Row],
    ) -> Result<MutationResult> {
        let request = pb::InsertRequest {
            base: self.base(MsgType::Insert),
            db_name: db.to_owned(),
            collection_name: schema.name.clone(),
            partition_name: partition.to_owned(),
            fields_data: to_columns(schema, rows)?,
            num_rows: u32::try_from(rows.len())?,
            ..Default::default()
        };
        call!(
            self,
            insert,
            request,
            format!("{db}.{}/{partition} {} rows", schema.name, rows.len())
        )
    }

    pub async fn upsert(
        &self,
        db: &str,
        schema: &CollectionSchema,
        partition: &str,
        rows: &[Row],
    ) -> Result<MutationResult> {
        let request = pb::UpsertRequest {
            base: self.base(MsgType::Upsert),
            db_name: db.to_owned(),
            collection_name: schema.name.clone(),
            partition_name: partition.to_owned(),
            fields_data: to_columns(schema, rows)?,
            num_rows: u32::try_from(rows.len())?,
            ..Default::default()
        };
        call!(
            self,
            upsert,
            request,
            format!("{db}.{}/{partition} {} rows", schema.name, rows.len())
        )
    }

    pub async fn delete(
        &self,
        db: &str,
        collection: &str,
        partition: &str,
        expr: &str,
    ) -> Result<MutationResult> {
        let request = pb::DeleteRequest {
            base: self.base(MsgType::Delete),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_name: partition.to_owned(),
            expr: expr.to_owned(),
            ..Default::default()
        };
        call!(
            self,
            delete,
            request,
            format!("{db}.{collection}/{partition}")
        )
    }

    /// Asks for a flush and returns at once.
    pub async fn flush(&self, db: &str, collections: &[String]) -> Result<pb::FlushResponse> {
        let request = pb::FlushRequest {
            base: self.base(MsgType::Flush),
            db_name: db.to_owned(),
            collection_names: collections.to_vec(),
        };
        call!(self, flush, request, format!("{db} {collections:?}"))
    }

    /// Asks for a flush and waits for its end.
    ///
    /// # Errors
    /// It has not ended within `deadline`.
    pub async fn flush_and_wait(
        &self,
        db: &str,
        collection: &str,
        deadline: Duration,
    ) -> Result<()> {
        let flush = self.flush(db, &[collection.to_owned()]).await?;
        let end = Instant::now() + deadline;
        loop {
            let request = pb::GetFlushStateRequest {
                segment_i_ds: flush
                    .coll_seg_i_ds
                    .get(collection)
                    .map(|a| a.data.clone())
                    .unwrap_or_default(),
                flush_ts: flush
                    .coll_flush_ts
                    .get(collection)
                    .copied()
                    .unwrap_or_default(),
                db_name: db.to_owned(),
                collection_name: collection.to_owned(),
            };
            if call!(self, get_flush_state, request, format!("{db}.{collection}"))?.flushed {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "{}: the flush of {db}.{collection} has not ended after {deadline:?}",
                    self.name
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// State and rows of each segment that is in the storage or on its way there.
    pub async fn persistent_segments(
        &self,
        db: &str,
        collection: &str,
    ) -> Result<Vec<(SegmentState, i64)>> {
        let request = pb::GetPersistentSegmentInfoRequest {
            base: self.base(MsgType::Undefined),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        let answer = call!(
            self,
            get_persistent_segment_info,
            request,
            format!("{db}.{collection}")
        )?;
        let infos = answer.infos.iter();
        Ok(infos.map(|i| (i.state(), i.num_rows)).collect())
    }

    /// The rows an expression selects.
    pub async fn query(&self, q: &Query<'_>) -> Result<Vec<Row>> {
        from_columns(self.query_raw(q).await?.fields_data)
    }

    async fn query_raw(&self, q: &Query<'_>) -> Result<pb::QueryResults> {
        let request = pb::QueryRequest {
            base: self.base(MsgType::Retrieve),
            db_name: q.db.to_owned(),
            collection_name: q.collection.to_owned(),
            partition_names: q.partitions.to_vec(),
            expr: q.expr.to_owned(),
            output_fields: q.output.to_vec(),
            consistency_level: q.consistency.into(),
            ..Default::default()
        };
        call!(
            self,
            query,
            request,
            format!("{}.{} {:?}", q.db, q.collection, q.partitions)
        )
    }

    /// `count(*)`: every physical copy of a row counts.
    pub async fn count(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
        consistency: ConsistencyLevel,
    ) -> Result<u64> {
        self.count_where(db, collection, partitions, "", consistency)
            .await
    }

    /// `count(*)` of the rows an expression selects.
    pub async fn count_where(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
        expr: &str,
        consistency: ConsistencyLevel,
    ) -> Result<u64> {
        let output = ["count(*)".to_owned()];
        let rows = self
            .query(&Query {
                db,
                collection,
                partitions,
                expr,
                output: &output,
                consistency,
            })
            .await?;
        match rows.first().and_then(|r| r.get("count(*)")) {
            Some(Value::Int(n)) => Ok(u64::try_from(*n)?),
            other => bail!(
                "{}: count(*) of {db}.{collection} answered {other:?}",
                self.name
            ),
        }
    }

    // --- replication

    /// Messages for one physical channel of a standby; answers the position.
    pub async fn replicate(
        &self,
        channel: &str,
        end_ts: u64,
        msgs: Vec<Vec<u8>>,
    ) -> Result<String> {
        #[allow(deprecated)] // deprecated with 2.6, which this laboratory does not run
        let answer = {
            let request = ReplicateMessageRequest {
                base: self.base(MsgType::Undefined),
                channel_name: channel.to_owned(),
                begin_ts: end_ts,
                end_ts,
                msgs,
                ..Default::default()
            };
            call!(self, replicate_message, request, channel)?
        };
        Ok(answer.position)
    }
}

/// The keys of a mutation's answer.
pub fn keys(ids: Option<IDs>) -> Vec<Key> {
    match ids.and_then(|i| i.id_field) {
        Some(i_ds::IdField::IntId(a)) => a.data.into_iter().map(Key::Int).collect(),
        Some(i_ds::IdField::StrId(a)) => a.data.into_iter().map(Key::Str).collect(),
        _ => Vec::new(),
    }
}

/// `field in [...]`, strings escaped as Milvus reads them.
pub fn key_expr(field: &str, keys: &[Key]) -> String {
    let list: Vec<String> = keys.iter().map(Key::literal).collect();
    format!("{field} in [{}]", list.join(","))
}
