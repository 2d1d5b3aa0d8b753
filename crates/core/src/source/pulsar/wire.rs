//! Frames of Pulsar's binary protocol, and the messages inside an entry.

use std::io::Read;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use pulsar::proto::{
    BaseCommand, CompressionType, MessageMetadata, SingleMessageMetadata, base_command::Type,
};
use ruzstd::decoding::StreamingDecoder;

/// What a frame may have beside its payload: command and metadata.
pub(super) const OVERHEAD: usize = 128 * 1024;
/// No message of Milvus is near it; a broken length must not take the memory.
const UNCOMPRESSED_MAX: usize = 256 * 1024 * 1024;
const WITH_CHECKSUM: u16 = 0x0e01;

/// One command, with metadata and payload if it is a message, or why these cannot be read.
pub(super) struct Frame {
    pub(super) command: BaseCommand,
    pub(super) body: Option<Result<(MessageMetadata, Bytes), String>>,
}

/// A command without payload as it goes over the connection.
pub(super) fn encode(command: &BaseCommand) -> Bytes {
    let size = command.encoded_len();
    let mut out = BytesMut::with_capacity(size + 8);
    out.put_u32(size as u32 + 4);
    out.put_u32(size as u32);
    // Fails only without room, and the buffer grows.
    let _ = command.encode(&mut out);
    out.freeze()
}

/// An empty command of this type.
pub(super) fn command(of: Type) -> BaseCommand {
    BaseCommand {
        r#type: of as i32,
        ..Default::default()
    }
}

/// Takes the first frame out of what has arrived; `None` if it is not whole yet. `largest`: bytes of a frame at most.
pub(super) fn take(arrived: &mut BytesMut, largest: usize) -> Result<Option<Frame>, String> {
    let Some(total) = arrived.first_chunk::<4>() else {
        return Ok(None);
    };
    let total = u32::from_be_bytes(*total) as usize;
    if total > largest {
        return Err(format!(
            "a frame of {total} bytes, {largest} at most expected; is this a Pulsar broker's binary port?"
        ));
    }
    if arrived.len() < 4 + total {
        arrived.reserve(4 + total - arrived.len());
        return Ok(None);
    }
    arrived.advance(4);
    let mut frame = arrived.split_to(total).freeze();
    let size = length(&mut frame)?;
    let command = BaseCommand::decode(part(&mut frame, size)?).map_err(|e| e.to_string())?;
    let body = (!frame.is_empty()).then(|| body(frame));
    Ok(Some(Frame { command, body }))
}

fn body(mut frame: Bytes) -> Result<(MessageMetadata, Bytes), String> {
    if frame.remaining() >= 6 && u16::from_be_bytes([frame[0], frame[1]]) == WITH_CHECKSUM {
        frame.advance(2);
        let expected = frame.get_u32();
        let found = crc32c::crc32c(&frame);
        if found != expected {
            return Err(format!(
                "a message with checksum {found:08x} instead of {expected:08x}"
            ));
        }
    }
    let size = length(&mut frame)?;
    let metadata = MessageMetadata::decode(part(&mut frame, size)?).map_err(|e| e.to_string())?;
    Ok((metadata, frame))
}

fn length(from: &mut Bytes) -> Result<usize, String> {
    from.try_get_u32()
        .map(|n| n as usize)
        .map_err(|_| "a frame that ends too early".to_owned())
}

fn part(from: &mut Bytes, size: usize) -> Result<Bytes, String> {
    if size > from.len() {
        return Err("a frame that ends too early".to_owned());
    }
    Ok(from.split_to(size))
}

/// One entry of a ledger: one message, or several that were sent as a batch.
pub(super) struct Entry {
    pub(super) ledger: u64,
    pub(super) entry: u64,
    metadata: MessageMetadata,
    payload: Bytes,
}

impl Entry {
    pub(super) fn new(ledger: u64, entry: u64, metadata: MessageMetadata, payload: Bytes) -> Self {
        Self {
            ledger,
            entry,
            metadata,
            payload,
        }
    }

    /// Bytes it takes once it is unpacked.
    pub(super) fn size(&self) -> usize {
        let unpacked = self.metadata.uncompressed_size.unwrap_or(0) as usize;
        self.payload.len().max(unpacked)
    }

    /// Messages, as the broker counts permits.
    pub(super) fn messages(&self) -> usize {
        self.metadata
            .num_messages_in_batch
            .map_or(1, |n| n.max(1) as usize)
    }

    /// The payloads with their batch indexes; a message that is no batch has the index 0.
    pub(super) fn unpack(self) -> Result<Vec<(i32, Bytes)>, String> {
        if !self.metadata.encryption_keys.is_empty() {
            return Err("messages that are encrypted".to_owned());
        }
        if self.metadata.num_chunks_from_msg.is_some_and(|n| n > 1) {
            return Err("messages in chunks".to_owned());
        }
        let mut payload = self.uncompressed()?;
        let Some(n) = self.metadata.num_messages_in_batch else {
            return Ok(vec![(0, payload)]);
        };
        let mut messages = Vec::new();
        for index in 0..n {
            let size = length(&mut payload)?;
            let single = SingleMessageMetadata::decode(part(&mut payload, size)?)
                .map_err(|e| e.to_string())?;
            let size = usize::try_from(single.payload_size)
                .map_err(|_| "a batch with a message of less than no bytes".to_owned())?;
            let message = part(&mut payload, size)?;
            // A topic that is compacted keeps the place and not the message.
            if single.compacted_out != Some(true) {
                messages.push((index, message));
            }
        }
        Ok(messages)
    }

