//! Messages of the data channels, as Milvus 2.3.5 writes them.

use bytes::Bytes;
use cdc_core::ids::{CollectionId, PartitionId, VChannel};
use cdc_core::tso::Tso;
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::{
    CreateCollectionRequest, DeleteRequest, DropCollectionRequest, DropPartitionRequest,
    InsertRequest, TimeTickMsg,
};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::{DataType, FieldData, IDs, LongArray, ScalarField, StringArray};
use prost::Message;

/// Where rows go.
pub struct To<'a> {
    pub collection: CollectionId,
    pub partition: PartitionId,
    pub vchannel: &'a VChannel,
}

fn base(kind: MsgType, ts: Tso, msg_id: i64) -> Option<MsgBase> {
    Some(MsgBase {
        msg_type: kind as i32,
        msg_id,
        timestamp: ts.0,
        source_id: 3,
        ..Default::default()
    })
}

fn column(id: i64, name: &str, data_type: DataType, data: Data) -> FieldData {
    FieldData {
        r#type: data_type as i32,
        field_name: name.to_owned(),
        field_id: id,
        field: Some(Field::Scalars(ScalarField {
            data: Some(data),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub fn insert(
    to: &To<'_>,
    keys: &[i64],
    version: i64,
    ts: Tso,
    base_ts: Tso,
    msg_id: i64,
    padding: usize,
) -> Bytes {
    let longs = |data: Vec<i64>| Data::LongData(LongArray { data });
    let texts = vec!["x".repeat(padding); keys.len()];
    InsertRequest {
        base: base(MsgType::Insert, base_ts, msg_id),
        shard_name: to.vchannel.as_str().to_owned(),
        collection_id: to.collection.0,
        partition_id: to.partition.0,
        segment_id: 7,
        timestamps: vec![ts.0; keys.len()],
        row_i_ds: keys.to_vec(),
        fields_data: vec![
            column(
                101,
                "version",
                DataType::Int64,
                longs(vec![version; keys.len()]),
            ),
            column(
                102,
                "payload",
                DataType::VarChar,
                Data::StringData(StringArray { data: texts }),
            ),
            column(100, "pk", DataType::Int64, longs(keys.to_vec())),
        ],
        num_rows: keys.len() as u64,
        version: 1,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn delete(to: &To<'_>, keys: &[i64], ts: Tso, msg_id: i64) -> Bytes {
    DeleteRequest {
        base: base(MsgType::Delete, ts, msg_id),
        shard_name: to.vchannel.as_str().to_owned(),
        collection_id: to.collection.0,
        partition_id: to.partition.0,
        timestamps: vec![ts.0; keys.len()],
        num_rows: keys.len() as i64,
        primary_keys: Some(IDs {
            id_field: Some(IdField::IntId(LongArray {
                data: keys.to_vec(),
            })),
        }),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn create(id: CollectionId, name: &str, ts: Tso, msg_id: i64) -> Bytes {
    CreateCollectionRequest {
        base: base(MsgType::CreateCollection, ts, msg_id),
        collection_name: name.to_owned(),
        collection_id: id.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn drop_collection(id: CollectionId, name: &str, ts: Tso, msg_id: i64) -> Bytes {
    DropCollectionRequest {
        base: base(MsgType::DropCollection, ts, msg_id),
        collection_name: name.to_owned(),
        collection_id: id.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn drop_partition(
    id: CollectionId,
    partition: PartitionId,
    name: &str,
    ts: Tso,
    msg_id: i64,
) -> Bytes {
    DropPartitionRequest {
        base: base(MsgType::DropPartition, ts, msg_id),
        partition_name: name.to_owned(),
        collection_id: id.0,
        partition_id: partition.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn tick(ts: Tso, msg_id: i64) -> Bytes {
    TimeTickMsg {
        base: base(MsgType::TimeTick, ts, msg_id),
    }
    .encode_to_vec()
    .into()
}
