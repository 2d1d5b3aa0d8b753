//! Rows that are copied anew: only of a paused task, only by who may write.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::error::{ErrorClass, Problem};
use cdc_core::repair::Keys;
use cdc_core::secret::Secret;
use milvus::proto::msg::InsertRequest;
use milvus_cdc::config::access::{Access, ApiToken, Role};
use prost::Message;
use serde_json::{Value, json};

use crate::server::{access, start, start_with, wanted};

fn body() -> Value {
    let insert = STANDARD.encode(InsertRequest::default().encode_to_vec());
    json!({
        "collection_id": "445811557825249939",
        "partition_id": "8",
        "read_at": "445811557825249999",
        "int_keys": ["1", "-2"],
        "rows": [{"partition_id": "8", "shard": 0, "insert": insert}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_task_is_repaired_and_it_is_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("s.db"), true).await;
    let id = server.create(wanted("*")).await;
    let path = format!("/tasks/{id}/repair");
    let (status, answer) = server.rest("POST", &path, body()).await;
    assert_eq!((status, &answer["code"]), (409, &json!("conflict")));
    let hint = answer["hint"].as_str().unwrap();
    assert!(hint.contains("pause it first"), "{answer}");
    assert!(server.fake.repaired.lock().is_empty());

    server.granted("pause", json!({"task_id": id})).await;
    let (status, answer) = server.rest("POST", &path, body()).await;
    let done = json!({"database": "db", "name": "a", "replaced": 1, "deleted": 1});
    assert_eq!((status, answer), (200, done));
    let asked = server.fake.repaired.lock().pop().unwrap();
    assert_eq!(asked.keys, Keys::Int(vec![1, -2]));
    assert!(!asked.flush);
    let (_, events) = server
        .rest("GET", &format!("/tasks/{id}/events"), Value::Null)
        .await;
    let last = events["items"].as_array().unwrap().last().unwrap();
    assert_eq!(last["kind"], "repaired");
    let text = last["text"].as_str().unwrap();
    assert!(
        text.contains("http: db.a: 1 row(s) copied anew, 1 deleted"),
        "{text}"
    );
    // It stays paused.
    assert!(server.fake.running.lock().is_empty());

    for (class, wanted) in [
        (ErrorClass::Conflict, 409),
        (ErrorClass::Data, 422),
        (ErrorClass::Transient, 503),
    ] {
        let why = Problem::new(class, "it does not fit", "read it again");
        *server.fake.refuse_repair.lock() = Some(why);
        let (status, answer) = server.rest("POST", &path, body()).await;
        assert_eq!(status, wanted, "{answer}");
        assert_eq!(answer["detail"], "it does not fit");
    }
    let (status, _) = server.rest("POST", "/tasks/nobody/repair", body()).await;
    assert_eq!(status, 404);
    let (status, answer) = server.rest("POST", &path, json!({"shard": 0})).await;
    let detail = answer["detail"].as_str().unwrap();
    assert!(
        status == 400
            && detail.contains("collection_id: missing")
            && detail.contains("shard: unknown"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_only_read_repairs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access {
        tokens: vec![ApiToken {
            name: "reader".to_owned(),
            token: Secret::new("reader-0123456789abcdef"),
            role: Role::Read,
        }],
        ..access()
    };
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    let headers = [
        ("Authorization", "Bearer reader-0123456789abcdef"),
        ("Content-Type", "application/json"),
    ];
    let body = body().to_string();
    let refused = server
        .request("POST", "/api/v1/tasks/t/repair", &headers, body.as_bytes())
        .await;
    assert_eq!(refused.status, 403);
}
