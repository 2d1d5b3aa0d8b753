//! Positions in a message queue, and their byte forms.

use std::fmt;

use prost::Message;
use serde::{Deserialize, Serialize};

/// The message queues Milvus can write to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    Natsmq,
    Rocksmq,
    Kafka,
    Pulsar,
}

impl fmt::Display for QueueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueueKind::Natsmq => "natsmq",
            QueueKind::Rocksmq => "rocksmq",
            QueueKind::Kafka => "kafka",
            QueueKind::Pulsar => "pulsar",
        })
    }
}

/// The id of one message on one physical channel. Ordered within one queue kind; the kinds do not mix in one source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// Sequence in the JetStream stream; the first message is 1.
    Natsmq(u64),
    /// Id in RocksMQ; has gaps.
    Rocksmq(i64),
    /// Offset in partition 0.
    Kafka(i64),
    /// Ledger, entry, and index in a batched entry. A reader gives 0 to a message that is not batched; ids from elsewhere
    /// may have -1 there, which stands for the whole entry. So ids from both are in order with each other.
    Pulsar { ledger: u64, entry: u64, batch: i32 },
}

/// Bytes that are no message id of the queue in question.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} bytes ({bytes:02x?}) are not a {kind} message id: {expected} expected", bytes.len())]
pub struct BadPosition {
    pub kind: QueueKind,
    pub bytes: Vec<u8>,
    pub expected: &'static str,
}

#[derive(Clone, PartialEq, Message)]
struct PulsarMessageId {
    #[prost(uint64, optional, tag = "1")]
    ledger: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    entry: Option<u64>,
    #[prost(int32, optional, tag = "3")]
    partition: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    batch_index: Option<i32>,
}

impl Position {
    pub fn kind(&self) -> QueueKind {
        match self {
            Position::Natsmq(_) => QueueKind::Natsmq,
            Position::Rocksmq(_) => QueueKind::Rocksmq,
            Position::Kafka(_) => QueueKind::Kafka,
            Position::Pulsar { .. } => QueueKind::Pulsar,
        }
    }

    /// Reads the bytes Milvus keeps in `MsgPosition.msgID` and in `start_positions`: 8 bytes little endian, or Pulsar's
    /// `MessageIdData` (`pkg/mq/msgstream/mqwrapper/*`).
    pub fn from_bytes(kind: QueueKind, bytes: &[u8]) -> Result<Self, BadPosition> {
        let bad = |expected| BadPosition {
            kind,
            bytes: bytes[..bytes.len().min(32)].to_vec(),
            expected,
        };
        if kind == QueueKind::Pulsar {
            let expected = "a protobuf MessageIdData";
            let id = PulsarMessageId::decode(bytes).map_err(|_| bad(expected))?;
            let (Some(ledger), Some(entry)) = (id.ledger, id.entry) else {
                return Err(bad(expected));
            };
            let batch = id.batch_index.unwrap_or(-1);
            return Ok(Position::Pulsar {
                ledger,
                entry,
                batch,
            });
        }
        let word: [u8; 8] = bytes
            .try_into()
            .map_err(|_| bad("8 bytes, little endian"))?;
        Ok(match kind {
            QueueKind::Natsmq => Position::Natsmq(u64::from_le_bytes(word)),
            QueueKind::Rocksmq => Position::Rocksmq(i64::from_le_bytes(word)),
            _ => Position::Kafka(i64::from_le_bytes(word)),
        })
    }

    /// The bytes Milvus itself would keep for this position.
    pub fn to_bytes(&self) -> Vec<u8> {
        match *self {
            Position::Natsmq(seq) => seq.to_le_bytes().to_vec(),
            Position::Rocksmq(id) | Position::Kafka(id) => id.to_le_bytes().to_vec(),
            Position::Pulsar {
                ledger,
                entry,
                batch,
            } => PulsarMessageId {
                ledger: Some(ledger),
                entry: Some(entry),
                partition: Some(-1),
                batch_index: Some(batch),
            }
            .encode_to_vec(),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Natsmq(seq) => write!(f, "{seq}"),
            Position::Rocksmq(id) | Position::Kafka(id) => write!(f, "{id}"),
            Position::Pulsar {
                ledger,
                entry,
                batch,
            } => write!(f, "{ledger}:{entry}:{batch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_natsmq_message_is_one_little_endian() {
        assert_eq!(
            Position::from_bytes(QueueKind::Natsmq, &[1, 0, 0, 0, 0, 0, 0, 0]),
            Ok(Position::Natsmq(1))
        );
    }

    #[test]
    fn a_pulsar_id_without_partition_and_batch_is_not_batched() {
        let bytes = [0x08, 5, 0x10, 7];
        let id = Position::from_bytes(QueueKind::Pulsar, &bytes);
        assert_eq!(
            id,
            Ok(Position::Pulsar {
                ledger: 5,
                entry: 7,
                batch: -1
            })
        );
    }

    #[test]
    fn bytes_of_another_queue_are_refused_with_the_expected_form() {
        let pulsar = Position::Pulsar {
            ledger: 5,
            entry: 7,
            batch: -1,
        }
        .to_bytes();
        let error = Position::from_bytes(QueueKind::Natsmq, &pulsar)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("natsmq") && error.contains("8 bytes"),
            "{error}"
        );
        assert!(Position::from_bytes(QueueKind::Pulsar, &[]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_round_trip(n in any::<i64>(), ledger in any::<u64>(), entry in any::<u64>(), batch in -1i32..1000) {
            for p in [
                Position::Natsmq(n as u64),
                Position::Rocksmq(n),
                Position::Kafka(n),
                Position::Pulsar { ledger, entry, batch },
            ] {
                prop_assert_eq!(Position::from_bytes(p.kind(), &p.to_bytes()), Ok(p));
            }
        }

        /// As the stores keep them.
        #[test]
        fn json_round_trips(n in any::<i64>(), ledger in any::<u64>(), entry in any::<u64>(), batch in any::<i32>()) {
            for p in [
                Position::Natsmq(n as u64),
                Position::Rocksmq(n),
                Position::Kafka(n),
                Position::Pulsar { ledger, entry, batch },
            ] {
                let text = serde_json::to_string(&p).unwrap();
                prop_assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), p);
            }
        }

        /// Pulsar's ids are in the order in which a topic gives them out.
        #[test]
        fn pulsar_ids_order_by_ledger_entry_and_batch(a in (0u64..3, 0u64..3, -1i32..3), b in (0u64..3, 0u64..3, -1i32..3)) {
            let id = |(ledger, entry, batch)| Position::Pulsar { ledger, entry, batch };
            prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
        }

        #[test]
        fn any_bytes_are_a_position_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for kind in [QueueKind::Natsmq, QueueKind::Rocksmq, QueueKind::Kafka, QueueKind::Pulsar] {
                let _ = Position::from_bytes(kind, &bytes);
            }
        }
    }
}
