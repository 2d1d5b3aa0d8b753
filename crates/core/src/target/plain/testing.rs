//! A target's rows for tests of the writer, and messages for it.

use bytes::Bytes;
use milvus::proto::common::MsgBase;
use milvus::proto::msg::{DeleteRequest, InsertRequest};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::{DataType, FieldData, IDs, LongArray, ScalarField};
use prost::Message as _;

use super::message::{Keys, keys_in};
use super::plan::Step;
use crate::decode::msg_type;
use crate::route::encode::Entry;

fn base(kind: i32, id: i64) -> Option<MsgBase> {
    Some(MsgBase {
        msg_type: kind,
        msg_id: id,
        ..Default::default()
    })
}

fn longs(name: &str, data: Vec<i64>) -> FieldData {
    FieldData {
        r#type: DataType::Int64.into(),
        field_name: name.to_owned(),
        field: Some(Field::Scalars(ScalarField {
            data: Some(Data::LongData(LongArray { data })),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Rows of these keys that all have the value `value` in field `v`.
pub(super) fn insert(id: i64, partition: &str, keys: &[i64], value: i64) -> Entry {
    let bytes = InsertRequest {
        base: base(msg_type::INSERT, id),
        db_name: "d".to_owned(),
        collection_name: "c".to_owned(),
        partition_name: partition.to_owned(),
        collection_id: 1,
        num_rows: keys.len() as u64,
        fields_data: vec![
            longs("pk", keys.to_vec()),
            longs("v", vec![value; keys.len()]),
        ],
        ..Default::default()
    }
    .encode_to_vec();
    Entry::from(Bytes::from(bytes))
}

pub(super) fn delete(id: i64, partition: &str, keys: &[i64]) -> Entry {
    let bytes = DeleteRequest {
        base: base(msg_type::DELETE, id),
        db_name: "d".to_owned(),
        collection_name: "c".to_owned(),
        partition_name: partition.to_owned(),
        collection_id: 1,
        primary_keys: Some(IDs {
            id_field: Some(IdField::IntId(LongArray {
                data: keys.to_vec(),
            })),
        }),
        ..Default::default()
    }
    .encode_to_vec();
    Entry::from(Bytes::from(bytes))
}

/// A message of another kind.
pub(super) fn message_bytes(kind: i32, id: i64) -> Entry {
    let bytes = InsertRequest {
        base: base(kind, id),
        ..Default::default()
    }
    .encode_to_vec();
    Entry::from(Bytes::from(bytes))
}

/// Partition, key and value of each row, copies as often as they are there.
#[derive(Default, Debug, Clone)]
pub(super) struct Rows(pub(super) Vec<(String, i64, i64)>);

impl PartialEq for Rows {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |rows: &Self| {
            let mut rows = rows.0.clone();
            rows.sort();
            rows
        };
        sorted(self) == sorted(other)
    }
}

impl Rows {
    pub(super) fn add(&mut self, at: &str, keys: &[i64], value: i64) {
        let rows = keys.iter().map(|key| (at.to_owned(), *key, value));
        self.0.extend(rows);
    }

    /// `at`: all partitions if empty.
    pub(super) fn remove(&mut self, at: &str, keys: &[i64]) {
        self.0
            .retain(|(p, k, _)| !((at.is_empty() || p == at) && keys.contains(k)));
    }

    pub(super) fn delete(&mut self, at: &str, expr: &str) {
        let list = expr
            .strip_prefix("pk in [")
            .and_then(|e| e.strip_suffix(']'));
        let keys: Vec<i64> = list
            .into_iter()
            .flat_map(|l| l.split(','))
            .map(|k| k.parse().unwrap())
            .collect();
        self.remove(at, &keys);
    }

    pub(super) fn insert(&mut self, at: &str, columns: &[Bytes]) {
        let (Some(Keys::Int(keys)), Some(Keys::Int(values))) =
            (keys_in(columns, "pk"), keys_in(columns, "v"))
        else {
            panic!("no keys or values");
        };
        for (key, value) in keys.iter().zip(values) {
            self.add(at, &[*key], value);
        }
    }

    pub(super) fn run(&mut self, step: &Step) {
        match step {
            Step::Delete { at, expr, .. } => self.delete(&at.partition, expr),
            Step::Insert { at, columns, .. } => self.insert(&at.partition, columns),
        }
    }
}
