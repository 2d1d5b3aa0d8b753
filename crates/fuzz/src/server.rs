//! What people and programs send, and what they have written into files.

use cdc_core::position::QueueKind;
use milvus_cdc::config::{Config, ConfigError};
use milvus_cdc::reading;
use milvus_cdc::request::Limits;

use crate::{Target, way_of};

pub(crate) const CDC: Target = Target {
    name: "cdc",
    run: cdc,
    words: &[
        "\"request_type\":\"create\"",
        "\"request_data\":",
        "\"milvus_connect_param\":",
        "\"uri\":\"http://h:1\"",
        "\"collection_infos\":",
        "\"db_collections\":",
        "\"name\":\"*\"",
        "\"positions\":{\"by-dev-rootcoord-dml_0_7v0\":\"\"}",
        "\"task_id\":\"t\"",
        "\"resume\"",
        "\"collections\":",
        "\"skip\":true",
        "\"start\":\"now\"",
        "\"on_conflict\":\"adopt\"",
        "maintenance",
    ],
};
pub(crate) const NEW_TASK: Target = Target {
    name: "new_task",
    run: new_task,
    words: &[
        "\"id\":\"t\"",
        "\"target\":{\"uri\":\"http://h:1\"}",
        "\"collections\":[{\"name\":\"*\"}]",
        "\"database\":\"db\"",
        "\"positions\":",
        "\"dial_config\":{}",
        "\"connect_timeout\":9",
        "\"token\":\"root:x\"",
    ],
};
pub(crate) const PATCH: Target = Target {
    name: "patch",
    run: patch,
    words: &[
        "\"state\":\"paused\"",
        "\"state\":\"running\"",
        "\"reason\":\"r\"",
        "\"answers\":[{\"name\":\"a\",\"skip\":true}]",
        "\"target\":{\"token\":\"x\"}",
        "\"collections\":[{\"name\":\"*\"}]",
        "\"on_conflict\":\"adopt\"",
    ],
};
pub(crate) const CONFIG: Target = Target {
    name: "config",
    run: config,
    words: &[
        "sourceConfig:",
        "etcd:",
        "address:",
        "metaStoreConfig:",
        "storeType: etcd",
        "mysqlSourceUrl: 'root:x@tcp(h:1)/d?tls=true'",
        "postgresSourceUrl: 'postgres://u:p@h:1/d?sslmode=verify-full'",
        "natsmq: {address: 'nats://h:1'}",
        "kafka: {address: 'h:9092'}",
        "pulsar: {address: 'pulsar://h:6650'}",
        "security: {tokens: []}",
        "limits:",
        "${NAME}",
        "&a",
        "*a",
        "<<: *a",
        "!!binary",
    ],
};
pub(crate) const GO_STORE: Target = Target {
    name: "go_store",
    run: go_store,
    words: &[
        "\"TaskID\":\"t\"",
        "\"MilvusConnectParam\":{\"uri\":\"http://h:1\"}",
        "\"CollectionInfos\":[{\"name\":\"*\"}]",
        "\"DBCollections\":null",
        "\"Positions\":{\"ch\":{\"DataPair\":{\"key\":\"k\",\"data\":\"AQ==\"}}}",
        "\"CollectionID\":7",
        "\"State\":2",
        "\"ExcludeCollections\":[]",
        "\"RPCRequestChannelInfo\":{\"name\":\"c\",\"position\":\"\"}",
    ],
};

/// What the tests of `patch` are about.
const TASK: &[u8] = br#"{"id": "t", "target": {"uri": "http://h:1"},
    "collections": [{"name": "a"}, {"database": "db", "name": "*", "start": "now"}]}"#;

fn limits() -> Limits {
    Limits {
        max_name_length: 64,
        queue: QueueKind::Pulsar,
        replicate_channel: "by-dev-replicate-msg".to_owned(),
        rows: true,
    }
}

/// An error says something, and not without bound.
fn answered(outcome: Result<(), String>) -> u64 {
    if let Err(said) = &outcome {
        assert!(!said.trim().is_empty());
    }
    way_of(&outcome)
}

fn cdc(data: &[u8]) -> u64 {
    answered(reading::cdc(&limits(), data))
}

fn new_task(data: &[u8]) -> u64 {
    answered(reading::new_task(&limits(), data))
}

fn patch(data: &[u8]) -> u64 {
    answered(reading::patch(&limits(), TASK, data))
}

fn go_store(data: &[u8]) -> u64 {
    answered(reading::go_store(&limits(), data))
}

fn config(data: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(data);
    // It would read that file, whatever it is.
    if text.contains("file:") {
        return 1;
    }
    let read = Config::parse(&text, "cdc.yaml", &|name| {
        (name == "NAME").then(String::new)
    });
    answered(read.map(drop).map_err(|e: ConfigError| e.to_string()))
}
