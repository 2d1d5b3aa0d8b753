//! A message as the proxy has read it.

use milvus::proto::common::MsgBase;
use milvus::proto::msg::{
    DeleteRequest, DropCollectionRequest, DropPartitionRequest, InsertRequest, TimeTickMsg,
};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::scalar_field::Data;

use super::Key;
use crate::catalog::Collection;
use crate::tso::Tso;

pub(super) enum Entry {
    Insert(InsertRequest),
    Delete(DeleteRequest),
    DropCollection(DropCollectionRequest),
    DropPartition(DropPartitionRequest),
    Tick(TimeTickMsg),
    /// Of a type that the table allows and this model does not know more of.
    Other,
}

/// Of an insert, a delete or a drop.
pub(super) struct Head {
    pub(super) id: i64,
    pub(super) first: Tso,
    /// A tick at or above it shows the message.
    pub(super) last: Tso,
    pub(super) is_drop: bool,
}

impl Head {
    pub(super) fn of_rows(base: Option<&MsgBase>, times: &[u64]) -> Self {
        Self {
            id: base.map_or(0, |b| b.msg_id),
            first: Tso(times.iter().min().copied().unwrap_or_default()),
            last: Tso(times.iter().max().copied().unwrap_or_default()),
            is_drop: false,
        }
    }
}

pub(super) struct Columns {
    pub(super) keys: Vec<Key>,
    /// Of the first other Int64 column, if there is one.
    pub(super) versions: Vec<i64>,
}

impl Columns {
    pub(super) fn of(insert: &InsertRequest, source: &Collection) -> Option<Self> {
        let rows = insert.timestamps.len();
        let pk = source.primary_key()?;
        let mut keys = None;
        let mut versions = Vec::new();
        for column in &insert.fields_data {
            let Some(Field::Scalars(scalars)) = &column.field else {
                continue;
            };
            match &scalars.data {
                Some(Data::LongData(longs)) if column.field_id == pk.0 => {
                    keys = Some(longs.data.iter().copied().map(Key::Int).collect());
                }
                Some(Data::StringData(texts)) if column.field_id == pk.0 => {
                    keys = Some(texts.data.iter().cloned().map(Key::Text).collect());
                }
                Some(Data::LongData(longs)) if versions.is_empty() => {
                    versions.clone_from(&longs.data);
                }
                _ => {}
            }
        }
        let keys: Vec<Key> = keys?;
        let even = keys.len() == rows && (versions.is_empty() || versions.len() == rows);
        even.then_some(Self { keys, versions })
    }
}
