//! Values of a source's metadata to what they say. Pure.

use milvus::proto::common::KeyValuePair;
use milvus::proto::schema::{FieldSchema, FunctionSchema, StructArrayFieldSchema};
use prost::Message;

use super::keys::MetaKey;
use super::proto::{
    AliasInfo, CollectionInfo, CollectionLoadInfo, DatabaseInfo, FieldIndex, PartitionInfo,
    PartitionLoadInfo,
};
use super::{Index, ObjectState};
use crate::ids::{FieldId, IndexId};
use crate::tso::Tso;

/// What a removal puts in place of the value, up to 2.6.15
/// (`internal/metastore/kv/rootcoord/suffix_snapshot.go`).
pub const TOMBSTONE: &[u8] = &[0xE2, 0x9B, 0xBC];

/// A decoded value. The variant belongs to the kind of its key.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    Database(DatabaseInfo),
    Collection(Box<CollectionInfo>),
    Partition(PartitionInfo),
    Field(Box<FieldSchema>),
    Function(FunctionSchema),
    StructArrayField(StructArrayFieldSchema),
    /// The id of the collection it stands for, or nothing if it is not in force.
    Alias(Option<i64>),
    FieldIndex(FieldIndex),
    CollectionLoad(CollectionLoadInfo),
    PartitionLoad(PartitionLoadInfo),
}

/// Decodes the value of `key`; `Ok(None)` if it is a tombstone, `Err` with the cause if it is something else than the
/// key says.
pub fn decode(key: &MetaKey, value: &[u8]) -> Result<Option<Entry>, String> {
    if value == TOMBSTONE {
        return Ok(None);
    }
    let entry = match key {
        MetaKey::Database(id) => {
            let info: DatabaseInfo = message(value)?;
            same("database id", id.0, info.id)?;
            if !(0..=4).contains(&info.state) {
                return Err(format!("unknown state {}", info.state));
            }
            Entry::Database(info)
        }
        MetaKey::Collection { id, .. } | MetaKey::LegacyCollection(id) => {
            let info: CollectionInfo = message(value)?;
            same("collection id", id.0, info.id)?;
            state(info.state)?;
            if info.schema.is_none() {
                return Err("a collection without schema".to_owned());
            }
            Entry::Collection(Box::new(info))
        }
        MetaKey::Partition {
            collection,
            partition,
        } => {
            let info: PartitionInfo = message(value)?;
            same("collection id", collection.0, info.collection_id)?;
            same("partition id", partition.0, info.id)?;
            state(info.state)?;
            Entry::Partition(info)
        }
        MetaKey::Field { field, .. } => {
            let schema: FieldSchema = message(value)?;
            same("field id", field.0, schema.field_id)?;
            Entry::Field(Box::new(schema))
        }
        MetaKey::Function { function, .. } => {
            let schema: FunctionSchema = message(value)?;
            same("function id", *function, schema.id)?;
            Entry::Function(schema)
        }
        MetaKey::StructArrayField { field, .. } => {
            let schema: StructArrayFieldSchema = message(value)?;
            same("field id", field.0, schema.field_id)?;
            Entry::StructArrayField(schema)
        }
        MetaKey::Alias { .. } | MetaKey::LegacyAlias(_) => {
            let info: AliasInfo = message(value)?;
            let alive = state(info.state)? == ObjectState::Created;
            Entry::Alias(alive.then_some(info.collection_id))
        }
        MetaKey::AncientAlias(_) => Entry::Alias(Some(message::<CollectionInfo>(value)?.id)),
        MetaKey::FieldIndex { collection, index } => {
            let info: FieldIndex = message(value)?;
            let Some(of) = &info.index_info else {
                return Err("an index without index_info".to_owned());
            };
            same("collection id", collection.0, of.collection_id)?;
            same("index id", index.0, of.index_id)?;
            Entry::FieldIndex(info)
        }
        MetaKey::CollectionLoad(id) => {
            let info: CollectionLoadInfo = message(value)?;
            same("collection id", id.0, info.collection_id)?;
            Entry::CollectionLoad(info)
        }
        MetaKey::PartitionLoad {
            collection,
            partition,
        } => {
            let info: PartitionLoadInfo = message(value)?;
            same("collection id", collection.0, info.collection_id)?;
            same("partition id", partition.0, info.partition_id)?;
            Entry::PartitionLoad(info)
        }
    };
    Ok(Some(entry))
}

/// State of a collection, partition or alias. Absent on the wire means Created; databases have other numbers.
pub fn state(number: i32) -> Result<ObjectState, String> {
    match number {
        0 => Ok(ObjectState::Created),
        1 => Ok(ObjectState::Creating),
        2 | 3 => Ok(ObjectState::Dropping),
        other => Err(format!("unknown state {other}")),
    }
}

/// Whether a database in this state is there for its users. 0 is what a writer leaves that knows no states.
pub fn database_is_alive(number: i32) -> bool {
    matches!(number, 0 | 1)
}

/// The index as its creation has to be asked for; `None` if it is dropped.
pub fn index(info: &FieldIndex) -> Option<Index> {
    let of = info.index_info.as_ref()?;
    if info.deleted {
        return None;
    }
    let mut params = pairs(&of.user_index_params);
    if params.is_empty() {
        // A scalar index made without any parameter has none; a vector index always states its metric.
        if of.index_params.iter().any(|pair| pair.key == "metric_type") {
            params = pairs(&of.index_params);
        }
    } else {
        // What the user left to the source's defaults has to be said to a target whose defaults may differ. The type
        // of an auto index stays the target's choice.
        for pair in &of.index_params {
            let wanted =
                pair.key == "metric_type" || (pair.key == "index_type" && !of.is_auto_index);
            if wanted && !params.iter().any(|(key, _)| *key == pair.key) {
                params.push((pair.key.clone(), pair.value.clone()));
            }
        }
    }
    Some(Index {
        id: IndexId(of.index_id),
        field: FieldId(of.field_id),
        name: of.index_name.clone(),
        params,
        create_ts: Tso(info.create_time),
    })
}

pub fn pairs(list: &[KeyValuePair]) -> Vec<(String, String)> {
    list.iter()
        .map(|pair| (pair.key.clone(), pair.value.clone()))
        .collect()
}

/// The bound in `{rootPath}/kv/gid/timestamp`: 8 bytes, big endian, unix nanoseconds (not a timestamp of the oracle).
pub fn tso_bound(value: &[u8]) -> Result<Tso, String> {
    let word: [u8; 8] = value.try_into().map_err(|_| {
        format!(
            "8 bytes of unix nanoseconds expected, {} found",
            value.len()
        )
    })?;
    // The next millisecond: within the bound's own one the counter may have run.
    Ok(Tso::from_millis(u64::from_be_bytes(word) / 1_000_000 + 1))
}

fn message<M: Message + Default>(value: &[u8]) -> Result<M, String> {
    M::decode(value).map_err(|error| error.to_string())
}

fn same(what: &str, key: i64, value: i64) -> Result<(), String> {
    if key == value {
        Ok(())
    } else {
        Err(format!("the key says {what} {key}, the value {value}"))
    }
}
