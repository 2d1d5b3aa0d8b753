//! What the target has flushed, and which processes hold the rest.

use std::collections::BTreeSet;

use milvus::proto::milvus as rpc;
use serde::Deserialize;

use super::call::answer_call;
use super::{GrpcTarget, TargetError};
use crate::error::ErrorClass;
use crate::tso::Tso;

/// The system topology as a proxy gives it (`internal/util/metricsinfo/metrics_info.go`, `topology.go`).
#[derive(Deserialize)]
struct Topology {
    nodes_info: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    infos: Infos,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Infos {
    has_error: bool,
    error_reason: String,
    name: String,
    created_time: String,
    #[serde(rename = "type")]
    kind: String,
    id: i64,
}

/// Data and query nodes by kind, id and start. `Err`: why it is not known at the moment.
fn nodes_of(topology: &str) -> Result<BTreeSet<String>, String> {
    let topology: Topology =
        serde_json::from_str(topology).map_err(|e| format!("an answer of another form: {e}"))?;
    let mut nodes = BTreeSet::new();
    for Node { infos } in topology.nodes_info {
        // The name is the kind with the id; of a node that does not answer it is all there is.
        let holds = |kind: &&str| infos.kind == *kind || infos.name.starts_with(kind);
        let holds_data = ["datanode", "querynode", "streamingnode"].iter().any(holds);
        if holds_data && infos.has_error {
            return Err(format!("{}: {}", infos.name, infos.error_reason));
        }
        if holds_data {
            nodes.insert(format!(
                "{} {} {}",
                infos.kind, infos.id, infos.created_time
            ));
        }
    }
    match nodes.is_empty() {
        true => Err("no data nodes and no query nodes at the moment".to_owned()),
        false => Ok(nodes),
    }
}

impl GrpcTarget {
    /// By the checkpoints of the collection's virtual channels, which pass only what the data node has flushed
    /// (`internal/datacoord/services.go`, GetFlushState; with no segments named only these count).
    pub(super) async fn flushed_up_to(
        &self,
        database: &str,
        name: &str,
        up_to: Tso,
    ) -> Result<bool, TargetError> {
        let request = rpc::GetFlushStateRequest {
            flush_ts: up_to.0,
            db_name: database.into(),
            collection_name: name.into(),
            ..Default::default()
        };
        let answer = answer_call!(self, "GetFlushState", get_flush_state, request);
        Ok(answer.flushed)
    }

    pub(super) async fn data_nodes(&self) -> Result<Option<BTreeSet<String>>, TargetError> {
        let request = rpc::GetMetricsRequest {
            request: r#"{"metric_type":"system_info"}"#.to_owned(),
            ..Default::default()
        };
        let asked = async { Ok(answer_call!(self, "GetMetrics", get_metrics, request)) };
        let answer = match asked.await {
            Ok(answer) => answer,
            // Not to this user, or not at all.
            Err(error @ (TargetError::Configuration { .. } | TargetError::Refused { .. }))
                if error.class() == ErrorClass::Configuration =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        nodes_of(&answer.response)
            .map(Some)
            .map_err(|cause| TargetError::Unknown {
                uri: self.uri.clone(),
                call: "GetMetrics",
                cause,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_told_by_id_and_start() {
        let topology = r#"{"nodes_info":[
            {"identifier":1,"connected":null,"infos":{"has_error":false,"error_reason":"","name":"datanode1",
             "hardware_infos":{"ip":"127.0.0.1:21124"},"created_time":"2026-01-02 03:04:05","type":"datanode","id":1}},
            {"identifier":2,"infos":{"name":"proxy2","created_time":"t","type":"proxy","id":2}},
            {"identifier":3,"infos":{"name":"querynode3","created_time":"t","type":"querynode","id":3}}]}"#;
        let nodes = nodes_of(topology).unwrap();
        let wanted = ["datanode 1 2026-01-02 03:04:05", "querynode 3 t"];
        assert_eq!(nodes, wanted.map(str::to_owned).into());
        // One that does not answer may be there or not.
        let ill = topology.replacen("\"has_error\":false", "\"has_error\":true", 1);
        assert!(nodes_of(&ill).unwrap_err().contains("datanode1"));
        let proxy = topology.replacen(
            "\"name\":\"proxy2\"",
            "\"name\":\"proxy2\",\"has_error\":true",
            1,
        );
        assert_eq!(nodes_of(&proxy).unwrap().len(), 2, "a proxy holds nothing");
        assert!(nodes_of(r#"{"nodes_info":[]}"#).is_err());
        assert!(nodes_of("").is_err());
    }
}
