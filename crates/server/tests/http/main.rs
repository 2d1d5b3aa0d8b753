//! The HTTP interface through a real socket, with a stand-in for what carries the tasks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::TaskId;
use cdc_core::position::QueueKind;
use cdc_core::task::{Choice, Counters, TargetSpec, TaskSpec, TaskStatus};
use milvus_cdc::http::router;
use milvus_cdc::request::Limits;
use milvus_cdc::runtime::Replication;
use milvus_cdc::store::{OpenError, SqliteStore};
use milvus_cdc::tasks::{TaskLimits, Tasks};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Default)]
struct Fake {
    running: Mutex<BTreeMap<TaskId, TaskSpec>>,
    refuse: Mutex<Option<Problem>>,
}

#[async_trait]
impl Replication for Fake {
    async fn check_target(&self, _: &TargetSpec) -> Result<(), Problem> {
        self.refuse.lock().clone().map_or(Ok(()), Err)
    }
    async fn check_source(&self) -> Result<(), Problem> {
        Ok(())
    }
    fn start(&self, spec: TaskSpec) -> Result<(), Problem> {
        self.running.lock().insert(spec.id.clone(), spec);
        Ok(())
    }
    async fn stop(&self, task: &TaskId, _: Duration) {
        self.running.lock().remove(task);
    }
    async fn stop_all(&self, _: Duration) {
        self.running.lock().clear();
    }
    fn status(&self, task: &TaskId) -> Option<TaskStatus> {
        self.running.lock().contains_key(task).then(|| TaskStatus {
            collections: vec![],
            problems: vec![],
            lag_seconds: Some(1.5),
            checkpoint_age_seconds: None,
            counters: Counters {
                rows_out: 7,
                ..Counters::default()
            },
            errors: BTreeMap::new(),
        })
    }
    async fn choose(&self, _: &TaskId, _: &str, _: &str, _: Choice) -> Result<(), Problem> {
        Ok(())
    }
}

struct Server {
    address: std::net::SocketAddr,
    fake: Arc<Fake>,
    tasks: Tasks,
    running: tokio::task::JoinHandle<()>,
}

async fn start(path: &Path, recover: bool) -> Server {
    let store = loop {
        match SqliteStore::open(path).await {
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => break other.unwrap(),
        }
    };
    let fake = Arc::new(Fake::default());
    let limits = TaskLimits {
        max_task_num: 2,
        memory_budget: 1 << 20,
        call_timeout: Duration::from_secs(1),
    };
    let tasks = Tasks::new(store, fake.clone(), limits);
    if recover {
        tasks.recover().await.unwrap();
    }
    let limits = Limits {
        max_name_length: 16,
        queue: QueueKind::Natsmq,
        replicate_channel: "r".to_owned(),
    };
    let router = router(tasks.clone(), limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server {
        address,
        fake,
        tasks,
        running,
    }
}

impl Server {
    async fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn post(&self, body: impl AsRef<[u8]>) -> (u16, Value) {
        let (status, text) = self.send("POST", "/cdc", body.as_ref()).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["code"], json!(status), "{text}");
        (status, body)
    }

    async fn ask(&self, kind: &str, data: Value) -> (u16, Value) {
        self.post(json!({ "request_type": kind, "request_data": data }).to_string())
            .await
    }
}

