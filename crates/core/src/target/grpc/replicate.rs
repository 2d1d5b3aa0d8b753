//! ReplicateMessage, and whether it left.
//!
//! A call whose outcome is not known may be carried out for as long as its deadline, which travels with the request,
//! counts where the request arrives. So it has to be known until when it can still leave: while a channel connects, it
//! holds requests back. What has not left within [`DISPATCH`] never does, and nothing was done.

mod slices;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use milvus::proto::milvus as rpc;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::ProstCodec;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::transport::Channel;
use tower::Service;

use self::slices::Slices;
use super::GrpcTarget;
use crate::boot::boot_time;
use crate::ids::PChannel;
use crate::route::encode::Entry;
use crate::target::{DISPATCH, TargetError};
use crate::tso::Tso;

const CALL: &str = "ReplicateMessage";

type Answer = rpc::ReplicateMessageResponse;
/// Reads the answer. What is sent does not come from it: see [`Slices`].
type Plain = ProstCodec<(), Answer>;

/// Of one request: still held back, on its way, or given up before it was.
#[derive(Clone)]
pub(super) struct Way {
    now: Arc<AtomicU8>,
    /// Until when it may leave: whoever gives it up may be stopped, and wake when it is too late.
    until: Duration,
}

impl Way {
    const HELD: u8 = 0;
    const LEFT: u8 = 1;
    const GIVEN_UP: u8 = 2;

    pub(super) fn within(long: Duration) -> Self {
        Self {
            now: Arc::default(),
            until: boot_time().saturating_add(long),
        }
    }

    /// Whether it may be written to a connection now.
    pub(super) fn leave(&self) -> bool {
        boot_time() < self.until && self.decide(Self::LEFT)
    }

    /// Whether it never left, and from now on never does.
    fn give_up(&self) -> bool {
        self.decide(Self::GIVEN_UP)
    }

    fn decide(&self, to: u8) -> bool {
        let changed =
            self.now
                .compare_exchange(Self::HELD, to, Ordering::AcqRel, Ordering::Acquire);
        match changed {
            Ok(_) => true,
            Err(is) => is == to,
        }
    }
}

/// A channel that sends this body in place of the request's own.
struct Sending {
    channel: Channel,
    body: Option<Slices>,
}

impl Service<http::Request<Body>> for Sending {
    type Response = <Channel as Service<http::Request<Body>>>::Response;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.channel, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let body = self.body.take();
        self.channel
            .call(request.map(|empty| body.map_or(empty, Body::new)))
    }
}

pub(super) async fn send(
    target: &GrpcTarget,
    channel: &PChannel,
    msgs: Vec<Entry>,
    begin: Tso,
    end: Tso,
) -> Result<(), TargetError> {
    let way = Way::within(DISPATCH);
    let request = target.request_within((), target.call_timeout);
    let mut grpc = tonic::client::Grpc::new(Sending {
        channel: target.channel.clone(),
        body: Some(Slices::new(way.clone(), channel, msgs, begin, end)),
    });
    let call = target.call_within(CALL, target.call_timeout, async move {
        grpc.ready()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static("/milvus.proto.milvus.MilvusService/ReplicateMessage");
        grpc.unary(request, path, Plain::default()).await
    });
    let answer = dispatched(target, CALL, &way, call).await?;
    target.check(CALL, answer.status)
}

/// Awaits a call that leaves within [`DISPATCH`] or never.
pub(super) async fn dispatched<A>(
    target: &GrpcTarget,
    name: &'static str,
    way: &Way,
    call: impl Future<Output = Result<A, TargetError>>,
) -> Result<A, TargetError> {
    tokio::pin!(call);
    let not_sent = |cause: String| TargetError::Unreachable {
        uri: target.uri.clone(),
        call: name,
        cause,
    };
    let outcome = match tokio::time::timeout(DISPATCH, &mut call).await {
        Ok(outcome) => outcome,
        Err(_) if way.give_up() => {
            return Err(not_sent(format!("no connection within {DISPATCH:?}")));
        }
        Err(_) => call.await,
    };
    match outcome {
        Err(TargetError::Unknown { cause, .. }) if way.give_up() => Err(not_sent(cause)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_is_not_given_up_and_what_is_given_up_does_not_leave() {
        let long = Duration::from_secs(60);
        let way = Way::within(long);
        assert!(way.leave());
        assert!(!way.give_up());
        let way = Way::within(long);
        assert!(way.give_up() && way.give_up());
        assert!(!way.leave());
        let late = Way::within(Duration::ZERO);
        assert!(!late.leave());
        assert!(late.give_up());
    }
}
