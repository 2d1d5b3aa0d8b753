//! For machines that watch this process.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::{Api, answer, answer_error};
use crate::tasks::Standing;

pub(super) async fn healthz() -> Response {
    answer(json!({ "status": "live" }))
}

pub(super) async fn readyz(State(api): State<Api>) -> Response {
    let why = match api.tasks.standing() {
        Standing::Owner => None,
        Standing::Starting => Some("the stored tasks are being recovered".to_owned()),
        Standing::Waiting { owner } => Some(format!(
            "waiting: {owner} owns the store and runs its tasks"
        )),
    };
    if let Some(why) = why {
        return answer_error(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    match api.warnings.as_ref() {
        [] => answer(json!({ "status": "ready" })),
        warnings => answer(json!({ "status": "ready", "warnings": warnings })),
    }
}
