//! Errors of the HTTP interface: as `application/problem+json` (RFC 9457) under `/api`, in the Go server's form elsewhere.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::store::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::tasks::TaskError;

/// What went wrong, for programs (`code`) and for people (`detail`, `hint`).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Body {
    /// `urn:milvus-cdc:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The meaning of the HTTP status.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// Says which error it is; does not change from version to version.
    #[schema(example = "task_not_found", pattern = "^[a-z_]+$")]
    code: &'static str,
    /// What happened, with the values that matter.
    detail: String,
    /// What to do about it; empty if there is nothing to do.
    hint: String,
}

/// Why a request is not granted.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) hint: Cow<'static, str>,
    /// Seconds after which to try again.
    pub(crate) retry_after: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            hint: Cow::Borrowed(""),
            retry_after: None,
        }
    }

    pub(crate) fn hint(self, hint: impl Into<Cow<'static, str>>) -> Self {
        Self {
            hint: hint.into(),
            ..self
        }
    }

    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    pub(crate) fn not_ready() -> Self {
        let detail = "the stored tasks are being recovered";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail)
            .hint("try again in a moment")
            .retry_after(1)
    }

    /// Another server runs the tasks.
    pub(crate) fn not_owner(owner: &str) -> Self {
        let detail = format!("{owner} owns the store and runs its tasks");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_owner", detail)
            .hint("ask that one, or this one again when it has taken over; reads are answered here too")
            .retry_after(5)
    }

    pub(crate) fn internal() -> Self {
        let detail = "the request broke off inside";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).hint("see the log")
    }

    /// The answer, in the form that belongs to this path.
    pub(crate) fn answer(self, path: &str) -> Response {
        let plain = !path.starts_with("/api/");
        let status = self.status;
        let retry_after = self.retry_after;
        let mut response = if plain {
            let message = match self.hint.as_ref() {
                "" => self.detail,
                hint => format!("{}; {hint}", self.detail),
            };
            super::answer_error(status, message)
        } else {
            let body = Body {
                kind: format!("urn:milvus-cdc:problem:{}", self.code),
                title: status.canonical_reason().unwrap_or("Error"),
                status: status.as_u16(),
                code: self.code,
                detail: self.detail,
                hint: self.hint.into_owned(),
            };
            let mut response = (status, axum::Json(body)).into_response();
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/problem+json"),
            );
            response
        };
        let headers = response.headers_mut();
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED && self.code == "unauthorized" {
            let challenge = HeaderValue::from_static("Bearer realm=\"milvus-cdc\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// As the answer of `/api/v1`.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.answer("/api/")
    }
}

impl From<TaskError> for Refusal {
    fn from(error: TaskError) -> Self {
        let message = error.to_string();
        match error {
            TaskError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "task_not_found", message)
                .hint("GET /api/v1/tasks shows what there is"),
            TaskError::NoMessage(_) => {
                Self::new(StatusCode::NOT_FOUND, "message_not_found", message)
                    .hint("GET the task's quarantine shows what there is")
            }
            TaskError::Refused(problem) => refused(problem),
            TaskError::Conflict(problem) => {
                Self::new(StatusCode::CONFLICT, "conflict", problem.message).hint(problem.hint)
            }
            TaskError::Unreadable { .. } => {
                Self::new(StatusCode::CONFLICT, "task_unreadable", message)
                    .hint("delete it and create it again, or go back to the version that wrote it")
            }
            TaskError::Store(StoreError::NotOwner(_)) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_owner", message)
                    .hint("nothing was changed; /readyz says who owns the store")
                    .retry_after(5)
            }
            TaskError::Store(cause) => {
                tracing::error!(%cause, "the store failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", message)
                    .hint("look at the task to see what is in effect, then try again")
            }
        }
    }
}

/// Something that cannot be carried out now or ever. A login that the source or target refused is not one of this
/// server's own, which a 401 would say.
fn refused(problem: Problem) -> Refusal {
    let (status, code) = match (problem.code, problem.class) {
        (Some(ProblemCode::Login), _) => (StatusCode::UNPROCESSABLE_ENTITY, "login_refused"),
        (_, ErrorClass::Transient) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        (_, ErrorClass::Conflict) => (StatusCode::CONFLICT, "conflict"),
        (_, ErrorClass::Bug) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        (_, ErrorClass::Configuration | ErrorClass::Data) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "refused")
        }
    };
    let refusal = Refusal::new(status, code, problem.message).hint(problem.hint);
    match code {
        "unavailable" => refusal.retry_after(5),
        _ => refusal,
    }
}
