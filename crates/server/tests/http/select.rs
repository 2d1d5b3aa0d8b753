//! Which collections a task carries: rules, names on the target, what is left out, and what a plan says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{CollectionId, TaskId};
use cdc_core::select::{Name, Operation};
use cdc_core::store::{Change, CollectionObject, ObjectPhase, ProgressStore};
use cdc_core::task::{Pattern, Selection, TaskSpec};
use cdc_core::tso::Tso;
use milvus_cdc::store::{Desired, StoredTask, TaskStore, TaskWrite};
use serde_json::{Value, json};

use crate::server::{Server, start};

fn body(id: &str, collections: Value) -> Value {
    json!({"id": id, "target": {"uri": "http://target:19530"}, "collections": collections})
}

async fn made(server: &Server, body: Value) -> Value {
    let (status, task) = server.rest("POST", "/tasks", body).await;
    assert_eq!(status, 201, "{task}");
    task
}

fn there(server: &Server, names: &[&str]) {
    let name = |text: &&str| {
        let (database, name) = text.split_once('.').unwrap();
        Name::new(database, name)
    };
    *server.fake.present.lock() = names.iter().map(name).collect();
}

fn spec(server: &Server) -> TaskSpec {
    server.spec("t")
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_taken_shown_and_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let rules = json!([
        {"include": "db.*"},
        {"exclude": ["tmp_*", "/old.*/"], "database": "db"},
        {"database": "other", "name": "a", "start": "now"},
        {"include": ["/x\\.[a-c]/"]},
    ]);
    let mut wanted = body("t", rules);
    wanted["mapping"] =
        json!([{"from": "db.*", "to": "copy.*"}, {"from": "*.*", "to": "*.{}_copy"}]);
    wanted["skip_operations"] = json!(["drop_collection", "flush"]);
    let task = made(&server, wanted.clone()).await;
    assert_eq!(
        (
            &task["collections"],
            &task["mapping"],
            &task["skip_operations"]
        ),
        (
            &json!([
                {"include": ["db.*"]},
                {"exclude": ["db.tmp_*", "db./old.*/"]},
                {"include": ["other.a"]},
                {"include": ["/x\\.[a-c]/"]},
            ]),
            &wanted["mapping"],
            &wanted["skip_operations"]
        )
    );
    let before = spec(&server);
    for (database, name, carried) in [
        ("db", "a", true),
        ("db", "tmp_1", false),
        ("db", "older", false),
        ("other", "a", true),
        ("x", "b", true),
        ("x", "d", false),
    ] {
        assert_eq!(
            before.selection.contains(database, name),
            carried,
            "{database}.{name}"
        );
    }
    assert_eq!(before.target_of("db", "a"), Name::new("copy", "a"));
    assert_eq!(before.target_of("x", "a"), Name::new("x", "a_copy"));
    assert!(before.skips(Operation::Flush) && !before.skips(Operation::Load));
    // The same again is the same task.
    let (status, again) = server.rest("POST", "/tasks", wanted).await;
    assert_eq!(status, 201, "{again}");
    // The form of the Go server shows it too.
    let get = server.granted("get", json!({"task_id": "t"})).await;
    assert_eq!(
        get["task"]["collection_infos"][0],
        json!({"include": "db.*"})
    );
    server.tasks.shut_down(Duration::from_secs(1)).await;
    drop(server);
    let server = start(&path, true).await;
    assert_eq!(spec(&server), before);
}

