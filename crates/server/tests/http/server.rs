//! A server on a real socket, with a stand-in for what carries the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::catalog::etcd::EtcdConfig;
use cdc_core::doctor::{Check, Patient};
use cdc_core::error::Problem;
use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::position::QueueKind;
use cdc_core::promote::TriedOut;
use cdc_core::repair::{Repair, Repaired};
use cdc_core::select::Name;
use cdc_core::source::reach::Held;
use cdc_core::task::{
    Choice, CollectionState, CollectionStatus, Counters, TargetSpec, TaskSpec, TaskStatus, Verdict,
};
use cdc_core::tso::Tso;
use milvus_cdc::config::access::Access;
use milvus_cdc::http::{Parts, router};
use milvus_cdc::listen::{self, Tls};
use milvus_cdc::maintenance::LogLevel;
use milvus_cdc::request::Limits;
use milvus_cdc::runtime::Replication;
use milvus_cdc::store::{OpenError, SqliteStore, TaskStore};
use milvus_cdc::tasks::{TaskLimits, Tasks};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) struct Fake {
    pub(crate) running: Mutex<BTreeMap<TaskId, TaskSpec>>,
    pub(crate) refuse: Mutex<Option<Problem>>,
    pub(crate) refuse_start: Mutex<Option<Problem>>,
    /// What every running task says of its collections.
    pub(crate) collections: Mutex<Vec<CollectionStatus>>,
    /// The source's collections.
    pub(crate) present: Mutex<Vec<Name>>,
    /// What is on the target, and whether it holds rows.
    pub(crate) there: Mutex<BTreeMap<Name, bool>>,
    /// How often a running task was given something else to do.
    pub(crate) changes: Mutex<usize>,
    pub(crate) chosen: Mutex<Vec<(String, String, Choice)>>,
    /// By the collection's name.
    pub(crate) refuse_choice: Mutex<BTreeMap<String, Problem>>,
    pub(crate) lose_choice: Mutex<BTreeSet<String>>,
    /// Key, verdict, who.
    pub(crate) judged: Mutex<Vec<(String, Verdict, String)>>,
    pub(crate) refuse_verdict: Mutex<Option<Problem>>,
    pub(crate) never_stops: Mutex<bool>,
    pub(crate) repaired: Mutex<Vec<Repair>>,
    pub(crate) refuse_repair: Mutex<Option<Problem>>,
    /// The target's time.
    pub(crate) time: Mutex<Tso>,
    pub(crate) standby: Mutex<bool>,
    pub(crate) refuse_switch: Mutex<Option<Problem>>,
    pub(crate) refuse_try: Mutex<Option<Problem>>,
    pub(crate) lag: Mutex<Option<f64>>,
    pub(crate) held: Mutex<Option<Held>>,
    pub(crate) not_loaded: Mutex<Result<BTreeSet<Name>, Problem>>,
}

/// The root path of an etcd from which the target takes no settings.
pub(crate) const UNREAD: &str = "unread";

impl Default for Fake {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            refuse: Mutex::default(),
            refuse_start: Mutex::default(),
            collections: Mutex::default(),
            chosen: Mutex::default(),
            refuse_choice: Mutex::default(),
            lose_choice: Mutex::default(),
            judged: Mutex::default(),
            refuse_verdict: Mutex::default(),
            never_stops: Mutex::default(),
            repaired: Mutex::default(),
            refuse_repair: Mutex::default(),
            time: Mutex::default(),
            standby: Mutex::new(true),
            refuse_switch: Mutex::default(),
            refuse_try: Mutex::default(),
            lag: Mutex::new(Some(1.5)),
            held: Mutex::default(),
            present: Mutex::default(),
            there: Mutex::default(),
            changes: Mutex::default(),
            not_loaded: Mutex::new(Ok(BTreeSet::new())),
        }
    }
}

