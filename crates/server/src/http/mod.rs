//! The HTTP interface.

mod body;
mod doctor;
mod handlers;
mod metrics;
mod promote;
mod show;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::request::Limits;
use crate::tasks::Tasks;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    pub tasks: Tasks,
    pub limits: Arc<Limits>,
}

pub fn router(tasks: Tasks, limits: Limits) -> Router {
    Router::new()
        .route("/cdc", post(handlers::cdc))
        .route("/healthz", get(handlers::healthz))
        .route("/readyz", get(handlers::readyz))
        .route("/cdc/metrics", get(metrics::metrics))
        .merge(doctor::routes())
        .merge(promote::routes())
        .fallback(async || {
            answer_error(
                StatusCode::NOT_FOUND,
                "no such path; there are /cdc, /cdc/metrics, /healthz, /readyz",
            )
        })
        .method_not_allowed_fallback(async || {
            answer_error(
                StatusCode::METHOD_NOT_ALLOWED,
                "wrong method: POST for /cdc, GET for the others",
            )
        })
        .with_state(Api {
            tasks,
            limits: Arc::new(limits),
        })
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
