//! Calls to Milvus as a client makes them, thin: every request has its database and its deadline, every refusal names
//! the call, the code and the reason.

mod data;
mod objects;
mod rows;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use milvus::proto::common::{
    ConsistencyLevel, KeyValuePair, MsgBase, MsgType, ReplicateInfo, Status,
};
use milvus::proto::milvus::milvus_service_client::MilvusServiceClient;
use milvus::proto::milvus::{self as pb, DescribeCollectionResponse, MutationResult};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

pub use data::{key_expr, keys};
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

use call;

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
}
