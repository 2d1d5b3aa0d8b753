//! How much of the interface one may use.

use std::num::NonZeroU32;
use std::time::Duration;

use cdc_core::secret::Secret;
use milvus_cdc::config::access::{Access, ApiToken, BodyLimits, Role};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{Answer, access, start_with};

const SHORT: Duration = Duration::from_millis(300);
/// Until what is to come after `SHORT` must have come, on a machine with other things to do.
const SURELY: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn one_token_does_not_use_up_what_is_anothers() {
    let one = |name: &str| ApiToken {
        name: name.to_owned(),
        token: Secret::new(format!("{name}-0123456789abcdef")),
        role: Role::Full,
    };
    let access = Access {
        tokens: vec![one("a"), one("b")],
        requests_per_second: NonZeroU32::MIN,
        burst: NonZeroU32::new(3).unwrap(),
        ..access()
    };
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    let ask = async |token: &str| {
        let bearer = format!("Bearer {token}-0123456789abcdef");
        let path = "/api/v1/tasks";
        server
            .request("GET", path, &[("Authorization", &bearer)], b"")
            .await
    };
    let mut refused = None;
    for _ in 0..50 {
        let answer = ask("a").await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
        assert_eq!(answer.status, 200);
    }
    let refused = refused.expect("50 requests within their limit of 3");
    assert_eq!(refused.json()["code"], "rate_limited");
    assert!((1..=2).contains(&refused.headers["retry-after"].parse::<u64>().unwrap()));
    assert_eq!(ask("b").await.status, 200);
    // Guessing is limited too, and those who watch the process are not.
    let mut statuses = Vec::new();
    for _ in 0..50 {
        statuses.push(ask("nobody").await.status);
    }
    assert!(
        statuses.contains(&401) && statuses.contains(&429),
        "{statuses:?}"
    );
    for _ in 0..50 {
        assert_eq!(server.send("GET", "/healthz", b"").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_at_once_are_told_to_come_back() {
    let access = Access {
        concurrent_requests: 1,
        ..access()
    };
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    // One that is in work, because its body has not all come; the server asks for the body once it has a place.
    let mut slow = server.connect().await;
    let head =
        "POST /cdc HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    tokio::time::timeout(SURELY, slow.read_exact(&mut go_on))
        .await
        .expect("the body was never asked for")
        .unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    slow.write_all(b"{").await.unwrap();
    let refused = server.request("GET", "/api/v1/tasks", &[], b"").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["code"], "overloaded");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(server.send("GET", "/healthz", b"").await.0, 200);
    drop(slow);
    tokio::time::timeout(SURELY, async {
        while server.send("GET", "/api/v1/tasks", b"").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the place was never given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_dawdles_is_closed() {
    let access = Access {
        header_timeout: SHORT,
        body: BodyLimits {
            bytes: 2048,
            timeout: SHORT,
        },
        ..access()
    };
    let dir = tempfile::tempdir().unwrap();
    let server = start_with(&dir.path().join("s.db"), true, access).await;
    // A head that never ends, a byte at a time; and a connection on which nothing comes at all.
    let mut dripping = server.connect().await;
    dripping.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    let (mut from, mut to) = dripping.into_split();
    let drip = tokio::spawn(async move {
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut heard = Vec::new();
    let end = tokio::time::timeout(SURELY, from.read_to_end(&mut heard)).await;
    assert!(end.is_ok(), "a head that never ends was waited for");
    drip.abort();
    let mut silent = server.connect().await;
    let end = tokio::time::timeout(SURELY, silent.read_to_end(&mut heard)).await;
    assert!(end.is_ok(), "a connection without a request was kept");
    // One that has had an answer and asks for nothing more.
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut heard = Vec::new();
    let end = tokio::time::timeout(SURELY, idle.read_to_end(&mut heard)).await;
    assert!(end.is_ok(), "an idle connection was kept");
    assert_eq!(
        Answer::parse(&String::from_utf8(heard).unwrap()).status,
        200
    );
    // A body that does not come.
    let mut slow = server.connect().await;
    let head =
        "POST /api/v1/tasks HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    let end = tokio::time::timeout(SURELY, slow.read_to_string(&mut text)).await;
    assert!(end.is_ok(), "a body that does not come was waited for");
    let answer = Answer::parse(&text);
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (408, &json!("body_timeout"))
    );
    // And one that is too large.
    let (status, problem) = server
        .rest("POST", "/tasks", json!({"id": "x".repeat(3000)}))
        .await;
    assert_eq!((status, &problem["code"]), (413, &json!("body_too_large")));
}
