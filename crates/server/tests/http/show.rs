//! What get, list, position and the metrics say of tasks with real content.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::position::Position;
use cdc_core::store::{Change, CollectionObject, ObjectPhase, Progress, ProgressStore};
use cdc_core::task::{ChannelPosition, CollectionState, LastError};
use cdc_core::tso::Tso;
use milvus_cdc::request::encode_position;
use milvus_cdc::store::{Desired, StoredTask, TaskStore, TaskWrite};
use serde_json::{Value, json};

use crate::server::{Server, collection, open, request, start, wanted};
use cdc_core::source::reach::Held;

const NOW: Tso = Tso::from_millis(1_700_000_000_000);

fn problem(class: ErrorClass) -> Problem {
    Problem::new(class, "cause", "way out")
}

fn every_state() -> Vec<CollectionState> {
    vec![
        CollectionState::Waiting {
            why: "being made".to_owned(),
        },
        CollectionState::Streaming {
            lag_seconds: 2.5,
            raised: true,
        },
        CollectionState::Failing {
            problem: problem(ErrorClass::Transient),
            attempt: 3,
            since: SystemTime::UNIX_EPOCH + Duration::from_millis(77),
        },
        CollectionState::Conflict {
            problem: problem(ErrorClass::Conflict),
            choices: vec!["adopt".to_owned(), "recreate".to_owned()],
        },
        CollectionState::PositionLost {
            channel: PChannel::new("ch"),
            wanted: "5".to_owned(),
            first: Some("9".to_owned()),
            last: None,
            choices: vec!["earliest".to_owned()],
        },
        CollectionState::Quarantined {
            problem: problem(ErrorClass::Data),
            channel: PChannel::new("ch"),
            position: "8".to_owned(),
        },
        CollectionState::Dropped,
    ]
}

/// Stored: the channel at 20, collection 2 (streaming), collection 5 (lost) on its own at 5, collection 9 dropped, a
/// note about collection 6.
async fn fill(server: &Server, id: &str) {
    let task = TaskId::new(id);
    let at = |n| Progress {
        position: Position::Natsmq(n),
        after: false,
        applied: NOW,
        sent: NOW,
    };
    let object = |source, name: &str, phase| Change::PutCollection {
        task: task.clone(),
        object: CollectionObject {
            source: CollectionId(source),
            database: "db".to_owned(),
            name: name.to_owned(),
            from: None,
            renamed: None,
            renaming: None,
            in_between: false,
            created: NOW,
            phase,
            target: Some(CollectionId(1000 + source)),
            target_vchannels: vec![],
            dropped_shards: vec![],
            properties: Default::default(),
        },
    };
    let changes = vec![
        Change::PutChannel {
            task: task.clone(),
            channel: PChannel::new("ch"),
            progress: at(20),
            clean: false,
        },
        object(2, "c1", ObjectPhase::Live),
        object(5, "c4", ObjectPhase::Live),
        object(9, "old", ObjectPhase::Dropped),
        Change::PutDetached {
            task: task.clone(),
            channel: PChannel::new("ch"),
            collection: CollectionId(5),
            progress: at(5),
        },
        Change::PutNote {
            task: task.clone(),
            collection: CollectionId(6),
            note: r#"{"database": "db", "name": "c5", "waits": true}"#.to_owned(),
        },
        Change::PutReplicate {
            task: task.clone(),
            position: Position::Natsmq(3),
        },
    ];
    server.store.commit(changes).await.unwrap();
}

fn position(collection: i64, channel: &str, n: u64, applied: Tso) -> Value {
    json!({
        "collection_id": collection, "channel_name": channel, "time": applied.millis(), "tt": applied.0,
        "msg_id": encode_position(&PChannel::new(channel), &Position::Natsmq(n), applied),
    })
}

