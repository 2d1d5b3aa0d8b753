//! `/api/v1/doctor`: GET looks at what is configured, POST at one more target beside it.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;

use super::{Api, answer_error, body};
use crate::doctor;
use crate::fields::{Errors, Fields};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/api/v1/doctor", get(look).post(look_further))
}

async fn look(State(api): State<Api>) -> Response {
    Json(doctor::in_server(&api.tasks, Vec::new()).await).into_response()
}

async fn look_further(State(api): State<Api>, body: Body) -> Response {
    let bytes = match body::read(body).await {
        Ok(bytes) => bytes,
        Err((status, message)) => return answer_error(status, message),
    };
    let errors = Errors::default();
    let targets = match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => {
            let data = Fields::root(&map, &errors);
            let target = doctor::further_target(&data, api.tasks.call_timeout());
            data.finish();
            target.into_iter().collect()
        }
        Ok(_) => {
            errors.add("a JSON object expected, with milvus_connect_param in it");
            Vec::new()
        }
        Err(error) => {
            errors.add(format!("malformed JSON: {error}"));
            Vec::new()
        }
    };
    match errors.check() {
        Err(all) => answer_error(StatusCode::BAD_REQUEST, all.join("; ")),
        Ok(()) => Json(doctor::in_server(&api.tasks, targets).await).into_response(),
    }
}
