//! The keys of a source's etcd, as a 2.3.5 writes them: for each collection its entry, its partition, its fields, an
//! index on the vector, and that it is loaded.

use anyhow::{Context, Result};
use cdc_core::catalog::keys::MetaKey;
use cdc_core::catalog::proto::{
    CollectionInfo, CollectionLoadInfo, DatabaseInfo, FieldIndex, IndexInfo, PartitionInfo,
    PartitionLoadInfo,
};
use cdc_core::ids::{CollectionId, DbId, FieldId, IndexId, PartitionId};
use etcd_client::{Client, Txn, TxnOp};
use milvus::proto::common::{KeyDataPair, KeyValuePair};
use milvus::proto::schema::CollectionSchema;
use prost::Message;

use super::shape::Shape;
use super::{Collection, ROOT};

const DB: i64 = 1;
/// What an etcd takes in one transaction by default is 128.
const IN_ONE: usize = 96;

fn pairs(list: &[(&str, &str)]) -> Vec<KeyValuePair> {
    let pair = |(key, value): &(&str, &str)| KeyValuePair {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    list.iter().map(pair).collect()
}

/// The keys of one collection, which begins at this position of its channel.
pub fn of_collection(of: &Collection, start: Vec<u8>, shape: Shape) -> Vec<(MetaKey, Vec<u8>)> {
    let (collection, partition) = (CollectionId(of.id), PartitionId(of.partition));
    let schema = CollectionSchema {
        name: of.name.clone(),
        ..Default::default()
    };
    let info = CollectionInfo {
        id: of.id,
        schema: Some(schema),
        create_time: of.created,
        virtual_channel_names: vec![of.vchannel()],
        physical_channel_names: vec![of.pchannel.clone()],
        shards_num: 1,
        start_positions: vec![KeyDataPair {
            key: of.pchannel.clone(),
            data: start,
        }],
        consistency_level: 2,
        db_id: DB,
        ..Default::default()
    };
    let default = PartitionInfo {
        id: of.partition,
        name: "_default".to_owned(),
        created_timestamp: of.created,
        collection_id: of.id,
        ..Default::default()
    };
    let params = r#"{"M":"16","efConstruction":"200"}"#;
    let index_id = of.id + 2;
    let index = FieldIndex {
        index_info: Some(IndexInfo {
            collection_id: of.id,
            field_id: 101,
            index_name: "vector".to_owned(),
            index_id,
            type_params: pairs(&[("dim", &shape.dim.to_string())]),
            index_params: pairs(&[("index_type", "HNSW"), ("metric_type", "L2")]),
            user_index_params: pairs(&[
                ("index_type", "HNSW"),
                ("metric_type", "L2"),
                ("params", params),
            ]),
            ..Default::default()
        }),
        deleted: false,
        create_time: of.created,
    };
    let load = CollectionLoadInfo {
        collection_id: of.id,
        replica_number: 1,
        status: 2,
        load_type: 2,
    };
    let loaded = PartitionLoadInfo {
        collection_id: of.id,
        partition_id: of.partition,
        status: 2,
    };
    let mut all = vec![
        (
            MetaKey::Partition {
                collection,
                partition,
            },
            default.encode_to_vec(),
        ),
        (
            MetaKey::FieldIndex {
                collection,
                index: IndexId(index_id),
            },
            index.encode_to_vec(),
        ),
        (MetaKey::CollectionLoad(collection), load.encode_to_vec()),
        (
            MetaKey::PartitionLoad {
                collection,
                partition,
            },
            loaded.encode_to_vec(),
        ),
    ];
    for field in shape.fields() {
        let key = MetaKey::Field {
            collection,
            field: FieldId(field.field_id),
        };
        all.push((key, field.encode_to_vec()));
    }
    let key = MetaKey::Collection {
        db: DbId(DB),
        id: collection,
    };
    all.push((key, info.encode_to_vec()));
    all
}

/// Writes all of it. `collections` come with their start positions.
///
/// # Errors
/// The etcd at `url` does not take it.
pub async fn write(url: &str, collections: &[(Collection, Vec<u8>)], shape: Shape) -> Result<()> {
    let etcd = Client::connect([url], None)
        .await
        .context("connect to etcd")?;
    let default = DatabaseInfo {
        name: "default".to_owned(),
        id: DB,
        state: 1,
        created_time: super::now_us() * 1000,
        ..Default::default()
    };
    let key = MetaKey::Database(DbId(DB));
    let mut all = vec![(format!("{ROOT}/meta/{key}"), default.encode_to_vec())];
    let session = r#"{"ServerID":5,"ServerName":"rootcoord","Version":"2.3.5"}"#;
    all.push((format!("{ROOT}/meta/session/rootcoord"), session.into()));
    // The oracle's bound, unix nanoseconds; far enough ahead for a run.
    let bound = (super::now_us() + 3_000_000) * 1000;
    all.push((
        format!("{ROOT}/kv/gid/timestamp"),
        bound.to_be_bytes().to_vec(),
    ));
    for (collection, start) in collections {
        let keys = of_collection(collection, start.clone(), shape);
        all.extend(
            keys.into_iter()
                .map(|(key, value)| (format!("{ROOT}/meta/{key}"), value)),
        );
    }
    for some in all.chunks(IN_ONE) {
        let puts: Vec<TxnOp> = some
            .iter()
            .map(|(key, value)| TxnOp::put(key.as_str(), value.clone(), None))
            .collect();
        etcd.kv_client()
            .txn(Txn::new().and_then(puts))
            .await
            .context("write the metadata")?;
    }
    Ok(())
}
