//! Requests and answers against what the Go server's sources say they are (`fixtures/go_server.json`).

use serde_json::{Map, Value, json};

use crate::go_shape::{check_answer, compare, fixture};
use crate::server::start;
use crate::show::filled;

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_the_fields_of_the_go_server() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    let level = json!({"operation": "set_log_level", "params": {"log_level": "warn"}});
    let one = json!({"task_id": id});
    let create = json!({"milvus_connect_param": {"uri": "http://other:1"}, "collection_infos": [{"name": "*"}]});
    let mut asked: Vec<String> = Vec::new();
    for (kind, data) in [
        ("create", create),
        ("get", one.clone()),
        ("position", one.clone()),
        ("pause", one.clone()),
        ("get", one.clone()),
        ("list", json!({})),
        ("position", one.clone()),
        ("resume", one.clone()),
        ("maintenance", level),
        ("delete", one.clone()),
    ] {
        let (status, answer) = server.ask(kind, data).await;
        assert_eq!(status, 200, "{kind}: {answer}");
        check_answer(kind, &answer);
        asked.push(kind.to_owned());
    }
    let all: &Map<String, Value> = fixture["answers"].as_object().unwrap();
    assert!(
        all.keys().all(|kind| asked.contains(kind)),
        "not all were asked"
    );
    let (_, error) = server.ask("get", one).await;
    compare(&fixture, &fixture["envelope"], &error, "an error");
    assert!(error["message"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_the_go_server_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    for case in fixture()["requests"].as_array().unwrap() {
        let mut body = json!({"request_type": case["request_type"]});
        if let Some(data) = case.get("request_data") {
            body["request_data"] = data.clone();
        }
        let (status, answer) = server.post(body.to_string()).await;
        assert_eq!(json!(status), case["status"], "{}: {answer}", case["from"]);
        if let Some(says) = case["says"].as_str() {
            let message = answer["message"].as_str().unwrap();
            assert!(
                message.contains(says),
                "{}: {says:?} in {message}",
                case["from"]
            );
        }
    }
    assert_eq!(*server.log_levels.lock(), ["debug", "error"]);
    assert_eq!(server.tasks.list().len(), 2);
}
