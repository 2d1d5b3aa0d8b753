//! Positions as Milvus' tools write them: base64 of a `MsgPosition`, under the name of a virtual channel.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::position::{Position, QueueKind};
use cdc_core::task::GivenPosition;
use cdc_core::tso::Tso;
use serde_json::Value;

use crate::fields::{Fields, clip};

pub(super) type Positions = BTreeMap<CollectionId, BTreeMap<PChannel, GivenPosition>>;

/// Reads `positions`: virtual channel to position. What is wrong goes to the errors of `fields`.
pub(super) fn positions(fields: &Fields<'_>, queue: QueueKind) -> Positions {
    let mut found = Positions::new();
    let Some(map) = fields.object("positions") else {
        return found;
    };
    for (key, value) in map.entries() {
        let Some((channel, collection)) = parse_vchannel(key) else {
            map.wrong(
                &clip(key),
                format_args!(
                    "no virtual channel; {{channel}}_{{collection id}}v{{shard}} expected, for example {}_445811557825249939v0",
                    clip(key)
                ),
            );
            continue;
        };
        let decoded = match value {
            Value::String(text) => decode_position(queue, text),
            _ => Err("a string expected: base64 of a MsgPosition".to_owned()),
        };
        let named = decoded.and_then(|(given, name)| match name {
            Some(name) if name != key.as_str() && name != channel.as_str() => Err(format!(
                "it is a position of channel {:?}, not of {:?}",
                clip(&name),
                channel.as_str()
            )),
            _ => Ok(given),
        });
        match named {
            Ok(given) => {
                let places = found.entry(collection).or_default();
                match places.insert(channel.clone(), given) {
                    Some(before) if before != given => map.wrong(
                        &clip(key),
                        format_args!("{channel} is given twice for collection {collection}"),
                    ),
                    _ => {}
                }
            }
            Err(cause) => map.wrong(&clip(key), cause),
        }
    }
    found
}

/// Like [`positions`], for one collection: all keys must name the same one.
pub(super) fn positions_of_one(
    fields: &Fields<'_>,
    queue: QueueKind,
) -> Option<(CollectionId, BTreeMap<PChannel, GivenPosition>)> {
    let all = positions(fields, queue);
    if all.len() > 1 {
        let ids: Vec<String> = all.keys().map(ToString::to_string).collect();
        fields.wrong(
            "positions",
            format_args!(
                "channels of one collection expected, not of {}",
                ids.join(", ")
            ),
        );
    }
    all.into_iter().next()
}

/// `{channel}_{collection id}v{shard}`
fn parse_vchannel(name: &str) -> Option<(PChannel, CollectionId)> {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (channel, tail) = name.rsplit_once('_')?;
    let (collection, shard) = tail.split_once('v')?;
    if channel.is_empty() || !digits(collection) || !digits(shard) {
        return None;
    }
    Some((
        PChannel::new(channel),
        CollectionId(collection.parse().ok()?),
    ))
}

/// Reads base64 of a `MsgPosition`, or of the bare message id; gives the channel's name too if it holds one.
pub(super) fn decode_position(
    queue: QueueKind,
    text: &str,
) -> Result<(GivenPosition, Option<String>), String> {
    let bytes = STANDARD
        .decode(text.trim())
        .map_err(|_| format!("base64 of a MsgPosition expected, not {:?}", clip(text)))?;
    // A MsgPosition is never a bare id: its fields have other wire types than Pulsar's, and it is not 8 bytes long.
    if let Ok(position) = Position::from_bytes(queue, &bytes) {
        let applied = Tso::ZERO;
        return Ok((GivenPosition { position, applied }, None));
    }
    let given = MsgPosition::parse(&bytes)
        .ok_or_else(|| format!("{:?} is no message position of {queue}", clip(text)))?;
    let position = Position::from_bytes(queue, given.id).map_err(|e| e.to_string())?;
    let applied = given.timestamp;
    let name = given
        .channel
        .and_then(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty());
    Ok((GivenPosition { position, applied }, name.map(str::to_owned)))
}

