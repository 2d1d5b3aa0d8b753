//! The history, page by page and as it comes.

use std::time::Duration;

use milvus_cdc::config::access::Access;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::{Server, access, start, start_with};

/// Until what is to come must have come, on a machine with other things to do.
const SURELY: Duration = Duration::from_secs(20);

async fn make(server: &Server, id: &str, uri: &str) {
    let body = json!({"id": id, "target": {"uri": uri}, "collections": [{"name": "a"}]});
    assert_eq!(server.rest("POST", "/tasks", body).await.0, 201);
}

async fn set(server: &Server, id: &str, state: &str) {
    let path = format!("/tasks/{id}");
    assert_eq!(
        server.rest("PATCH", &path, json!({"state": state})).await.0,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_comes_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    make(&server, "a", "http://h:1").await;
    make(&server, "b", "http://h:2").await;
    set(&server, "a", "paused").await;
    set(&server, "a", "running").await;
    assert_eq!(server.rest("DELETE", "/tasks/b", Value::Null).await.0, 204);
    let read = async |path: &str| {
        let (status, page) = server.rest("GET", path, Value::Null).await;
        assert_eq!(status, 200, "{page}");
        page
    };
    let kinds = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap().iter();
        items
            .map(|e| {
                format!(
                    "{} {}",
                    e["task_id"].as_str().unwrap(),
                    e["kind"].as_str().unwrap()
                )
            })
            .collect()
    };
    let all = read("/events").await;
    assert_eq!(
        kinds(&all),
        ["a created", "a paused", "a resumed", "b deleted"]
    );
    assert_eq!(all["next"], Value::Null);
    let first = read("/events?limit=3").await;
    assert_eq!(kinds(&first), ["a created", "a paused", "a resumed"]);
    let rest = read(&format!(
        "/events?limit=3&after={}",
        first["next"].as_str().unwrap()
    ))
    .await;
    assert_eq!(kinds(&rest), ["b deleted"]);
    assert_eq!(
        kinds(&read("/tasks/a/events").await),
        ["a created", "a paused", "a resumed"]
    );
    assert_eq!(
        server.rest("GET", "/tasks/b/events", Value::Null).await.0,
        404
    );
    for after in ["x", "-1", "9223372036854775808"] {
        let path = format!("/events?after={after}");
        let (status, problem) = server.rest("GET", &path, Value::Null).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains("after"), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    for n in 0..203 {
        make(&server, &format!("t{n}"), "http://h:1").await;
        let path = format!("/tasks/t{n}");
        assert_eq!(server.rest("DELETE", &path, Value::Null).await.0, 204);
    }
    let (_, page) = server.rest("GET", "/events?limit=1000", Value::Null).await;
    let items = page["items"].as_array().unwrap();
    assert_eq!(items.len(), 200);
    assert_eq!(items[199]["task_id"], "t202");
}

/// One who follows.
struct Follower {
    stream: TcpStream,
    text: String,
}

impl Follower {
    async fn start(server: &Server, path: &str, more: &str) -> Self {
        let mut stream = server.connect().await;
        let head = format!(
            "GET /api/v1{path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAccept: text/event-stream\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = String::new();
        Self { stream, text }
    }

    /// Waits for this text, and takes out everything up to it.
    async fn wait_for(&mut self, part: &str) -> String {
        let found = timeout(SURELY, async {
            loop {
                if let Some(at) = self.text.find(part) {
                    return self.text.drain(..at + part.len()).collect::<String>();
                }
                let mut buffer = [0; 4096];
                let n = self.stream.read(&mut buffer).await.unwrap();
                assert_ne!(n, 0, "it ended before {part:?}: {}", self.text);
                self.text += std::str::from_utf8(&buffer[..n]).unwrap();
            }
        });
        let found = found.await.ok();
        found.unwrap_or_else(|| panic!("no {part:?}"))
    }

    async fn ends(mut self) {
        let end = timeout(SURELY, self.stream.read_to_string(&mut self.text)).await;
        assert!(end.is_ok(), "it did not end: {}", self.text);
        assert!(
            self.text.contains("0\r\n\r\n"),
            "it broke off: {}",
            self.text
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_hear_what_comes_and_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    make(&server, "a", "http://h:1").await;
    let mut one = Follower::start(&server, "/tasks/a/events", "").await;
    one.wait_for("content-type: text/event-stream").await;
    one.wait_for("event: created").await;
    one.wait_for("\"task_id\":\"a\"").await;
    let mut all = Follower::start(&server, "/events", "").await;
    all.wait_for("event: created").await;
    make(&server, "b", "http://h:2").await;
    all.wait_for("\"task_id\":\"b\"").await;
    set(&server, "a", "paused").await;
    one.wait_for("event: paused").await;
    all.wait_for("event: paused").await;
    assert!(!one.text.contains("\"b\"") && !all.text.contains("event"));
    // Back after a break: behind the last one seen.
    let (_, page) = server.rest("GET", "/events", Value::Null).await;
    let second = &page["items"][1];
    assert_eq!(second["kind"], "created");
    let seen = format!("Last-Event-ID: {}\r\n", second["id"]);
    let mut back = Follower::start(&server, "/events", &seen).await;
    back.wait_for("\r\n\r\n").await;
    let before = back.wait_for("event: paused").await;
    assert!(!before.contains("created"), "{before}");
    let wrong = Follower::start(&server, "/events", "Last-Event-ID: x\r\n").await;
    let mut wrong = wrong;
    wrong.wait_for("HTTP/1.1 400").await;
    // The end of a task is the end of its history.
    assert_eq!(server.rest("DELETE", "/tasks/a", Value::Null).await.0, 204);
    one.wait_for("event: deleted").await;
    one.ends().await;
    all.wait_for("event: deleted").await;
    // And the end of the server is the end of all.
    server.stop.cancel();
    all.ends().await;
    back.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_are_few_and_their_places_are_given_back() {
    let access = Access {
        event_streams: 1,
        ..access()
    };
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    make(&server, "a", "http://h:1").await;
    let mut first = Follower::start(&server, "/events", "").await;
    first.wait_for("event: created").await;
    let accept = [("Accept", "text/event-stream")];
    let second = async || server.request("GET", "/api/v1/events", &accept, b"").await;
    let refused = second().await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (503, &json!("overloaded"))
    );
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(
        server.rest("GET", "/events", Value::Null).await.0,
        200,
        "pages need no place"
    );
    drop(first);
    let mut next = timeout(SURELY, async {
        loop {
            let mut next = Follower::start(&server, "/events", "").await;
            next.wait_for("HTTP/1.1 ").await;
            next.wait_for("\r\n").await;
            if next.text.contains("text/event-stream") {
                return next;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the place of one that has gone was never given back");
    next.wait_for("event: created").await;
}
