//! `/api/v1/tasks/{id}/promote`: POST begins or joins a promotion, GET says where it is.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use cdc_core::catalog::etcd::EtcdConfig;
use cdc_core::secret::Secret;
use cdc_core::tls::ClientTls;
use serde_json::{Map, Value};

use super::body;
use super::tasks::{Answer, Id, check, id, object_if_any, writable};
use crate::config::endpoints;
use crate::fields::{Errors, Fields};
use crate::http::Api;
use crate::http::problem::{Body as Problem, Refusal};
use crate::tasks::{Promotion, Wish};
use crate::tls_fields;

/// How long each step may take if nobody says otherwise.
const PATIENCE: u64 = 3600;

/// How far the promotion of a task's target is
///
/// Told by the server that does it, and after a restart from what is stored.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/promote", tag = "tasks", operation_id = "getPromotion",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, body = Promotion),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Nobody promotes it"),
    ))]
pub(super) async fn look(State(api): State<Api>, path: Id) -> Answer {
    let id = id(path)?;
    // Where it is, is in the memory of the server that does it.
    writable(&api)?;
    Ok(Json(api.tasks.promotion(&id)?).into_response())
}

/// Make the target of a task a Milvus of its own: there is no way back
///
/// All tasks to that target end with it, and for good. It goes on after the answer; asked again it is joined, or goes
/// on where it was.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/promote", tag = "tasks", operation_id = "promoteTarget",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    request_body = Option<body::Promote>,
    responses(
        (status = 202, body = Promotion),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn promote(
    State(api): State<Api>,
    path: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let id = id(path)?;
    let map = object_if_any(&api, &headers, body).await?;
    // In a task of its own: a client that hangs up does not leave a request half done.
    let begun = tokio::spawn(async move {
        let wish = wish(&map)?;
        writable(&api)?;
        let promotion = api.tasks.promote(&id, wish).await?;
        Ok((StatusCode::ACCEPTED, Json(promotion)).into_response())
    });
    begun.await.unwrap_or_else(|_| Err(Refusal::internal()))
}

/// What is wrong is said with the field's name; no password is shown.
fn wish(map: &Map<String, Value>) -> Result<Wish, Refusal> {
    let errors = Errors::default();
    let data = Fields::root(map, &errors);
    let patience = data.integer("patience_seconds", 1..=7 * 24 * 3600);
    let etcd = data.secret_object("target_etcd").and_then(read_etcd);
    data.finish();
    check(&errors)?;
    Ok(Wish {
        etcd,
        patience: Duration::from_secs(patience.unwrap_or(PATIENCE)),
    })
}

fn read_etcd(etcd: Fields<'_>) -> Option<EtcdConfig> {
    let default = EtcdConfig::default();
    let address = etcd.get("address");
    if address.is_none() {
        etcd.wrong("address", "missing; http://host:port, or a list of them");
    }
    let endpoints = address.and_then(|value| endpoints(&etcd, "address", value));
    let https = |e: &String| e.starts_with("https://");
    let mut tls = ClientTls::default();
    if let Some(endpoints) = endpoints.as_ref().filter(|all| all.iter().any(https)) {
        if !endpoints.iter().all(https) {
            etcd.wrong("address", "https:// for all of them expected, or for none");
        }
        tls = tls_fields::etcd(&etcd);
    }
    let root_path = etcd.string("rootPath");
    let meta_sub_path = etcd.string("metaSubPath");
    let (username, password) = (etcd.string("username"), etcd.secret("password"));
    if username.is_some() != password.is_some() {
        etcd.wrong("username", "username and password go together");
    }
    etcd.finish();
    Some(EtcdConfig {
        endpoints: endpoints?,
        root_path: root_path.unwrap_or(default.root_path),
        meta_sub_path: meta_sub_path.unwrap_or(default.meta_sub_path),
        username: username.unwrap_or_default(),
        password: Secret::new(password.unwrap_or_default()),
        tls,
        ..EtcdConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Map<String, Value> {
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_shown() {
        for (body, part) in [
            (r#"{"x": 1}"#, "x: unknown field"),
            (
                r#"{"patience_seconds": 0}"#,
                "patience_seconds: a whole number",
            ),
            (r#"{"target_etcd": "hush"}"#, "target_etcd: an object"),
            (r#"{"target_etcd": {}}"#, "target_etcd.address: missing"),
            (
                r#"{"target_etcd": {"address": "http://h:1", "password": "hush"}}"#,
                "target_etcd.username",
            ),
            (
                r#"{"target_etcd": {"address": ["https://h:1", "http://h:2"]}}"#,
                "target_etcd.address: all with https://",
            ),
            // Half a wish for TLS does not end as none.
            (
                r#"{"target_etcd": {"address": "http://h:1", "tlsCACertPath": "/ca.pem"}}"#,
                "target_etcd.tlsCACertPath: unknown",
            ),
            (
                r#"{"target_etcd": {"address": "https://h:1", "tlsCACertPath": "/no/ca.pem"}}"#,
                "target_etcd.tlsCACertPath",
            ),
        ] {
            let wrong = wish(&read(body)).unwrap_err().detail;
            assert!(wrong.contains(part) && !wrong.contains("hush"), "{wrong}");
        }
        let by_hand = wish(&Map::new()).unwrap();
        assert!(by_hand.etcd.is_none() && by_hand.patience == Duration::from_secs(PATIENCE));
        let given =
            r#"{"target_etcd": {"address": ["h:1"], "rootPath": "r"}, "patience_seconds": 9}"#;
        let etcd = wish(&read(given)).unwrap().etcd.unwrap();
        assert_eq!(
            (etcd.endpoints, etcd.root_path),
            (vec!["http://h:1".to_owned()], "r".to_owned())
        );
    }
}
