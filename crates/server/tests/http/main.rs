//! The HTTP interface through a real socket, with a stand-in for what carries the tasks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod answers;
mod cli;
mod create;
mod doubts;
mod edit;
mod events;
mod go;
#[path = "../support/go_shape.rs"]
mod go_shape;
mod limits;
mod promote;
mod quarantine;
mod repair;
mod select;
mod server;
mod show;
mod standing;
mod tls;
mod v1;

use std::time::{Duration, Instant};

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::TaskId;
use serde_json::json;

use server::{start, wanted};

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
        (
            r#"{"request_type": "maintenance"}"#,
            vec!["request_data.operation: missing"],
        ),
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
    for (field, value, part) in [
        (
            "collection_infos",
            json!("x"),
            "collection_infos: a list expected",
        ),
        (
            "collection_infos",
            json!([5]),
            "collection_infos[0]: an object expected, not 5",
        ),
        (
            "collection_infos",
            json!([{}]),
            "collection_infos[0].name: missing",
        ),
        (
            "collection_infos",
            json!([{"name": 5}]),
            "collection_infos[0].name: a string expected, not 5",
        ),
        (
            "collection_infos",
            json!([{"nam": "a"}]),
            "collection_infos[0].nam: unknown field",
        ),
        (
            "collection_infos",
            json!([{"name": "a", "positions": []}]),
            "positions: an object expected",
        ),
        (
            "collection_infos",
            json!([{"name": "a", "use_start_position": 1}]),
            "use_start_position: true or false",
        ),
        (
            "collection_infos",
            json!([{"name": "a.b.c"}]),
            "\"b.c\" is not a legal name",
        ),
        (
            "collection_infos",
            json!([{"name": "dddddddddddddddddd.a"}]),
            "maxNameLength allows 16",
        ),
        (
            "collection_infos",
            json!([{"name": "ä"}]),
            "not a legal name",
        ),
        (
            "db_collections",
            json!([]),
            "db_collections: an object expected",
        ),
        (
            "db_collections",
            json!({"dddddddddddddddddd": [{"name": "a"}]}),
            "maxNameLength allows 16",
        ),
        (
            "start",
            json!(5),
            "start: one of created, earliest, now expected, not 5",
        ),
        (
            "positions",
            json!("x"),
            "request_data.positions: an object expected",
        ),
        ("task_id", json!(5), "task_id: a string expected, not 5"),
        (
            "disable_auto_start",
            json!("no"),
            "disable_auto_start: true or false expected",
        ),
        (
            "extra",
            json!(1),
            "request_data.extra: unknown field; allowed here: buffer_config",
        ),
    ] {
        let mut request = wanted("a");
        request[field] = value;
        let message = server.refused("create", request, 400).await;
        assert!(message.contains(part), "{part} in {message}");
    }
    for (field, value, part) in [
        ("uri", json!(5), "uri: a string expected"),
        ("uri", json!("ftp://h:1"), "http://host:port"),
        (
            "port",
            json!(70_000),
            "port: a whole number from 0 to 65535 expected, not 70000",
        ),
        (
            "connect_timeout",
            json!(-1),
            "connect_timeout: a whole number from 0 to 300 expected, not -1",
        ),
        (
            "connect_timeout",
            json!(1.5),
            "connect_timeout: a whole number",
        ),
        (
            "enable_tls",
            json!("yes"),
            "enable_tls: true or false expected",
        ),
        ("token", json!(5), "token: a string expected"),
    ] {
        let mut request = wanted("a");
        request["milvus_connect_param"][field] = value;
        let message = server.refused("create", request, 400).await;
        assert!(message.contains(part), "{part} in {message}");
    }
    let lonely = json!({"milvus_connect_param": {"uri": "http://h:1", "username": "root"}, "collection_infos": [{"name": "a"}]});
    let message = server.refused("create", lonely, 400).await;
    assert!(message.contains("password: missing"), "{message}");
    for body in [
        &b"\xff\xfe"[..],
        b"",
        b"null",
        b"{\"request_type\": \"list\"} x",
    ] {
        assert_eq!(server.post(body).await.0, 400, "{body:?}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(server.post(deep).await.0, 400);
    assert_eq!(
        server.granted("list", json!({})).await["tasks"],
        json!([]),
        "something wrong was taken"
    );
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_who_does_not_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    server.create(wanted("a")).await;
    *server.fake.never_stops.lock() = true;
    let began = Instant::now();
    server.tasks.shut_down(Duration::from_millis(200)).await;
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
}
