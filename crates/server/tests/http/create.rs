//! What a create request asks for.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::position::Position;
use cdc_core::snapshot::{Initial, SnapshotSpec};
use cdc_core::task::{GivenPosition, Selection, StartPoint};
use cdc_core::tls::{ClientTls, Identity};
use cdc_core::tso::Tso;
use milvus_cdc::request::encode_position;
use milvus_cdc::store::TaskStore;
use serde_json::{Value, json};

use crate::server::{request, start, wanted};

const CHANNEL: &str = "by-dev-rootcoord-dml_0";

fn at(n: u64, applied: u64) -> GivenPosition {
    GivenPosition {
        position: Position::Natsmq(n),
        applied: Tso(applied),
    }
}

fn text(channel: &str, n: u64, applied: u64) -> String {
    encode_position(&PChannel::new(channel), &Position::Natsmq(n), Tso(applied))
}

fn vchannel(channel: &str, collection: i64) -> String {
    format!("{channel}_{collection}v0")
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_belong_to_one_collection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let infos = json!([
        {"name": "a", "positions": {vchannel(CHANNEL, 44): text(CHANNEL, 7, 900), vchannel("dml_1", 44): text("dml_1", 8, 0)}},
        {"name": "b", "positions": {vchannel(CHANNEL, 45): text(&vchannel(CHANNEL, 45), 9, 0)}},
        {"name": "c"},
    ]);
    let id = server
        .create(request(json!({"collection_infos": infos})))
        .await;
    let expected = BTreeMap::from([
        (
            CollectionId(44),
            BTreeMap::from([
                (PChannel::new(CHANNEL), at(7, 900)),
                (PChannel::new("dml_1"), at(8, 0)),
            ]),
        ),
        (
            CollectionId(45),
            BTreeMap::from([(PChannel::new(CHANNEL), at(9, 0))]),
        ),
    ]);
    assert_eq!(server.spec(&id).positions, expected);
    let created = server.spec(&id).created;
    assert!(created > Tso::from_millis(1_600_000_000_000));
    server
        .tasks
        .shut_down(std::time::Duration::from_secs(1))
        .await;
    drop(server);
    let server = start(&path, true).await;
    assert_eq!(server.spec(&id).positions, expected, "after a restart");
    assert_eq!(server.spec(&id).created, created, "after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_name_no_one_collection_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let good = text(CHANNEL, 7, 0);
    let one = |name: &str, positions: Value| json!({"collection_infos": [{"name": name, "positions": positions}]});
    for (fields, parts) in [
        (
            one("a", json!({CHANNEL: good})),
            vec![CHANNEL, "no virtual channel", "{collection id}v{shard}"],
        ),
        (
            one("a", json!({"by-dev-rootcoord-dml_0_44x0": good})),
            vec!["by-dev-rootcoord-dml_0_44x0", "no virtual channel"],
        ),
        (
            one("a", json!({vchannel(CHANNEL, 44): "%"})),
            vec!["by-dev-rootcoord-dml_0_44v0", "base64"],
        ),
        (
            one("a", json!({vchannel(CHANNEL, 44): 7})),
            vec!["by-dev-rootcoord-dml_0_44v0", "a string expected"],
        ),
        (
            one("a", json!({vchannel("dml_1", 44): good})),
            vec!["dml_1_44v0", "a position of channel", CHANNEL],
        ),
        (
            one(
                "a",
                json!({vchannel(CHANNEL, 44): good, vchannel("dml_1", 45): text("dml_1", 1, 0)}),
            ),
            vec!["one collection expected", "44, 45"],
        ),
        (
            one("*", json!({vchannel(CHANNEL, 44): good})),
            vec!["collection_infos[0].positions", "'*'"],
        ),
        (
            one("db.*", json!({vchannel(CHANNEL, 44): good})),
            vec!["collection_infos[0].positions", "'*'"],
        ),
        (
            json!({"collection_infos": [{"name": "*"}], "positions": {vchannel(CHANNEL, 44): good}}),
            vec!["request_data.positions", "'*'"],
        ),
        (
            json!({"db_collections": {"*": [{"name": "a", "positions": {vchannel(CHANNEL, 44): good}}]}}),
            vec!["db_collections.*[0].positions", "'*'"],
        ),
    ] {
        let message = server.refused("create", request(fields.clone()), 400).await;
        for part in parts {
            assert!(message.contains(part), "{part} in {message} for {fields}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_collection_has_its_own_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let fields = json!({
        "start": "now",
        "collection_infos": [{"name": "a", "start": "earliest"}, {"name": "b", "use_start_position": true}, {"name": "c"}],
        "db_collections": {"db": [{"name": "*", "start": "created"}, {"name": "a", "start": "earliest"}]},
    });
    let id = server.create(request(fields)).await;
    let check = |server: &crate::server::Server| {
        let spec = server.spec(&id);
        for (database, name, start) in [
            ("default", "a", StartPoint::Earliest),
            ("default", "b", StartPoint::Created),
            ("default", "c", StartPoint::Now),
            ("db", "a", StartPoint::Earliest),
            ("db", "x", StartPoint::Created),
        ] {
            assert_eq!(
                spec.start_of(database, name, Tso::ZERO),
                start,
                "{database}.{name}"
            );
        }
    };
    check(&server);
    server
        .tasks
        .shut_down(std::time::Duration::from_secs(1))
        .await;
    drop(server);
    let server = start(&path, true).await;
    check(&server);
    let mut all = wanted("*");
    all["collection_infos"][0]["start"] = json!("earliest");
    all["milvus_connect_param"]["uri"] = json!("http://another:1");
    let all = server.create(all).await;
    assert_eq!(
        server.spec(&all).start_of("d", "n", Tso::ZERO),
        StartPoint::Earliest
    );
    for (fields, part) in [
        (
            json!({"collection_infos": [{"name": "x", "start": "now", "use_start_position": true}]}),
            "collection_infos[0].use_start_position: true contradicts start",
        ),
        (
            json!({"start": "now", "collection_infos": [{"name": "*", "start": "earliest"}]}),
            "start: contradicts the start given with '*'",
        ),
        (
            json!({"collection_infos": [{"name": "x", "start": "later"}]}),
            "collection_infos[0].start: one of created, earliest, now expected, not \"later\"",
        ),
    ] {
        let message = server.refused("create", request(fields), 400).await;
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_databases_and_one_name_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let selected = async |fields: Value| {
        let id = server.create(request(fields)).await;
        let selection = server.spec(&id).selection;
        server.granted("delete", json!({"task_id": id})).await;
        selection
    };
    for fields in [
        json!({"db_collections": {"db": [{"name": "*"}]}}),
        json!({"collection_infos": [{"name": "db.*"}]}),
    ] {
        let selection = selected(fields).await;
        assert!(selection.contains("db", "any") && !selection.contains("other", "any"));
        assert!(selection.whole_database("db") && !selection.whole_database("other"));
    }
    for fields in [
        json!({"db_collections": {"*": [{"name": "c"}]}}),
        json!({"collection_infos": [{"name": "*.c"}]}),
    ] {
        let selection = selected(fields).await;
        assert!(selection.contains("any", "c") && !selection.contains("any", "d"));
    }
    for fields in [
        json!({"db_collections": {"*": [{"name": "*"}]}}),
        json!({"collection_infos": [{"name": "*.*"}]}),
        json!({"collection_infos": [{"name": "*"}]}),
    ] {
        assert_eq!(selected(fields).await, Selection::All);
    }
    server
        .create(request(json!({"db_collections": {"db": [{"name": "*"}]}})))
        .await;
    for taken in [
        json!({"collection_infos": [{"name": "db.a"}]}),
        json!({"collection_infos": [{"name": "*.a"}]}),
        json!({"collection_infos": [{"name": "*"}]}),
    ] {
        server.refused("create", request(taken), 409).await;
    }
    server
        .create(request(json!({"collection_infos": [{"name": "a"}]})))
        .await;
    for (fields, part) in [
        (
            json!({"collection_infos": [{"name": "*"}, {"name": "x"}]}),
            "name no other one beside it",
        ),
        (
            json!({"collection_infos": [{"name": "x"}], "db_collections": {"default": [{"name": "x"}]}}),
            "default.x is named twice",
        ),
        (
            json!({"db_collections": {"d-b": [{"name": "x"}]}}),
            "db_collections.d-b: database name",
        ),
        (
            json!({"db_collections": {"db": []}}),
            "db_collections.db: empty",
        ),
        (
            json!({"db_collections": {"db": "x"}}),
            "db_collections.db: a list",
        ),
        (json!({"collection_infos": []}), "collection_infos: empty"),
        (json!({"collection_infos": [{"name": "x*"}]}), "legal"),
    ] {
        let message = server.refused("create", request(fields), 400).await;
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_whose_turn_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let problem = |class| Problem::new(class, "cause", "way out");
    for (problem, status) in [
        (problem(ErrorClass::Transient), 503),
        (problem(ErrorClass::Configuration), 400),
        (
            problem(ErrorClass::Configuration).with_code(ProblemCode::Login),
            401,
        ),
        (problem(ErrorClass::Conflict), 409),
        (problem(ErrorClass::Bug), 500),
    ] {
        *server.fake.refuse.lock() = Some(problem);
        assert_eq!(
            server.refused("create", wanted("a"), status).await,
            "cause; way out"
        );
    }
    *server.fake.refuse.lock() = None;
    *server.fake.refuse_start.lock() = Some(problem(ErrorClass::Bug));
    server.refused("create", wanted("a"), 500).await;
    *server.fake.refuse_start.lock() = None;
    let tasks = server.granted("list", json!({})).await;
    assert_eq!(tasks["tasks"], json!([]), "a refused task is left behind");
    server.create(wanted("a")).await;
    server.store.close(std::time::Duration::from_secs(1)).await;
    let id = server.tasks.list()[0].spec.id.to_string();
    // Its readers are closed.
    let message = server.refused("get", json!({"task_id": id}), 500).await;
    assert!(!message.contains("nothing was changed"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_empty_forms_of_the_go_server_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    for kafka in [
        json!({}),
        Value::Null,
        json!({"address": "", "topic": "", "enable_sasl": false, "sasl": {}}),
    ] {
        let fields = json!({"kafka_connect_param": kafka, "collection_infos": [{"name": "a"}], "db_collections": {}, "name_mapping": [], "positions": {}});
        let id = server.create(request(fields)).await;
        server.granted("delete", json!({"task_id": id})).await;
    }
    for (fields, part) in [
        (
            json!({"kafka_connect_param": {"address": "hush-host:9092", "topic": "t"}}),
            "kafka_connect_param.address: not available",
        ),
        (
            json!({"kafka_connect_param": {"adress": "hush"}}),
            "kafka_connect_param.adress: unknown field",
        ),
        (
            json!({"kafka_connect_param": "hush"}),
            "kafka_connect_param: an object expected",
        ),
        (
            json!({"milvus_connect_param": "http://root:hush@h:1"}),
            "milvus_connect_param: an object expected",
        ),
        (
            json!({"milvus_connect_param": {"uri": "http://h:1?token=hush"}}),
            "milvus_connect_param.uri",
        ),
        (
            json!({"milvus_connect_param": {"uri": "http://h:1", "username": 5, "password": ["hush"]}}),
            "milvus_connect_param.password: a string expected",
        ),
        (
            json!({"milvus_connect_param": {"uri": "http://h:1", "dial_config": {"server_name": "x"}}}),
            "milvus_connect_param.dial_config: contradicts http://h:1; https:// expected",
        ),
        (
            json!({"milvus_connect_param": {"uri": "http://h:1", "enable_tls": true}}),
            "milvus_connect_param.enable_tls: true contradicts http://h:1; https:// expected",
        ),
        (
            json!({"rpc_channel_info": {"name": "r", "position": "x"}}),
            "rpc_channel_info.position: not available",
        ),
        (
            json!({"rpc_channel_info": {"name": "other"}}),
            "rpc_channel_info.name: r expected",
        ),
        (json!({"disable_auto_start": true}), "disable_auto_start"),
        (json!({"name_mapping": [{}]}), "name_mapping"),
        (
            json!({"extra_info": {"enable_user_role": true}}),
            "extra_info.enable_user_role",
        ),
        (json!({"task_id": "a b"}), "task_id"),
        (
            json!({"on_conflict": "fight"}),
            "on_conflict: one of ask, adopt, recreate",
        ),
    ] {
        let mut fields = fields;
        fields["collection_infos"] = json!([{"name": "a"}]);
        let message = server.refused("create", request(fields), 400).await;
        assert!(
            message.contains(part) && !message.contains("hush"),
            "{part} in {message}"
        );
    }
    let (status, answer) = server
        .post(r#"{"request_type": "create", "request_data": "{\"token\": \"hush\"}"}"#)
        .await;
    assert!(
        status == 400 && !answer.to_string().contains("hush"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificates_for_a_target_are_looked_at_and_kept_as_paths() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("s.db");
    let server = start(&store, true).await;
    let issued = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let certificate = file("c.pem", &issued.cert.pem());
    let key = file("k.pem", &issued.signing_key.serialize_pem());
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let other = file("other.pem", &other);
    let on = |uri: &str, dial_config: &Value| {
        request(json!({
            "milvus_connect_param": {"uri": uri, "enable_tls": true, "dial_config": dial_config},
            "collection_infos": [{"name": "a"}],
        }))
    };
    for (dial_config, parts) in [
        (json!("x"), vec!["dial_config: an object expected"]),
        (
            json!({"ca_pem": "x"}),
            vec!["dial_config.ca_pem: unknown field", "ca_pem_path"],
        ),
        (
            json!({"ca_pem_path": "/nowhere/ca.pem"}),
            vec!["dial_config.ca_pem_path", "/nowhere/ca.pem", "PEM file"],
        ),
        (
            json!({"server_pem_path": key}),
            vec!["dial_config.server_pem_path", "no certificate"],
        ),
        (
            json!({"ca_pem_path": certificate, "server_pem_path": certificate}),
            vec!["dial_config.server_pem_path: either"],
        ),
        (
            json!({"client_pem_path": certificate}),
            vec!["dial_config.client_key_path: missing"],
        ),
        (
            json!({"client_key_path": key}),
            vec!["dial_config.client_pem_path: missing"],
        ),
        (
            json!({"client_pem_path": certificate, "client_key_path": other}),
            vec!["dial_config.client_key_path", "do not belong together"],
        ),
        (
            json!({"server_name": "a b"}),
            vec!["dial_config.server_name: a host name or an IP address expected, not \"a b\""],
        ),
        (
            json!({"ca_pem_path": 5}),
            vec!["dial_config.ca_pem_path: a string expected, not 5"],
        ),
    ] {
        let message = server.refused("create", on("h:1", &dial_config), 400).await;
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
    let given = json!({
        "server_name": "db.example", "server_pem_path": "", "ca_pem_path": certificate,
        "client_pem_path": certificate, "client_key_path": key,
    });
    let id = server.create(on("h:1", &given)).await;
    let expected = ClientTls {
        trusted: Some(certificate.clone().into()),
        identity: Some(Identity {
            certificate: certificate.clone().into(),
            key: key.clone().into(),
        }),
        server_name: Some("db.example".to_owned()),
        ..ClientTls::default()
    };
    assert_eq!(server.spec(&id).target.uri, "https://h:1");
    assert_eq!(server.spec(&id).target.tls, expected);
    let shown = server.granted("get", json!({"task_id": id})).await;
    let dial_config = &shown["task"]["milvus_connect_param"]["dial_config"];
    assert_eq!(dial_config["ca_pem_path"], json!(certificate), "{shown}");
    assert!(dial_config.get("server_pem_path").is_none(), "{shown}");
    server
        .tasks
        .shut_down(std::time::Duration::from_secs(1))
        .await;
    drop(server);
    // What was written last may still be in the write-ahead log beside it, which goes when the
    // last connection closes: then everything is in the store, and all is read again.
    let every_file = || -> std::io::Result<Vec<u8>> {
        let mut stored = Vec::new();
        for file in std::fs::read_dir(dir.path())? {
            let path = file?.path();
            if path.to_string_lossy().contains(&*store.to_string_lossy()) {
                stored.extend(std::fs::read(path)?);
            }
        }
        Ok(stored)
    };
    let stored = loop {
        match every_file() {
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => {}
            all => break all.unwrap(),
        }
    };
    let holds = |text: &str| stored.windows(text.len()).any(|w| w == text.as_bytes());
    let line = std::fs::read_to_string(&key).unwrap();
    assert!(holds("db.example"), "this is where it would be");
    assert!(!holds(line.lines().nth(1).unwrap()), "a key is stored");
    // What became of the files is the connections' business: the task is read all the same.
    std::fs::remove_file(&key).unwrap();
    let server = start(&store, true).await;
    assert_eq!(server.spec(&id).target.tls, expected, "after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_target_under_two_names_is_one_target() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let on =
        |param: Value| json!({"milvus_connect_param": param, "collection_infos": [{"name": "a"}]});
    server
        .create(on(json!({"uri": "http://localhost:1"})))
        .await;
    for same in [
        json!({"uri": "http://127.0.0.1:1"}),
        json!({"uri": "http://[::1]:1"}),
        json!({"host": "LOCALHOST", "port": 1}),
    ] {
        server.refused("create", on(same), 409).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_is_the_same_task() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let mut again = wanted("a");
    again["task_id"] = json!("mine");
    for _ in 0..2 {
        assert_eq!(server.create(again.clone()).await, "mine");
    }
    again["start"] = json!("now");
    server.refused("create", again, 409).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_is_copied_if_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let server = start(&path, true).await;
    let all = json!([{"name": "*"}]);
    let id = server
        .create(request(json!({
            "collection_infos": all, "initial": "snapshot", "load_for_snapshot": true,
            "rows_per_second": 5000, "bytes_per_second": 1_000_000,
        })))
        .await;
    let expected = SnapshotSpec {
        initial: Initial::Snapshot,
        load: true,
        rows_per_second: NonZeroU64::new(5000),
        bytes_per_second: NonZeroU64::new(1_000_000),
    };
    assert_eq!(server.spec(&id).snapshot, expected);
    let task = server.granted("get", json!({"task_id": id})).await;
    assert_eq!(task["task"]["initial"], "snapshot");
    server
        .tasks
        .shut_down(std::time::Duration::from_secs(1))
        .await;
    drop(server);
    let server = start(&path, true).await;
    assert_eq!(server.spec(&id).snapshot, expected, "after a restart");
    for (fields, part) in [
        (
            json!({"initial": "later"}),
            "request_data.initial: one of incremental, snapshot, auto",
        ),
        (
            json!({"initial": "snapshot", "start": "now"}),
            "request_data.start: nothing expected here",
        ),
        (
            json!({"initial": "auto", "start": "earliest"}),
            "request_data.start: nothing expected here",
        ),
        (
            json!({"initial": "auto", "rows_per_second": 0}),
            "request_data.rows_per_second: a whole number from 1 to",
        ),
        (
            json!({"load_for_snapshot": "yes"}),
            "request_data.load_for_snapshot",
        ),
    ] {
        let mut asked = fields.clone();
        asked["collection_infos"] = all.clone();
        let body = server.refused("create", request(asked), 400).await;
        assert!(body.contains(part), "{fields}: {body}");
    }
}
