//! A real source, by Milvus' gRPC API.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use milvus::proto::common::{ConsistencyLevel, LoadState, Status};
use milvus::proto::milvus as rpc;
use milvus::proto::milvus::milvus_service_client::MilvusServiceClient;
use milvus::proto::schema::{FieldData, field_data::Field, scalar_field::Data};
use tokio::sync::Mutex;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::rows::{Of, Part, RowsError, SourceRows};
use crate::ids::CollectionId;
use crate::secret::Secret;
use crate::tls::{self, ClientTls, FieldNames, NoChannel};
use crate::tso::Tso;

/// What a proxy sends at most if nobody has said otherwise (`proxy.grpc.clientMaxRecvSize` and the like).
const MAX_ANSWER: usize = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(60);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

const TLS_FIELDS: FieldNames = FieldNames {
    trusted: "sourceConfig.milvus.tlsCACertPath",
    certificate: "sourceConfig.milvus.tlsCertPath",
    key: "sourceConfig.milvus.tlsKeyPath",
    name: "the host in sourceConfig.milvus.uri",
    switch: "https://",
};

/// How to reach the proxies of a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowsConfig {
    /// `http://host:port` or `https://host:port`.
    pub uri: String,
    /// `user:password` or an API key; empty if it asks for none.
    pub token: Secret,
    /// Of use with `https` only.
    pub tls: ClientTls,
}

/// Connects when it is first asked, and again after a call that came to no answer.
pub struct GrpcRows {
    config: RowsConfig,
    channel: Mutex<Option<Channel>>,
}

impl std::fmt::Debug for GrpcRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcRows")
            .field("uri", &self.config.uri)
            .finish_non_exhaustive()
    }
}

macro_rules! ask {
    ($self:ident, $name:literal, $method:ident, $request:expr) => {{
        let (mut client, request) = $self.request($request).await?;
        let answer = tokio::time::timeout(DEADLINE, client.$method(request)).await;
        $self.answer($name, answer).await?
    }};
}

impl GrpcRows {
    pub fn new(config: RowsConfig) -> Self {
        Self {
            config,
            channel: Mutex::default(),
        }
    }

    fn configuration(&self, cause: String, hint: impl Into<String>) -> RowsError {
        RowsError::Configuration {
            address: self.config.uri.clone(),
            cause,
            hint: hint.into(),
        }
    }

    fn unavailable(&self, call: &'static str, cause: String) -> RowsError {
        RowsError::Unavailable {
            address: self.config.uri.clone(),
            call,
            cause,
        }
    }

    async fn connected(&self) -> Result<Channel, RowsError> {
        let mut channel = self.channel.lock().await;
        if let Some(channel) = channel.as_ref() {
            return Ok(channel.clone());
        }
        let connected = tls::channel(&self.config.uri, &self.config.tls, CONNECT_WITHIN).await;
        let fresh = connected.map_err(|e| match e {
            NoChannel::Address => self.configuration(
                e.to_string(),
                "sourceConfig.milvus.uri has the form http://host:port or https://host:port",
            ),
            NoChannel::Tls(fault) => self.configuration(fault.to_string(), fault.hint(&TLS_FIELDS)),
            NoChannel::Unreachable(cause) => self.unavailable("connect", cause),
        })?;
        *channel = Some(fresh.clone());
        Ok(fresh)
    }

