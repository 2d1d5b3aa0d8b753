//! Messages that could not be carried: shown, tried again, left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::position::Position;
use cdc_core::quarantine::{Kept, Record, State};
use cdc_core::secret::Secret;
use cdc_core::store::{Change, ProgressStore};
use cdc_core::task::Verdict;
use milvus_cdc::config::access::{Access, ApiToken, Role};
use milvus_cdc::store::TaskStore;
use milvus_cdc::store::told::Told;
use serde_json::{Value, json};

use crate::cli;
use crate::server::{Server, access, start, start_with, wanted};

/// `MsgBase{msg_type: Insert, msgID: 5}`, then a field that is cut off.
const MESSAGE: [u8; 9] = [0x0a, 0x05, 0x08, 0x90, 0x03, 0x10, 0x05, 0x12, 0x7f];

fn record(collection: i64, state: State) -> Record {
    Record {
        collection: CollectionId(collection),
        database: "db".to_owned(),
        name: "a".to_owned(),
        channel: PChannel::new("ch"),
        position: Position::Natsmq(9),
        kind: Some("Insert".to_owned()),
        size: Some(MESSAGE.len() as u64),
        problem: Problem::new(ErrorClass::Data, "not a message of Milvus", "say drop"),
        since: 1_700_000_000_000,
        kept: Kept::Whole,
        state,
    }
}

