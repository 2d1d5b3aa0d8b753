//! ReplicateMessage and the other calls that change rows, and whether they left.
//!
//! A call whose outcome is not known may be carried out for as long as its deadline, which travels with the request,
//! counts where the request arrives. So it has to be known until when it can still leave: while a channel connects, it
//! holds requests back. What has not left within [`DISPATCH`] never does, and nothing was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::milvus as rpc;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder, ProstCodec};
use tonic::codegen::http::uri::PathAndQuery;

use super::GrpcTarget;
use crate::boot::boot_time;
use crate::ids::PChannel;
use crate::target::{DISPATCH, TargetError};
use crate::tso::Tso;

const CALL: &str = "ReplicateMessage";
const PATH: &str = "/milvus.proto.milvus.MilvusService/ReplicateMessage";

/// ReplicateMessageRequest with entries that share the batch's memory; same layout as the official message.
#[derive(Clone, PartialEq, Message)]
struct ReplicateRequest {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
    #[prost(string, tag = "2")]
    channel_name: String,
    #[prost(uint64, tag = "3")]
    begin_ts: u64,
    #[prost(uint64, tag = "4")]
    end_ts: u64,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    msgs: Vec<Bytes>,
}

type Plain<Q, A> = ProstCodec<Q, A>;

/// Of one request: still held back, on its way, or given up before it was.
#[derive(Clone)]
struct Way {
    now: Arc<AtomicU8>,
    /// Until when it may leave: whoever gives it up may be stopped, and wake when it is too late.
    until: Duration,
}

impl Way {
    const HELD: u8 = 0;
    const LEFT: u8 = 1;
    const GIVEN_UP: u8 = 2;

    fn within(long: Duration) -> Self {
        Self {
            now: Arc::default(),
            until: boot_time().saturating_add(long),
        }
    }

    /// Whether it may be written to a connection now.
    fn leave(&self) -> bool {
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

/// Writes the request when there is a connection that it is written to, and tells.
struct Told<Q, A> {
    plain: Plain<Q, A>,
    way: Way,
}

struct TellingEncoder<E> {
    plain: E,
    way: Way,
}

impl<Q: Message + 'static, A: Message + Default + 'static> Codec for Told<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = TellingEncoder<<Plain<Q, A> as Codec>::Encoder>;
    type Decoder = <Plain<Q, A> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        TellingEncoder {
            plain: self.plain.encoder(),
            way: self.way.clone(),
        }
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.plain.decoder()
    }
}

impl<E: Encoder<Error = Status>> Encoder for TellingEncoder<E> {
    type Item = E::Item;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if self.way.leave() {
            self.plain.encode(item, out)
        } else {
            Err(Status::cancelled("given up before there was a connection"))
        }
    }
}

pub(super) async fn send(
    target: &GrpcTarget,
    channel: &PChannel,
    msgs: Vec<Bytes>,
    begin: Tso,
    end: Tso,
) -> Result<(), TargetError> {
    let message = ReplicateRequest {
        base: Some(MsgBase {
            msg_type: MsgType::Replicate as i32,
            ..Default::default()
        }),
        channel_name: channel.as_str().to_owned(),
        begin_ts: begin.0,
        end_ts: end.0,
        msgs,
    };
    let answer: rpc::ReplicateMessageResponse =
        call_once(target, CALL, PATH, message, target.call_timeout).await?;
    target.check(CALL, answer.status)
}

/// A call that leaves within [`DISPATCH`] or never, with a deadline of `within`.
pub(super) async fn call_once<Q: Message + 'static, A: Message + Default + 'static>(
    target: &GrpcTarget,
    name: &'static str,
    path: &'static str,
    message: Q,
    within: Duration,
) -> Result<A, TargetError> {
    let way = Way::within(DISPATCH);
    let codec = Told {
        plain: Plain::<Q, A>::default(),
        way: way.clone(),
    };
    let request = target.request_within(message, within);
    let mut grpc = tonic::client::Grpc::new(target.channel.clone());
    let call = target.call_within(name, within, async move {
        grpc.ready()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static(path);
        grpc.unary(request, path, codec).await
    });
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
