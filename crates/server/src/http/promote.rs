//! `/api/v1/tasks/{id}/promote`: POST begins or joins a promotion, GET says where it is.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cdc_core::catalog::etcd::EtcdConfig;
use cdc_core::secret::Secret;
use cdc_core::tls::ClientTls;
use serde_json::{Map, Value};

use super::problem::Refusal;
use super::v1::writable;
use super::{Api, body};
use crate::config::endpoints;
use crate::fields::{Errors, Fields};
use crate::tasks::Wish;
use crate::tls_fields;

/// How long each step may take if nobody says otherwise.
const PATIENCE: u64 = 3600;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/api/v1/tasks/{id}/promote", get(look).post(promote))
}

async fn look(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refusal> {
    // Where it is, is in the memory of the server that does it.
    writable(&api)?;
    Ok(Json(api.tasks.promotion(&id)?).into_response())
}

async fn promote(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let bytes = body::read(body, &api.body).await?;
    writable(&api)?;
    let wish = wish(&bytes).map_err(Refusal::invalid)?;
    let promotion = api.tasks.promote(&id, wish).await?;
    Ok((StatusCode::ACCEPTED, Json(promotion)).into_response())
}

/// What is wrong is said with the field's name; no password is shown.
fn wish(bytes: &[u8]) -> Result<Wish, String> {
    let map = match bytes {
        [] => Map::new(),
        bytes => match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err("a JSON object expected".to_owned()),
            Err(error) => return Err(format!("malformed JSON: {error}")),
        },
    };
    let errors = Errors::default();
    let data = Fields::root(&map, &errors);
    let patience = data.integer("patience_seconds", 1..=7 * 24 * 3600);
    let etcd = data.secret_object("target_etcd").and_then(read_etcd);
    data.finish();
    errors.check().map_err(|all| all.join("; "))?;
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

    #[test]
    fn what_is_wrong_is_named_and_no_password_shown() {
        for (body, part) in [
            ("[]", "object"),
            ("{", "malformed"),
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
            let wrong = wish(body.as_bytes()).unwrap_err();
            assert!(wrong.contains(part) && !wrong.contains("hush"), "{wrong}");
        }
        let by_hand = wish(b"").unwrap();
        assert!(by_hand.etcd.is_none() && by_hand.patience == Duration::from_secs(PATIENCE));
        let given =
            br#"{"target_etcd": {"address": ["h:1"], "rootPath": "r"}, "patience_seconds": 9}"#;
        let etcd = wish(given).unwrap().etcd.unwrap();
        assert_eq!(
            (etcd.endpoints, etcd.root_path),
            (vec!["http://h:1".to_owned()], "r".to_owned())
        );
    }
}
