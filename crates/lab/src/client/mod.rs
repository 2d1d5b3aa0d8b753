//! Calls to Milvus as a client makes them, thin: every request has its database and its deadline, every refusal names
//! the call, the code and the reason. What only looks is `cdc_verify`'s; what writes is here.

mod data;
mod objects;

use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result};
use cdc_verify::client as reader;
use milvus::proto::common::{ConsistencyLevel, KeyValuePair, MsgBase, MsgType, ReplicateInfo};
use milvus::proto::milvus as pb;
use tonic::transport::{ClientTlsConfig, Endpoint};

pub use cdc_verify::client::{
    Key, META, Query, Refused, Row, Value, from_columns, key_expr, to_columns,
};
pub use data::keys;

/// Larger than any request or answer of a test.
const MESSAGE_LIMIT: usize = 512 << 20;

/// A connection to one Milvus. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    reader: reader::Client,
    /// Source time put into `base.replicateInfo` of DDL; `None` for an ordinary client.
    replicate: Option<u64>,
}

/// What looks.
impl Deref for Client {
    type Target = reader::Client;

    fn deref(&self) -> &Self::Target {
        &self.reader
    }
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

macro_rules! call {
    ($client:expr, $method:ident, $request:expr, $what:expr) => {
        $client
            .reader
            .call(
                stringify!($method),
                $what,
                $request,
                |mut inner, request| async move { inner.$method(request).await },
            )
            .await
    };
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
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("connect to {name} at {uri}"))?;
        let reader = reader::Client::over(name, channel, login)?;
        Ok(Self {
            reader: reader.with_message_limit(MESSAGE_LIMIT),
            replicate: None,
        })
    }

    /// The same connection with another deadline per call (60 s otherwise).
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.reader = self.reader.with_deadline(deadline);
        self
    }

    /// The same connection as a replicator: DDL carries `base.replicateInfo` with this source time. The only way to
    /// do DDL on a standby that does not disturb it.
    #[must_use]
    pub fn replicating(mut self, source_time: u64) -> Self {
        self.replicate = Some(source_time);
        self
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
