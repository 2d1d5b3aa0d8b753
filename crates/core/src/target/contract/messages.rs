//! Messages that a scenario sends, also such as nobody should send.

use bytes::Bytes;
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::{
    DeleteRequest, DropCollectionRequest, DropPartitionRequest, InsertRequest, TimeTickMsg,
};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::{
    CollectionSchema, DataType, FieldData, FieldSchema, FloatArray, IDs, LongArray, ScalarField,
    VectorField, scalar_field, vector_field,
};
use prost::Message;

use crate::ids::{CollectionId, PartitionId, VChannel};
use crate::tso::Tso;

const DIM: usize = 2;

/// A key, a version and a vector, as a source has them.
pub(super) fn schema(name: &str, partition_key: bool) -> CollectionSchema {
    let field = |id: i64, name: &str, data_type: DataType| FieldSchema {
        field_id: id,
        name: name.to_owned(),
        data_type: data_type as i32,
        is_primary_key: id == 100,
        is_partition_key: partition_key && id == 101,
        ..Default::default()
    };
    let mut vector = field(102, "vector", DataType::FloatVector);
    vector.type_params = vec![milvus::proto::common::KeyValuePair {
        key: "dim".to_owned(),
        value: DIM.to_string(),
    }];
    CollectionSchema {
        name: name.to_owned(),
        fields: vec![
            field(0, "RowID", DataType::Int64),
            field(1, "Timestamp", DataType::Int64),
            field(100, "pk", DataType::Int64),
            field(101, "version", DataType::Int64),
            vector,
        ],
        ..Default::default()
    }
}

fn base(kind: MsgType, id: i64, ts: Tso) -> Option<MsgBase> {
    Some(MsgBase {
        msg_type: kind as i32,
        msg_id: id,
        timestamp: ts.0,
        ..Default::default()
    })
}

/// Where rows go and from where they are deleted.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) collection: CollectionId,
    pub(super) name: String,
    pub(super) partition: PartitionId,
    pub(super) vchannel: VChannel,
}

/// Keys with their times, for one message.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) to: Place,
    pub(super) id: i64,
    pub(super) rows: Vec<(i64, Tso)>,
    pub(super) version: i64,
    /// Bytes that a reader does not look at.
    pub(super) ballast: usize,
}

impl Rows {
    fn times(&self) -> Vec<u64> {
        self.rows.iter().map(|(_, ts)| ts.0).collect()
    }

    fn keys(&self) -> Vec<i64> {
        self.rows.iter().map(|(key, _)| *key).collect()
    }

    fn last(&self) -> Tso {
        let times = self.rows.iter().map(|(_, ts)| *ts);
        times.max().unwrap_or_default()
    }

    /// With this id in place of a fresh one.
    pub(super) fn id(mut self, id: i64) -> Self {
        self.id = id;
        self
    }

    pub(super) fn version(mut self, version: i64) -> Self {
        self.version = version;
        self
    }

    pub(super) fn partition(mut self, partition: PartitionId) -> Self {
        self.to.partition = partition;
        self
    }

    /// In all partitions, as a delete.
    pub(super) fn everywhere(self) -> Self {
        self.partition(PartitionId(-1))
    }

    pub(super) fn collection(mut self, collection: CollectionId) -> Self {
        self.to.collection = collection;
        self
    }

    pub(super) fn vchannel(mut self, vchannel: VChannel) -> Self {
        self.to.vchannel = vchannel;
        self
    }

    pub(super) fn ballast(mut self, bytes: usize) -> Self {
        self.ballast = bytes;
        self
    }

    pub(super) fn insert(&self) -> Bytes {
        let longs = |id: i64, name: &str, data: Vec<i64>| FieldData {
            r#type: DataType::Int64 as i32,
            field_name: name.to_owned(),
            field_id: id,
            field: Some(Field::Scalars(ScalarField {
                data: Some(scalar_field::Data::LongData(LongArray { data })),
                ..Default::default()
            })),
            ..Default::default()
        };
        let keys = self.keys();
        let floats = keys.iter().flat_map(|key| [*key as f32; DIM]).collect();
        let vector = FieldData {
            r#type: DataType::FloatVector as i32,
            field_name: "vector".to_owned(),
            field_id: 102,
            field: Some(Field::Vectors(VectorField {
                dim: DIM as i64,
                data: Some(vector_field::Data::FloatVector(FloatArray { data: floats })),
                ..Default::default()
            })),
            ..Default::default()
        };
        let versions = vec![self.version; keys.len()];
        InsertRequest {
            base: base(MsgType::Insert, self.id, self.last()),
            shard_name: self.to.vchannel.as_str().to_owned(),
            collection_name: self.to.name.clone(),
            partition_name: "x".repeat(self.ballast),
            collection_id: self.to.collection.0,
            partition_id: self.to.partition.0,
            timestamps: self.times(),
            row_i_ds: keys.clone(),
            num_rows: keys.len() as u64,
            fields_data: vec![
                longs(100, "pk", keys),
                longs(101, "version", versions),
                vector,
            ],
            version: 1,
            ..Default::default()
        }
        .encode_to_vec()
        .into()
    }

    pub(super) fn delete(&self) -> Bytes {
        DeleteRequest {
            base: base(MsgType::Delete, self.id, self.last()),
            shard_name: self.to.vchannel.as_str().to_owned(),
            collection_name: self.to.name.clone(),
            collection_id: self.to.collection.0,
            partition_id: self.to.partition.0,
            timestamps: self.times(),
            num_rows: self.rows.len() as i64,
            primary_keys: Some(IDs {
                id_field: Some(IdField::IntId(LongArray { data: self.keys() })),
            }),
            ..Default::default()
        }
        .encode_to_vec()
        .into()
    }
}

pub(super) fn drop_collection(of: &Place, id: i64, ts: Tso) -> Bytes {
    DropCollectionRequest {
        base: base(MsgType::DropCollection, id, ts),
        collection_name: of.name.clone(),
        collection_id: of.collection.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub(super) fn drop_partition(of: &Place, name: &str, id: i64, ts: Tso) -> Bytes {
    DropPartitionRequest {
        base: base(MsgType::DropPartition, id, ts),
        collection_name: of.name.clone(),
        partition_name: name.to_owned(),
        collection_id: of.collection.0,
        partition_id: of.partition.0,
        ..Default::default()
    }
    .encode_to_vec()
    .into()
}

pub(super) fn tick(ts: Tso, id: i64) -> Bytes {
    TimeTickMsg {
        base: base(MsgType::TimeTick, id, ts),
    }
    .encode_to_vec()
    .into()
}

/// Entries that are not valid, with what is wrong with each.
pub(super) fn invalid(rows: &Rows) -> Vec<(&'static str, Bytes)> {
    let of_no_type = TimeTickMsg {
        base: Some(MsgBase {
            msg_type: 4711,
            ..Default::default()
        }),
    };
    let nowhere = rows.clone().collection(CollectionId(4711));
    vec![
        ("undecodable", Bytes::from_static(b"\xff\xff\xff")),
        (
            "without a base",
            TimeTickMsg::default().encode_to_vec().into(),
        ),
        ("of an unknown type", of_no_type.encode_to_vec().into()),
        ("for an unknown collection", nowhere.insert()),
    ]
}