fn wanted(name: &str) -> Value {
    json!({"milvus_connect_param": {"uri": "http://Target:19530", "token": "root:hush-hush"}, "collection_infos": [{"name": name}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    for (body, parts) in [
        ("{\n \"request_type\": }", vec!["malformed JSON", "line 2"]),
        ("[]", vec!["object"]),
        ("{}", vec!["request_type", "missing", "create"]),
        (r#"{"request_type": "fly"}"#, vec!["fly", "create"]),
        (r#"{"request_type": 5}"#, vec!["request_type", "5"]),
        (
            r#"{"request_type": "list", "extra": 1}"#,
            vec!["extra", "unknown"],
        ),
        (
            r#"{"request_type": "get"}"#,
            vec!["request_data.task_id", "missing"],
        ),
        (r#"{"request_type": "maintenance"}"#, vec!["not available"]),
        (
            r#"{"request_type": "create"}"#,
            vec!["milvus_connect_param: missing", "collection_infos: missing"],
        ),
    ] {
        let (status, answer) = server.post(body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        for part in parts {
            assert!(
                answer["message"].as_str().unwrap().contains(part),
                "{part} in {answer}"
            );
        }
    }
    for (name, part) in [
        ("", "a name expected"),
        ("1st", "legal"),
        ("a-b", "legal"),
        ("aaaaaaaaaaaaaaaaa", "maxNameLength allows 16"),
    ] {
        let (status, answer) = server.ask("create", wanted(name)).await;
        assert!(
            status == 400 && answer["message"].as_str().unwrap().contains(part),
            "{answer}"
        );
    }
    let mut request = wanted("*");
    request["milvus_connect_param"]["port"] = json!("x");
    request["milvus_connect_param"]["tokn"] = json!("hush-hush");
    let (_, answer) = server.ask("create", request).await;
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("milvus_connect_param.port")
            && message.contains("tokn")
            && !message.contains("hush")
    );
    let big = vec![b' '; 10 * 1024 * 1024];
    assert_eq!(server.post(big).await.0, 413);
    for kind in ["get", "pause", "resume", "delete", "position"] {
        assert_eq!(
            server.ask(kind, json!({"task_id": "nobody"})).await.0,
            404,
            "{kind}"
        );
    }
    assert_eq!(
        server
            .ask("delete", json!({"task_id": "x", "ignore_not_found": true}))
            .await
            .0,
        200
    );
    assert_eq!(server.send("GET", "/cdc", b"").await.0, 405);
    assert_eq!(server.send("GET", "/nothing", b"").await.0, 404);
    assert_eq!(server.send("GET", "/healthz", b"").await.0, 200);
    server.running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_live_through_restarts_as_a_person_left_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    *server.fake.refuse.lock() = Some(Problem::new(
        ErrorClass::Configuration,
        "no standby",
        "set it",
    ));
    let (status, answer) = server.ask("create", wanted("a")).await;
    assert!(
        status == 400 && answer["message"] == "no standby; set it",
        "{answer}"
    );
    *server.fake.refuse.lock() = None;
    let (status, answer) = server.ask("create", wanted("a")).await;
    assert_eq!(status, 200, "{answer}");
    let a = answer["data"]["task_id"].as_str().unwrap().to_owned();
    assert_eq!(server.ask("create", wanted("*")).await.0, 409);
    assert_eq!(server.ask("create", wanted("default.a")).await.0, 409);
    let b = server.ask("create", wanted("db.b")).await.1["data"]["task_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let (status, answer) = server.ask("create", wanted("c")).await;
    assert!(
        status == 409 && answer["message"].as_str().unwrap().contains("maxTaskNum"),
        "{answer}"
    );
    for _ in 0..2 {
        assert_eq!(server.ask("pause", json!({"task_id": b})).await.0, 200);
    }
    let (_, metrics) = server.send("GET", "/cdc/metrics", b"").await;
    assert!(
        metrics.contains(&format!("milvus_cdc_rows_out_total{{task_id=\"{a}\"}} 7")),
        "{metrics}"
    );
    let answers = format!(
        "{:?}{:?}{metrics}",
        server.ask("get", json!({"task_id": a})).await,
        server.ask("list", json!({})).await
    );
    assert!(
        answers.contains("http://target:19530") && !answers.contains("hush"),
        "{answers}"
    );
    assert!(!format!("{:?}", server.tasks.list()).contains("hush"));
    server.tasks.shut_down(Duration::from_secs(1)).await;
    server.running.abort();
    drop(server);

    let server = start(&path, false).await;
    assert_eq!(server.send("GET", "/readyz", b"").await.0, 503);
    server.tasks.recover().await.unwrap();
    assert_eq!(server.send("GET", "/readyz", b"").await.0, 200);
    let running: Vec<String> = server
        .fake
        .running
        .lock()
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(running, std::slice::from_ref(&a));
    assert_eq!(
        server.fake.running.lock()[&TaskId::new(a.as_str())]
            .target
            .token
            .expose(),
        "root:hush-hush"
    );
    assert_eq!(
        server.ask("get", json!({"task_id": b})).await.1["data"]["task"]["state"],
        "Paused"
    );
    assert_eq!(server.ask("resume", json!({"task_id": b})).await.0, 200);
    assert_eq!(server.fake.running.lock().len(), 2);
    assert_eq!(server.ask("delete", json!({"task_id": a})).await.0, 200);
    assert_eq!(server.ask("get", json!({"task_id": a})).await.0, 404);
    server.running.abort();
}
