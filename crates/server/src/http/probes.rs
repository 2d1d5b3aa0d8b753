//! For machines that watch this process.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::{Api, answer, answer_error};

pub(super) async fn healthz() -> Response {
    answer(json!({ "status": "live" }))
}

pub(super) async fn readyz(State(api): State<Api>) -> Response {
    if !api.tasks.ready() {
        return answer_error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the stored tasks are being recovered",
        );
    }
    match api.warnings.as_ref() {
        [] => answer(json!({ "status": "ready" })),
        warnings => answer(json!({ "status": "ready", "warnings": warnings })),
    }
}
