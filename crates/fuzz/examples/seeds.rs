//! Writes the parts of the corpus that are not text, as Milvus 2.3.5 writes them: `cargo run -p cdc-fuzz --example seeds`

use std::path::Path;

use cdc_core::catalog::proto::{CollectionInfo, DatabaseInfo, PartitionInfo};
use cdc_core::position::Position;
use cdc_fuzz::runner::root;
use milvus::proto::common::{KeyDataPair, MsgBase, MsgType};
use milvus::proto::msg::{
    CreateCollectionRequest, DeleteRequest, DropCollectionRequest, DropPartitionRequest,
    InsertRequest, TimeTickMsg,
};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::vector_field::Data as Vectors;
use milvus::proto::schema::{
    CollectionSchema, DataType, FieldData, FieldSchema, FloatArray, IDs, LongArray, ScalarField,
    StringArray, VectorField,
};
use prost::Message;

const TS: u64 = 445_811_557_825_249_939;
const VCHANNEL: &str = "by-dev-rootcoord-dml_0_445811557825249939v0";

fn base(kind: MsgType) -> Option<MsgBase> {
    Some(MsgBase {
        msg_id: 7,
        timestamp: TS,
        source_id: 3,
        ..MsgBase::new(kind)
    })
}

fn column(id: i64, name: &str, data_type: DataType, field: Field) -> FieldData {
    FieldData {
        r#type: data_type as i32,
        field_name: name.to_owned(),
        field_id: id,
        field: Some(field),
        ..Default::default()
    }
}

fn scalars(data: Data) -> Field {
    Field::Scalars(ScalarField {
        data: Some(data),
        ..Default::default()
    })
}

fn insert(keys: Data, rows: usize) -> Vec<u8> {
    let vectors = VectorField {
        dim: 4,
        data: Some(Vectors::FloatVector(FloatArray {
            data: vec![0.5; 4 * rows],
        })),
        ..Default::default()
    };
    InsertRequest {
        base: base(MsgType::Insert),
        shard_name: VCHANNEL.to_owned(),
        db_name: "default".to_owned(),
        collection_name: "c".to_owned(),
        partition_name: "_default".to_owned(),
        collection_id: 445_811_557_825_249_939,
        partition_id: 445_811_557_825_249_940,
        segment_id: 9,
        timestamps: vec![TS; rows],
        row_i_ds: vec![5; rows],
        fields_data: vec![
            column(100, "pk", DataType::Int64, scalars(keys)),
            column(101, "v", DataType::FloatVector, Field::Vectors(vectors)),
        ],
        num_rows: rows as u64,
        version: 1,
        ..Default::default()
    }
    .encode_to_vec()
}

fn delete(ids: IdField) -> Vec<u8> {
    DeleteRequest {
        base: base(MsgType::Delete),
        shard_name: VCHANNEL.to_owned(),
        collection_name: "c".to_owned(),
        collection_id: 445_811_557_825_249_939,
        partition_id: -1,
        timestamps: vec![TS; 2],
        num_rows: 2,
        primary_keys: Some(IDs {
            id_field: Some(ids),
        }),
        ..Default::default()
    }
    .encode_to_vec()
}

fn field(id: i64, name: &str, data_type: DataType) -> FieldSchema {
    FieldSchema {
        field_id: id,
        name: name.to_owned(),
        is_primary_key: id == 100,
        data_type: data_type as i32,
        ..Default::default()
    }
}

/// One key and value as the target `catalog` takes them.
fn entry(key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = key.as_bytes().to_vec();
    out.push(0);
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(value);
    out
}

fn catalog() -> Vec<u8> {
    let collection = CollectionInfo {
        id: 7,
        schema: Some(CollectionSchema {
            name: "c".to_owned(),
            ..Default::default()
        }),
        create_time: TS,
        virtual_channel_names: vec!["ch_0_7v0".to_owned()],
        physical_channel_names: vec!["ch_0".to_owned()],
        shards_num: 1,
        start_positions: vec![KeyDataPair {
            key: "ch_0".to_owned(),
            data: Position::Natsmq(5).to_bytes(),
        }],
        state: 1,
        db_id: 1,
        ..Default::default()
    };
    let database = DatabaseInfo {
        id: 1,
        name: "default".to_owned(),
        state: 1,
        ..Default::default()
    };
    let partition = PartitionInfo {
        id: 8,
        name: "_default".to_owned(),
        collection_id: 7,
        state: 1,
        ..Default::default()
    };
    let key = field(100, "pk", DataType::Int64).encode_to_vec();
    let vector = field(101, "v", DataType::FloatVector).encode_to_vec();
    [
        entry("root-coord/database/db-info/1", &database.encode_to_vec()),
        entry(
            "root-coord/database/collection-info/1/7",
            &collection.encode_to_vec(),
        ),
        entry("root-coord/partitions/7/8", &partition.encode_to_vec()),
        entry("root-coord/fields/7/100", &key),
        entry("root-coord/fields/7/101", &vector),
        entry("root-coord/database/aliases/1/a", "\u{26fc}".as_bytes()),
    ]
    .concat()
}

fn main() -> std::io::Result<()> {
    let texts = |n: usize| StringArray {
        data: vec!["key".to_owned(); n],
    };
    let longs = |n: usize| LongArray { data: vec![-1; n] };
    let messages = [
        ("insert", insert(Data::LongData(longs(3)), 3)),
        ("insert_texts", insert(Data::StringData(texts(1)), 1)),
        ("delete", delete(IdField::IntId(longs(2)))),
        ("delete_texts", delete(IdField::StrId(texts(2)))),
        (
            "tick",
            TimeTickMsg {
                base: base(MsgType::TimeTick),
            }
            .encode_to_vec(),
        ),
        (
            "drop",
            DropCollectionRequest {
                base: base(MsgType::DropCollection),
                collection_name: "c".to_owned(),
                collection_id: 7,
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "drop_partition",
            DropPartitionRequest {
                base: base(MsgType::DropPartition),
                partition_name: "p".to_owned(),
                collection_id: 7,
                partition_id: 8,
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "create",
            CreateCollectionRequest {
                base: base(MsgType::CreateCollection),
                collection_name: "c".to_owned(),
                collection_id: 7,
                ..Default::default()
            }
            .encode_to_vec(),
        ),
    ];
    let pulsar = Position::Pulsar {
        ledger: 5,
        entry: 7,
        batch: 2,
    };
    let positions = [
        ("word", Position::Natsmq(5).to_bytes()),
        ("pulsar", pulsar.to_bytes()),
    ];
    write("message", &messages)?;
    write("position", &positions)?;
    write("catalog", &[("collection", catalog())])
}

fn write(target: &str, all: &[(&str, Vec<u8>)]) -> std::io::Result<()> {
    let folder: &Path = &root().join("corpus").join(target);
    std::fs::create_dir_all(folder)?;
    for (name, bytes) in all {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