#[async_trait]
impl Replication for Fake {
    async fn check_target(&self, _: &TargetSpec) -> Result<(), Problem> {
        self.refuse.lock().clone().map_or(Ok(()), Err)
    }
    async fn check_source(&self) -> Result<(), Problem> {
        Ok(())
    }
    async fn collections(&self) -> Result<Vec<Name>, Problem> {
        Ok(self.present.lock().clone())
    }
    async fn on_target(
        &self,
        _: &TargetSpec,
        names: &BTreeSet<Name>,
    ) -> Result<BTreeMap<Name, bool>, Problem> {
        let mut there = self.there.lock().clone();
        there.retain(|name, _| names.contains(name));
        Ok(there)
    }
    async fn not_loaded(&self, names: &BTreeSet<Name>) -> Result<BTreeSet<Name>, Problem> {
        let all = self.not_loaded.lock().clone()?;
        Ok(all.intersection(names).cloned().collect())
    }
    fn change(&self, spec: TaskSpec) -> Result<(), Problem> {
        *self.changes.lock() += 1;
        self.running.lock().insert(spec.id.clone(), spec);
        Ok(())
    }
    fn start(&self, spec: TaskSpec) -> Result<(), Problem> {
        if let Some(problem) = self.refuse_start.lock().clone() {
            return Err(problem);
        }
        self.running.lock().insert(spec.id.clone(), spec);
        Ok(())
    }
    async fn stop(&self, task: &TaskId, _: Duration) {
        self.running.lock().remove(task);
    }
    async fn stop_all(&self, _: Duration) {
        if *self.never_stops.lock() {
            std::future::pending::<()>().await;
        }
        self.running.lock().clear();
    }
    fn status(&self, task: &TaskId) -> Option<TaskStatus> {
        self.running.lock().contains_key(task).then(|| TaskStatus {
            collections: self.collections.lock().clone(),
            problems: vec![],
            lag_seconds: *self.lag.lock(),
            durable_lag_seconds: Some(2.5),
            checkpoint_age_seconds: Some(0.25),
            counters: Counters {
                messages_in: 5,
                bytes_in: 500,
                rows_in: 9,
                messages_out: 4,
                rows_out: 7,
                bytes_out: 400,
                in_flight_bytes: 99,
            },
            errors: BTreeMap::from([("transient".to_owned(), 3)]),
        })
    }
    async fn choose(
        &self,
        _: &TaskId,
        db: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem> {
        if self.lose_choice.lock().contains(name) {
            std::future::pending::<()>().await;
        }
        if let Some(problem) = self.refuse_choice.lock().get(name) {
            return Err(problem.clone());
        }
        let taken = (db.to_owned(), name.to_owned(), choice);
        self.chosen.lock().push(taken);
        Ok(())
    }
    async fn judge(
        &self,
        _: &TaskId,
        key: &str,
        verdict: Verdict,
        by: &str,
    ) -> Result<(), Problem> {
        if let Some(problem) = self.refuse_verdict.lock().clone() {
            return Err(problem);
        }
        let judged = (key.to_owned(), verdict, by.to_owned());
        self.judged.lock().push(judged);
        Ok(())
    }
    async fn repair(&self, _: &TaskSpec, wanted: &Repair) -> Result<Repaired, Problem> {
        if let Some(problem) = self.refuse_repair.lock().clone() {
            return Err(problem);
        }
        self.repaired.lock().push(wanted.clone());
        Ok(Repaired {
            database: "db".to_owned(),
            name: "a".to_owned(),
            replaced: wanted.rows.len(),
            deleted: wanted.keys.len() - wanted.rows.len(),
        })
    }
    async fn target_time(&self, _: &TargetSpec) -> Result<Tso, Problem> {
        Ok(*self.time.lock())
    }
    async fn is_standby(&self, _: &TargetSpec) -> Result<bool, Problem> {
        Ok(*self.standby.lock())
    }
    async fn check_switch(&self, _: &EtcdConfig) -> Result<(), Problem> {
        self.refuse_switch.lock().clone().map_or(Ok(()), Err)
    }
    async fn switch_on(&self, etcd: &EtcdConfig) -> Result<(), Problem> {
        self.check_switch(etcd).await?;
        if etcd.root_path != UNREAD {
            *self.standby.lock() = false;
        }
        Ok(())
    }
    async fn try_out(&self, _: &TargetSpec, _: &[(String, String)]) -> Result<TriedOut, Problem> {
        match self.refuse_try.lock().clone() {
            Some(problem) => Err(problem),
            None => Ok(TriedOut {
                read: 1,
                rows: 7,
                not_loaded: 0,
            }),
        }
    }
    async fn reach(&self, channels: &BTreeSet<PChannel>) -> BTreeMap<PChannel, Held> {
        let held = *self.held.lock();
        channels
            .iter()
            .filter_map(|c| Some((c.clone(), held?)))
            .collect()
    }
    async fn examine(&self, tasks: Vec<Patient>, targets: Vec<TargetSpec>) -> Vec<Check> {
        let found = format!("{} task(s), {} more target(s)", tasks.len(), targets.len());
        vec![Check::ok("all", found)]
    }
}

pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    /// Cancelled: the server stops as on SIGTERM.
    pub(crate) stop: CancellationToken,
    /// What the log was set to.
    pub(crate) log_levels: Arc<Mutex<Vec<String>>>,
    pub(crate) fake: Arc<Fake>,
    pub(crate) tasks: Tasks,
    pub(crate) store: SqliteStore,
    pub(crate) running: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub(crate) async fn open(path: &Path) -> SqliteStore {
    loop {
        match SqliteStore::open(path).await {
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other.unwrap(),
        }
    }
}

/// Limits that no test meets by chance.
pub(crate) fn access() -> Access {
    let many = std::num::NonZeroU32::new(100_000).unwrap();
    Access {
        requests_per_second: many,
        burst: many,
        ..Access::default()
    }
}

pub(crate) async fn start(path: &Path, recover: bool) -> Server {
    start_with(path, recover, access()).await
}

pub(crate) async fn start_with(path: &Path, recover: bool, access: Access) -> Server {
    let store = open(path).await;
    start_on(store.clone(), store, recover, access).await
}

/// `kept`: what the tasks are kept in, `store` itself or something before it.
pub(crate) async fn start_on(
    kept: impl TaskStore + 'static,
    store: SqliteStore,
    recover: bool,
    access: Access,
) -> Server {
    let fake = Arc::new(Fake::default());
    let limits = TaskLimits {
        max_task_num: 2,
        memory_budget: 1 << 20,
        durable_every: Duration::from_secs(300),
        call_timeout: Duration::from_secs(1),
        answer_deadline: Duration::from_millis(400),
    };
    let tasks = Tasks::new(kept, fake.clone(), limits);
    if recover {
        tasks.recover().await.unwrap();
    }
    let limits = Limits {
        max_name_length: 16,
        queue: QueueKind::Natsmq,
        replicate_channel: "r".to_owned(),
        rows: true,
    };
    let stop = CancellationToken::new();
    let log_levels = Arc::new(Mutex::new(Vec::new()));
    let levels = log_levels.clone();
    let router = router(Parts {
        tasks: tasks.clone(),
        limits,
        access: access.clone(),
        warnings: access.warnings("0.0.0.0:8444"),
        log_level: LogLevel::new(move |level| {
            levels.lock().push(level.to_owned());
            Ok(())
        }),
        stop: stop.clone(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = access.tls.as_ref().map(|files| Tls::load(files).unwrap());
    let stopped = stop.clone();
    let running = tokio::spawn(async move {
        let watch = tls.clone().map(|tls| tls.watch(stopped.clone()));
        let serve = listen::serve(listener, router, &access, tls, stopped.clone());
        tokio::join!(serve, async {
            if let Some(watch) = watch {
                watch.await;
            }
        });
    });
    Server {
        address,
        stop,
        log_levels,
        fake,
        tasks,
        store,
        running,
    }
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers = lines.map(|line| {
            let (key, value) = line.split_once(':').unwrap();
            (key.to_ascii_lowercase(), value.trim().to_owned())
        });
        Self {
            status: status.parse().unwrap(),
            headers: headers.collect(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Server {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut stream = self.connect().await;
        let length = body.len();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n"
        );
        for (key, value) in headers {
            head += &format!("{key}: {value}\r\n");
        }
        head += "\r\n";
        stream
            .write_all(&[head.as_bytes(), body].concat())
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        Answer::parse(&text)
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let answer = self.request(method, path, &[], body).await;
        (answer.status, answer.body)
    }

    /// A request of `/api/v1` with a JSON body, and its JSON answer.
    pub(crate) async fn rest(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let path = format!("/api/v1{path}");
        let json = [("Content-Type", "application/json")];
        let answer = self.request(method, &path, &json, body.as_bytes()).await;
        let value = match answer.body.as_str() {
            "" => Value::Null,
            _ => answer.json(),
        };
        if answer.status >= 400 {
            assert_eq!(answer.headers["content-type"], "application/problem+json");
            assert_eq!(value["status"], json!(answer.status), "{value}");
            let code = value["code"].as_str().unwrap();
            assert_eq!(
                value["type"],
                json!(format!("urn:milvus-cdc:problem:{code}"))
            );
            assert!(!value["detail"].as_str().unwrap().is_empty(), "{value}");
        }
        (answer.status, value)
    }

    pub(crate) async fn post(&self, body: impl AsRef<[u8]>) -> (u16, Value) {
        let (status, text) = self.send("POST", "/cdc", body.as_ref()).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["code"], json!(status), "{text}");
        (status, body)
    }

    pub(crate) async fn ask(&self, kind: &str, data: Value) -> (u16, Value) {
        self.post(json!({ "request_type": kind, "request_data": data }).to_string())
            .await
    }

    /// Asks for something that is granted; gives the answer's data.
    pub(crate) async fn granted(&self, kind: &str, data: Value) -> Value {
        let (status, mut answer) = self.ask(kind, data).await;
        assert_eq!(status, 200, "{answer}");
        answer["data"].take()
    }

    /// Asks for something that is not granted; gives the message.
    pub(crate) async fn refused(&self, kind: &str, data: Value, expected: u16) -> String {
        let (status, answer) = self.ask(kind, data).await;
        assert_eq!(status, expected, "{answer}");
        answer["message"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn create(&self, data: Value) -> String {
        let data = self.granted("create", data).await;
        data["task_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn spec(&self, id: &str) -> TaskSpec {
        self.fake.running.lock()[&TaskId::new(id)].clone()
    }
}

/// A create request for one collection.
pub(crate) fn wanted(name: &str) -> Value {
    json!({"milvus_connect_param": {"uri": "http://Target:19530", "token": "root:hush-hush"}, "collection_infos": [{"name": name}]})
}

/// A create request with these fields beside the target.
pub(crate) fn request(fields: Value) -> Value {
    let mut request =
        json!({"milvus_connect_param": {"uri": "http://target:19530", "token": "root:hush-hush"}});
    for (key, value) in fields.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

pub(crate) fn collection(
    id: i64,
    database: &str,
    name: &str,
    state: CollectionState,
) -> CollectionStatus {
    let lag_seconds = match state {
        CollectionState::Streaming { lag_seconds, .. } => Some(lag_seconds),
        CollectionState::Dropped => None,
        _ => Some(40.5),
    };
    CollectionStatus {
        lag_seconds,
        source_id: CollectionId(id),
        database: database.to_owned(),
        name: name.to_owned(),
        state,
        rows: 11,
        positions: BTreeMap::new(),
        last_error: None,
        target: None,
        note: None,
    }
}
