//! The HTTP interface: the guards, the interface of the Go server, `/api/v1`, and what is for machines.

pub(crate) mod access;
mod body;
mod docs;
mod go;
mod metrics;
mod openapi;
mod probes;
pub(crate) mod problem;
mod show;
pub(crate) mod v1;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_response_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::access::{Access, BodyLimits};
use crate::maintenance::LogLevel;
use crate::request::Limits;
use crate::tasks::Tasks;
use access::Gate;
use problem::Refusal;

/// The one path of the Go server's interface.
const GO_PATH: &str = "/cdc";

/// What the interface is made of.
pub struct Parts {
    pub tasks: Tasks,
    pub limits: Limits,
    pub access: Access,
    /// What is unsafe about the configuration, for `/readyz`.
    pub warnings: Vec<String>,
    pub log_level: LogLevel,
    /// Ends the answers that would go on for ever.
    pub stop: CancellationToken,
}

/// Whether the body of a `POST /cdc` can be carried out as far as its form goes; else what is answered.
pub(crate) fn read_cdc(limits: &Limits, body: &[u8]) -> Result<(), String> {
    go::parse(limits, body)
        .map(drop)
        .map_err(|(_, message)| message)
}

/// What the handlers share.
#[derive(Clone)]
struct Api {
    tasks: Tasks,
    limits: Arc<Limits>,
    body: BodyLimits,
    warnings: Arc<[String]>,
    log_level: LogLevel,
    followers: Arc<Semaphore>,
    stop: CancellationToken,
}

/// The whole interface.
pub fn router(parts: Parts) -> Router {
    let gate = Gate::new(&parts.access);
    let api = Api {
        tasks: parts.tasks,
        limits: Arc::new(parts.limits),
        body: parts.access.body,
        // Where tokens are needed, those without one hear no more than that it is ready.
        warnings: match parts.access.tokens.is_empty() {
            true => parts.warnings.into(),
            false => Arc::default(),
        },
        log_level: parts.log_level,
        followers: Arc::new(Semaphore::new(parts.access.event_streams)),
        stop: parts.stop,
    };
    let (described, document) = described().split_for_parts();
    described
        .layer(map_response_with_state(api.clone(), v1::name_owner))
        .merge(openapi::pages(openapi::complete(document)))
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .route("/cdc/metrics", get(metrics::metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
        .layer(from_fn_with_state(gate, access::guard))
}

/// The routes that are in the OpenAPI document.
fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .merge(v1::routes())
        .routes(routes!(go::cdc))
}

async fn no_such_path(uri: Uri) -> Response {
    let detail = "no such path; there are /api/v1/tasks, /api/v1/events, /api/v1/doctor, /api/v1/version, \
                  /docs, /cdc, /cdc/metrics, /healthz, /readyz";
    Refusal::new(StatusCode::NOT_FOUND, "no_such_path", detail).answer(uri.path())
}

async fn wrong_method(uri: Uri) -> Response {
    let detail = "wrong method: POST for /cdc, for /api/v1 see /docs, GET for the others";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", detail).answer(uri.path())
}

fn answer(data: Value) -> Response {
    axum::Json(json!({ "code": 200, "data": data })).into_response()
}

fn answer_error(status: StatusCode, message: impl Into<String>) -> Response {
    let message: String = message.into();
    (
        status,
        axum::Json(json!({ "code": status.as_u16(), "message": message })),
    )
        .into_response()
}
