//! What can be read of a message that cannot be carried, for people. Total: any bytes give what there is of a header.

use serde::Serialize;

use super::msg_type;
use super::wire::{Field, Fields};

/// The head of a message of `msg.proto`, as far as it could be read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Header {
    /// `common.MsgType`.
    pub msg_type: Option<i32>,
    pub msg_id: Option<i64>,
    /// TSO of its `MsgBase`; 0 in the insert of an upsert.
    pub timestamp: Option<u64>,
    pub source_id: Option<i64>,
    pub database: Option<String>,
    pub collection: Option<String>,
    pub collection_id: Option<i64>,
    pub partition: Option<String>,
    pub partition_id: Option<i64>,
    /// The virtual channel it names.
    pub shard: Option<String>,
    /// Where and why reading ended before the end.
    pub broken: Option<String>,
}

impl Header {
    /// The name of its type, of those that a data channel carries.
    pub fn kind(&self) -> Option<&'static str> {
        Some(match self.msg_type? {
            msg_type::CREATE_COLLECTION => "CreateCollection",
            msg_type::DROP_COLLECTION => "DropCollection",
            msg_type::CREATE_PARTITION => "CreatePartition",
            msg_type::DROP_PARTITION => "DropPartition",
            msg_type::INSERT => "Insert",
            msg_type::DELETE => "Delete",
            msg_type::TIME_TICK => "TimeTick",
            _ => return None,
        })
    }
}

/// Longest name that is shown.
const NAME: usize = 300;

/// Reads what there is.
pub fn header(payload: &[u8]) -> Header {
    let mut head = Header::default();
    let mut fields = Fields::of(payload);
    match fields.next() {
        Some(Ok(field)) if field.number == 1 => base(field.bytes(), &mut head),
        Some(Ok(_)) => {
            head.broken = Some("it does not begin with a MsgBase".to_owned());
            return head;
        }
        Some(Err(e)) => {
            head.broken = Some(format!("its MsgBase {e}"));
            return head;
        }
        None => {
            head.broken = Some("it is empty".to_owned());
            return head;
        }
    }
    let mut at = payload.len();
    for field in fields {
        match field {
            Ok(field) => {
                at = field.raw.as_ptr() as usize - payload.as_ptr() as usize + field.raw.len();
                name(&field, &mut head);
            }
            Err(e) => {
                let before = if at == payload.len() { 0 } else { at };
                let cause = format!("behind byte {before}: {e}");
                head.broken.get_or_insert(cause);
            }
        }
    }
    head
}

/// `MsgBase`: 1 msg_type, 2 msgID, 3 timestamp, 4 sourceID.
fn base(bytes: &[u8], head: &mut Header) {
    for field in Fields::of(bytes) {
        match field {
            Ok(field) => match field.number {
                1 => head.msg_type = Some(field.varint() as i32),
                2 => head.msg_id = Some(field.varint() as i64),
                3 => head.timestamp = Some(field.varint()),
                4 => head.source_id = Some(field.varint() as i64),
                _ => {}
            },
            Err(e) => head.broken = Some(format!("its MsgBase {e}")),
        }
    }
}

fn name(field: &Field<'_>, head: &mut Header) {
    let text = || {
        let text = field.text();
        (!text.is_empty()).then(|| text.chars().take(NAME).collect::<String>())
    };
    let id = || Some(field.varint() as i64);
    match (head.msg_type.unwrap_or_default(), field.number) {
        (msg_type::INSERT | msg_type::DELETE, number) => match number {
            2 => head.shard = text(),
            3 => head.database = text(),
            4 => head.collection = text(),
            5 => head.partition = text(),
            7 => head.collection_id = id(),
            8 => head.partition_id = id(),
            _ => {}
        },
        (
            msg_type::CREATE_COLLECTION
            | msg_type::DROP_COLLECTION
            | msg_type::CREATE_PARTITION
            | msg_type::DROP_PARTITION,
            2,
        ) => head.database = text(),
        (
            msg_type::CREATE_COLLECTION
            | msg_type::DROP_COLLECTION
            | msg_type::CREATE_PARTITION
            | msg_type::DROP_PARTITION,
            3,
        ) => head.collection = text(),
        (msg_type::DROP_COLLECTION, 5) | (msg_type::DROP_PARTITION, 6) => {
            head.collection_id = id();
        }
        (msg_type::DROP_PARTITION, 4) => head.partition = text(),
        (msg_type::DROP_PARTITION, 7) => head.partition_id = id(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use milvus::proto::common::{MsgBase, MsgType};
    use milvus::proto::msg::{DropPartitionRequest, InsertRequest};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn insert() -> Vec<u8> {
        InsertRequest {
            base: Some(MsgBase {
                msg_type: MsgType::Insert as i32,
                msg_id: 5,
                timestamp: 6,
                source_id: 7,
                ..Default::default()
            }),
            shard_name: "ch_9v0".to_owned(),
            db_name: "db".to_owned(),
            collection_name: "c".to_owned(),
            partition_name: "p".to_owned(),
            collection_id: 9,
            partition_id: 10,
            timestamps: vec![6; 3],
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn whole() -> Header {
        Header {
            msg_type: Some(MsgType::Insert as i32),
            msg_id: Some(5),
            timestamp: Some(6),
            source_id: Some(7),
            database: Some("db".to_owned()),
            collection: Some("c".to_owned()),
            collection_id: Some(9),
            partition: Some("p".to_owned()),
            partition_id: Some(10),
            shard: Some("ch_9v0".to_owned()),
            broken: None,
        }
    }

    #[test]
    fn a_whole_header_is_read() {
        let head = header(&insert());
        assert_eq!(head, whole());
        assert_eq!(head.kind(), Some("Insert"));
    }

    #[test]
    fn of_a_broken_message_there_is_what_stands_before_the_break() {
        let bytes = insert();
        let head = header(&bytes[..bytes.len() - 1]);
        assert!(head.broken.as_ref().is_some_and(|b| b.contains("middle")));
        let before = Header {
            broken: None,
            ..head
        };
        assert_eq!(before, whole());
        for nothing in [&b""[..], &[0x12, 0], &[0x0a, 0xff, 1, 2]] {
            let head = header(nothing);
            assert!(head.broken.is_some() && head.msg_type.is_none(), "{head:?}");
        }
    }

    #[test]
    fn the_ids_of_a_drop_stand_elsewhere() {
        let bytes = DropPartitionRequest {
            base: Some(MsgBase::new(MsgType::DropPartition)),
            db_name: "db".to_owned(),
            collection_name: "c".to_owned(),
            partition_name: "p".to_owned(),
            db_id: 1,
            collection_id: 9,
            partition_id: 10,
        }
        .encode_to_vec();
        let head = header(&bytes);
        assert_eq!((head.collection_id, head.partition_id), (Some(9), Some(10)));
        assert_eq!(head.partition.as_deref(), Some("p"));
        assert_eq!(head.kind(), Some("DropPartition"));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_header_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = header(&bytes);
        }
    }
}