async fn keep(server: &Server, id: &str, record: &Record) -> String {
    let task = TaskId::new(id);
    let key = record.key();
    let changes = vec![
        Change::PutMessagePart {
            task: task.clone(),
            message: record.message(),
            part: 0,
            bytes: Bytes::from_static(&MESSAGE),
        },
        Change::PutQuarantined {
            task,
            key: key.clone(),
            record: record.clone(),
        },
    ];
    server.store.commit(changes).await.unwrap();
    key
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_listed_and_shown_with_what_can_be_read_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let id = server.create(wanted("*")).await;
    let path = format!("/tasks/{id}/quarantine");
    let empty = server.rest("GET", &path, Value::Null).await;
    assert_eq!(empty, (200, json!({"items": [], "next": null})));
    let first = keep(&server, &id, &record(1, State::Waiting)).await;
    let dropped = State::Dropped {
        by: "ops".to_owned(),
        at: 7,
    };
    let second = Record {
        kept: Kept::Not("it is too large".to_owned()),
        ..record(2, dropped)
    };
    let second = keep(&server, &id, &second).await;
    let (_, list) = server.rest("GET", &path, Value::Null).await;
    let shown = json!({
        "key": first, "state": "waiting", "collection_id": "1", "database": "db", "name": "a", "channel": "ch",
        "position": "9", "kind": "Insert", "size": 9, "since": 1_700_000_000_000_u64,
        "error": {"class": "data", "message": "not a message of Milvus", "hint": "say drop"},
    });
    assert_eq!(list["items"][0], shown);
    assert_eq!(list["items"][1]["by"], "ops");
    assert_eq!(
        (&list["items"][1]["at"], &list["items"][1]["not_kept"]),
        (&json!(7), &json!("it is too large"))
    );
    let (_, page) = server
        .rest("GET", &format!("{path}?limit=1&after={first}"), Value::Null)
        .await;
    assert_eq!(page["items"][0]["key"], json!(second));

    let one = |key: &str, more: &str| format!("{path}/{key}{more}");
    let (_, whole) = server.rest("GET", &one(&first, ""), Value::Null).await;
    assert_eq!(whole["bytes"], json!(STANDARD.encode(MESSAGE)));
    assert_eq!(whole["header"]["msg_type"], 400);
    assert_eq!(whole["header"]["msg_id"], "5");
    let broken = whole["header"]["broken"].as_str().unwrap();
    assert!(broken.contains("middle of a field"), "{broken}");
    assert_eq!(whole["key"], json!(first));
    let (_, some) = server
        .rest("GET", &one(&first, "?bytes=3"), Value::Null)
        .await;
    assert_eq!(some["bytes"], json!(STANDARD.encode(&MESSAGE[..3])));
    let (_, not_kept) = server.rest("GET", &one(&second, ""), Value::Null).await;
    assert_eq!(
        (&not_kept["bytes"], &not_kept["header"]),
        (&Value::Null, &Value::Null)
    );

    for (more, part) in [
        ("?bytes=x", "bytes: a whole number"),
        ("?bytes=8388609", "0 to 8388608"),
        ("?limit=1", "limit: unknown"),
        ("?bytes=1&bytes=2", "given twice"),
    ] {
        let (status, answer) = server.rest("GET", &one(&first, more), Value::Null).await;
        assert!(
            status == 400 && answer["detail"].as_str().unwrap().contains(part),
            "{answer}"
        );
    }
    for (path, code) in [
        (one("1-0", ""), "message_not_found"),
        ("/tasks/nobody/quarantine".to_owned(), "task_not_found"),
        (
            format!("/tasks/nobody/quarantine/{first}"),
            "task_not_found",
        ),
    ] {
        let (status, answer) = server.rest("GET", &path, Value::Null).await;
        assert_eq!((status, &answer["code"]), (404, &json!(code)), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_is_handed_over_and_is_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let id = server.create(wanted("*")).await;
    let key = keep(&server, &id, &record(1, State::Waiting)).await;
    let one = |verdict: &str| format!("/tasks/{id}/quarantine/{key}/{verdict}");
    for (word, verdict) in [("retry", Verdict::Retry), ("drop", Verdict::Drop)] {
        let (status, answer) = server.rest("POST", &one(word), Value::Null).await;
        assert_eq!((status, &answer["key"]), (200, &json!(key)), "{answer}");
        let judged = server.fake.judged.lock().pop().unwrap();
        assert_eq!(judged, (key.clone(), verdict, "http".to_owned()));
    }
    let (_, events) = server
        .rest("GET", &format!("/tasks/{id}/events"), Value::Null)
        .await;
    let kinds: Vec<&str> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["created", "retried", "dropped"]);
    let text = events["items"][2]["text"].as_str().unwrap();
    assert!(text.contains("http: db.a") && text.contains(&key), "{text}");

    let why = Problem::new(ErrorClass::Conflict, "it does not wait", "see its state");
    *server.fake.refuse_verdict.lock() = Some(why);
    let (status, answer) = server.rest("POST", &one("drop"), Value::Null).await;
    assert_eq!(
        (status, &answer["detail"]),
        (409, &json!("it does not wait"))
    );
    *server.fake.refuse_verdict.lock() = None;
    let other = format!("/tasks/{id}/quarantine/1-0/drop");
    assert_eq!(server.rest("POST", &other, Value::Null).await.0, 404);
    server.granted("pause", json!({"task_id": id})).await;
    let (status, answer) = server.rest("POST", &one("drop"), Value::Null).await;
    assert!(status == 409 && answer["detail"].as_str().unwrap().contains("paused"));
    // It can be looked at all the same.
    let (status, _) = server
        .rest("GET", &format!("/tasks/{id}/quarantine/{key}"), Value::Null)
        .await;
    assert_eq!(status, 200);
    assert!(server.fake.judged.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_only_read_sees_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str, role| ApiToken {
        name: name.to_owned(),
        token: Secret::new(format!("{name}-0123456789abcdef")),
        role,
    };
    let access = Access {
        tokens: vec![token("reader", Role::Read), token("full", Role::Full)],
        ..access()
    };
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    let create =
        json!({"id": "t", "target": {"uri": "http://t:1"}, "collections": [{"name": "*"}]});
    let login = |name: &str| format!("Bearer {name}-0123456789abcdef");
    let ask = async |name: &str, method: &str, path: &str, body: &str| {
        let login = login(name);
        let headers = [
            ("Authorization", login.as_str()),
            ("Content-Type", "application/json"),
        ];
        let path = format!("/api/v1{path}");
        server
            .request(method, &path, &headers, body.as_bytes())
            .await
    };
    let made = ask("full", "POST", "/tasks", &create.to_string()).await;
    assert_eq!(made.status, 201, "{made:?}");
    let key = keep(&server, "t", &record(1, State::Waiting)).await;
    let path = format!("/tasks/t/quarantine/{key}");
    let read = ask("reader", "GET", &path, "").await.json();
    assert_eq!(
        (&read["bytes"], &read["header"]["msg_id"]),
        (&Value::Null, &json!("5"))
    );
    assert!(ask("full", "GET", &path, "").await.json()["bytes"].is_string());
    let judged = ask("reader", "POST", &format!("{path}/drop"), "").await;
    assert_eq!(judged.status, 403);
    let judged = ask("full", "POST", &format!("{path}/drop"), "").await;
    assert_eq!(judged.status, 200, "{judged:?}");
    assert_eq!(server.fake.judged.lock().pop().unwrap().2, "full");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let id = server.create(wanted("*")).await;
    let told = Told(std::sync::Arc::new(server.store.clone()));
    let task = TaskId::new(id.as_str());
    for state in [State::Waiting, State::Carried { at: 1 }] {
        let record = record(1, state);
        let change = Change::PutQuarantined {
            task: task.clone(),
            key: record.key(),
            record,
        };
        told.commit(vec![change]).await.unwrap();
    }
    let events = server.store.events(&task, 10).await.unwrap();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0].kind, "quarantined");
    assert!(events[0].text.contains("db.a") && events[0].text.contains("not a message of Milvus"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_saves_and_judges() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let id = server.create(wanted("*")).await;
    let key = keep(&server, &id, &record(1, State::Waiting)).await;
    let list = cli::task(&server, &["quarantine", "list", &id]).await;
    assert_eq!(list.code, 0, "{}", list.err);
    assert!(list.out.contains(&key) && list.out.contains("waiting") && list.out.contains("db.a"));
    let list = cli::task(&server, &["quarantine", "list", &id, "-o", "json"]).await;
    assert_eq!(list.json()[0]["key"], json!(key));
    let file = dir.path().join("message");
    let show = [
        "quarantine",
        "show",
        &id,
        &key,
        "--save",
        file.to_str().unwrap(),
    ];
    let shown = cli::task(&server, &show).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(shown.out.contains("its msg_id") && shown.out.contains("not a message of Milvus"));
    assert_eq!(std::fs::read(&file).unwrap(), MESSAGE);
    for (word, verdict) in [("retry", Verdict::Retry), ("drop", Verdict::Drop)] {
        let judged = cli::task(&server, &["quarantine", word, &id, &key]).await;
        assert_eq!(judged.code, 0, "{}", judged.err);
        assert_eq!(server.fake.judged.lock().pop().unwrap().1, verdict);
    }
    let none = cli::task(&server, &["quarantine", "drop", &id, "1-0"]).await;
    assert_eq!(none.code, 5, "{}", none.err);
}
