use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::{DeleteRequest, DropPartitionRequest, InsertRequest, TimeTickMsg};
use milvus::proto::schema::{
    FieldData, IDs, LongArray, ScalarField, field_data::Field, i_ds::IdField, scalar_field::Data,
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::ids::FieldId;

fn base(msg_type: MsgType, ts: u64) -> Option<MsgBase> {
    Some(MsgBase {
        msg_type: msg_type as i32,
        msg_id: 7,
        timestamp: ts,
        ..Default::default()
    })
}

fn key_column(id: i64, keys: Vec<i64>) -> FieldData {
    let data = Some(Data::LongData(LongArray { data: keys }));
    FieldData {
        field_id: id,
        field: Some(Field::Scalars(ScalarField {
            data,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn insert() -> InsertRequest {
    InsertRequest {
        base: base(MsgType::Insert, 0),
        shard_name: "src-rootcoord-dml_3_440v1".into(),
        collection_name: "c".into(),
        partition_name: "_default".into(),
        collection_id: 440,
        partition_id: 441,
        segment_id: 9,
        timestamps: vec![100, 100, 101],
        row_i_ds: vec![1, 2, 3],
        fields_data: vec![
            key_column(101, vec![9, 9, 9]),
            key_column(100, vec![4, 5, 6]),
        ],
        num_rows: 3,
        version: 1,
        ..Default::default()
    }
}

#[test]
fn an_insert_keeps_its_columns_unread_and_takes_the_rows_own_timestamps() {
    let Ok(Event::Rows(rows)) = decode(&insert().encode_to_vec().into()) else {
        panic!("an insert")
    };
    assert_eq!(rows.kind, RowsKind::Insert);
    assert_eq!(
        (rows.collection, rows.partition),
        (CollectionId(440), PartitionId(441))
    );
    assert_eq!(rows.vchannel.shard(), Some(1));
    assert_eq!(rows.timestamps, [100, 100, 101]);
    assert_eq!(
        rows.max_ts(),
        Tso(101),
        "base.timestamp is 0 in the insert of an upsert"
    );
    let body: Vec<u8> = rows.body.concat();
    let body = InsertRequest::decode(&body[..]).unwrap();
    assert_eq!(
        (body.fields_data.len(), body.num_rows, body.version),
        (2, 3, 1)
    );
    assert_eq!(
        (body.base, body.segment_id, body.timestamps.len()),
        (None, 0, 0)
    );
}

#[test]
fn the_key_column_is_found_wherever_it_stands() {
    let Ok(Event::Rows(rows)) = decode(&insert().encode_to_vec().into()) else {
        panic!("an insert")
    };
    let keys = keys::primary_keys(&rows.body, FieldId(100)).and_then(|ids| ids.id_field);
    assert_eq!(
        keys,
        Some(IdField::IntId(LongArray {
            data: vec![4, 5, 6]
        }))
    );
    assert_eq!(keys::primary_keys(&rows.body, FieldId(102)), None);
}

#[test]
fn a_delete_keeps_both_forms_of_keys() {
    let request = DeleteRequest {
        base: base(MsgType::Delete, 50),
        shard_name: "p_1v0".into(),
        collection_id: 1,
        partition_id: -1,
        int64_primary_keys: vec![8],
        timestamps: vec![50],
        num_rows: 1,
        primary_keys: Some(IDs {
            id_field: Some(IdField::IntId(LongArray { data: vec![8] })),
        }),
        ..Default::default()
    };
    let Ok(Event::Rows(rows)) = decode(&request.encode_to_vec().into()) else {
        panic!("a delete")
    };
    assert_eq!(
        (rows.kind, rows.partition),
        (RowsKind::Delete, PartitionId(-1))
    );
    let body = DeleteRequest::decode(&rows.body.concat()[..]).unwrap();
    assert_eq!((body.int64_primary_keys, body.num_rows), (vec![8], 1));
    assert!(body.primary_keys.is_some());
}

#[test]
fn ticks_and_drops() {
    let tick = TimeTickMsg {
        base: base(MsgType::TimeTick, 77),
    };
    assert_eq!(
        decode(&tick.encode_to_vec().into()),
        Ok(Event::Tick(Tso(77)))
    );
    let drop = DropPartitionRequest {
        base: base(MsgType::DropPartition, 78),
        collection_id: 5,
        partition_id: 6,
        ..Default::default()
    };
    let expected = Event::DropPartition {
        collection: CollectionId(5),
        partition: PartitionId(6),
        ts: Tso(78),
    };
    assert_eq!(decode(&drop.encode_to_vec().into()), Ok(expected));
}

#[test]
fn a_truncated_insert_names_its_collection_if_it_was_read() {
    let whole = insert().encode_to_vec();
    let cut = Bytes::from(whole[..whole.len() - 3].to_vec());
    assert_eq!(
        decode(&cut).unwrap_err().collection,
        Some(CollectionId(440))
    );
    assert_eq!(
        decode(&Bytes::from_static(b"garbage"))
            .unwrap_err()
            .collection,
        None
    );
    assert!(decode(&Bytes::new()).is_err());
}

proptest! {
    #[test]
    fn any_bytes_give_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes.into());
    }

    #[test]
    fn any_cut_of_an_insert_gives_an_event_or_an_error(cut in 0usize..200) {
        let whole = insert().encode_to_vec();
        let _ = decode(&Bytes::from(whole[..cut.min(whole.len())].to_vec()));
    }
}
