//! What requests and answers look like, for the OpenAPI document. The requests are read by `request`, the answers are
//! made by `show`; the tests compare both with this and with the Go server's structures.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

const ID: &str = "4d458a58b0f74e85b842b1244dc69546";

/// A request of the Go server.
#[allow(dead_code)] // it is only described: `request` reads what comes
#[derive(Serialize, ToSchema)]
#[serde(
    tag = "request_type",
    content = "request_data",
    rename_all = "lowercase"
)]
pub(crate) enum CdcRequest {
    Create(Box<Create>),
    Delete(Delete),
    Pause(OneTask),
    Resume(Resume),
    Get(OneTask),
    Position(OneTask),
    /// Takes no `request_data`, or an empty one.
    List,
    Maintenance(Maintenance),
}

#[derive(Serialize, ToSchema)]
#[schema(as = CdcOneTask)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneTask {
    #[schema(example = json!(ID), min_length = 1)]
    pub(crate) task_id: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CdcDelete)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    #[schema(min_length = 1)]
    pub(crate) task_id: String,
    pub(crate) ignore_not_found: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CdcResume)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resume {
    #[schema(min_length = 1)]
    pub(crate) task_id: String,
    /// Answers for collections that wait for a person. The Go server has none.
    pub(crate) collections: Option<Vec<ResumeAnswer>>,
}

/// Exactly one of `on_conflict`, `start`, `positions`, `skip`.
#[derive(Serialize, ToSchema)]
#[schema(as = CdcAnswerFor)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeAnswer {
    /// `default` if left out.
    pub(crate) db: Option<String>,
    pub(crate) name: String,
    pub(crate) on_conflict: Option<super::super::v1::body::OnConflict>,
    pub(crate) start: Option<super::super::v1::body::Beginning>,
    pub(crate) positions: Option<BTreeMap<String, String>>,
    pub(crate) skip: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CdcMaintenance)]
#[serde(deny_unknown_fields)]
pub(crate) struct Maintenance {
    /// `set_log_level`
    #[schema(pattern = "^set_log_level$")]
    pub(crate) operation: String,
    pub(crate) params: MaintenanceParams,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CdcMaintenanceParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct MaintenanceParams {
    #[schema(pattern = "^(trace|debug|info|warn|error|off)$")]
    pub(crate) log_level: String,
}

/// A task to be made. `collection_infos` or `db_collections` says which collections.
#[derive(Serialize, ToSchema)]
#[schema(as = CdcCreate)]
#[serde(deny_unknown_fields)]
pub(crate) struct Create {
    pub(crate) milvus_connect_param: MilvusConnectParam,
    /// A Kafka as the target is not available in this version.
    pub(crate) kafka_connect_param: Option<Value>,
    pub(crate) collection_infos: Option<Vec<CollectionInfo>>,
    pub(crate) db_collections: Option<BTreeMap<String, Vec<CollectionInfo>>>,
    pub(crate) rpc_channel_info: Option<Value>,
    pub(crate) extra_info: Option<Value>,
    /// Taken and ignored.
    pub(crate) buffer_config: Option<Value>,
    /// Not available in this version.
    pub(crate) name_mapping: Option<Vec<Value>>,
    /// `true` is not available in this version.
    pub(crate) disable_auto_start: Option<bool>,
    pub(crate) task_id: Option<String>,
    pub(crate) positions: Option<BTreeMap<String, String>>,
    /// The Go server has none.
    pub(crate) start: Option<super::super::v1::body::Start>,
    /// The Go server has none.
    pub(crate) on_conflict: Option<super::super::v1::body::OnConflict>,
    /// The Go server has none.
    pub(crate) mode: Option<super::super::v1::body::Mode>,
    /// The Go server has none.
    pub(crate) initial: Option<super::super::v1::body::Initial>,
    /// The Go server has none.
    pub(crate) load_for_snapshot: Option<bool>,
    /// The Go server has none.
    #[schema(minimum = 1, maximum = 1_099_511_627_776_u64)]
    pub(crate) rows_per_second: Option<u64>,
    /// The Go server has none.
    #[schema(minimum = 1, maximum = 1_099_511_627_776_u64)]
    pub(crate) bytes_per_second: Option<u64>,
}

/// `uri`, or `host` and `port`; `token`, or `username` and `password`.
#[derive(Serialize, ToSchema)]
#[schema(as = CdcMilvusConnectParam)]
#[serde(deny_unknown_fields)]
pub(crate) struct MilvusConnectParam {
    pub(crate) uri: Option<String>,
    pub(crate) host: Option<String>,
    #[schema(minimum = 0, maximum = 65535)]
    pub(crate) port: Option<u64>,
    pub(crate) enable_tls: Option<bool>,
    #[schema(write_only)]
    pub(crate) token: Option<String>,
    pub(crate) username: Option<String>,
    #[schema(write_only)]
    pub(crate) password: Option<String>,
    pub(crate) dial_config: Option<Value>,
    pub(crate) channel_num: Option<u64>,
    pub(crate) ignore_partition: Option<bool>,
    /// Seconds.
    #[schema(minimum = 0, maximum = 300)]
    pub(crate) connect_timeout: Option<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CdcCollectionInfo)]
#[serde(deny_unknown_fields)]
pub(crate) struct CollectionInfo {
    /// `*`, a name in `default`, or `database.name`.
    pub(crate) name: String,
    /// By virtual channel: base64 of a `MsgPosition`.
    pub(crate) positions: Option<BTreeMap<String, String>>,
    pub(crate) use_start_position: Option<bool>,
    /// The Go server has none.
    pub(crate) start: Option<super::super::v1::body::Start>,
}

/// Granted: what `data` holds depends on the request.
#[derive(Serialize, ToSchema)]
pub(crate) struct CdcAnswer {
    #[schema(minimum = 200, maximum = 200)]
    pub(crate) code: u16,
    #[schema(value_type = Object)]
    pub(crate) data: Value,
}

/// Not granted.
#[derive(Serialize, ToSchema)]
pub(crate) struct CdcError {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub(crate) code: u16,
    /// The cause and the way out.
    pub(crate) message: String,
}
