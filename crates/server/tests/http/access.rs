//! Who may do what.

use cdc_core::secret::Secret;
use milvus_cdc::config::access::{Access, ApiToken, Open, Role};
use serde_json::{Value, json};

use crate::server::{Server, access, start_with, wanted};

const FULL: &str = "full-token-0123456789";
const READ: &str = "read-token-0123456789";

fn tokens() -> Access {
    let token = |name: &str, token: &str, role| ApiToken {
        name: name.to_owned(),
        token: Secret::new(token),
        role,
    };
    Access {
        tokens: vec![
            token("ops", FULL, Role::Full),
            token("eyes", READ, Role::Read),
        ],
        ..access()
    }
}

async fn ask(server: &Server, token: &str, method: &str, path: &str, body: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Content-Type", "application/json"),
    ];
    server
        .request(method, path, &headers, body.as_bytes())
        .await
        .status
}

/// Every operation of the document, with ids filled in.
async fn operations(server: &Server) -> Vec<(String, String)> {
    let bearer = format!("Bearer {READ}");
    let document = server
        .request(
            "GET",
            "/api/v1/openapi.json",
            &[("Authorization", &bearer)],
            b"",
        )
        .await
        .json();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "patch", "delete", "head", "options"] {
            if item.get(method).is_some() {
                found.push((method.to_uppercase(), path.replace("{id}", "some")));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_needs_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, tokens()).await;
    let mut all = operations(&server).await;
    assert!(all.len() > 10, "{all:?}");
    assert!(all.contains(&("POST".to_owned(), "/cdc".to_owned())));
    for path in [
        "/cdc",
        "/cdc/metrics",
        "/docs",
        "/docs/",
        "/docs/swagger-ui.css",
        "/api/v1/openapi.json",
        "/no/such/path",
        "/api/v1/nothing",
        "/",
    ] {
        all.push(("GET".to_owned(), path.to_owned()));
    }
    let wrong = [
        vec![],
        vec![("Authorization", "Bearer wrong")],
        vec![("Authorization", "Bearer ")],
        vec![("Authorization", "Basic ZnVsbDpmdWxs")],
        vec![("Authorization", FULL)],
    ];
    for (method, path) in &all {
        for headers in &wrong {
            let answer = server.request(method, path, headers, b"{}").await;
            let what = format!("{method} {path} with {headers:?}: {answer:?}");
            assert_eq!(answer.status, 401, "{what}");
            assert!(
                answer.headers["www-authenticate"].starts_with("Bearer"),
                "{what}"
            );
        }
    }
    for path in ["/healthz", "/readyz"] {
        let answer = server.request("GET", path, &[], b"").await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json()["data"].as_object().unwrap().len(),
            1,
            "more than live and ready is said: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [
        "/healthz",
        "/readyz",
        "/cdc/metrics",
        "/api/v1/openapi.json",
    ];
    for (open, statuses) in [
        (vec![], [401, 401, 401, 401]),
        (vec![Open::Metrics, Open::Docs], [401, 401, 200, 200]),
        (vec![Open::Healthz], [200, 401, 401, 401]),
    ] {
        let access = Access {
            open: open.into_iter().collect(),
            ..tokens()
        };
        let server = start_with(&dir.path().join("s.db"), true, access).await;
        for (path, status) in paths.iter().zip(statuses) {
            assert_eq!(server.send("GET", path, b"").await.0, status, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_token_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, tokens()).await;
    for (method, path) in operations(&server).await {
        if path == "/cdc" {
            continue;
        }
        let status = ask(&server, READ, &method, &path, "{}").await;
        let reads = method == "GET";
        assert_eq!(status != 403, reads, "{method} {path}: {status}");
    }
    let go =
        |kind: &str, data: Value| json!({"request_type": kind, "request_data": data}).to_string();
    for kind in ["delete", "pause", "resume", "get", "position"] {
        let body = go(kind, json!({"task_id": "some"}));
        let expected = if ["get", "position"].contains(&kind) {
            404
        } else {
            403
        };
        let status = ask(&server, READ, "POST", "/cdc", &body).await;
        assert_eq!(status, expected, "{kind}");
    }
    let level = json!({"operation": "set_log_level", "params": {"log_level": "debug"}});
    for (kind, data, expected) in [
        ("list", json!({}), 200),
        ("create", wanted("a"), 403),
        ("maintenance", level, 403),
    ] {
        let status = ask(&server, READ, "POST", "/cdc", &go(kind, data)).await;
        assert_eq!(status, expected, "{kind}");
    }
    assert!(server.tasks.list().is_empty());
    assert!(server.log_levels.lock().is_empty());
    let create = go("create", wanted("a"));
    assert_eq!(ask(&server, FULL, "POST", "/cdc", &create).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_paused_a_task_is_said_by_the_name_of_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, tokens()).await;
    let body = json!({"id": "t", "target": {"uri": "http://h:1"}, "collections": [{"name": "a"}]});
    let path = "/api/v1/tasks";
    assert_eq!(
        ask(&server, FULL, "POST", path, &body.to_string()).await,
        201
    );
    let pause = r#"{"state": "paused", "reason": "disk swap"}"#;
    let path = "/api/v1/tasks/t";
    assert_eq!(ask(&server, FULL, "PATCH", path, pause).await, 200);
    let bearer = format!("Bearer {READ}");
    let read = [("Authorization", bearer.as_str())];
    let task = server.request("GET", path, &read, b"").await.json();
    assert_eq!(
        (&task["paused_by"], &task["reason"], &task["state"]),
        (&json!("ops"), &json!("disk swap"), &json!("paused"))
    );
    let path = "/api/v1/tasks/t/events";
    let events = server.request("GET", path, &read, b"").await.json();
    assert_eq!(events["items"][1]["text"], "ops: disk swap");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_readyz_warns() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, access()).await;
    let (status, text) = server.send("GET", "/readyz", b"").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("security.tokens") && text.contains("security.tls"),
        "{text}"
    );
    assert!(access().warnings("127.0.0.1:8444").is_empty());
    assert!(access().warnings("[::1]:8444").is_empty());
    assert!(access().warnings("localhost:8444").is_empty());
    assert_eq!(access().warnings("[::]:8444").len(), 2);
    assert_eq!(tokens().warnings("0.0.0.0:8444").len(), 1);
}