    async fn request<T>(
        &self,
        message: T,
    ) -> Result<(MilvusServiceClient<Channel>, tonic::Request<T>), RowsError> {
        let channel = self.connected().await?;
        let client = MilvusServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let mut request = tonic::Request::new(message);
        request.set_timeout(DEADLINE);
        if !self.config.token.is_empty() {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(self.config.token.expose());
            let mut value: MetadataValue<Ascii> = encoded.parse().map_err(|_| {
                self.configuration(
                    "the login cannot be sent".to_owned(),
                    "check sourceConfig.milvus.token",
                )
            })?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok((client, request))
    }

    async fn answer<T>(
        &self,
        call: &'static str,
        answer: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, RowsError> {
        let status = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => {
                *self.channel.lock().await = None;
                return Err(self.unavailable(call, format!("none within {DEADLINE:?}")));
            }
        };
        let address = self.config.uri.clone();
        Err(match status.code() {
            Code::Unauthenticated | Code::PermissionDenied
                if std::error::Error::source(&status).is_none() =>
            {
                self.configuration(
                    format!("{call}: {}", status.message()),
                    "check sourceConfig.milvus.token (user:password or an API key)",
                )
            }
            // A connection that breaks off can look like it; what the server has answered has no other error behind it.
            Code::OutOfRange | Code::ResourceExhausted
                if std::error::Error::source(&status).is_none() =>
            {
                RowsError::TooLarge {
                    address,
                    call,
                    cause: status.message().to_owned(),
                }
            }
            _ => {
                *self.channel.lock().await = None;
                self.unavailable(call, format!("{:?}: {}", status.code(), status.message()))
            }
        })
    }

    #[allow(
        deprecated,
        reason = "error_code is all that servers before 2.3 fill in"
    )]
    fn check(&self, call: &'static str, status: Option<Status>) -> Result<(), RowsError> {
        let status = status.unwrap_or_default();
        if status.code == 0 && status.error_code == 0 {
            return Ok(());
        }
        let (address, reason) = (self.config.uri.clone(), status.reason);
        let is_large = [
            "message larger than max",
            "exceeds the maximum",
            "exceeds the limit",
            "exceed the max",
        ];
        if is_large.iter().any(|words| reason.contains(words)) {
            return Err(RowsError::TooLarge {
                address,
                call,
                cause: reason,
            });
        }
        Err(RowsError::Refused {
            address,
            call,
            code: if status.code == 0 { 65535 } else { status.code },
            reason,
        })
    }

    async fn query(
        &self,
        call: &'static str,
        of: &Of,
        part: &Part,
        at: Tso,
        output: Vec<String>,
    ) -> Result<Vec<FieldData>, RowsError> {
        let request = rpc::QueryRequest {
            db_name: of.database.clone(),
            collection_name: of.name.clone(),
            partition_names: part.partition.iter().cloned().collect(),
            expr: part.range.expr(&of.primary),
            output_fields: output,
            // As of that time or later. Strong would wait for a tick with every call.
            consistency_level: ConsistencyLevel::Customized.into(),
            guarantee_timestamp: at.0,
            ..Default::default()
        };
        let answer: rpc::QueryResults = ask!(self, "Query", query, request);
        self.check(call, answer.status)?;
        Ok(answer.fields_data)
    }
}

#[async_trait]
impl SourceRows for GrpcRows {
    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<CollectionId>, RowsError> {
        let request = rpc::DescribeCollectionRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            ..Default::default()
        };
        let answer: rpc::DescribeCollectionResponse =
            ask!(self, "DescribeCollection", describe_collection, request);
        match self.check("DescribeCollection", answer.status) {
            Ok(()) => Ok(Some(CollectionId(answer.collection_id))),
            // 100: no such collection; 800: no such database.
            Err(RowsError::Refused {
                code: 100 | 800, ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn is_loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<bool, RowsError> {
        let request = rpc::GetLoadStateRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            partition_names: partitions.to_vec(),
            ..Default::default()
        };
        let answer: rpc::GetLoadStateResponse = ask!(self, "GetLoadState", get_load_state, request);
        self.check("GetLoadState", answer.status)?;
        Ok(answer.state == i32::from(LoadState::Loaded))
    }

    async fn load(&self, database: &str, name: &str) -> Result<(), RowsError> {
        let request = rpc::LoadCollectionRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            replica_number: 1,
            ..Default::default()
        };
        let status: Status = ask!(self, "LoadCollection", load_collection, request);
        self.check("LoadCollection", Some(status))
    }

    async fn release(&self, database: &str, name: &str) -> Result<(), RowsError> {
        let request = rpc::ReleaseCollectionRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            ..Default::default()
        };
        let status: Status = ask!(self, "ReleaseCollection", release_collection, request);
        self.check("ReleaseCollection", Some(status))
    }

    async fn count(&self, of: &Of, part: &Part, at: Tso) -> Result<u64, RowsError> {
        let output = vec!["count(*)".to_owned()];
        let columns = self.query("Query count(*)", of, part, at, output).await?;
        let count = columns.iter().find_map(|c| match &c.field {
            Some(Field::Scalars(s)) => match &s.data {
                Some(Data::LongData(counts)) => counts.data.first().copied(),
                _ => None,
            },
            _ => None,
        });
        count
            .and_then(|count| u64::try_from(count).ok())
            .ok_or_else(|| RowsError::Refused {
                address: self.config.uri.clone(),
                call: "Query count(*)",
                code: 65535,
                reason: "no number was answered".to_owned(),
            })
    }

    async fn read(&self, of: &Of, part: &Part, at: Tso) -> Result<Vec<FieldData>, RowsError> {
        let columns = self.query("Query", of, part, at, of.fields.clone()).await?;
        let named = |mut column: FieldData| {
            if column.is_dynamic && column.field_name.is_empty() {
                column.field_name = "$meta".to_owned();
            }
            column
        };
        Ok(columns.into_iter().map(named).collect())
    }
}
