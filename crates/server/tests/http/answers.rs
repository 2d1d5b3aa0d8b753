//! Resume with answers for collections that wait for a person.

use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::task::{Choice, CollectionState, OnConflict};
use cdc_core::tso::Tso;
use milvus_cdc::request::encode_position;
use serde_json::{Value, json};

use crate::server::{Server, collection, start, wanted};

fn conflict() -> CollectionState {
    CollectionState::Conflict {
        problem: Problem::new(ErrorClass::Conflict, "it is there", "choose"),
        choices: vec!["adopt".to_owned(), "recreate".to_owned()],
    }
}

fn lost() -> CollectionState {
    CollectionState::PositionLost {
        channel: PChannel::new("ch"),
        wanted: "5".to_owned(),
        first: Some("9".to_owned()),
        last: None,
        choices: vec![],
    }
}

fn streaming() -> CollectionState {
    CollectionState::Streaming {
        lag_seconds: 0.1,
        raised: false,
    }
}

fn waiting() -> CollectionState {
    CollectionState::Waiting { why: String::new() }
}

async fn with_task(path: &std::path::Path) -> (Server, String) {
    let server = start(path, true).await;
    let id = server.create(wanted("*")).await;
    (server, id)
}

fn resume(id: &str, collections: Value) -> Value {
    json!({"task_id": id, "collections": collections})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_waits_until_its_collection_asks() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = with_task(&dir.path().join("s.db")).await;
    *server.fake.collections.lock() = vec![collection(1, "db", "a", waiting())];
    server.granted("pause", json!({"task_id": id})).await;
    let fake = server.fake.clone();
    let later = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        *fake.collections.lock() = vec![
            collection(1, "db", "a", conflict()),
            collection(2, "default", "b", lost()),
        ];
    });
    let answers = json!([{"db": "db", "name": "a", "on_conflict": "adopt"}, {"name": "b", "start": "snapshot"}]);
    server.granted("resume", resume(&id, answers)).await;
    later.await.unwrap();
    let chosen = server.fake.chosen.lock().clone();
    assert_eq!(
        chosen,
        [
            (
                "db".to_owned(),
                "a".to_owned(),
                Choice::Conflict(OnConflict::Adopt)
            ),
            ("default".to_owned(), "b".to_owned(), Choice::Snapshot),
        ]
    );
    let task = server.granted("get", json!({"task_id": id})).await;
    let history = task["task"]["history"].to_string();
    assert!(
        history.contains("answered") && history.contains("db.a"),
        "{history}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_answers_are_checked_before_one_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = with_task(&dir.path().join("s.db")).await;
    *server.fake.collections.lock() = vec![
        collection(1, "default", "a", conflict()),
        collection(2, "default", "b", streaming()),
        collection(3, "default", "l", lost()),
        collection(4, "default", "w", waiting()),
        collection(5, "default", "gone", CollectionState::Dropped),
    ];
    let position = encode_position(&PChannel::new("ch"), &Position::Natsmq(9), Tso::ZERO);
    for (second, part) in [
        (
            json!({"name": "b", "skip": true}),
            "default.b is Streaming and waits for no answer",
        ),
        (
            json!({"name": "l", "skip": true}),
            "default.l is PositionLost and takes start: earliest, now or snapshot",
        ),
        (json!({"name": "w", "skip": true}), "default.w is Waiting"),
        (
            json!({"name": "gone", "skip": true}),
            "no collection default.gone",
        ),
        (
            json!({"name": "x", "skip": true}),
            "no collection default.x",
        ),
        (
            json!({"name": "l", "positions": {"ch_7v0": position}}),
            "of collection 7, default.l is 3",
        ),
    ] {
        let answers = json!([{"name": "a", "on_conflict": "recreate"}, second]);
        let message = server.refused("resume", resume(&id, answers), 409).await;
        assert!(
            message.contains(part) && message.contains("no answer was applied"),
            "{part} in {message}"
        );
    }
    assert!(server.fake.chosen.lock().is_empty());
    // Whether a failing collection stands before a message that can be skipped, only the task knows.
    let failing = CollectionState::Failing {
        problem: Problem::new(ErrorClass::Data, "refused", ""),
        attempt: 1,
        since: std::time::SystemTime::UNIX_EPOCH,
    };
    *server.fake.collections.lock() = vec![collection(6, "default", "f", failing)];
    let answers = json!([{"name": "f", "skip": true}]);
    server.granted("resume", resume(&id, answers)).await;
    assert_eq!(server.fake.chosen.lock().pop().unwrap().2, Choice::Skip);
    // The same name twice: the one that is dropped does not count, and positions go to whom they belong.
    *server.fake.collections.lock() = vec![
        collection(2, "default", "l", CollectionState::Dropped),
        collection(3, "default", "l", lost()),
    ];
    let answers = json!([{"name": "l", "positions": {"ch_3v0": position}}]);
    server.granted("resume", resume(&id, answers)).await;
    assert!(matches!(server.fake.chosen.lock()[0].2, Choice::At(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_applied_is_never_called_done() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = with_task(&dir.path().join("s.db")).await;
    *server.fake.collections.lock() = vec![
        collection(1, "default", "a", conflict()),
        collection(2, "default", "b", conflict()),
    ];
    let answers =
        json!([{"name": "a", "on_conflict": "adopt"}, {"name": "b", "on_conflict": "adopt"}]);
    server.fake.lose_choice.lock().insert("b".to_owned());
    let message = server
        .refused("resume", resume(&id, answers.clone()), 503)
        .await;
    for part in [
        "applied: default.a;",
        "not applied: default.b",
        "may or may not",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(!message.contains("nothing was changed"), "{message}");
    server.fake.lose_choice.lock().clear();
    let no = Problem::new(ErrorClass::Conflict, "too late", "");
    server.fake.refuse_choice.lock().insert("b".to_owned(), no);
    let message = server.refused("resume", resume(&id, answers), 409).await;
    assert!(
        message.contains("not applied: default.b: too late"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_answer_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = with_task(&dir.path().join("s.db")).await;
    let answers = json!([{"name": "x", "skip": true}]);
    let waits = server.refused("resume", resume(&id, answers), 409);
    let pauses = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        tokio::time::timeout(
            Duration::from_millis(200),
            server.granted("pause", json!({"task_id": id})),
        )
        .await
        .unwrap()
    };
    let (message, _) = tokio::join!(waits, pauses);
    assert!(message.contains("does not run any more"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_wrong_form_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = with_task(&dir.path().join("s.db")).await;
    for (answers, part) in [
        (json!([{"skip": true}]), "collections[0].name: missing"),
        (json!([{"name": "a"}]), "exactly one answer"),
        (
            json!([{"name": "a", "skip": true, "start": "now"}]),
            "exactly one answer",
        ),
        (
            json!([{"name": "a", "on_conflict": "ask"}]),
            "one of adopt, recreate",
        ),
        (
            json!([{"name": "a", "start": "created"}]),
            "one of earliest, now",
        ),
        (
            json!([{"name": "a", "positions": {"ch": "x"}}]),
            "no virtual channel",
        ),
        (
            json!([{"name": "a", "skip": true}, {"name": "a", "start": "now"}]),
            "answered twice",
        ),
        (
            json!([{"name": "a", "skip": true, "why": 1}]),
            "collections[0].why: unknown",
        ),
        (json!({}), "collections: a list expected"),
    ] {
        let message = server.refused("resume", resume(&id, answers), 400).await;
        assert!(message.contains(part), "{part} in {message}");
    }
}
