//! `milvus-cdc import-go` on what a Go server (zilliztech/milvus-cdc at 3a4af3b) leaves in a real store: the keys of
//! `server/store/meta_key.go`, the tables of `server/store/mysql.go`, the values of `server/model/meta/task.go`.
//!
//! Of the source there is an etcd without collections: what places mean is tested with real sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdc_core::ids::TaskId;
use cdc_lab::cdc::Said;
use cdc_lab::servers::free_port;
use cdc_lab::servers::stores::{StoreKind, StoreServer};
use etcd_client::{Client, GetOptions};
use milvus_cdc::config::Config;
use milvus_cdc::store::{Desired, StoredTask};
use serde_json::{Value, json};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, Connection, Row};
use tempfile::TempDir;

use crate::place::{Kind, Place};
use crate::program::{Program, binary};

const COMMAND: Duration = Duration::from_secs(120);

/// As `NewTaskInfoMysqlStore` and `NewTaskCollectionPositionMysqlStore` make them.
const TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS task_info (
        task_info_key VARCHAR(255) NOT NULL,
        task_id VARCHAR(255) NOT NULL,
        task_info_value JSON NOT NULL,
        PRIMARY KEY (task_info_key),
        INDEX idx_key (task_info_key),
        INDEX idx_task_id (task_id)
    )",
    "CREATE TABLE IF NOT EXISTS task_position (
        task_position_key VARCHAR(255) NOT NULL,
        task_id VARCHAR(255) NOT NULL,
        collection_id BIGINT NOT NULL,
        collection_name VARCHAR(255) NOT NULL,
        task_position_value JSON NOT NULL,
        op_position_value JSON,
        target_position_value JSON,
        PRIMARY KEY (task_position_key),
        INDEX idx_key (task_position_key),
        INDEX idx_task_id (task_id),
        INDEX idx_collection_id (collection_id)
    )",
];

/// The store of a Go server, and a configuration of ours for the same one.
struct Left {
    kind: Kind,
    url: String,
    root: String,
    address: String,
    file: PathBuf,
    config: Config,
    _source: Option<StoreServer>,
    _dir: TempDir,
}

