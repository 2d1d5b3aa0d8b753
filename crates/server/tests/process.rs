//! The program itself, with nothing there that it needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cdc_core::ids::TaskId;
use milvus_cdc::store::{Desired, SqliteStore, StoredTask, TaskStore, TaskWrite};
use serde_json::{Value, json};

/// A port nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A target that takes connections and never says a word.
fn hung_target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(stream);
        }
    });
    address
}

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// With an etcd and a queue that are not there.
    fn start(dir: &Path) -> Self {
        let port = free_port();
        let config = format!(
            "address: 127.0.0.1:{port}\nmetaStoreConfig: {{sqlite: {{path: {}}}}}\nsourceConfig: {{etcd: {{address: 'http://127.0.0.1:{}'}}, natsmq: {{address: 'nats://127.0.0.1:{}'}}}}\n",
            dir.join("s.db").display(),
            free_port(),
            free_port(),
        );
        let file = dir.join("cdc.yaml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_milvus-cdc"))
            .args(["server", "--config"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while server
            .send("GET", "/readyz", "")
            .is_none_or(|(status, _)| status != 200)
        {
            assert!(Instant::now() < deadline, "the server did not become ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    fn ask(&self, kind: &str, data: Value) -> (u16, Value) {
        let body = json!({"request_type": kind, "request_data": data}).to_string();
        let (status, text) = self.send("POST", "/cdc", &body).unwrap();
        (status, serde_json::from_str(&text).unwrap())
    }

    /// Sends SIGTERM; gives the time until the end.
    fn terminate(mut self) -> (Duration, Option<i32>) {
        let began = Instant::now();
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = self.child.wait().unwrap();
        (began.elapsed(), status.code())
    }
}

/// A stored task for this target, as a server that knew a living source would have left it.
fn store_task(dir: &Path, target: SocketAddr) {
    let spec = json!({
        "uri": format!("http://{target}"), "token": "", "connect_timeout_s": 10, "selection": "all", "start": "created",
        "starts": [], "on_conflict": "ask", "positions": {}, "given": {},
    });
    let task = StoredTask {
        id: TaskId::new("t"),
        spec: spec.to_string(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&dir.join("s.db")).await.unwrap();
        store
            .write_tasks(vec![TaskWrite::Create(task)])
            .await
            .unwrap();
        store.close(Duration::from_secs(1)).await;
    });
}

#[test]
fn nothing_is_there_at_start_and_every_task_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    store_task(dir.path(), gone);
    let server = Server::start(dir.path());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, answer) = server.ask("get", json!({"task_id": "t"}));
        assert_eq!(status, 200, "{answer}");
        let task = &answer["data"]["task"];
        assert_eq!(task["state"], "Running");
        if task["problems"].to_string().contains(&gone.to_string()) {
            break;
        }
        assert!(Instant::now() < deadline, "{answer}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, answer) = server.ask(
        "create",
        json!({"milvus_connect_param": {"uri": "http://127.0.0.1:2"}, "collection_infos": [{"name": "a"}]}),
    );
    let message = answer["message"].as_str().unwrap();
    assert!(
        status == 503 && message.contains("etcd") && message.contains("sourceConfig.etcd.address"),
        "{answer}"
    );
    assert_eq!(server.terminate().1, Some(0));
}

#[test]
fn a_stop_takes_no_longer_than_five_seconds_with_a_hung_target() {
    let dir = tempfile::tempdir().unwrap();
    store_task(dir.path(), hung_target());
    let server = Server::start(dir.path());
    std::thread::sleep(Duration::from_millis(500));
    let (took, code) = server.terminate();
    assert_eq!(code, Some(0));
    assert!(took <= Duration::from_secs(5), "{took:?}");
}

/// Starts the program with these lines of `metaStoreConfig` and waits for its end; its code and what it said.
fn ends(dir: &Path, store: &str) -> (Option<i32>, String) {
    let file = dir.join("cdc.yaml");
    let source = "sourceConfig: {natsmq: {address: 'nats://127.0.0.1:1'}}\n";
    std::fs::write(&file, format!("metaStoreConfig: {store}\n{source}")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_milvus-cdc"))
        .args(["server", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_secret_key_of_another_form_is_refused_with_the_settings_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db").display().to_string();
    let (code, said) = ends(
        dir.path(),
        &format!("{{secretKey: hunter2, sqlite: {{path: {path}}}}}"),
    );
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("metaStoreConfig.secretKey"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_store_that_is_not_there_is_named_without_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    for store in [
        format!("{{storeType: mysql, mysqlSourceUrl: 'u:hunter2@tcp(127.0.0.1:{port})/d'}}"),
        format!(
            "{{storeType: postgres, postgresSourceUrl: 'postgres://u:hunter2@127.0.0.1:{port}/d'}}"
        ),
        format!(
            "{{storeType: etcd, etcd: {{address: 'http://127.0.0.1:{port}', enableAuth: true, username: u, password: hunter2}}}}"
        ),
    ] {
        let (code, said) = ends(dir.path(), &store);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&port.to_string()), "{store}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
