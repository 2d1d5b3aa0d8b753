//! The messages in a source's etcd that are not part of the public protos (`etcd_meta.proto`, `index_coord.proto`,
//! `query_coord.proto`, the same in 2.3 to 2.5). Only the fields that are read.

use milvus::proto::common::{KeyDataPair, KeyValuePair};
use milvus::proto::schema::CollectionSchema;
use prost::Message;

/// `etcd.CollectionInfo`
#[derive(Clone, PartialEq, Message)]
pub struct CollectionInfo {
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Without fields, unless it was written before 2.1.
    #[prost(message, optional, tag = "2")]
    pub schema: Option<CollectionSchema>,
    #[prost(uint64, tag = "3")]
    pub create_time: u64,
    /// Filled only before 2.1, as the two below; the partitions are then here alone.
    #[prost(int64, repeated, tag = "4")]
    pub partition_ids: Vec<i64>,
    #[prost(string, repeated, tag = "5")]
    pub partition_names: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub virtual_channel_names: Vec<String>,
    #[prost(string, repeated, tag = "8")]
    pub physical_channel_names: Vec<String>,
    #[prost(uint64, repeated, tag = "9")]
    pub partition_created_timestamps: Vec<u64>,
    #[prost(int32, tag = "10")]
    pub shards_num: i32,
    #[prost(message, repeated, tag = "11")]
    pub start_positions: Vec<KeyDataPair>,
    #[prost(int32, tag = "12")]
    pub consistency_level: i32,
    #[prost(int32, tag = "13")]
    pub state: i32,
    #[prost(message, repeated, tag = "14")]
    pub properties: Vec<KeyValuePair>,
    #[prost(int64, tag = "15")]
    pub db_id: i64,
}

/// `etcd.PartitionInfo`
#[derive(Clone, PartialEq, Message)]
pub struct PartitionInfo {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(uint64, tag = "3")]
    pub created_timestamp: u64,
    #[prost(int64, tag = "4")]
    pub collection_id: i64,
    #[prost(int32, tag = "5")]
    pub state: i32,
}

/// `etcd.DatabaseInfo`
#[derive(Clone, PartialEq, Message)]
pub struct DatabaseInfo {
    #[prost(string, tag = "1")]
    pub tenant_id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(int64, tag = "3")]
    pub id: i64,
    /// 0 Unknown, 1 Created, 2 Creating, 3 Dropping, 4 Dropped: not the numbers of the other objects.
    #[prost(int32, tag = "4")]
    pub state: i32,
    /// Unix nanoseconds, not a timestamp of the oracle.
    #[prost(uint64, tag = "5")]
    pub created_time: u64,
    /// Since 2.4.
    #[prost(message, repeated, tag = "6")]
    pub properties: Vec<KeyValuePair>,
}

/// `etcd.AliasInfo`
#[derive(Clone, PartialEq, Message)]
pub struct AliasInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub collection_id: i64,
    #[prost(uint64, tag = "3")]
    pub created_time: u64,
    #[prost(int32, tag = "4")]
    pub state: i32,
    #[prost(int64, tag = "5")]
    pub db_id: i64,
}

/// `index.IndexInfo`
#[derive(Clone, PartialEq, Message)]
pub struct IndexInfo {
    #[prost(int64, tag = "1")]
    pub collection_id: i64,
    #[prost(int64, tag = "2")]
    pub field_id: i64,
    #[prost(string, tag = "3")]
    pub index_name: String,
    #[prost(int64, tag = "4")]
    pub index_id: i64,
    #[prost(message, repeated, tag = "5")]
    pub type_params: Vec<KeyValuePair>,
    /// The expanded form: the JSON of `params` as single pairs.
    #[prost(message, repeated, tag = "6")]
    pub index_params: Vec<KeyValuePair>,
    #[prost(bool, tag = "11")]
    pub is_auto_index: bool,
    /// What the user sent, `params` as JSON.
    #[prost(message, repeated, tag = "12")]
    pub user_index_params: Vec<KeyValuePair>,
}

/// `index.FieldIndex`
#[derive(Clone, PartialEq, Message)]
pub struct FieldIndex {
    #[prost(message, optional, tag = "1")]
    pub index_info: Option<IndexInfo>,
    #[prost(bool, tag = "2")]
    pub deleted: bool,
    #[prost(uint64, tag = "3")]
    pub create_time: u64,
}

/// `querypb.CollectionLoadInfo`
#[derive(Clone, PartialEq, Message)]
pub struct CollectionLoadInfo {
    #[prost(int64, tag = "1")]
    pub collection_id: i64,
    #[prost(int32, tag = "3")]
    pub replica_number: i32,
    /// 1 Loading, 2 Loaded
    #[prost(int32, tag = "4")]
    pub status: i32,
    /// 1 LoadPartition, 2 LoadCollection
    #[prost(int32, tag = "6")]
    pub load_type: i32,
}

/// `querypb.PartitionLoadInfo`
#[derive(Clone, PartialEq, Message)]
pub struct PartitionLoadInfo {
    #[prost(int64, tag = "1")]
    pub collection_id: i64,
    #[prost(int64, tag = "2")]
    pub partition_id: i64,
    #[prost(int32, tag = "4")]
    pub status: i32,
}
