//! Messages for the target: entries of ReplicateMessage.

use bytes::{BufMut, Bytes, BytesMut};
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::{
    DeleteRequest, DropCollectionRequest, DropPartitionRequest, InsertDataVersion, InsertRequest,
    TimeTickMsg,
};
use milvus::proto::schema::{FieldData, IDs};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::tsmap::TsMap;
use crate::decode::{Rows, RowsKind};
use crate::ids::{CollectionId, PartitionId, VChannel};
use crate::tso::Tso;

/// Where a message goes on the target: only ever filled from what the target's DescribeCollection said of this same
/// collection. A wrong shard name is accepted by a 2.3.5 target and kills it.
#[derive(Clone, PartialEq, Debug)]
pub struct Shard {
    pub collection: CollectionId,
    pub vchannel: VChannel,
    pub database: String,
    pub name: String,
}

/// Below this a message is copied to memory of its own. As slices it would keep alive what else was read with it.
const COPIED: usize = 16 << 10;

/// A message for the target, in parts: what is large in it stays where it was read to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    parts: Vec<Bytes>,
    len: usize,
}

impl Entry {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In one piece: copied, if it has several parts.
    pub fn whole(&self) -> Bytes {
        match &self.parts[..] {
            [one] => one.clone(),
            parts => parts.concat().into(),
        }
    }

    #[cfg(test)]
    pub(crate) fn of_parts(parts: Vec<Bytes>) -> Self {
        Self {
            len: parts.iter().map(Bytes::len).sum(),
            parts,
        }
    }

    /// Each of whole fields of the message.
    pub(crate) fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    pub(crate) fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }
}

impl From<Bytes> for Entry {
    fn from(bytes: Bytes) -> Self {
        Self {
            len: bytes.len(),
            parts: vec![bytes],
        }
    }
}

fn base(msg_type: MsgType, msg_id: i64, ts: u64) -> MsgBase {
    MsgBase {
        msg_type: msg_type as i32,
        msg_id,
        timestamp: ts,
        ..Default::default()
    }
}

/// An insert or delete with the target's ids, re-stamped. Columns and keys are not decoded, and copied only if small.
///
/// Layout (InsertRequest and DeleteRequest): 1 base, 2 shardName, 3 db_name, 4 collection_name, 5 partition_name,
/// 7 collectionID, 8 partitionID, 10 timestamps.
pub fn rows(
    rows: &Rows,
    to: &Shard,
    partition: PartitionId,
    partition_name: &str,
    map: &TsMap,
    msg_id: i64,
) -> Entry {
    let timestamps: Vec<u64> = rows.timestamps.iter().map(|ts| map.get(*ts)).collect();
    let max = timestamps.iter().copied().max().unwrap_or_default();
    let msg_type = match rows.kind {
        RowsKind::Insert => MsgType::Insert,
        RowsKind::Delete => MsgType::Delete,
    };
    let body: usize = rows.body.iter().map(Bytes::len).sum();
    let copied = if body < COPIED { body } else { 0 };
    let mut out = BytesMut::with_capacity(copied + 200 + to.name.len() + timestamps.len() * 10);
    let base = base(msg_type, msg_id, max).encode_to_vec();
    put_bytes(&mut out, 1, &base);
    put_bytes(&mut out, 2, to.vchannel.as_str().as_bytes());
    put_bytes(&mut out, 3, to.database.as_bytes());
    put_bytes(&mut out, 4, to.name.as_bytes());
    put_bytes(&mut out, 5, partition_name.as_bytes());
    put_varint(&mut out, 7, to.collection.0 as u64);
    put_varint(&mut out, 8, partition.0 as u64);
    encode_key(10, WireType::LengthDelimited, &mut out);
    encode_varint(
        timestamps
            .iter()
            .map(|ts| encoded_len_varint(*ts) as u64)
            .sum(),
        &mut out,
    );
    for ts in timestamps {
        encode_varint(ts, &mut out);
    }
    if body < COPIED {
        for part in &rows.body {
            out.put_slice(part);
        }
        return out.freeze().into();
    }
    let mut entry = Entry::from(out.freeze());
    entry.len += body;
    entry.parts.extend(rows.body.iter().cloned());
    entry
}

