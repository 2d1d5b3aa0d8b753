//! The tasks as resources.

use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::task::{Choice, CollectionState, OnConflict};
use serde_json::{Value, json};

use crate::server::{Server, collection, start};
use crate::show::filled;

fn wanted(id: &str, name: &str) -> Value {
    json!({
        "id": id,
        "target": {"uri": "http://target:19530", "token": "root:hush-hush"},
        "collections": [{"name": name, "start": "now"}, {"database": "db", "name": "*"}],
        "start": "earliest",
    })
}

async fn task(server: &Server, id: &str) -> Value {
    let (status, task) = server
        .rest("GET", &format!("/tasks/{id}"), Value::Null)
        .await;
    assert_eq!(status, 200, "{task}");
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let body = wanted("t", "a").to_string();
    let json_body = [("Content-Type", "application/json")];
    let first = server
        .request("POST", "/api/v1/tasks", &json_body, body.as_bytes())
        .await;
    assert_eq!(
        (first.status, &first.headers["location"][..]),
        (201, "/api/v1/tasks/t")
    );
    let shown = first.json();
    assert_eq!(shown["id"], "t");
    assert_eq!(shown["state"], "running");
    assert_eq!(
        shown["target"],
        json!({"uri": "http://target:19530", "connect_timeout": 10})
    );
    assert_eq!(
        shown["collections"],
        json!([{"database": "default", "name": "a", "start": "now"}, {"database": "db", "name": "*"}])
    );
    assert_eq!(
        (&shown["start"], &shown["on_conflict"]),
        (&json!("earliest"), &json!("ask"))
    );
    assert!(!first.body.contains("hush"), "{first:?}");
    let again = server.rest("POST", "/tasks", wanted("t", "a")).await;
    assert_eq!(
        again,
        (201, shown.clone()),
        "the same request, another answer"
    );
    assert_eq!(server.tasks.list().len(), 1);
    for other in [
        wanted("t", "b"),
        json!({"id": "t", "target": {"uri": "http://target:1"}, "collections": [{"name": "a"}]}),
    ] {
        let (status, problem) = server.rest("POST", "/tasks", other).await;
        assert_eq!(
            (status, &problem["code"]),
            (409, &json!("conflict")),
            "{problem}"
        );
    }
    // The Go server's interface shows the same task.
    let get = server.granted("get", json!({"task_id": "t"})).await;
    assert_eq!(
        get["task"]["collection_infos"],
        json!([
            {"name": "default.a", "positions": {}, "use_start_position": false, "start": "now"},
            {"name": "db.*", "positions": {}, "use_start_position": false},
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_changed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let mut body = wanted("t", "a");
    body["id"] = Value::Null;
    let (status, made) = server.rest("POST", "/tasks", body).await;
    assert_eq!(status, 201);
    let id = made["id"].as_str().unwrap();
    assert_eq!(id.len(), 32, "an id of its own");
    let path = format!("/tasks/{id}");
    let change = async |body: Value| server.rest("PATCH", &path, body).await;
    let (status, paused) = change(json!({"state": "paused"})).await;
    assert_eq!(
        (status, &paused["state"], &paused["paused_by"]),
        (200, &json!("paused"), &json!("http"))
    );
    assert!(server.fake.running.lock().is_empty());
    let answers = json!([{"name": "a", "on_conflict": "adopt"}]);
    let (status, problem) = change(json!({"answers": answers})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("task_paused")));
    *server.fake.collections.lock() = vec![collection(
        1,
        "default",
        "a",
        CollectionState::Conflict {
            problem: Problem::new(ErrorClass::Conflict, "it is there", "choose"),
            choices: vec![],
        },
    )];
    let (status, running) = change(json!({"state": "running", "answers": answers})).await;
    assert_eq!(
        (status, &running["state"]),
        (200, &json!("running")),
        "{running}"
    );
    assert!(running.get("paused_by").is_none());
    let chosen = server.fake.chosen.lock().clone();
    let adopt = Choice::Conflict(OnConflict::Adopt);
    assert_eq!(chosen, [("default".to_owned(), "a".to_owned(), adopt)]);
    let (status, _) = change(json!({"answers": answers})).await;
    assert_eq!(status, 200, "a running task takes answers alone");
    assert_eq!(
        server.rest("DELETE", &path, Value::Null).await,
        (204, Value::Null)
    );
    for (method, body) in [
        ("GET", Value::Null),
        ("DELETE", Value::Null),
        ("PATCH", json!({"state": "paused"})),
    ] {
        let (status, problem) = server.rest(method, &path, body).await;
        assert_eq!(
            (status, &problem["code"]),
            (404, &json!("task_not_found")),
            "{method}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_the_field_and_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let target = json!({"uri": "http://h:1"});
    let one = json!([{"name": "a"}]);
    for (body, part) in [
        (json!({}), "target: missing"),
        (json!({}), "collections: missing"),
        (
            json!({"target": target, "collections": []}),
            "collections: at least one",
        ),
        (
            json!({"target": target, "collections": [{}]}),
            "collections[0].name: missing",
        ),
        (
            json!({"target": target, "collections": [{"name": "a-b"}]}),
            "collections[0].name",
        ),
        (
            json!({"target": target, "collections": [{"name": "a", "database": "1"}]}),
            "collections[0].database",
        ),
        (
            json!({"target": target, "collections": [{"name": "a", "use_start_position": true}]}),
            "unknown field",
        ),
        (
            json!({"target": target, "collections": [{"name": "a"}, {"name": "a"}]}),
            "named twice",
        ),
        (
            json!({"target": target, "collections": one, "id": ""}),
            "id: up to 64",
        ),
        (
            json!({"target": target, "collections": one, "id": "a/b"}),
            "id: up to 64",
        ),
        (
            json!({"target": target, "collections": one, "task_id": "a"}),
            "task_id: unknown field",
        ),
        (
            json!({"target": {"uri": "ftp://h"}, "collections": one}),
            "target.uri",
        ),
        (
            json!({"target": "hush-hush", "collections": one}),
            "target: an object expected",
        ),
    ] {
        let (status, problem) = server.rest("POST", "/tasks", body.clone()).await;
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid_request")),
            "{body}"
        );
        assert!(
            detail.contains(part) && !detail.contains("hush"),
            "{part} in {detail}"
        );
    }
    let (_, made) = server.rest("POST", "/tasks", wanted("t", "a")).await;
    for (body, part) in [
        (json!({}), "nothing to change"),
        (json!({"state": "stopped"}), "state: one of running, paused"),
        (
            json!({"state": "running", "reason": "x"}),
            "reason: only a pause",
        ),
        (
            json!({"state": "paused", "reason": "a\nb"}),
            "reason: one line",
        ),
        (
            json!({"state": "paused", "answers": [{"name": "a", "skip": true}]}),
            "answers: a paused task",
        ),
        (
            json!({"answers": [{"name": "a"}]}),
            "answers[0].name: exactly one answer",
        ),
        (
            json!({"answers": [{"name": "a", "db": "x", "skip": true}]}),
            "answers[0].db: unknown field",
        ),
    ] {
        let (status, problem) = server.rest("PATCH", "/tasks/t", body).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(part), "{part} in {detail}");
    }
    let shown = task(&server, "t").await;
    assert_eq!(
        shown["updated_at"], made["updated_at"],
        "something wrong was taken"
    );
    for (query, part) in [
        ("?limit=0", "limit: a whole number from 1 to 1000"),
        ("?limit=1001", "limit"),
        ("?limit=+1", "limit"),
        ("?page=1", "page: unknown parameter"),
        ("?limit=1&limit=2", "limit: given twice"),
    ] {
        let (status, problem) = server
            .rest("GET", &format!("/tasks{query}"), Value::Null)
            .await;
        assert!(
            status == 400 && problem["detail"].as_str().unwrap().contains(part),
            "{query}: {problem}"
        );
    }
    let post = async |kind: &str, body: &[u8]| {
        let answer = server
            .request("POST", "/api/v1/tasks", &[("Content-Type", kind)], body)
            .await;
        (
            answer.status,
            answer.json()["code"].as_str().unwrap().to_owned(),
        )
    };
    let code = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(
        post("text/plain", b"{}").await,
        code(415, "unsupported_media_type")
    );
    assert_eq!(
        post("application/json", b"{").await,
        code(400, "malformed_json")
    );
    assert_eq!(
        post("application/json; charset=utf-8", b"[]").await,
        code(400, "invalid_request")
    );
    let wrong = server.rest("PUT", "/tasks", Value::Null).await;
    assert_eq!((wrong.0, &wrong.1["code"]), (405, &json!("wrong_method")));
    let nowhere = server.rest("GET", "/nothing", Value::Null).await;
    assert_eq!(
        (nowhere.0, &nowhere.1["code"]),
        (404, &json!("no_such_path"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_and_target_say_has_its_own_codes() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    for (class, code, status, expected) in [
        (ErrorClass::Configuration, None, 422, "refused"),
        (
            ErrorClass::Configuration,
            Some(ProblemCode::Login),
            422,
            "login_refused",
        ),
        (ErrorClass::Transient, None, 503, "unavailable"),
        (ErrorClass::Conflict, None, 409, "conflict"),
    ] {
        let mut problem = Problem::new(class, "cause", "way out");
        problem.code = code;
        *server.fake.refuse.lock() = Some(problem);
        let (found, answer) = server.rest("POST", "/tasks", wanted("t", "a")).await;
        assert_eq!(
            (found, &answer["code"], &answer["detail"], &answer["hint"]),
            (status, &json!(expected), &json!("cause"), &json!("way out"))
        );
    }
    assert!(server.tasks.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (server, id) = filled(&dir.path().join("s.db")).await;
    let (_, made) = server
        .rest(
            "POST",
            "/tasks",
            json!({"id": "z", "target": {"uri": "http://o:1"}, "collections": [{"name": "a"}]}),
        )
        .await;
    let (status, page) = server.rest("GET", "/tasks?limit=1", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&page["items"][0]["id"], &page["next"]),
        (&json!(id), &json!(id))
    );
    assert!(page["items"][0].get("progress").is_none());
    let (_, page) = server
        .rest("GET", &format!("/tasks?limit=1&after={id}"), Value::Null)
        .await;
    assert_eq!(
        (&page["items"], &page["next"]),
        (&json!([made]), &Value::Null)
    );

    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/tasks/{id}/collections?limit=3{after}");
        let (status, page) = server.rest("GET", &path, Value::Null).await;
        assert_eq!(status, 200, "{page}");
        seen.extend(page["items"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let states: Vec<_> = seen
        .iter()
        .map(|c| (c["id"].as_str().unwrap(), c["state"].as_str().unwrap()))
        .collect();
    assert_eq!(
        states,
        [
            ("1", "Waiting"),
            ("2", "Streaming"),
            ("3", "Failing"),
            ("4", "Conflict"),
            ("5", "PositionLost"),
            ("6", "Quarantined"),
            ("7", "Dropped")
        ]
    );
    assert_eq!(seen[3]["answers"], "on_conflict: adopt or recreate");
    assert_eq!(
        seen[2]["last_error"],
        json!({"class": "transient", "message": "cause", "hint": "way out", "at": 78})
    );
    assert_eq!(
        (&seen[1]["lag_seconds"], &seen[1]["rows"]),
        (&json!(2.5), &json!(11))
    );
    let shown = task(&server, &id).await;
    let progress = &shown["progress"];
    assert_eq!(progress["collections"]["Streaming"], 1);
    assert_eq!(
        (&progress["lag_seconds"], &progress["counters"]["rows_out"]),
        (&json!(1.5), &json!(7))
    );
    let (_, positions) = server
        .rest("GET", &format!("/tasks/{id}/positions"), Value::Null)
        .await;
    let list = positions["positions"].as_array().unwrap();
    let ids: Vec<_> = list.iter().map(|p| p["collection_id"].clone()).collect();
    assert_eq!(ids, [Value::Null, json!("2"), json!("5")]);
    assert_eq!(
        (&list[0]["channel"], &list[0]["applied_at"]),
        (&json!("ch"), &json!(1_700_000_000_000_u64))
    );
    let (_, go) = (0, server.granted("position", json!({"task_id": id})).await);
    assert_eq!(list[1]["position"], go["positions"][0]["msg_id"]);

    let (_, paused) = server
        .rest("PATCH", &format!("/tasks/{id}"), json!({"state": "paused"}))
        .await;
    assert_eq!(paused["progress"]["counters"], Value::Null);
    let (_, page) = server
        .rest("GET", &format!("/tasks/{id}/collections"), Value::Null)
        .await;
    let states: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["Paused", "Paused", "Paused", "Dropped"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_describes_every_operation() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let answer = server
        .request("GET", "/api/v1/openapi.json", &[], b"")
        .await;
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let mut names = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            names.push(
                operation["operationId"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{what}"))
                    .to_owned(),
            );
            let responses = operation["responses"].as_object().unwrap();
            for status in ["401", "429", "503"] {
                assert!(responses.contains_key(status), "{what} has no {status}");
            }
        }
    }
    names.sort();
    assert_eq!(
        names,
        [
            "askDoctor",
            "cdc",
            "changeTask",
            "createTask",
            "deleteTask",
            "dropQuarantined",
            "getDoctor",
            "getPositions",
            "getPromotion",
            "getQuarantined",
            "getTask",
            "getVersion",
            "listCollections",
            "listEvents",
            "listQuarantine",
            "listTaskEvents",
            "listTasks",
            "planTask",
            "promoteTarget",
            "repairRows",
            "retryQuarantined"
        ]
    );
    // Every reference leads somewhere.
    for part in answer.body.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"].get(name).is_some(),
            "no schema {name}"
        );
    }
    let page = server.request("GET", "/docs/", &[], b"").await;
    assert!(
        page.status == 200 && page.body.contains("swagger-ui"),
        "{}",
        page.status
    );
    let (status, version) = server.rest("GET", "/version", Value::Null).await;
    assert_eq!((status, &version["name"]), (200, &json!("milvus-cdc")));
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_tasks_are_there_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), false).await;
    for (method, path, body) in [
        ("GET", "/tasks", Value::Null),
        ("GET", "/tasks/t", Value::Null),
        ("DELETE", "/tasks/t", Value::Null),
        ("POST", "/tasks", wanted("t", "a")),
        ("PATCH", "/tasks/t", json!({"state": "paused"})),
        ("GET", "/events", Value::Null),
    ] {
        let (status, problem) = server.rest(method, path, body).await;
        assert_eq!(
            (status, &problem["code"]),
            (503, &json!("not_ready")),
            "{method} {path}"
        );
    }
}