impl Left {
    async fn new(place: &Place) -> Self {
        let root = place.root();
        let server = place.server.as_ref().unwrap();
        let source = match place.kind {
            Kind::Etcd => None,
            _ => Some(StoreServer::start(StoreKind::Etcd).await.unwrap()),
        };
        let etcd = source.as_ref().unwrap_or(server).url();
        let mut client = Client::connect([etcd.clone()], None).await.unwrap();
        let key = format!("source-{root}/meta/root-coord/credential/users/root");
        client.put(key, "{}", None).await.unwrap();
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let nats = free_port().unwrap();
        let text = format!(
            "address: {address}\n{}sourceConfig: {{etcd: {{address: '{etcd}', rootPath: source-{root}}}, natsmq: {{address: 'nats://127.0.0.1:{nats}'}}}}\n",
            server.yaml(&root)
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cdc.yaml");
        std::fs::write(&file, &text).unwrap();
        let left = Self {
            kind: place.kind,
            url: server.url(),
            config: Config::parse(&text, "cdc.yaml", &|_| None).unwrap(),
            root,
            address,
            file,
            _source: source,
            _dir: dir,
        };
        if left.kind == Kind::Mysql {
            let mut c = left.mysql().await;
            for table in TABLES {
                sqlx::query(table).execute(&mut c).await.unwrap();
            }
        }
        left
    }

    async fn etcd(&self) -> Client {
        Client::connect([self.url.as_str()], None).await.unwrap()
    }

    async fn mysql(&self) -> MySqlConnection {
        let milvus_cdc::store::open::StoreConfig::Mysql { address, .. } = &self.config.store else {
            panic!("{}", self.config.store.shown());
        };
        let options = MySqlConnectOptions::new()
            .host(&address.host)
            .port(address.port)
            .username(&address.user)
            .password(address.password.expose())
            .database(&address.database);
        MySqlConnection::connect_with(&options).await.unwrap()
    }

    async fn task(&self, root: &str, id: &str, value: &Value) {
        let key = format!("{root}/task_info/{id}");
        if self.kind == Kind::Etcd {
            let value = value.to_string();
            self.etcd().await.put(key, value, None).await.unwrap();
            return;
        }
        sqlx::query("INSERT INTO task_info (task_info_key, task_id, task_info_value) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE task_info_value = ?")
            .bind(key).bind(id).bind(value.to_string()).bind(value.to_string())
            .execute(&mut self.mysql().await)
            .await
            .unwrap();
    }

    async fn position(&self, task: &str, collection: i64, name: &str, positions: &Value) {
        let key = format!("{}/task_position/{task}/{collection}", self.root);
        if self.kind == Kind::Etcd {
            let value = json!({
                "TaskID": task, "CollectionID": collection, "CollectionName": name, "Positions": positions,
                "OpPositions": {}, "TargetPositions": {},
            });
            let value = value.to_string();
            self.etcd().await.put(key, value, None).await.unwrap();
            return;
        }
        sqlx::query("INSERT INTO task_position (task_position_key, task_id, collection_id, collection_name, task_position_value, op_position_value, target_position_value) VALUES (?, ?, ?, ?, ?, '{}', '{}') ON DUPLICATE KEY UPDATE task_position_value = ?")
            .bind(key).bind(task).bind(collection).bind(name)
            .bind(positions.to_string()).bind(positions.to_string())
            .execute(&mut self.mysql().await)
            .await
            .unwrap();
    }

    /// Everything of the Go server's, and of others, in this store.
    async fn theirs(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        if self.kind == Kind::Etcd {
            let all = Some(GetOptions::new().with_all_keys());
            for kv in self.etcd().await.get("", all).await.unwrap().kvs() {
                let key = kv.key_str().unwrap().to_owned();
                if !key.starts_with(&format!("{}/milvus-cdc/", self.root)) {
                    found.insert(key, kv.value_str().unwrap().to_owned());
                }
            }
            return found;
        }
        for (key, value, table) in [
            ("task_info_key", "task_info_value", "task_info"),
            ("task_position_key", "task_position_value", "task_position"),
        ] {
            let all = format!("SELECT {key}, CAST({value} AS CHAR) FROM {table}");
            let mut c = self.mysql().await;
            for row in sqlx::query(AssertSqlSafe(all))
                .fetch_all(&mut c)
                .await
                .unwrap()
            {
                found.insert(row.get(0), row.get(1));
            }
        }
        found
    }

    async fn ours(&self) -> Vec<StoredTask> {
        let Some(store) = self.config.store.look(None).await.unwrap() else {
            return Vec::new();
        };
        let all = store.tasks().await.unwrap();
        all.into_iter().map(|task| task.ok().unwrap()).collect()
    }

    async fn import(&self, more: &[&str]) -> Said {
        let said = import(&self.file, more).await;
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(!all.contains("hush"), "{all}");
        said
    }
}

async fn import(file: &Path, more: &[&str]) -> Said {
    let run = tokio::process::Command::new(binary())
        .args(["import-go", "--config"])
        .arg(file)
        .args(more)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(COMMAND, run).await.unwrap().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `meta.TaskInfo` as JSON.
fn info(id: &str, target: &str, of: &Value) -> Value {
    let mut info = json!({
        "TaskID": id,
        "MilvusConnectParam": {
            "host": "", "port": 0, "enable_tls": false, "uri": target, "token": "root:hush-hush", "dial_config": {},
            "channel_num": 16, "ignore_partition": false, "connect_timeout": 2,
        },
        "KafkaConnectParam": { "address": "", "topic": "", "enable_sasl": false, "sasl": {} },
        "WriterCacheConfig": { "period": 0, "size": 0 },
        "CollectionInfos": [{ "name": "*", "positions": null, "use_start_position": false }],
        "DBCollections": null,
        "NameMapping": null,
        "RPCRequestChannelInfo": { "name": "", "position": "" },
        "ExtraInfo": { "enable_user_role": false },
        "ExcludeCollections": null,
        "DisableAutoStart": false,
        "State": 1,
        "Reason": "",
    });
    for (key, value) in of.as_object().unwrap() {
        info[key] = value.clone();
    }
    info
}

fn at(channel: &str, time: u64, dropped: bool) -> Value {
    json!({ channel: {
        "StartTime": 0, "Time": time, "DataPair": { "key": channel, "data": "BQAAAAAAAAA=" }, "Dropped": dropped,
    }})
}

/// A target where nobody listens.
fn target() -> String {
    format!("http://127.0.0.1:{}", free_port().unwrap())
}

pub(crate) async fn tasks_are_taken_over_once_and_nothing_else_is_touched(place: &mut Place) {
    let left = Left::new(place).await;
    let (one, two) = (target(), target());
    let root = left.root.clone();
    left.task(&root, "east", &info("east", &one, &json!({})))
        .await;
    let west = json!({
        "CollectionInfos": null, "DBCollections": { "db": [{ "name": "a", "positions": {}, "use_start_position": false }] },
        "State": 2, "Reason": "manually pause through http interface", "ExtraInfo": { "enable_user_role": true },
    });
    left.task(&root, "west", &info("west", &two, &west)).await;
    let kafka = json!({
        "MilvusConnectParam": { "host": "", "port": 0, "uri": "" },
        "KafkaConnectParam": { "address": "k:9092", "topic": "t", "enable_sasl": true, "sasl": { "username": "u", "password": "hush" } },
    });
    left.task(&root, "tokafka", &info("tokafka", "", &kafka))
        .await;
    // Overlaps with east.
    let again = info("again", &one, &json!({}));
    left.task(&root, "zagain", &again).await;
    // Another Go server's in the same place.
    let stranger = format!("stranger-{root}");
    left.task(&stranger, "stranger", &info("stranger", &two, &json!({})))
        .await;
    let channel = "by-dev-rootcoord-dml_0";
    left.position(
        "east",
        445_811_557_825_249_939,
        "gone",
        &at(channel, 1_700_000_000_000, false),
    )
    .await;
    left.position(
        "east",
        445_811_557_825_249_940,
        "over",
        &at(channel, 1_700_000_000_000, true),
    )
    .await;
    left.position("east", -10, "-10", &at("by-dev-replicate-msg", 5, false))
        .await;
    let theirs = left.theirs().await;

    let dry = left.import(&[]).await;
    assert_eq!(dry.code, Some(1), "{dry:?}");
    for said in [
        "would take  east",
        "default.*",
        "\"gone\" (445811557825249939) was dropped on the source",
        "its place in the replicate channel",
        "the target does not answer now",
        "would take  west",
        "db.a",
        "Paused (manually pause through http interface)",
        "users and roles",
        "cannot take tokafka",
        "kafka_connect_param",
        "cannot take again",
        "task east carries some of these collections",
        "0 taken, 2 would be taken, 0 here already, 2 cannot be taken",
        "Stop the Go server for good first",
    ] {
        assert!(dry.stdout.contains(said), "{said:?} in {}", dry.stdout);
    }
    assert!(
        !dry.stdout.contains("stranger") && !dry.stdout.contains("\"over\""),
        "{}",
        dry.stdout
    );
    assert!(left.ours().await.is_empty(), "a look made something");

    let applied = left.import(&["--apply"]).await;
    assert_eq!(applied.code, Some(1), "{applied:?}");
    for said in [
        "taken       east",
        "taken       west",
        "2 taken, 0 would be taken",
    ] {
        assert!(
            applied.stdout.contains(said),
            "{said:?} in {}",
            applied.stdout
        );
    }
    let ours = left.ours().await;
    let ids: Vec<&str> = ours.iter().map(|t| t.id.as_str()).collect();
    assert_eq!(ids, ["east", "west"]);
    assert_eq!(ours[0].desired, Desired::Running);
    let Desired::Paused { by, reason, .. } = &ours[1].desired else {
        panic!("{:?}", ours[1].desired);
    };
    assert_eq!(
        (by.as_str(), reason.as_str()),
        ("the Go server", "manually pause through http interface")
    );
    let spec: Value = serde_json::from_str(&ours[0].spec).unwrap();
    assert_eq!(
        (&spec["uri"], &spec["token"]),
        (&json!(one), &json!("root:hush-hush"))
    );

    let again = left.import(&["--apply", "-o", "json"]).await;
    let report: Value = serde_json::from_str(&again.stdout).unwrap();
    let outcomes: Vec<&str> = report["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(
        outcomes,
        ["there", "refused", "there", "refused"],
        "{report}"
    );
    assert!(
        left.ours().await == ours,
        "the second run changed something"
    );
    assert_eq!(left.theirs().await, theirs, "not only ours was written");

    let program = Program::start(&left.file, &left.address).await;
    let (status, answer) = program.ask("list", None).await;
    assert_eq!(status, 200, "{answer}");
    let states: BTreeMap<&str, &str> = answer["data"]["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["task_id"].as_str().unwrap(), t["state"].as_str().unwrap()))
        .collect();
    assert_eq!(
        states,
        BTreeMap::from([("east", "Running"), ("west", "Paused")])
    );
    assert_eq!(program.stop().await, Some(0));
    assert_eq!(left.theirs().await, theirs);
}

pub(crate) async fn not_while_a_go_server_writes(place: &mut Place) {
    let left = Left::new(place).await;
    let root = left.root.clone();
    left.task(&root, "t", &info("t", &target(), &json!({})))
        .await;
    let enough = AtomicBool::new(false);
    // Its places move with the source's ticks.
    let writes = async {
        let mut time = 1_700_000_000_000;
        while !enough.load(Ordering::Relaxed) {
            time += 200;
            left.position("t", -10, "-10", &at("by-dev-replicate-msg", time, false))
                .await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let asks = async {
        let dry = left.import(&[]).await;
        let applied = left.import(&["--apply"]).await;
        enough.store(true, Ordering::Relaxed);
        (dry, applied)
    };
    let ((), (dry, applied)) = tokio::join!(writes, asks);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    assert!(dry.stdout.contains("THE GO SERVER STILL RUNS"), "{dry:?}");
    assert_eq!(applied.code, Some(1), "{applied:?}");
    assert!(applied.stderr.contains("its store changes"), "{applied:?}");
    assert!(left.ours().await.is_empty());
    // And when it is stopped:
    assert_eq!(left.import(&["--apply"]).await.code, Some(0));
    assert_eq!(left.ours().await[0].id, TaskId::new("t"));
}

pub(crate) async fn not_while_a_server_owns_the_store(place: &mut Place) {
    let left = Left::new(place).await;
    let root = left.root.clone();
    left.task(&root, "t", &info("t", &target(), &json!({})))
        .await;
    let program = Program::start(&left.file, &left.address).await;
    let applied = left.import(&["--apply"]).await;
    assert_eq!(applied.code, Some(1), "{applied:?}");
    assert!(
        applied.stderr.contains("owns the store") && applied.stderr.contains(&left.address),
        "{applied:?}"
    );
    assert!(left.ours().await.is_empty());
    assert_eq!(program.stop().await, Some(0));
    assert_eq!(left.import(&["--apply"]).await.code, Some(0));
    assert_eq!(left.ours().await.len(), 1);
}