/// The delete that goes with an insert in doubt: it kills an earlier copy of these keys in this partition and, having
/// the same timestamps, spares the insert itself (a delete kills only rows that are strictly older).
pub fn delete_of(
    keys: IDs,
    timestamps: &[u64],
    to: &Shard,
    partition: PartitionId,
    partition_name: &str,
    map: &TsMap,
    msg_id: i64,
) -> Bytes {
    let timestamps: Vec<u64> = timestamps.iter().map(|ts| map.get(*ts)).collect();
    let max = timestamps.iter().copied().max().unwrap_or_default();
    let num_rows = timestamps.len() as i64;
    DeleteRequest {
        base: Some(base(MsgType::Delete, msg_id, max)),
        shard_name: to.vchannel.as_str().to_owned(),
        db_name: to.database.clone(),
        collection_name: to.name.clone(),
        partition_name: partition_name.to_owned(),
        collection_id: to.collection.0,
        partition_id: partition.0,
        timestamps,
        num_rows,
        primary_keys: Some(keys),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

/// An insert of columns that are at hand, with one time for all rows; `row_ids` has one id a row.
pub fn insert_of(
    columns: Vec<FieldData>,
    row_ids: Vec<i64>,
    to: &Shard,
    partition: PartitionId,
    partition_name: &str,
    ts: Tso,
    msg_id: i64,
) -> Bytes {
    InsertRequest {
        base: Some(base(MsgType::Insert, msg_id, ts.0)),
        shard_name: to.vchannel.as_str().to_owned(),
        db_name: to.database.clone(),
        collection_name: to.name.clone(),
        partition_name: partition_name.to_owned(),
        collection_id: to.collection.0,
        partition_id: partition.0,
        timestamps: vec![ts.0; row_ids.len()],
        num_rows: row_ids.len() as u64,
        row_i_ds: row_ids,
        fields_data: columns,
        version: InsertDataVersion::ColumnBased.into(),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn drop_collection(to: &Shard, ts: u64, msg_id: i64) -> Bytes {
    DropCollectionRequest {
        base: Some(base(MsgType::DropCollection, msg_id, ts)),
        db_name: to.database.clone(),
        collection_name: to.name.clone(),
        collection_id: to.collection.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn drop_partition(
    to: &Shard,
    partition: PartitionId,
    partition_name: &str,
    ts: u64,
    msg_id: i64,
) -> Bytes {
    DropPartitionRequest {
        base: Some(base(MsgType::DropPartition, msg_id, ts)),
        db_name: to.database.clone(),
        collection_name: to.name.clone(),
        partition_name: partition_name.to_owned(),
        collection_id: to.collection.0,
        partition_id: partition.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn tick(ts: Tso, msg_id: i64) -> Bytes {
    TimeTickMsg {
        base: Some(base(MsgType::TimeTick, msg_id, ts.0)),
    }
    .encode_to_vec()
    .into()
}

fn put_bytes(out: &mut BytesMut, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        encode_key(field, WireType::LengthDelimited, out);
        encode_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}

fn put_varint(out: &mut BytesMut, field: u32, value: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(value, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Event, decode};
    use milvus::proto::schema::LongArray;
    use milvus::proto::schema::i_ds::IdField;
    use proptest::prelude::*;

    fn shard() -> Shard {
        let vchannel = VChannel::new("tgt-rootcoord-dml_0_77v0");
        Shard {
            collection: CollectionId(77),
            vchannel,
            database: "db".into(),
            name: "c".into(),
        }
    }

    #[test]
    fn a_rewritten_insert_differs_only_in_ids_names_and_times() {
        let source = InsertRequest {
            base: Some(base(MsgType::Insert, 5, 0)),
            shard_name: "src_1v0".into(),
            collection_id: 1,
            partition_id: 2,
            segment_id: 3,
            timestamps: vec![10, 12],
            row_i_ds: vec![8, 9],
            fields_data: vec![FieldData {
                field_id: 100,
                field_name: "pk".into(),
                ..Default::default()
            }],
            num_rows: 2,
            version: 1,
            ..Default::default()
        };
        let Ok(Event::Rows(decoded)) = decode(&source.encode_to_vec().into()) else {
            panic!("an insert")
        };
        let map = TsMap::raise([10, 12], Tso(100));
        let entry = rows(&decoded, &shard(), PartitionId(78), "_default", &map, 99);
        let target = InsertRequest::decode(entry.whole()).unwrap();
        let expected = InsertRequest {
            base: Some(base(MsgType::Insert, 99, 102)),
            shard_name: "tgt-rootcoord-dml_0_77v0".into(),
            db_name: "db".into(),
            collection_name: "c".into(),
            partition_name: "_default".into(),
            collection_id: 77,
            partition_id: 78,
            segment_id: 0,
            timestamps: vec![101, 102],
            ..source
        };
        assert_eq!(target, expected);
    }

    proptest! {
        /// Whatever rows there are and however they are raised: what the target reads are the same rows, in the same
        /// order of time, and the delete that goes with an insert in doubt has its very times.
        #[test]
        fn what_is_sent_reads_as_what_came(
            insert in any::<bool>(),
            times in proptest::collection::vec(any::<u64>(), 1..20),
            keys in proptest::collection::vec(any::<i64>(), 1..20),
            floor in proptest::option::of(0..u64::MAX / 2),
            msg_id in any::<i64>(),
        ) {
            let source = match insert {
                true => InsertRequest {
                    base: Some(base(MsgType::Insert, 5, 0)),
                    shard_name: "src_1v0".into(),
                    collection_id: 1,
                    partition_id: 2,
                    timestamps: times.clone(),
                    row_i_ds: keys.clone(),
                    num_rows: times.len() as u64,
                    ..Default::default()
                }.encode_to_vec(),
                false => DeleteRequest {
                    base: Some(base(MsgType::Delete, 5, 0)),
                    shard_name: "src_1v0".into(),
                    collection_id: 1,
                    timestamps: times.clone(),
                    int64_primary_keys: keys.clone(),
                    ..Default::default()
                }.encode_to_vec(),
            };
            let Ok(Event::Rows(decoded)) = decode(&source.into()) else {
                return Err(TestCaseError::fail("no rows"));
            };
            let map = match floor {
                Some(floor) => TsMap::raise(times.clone(), Tso(floor)),
                None => TsMap::Natural,
            };
            let to = shard();
            let sent = rows(&decoded, &to, PartitionId(78), "p", &map, msg_id);
            let raised: Vec<u64> = times.iter().map(|ts| map.get(*ts)).collect();
            let wanted = Rows {
                id: msg_id,
                collection: to.collection,
                partition: PartitionId(78),
                vchannel: to.vchannel.clone(),
                timestamps: raised.clone(),
                ..decoded
            };
            prop_assert_eq!(sent.whole().len(), sent.len());
            prop_assert_eq!(decode(&sent.whole()), Ok(Event::Rows(wanted)));
            let ids = IDs { id_field: Some(IdField::IntId(LongArray { data: keys })) };
            let delete = delete_of(ids, &times, &to, PartitionId(78), "p", &map, msg_id);
            let Ok(Event::Rows(delete)) = decode(&delete) else {
                return Err(TestCaseError::fail("no delete"));
            };
            prop_assert_eq!((delete.kind, delete.timestamps), (RowsKind::Delete, raised));
            prop_assert_eq!((delete.collection, delete.vchannel), (to.collection, to.vchannel));
        }
    }
}
