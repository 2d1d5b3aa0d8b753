//! Messages of the data channels, as a 2.3.5 writes them.

use bytes::Bytes;
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::{CreateCollectionRequest, DeleteRequest, InsertRequest, TimeTickMsg};
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::{FieldData, IDs, LongArray};
use prost::Message;

use super::Collection;

fn base(kind: MsgType, ts: u64, msg_id: i64) -> Option<MsgBase> {
    Some(MsgBase {
        msg_type: kind as i32,
        msg_id,
        timestamp: ts,
        source_id: 3,
        ..Default::default()
    })
}

/// `base_ts`: 0 in the insert of an upsert.
pub fn insert(
    to: &Collection,
    keys: &[i64],
    columns: Vec<FieldData>,
    ts: u64,
    base_ts: u64,
    msg_id: i64,
) -> Bytes {
    InsertRequest {
        base: base(MsgType::Insert, base_ts, msg_id),
        shard_name: to.vchannel(),
        collection_name: to.name.clone(),
        partition_name: "_default".to_owned(),
        collection_id: to.id,
        partition_id: to.partition,
        segment_id: to.id + 7,
        timestamps: vec![ts; keys.len()],
        row_i_ds: keys.to_vec(),
        fields_data: columns,
        num_rows: keys.len() as u64,
        version: 1,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn delete(to: &Collection, keys: &[i64], ts: u64, msg_id: i64) -> Bytes {
    let data = keys.to_vec();
    DeleteRequest {
        base: base(MsgType::Delete, ts, msg_id),
        shard_name: to.vchannel(),
        collection_name: to.name.clone(),
        collection_id: to.id,
        partition_id: -1,
        timestamps: vec![ts; keys.len()],
        num_rows: keys.len() as i64,
        primary_keys: Some(IDs {
            id_field: Some(IdField::IntId(LongArray { data })),
        }),
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn create(of: &Collection, msg_id: i64) -> Bytes {
    CreateCollectionRequest {
        base: base(MsgType::CreateCollection, of.created, msg_id),
        collection_id: of.id,
        virtual_channel_names: vec![of.vchannel()],
        physical_channel_names: vec![of.pchannel.clone()],
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub fn tick(ts: u64, msg_id: i64) -> Bytes {
    TimeTickMsg {
        base: base(MsgType::TimeTick, ts, msg_id),
    }
    .encode_to_vec()
    .into()
}
