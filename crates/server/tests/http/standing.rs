//! A server that shares its store and waits: it shows the tasks, and changes none.

use cdc_core::secret::Secret;
use milvus_cdc::config::access::{Access, ApiToken, Role};
use serde_json::{Value, json};

use crate::server::{access, start_with, wanted};

const OWNER: &str = "10.0.0.7:8444 (pid 7 on other)";
const FULL: &str = "full-token-0123456789";
const READ: &str = "read-token-0123456789";

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_shows_the_tasks_and_names_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str, token: &str, role| ApiToken {
        name: name.to_owned(),
        token: Secret::new(token),
        role,
    };
    let access = Access {
        tokens: vec![
            token("ops", FULL, Role::Full),
            token("eyes", READ, Role::Read),
        ],
        ..access()
    };
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    let ask = async |token: &str, method: &str, path: &str, body: &Value| {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/json"),
        ];
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let body = body.as_bytes();
        server.request(method, path, &headers, body).await
    };
    let go = async |token: &str, kind: &str, data: Value| {
        let body = json!({"request_type": kind, "request_data": data});
        ask(token, "POST", "/cdc", &body).await
    };
    let made = go(FULL, "create", wanted("a")).await.json();
    let id = made["data"]["task_id"].as_str().unwrap().to_owned();
    let one = json!({ "task_id": id });
    let running = server.fake.running.lock().clone();
    let answer = go(READ, "get", one.clone()).await;
    assert!(answer.json()["data"].get("owner").is_none());
    assert!(!answer.headers.contains_key("milvus-cdc-owner"));

    server.tasks.wait_for(OWNER);
    for kind in ["get", "list", "position"] {
        let data = match kind {
            "list" => json!({}),
            _ => one.clone(),
        };
        let answer = go(READ, kind, data).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["data"]["owner"], OWNER);
    }
    let tasks = "/api/v1/tasks".to_owned();
    let task = format!("{tasks}/{id}");
    for path in [
        tasks.clone(),
        task.clone(),
        format!("{task}/collections"),
        format!("{task}/positions"),
        format!("{task}/events"),
        "/api/v1/events".to_owned(),
    ] {
        let answer = ask(READ, "GET", &path, &Value::Null).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.headers["milvus-cdc-owner"], OWNER, "{path}");
    }
    let new = json!({"target": {"uri": "http://other:1"}, "collections": [{"name": "b"}]});
    for (method, path, body) in [
        ("POST", &tasks, new),
        ("PATCH", &task, json!({"state": "paused"})),
        ("DELETE", &task, Value::Null),
    ] {
        let answer = ask(FULL, method, path, &body).await;
        assert_eq!(answer.status, 503, "{method}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["code"], "not_owner", "{method}");
        assert!(problem["detail"].as_str().unwrap().contains(OWNER));
        // Who may not change anything hears that, whoever owns it.
        let answer = ask(READ, method, path, &body).await;
        assert_eq!(answer.status, 403, "{method}: {answer:?}");
    }
    for (kind, data) in [
        ("create", wanted("b")),
        ("pause", one.clone()),
        ("resume", one.clone()),
        ("delete", one.clone()),
    ] {
        let answer = go(FULL, kind, data.clone()).await;
        assert_eq!(answer.status, 503, "{kind}: {answer:?}");
        assert!(answer.body.contains(OWNER), "{kind}: {answer:?}");
        assert_eq!(go(READ, kind, data).await.status, 403, "{kind}");
    }
    // This is about this process.
    let level = json!({"operation": "set_log_level", "params": {"log_level": "debug"}});
    assert_eq!(go(READ, "maintenance", level.clone()).await.status, 403);
    assert_eq!(go(FULL, "maintenance", level).await.status, 200);
    assert_eq!(*server.log_levels.lock(), ["debug"]);

    let ready = server.request("GET", "/readyz", &[], b"").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(OWNER), "{ready:?}");
    assert_eq!(*server.fake.running.lock(), running);
    server.tasks.recover().await.unwrap();
    let paused = go(FULL, "pause", one).await;
    assert_eq!(paused.status, 200, "{paused:?}");
}
