//! `/api/v1/doctor`: GET looks at what is configured, POST at one more target beside it.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use cdc_core::task::TargetSpec;
use serde_json::{Map, Value};

use super::shape::Report;
use super::tasks::{Answer, check, object};
use super::{body, view};
use crate::doctor;
use crate::fields::{Errors, Fields};
use crate::http::Api;
use crate::http::problem::{Body as Problem, Refusal};

/// Look at the source, the queue, the store and every target
///
/// It changes nothing, and says of everything that is wrong what to do. A check that has no outcome within 20 s is a
/// problem of its own.
#[utoipa::path(get, path = "/api/v1/doctor", tag = "server", operation_id = "getDoctor",
    responses((status = 200, body = Report)))]
pub(super) async fn look(State(api): State<Api>) -> Response {
    Json(view::report(
        doctor::in_server(&api.tasks, Vec::new()).await,
    ))
    .into_response()
}

/// The same, and a target that no task has yet
#[utoipa::path(post, path = "/api/v1/doctor", tag = "server", operation_id = "askDoctor",
    request_body = body::Doctor,
    responses(
        (status = 200, body = Report),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn look_further(State(api): State<Api>, headers: HeaderMap, body: Body) -> Answer {
    let map = object(&api, &headers, body).await?;
    let target = further(&api, &map)?;
    let targets = target.into_iter().collect();
    let report = doctor::in_server(&api.tasks, targets).await;
    Ok(Json(view::report(report)).into_response())
}

fn further(api: &Api, map: &Map<String, Value>) -> Result<Option<TargetSpec>, Refusal> {
    let errors = Errors::default();
    let data = Fields::root(map, &errors);
    let target = doctor::further_target(&data, api.tasks.call_timeout());
    data.finish();
    check(&errors)?;
    Ok(target)
}