    fn uncompressed(&self) -> Result<Bytes, String> {
        let kind = self.metadata.compression.unwrap_or(0);
        match CompressionType::try_from(kind) {
            Ok(CompressionType::None) => Ok(self.payload.clone()),
            // What Milvus' producers use (pkg/mq/msgstream/mqwrapper/pulsar/pulsar_client.go).
            Ok(CompressionType::Zstd) => {
                let size = self.metadata.uncompressed_size.unwrap_or(0) as usize;
                if size > UNCOMPRESSED_MAX {
                    return Err(format!("a message that says it unpacks to {size} bytes"));
                }
                unpack_zstd(&self.payload, size)
                    .map_err(|e| format!("a message that does not unpack: {e}"))
            }
            Ok(other) => Err(format!(
                "messages with the compression {}",
                other.as_str_name()
            )),
            Err(_) => Err(format!("messages with an unknown compression, {kind}")),
        }
    }
}

fn unpack_zstd(packed: &[u8], size: usize) -> Result<Bytes, String> {
    let decoder = StreamingDecoder::new(packed).map_err(|e| e.to_string())?;
    let mut unpacked = Vec::with_capacity(size);
    // One more would be seen; no more than that is taken in.
    let read = decoder.take(size as u64 + 1).read_to_end(&mut unpacked);
    match read.map_err(|e| e.to_string())? {
        n if n == size => Ok(Bytes::from(unpacked)),
        _ => Err(format!("not of the {size} bytes that it says")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn message(metadata: &MessageMetadata, payload: &[u8]) -> BytesMut {
        let mut checked = BytesMut::new();
        checked.put_u32(metadata.encoded_len() as u32);
        metadata.encode(&mut checked).unwrap();
        checked.put_slice(payload);
        let head = command(Type::Pong).encode_to_vec();
        let mut out = BytesMut::new();
        out.put_u32((4 + head.len() + 6 + checked.len()) as u32);
        out.put_u32(head.len() as u32);
        out.put_slice(&head);
        out.put_u16(WITH_CHECKSUM);
        out.put_u32(crc32c::crc32c(&checked));
        out.put_slice(&checked);
        out
    }

    fn batch(payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for p in payloads {
            let single = SingleMessageMetadata {
                payload_size: p.len() as i32,
                ..Default::default()
            };
            out.put_u32(single.encoded_len() as u32);
            single.encode(&mut out).unwrap();
            out.put_slice(p);
        }
        out
    }

    #[test]
    fn a_frame_is_taken_when_it_is_whole_and_not_before() {
        let whole = message(&MessageMetadata::default(), b"abc");
        for n in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..n]);
            assert!(take(&mut part, 1000).unwrap().is_none());
        }
        let mut two = whole.clone();
        two.extend_from_slice(&whole);
        for _ in 0..2 {
            let frame = take(&mut two, 1000).unwrap().unwrap();
            assert_eq!(&frame.body.unwrap().unwrap().1[..], b"abc");
        }
        assert!(two.is_empty());
    }

    #[test]
    fn a_changed_byte_and_a_frame_too_large_are_errors() {
        let mut changed = message(&MessageMetadata::default(), b"abc");
        let last = changed.len() - 1;
        changed[last] ^= 1;
        changed.extend_from_slice(&message(&MessageMetadata::default(), b"def"));
        let body = take(&mut changed, 1000).unwrap().unwrap().body.unwrap();
        assert!(body.unwrap_err().contains("checksum"));
        let behind = take(&mut changed, 1000).unwrap().unwrap().body.unwrap();
        assert_eq!(&behind.unwrap().1[..], b"def");
        let mut large = message(&MessageMetadata::default(), b"abc");
        assert!(take(&mut large, 8).err().unwrap().contains("8 at most"));
    }

    #[test]
    fn a_batch_is_unpacked_with_its_indexes_compressed_or_not() {
        let plain = batch(&[b"a", b"", b"ccc"]);
        for zstd in [false, true] {
            let metadata = MessageMetadata {
                num_messages_in_batch: Some(3),
                uncompressed_size: Some(plain.len() as u32),
                compression: zstd.then_some(CompressionType::Zstd as i32),
                ..Default::default()
            };
            let payload = if zstd {
                compress_to_vec(&plain[..], CompressionLevel::Fastest)
            } else {
                plain.clone()
            };
            let entry = Entry::new(1, 2, metadata, payload.into());
            assert_eq!((entry.messages(), entry.size() >= plain.len()), (3, true));
            let got = entry.unpack().unwrap();
            assert_eq!(got.len(), 3);
            assert_eq!((got[2].0, &got[2].1[..]), (2, &b"ccc"[..]));
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let with = |metadata| {
            Entry::new(1, 2, metadata, Bytes::new())
                .unpack()
                .unwrap_err()
        };
        let chunked = MessageMetadata {
            num_chunks_from_msg: Some(2),
            ..Default::default()
        };
        assert!(with(chunked).contains("chunks"));
        let snappy = MessageMetadata {
            compression: Some(CompressionType::Snappy as i32),
            ..Default::default()
        };
        assert!(with(snappy).contains("SNAPPY"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), n in 0u8..190) {
            let mut framed = BytesMut::from(&[0, 0, 0, n][..]);
            framed.extend_from_slice(&bytes);
            let _ = take(&mut framed, 190);
            let metadata = MessageMetadata { num_messages_in_batch: Some(3), ..Default::default() };
            let _ = Entry::new(1, 2, metadata, bytes.into()).unpack();
        }
    }
}
