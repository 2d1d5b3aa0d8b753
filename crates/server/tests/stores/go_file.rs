//! The Go server's own configuration file starts this program, and it answers what that server's documentation asks.

use std::time::Duration;

use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::position::Position;
use cdc_core::store::{Change, CollectionObject, ObjectPhase, Progress};
use cdc_core::tso::Tso;
use cdc_lab::servers::free_port;
use etcd_client::Client;
use milvus_cdc::config::Config;
use milvus_cdc::store::{Desired, StoredTask, TaskWrite};
use serde_json::json;

use crate::go_shape::{check_answer, compare, fixture};
use crate::place::{Place, take};
use crate::program::Program;

const GO_FILE: &str = include_str!("../fixtures/go_cdc.yaml");
/// The id in `doc/cdc-usage.md`.
const TASK: &str = "4d458a58b0f74e85b842b1244dc69546";

/// The file as it is, but for the addresses.
pub(crate) fn go_file(etcd: &str, address: &str, pulsar: u16) -> String {
    let mut text = GO_FILE.to_owned();
    for (of_the_file, here, times) in [
        ("0.0.0.0:8444", address, 1),
        ("http://127.0.0.1:2379", etcd, 2),
        ("localhost:6650", &format!("127.0.0.1:{pulsar}"), 1),
    ] {
        assert_eq!(text.matches(of_the_file).count(), times, "{of_the_file}");
        text = text.replace(of_the_file, here);
    }
    text
}

/// A task that an earlier run has left in the store.
async fn leave_a_task(config: &Config) {
    let backend = config.store.open().await.unwrap();
    let term = take(&backend, "before", Duration::from_secs(60)).await;
    let store = backend.of_term(&term);
    let param = json!({
        "host": "", "port": 0, "enable_tls": false, "uri": "http://127.0.0.1:2", "dial_config": {}, "channel_num": 0,
        "ignore_partition": false, "connect_timeout": 10,
    });
    let infos = json!([{ "name": "*", "positions": {}, "use_start_position": false }]);
    let spec = json!({
        "uri": "http://127.0.0.1:2", "token": "root:hush-hush", "connect_timeout_s": 10, "selection": "all",
        "start": "created", "starts": [], "on_conflict": "ask", "positions": {},
        "given": { "milvus_connect_param": param, "collection_infos": infos, "db_collections": {} },
    });
    let task = StoredTask {
        id: TaskId::new(TASK),
        spec: spec.to_string(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    };
    store
        .write_tasks(vec![TaskWrite::Create(task)])
        .await
        .unwrap();
    let channel = PChannel::new("by-dev-rootcoord-dml_0");
    let progress = Progress {
        position: Position::Pulsar {
            ledger: 5,
            entry: 6,
            batch: 0,
        },
        after: true,
        applied: Tso::from_millis(1_700_000_000_000),
        sent: Tso::from_millis(1_700_000_000_000),
    };
    let object = CollectionObject {
        source: CollectionId(445_811_557_825_249_939),
        database: "default".to_owned(),
        name: "a".to_owned(),
        from: None,
        renamed: None,
        renaming: None,
        in_between: false,
        created: Tso::from_millis(1_700_000_000_000),
        phase: ObjectPhase::Live,
        target: Some(CollectionId(7)),
        target_vchannels: Vec::new(),
        dropped_shards: Vec::new(),
        properties: Default::default(),
    };
    let changes = vec![
        Change::PutCollection {
            task: TaskId::new(TASK),
            object,
        },
        Change::PutChannel {
            task: TaskId::new(TASK),
            channel,
            progress,
            clean: true,
        },
    ];
    store.commit(changes).await.unwrap();
    backend.release(&term).await.unwrap();
}

/// Of the source there is an etcd with some metadata, and no queue: tasks wait for it, and a new one is refused.
pub(crate) async fn starts_the_program_which_answers_as_documented(place: &mut Place) {
    let etcd = place.server.as_ref().unwrap().url();
    let (port, pulsar) = (free_port().unwrap(), free_port().unwrap());
    let address = format!("127.0.0.1:{port}");
    let text = go_file(&etcd, &address, pulsar);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cdc.yaml");
    std::fs::write(&file, &text).unwrap();
    let config = Config::parse(&text, "cdc.yaml", &|_| None).unwrap();
    leave_a_task(&config).await;
    let mut client = Client::connect([etcd], None).await.unwrap();
    client
        .put("by-dev/meta/root-coord/database/db-info/1", "", None)
        .await
        .unwrap();

    let program = Program::start(&file, &address).await;
    let one = json!({ "task_id": TASK });
    // In the order of doc/cdc-usage.md, its bodies as they are; `position` is in the sources only.
    for (kind, data) in [
        ("pause", Some(one.clone())),
        ("get", Some(one.clone())),
        ("resume", Some(one.clone())),
        ("get", Some(one.clone())),
        ("list", None),
        ("position", Some(one.clone())),
    ] {
        let (status, answer) = program.ask(kind, data).await;
        assert_eq!((status, &answer["code"]), (200, &json!(200)), "{answer}");
        check_answer(kind, &answer);
        assert!(!answer.to_string().contains("hush"), "{answer}");
        match kind {
            "list" => assert_eq!(answer["data"]["tasks"][0]["task_id"], TASK),
            "get" => assert_eq!(answer["data"]["task"]["task_id"], TASK),
            "position" => assert_eq!(
                answer["data"]["positions"][0]["channel_name"],
                "by-dev-rootcoord-dml_0"
            ),
            _ => {}
        }
    }
    let create = json!({
        "milvus_connect_param": { "uri": "http://localhost:19530", "token": "root:Milvus", "connect_timeout": 10 },
        "collection_infos": [{ "name": "*" }],
    });
    let (status, answer) = program.ask("create", Some(create)).await;
    assert_eq!(status, 503, "{answer}");
    let fixture = fixture();
    compare(&fixture, &fixture["envelope"], &answer, "create");
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains(&pulsar.to_string()) && !message.contains("root:Milvus"),
        "{message}"
    );
    let (status, answer) = program.ask("delete", Some(one.clone())).await;
    assert_eq!(status, 200, "{answer}");
    check_answer("delete", &answer);
    let (status, answer) = program.ask("get", Some(one)).await;
    assert_eq!(status, 404, "{answer}");
    compare(&fixture, &fixture["envelope"], &answer, "get");
    let (status, answer) = program.ask("list", None).await;
    assert_eq!((status, &answer["data"]["tasks"]), (200, &json!([])));
    assert!(!program.said().contains("hush"));
    assert_eq!(program.stop().await, Some(0));
}