/// What versions before rules have stored.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_older_versions_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let old = |id: &str, selection: &str| {
        let spec = r#"{"uri":"http://target:19530","token":"","connect_timeout_s":10,"selection":SELECTION,
            "start":"created","starts":[["db","b","now"]],"on_conflict":"ask","positions":{},
            "given":{"milvus_connect_param":{},"collection_infos":[],"db_collections":{}}}"#;
        TaskWrite::Create(StoredTask {
            id: TaskId::new(id),
            spec: spec.replace("SELECTION", selection),
            desired: Desired::Running,
            created: 1,
            updated: 1,
        })
    };
    let some = r#"{"collections":[{"database":"db","name":"b"},{"database":null,"name":"c"},{"database":"d","name":null}]}"#;
    let write = vec![old("all", r#""all""#), old("some", some)];
    server.store.write_tasks(write).await.unwrap();
    server.tasks.shut_down(Duration::from_secs(1)).await;
    drop(server);
    let server = start(&path, true).await;
    assert_eq!(server.spec("all").selection, Selection::All);
    let any = |database: Option<&str>, name: Option<&str>| Pattern {
        database: database.map(str::to_owned),
        name: name.map(str::to_owned),
    };
    let some = server.spec("some");
    assert_eq!(
        some.selection,
        Selection::Collections(vec![
            Pattern::exact("db", "b"),
            any(None, Some("c")),
            any(Some("d"), None),
        ])
    );
    assert!(some.mapping.is_empty() && some.skip.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_rule_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    for (collections, more, said) in [
        (
            json!([{"include": "a"}]),
            json!({}),
            "collections[0].include: \"a\" has no database: \"default.a\"",
        ),
        (
            json!([{"include": ["db.a", "b*"]}]),
            json!({}),
            "collections[0].include[1]: \"b*\" has no database",
        ),
        (
            json!([{"include": "db.a", "database": "db"}]),
            json!({}),
            "a dot too many",
        ),
        (
            json!([{"include": []}]),
            json!({}),
            "collections[0].include: empty",
        ),
        (json!([{"include": 5}]), json!({}), "a pattern expected"),
        (json!([{"include": "/(/"}]), json!({}), "is no regex"),
        (
            json!([{"include": "a.b", "exclude": "a.c"}]),
            json!({}),
            "contradicts include",
        ),
        (json!([{"exclude": "a.c"}]), json!({}), "only excludes"),
        (
            json!([{"include": "a.b", "start": "now"}]),
            json!({}),
            "collections[0].start: unknown field",
        ),
        (
            json!([{"include": "a.b"}]),
            json!({"mapping": [{"from": "a.*", "to": "b"}]}),
            "mapping[0].to: \"b\" has no database",
        ),
        (
            json!([{"include": "a.b"}]),
            json!({"mapping": [{"from": "/a.b/", "to": "b.c"}]}),
            "mapping[0].from: \"/a.b/\": no regex",
        ),
        (
            json!([{"include": "a.b"}]),
            json!({"mapping": [{"from": "a.b"}]}),
            "mapping[0].to: missing",
        ),
        (
            json!([{"include": ["a.b", "c.b"]}]),
            json!({"mapping": [{"from": "*.*", "to": "all.*"}]}),
            "mapping: a.b and c.b both would be all.b",
        ),
        (
            json!([{"include": "a.b"}]),
            json!({"skip_operations": ["insert"]}),
            "skip_operations[0]: one of drop_database, drop_collection",
        ),
    ] {
        let mut wanted = body("t", collections);
        for (key, value) in more.as_object().unwrap() {
            wanted[key] = value.clone();
        }
        for path in ["/tasks", "/plan"] {
            let (status, problem) = server.rest("POST", path, wanted.clone()).await;
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert!(
                status == 400 && detail.contains(said),
                "{said} in {problem}"
            );
        }
    }
    let long = "b".repeat(200);
    let mut wanted = body("t", json!([{"include": format!("a.{long}")}]));
    wanted["mapping"] = json!([{"from": "a.*", "to": format!("a.{}_*", "c".repeat(100))}]);
    let (status, problem) = server.rest("POST", "/tasks", wanted).await;
    assert_eq!(status, 400, "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("301 bytes"),
        "{problem}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tasks_do_not_write_one_collection() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    there(&server, &["db.a", "db.b", "db2.a"]);
    let rules = json!([{"include": "db.*"}, {"exclude": "db.tmp_*"}]);
    made(&server, body("t", rules)).await;
    let map = |from: &str, to: &str| json!([{"from": from, "to": to}]);
    for (collections, mapping, said) in [
        (
            json!([{"name": "a", "database": "db"}]),
            json!(null),
            "would write db.a",
        ),
        (
            json!([{"include": "*.*"}]),
            json!(null),
            "what db.* and *.* have in common",
        ),
        (
            json!([{"include": "db.new_*"}]),
            json!(null),
            "what db.* and db.new_* have in common",
        ),
        (
            json!([{"include": "/db\\.[ab]/"}]),
            json!(null),
            "would write db.a",
        ),
        (
            json!([{"include": "db2.a"}]),
            map("db2.a", "db.c"),
            "would write db.c",
        ),
        (
            json!([{"include": "db2.*"}]),
            map("db2.*", "db.*"),
            "would write db.* as well",
        ),
    ] {
        let mut wanted = body("u", collections);
        wanted["mapping"] = mapping;
        let (status, problem) = server.rest("POST", "/tasks", wanted.clone()).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            status == 409
                && detail.contains(said)
                && detail.contains("task t")
                && detail.contains("task u"),
            "{said} in {problem}"
        );
        let (status, plan) = server.rest("POST", "/plan", wanted).await;
        assert_eq!((status, &plan["ok"]), (200, &json!(false)), "{plan}");
        assert!(
            plan["problems"][0].as_str().unwrap().contains("task t"),
            "{plan}"
        );
    }
    // What is there would have one name.
    let mut wanted = body("u", json!([{"include": "*.*"}]));
    wanted["mapping"] = map("*.*", "all.*");
    let (status, problem) = server.rest("POST", "/tasks", wanted).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        status == 409 && detail.contains("both would be all.a"),
        "{problem}"
    );
    for (collections, mapping) in [
        (json!([{"include": "db.tmp_*"}]), json!(null)),
        (json!([{"include": "db.*"}]), map("db.*", "copy.*")),
        (json!([{"include": "db2.*"}]), json!(null)),
        (
            json!([{"include": "*.*"}, {"exclude": "db.*"}]),
            json!(null),
        ),
    ] {
        let mut wanted = body("u", collections);
        wanted["mapping"] = mapping;
        made(&server, wanted).await;
        assert_eq!(server.rest("DELETE", "/tasks/u", Value::Null).await.0, 204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_would_be_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    there(
        &server,
        &["db.a", "db.tmp_1", "other.x", "db2.a", "db3.full"],
    );
    *server.fake.there.lock() = BTreeMap::from([
        (Name::new("db3", "full"), true),
        (Name::new("copy", "a"), false),
    ]);
    let mut wanted = body("t", json!([{"include": ["db*.*"]}, {"exclude": "*.tmp_*"}]));
    wanted["mapping"] =
        json!([{"from": "db.*", "to": "copy.*"}, {"from": "db2.*", "to": "copy.*"}]);
    let (status, plan) = server.rest("POST", "/plan", wanted.clone()).await;
    assert_eq!((status, &plan["ok"]), (200, &json!(false)), "{plan}");
    let of = |source: &str| {
        let all = plan["collections"].as_array().unwrap();
        all.iter().find(|c| c["source"] == source).unwrap().clone()
    };
    assert_eq!(
        of("db.a"),
        json!({"source": "db.a", "target": "copy.a", "rule": 0, "problems": []})
    );
    assert!(
        of("db2.a")["problems"][0]
            .as_str()
            .unwrap()
            .contains("db.a would have the same name")
    );
    assert!(
        of("db3.full")["problems"][0]
            .as_str()
            .unwrap()
            .contains("with rows")
    );
    assert_eq!(
        plan["left_out"],
        json!([{"source": "db.tmp_1", "rule": 1}, {"source": "other.x", "rule": null}])
    );
    assert!(server.fake.running.lock().is_empty());
    assert!(server.store.tasks().await.unwrap().is_empty());
    wanted["mapping"] = json!([{"from": "db.*", "to": "copy.*"}]);
    wanted["on_conflict"] = json!("adopt");
    let (_, plan) = server.rest("POST", "/plan", wanted.clone()).await;
    assert_eq!(plan["ok"], true, "{plan}");
    // Of a task that is there, what it carries does not speak against it.
    wanted["on_conflict"] = json!("ask");
    made(&server, wanted.clone()).await;
    let object = CollectionObject {
        source: CollectionId(5),
        database: "db3".to_owned(),
        name: "full".to_owned(),
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
    let (_, plan) = server.rest("POST", "/plan", wanted).await;
    assert_eq!(plan["ok"], true, "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_is_edited_as_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let mut wanted = body("t", json!([{"include": "db.*"}]));
    wanted["mapping"] = json!([{"from": "db.*", "to": "copy.*"}]);
    made(&server, wanted).await;
    let edit = async |body: Value| server.rest("PATCH", "/tasks/t", body).await;
    let (status, task) = edit(json!({
        "collections": [{"include": "db.*"}, {"exclude": "db.b"}], "skip_operations": ["load", "release"],
    }))
    .await;
    assert_eq!(status, 200, "{task}");
    assert_eq!(task["skip_operations"], json!(["load", "release"]));
    assert!(!spec(&server).selection.contains("db", "b"));
    assert_eq!(*server.fake.changes.lock(), 1, "it was not stopped");
    let event = &server.store.events(&TaskId::new("t"), 1).await.unwrap()[0];
    assert!(
        event.text.contains("collections, skip_operations"),
        "{event:?}"
    );
    // A name is for what is not carried yet.
    let object = CollectionObject {
        source: CollectionId(5),
        database: "copy".to_owned(),
        name: "a".to_owned(),
        from: Some(Name::new("db", "a")),
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
    let (status, problem) = edit(json!({"mapping": [{"from": "db.*", "to": "elsewhere.*"}]})).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        status == 409 && detail.contains("db.a is carried"),
        "{problem}"
    );
    let mapping = json!([{"from": "db.a", "to": "copy.a"}, {"from": "db.*", "to": "elsewhere.*"}]);
    let (status, task) = edit(json!({"mapping": mapping})).await;
    assert_eq!((status, &task["mapping"]), (200, &mapping), "{task}");
    assert_eq!(
        spec(&server).target_of("db", "c"),
        Name::new("elsewhere", "c")
    );
    // A new login stops it and starts it again, with all of it.
    let (status, task) = edit(json!({"target": {"token": "root:hush"}})).await;
    assert_eq!(status, 200, "{task}");
    assert_eq!(*server.fake.changes.lock(), 2);
    let before = spec(&server);
    server.tasks.shut_down(Duration::from_secs(1)).await;
    drop(server);
    let server = start(&path, true).await;
    assert_eq!(spec(&server), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_a_copy_says_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    there(&server, &["db.a", "db.b", "other.x"]);
    let cold = BTreeSet::from([Name::new("db", "b"), Name::new("other", "x")]);
    *server.fake.not_loaded.lock() = Ok(cold);
    let plan = async |more: Value| {
        let mut wanted = body("t", json!([{"include": "db.*"}]));
        let more = more.as_object().unwrap().clone();
        wanted.as_object_mut().unwrap().extend(more);
        let (status, plan) = server.rest("POST", "/plan", wanted).await;
        assert_eq!(status, 200, "{plan}");
        plan
    };
    let shown = plan(json!({"initial": "snapshot"})).await;
    assert_eq!(shown["ok"], false, "{shown}");
    assert_eq!(shown["collections"][0]["problems"], json!([]), "{shown}");
    let problem = shown["collections"][1]["problems"][0].as_str().unwrap();
    assert!(problem.contains("db.b is not loaded") && problem.contains("load_for_snapshot"));
    for fine in [
        json!({"initial": "snapshot", "load_for_snapshot": true}),
        json!({}),
    ] {
        assert_eq!(plan(fine).await["ok"], true);
    }
    let away = Problem::new(ErrorClass::Transient, "source h: no answer", "is it up?");
    *server.fake.not_loaded.lock() = Err(away);
    let shown = plan(json!({"initial": "auto", "load_for_snapshot": true})).await;
    assert!(shown["problems"][0].as_str().unwrap().contains("no answer"));
    assert_eq!(plan(json!({})).await["ok"], true);
}
