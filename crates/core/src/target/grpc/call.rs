//! One call: its deadline, its login, and what its answer means.

use std::future::Future;
use std::time::Duration;

use milvus::proto::common::Status;
use milvus::proto::milvus::milvus_service_client::MilvusServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::{GrpcTarget, MAX_ANSWER, no_connection};
use crate::target::TargetError;
use crate::tls;

/// Deadline of every call but ReplicateMessage.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A call that is there by name alone answers with nothing at all: AlterIndex of a 2.3.5 (seen).
const NO_ANSWER: &str = "Marshal called with nil";

impl GrpcTarget {
    pub(super) fn client(&self) -> MilvusServiceClient<Channel> {
        MilvusServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        self.request_within(message, CALL_TIMEOUT)
    }

    pub(super) fn request_within<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        if let Some(value) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        request
    }

    /// Awaits a call. Its deadline travels with the request; here a little is added for the way back, so that no wait
    /// is without end when the server does not keep it.
    pub(super) async fn call<T>(
        &self,
        call: &'static str,
        f: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, TargetError> {
        self.call_within(call, CALL_TIMEOUT, f).await
    }

    pub(super) async fn call_within<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        f: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, TargetError> {
        let uri = self.uri.clone();
        match tokio::time::timeout(deadline + Duration::from_millis(500), f).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // There was no connection, so the call did not get out.
            Ok(Err(status)) if tls::fault(&status).is_some() => Err(no_connection(uri, &status)),
            // A connection that breaks off can look like an answer: HTTP/2's ENHANCE_YOUR_CALM like ResourceExhausted,
            // INADEQUATE_SECURITY like PermissionDenied. What the server has answered has no other error behind it.
            Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
                Err(TargetError::Unknown {
                    uri,
                    call,
                    cause: chain(&status),
                })
            }
            Ok(Err(status)) => Err(match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => TargetError::Configuration {
                    uri,
                    cause: format!("{call}: {}", status.message()),
                    hint: "check milvus_connect_param.token (user:password or an API key)".into(),
                },
                Code::Unimplemented => no_such_call(uri, call),
                Code::Internal if status.message().contains(NO_ANSWER) => no_such_call(uri, call),
                Code::ResourceExhausted | Code::InvalidArgument => TargetError::Refused {
                    uri,
                    call,
                    code: 1102,
                    reason: status.message().to_owned(),
                },
                _ => TargetError::Unknown {
                    uri,
                    call,
                    cause: format!("{:?}: {}", status.code(), status.message()),
                },
            }),
            Err(_) => Err(TargetError::Unknown {
                uri,
                call,
                cause: format!("none within {deadline:?}"),
            }),
        }
    }

    /// Success is code 0 *and* error_code 0: servers before 2.3 fill only the latter.
    #[allow(
        deprecated,
        reason = "error_code is all that servers before 2.3 fill in"
    )]
    pub(super) fn check(
        &self,
        call: &'static str,
        status: Option<Status>,
    ) -> Result<(), TargetError> {
        let Some(status) = status else { return Ok(()) };
        if status.code == 0 && status.error_code == 0 {
            return Ok(());
        }
        let code = if status.code == 0 { 65535 } else { status.code };
        Err(TargetError::Refused {
            uri: self.uri.clone(),
            call,
            code,
            reason: status.reason,
        })
    }
}

fn no_such_call(uri: String, call: &'static str) -> TargetError {
    TargetError::Refused {
        uri,
        call,
        code: 10,
        reason: "the target has no such call".into(),
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Calls an RPC whose answer is a bare Status.
macro_rules! status_call {
    ($self:ident, $name:literal, $method:ident, $request:expr) => {{
        let mut client = $self.client();
        let status = $self
            .call($name, client.$method($self.request($request)))
            .await?;
        $self.check($name, Some(status))
    }};
}

/// Calls an RPC whose answer has a status in it, and gives the answer.
macro_rules! answer_call {
    ($self:ident, $name:literal, $method:ident, $request:expr) => {{
        let mut client = $self.client();
        let mut answer = $self
            .call($name, client.$method($self.request($request)))
            .await?;
        $self.check($name, answer.status.take())?;
        answer
    }};
}

pub(super) use {answer_call, status_call};
