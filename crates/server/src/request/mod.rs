//! Requests: JSON to what is asked for, checked.

mod answer;
mod carried;
mod connect;
mod edit;
mod position;
mod resource;
mod selection;
mod snapshot;

use std::collections::BTreeMap;
use std::time::Duration;

use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::position::QueueKind;
use cdc_core::secret::Secret;
use cdc_core::select::{Mapping, Skipped};
use cdc_core::snapshot::SnapshotSpec;
use cdc_core::task::{GivenPosition, Mode, OnConflict, Selection, StartPoint, TargetSpec};
use cdc_core::tls::ClientTls;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use answer::{Answer, answers};
use carried::Names;
pub use connect::normalise_uri;
pub use edit::Edited;
pub use position::encode_position;
pub use resource::{Patch, patch, task};
pub use selection::check_name;

/// Reads a target by itself, in the form of `milvus_connect_param`. What is wrong goes to the errors of `param`.
pub fn target(param: Fields<'_>, call_timeout: Duration) -> Option<TargetSpec> {
    let connect = connect::connect_param(param)?;
    Some(TargetSpec {
        uri: connect.uri,
        token: connect.token,
        tls: connect.tls,
        connect_timeout: connect.timeout,
        call_timeout,
        mode: Mode::Replicate,
    })
}

use crate::fields::{Fields, clip};

/// Limits that come from the configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    pub max_name_length: usize,
    pub queue: QueueKind,
    pub replicate_channel: String,
    /// Whether the source's rows can be read.
    pub rows: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub struct CreateTask {
    pub id: Option<String>,
    pub uri: String,
    pub token: Secret,
    pub tls: ClientTls,
    pub connect_timeout: Duration,
    pub selection: Selection,
    pub start: StartPoint,
    pub starts: BTreeMap<(String, String), StartPoint>,
    pub positions: BTreeMap<CollectionId, BTreeMap<PChannel, GivenPosition>>,
    pub on_conflict: OnConflict,
    /// `None`: what the target is says it.
    pub mode: Option<Mode>,
    pub snapshot: SnapshotSpec,
    pub mapping: Mapping,
    pub skip: Skipped,
    pub given: Given,
}

/// What a create request said, in the form in which the answers give it back. No login.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Given {
    pub milvus_connect_param: Map<String, Value>,
    pub collection_infos: Vec<Value>,
    pub db_collections: Map<String, Value>,
}

const STARTS: &[(&str, StartPoint)] = &[
    ("created", StartPoint::Created),
    ("earliest", StartPoint::Earliest),
    ("now", StartPoint::Now),
];
const CONFLICTS: &[(&str, OnConflict)] = &[
    ("ask", OnConflict::Ask),
    ("adopt", OnConflict::Adopt),
    ("recreate", OnConflict::Recreate),
];

const MODES: &[(&str, Option<Mode>)] = &[
    ("auto", None),
    ("replicate", Some(Mode::Replicate)),
    ("plain", Some(Mode::Plain)),
];

/// Reads `request_data` of a create request. What is wrong goes to the errors of `data`.
pub fn create(data: Fields<'_>, limits: &Limits) -> Option<CreateTask> {
    let id = data.string("task_id").filter(|id| !id.is_empty());
    check_id(&data, "task_id", id.as_deref());
    refuse_what_is_not_there(&data, limits);
    data.accept(&["buffer_config"]);
    let target = match data.secret_object("milvus_connect_param") {
        Some(param) => connect::connect_param(param),
        None => {
            if !data.has("milvus_connect_param") {
                data.wrong("milvus_connect_param", "missing");
            }
            None
        }
    };
    let wanted = selection::read(&data, limits);
    let on_conflict = data.choice("on_conflict", CONFLICTS).unwrap_or_default();
    let mode = data.choice("mode", MODES).unwrap_or_default();
    let snapshot = snapshot::read(&data, limits, &wanted);
    data.finish();
    let names = Names::default();
    Some(put_together(
        id,
        target?,
        wanted,
        names,
        (on_conflict, mode, snapshot),
    ))
}

fn put_together(
    id: Option<String>,
    target: connect::Connect,
    wanted: selection::Wanted,
    names: Names,
    (on_conflict, mode, snapshot): (OnConflict, Option<Mode>, SnapshotSpec),
) -> CreateTask {
    CreateTask {
        id,
        mode,
        snapshot,
        uri: target.uri,
        token: target.token,
        tls: target.tls,
        connect_timeout: target.timeout,
        selection: wanted.selection,
        start: wanted.start,
        starts: wanted.starts,
        positions: wanted.positions,
        on_conflict,
        mapping: names.mapping,
        skip: names.skip,
        given: Given {
            milvus_connect_param: target.shown,
            collection_infos: wanted.collection_infos,
            db_collections: wanted.db_collections,
        },
    }
}

fn check_id(data: &Fields<'_>, key: &str, id: Option<&str>) {
    let legal = |id: &str| {
        (1..=64).contains(&id.len())
            && id
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if id.is_some_and(|id| !legal(id)) {
        data.wrong(key, "up to 64 letters, digits, '-' and '_' expected");
    }
}

/// What the Go server can do and would change the outcome, but is not there yet.
fn refuse_what_is_not_there(data: &Fields<'_>, limits: &Limits) {
    let later = "not available in this version";
    if let Some(kafka) = data.secret_object("kafka_connect_param") {
        // The empty form of the Go server's structure is what its own client sends.
        if kafka.secret("address").is_some_and(|a| !a.is_empty()) {
            kafka.wrong(
                "address",
                format_args!("{later}; a Milvus is the only target"),
            );
        }
        kafka.accept(&["topic", "enable_sasl", "sasl"]);
        kafka.finish();
    }
    if data
        .get("name_mapping")
        .is_some_and(|v| v.as_array().is_none_or(|list| !list.is_empty()))
    {
        data.wrong(
            "name_mapping",
            format_args!("{later}; POST /api/v1/tasks takes a mapping"),
        );
    }
    if data.boolean("disable_auto_start") == Some(true) {
        data.wrong("disable_auto_start", later);
    }
    if let Some(extra) = data.object("extra_info") {
        if extra.boolean("enable_user_role") == Some(true) {
            extra.wrong("enable_user_role", later);
        }
        extra.finish();
    }
    if let Some(rpc) = data.object("rpc_channel_info") {
        let name = rpc.string("name").unwrap_or_default();
        if !name.is_empty() && name != limits.replicate_channel {
            let expected = &limits.replicate_channel;
            rpc.wrong(
                "name",
                format_args!(
                    "{expected} expected (sourceConfig.replicateChan), not {:?}",
                    clip(&name)
                ),
            );
        }
        if rpc.string("position").is_some_and(|p| !p.is_empty()) {
            rpc.wrong("position", "not available in this version; leave it out: databases, indexes and load states are compared with the source, not read from that channel");
        }
        rpc.finish();
    }
}
