//! What a Go server (zilliztech/milvus-cdc) keeps of its tasks: `server/model/meta/task.go` as JSON, under the keys of
//! `server/store/meta_key.go` in an etcd (`server/store/etcd.go`) or in the tables of `server/store/mysql.go`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// `meta.TaskInfo`. Has no `Debug`: there is a login in it.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct TaskInfo {
    #[serde(rename = "TaskID")]
    pub(crate) task_id: String,
    pub(crate) milvus_connect_param: Map<String, Value>,
    pub(crate) kafka_connect_param: Kafka,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) collection_infos: Vec<CollectionInfo>,
    #[serde(rename = "DBCollections", deserialize_with = "or_empty")]
    pub(crate) db_collections: BTreeMap<String, Option<Vec<CollectionInfo>>>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) name_mapping: Vec<Value>,
    #[serde(rename = "RPCRequestChannelInfo")]
    pub(crate) rpc_request_channel_info: ChannelInfo,
    pub(crate) extra_info: ExtraInfo,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) exclude_collections: Vec<String>,
    pub(crate) disable_auto_start: bool,
    pub(crate) state: i64,
    pub(crate) reason: String,
    /// How long it gathered before it wrote: means nothing here.
    writer_cache_config: Value,
    /// Of a newer server.
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

/// `TaskStatePaused`
pub(crate) const PAUSED: i64 = 2;

#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Kafka {
    pub(crate) address: String,
    pub(crate) topic: String,
}

#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CollectionInfo {
    pub(crate) name: String,
    /// By virtual channel; the server has made [`Positions`] of them.
    #[serde(deserialize_with = "or_empty")]
    pub(crate) positions: BTreeMap<String, String>,
    pub(crate) use_start_position: bool,
}

#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ChannelInfo {
    pub(crate) name: String,
    pub(crate) position: String,
}

#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ExtraInfo {
    pub(crate) enable_user_role: bool,
}

/// `meta.TaskCollectionPosition`, without what was sent last and where that went.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Positions {
    #[serde(rename = "TaskID")]
    pub(crate) task_id: String,
    #[serde(rename = "CollectionID")]
    pub(crate) collection_id: i64,
    pub(crate) collection_name: String,
    /// By physical channel.
    #[serde(deserialize_with = "or_empty")]
    pub(crate) positions: BTreeMap<String, PositionInfo>,
}

/// `model.ReplicateCollectionID`: the source's replicate channel.
pub(crate) const REPLICATE: i64 = -10;

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct PositionInfo {
    /// Unix milliseconds, of a position that came with the request; later 0.
    pub(crate) start_time: i64,
    /// Unix milliseconds of what was sent last.
    pub(crate) time: i64,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) data_pair: KeyDataPair,
    pub(crate) dropped: bool,
}

/// `commonpb.KeyDataPair`
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KeyDataPair {
    pub(crate) key: String,
    #[serde(deserialize_with = "bytes")]
    pub(crate) data: Vec<u8>,
}

/// Go writes a slice, map or pointer that is nil as null.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// Go writes bytes as base64.
fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
    let text: String = or_empty(d)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

/// What cannot be read. Shows nothing of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unread {
    pub(crate) key: String,
    cause: String,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.cause)
    }
}

/// Reads JSON of one of the above.
pub(crate) fn parse<'a, T: Deserialize<'a>>(key: &str, json: &'a [u8]) -> Result<T, Unread> {
    serde_json::from_slice(json).map_err(|e| Unread {
        key: key.to_owned(),
        cause: format!("not what a Go server writes, at column {}", e.column()),
    })
}

/// The key or its beginning, as Go's `path.Join` makes it.
pub(crate) fn join(root: &str, name: &str) -> String {
    let rooted = root.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in root.split('/').chain([name]) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let slash = if rooted { "/" } else { "" };
    format!("{slash}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_the_go_server_makes_it() {
        // `server/store/meta_key_test.go` and the documentation of `path.Join`.
        for (root, key) in [
            ("/cdc", "/cdc/task_info"),
            ("cdc-by-dev", "cdc-by-dev/task_info"),
            ("cdc/", "cdc/task_info"),
            ("a//b/./c", "a/b/c/task_info"),
            ("a/../b", "b/task_info"),
            ("../a", "../a/task_info"),
            ("/../a", "/a/task_info"),
            ("", "task_info"),
        ] {
            assert_eq!(join(root, "task_info"), key, "{root}");
        }
    }

    #[test]
    fn a_task_is_read_as_it_is_written() {
        // The fields of `meta.TaskInfo` have no tags, those of `server/model/common.go` have.
        let text = r#"{"TaskID":"6623ae52d35842a5a2c9d89b16ed7aa1",
            "MilvusConnectParam":{"host":"","port":0,"enable_tls":false,"uri":"http://t:19530","token":"root:Milvus",
            "dial_config":{},"channel_num":16,"ignore_partition":false,"connect_timeout":10},
            "KafkaConnectParam":{"address":"","topic":"","enable_sasl":false,"sasl":{}},
            "WriterCacheConfig":{"period":0,"size":0},"CollectionInfos":[{"name":"*","positions":null,
            "use_start_position":false}],"DBCollections":null,"NameMapping":null,"RPCRequestChannelInfo":{"name":"",
            "position":""},"ExtraInfo":{"enable_user_role":false},"ExcludeCollections":null,"DisableAutoStart":false,
            "State":2,"Reason":"manually pause through http interface"}"#;
        let task: TaskInfo = parse("k", text.as_bytes()).unwrap();
        assert_eq!(task.task_id, "6623ae52d35842a5a2c9d89b16ed7aa1");
        assert_eq!(task.collection_infos[0].name, "*");
        assert_eq!(
            (task.state, task.reason.as_str()),
            (PAUSED, "manually pause through http interface")
        );
        assert!(task.db_collections.is_empty() && task.others.is_empty());
        let text = text.replace("\"State\":2", "\"Later\":1,\"State\":\"root:Milvus\"");
        let unread = parse::<TaskInfo>("k", text.as_bytes())
            .map(drop)
            .unwrap_err();
        assert!(!unread.to_string().contains("Milvus\""), "{unread}");
    }

    #[test]
    fn positions_are_read_as_they_are_written() {
        // `commonpb.KeyDataPair` in Go: `json:"key,omitempty"`, `json:"data,omitempty"`.
        let text = br#"{"TaskID":"t","CollectionID":445811557825249939,"CollectionName":"a","Positions":{
            "by-dev-rootcoord-dml_0":{"StartTime":0,"Time":1700000000123,"DataPair":{"key":"by-dev-rootcoord-dml_0",
            "data":"AQAAAAAAAAA="},"Dropped":false},"x":{"StartTime":5,"Time":0,"DataPair":null,"Dropped":true}},
            "OpPositions":{},"TargetPositions":null}"#;
        let all: Positions = parse("k", text).unwrap();
        assert_eq!(
            (all.collection_id, all.collection_name.as_str()),
            (445_811_557_825_249_939, "a")
        );
        let one = &all.positions["by-dev-rootcoord-dml_0"];
        assert_eq!((one.time, one.dropped), (1_700_000_000_123, false));
        assert_eq!(one.data_pair.data, [1, 0, 0, 0, 0, 0, 0, 0]);
        let other = &all.positions["x"];
        assert!(other.dropped && other.data_pair.data.is_empty() && other.start_time == 5);
        assert!(
            parse::<Positions>("k", br#"{"Positions":{"x":{"DataPair":{"data":"%"}}}}"#).is_err()
        );
    }
}
