//! The body of a ReplicateMessage call, from the parts of its messages.
//!
//! prost and tonic would copy every message twice on its way to the connection. Here what is large goes as it is, and
//! what is small is copied once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use milvus::proto::common::{MsgBase, MsgType};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tonic::Status;

use super::Way;
use crate::ids::PChannel;
use crate::route::encode::Entry;
use crate::tso::Tso;

/// Parts of at least this size go as they are.
const WHOLE: usize = 8 << 10;
/// Smaller ones are put together up to this size.
const TOGETHER: usize = 64 << 10;

/// ReplicateMessageRequest but for its messages; same layout as the official message.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
    #[prost(string, tag = "2")]
    channel_name: String,
    #[prost(uint64, tag = "3")]
    begin_ts: u64,
    #[prost(uint64, tag = "4")]
    end_ts: u64,
}

/// The field of a message.
const MSGS: u32 = 5;

/// One request. It looks whether it may leave when its first bytes are asked for: there is a connection then.
pub(super) struct Slices {
    way: Way,
    begun: bool,
    /// Of the gRPC message, without its five bytes.
    len: usize,
    entries: std::vec::IntoIter<Entry>,
    parts: VecDeque<Bytes>,
    /// Small ones.
    together: BytesMut,
    /// A large one that follows them.
    next: Option<Bytes>,
    /// What is still to come of the whole body.
    left: usize,
}

impl Slices {
    pub(super) fn new(
        way: Way,
        channel: &PChannel,
        msgs: Vec<Entry>,
        begin: Tso,
        end: Tso,
    ) -> Self {
        let head = Head {
            base: Some(MsgBase {
                msg_type: MsgType::Replicate as i32,
                ..Default::default()
            }),
            channel_name: channel.as_str().to_owned(),
            begin_ts: begin.0,
            end_ts: end.0,
        }
        .encode_to_vec();
        let msgs_len: usize = msgs
            .iter()
            .map(|m| 1 + encoded_len_varint(m.len() as u64) + m.len())
            .sum();
        let len = head.len() + msgs_len;
        let mut body = Self {
            way,
            begun: false,
            len,
            entries: msgs.into_iter(),
            parts: VecDeque::new(),
            together: BytesMut::new(),
            next: None,
            left: len + 5,
        };
        body.together = body.room();
        // The message of gRPC: not compressed, its length. One that is too long is refused in `poll_frame`.
        body.together.put_u8(0);
        body.together
            .put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        body.together.put_slice(&head);
        body
    }

    fn room(&self) -> BytesMut {
        BytesMut::with_capacity(self.left.min(TOGETHER + WHOLE))
    }

    fn chunk(&mut self) -> Option<Bytes> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        while self.together.len() < TOGETHER {
            match self.parts.pop_front() {
                Some(part) if part.len() < WHOLE => {
                    if self.together.capacity() == 0 {
                        self.together = self.room();
                    }
                    self.together.put_slice(&part);
                }
                Some(part) if self.together.is_empty() => return Some(part),
                Some(part) => {
                    self.next = Some(part);
                    break;
                }
                None => {
                    let Some(entry) = self.entries.next() else {
                        break;
                    };
                    if self.together.capacity() == 0 {
                        self.together = self.room();
                    }
                    encode_key(MSGS, WireType::LengthDelimited, &mut self.together);
                    encode_varint(entry.len() as u64, &mut self.together);
                    self.parts = entry.into_parts().into();
                }
            }
        }
        let together = std::mem::take(&mut self.together);
        (!together.is_empty()).then(|| together.freeze())
    }
}

impl Body for Slices {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.begun {
            this.begun = true;
            if !this.way.leave() {
                let gone = Status::cancelled("given up before there was a connection");
                return Poll::Ready(Some(Err(gone)));
            }
            if u32::try_from(this.len).is_err() {
                let long = format!("a call of {} bytes is more than gRPC takes", this.len);
                return Poll::Ready(Some(Err(Status::resource_exhausted(long))));
            }
        }
        let chunk = this.chunk();
        this.left -= chunk.as_ref().map_or(0, Bytes::len);
        match chunk {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun && self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use milvus::proto::milvus::ReplicateMessageRequest;
    use proptest::prelude::*;

    use super::*;

    /// `None`: it is refused.
    fn whole(mut body: Slices) -> Option<Vec<Bytes>> {
        let mut chunks = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut cx) {
            chunks.push(frame.ok()?.into_data().unwrap_or_default());
        }
        assert!(body.is_end_stream());
        Some(chunks)
    }

    fn entry(sizes: &[usize]) -> Entry {
        let parts = sizes.iter().enumerate();
        Entry::of_parts(parts.map(|(i, n)| vec![i as u8; *n].into()).collect())
    }

    #[test]
    fn what_is_given_up_has_no_body() {
        let way = Way::within(Duration::ZERO);
        let body = Slices::new(way, &PChannel::new("c"), Vec::new(), Tso(1), Tso(2));
        assert!(whole(body).is_none());
    }

    #[test]
    fn what_is_large_is_not_copied() {
        let large = Bytes::from(vec![1; 100_000]);
        let way = Way::within(Duration::from_secs(60));
        let msgs = vec![Entry::of_parts(vec![
            Bytes::from_static(b"head"),
            large.clone(),
        ])];
        let chunks = whole(Slices::new(way, &PChannel::new("c"), msgs, Tso(1), Tso(2))).unwrap();
        assert!(chunks.iter().any(|c| c.as_ptr() == large.as_ptr()));
    }

    proptest! {
        /// In whatever parts: what is sent is the official message.
        #[test]
        fn the_body_is_the_message(
            sizes in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![0..300_usize, 7_000..9_000_usize, 0..200_000_usize], 1..4),
                0..8,
            ),
            begin in any::<u64>(),
            end in any::<u64>(),
        ) {
            let msgs: Vec<Entry> = sizes.iter().map(|sizes| entry(sizes)).collect();
            let way = Way::within(Duration::from_secs(60));
            let channel = PChannel::new("by-dev-rootcoord-dml_0");
            let chunks = whole(Slices::new(way, &channel, msgs.clone(), Tso(begin), Tso(end))).unwrap();
            let all = chunks.concat();
            prop_assert_eq!(all[0], 0);
            prop_assert_eq!(u32::from_be_bytes([all[1], all[2], all[3], all[4]]) as usize, all.len() - 5);
            let wanted = ReplicateMessageRequest {
                base: Some(MsgBase { msg_type: MsgType::Replicate as i32, ..Default::default() }),
                channel_name: channel.as_str().to_owned(),
                begin_ts: begin,
                end_ts: end,
                msgs: msgs.iter().map(|m| m.whole().to_vec()).collect(),
                ..Default::default()
            };
            prop_assert!(wanted.encode_to_vec() == all[5..]);
        }
    }
}
