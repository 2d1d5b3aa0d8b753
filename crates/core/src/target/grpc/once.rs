//! A call that leaves at once or never, as ReplicateMessage does, with a message of its own.

use std::time::Duration;

use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder, ProstCodec};
use tonic::codegen::http::uri::PathAndQuery;

use super::GrpcTarget;
use super::replicate::{Way, dispatched};
use crate::target::{DISPATCH, TargetError};

type Inner<Q, A> = ProstCodec<Q, A>;

/// Writes the request when there is a connection that it is written to, and tells.
struct Told<Q, A> {
    inner: Inner<Q, A>,
    way: Way,
}

struct TellingEncoder<E> {
    inner: E,
    way: Way,
}

impl<Q: Message + 'static, A: Message + Default + 'static> Codec for Told<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = TellingEncoder<<Inner<Q, A> as Codec>::Encoder>;
    type Decoder = <Inner<Q, A> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        TellingEncoder {
            inner: self.inner.encoder(),
            way: self.way.clone(),
        }
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.inner.decoder()
    }
}

impl<E: Encoder<Error = Status>> Encoder for TellingEncoder<E> {
    type Item = E::Item;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if self.way.leave() {
            self.inner.encode(item, out)
        } else {
            Err(Status::cancelled("given up before there was a connection"))
        }
    }
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
        inner: Inner::<Q, A>::default(),
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
    dispatched(target, name, &way, call).await
}
