//! A fail-over as a person with curl sees it, with a stand-in for source and target.

use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{PChannel, TargetKey};
use cdc_core::store::{Change, ProgressStore};
use cdc_core::task::Mode;
use cdc_core::tso::Tso;
use serde_json::{Value, json};

use super::server::{Server, UNREAD, request, start, wanted};

impl Server {
    async fn at(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let (status, text) = self.send(method, path, body.as_bytes()).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    /// Polls until the promotion is as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (_, shown) = self.at("GET", path, &Value::Null).await;
            if wanted(&shown) {
                return shown;
            }
            assert!(tokio::time::Instant::now() < end, "{shown}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A task whose target is a standby.
fn standby(name: &str) -> Value {
    let mut data = wanted(name);
    data["mode"] = json!("replicate");
    data
}

fn path(id: &str) -> String {
    format!("/api/v1/tasks/{id}/promote")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_promoted_by_hand_over_a_restart_and_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.db");
    let server = start(&file, true).await;
    let id = server.create(standby("a")).await;
    let other = server.create(standby("b")).await;
    let path = path(&id);
    assert_eq!(server.at("GET", &path, &Value::Null).await.0, 409);
    // What was sent lies ahead of the target's time.
    let floor = Tso::from_millis(5_000);
    let raise = Change::RaiseFloor {
        target: TargetKey::new("http://target:19530"),
        channel: PChannel::new("dml_3"),
        floor,
    };
    server.store.commit(vec![raise]).await.unwrap();
    *server.fake.time.lock() = Tso::from_millis(3_000);
    let (status, shown) = server.at("POST", &path, &Value::Null).await;
    assert_eq!((status, &shown["state"]), (202, &json!("promoting")));
    let shown = server.until(&path, |s| s["step"] == "target time").await;
    assert!(
        shown["text"].as_str().unwrap().contains("2.0 s before")
            && shown["text"].as_str().unwrap().contains("dml_3"),
        "{shown}"
    );
    // Both tasks write to it, so both are stopped.
    assert!(server.fake.running.lock().is_empty());
    for task in [&id, &other] {
        for kind in ["resume", "pause"] {
            let message = server.refused(kind, json!({ "task_id": task }), 409).await;
            assert!(message.contains("promoted"), "{message}");
        }
        let task = &server.granted("get", json!({ "task_id": task })).await["task"];
        assert_eq!(task["state"], "Promoting");
    }
    let message = server
        .refused("delete", json!({ "task_id": id }), 409)
        .await;
    assert!(message.contains("promoted"), "{message}");
    // Equal is not past.
    *server.fake.time.lock() = floor;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (_, shown) = server.at("GET", &path, &Value::Null).await;
    assert_eq!(shown["step"], "target time");
    *server.fake.time.lock() = floor.next();
    let shown = server.until(&path, |s| s["step"] == "switch").await;
    for part in ["config/common/ttMsgEnabled", "milvus.yaml"] {
        assert!(shown["hint"].as_str().unwrap().contains(part), "{shown}");
    }

    // Killed while it waits for the hand.
    server.tasks.shut_down(Duration::from_millis(10)).await;
    drop(server);
    let server = start(&file, true).await;
    assert!(server.fake.running.lock().is_empty(), "it never runs again");
    let (_, shown) = server.at("GET", &path, &Value::Null).await;
    assert_eq!(shown["state"], "interrupted");
    *server.fake.time.lock() = floor.next();
    server.at("POST", &path, &json!({})).await;
    server.until(&path, |s| s["step"] == "switch").await;
    let late = request(json!({"collection_infos": [{"name": "c"}]}));
    let message = server.refused("create", late, 409).await;
    assert!(message.contains("promoted"), "{message}");
    // It works only after a while.
    let not_yet = Problem::new(ErrorClass::Transient, "no tick yet", "");
    *server.fake.refuse_try.lock() = Some(not_yet);
    *server.fake.standby.lock() = false;
    server.until(&path, |s| s["text"] == "no tick yet").await;
    *server.fake.refuse_try.lock() = None;
    let shown = server.until(&path, |s| s["state"] == "promoted").await;
    assert!(
        shown["text"].as_str().unwrap().contains("7 row(s)"),
        "{shown}"
    );
    for task in [&id, &other] {
        let message = server
            .refused("resume", json!({ "task_id": task }), 409)
            .await;
        assert!(message.contains("for good"), "{message}");
        let task = &server.granted("get", json!({ "task_id": task })).await["task"];
        assert_eq!(task["state"], "Promoted");
    }
    // Again is no error, and its place is free.
    assert_eq!(
        server.at("POST", &path, &Value::Null).await.1["state"],
        "promoted"
    );
    server.granted("delete", json!({ "task_id": other })).await;
    server.create(standby("a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_targets_etcd_can_be_given_late_and_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    *server.fake.time.lock() = Tso::from_millis(1);
    let id = server.create(standby("a")).await;
    let path = path(&id);
    assert_eq!(
        server
            .at("POST", "/api/v1/tasks/nobody/promote", &Value::Null)
            .await
            .0,
        404
    );
    let (status, answer) = server
        .at("POST", &path, &json!({"target_etcd": {"address": 5}}))
        .await;
    assert!(
        status == 400
            && answer["detail"]
                .as_str()
                .unwrap()
                .contains("target_etcd.address"),
        "{answer}"
    );
    for (body, code) in [("{", "malformed_json"), ("[]", "invalid_request")] {
        let (status, text) = server.send("POST", &path, body.as_bytes()).await;
        assert!(status == 400 && text.contains(code), "{text}");
    }
    server.at("POST", &path, &Value::Null).await;
    server.until(&path, |s| s["step"] == "switch").await;
    // Given while it waits for a hand: it goes on with it, and ends where that cannot work.
    let wrong = Problem::new(
        ErrorClass::Configuration,
        "no Milvus below there",
        "give the root path",
    );
    *server.fake.refuse_switch.lock() = Some(wrong);
    let etcd =
        json!({"target_etcd": {"address": "http://h:1", "username": "u", "password": "hush-hush"}});
    let (_, shown) = server.at("POST", &path, &etcd).await;
    assert!(!shown.to_string().contains("hush"), "{shown}");
    let shown = server.until(&path, |s| s["state"] == "failed").await;
    assert!(
        shown["text"]
            .as_str()
            .unwrap()
            .contains("no Milvus below there"),
        "{shown}"
    );
    assert!(
        shown["hint"]
            .as_str()
            .unwrap()
            .contains("run promote again"),
        "{shown}"
    );
    *server.fake.refuse_switch.lock() = None;
    // One from which the target takes nothing is waited for, until another one is given.
    let unread = json!({"target_etcd": {"address": "http://h:1", "rootPath": UNREAD}});
    for _ in ["begun", "joined"] {
        server.at("POST", &path, &unread).await;
        let shown = server
            .until(&path, |s| {
                s["text"].as_str().unwrap().contains("the key is set")
            })
            .await;
        assert_eq!(
            (&shown["state"], &shown["step"]),
            (&json!("promoting"), &json!("switch"))
        );
    }
    server.at("POST", &path, &etcd).await;
    server.until(&path, |s| s["state"] == "promoted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_promotes_and_says_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    *server.fake.time.lock() = Tso::from_millis(1);
    let id = server.create(standby("a")).await;
    let path = path(&id);
    server.at("POST", &path, &Value::Null).await;
    server.until(&path, |s| s["step"] == "switch").await;
    // Another one takes over: nothing is done here any more, and nothing old is told.
    server.tasks.wait_for("the-other:8444");
    for method in ["GET", "POST"] {
        let (status, answer) = server.at(method, &path, &Value::Null).await;
        let message = answer["detail"].as_str().unwrap();
        assert!(
            status == 503 && message.contains("the-other:8444"),
            "{status} {answer}"
        );
    }
    *server.fake.standby.lock() = false;
    // To look is no change.
    let (status, report) = server.at("GET", "/api/v1/doctor", &Value::Null).await;
    assert!(
        status == 200
            && report
                .to_string()
                .contains("1 task(s), run by the-other:8444"),
        "{report}"
    );
    // It comes back: not by itself.
    server.tasks.recover().await.unwrap();
    let (_, shown) = server.at("GET", &path, &Value::Null).await;
    assert_eq!(shown["state"], "interrupted", "{shown}");
    server.at("POST", &path, &Value::Null).await;
    server.until(&path, |s| s["state"] == "promoted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_clients_writes_is_not_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let mut data = wanted("a");
    data["mode"] = json!("plain");
    let id = server.create(data).await;
    let (status, answer) = server.at("POST", &path(&id), &Value::Null).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer.to_string().contains("mode plain"), "{answer}");
    assert_eq!(server.spec(&id).target.mode, Mode::Plain, "it goes on");
    assert_eq!(server.at("GET", &path(&id), &Value::Null).await.0, 409);
}
