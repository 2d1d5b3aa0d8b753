//! A task is edited: what is new is checked as at a creation, stored, and what runs goes on with it.

use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::position::Position;
use cdc_core::store::{Change, CollectionObject, ObjectPhase, ProgressStore};
use cdc_core::task::{OnConflict, Pattern, Selection, StartPoint, TaskSpec};
use cdc_core::tso::Tso;
use milvus_cdc::request::encode_position;
use milvus_cdc::store::TaskStore;
use serde_json::{Value, json};

use crate::server::{Server, start};

async fn made(server: &Server) -> TaskSpec {
    let body = json!({
        "id": "t",
        "target": {"uri": "http://target:19530", "token": "root:hush-old", "connect_timeout": 7},
        "collections": [{"name": "a", "start": "now"}],
    });
    let (status, task) = server.rest("POST", "/tasks", body).await;
    assert_eq!(status, 201, "{task}");
    server.spec("t")
}

async fn edit(server: &Server, body: Value) -> (u16, Value) {
    let (status, answer) = server.rest("PATCH", "/tasks/t", body).await;
    assert!(!answer.to_string().contains("hush"), "{answer}");
    (status, answer)
}

fn running(server: &Server) -> Option<TaskSpec> {
    server.fake.running.lock().get(&TaskId::new("t")).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_login_is_used_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let before = made(&server).await;
    let body = json!({"target": {"token": "root:hush-new", "uri": "http://TARGET:19530"}});
    let (status, task) = edit(&server, body).await;
    assert_eq!((status, &task["state"]), (200, &json!("running")), "{task}");
    let now = running(&server).unwrap();
    assert_eq!(now.target.token.expose(), "root:hush-new");
    let mut as_before = now.clone();
    as_before.target.token = before.target.token.clone();
    assert_eq!(as_before, before, "nothing but the login has changed");
    let body = json!({"target": {"username": "u", "password": "hush-3", "connect_timeout": 30}});
    let (status, task) = edit(&server, body).await;
    assert_eq!(
        (status, &task["target"]["connect_timeout"]),
        (200, &json!(30)),
        "{task}"
    );
    let now = running(&server).unwrap();
    assert_eq!(now.target.token.expose(), "u:hush-3");
    let (_, events) = server.rest("GET", "/tasks/t/events", Value::Null).await;
    let texts: Vec<&str> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["kind"] == "edited")
        .map(|e| e["text"].as_str().unwrap())
        .collect();
    assert_eq!(
        texts,
        [
            "http: the target's login",
            "http: the target's login, the target's connect_timeout"
        ]
    );
    // No login at all.
    let (status, _) = edit(&server, json!({"target": {"token": ""}})).await;
    assert_eq!(status, 200);
    assert_eq!(running(&server).unwrap().target.token.expose(), "");
    let (status, _) = edit(&server, json!({"target": {"token": "root:hush-new"}})).await;
    assert_eq!(status, 200);

    server.tasks.shut_down(Duration::from_secs(1)).await;
    drop(server);
    let server = start(&path, true).await;
    let again = running(&server).unwrap();
    assert_eq!(again.target.token.expose(), "root:hush-new");
    assert_eq!(again.target.connect_timeout, Duration::from_secs(30));
    assert_eq!(again.created, before.created);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_as_a_whole_and_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let authority = rcgen::generate_simple_self_signed(["t".to_owned()]).unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.cert.pem()).unwrap();
    let body = json!({
        "id": "t", "target": {"uri": "https://target:19530", "dial_config": {"server_name": "other"}},
        "collections": [{"name": "a"}],
    });
    assert_eq!(server.rest("POST", "/tasks", body).await.0, 201);
    let body = json!({"target": {"dial_config": {"ca_pem_path": ca}}});
    let (status, task) = edit(&server, body).await;
    assert_eq!(status, 200, "{task}");
    let tls = running(&server).unwrap().target.tls;
    assert_eq!((tls.trusted, tls.server_name), (Some(ca.clone()), None));
    let get = server.granted("get", json!({"task_id": "t"})).await;
    let param = &get["task"]["milvus_connect_param"];
    assert_eq!(param["dial_config"], json!({"ca_pem_path": ca}));
    let body =
        json!({"target": {"token": "root:hush", "dial_config": {"ca_pem_path": "/none/ca.pem"}}});
    let (status, problem) = edit(&server, body).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        status == 400 && detail.contains("target.dial_config.ca_pem_path"),
        "{problem}"
    );
    assert_eq!(running(&server).unwrap().target.tls.trusted, Some(ca));
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_are_added_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    made(&server).await;
    let other = json!({
        "id": "other", "target": {"uri": "http://target:19530"}, "collections": [{"database": "db", "name": "*"}],
    });
    assert_eq!(server.rest("POST", "/tasks", other).await.0, 201);
    let list = json!([{"name": "a"}, {"name": "b", "start": "earliest"}]);
    let (status, task) = edit(
        &server,
        json!({"collections": list, "on_conflict": "adopt"}),
    )
    .await;
    assert_eq!(
        (status, &task["collections"]),
        (
            200,
            &json!([
                {"database": "default", "name": "a", "start": "now"},
                {"database": "default", "name": "b", "start": "earliest"},
            ])
        ),
        "{task}"
    );
    let now = running(&server).unwrap();
    let both = [
        Pattern::exact("default", "a"),
        Pattern::exact("default", "b"),
    ];
    assert_eq!(now.selection, Selection::Collections(both.to_vec()));
    let added = now.added[&("default".to_owned(), "b".to_owned())];
    assert!(added >= now.created);
    assert_eq!(
        now.start_of("default", "b", added),
        StartPoint::Earliest,
        "it was there when its start was given"
    );
    assert_eq!(now.on_conflict, OnConflict::Adopt);
    for (list, status, said) in [
        (json!([]), 400, "collections: at least one"),
        (json!([{"name": "1st"}]), 400, "collections[0].name"),
        (
            json!([{"name": "a"}, {"name": "b"}, {"database": "db", "name": "c"}]),
            409,
            "task other carries some of these",
        ),
        (
            json!([{"database": "*", "name": "*"}]),
            409,
            "task other carries some of these",
        ),
        (
            json!([{"database": "*", "name": "*", "start": "now"}]),
            400,
            "start cannot be changed",
        ),
    ] {
        let (found, problem) = edit(&server, json!({"collections": list})).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(found == status && detail.contains(said), "{problem}");
    }
    // A pattern that holds what was named before.
    let list = json!([{"database": "default", "name": "*"}]);
    let (status, task) = edit(&server, json!({"collections": list})).await;
    assert_eq!(status, 200, "{task}");
    let whole = Selection::Collections(vec![Pattern::database("default")]);
    assert_eq!(running(&server).unwrap().selection, whole);
    // The list replaces the one before.
    let (status, task) = edit(&server, json!({"collections": [{"name": "b"}]})).await;
    assert_eq!(status, 200, "{task}");
    assert!(!running(&server).unwrap().selection.contains("default", "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_for_a_collection_that_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    made(&server).await;
    let object = CollectionObject {
        source: CollectionId(5),
        database: "default".to_owned(),
        name: "a".to_owned(),
        from: None,
        renamed: None,
        renaming: None,
        in_between: false,
        created: Tso(1),
        phase: ObjectPhase::Live,
        target: Some(CollectionId(6)),
        target_vchannels: Vec::new(),
        dropped_shards: Vec::new(),
        properties: Default::default(),
    };
    let task = TaskId::new("t");
    let met = vec![Change::PutCollection { task, object }];
    server.store.commit(met).await.unwrap();
    let place = |id: i64| {
        let channel = PChannel::new("ch");
        let text = encode_position(&channel, &Position::Natsmq(9), Tso(3));
        json!({ format!("ch_{id}v0"): text })
    };
    let with = |a: Value, b: Value| json!({"collections": [{"name": "a", "positions": a}, {"name": "b", "positions": b}]});
    let (status, problem) = edit(&server, with(place(5), json!({}))).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        status == 409 && detail.contains("carries already"),
        "{problem}"
    );
    let (status, task) = edit(&server, with(json!({}), place(7))).await;
    assert_eq!(status, 200, "{task}");
    let given = running(&server).unwrap().positions;
    assert_eq!(
        given[&CollectionId(7)][&PChannel::new("ch")].applied,
        Tso(3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let before = made(&server).await;
    let updated = server.rest("GET", "/tasks/t", Value::Null).await.1["updated_at"].clone();
    for (body, said) in [
        (json!({"id": "u"}), "id: cannot be changed"),
        (
            json!({"start": "now"}),
            "start: the task's start cannot be changed",
        ),
        (
            json!({"target": {"uri": "http://elsewhere:19530", "token": "hush"}}),
            "target.uri: cannot be changed from http://target:19530",
        ),
        (
            json!({"target": {"host": "target"}}),
            "target.host: cannot be changed",
        ),
        (
            json!({"target": {"port": 1}}),
            "target.port: cannot be changed",
        ),
        (
            json!({"target": {"enable_tls": true}}),
            "target.enable_tls: cannot be changed",
        ),
        (json!({"target": "hush"}), "target: an object expected"),
        (
            json!({"target": {"token": 5}}),
            "target.token: a string expected",
        ),
        (
            json!({"target": {"username": "u"}}),
            "target.password: missing",
        ),
        (
            json!({"target": {"connect_timeout": 301}}),
            "target.connect_timeout: a whole number from 0 to 300 expected, not 301",
        ),
        (
            json!({"target": {"dial_config": {"server_name": "t"}}}),
            "target.dial_config: contradicts http://target:19530",
        ),
        (
            json!({"target": {"tokn": "hush"}}),
            "target.tokn: unknown field",
        ),
        (
            json!({"on_conflict": "fly"}),
            "on_conflict: one of ask, adopt, recreate",
        ),
        (json!({"collections": 5}), "collections: a list expected"),
        (json!({"memory": 5}), "memory: unknown field"),
        (json!({}), "state: nothing to change"),
    ] {
        let (status, problem) = edit(&server, body).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            status == 400 && detail.contains(said),
            "{said} in {problem}"
        );
        assert_eq!(problem["code"], "invalid_request");
    }
    assert_eq!(running(&server), Some(before));
    let shown = server.rest("GET", "/tasks/t", Value::Null).await.1;
    assert_eq!(shown["updated_at"], updated);
    let (status, problem) = server
        .rest("PATCH", "/tasks/none", json!({"on_conflict": "adopt"}))
        .await;
    assert_eq!((status, &problem["code"]), (404, &json!("task_not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_does_not_take_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let before = made(&server).await;
    let problem = Problem::new(ErrorClass::Configuration, "no", "way out");
    *server.fake.refuse.lock() = Some(problem.with_code(ProblemCode::Login));
    let login = json!({"target": {"token": "root:hush-new"}});
    let (status, problem) = edit(&server, login.clone()).await;
    assert_eq!(
        (status, &problem["code"]),
        (422, &json!("login_refused")),
        "{problem}"
    );
    assert_eq!(running(&server), Some(before));
    // It is not asked for what is not about it.
    let more = json!({"collections": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(edit(&server, more).await.0, 200);
    *server.fake.refuse.lock() = None;
    assert_eq!(edit(&server, login).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_task_stays_paused_and_both_can_be_asked_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    made(&server).await;
    let body = json!({"state": "paused", "reason": "new login", "target": {"token": "hush-2"}});
    let (status, task) = edit(&server, body).await;
    assert_eq!(
        (status, &task["state"], &task["reason"]),
        (200, &json!("paused"), &json!("new login"))
    );
    assert_eq!(running(&server), None);
    let (status, task) = edit(&server, json!({"target": {"token": "hush-3"}})).await;
    assert_eq!((status, &task["state"]), (200, &json!("paused")), "{task}");
    assert_eq!(running(&server), None);
    let body = json!({"state": "running", "target": {"connect_timeout": 9}});
    let (status, task) = edit(&server, body).await;
    assert_eq!((status, &task["state"]), (200, &json!("running")), "{task}");
    let now = running(&server).unwrap().target;
    assert_eq!(now.token.expose(), "hush-3");
    assert_eq!(now.connect_timeout, Duration::from_secs(9));
    // The same again is no change, and nothing is started anew.
    server.fake.running.lock().clear();
    let (status, again) = edit(&server, json!({"target": {"connect_timeout": 9}})).await;
    assert_eq!((status, &again["updated_at"]), (200, &task["updated_at"]));
    assert_eq!(running(&server), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_edits_at_once_do_not_undo_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    made(&server).await;
    let edits = (0..8u64).map(|i| edit(&server, json!({"target": {"connect_timeout": 20 + i}})));
    let added = edit(
        &server,
        json!({"collections": [{"name": "a"}, {"name": "b"}]}),
    );
    let (answers, added) = tokio::join!(futures::future::join_all(edits), added);
    let mut fine = u64::from(added.0 == 200);
    for (status, answer) in answers.iter().chain([&added]) {
        let refused = *status == 409 && answer["detail"].to_string().contains("somebody else");
        assert!(*status == 200 || refused, "{answer}");
    }
    fine += answers.iter().filter(|(status, _)| *status == 200).count() as u64;
    let stored = server.store.events(&TaskId::new("t"), 50).await.unwrap();
    let edited = stored.iter().filter(|e| e.kind == "edited").count() as u64;
    assert_eq!(edited, fine, "{stored:?}");
    let both = Selection::Collections(vec![
        Pattern::exact("default", "a"),
        Pattern::exact("default", "b"),
    ]);
    assert_eq!(running(&server).unwrap().selection == both, added.0 == 200);
}