pub(crate) async fn filled(path: &std::path::Path) -> (Server, String) {
    let server = start(path, true).await;
    let mut fields = json!({
        "collection_infos": [{"name": "a", "start": "now"}, {"name": "db.*"}],
        "db_collections": {"db2": [{"name": "*", "use_start_position": true}]},
    });
    fields["milvus_connect_param"] = json!({
        "host": "Target", "port": 19530, "username": "root", "password": "hush-hush", "connect_timeout": 7, "channel_num": 3,
    });
    let id = server.create(request(fields)).await;
    fill(&server, &id).await;
    let states = every_state().into_iter().enumerate();
    let mut all: Vec<_> = states
        .map(|(i, state)| collection(i as i64 + 1, "db", &format!("c{i}"), state))
        .collect();
    let here = ChannelPosition {
        position: Position::Natsmq(21),
        applied: NOW,
        durable: None,
    };
    all[1].positions = BTreeMap::from([(PChannel::new("ch"), here)]);
    all[2].last_error = Some(LastError {
        at: SystemTime::UNIX_EPOCH + Duration::from_millis(78),
        problem: problem(ErrorClass::Transient),
    });
    *server.fake.collections.lock() = all;
    (server, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_has_the_fields_of_the_go_server() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    let get = server.granted("get", json!({"task_id": id})).await;
    let list = server.granted("list", json!({})).await;
    for task in [&get["task"], &list["tasks"][0]] {
        assert_eq!(task["task_id"], json!(id));
        assert_eq!(
            task["milvus_connect_param"],
            json!({
                "uri": "http://target:19530", "host": "Target", "port": 19530, "enable_tls": false, "dial_config": {},
                "channel_num": 3, "ignore_partition": false, "connect_timeout": 7,
            })
        );
        assert_eq!(
            task["kafka_connect_param"],
            json!({"address": "", "topic": "", "enable_sasl": false, "sasl": {}})
        );
        assert_eq!(
            task["collection_infos"],
            json!([
                {"name": "a", "positions": {}, "use_start_position": false, "start": "now"},
                {"name": "db.*", "positions": {}, "use_start_position": false},
            ])
        );
        assert_eq!(
            task["db_collections"],
            json!({"db2": [{"name": "*", "positions": {}, "use_start_position": true}]})
        );
        assert_eq!(task["state"], "Running");
        assert!(task.get("reason").is_none());
        assert!(!task.to_string().contains("hush"), "{task}");
    }
    server.granted("pause", json!({"task_id": id})).await;
    let get = server.granted("get", json!({"task_id": id})).await;
    assert_eq!(get["task"]["state"], "Paused");
    assert_eq!(get["task"]["reason"], "paused by a request");
    // A cluster-level task says so too.
    let mut all = wanted("*");
    all["milvus_connect_param"]["uri"] = json!("other:1");
    let all = server.create(all).await;
    let get = server.granted("get", json!({"task_id": all})).await;
    assert_eq!(get["task"]["collection_infos"][0]["name"], "*");
    assert_eq!(get["task"]["db_collections"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_shows_every_collection() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    let get = server.granted("get", json!({"task_id": id})).await;
    let task = &get["task"];
    let shown = task["collections"].as_array().unwrap();
    let states: Vec<_> = shown.iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert_eq!(
        states,
        [
            "Waiting",
            "Streaming",
            "Failing",
            "Conflict",
            "PositionLost",
            "Quarantined",
            "Dropped"
        ]
    );
    for (i, c) in shown.iter().enumerate() {
        assert_eq!(
            (&c["collection_id"], &c["db"], &c["name"], &c["rows"]),
            (
                &json!(i + 1),
                &json!("db"),
                &json!(format!("c{i}")),
                &json!(11)
            )
        );
    }
    let shown_problem = json!({"class": "transient", "message": "cause", "hint": "way out"});
    assert_eq!(shown[0]["detail"], json!({"why": "being made"}));
    assert_eq!(shown[1]["lag_seconds"], json!(2.5));
    // What waits or fails lags too; what is dropped does not.
    assert_eq!(shown[4]["lag_seconds"], json!(40.5));
    assert_eq!(shown[6]["lag_seconds"], Value::Null);
    assert_eq!(shown[1]["positions"], json!([position(2, "ch", 21, NOW)]));
    assert_eq!(
        shown[2]["detail"],
        json!({"problem": shown_problem, "attempt": 3, "since": 77})
    );
    assert_eq!(
        shown[2]["last_error"],
        json!({"at": 78, "class": "transient", "message": "cause", "hint": "way out"})
    );
    assert_eq!(shown[3]["detail"]["choices"], json!(["adopt", "recreate"]));
    assert_eq!(
        shown[4]["detail"],
        json!({"channel": "ch", "wanted": "5", "first": "9", "last": null, "choices": ["earliest"]})
    );
    // It is held: its place is where it is stored.
    assert_eq!(shown[4]["positions"], json!([position(5, "ch", 5, NOW)]));
    assert_eq!(shown[5]["detail"]["position"], "8");
    assert_eq!(
        (&task["lag_seconds"], &task["checkpoint_age_seconds"]),
        (&json!(1.5), &json!(0.25))
    );
    assert_eq!(task["counters"]["rows_out"], 7);
    assert_eq!(task["errors"], json!({"transient": 3}));
    assert_eq!(task["positions"], json!([position(0, "ch", 20, NOW)]));
    assert_eq!(task["history"][0]["kind"], "created");

    let position_answer = server.granted("position", json!({"task_id": id})).await;
    assert_eq!(
        position_answer,
        json!({
            "positions": [position(2, "ch", 21, NOW), position(5, "ch", 5, NOW), position(-10, "r", 3, Tso::ZERO)],
            "op_positions": [], "target_positions": [],
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_task_shows_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    server.granted("pause", json!({"task_id": id})).await;
    let get = server.granted("get", json!({"task_id": id})).await;
    let task = &get["task"];
    let note = json!({"database": "db", "name": "c5", "waits": true});
    assert_eq!(
        task["collections"],
        json!([
            {"collection_id": 2, "db": "db", "name": "c1", "state": "Paused", "detail": {"phase": "live", "note": null}, "positions": []},
            {"collection_id": 5, "db": "db", "name": "c4", "state": "Paused", "detail": {"phase": "live", "note": null},
             "positions": [position(5, "ch", 5, NOW)]},
            {"collection_id": 6, "db": "db", "name": "c5", "state": "Paused", "detail": {"phase": null, "note": note}, "positions": []},
            {"collection_id": 9, "db": "db", "name": "old", "state": "Dropped", "detail": {"phase": "dropped", "note": null}, "positions": []},
        ])
    );
    assert!(task["lag_seconds"].as_f64().unwrap() > 1_000_000.0);
    let shown = server.granted("position", json!({"task_id": id})).await;
    assert_eq!(
        shown["positions"],
        json!([
            position(0, "ch", 20, NOW),
            position(5, "ch", 5, NOW),
            position(-10, "r", 3, Tso::ZERO)
        ])
    );
}

/// Name and labels to value; the labels in their order of writing.
fn scrape(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_say_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let (server, id) = filled(&path).await;
    let mut other = wanted("x");
    other["milvus_connect_param"]["uri"] = json!("other:1");
    let paused = server.create(other).await;
    fill(&server, &paused).await;
    server.granted("pause", json!({"task_id": paused})).await;
    let (status, text) = server.send("GET", "/cdc/metrics", b"").await;
    assert_eq!(status, 200);
    let found = scrape(&text);
    let of = |name: &str, task: &str, more: &str| {
        found
            .get(&format!("milvus_cdc_{name}{{task_id=\"{task}\"{more}}}"))
            .copied()
    };
    for (name, value) in [
        ("task_running", 1.0),
        ("messages_in_total", 5.0),
        ("bytes_in_total", 500.0),
        ("messages_out_total", 4.0),
        ("rows_out_total", 7.0),
        ("bytes_out_total", 400.0),
        ("in_flight_bytes", 99.0),
        ("lag_seconds", 1.5),
        ("durable_lag_seconds", 2.5),
        ("checkpoint_age_seconds", 0.25),
    ] {
        assert_eq!(of(name, &id, ""), Some(value), "{name} in {text}");
    }
    assert_eq!(of("errors_total", &id, ",class=\"transient\""), Some(3.0));
    for state in [
        "Waiting",
        "Streaming",
        "Failing",
        "Conflict",
        "PositionLost",
        "Quarantined",
        "Dropped",
    ] {
        let label = format!(",state=\"{state}\"");
        assert_eq!(
            of("collections", &id, &label),
            Some(1.0),
            "{state} in {text}"
        );
    }
    assert_eq!(of("task_running", &paused, ""), Some(0.0));
    assert_eq!(of("collections", &paused, ",state=\"Paused\""), Some(3.0));
    assert_eq!(of("collections", &paused, ",state=\"Dropped\""), Some(1.0));
    assert!(of("lag_seconds", &paused, "").unwrap() > 1_000_000.0);
    assert_eq!(found.get("milvus_cdc_tasks_unreadable"), Some(&0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_says_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let id = server.create(wanted("c")).await;
    let state = CollectionState::Snapshotting {
        rows_copied: 30,
        rows_total: 100,
        rows_per_second: 10.0,
        eta_seconds: Some(7.0),
        queue_keeps_seconds: Some(3600.0),
        doubled_keys: 2,
        step: "copies".to_owned(),
    };
    *server.fake.collections.lock() = vec![collection(1, "db", "c", state)];
    let get = server.granted("get", json!({"task_id": id})).await;
    let c = &get["task"]["collections"][0];
    assert_eq!(c["state"], "Snapshotting");
    assert_eq!(
        c["detail"],
        json!({
            "rows_copied": 30, "rows_total": 100, "rows_per_second": 10.0, "eta_seconds": 7.0, "queue_keeps_seconds": 3600.0,
            "doubled_keys": 2,
            "step": "copies",
        })
    );
    let path = format!("/api/v1/tasks/{id}/collections");
    let (status, text) = server.send("GET", &path, b"").await;
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains("Snapshotting") && text.contains("rows_copied"),
        "{text}"
    );
    let (_, text) = server.send("GET", "/cdc/metrics", b"").await;
    let found = scrape(&text);
    for (rows, n) in [("copied", 30.0), ("left", 70.0)] {
        let name = format!(
            "milvus_cdc_snapshot_rows{{task_id=\"{id}\",collection=\"db.c\",rows=\"{rows}\"}}"
        );
        assert_eq!(found.get(&name), Some(&n), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let good = server.create(wanted("a")).await;
    let broken = StoredTask {
        id: TaskId::new("broken"),
        spec: r#"{"uri": "u", "token": ["hush"]}"#.to_owned(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    };
    let create = vec![TaskWrite::Create(broken)];
    server.store.write_tasks(create).await.unwrap();
    server.tasks.shut_down(Duration::from_secs(1)).await;
    drop(server);

    let server = start(&path, true).await;
    let running: Vec<_> = server.fake.running.lock().keys().cloned().collect();
    assert_eq!(running, [TaskId::new(good.as_str())]);
    let get = server.granted("get", json!({"task_id": "broken"})).await;
    let list = server.granted("list", json!({})).await;
    for task in [&get["task"], &list["tasks"][1]] {
        assert_eq!(
            (&task["task_id"], &task["state"]),
            (&json!("broken"), &json!("Failed"))
        );
        let reason = task["reason"].as_str().unwrap();
        assert!(
            reason.contains("unreadable at column") && !reason.contains("hush"),
            "{reason}"
        );
    }
    for kind in ["pause", "resume", "position"] {
        let message = server
            .refused(kind, json!({"task_id": "broken"}), 409)
            .await;
        assert!(message.contains("cannot be read"), "{message}");
    }
    let mut same = wanted("b");
    same["task_id"] = json!("broken");
    server.refused("create", same, 409).await;
    let (_, text) = server.send("GET", "/cdc/metrics", b"").await;
    assert_eq!(scrape(&text)["milvus_cdc_tasks_unreadable"], 1.0);
    // It counts as a task (two are allowed), and is gone for good once deleted.
    server.refused("create", wanted("b"), 409).await;
    server.granted("delete", json!({"task_id": "broken"})).await;
    server
        .refused("get", json!({"task_id": "broken"}), 404)
        .await;
    server.create(wanted("b")).await;
    server.tasks.shut_down(Duration::from_secs(1)).await;
    drop(server);
    assert_eq!(open(&path).await.tasks().await.unwrap().len(), 2);
}

/// A task that has not seen its source or target yet, and one of which nothing is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_lag_that_is_not_known_is_that_of_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    *server.fake.lag.lock() = None;
    server.fake.collections.lock().clear();
    let get = server.granted("get", json!({"task_id": id})).await;
    let stored = get["task"]["lag_seconds"].as_f64().unwrap();
    assert!(stored > 1_000_000.0, "{stored}");
    let path = format!("/api/v1/tasks/{id}");
    let (_, shown) = server.send("GET", &path, b"").await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let shown = shown["progress"]["lag_seconds"].as_f64().unwrap();
    assert!(shown >= stored && shown < stored + 60.0, "{shown}");
    let (_, text) = server.send("GET", "/cdc/metrics", b"").await;
    let line = format!("milvus_cdc_lag_seconds{{task_id=\"{id}\"}}");
    assert!(scrape(&text)[&line] >= stored);

    // Nothing is stored either: not known, which is not 0.
    let mut other = wanted("x");
    other["milvus_connect_param"]["uri"] = json!("other:1");
    let fresh = server.create(other).await;
    let get = server.granted("get", json!({"task_id": fresh})).await;
    assert_eq!(get["task"]["lag_seconds"], Value::Null);
    let (_, text) = server.send("GET", "/cdc/metrics", b"").await;
    let line = format!("milvus_cdc_lag_seconds{{task_id=\"{fresh}\"}}");
    assert_eq!(scrape(&text).get(&line), None);
}

/// How far what a task needs is from falling out of the queue: of a running and of a paused task.
#[tokio::test(flavor = "multi_thread")]
async fn the_headroom_in_the_queue_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    let task = TaskId::new(id.as_str());
    // NOW is where the channel and one collection go on; the target has flushed up to a minute before.
    let durable = NOW.millis() - 60_000;
    let point =
        |ms| json!({"position": {"natsmq": 3}, "after": true, "applied": Tso::from_millis(ms)});
    let note = json!({"nodes": null, "channels": {"ch": point(durable), "gone": point(durable)}, "own": []});
    let note = Change::PutNote {
        task,
        collection: CollectionId(-4),
        note: note.to_string(),
    };
    server.store.commit(vec![note]).await.unwrap();
    let path = format!("/api/v1/tasks/{id}");
    let queue = async || {
        let (_, shown) = server.send("GET", &path, b"").await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown["progress"]["queue"].clone()
    };
    assert_eq!(queue().await, json!([]), "the queue has not answered");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = now.unwrap().as_secs_f64() - NOW.millis() as f64 / 1000.0;
    for (retention, pause) in [(None, false), (Some(age + 3600.0), true)] {
        if pause {
            server.granted("pause", json!({"task_id": id})).await;
        }
        *server.fake.held.lock() = Some(Held {
            first: Some(Tso::from_millis(NOW.millis() - 200_000)),
            retention: retention.map(Duration::from_secs_f64),
        });
        let told = queue().await;
        let one = &told[0];
        assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
        assert_eq!(one["channel"], "ch");
        assert_eq!(one["first_at"], json!(NOW.millis() - 200_000));
        assert_eq!(one["applied"]["kept_seconds"], json!(200.0));
        assert_eq!(one["durable"]["kept_seconds"], json!(140.0));
        let (_, text) = server.send("GET", "/cdc/metrics", b"").await;
        let found = scrape(&text);
        let of = |name: &str, position: &str| {
            let labels = format!("task_id=\"{id}\",channel=\"ch\",position=\"{position}\"");
            found
                .get(&format!("milvus_cdc_queue_{name}_seconds{{{labels}}}"))
                .copied()
        };
        assert_eq!(of("kept", "applied"), Some(200.0));
        assert_eq!(of("kept", "durable"), Some(140.0));
        match retention {
            None => {
                assert_eq!(one["applied"]["left_seconds"], Value::Null);
                assert_eq!(of("left", "applied"), None);
            }
            Some(_) => {
                let left = one["applied"]["left_seconds"].as_f64().unwrap();
                assert!(left > 3500.0 && left <= 3600.0, "{left}");
                let less = one["durable"]["left_seconds"].as_f64().unwrap();
                assert!((left - less - 60.0).abs() < 1.0, "{less}");
                assert!(of("left", "durable").unwrap() <= less + 1.0);
            }
        }
    }
}