struct MsgPosition<'a> {
    channel: Option<&'a [u8]>,
    id: &'a [u8],
    timestamp: Tso,
}

impl<'a> MsgPosition<'a> {
    /// Fields 1 (channel_name), 2 (msgID) and 4 (timestamp) of a `MsgPosition`; `None` if the bytes are not one.
    fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let (mut channel, mut id, mut timestamp) = (None, None, Tso::ZERO);
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            match (tag >> 3, tag & 7) {
                (field, 0) => {
                    let value = varint(&mut bytes)?;
                    if field == 4 {
                        timestamp = Tso(value);
                    }
                }
                (field, 2) => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (value, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    match field {
                        1 => channel = Some(value),
                        2 => id = Some(value),
                        _ => {}
                    }
                }
                _ => return None,
            }
        }
        Some(Self {
            channel,
            id: id?,
            timestamp,
        })
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Writes a position as base64 of a `MsgPosition{channel_name, msgID, timestamp}`.
pub fn encode_position(channel: &PChannel, position: &Position, timestamp: Tso) -> String {
    let mut out = Vec::new();
    for (tag, value) in [
        (0x0au8, channel.as_str().as_bytes()),
        (0x12, &position.to_bytes()),
    ] {
        out.push(tag);
        put_varint(&mut out, value.len() as u64);
        out.extend_from_slice(value);
    }
    if timestamp != Tso::ZERO {
        out.push(0x20);
        put_varint(&mut out, timestamp.0);
    }
    STANDARD.encode(out)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written_and_bare() {
        let position = Position::Natsmq(300);
        let applied = Tso::from_millis(1_700_000_000_000);
        let text = encode_position(&PChannel::new("by-dev-rootcoord-dml_0"), &position, applied);
        assert_eq!(
            decode_position(QueueKind::Natsmq, &text),
            Ok((
                GivenPosition { position, applied },
                Some("by-dev-rootcoord-dml_0".to_owned())
            ))
        );
        let applied = Tso::ZERO;
        assert_eq!(
            decode_position(QueueKind::Natsmq, &STANDARD.encode(position.to_bytes())),
            Ok((GivenPosition { position, applied }, None))
        );
        for bad in ["%%%", "AAAA", ""] {
            assert!(decode_position(QueueKind::Natsmq, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_vchannel_names_its_channel_and_its_collection() {
        assert_eq!(
            parse_vchannel("by-dev-rootcoord-dml_3_445811557825249939v1"),
            Some((
                PChannel::new("by-dev-rootcoord-dml_3"),
                CollectionId(445_811_557_825_249_939)
            ))
        );
        for bad in [
            "by-dev-rootcoord-dml_3",
            "by-dev-rootcoord-dml_3_44v",
            "by-dev-rootcoord-dml_3_v0",
            "by-dev-rootcoord-dml_3_44v0x",
            "_44v0",
            "44v0",
            "",
            "x_99999999999999999999v0",
        ] {
            assert_eq!(parse_vchannel(bad), None, "{bad}");
        }
    }

    proptest! {
        /// What one answer gives out, another request takes, of every queue.
        #[test]
        fn every_position_is_read_as_it_is_written(
            channel in "[a-z0-9_-]{0,40}", applied in any::<u64>(),
            n in any::<i64>(), ledger in any::<u64>(), entry in any::<u64>(), batch in -1i32..1000,
        ) {
            let name = Some(channel.clone()).filter(|name| !name.is_empty());
            for position in [
                Position::Natsmq(n as u64),
                Position::Rocksmq(n),
                Position::Kafka(n),
                Position::Pulsar { ledger, entry, batch },
            ] {
                let applied = Tso(applied);
                let text = encode_position(&PChannel::new(channel.as_str()), &position, applied);
                let given = GivenPosition { position, applied };
                prop_assert_eq!(decode_position(position.kind(), &text), Ok((given, name.clone())));
                let bare = STANDARD.encode(position.to_bytes());
                let given = GivenPosition { position, applied: Tso::ZERO };
                prop_assert_eq!(decode_position(position.kind(), &bare), Ok((given, None)));
            }
        }
    }
}
