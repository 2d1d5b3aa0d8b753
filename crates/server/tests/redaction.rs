//! Secrets planted everywhere, looked for everywhere: the log at its most talkative, every answer, the metrics, and what
//! a panic would print.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::TaskId;
use milvus_cdc::config::Config;
use milvus_cdc::store::{Desired, SqliteStore, StoredTask, TaskStore, TaskWrite};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Part of every planted secret, and of nothing else.
const MARK: &str = "hush7f3a";
const API: &str = "api-hush7f3a-0123456789";
const DEADLINE: Duration = Duration::from_secs(60);

/// Something that takes connections and what is sent to it, and never answers: the client says all it has to say.
struct Deaf {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Deaf {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = heard.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let all = all.clone();
                std::thread::spawn(move || {
                    // The settings with which every HTTP/2 conversation begins: the client goes on to its request.
                    let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        all.lock().extend_from_slice(&buffer[..n]);
                    }
                });
            }
        });
        Self { address, heard }
    }

    /// Waits until somebody has said this.
    fn wait_for(&self, part: &[u8]) {
        let end = Instant::now() + DEADLINE;
        while !self.heard.lock().windows(part.len()).any(|w| w == part) {
            assert!(
                Instant::now() < end,
                "{part:?} was never said to {}",
                self.address
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn config(dir: &Path, port: u16, etcd: SocketAddr) -> String {
    let token = dir.join("token");
    std::fs::write(&token, API).unwrap();
    format!(
        "address: 127.0.0.1:{port}\nlogLevel: trace\n\
         security: {{tokens: [{{name: ops, token: 'file:{}', role: full}}]}}\n\
         metaStoreConfig: {{sqlite: {{path: '{}'}}, mysqlSourceUrl: 'root:dsn-{MARK}@tcp(127.0.0.1:3306)/cdc'}}\n\
         sourceConfig:\n  natsmq: {{address: 'nats://127.0.0.1:{}'}}\n  etcd:\n    address: 'http://{etcd}'\n\
         \x20   enableAuth: true\n    username: root\n    password: etcd-{MARK}\n",
        token.display(),
        dir.join("s.db").display(),
        free_port(),
    )
}

/// A task as a server that knew a living source would have left it.
fn store_task(dir: &Path, target: SocketAddr) {
    let spec = json!({
        "uri": format!("http://{target}"), "token": format!("root:target-{MARK}"), "connect_timeout_s": 10,
        "selection": "all", "start": "created", "starts": [], "on_conflict": "ask", "positions": {}, "given": {},
    });
    let broken = json!({"uri": [], "token": format!("root:broken-{MARK}")});
    let task = |id: &str, spec: &Value| StoredTask {
        id: TaskId::new(id),
        spec: spec.to_string(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    };
    let tasks = [task("t", &spec), task("broken", &broken)];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&dir.join("s.db")).await.unwrap();
        let writes = tasks.into_iter().map(TaskWrite::Create).collect();
        store.write_tasks(writes).await.unwrap();
        store.close(Duration::from_secs(5)).await;
    });
}

struct Server {
    child: Child,
    port: u16,
    /// Everything it has answered.
    heard: std::cell::RefCell<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn send(&self, token: &str, method: &str, path: &str, body: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        *self.heard.borrow_mut() += &text;
        text.split(' ').nth(1)?.parse().ok()
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> u16 {
        self.send(API, method, path, body).unwrap()
    }

    fn wait_for(&self, path: &str, part: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let before = self.heard.borrow().len();
            self.send(API, "GET", path, "");
            if self.heard.borrow()[before..].contains(part) {
                return;
            }
            assert!(
                Instant::now() < end,
                "no {part:?} at {path}: {}",
                &self.heard.borrow()[before..]
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The lines with a planted secret, in clear or as Milvus takes tokens: in base64.
fn found(text: &str) -> Vec<&str> {
    let coded = STANDARD.encode(format!("root:target-{MARK}"));
    let shows = |line: &&str| line.contains(MARK) || line.contains(&coded);
    text.lines().filter(shows).collect()
}

#[test]
fn no_secret_is_said_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, target) = (Deaf::start(), Deaf::start());
    store_task(dir.path(), target.address);
    let port = free_port();
    let file = dir.path().join("cdc.yaml");
    std::fs::write(&file, config(dir.path(), port, etcd.address)).unwrap();
    let log = dir.path().join("log");
    let child = Command::new(env!("CARGO_BIN_EXE_milvus-cdc"))
        .args(["server", "--config"])
        .arg(&file)
        .env("RUST_BACKTRACE", "full")
        .stderr(std::fs::File::create(&log).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let heard = std::cell::RefCell::default();
    let server = Server { child, port, heard };
    server.wait_for("/readyz", "ready");
    server.send(
        &format!("wrong-{MARK}-0123456789"),
        "GET",
        "/api/v1/tasks",
        "",
    );
    let login = format!("http://user:{MARK}@h:1");
    let secrets = [
        json!({"uri": "http://127.0.0.1:2", "token": format!("root:{MARK}")}),
        json!({"uri": "http://127.0.0.1:2", "username": "root", "password": MARK}),
        json!({"uri": "http://127.0.0.1:2", "password": MARK}),
        json!({"uri": "http://127.0.0.1:2", "token": [MARK]}),
        json!({"uri": "http://127.0.0.1:2", "tokn": MARK}),
        json!({"uri": login}),
        json!({"uri": format!("http://h:1?token={MARK}")}),
        json!({"uri": {"token": MARK}}),
        json!([MARK]),
        json!(MARK),
    ];
    for secret in &secrets {
        let rest = json!({"target": secret, "collections": [{"name": "a"}]});
        assert!(server.ask("POST", "/api/v1/tasks", &rest.to_string()) >= 400);
        let data = json!({"milvus_connect_param": secret, "collection_infos": [{"name": "a"}]});
        let go = json!({"request_type": "create", "request_data": data});
        assert!(server.ask("POST", "/cdc", &go.to_string()) >= 400);
    }
    for broken in [
        format!("{{\"target\": {{\"token\": \"{MARK}\", }}"),
        format!("[\"{MARK}\"]"),
        json!({"request_type": "create", "request_data": MARK}).to_string(),
        json!({"request_type": "create", "request_data": {"kafka_connect_param": {"address": "h:1", "topic": "t",
            "sasl": {"username": "u", "password": MARK}}}})
        .to_string(),
    ] {
        assert!(server.ask("POST", "/api/v1/tasks", &broken) >= 400);
        assert!(server.ask("POST", "/cdc", &broken) >= 400);
    }
    // The login at etcd is in the body of a call, that at the target in its compressed head: the beginning of a head.
    etcd.wait_for(format!("etcd-{MARK}").as_bytes());
    target.wait_for(&[1, 4, 0, 0, 0, 1]);
    server.wait_for("/api/v1/tasks/t", "\"message\"");
    for path in [
        "/api/v1/tasks",
        "/api/v1/tasks/t",
        "/api/v1/tasks/broken",
        "/api/v1/tasks/t/collections",
        "/api/v1/tasks/t/positions",
        "/api/v1/tasks/t/events",
        "/api/v1/events",
        "/cdc/metrics",
        "/api/v1/openapi.json",
        "/readyz",
    ] {
        assert_eq!(server.ask("GET", path, ""), 200, "{path}");
    }
    for (kind, data) in [
        ("get", json!({"task_id": "t"})),
        ("get", json!({"task_id": "broken"})),
        ("list", json!({})),
        ("position", json!({"task_id": "t"})),
        ("pause", json!({"task_id": "t"})),
        ("resume", json!({"task_id": "t"})),
    ] {
        let body = json!({"request_type": kind, "request_data": data}).to_string();
        assert_eq!(server.ask("POST", "/cdc", &body), 200, "{kind}");
    }
    let pid = server.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut server = server;
    server.child.wait().unwrap();
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(
        log.contains("TRACE") && log.contains("stopped"),
        "the log is not what it should be:\n{log}"
    );
    assert_eq!(found(&log), Vec::<&str>::new(), "in the log");
    let heard = server.heard.borrow();
    assert!(heard.len() > 10_000);
    assert_eq!(found(&heard), Vec::<&str>::new(), "in the answers");
}

#[test]
fn a_panic_that_shows_everything_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let text = config(dir.path(), 1, SocketAddr::from(([127, 0, 0, 1], 1)));
    let config = Config::parse(&text, "test.yaml", &|_| None).unwrap();
    let panic = std::panic::catch_unwind(|| panic!("{config:?}")).unwrap_err();
    let said = panic.downcast_ref::<String>().unwrap();
    assert!(said.contains("ops") && said.contains("(secret)"), "{said}");
    assert_eq!(found(said), Vec::<&str>::new());
    let broken = text
        .replace("role: full", "role: 5")
        .replace("enableAuth: true", "enableAuth: 1");
    let error = Config::parse(&broken, "test.yaml", &|_| None).unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(
        said.contains("role") && said.contains("enableAuth"),
        "{said}"
    );
    assert_eq!(found(&said), Vec::<&str>::new());
}
