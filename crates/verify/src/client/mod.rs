//! Calls to Milvus that look: every request has its database and its deadline, every refusal names the call, the code
//! and the reason. The only calls that change anything are [`Client::load`] and [`Client::flush`], and nothing here makes
//! them unless it is told to load.

mod columns;
mod load;
mod read;
mod value;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use milvus::proto::common::Status;
use milvus::proto::milvus::milvus_service_client::MilvusServiceClient;
use milvus::proto::milvus::{self as pb, DescribeCollectionResponse, MutationResult};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response};

pub use cdc_keys::{Key, key_expr};
pub use columns::to_columns;
pub use read::Query;
pub use value::{META, Row, Value, from_columns};

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

/// The call came to no answer of Milvus.
#[derive(Debug, Clone)]
pub struct NoAnswer {
    pub call: String,
    pub code: Code,
    pub message: String,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: gRPC {:?}: {}", self.call, self.code, self.message)
    }
}

impl std::error::Error for NoAnswer {}

/// An answer that carries a status.
pub trait HasStatus {
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
    pb::DescribeDatabaseResponse,
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

/// A connection to one Milvus. Cheap to clone. Shows no login.
#[derive(Clone)]
pub struct Client {
    inner: MilvusServiceClient<Channel>,
    name: String,
    deadline: Duration,
    authorization: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish()
    }
}

/// Larger than an answer to what is asked for here; tonic's own limit is 4 MiB.
const ANSWER_LIMIT: usize = 128 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

impl Client {
    /// Over a connection that is there. `name` is what errors call this server; `login` is `user:password` or an API
    /// key. Each call may take 60 s, and an answer have 128 MiB.
    ///
    /// # Errors
    /// The login cannot be sent.
    pub fn over(name: &str, channel: Channel, login: Option<&str>) -> Result<Self> {
        let authorization = login
            .map(|login| {
                let encoded = base64::engine::general_purpose::STANDARD.encode(login);
                // The cause would show what could not be parsed.
                let parsed: Option<MetadataValue<Ascii>> = encoded.parse().ok();
                let mut value = parsed.context("the login cannot be sent")?;
                value.set_sensitive(true);
                anyhow::Ok(value)
            })
            .transpose()?;
        Ok(Self {
            inner: MilvusServiceClient::new(channel),
            name: name.to_owned(),
            deadline: DEADLINE,
            authorization,
        }
        .with_message_limit(ANSWER_LIMIT))
    }

    /// The same connection with another deadline per call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same connection with another limit of requests and answers, in bytes.
    #[must_use]
    pub fn with_message_limit(mut self, bytes: usize) -> Self {
        self.inner = self
            .inner
            .max_decoding_message_size(bytes)
            .max_encoding_message_size(bytes);
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The generated client, for what is not wrapped here.
    pub fn raw(&self) -> MilvusServiceClient<Channel> {
        self.inner.clone()
    }

    /// Makes a call. `method` and `what` are what errors call it.
    ///
    /// # Errors
    /// [`Refused`] by the server, or [`NoAnswer`].
    pub async fn call<Q, A, W>(
        &self,
        method: &str,
        what: impl fmt::Display,
        request: Q,
        send: impl FnOnce(MilvusServiceClient<Channel>, Request<Q>) -> W,
    ) -> Result<A>
    where
        A: HasStatus,
        W: Future<Output = Result<Response<A>, tonic::Status>>,
    {
        let call = format!("{}: {method} {what}", self.name);
        let mut request = Request::new(request);
        request.set_timeout(self.deadline);
        if let Some(login) = &self.authorization {
            let login = login.clone();
            request.metadata_mut().insert("authorization", login);
        }
        match tokio::time::timeout(self.deadline, send(self.inner.clone(), request)).await {
            Err(_) => Err(NoAnswer {
                call,
                code: Code::DeadlineExceeded,
                message: format!("no answer within {:?}", self.deadline),
            }
            .into()),
            Ok(Err(status)) => Err(NoAnswer {
                call,
                code: status.code(),
                message: status.message().to_owned(),
            }
            .into()),
            Ok(Ok(answer)) => accept(call, answer.into_inner()),
        }
    }
}

/// Success is code 0 *and* error_code 0.
#[allow(deprecated)] // error_code is all that 2.2 fills, and 2.3 fills both
fn accept<A: HasStatus>(call: String, answer: A) -> Result<A> {
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
    let reason = status.reason.clone();
    Err(Refused { call, code, reason }.into())
}

/// `call!(client, method, request, what)`
macro_rules! call {
    ($client:expr, $method:ident, $request:expr, $what:expr) => {
        $client
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
