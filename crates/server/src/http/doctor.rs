//! `/api/v1/doctor`: GET looks at what is configured, POST at one more target beside it.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cdc_core::task::TargetSpec;
use serde_json::{Map, Value};

use super::problem::Refusal;
use super::{Api, body};
use crate::doctor;
use crate::fields::{Errors, Fields};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/api/v1/doctor", get(look).post(look_further))
}

async fn look(State(api): State<Api>) -> Response {
    Json(doctor::in_server(&api.tasks, Vec::new()).await).into_response()
}

async fn look_further(State(api): State<Api>, body: Body) -> Result<Response, Refusal> {
    let bytes = body::read(body, &api.body).await?;
    let map = match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => map,
        Ok(_) => {
            let expected = "a JSON object expected, with milvus_connect_param in it";
            return Err(Refusal::invalid(expected));
        }
        Err(error) => return Err(Refusal::invalid(format!("malformed JSON: {error}"))),
    };
    let target = further(&api, &map)?;
    let targets = target.into_iter().collect();
    Ok(Json(doctor::in_server(&api.tasks, targets).await).into_response())
}

fn further(api: &Api, map: &Map<String, Value>) -> Result<Option<TargetSpec>, Refusal> {
    let errors = Errors::default();
    let data = Fields::root(map, &errors);
    let target = doctor::further_target(&data, api.tasks.call_timeout());
    data.finish();
    errors
        .check()
        .map_err(|all| Refusal::invalid(all.join("; ")))?;
    Ok(target)
}
