//! `/api/v1/tasks/{id}/quarantine`: the messages that could not be carried.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::Uri;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::decode::header::header;
use cdc_core::quarantine::MESSAGE_BYTES;
use cdc_core::task::Verdict;

use super::query;
use super::shape::{Page, Quarantined, QuarantinedMessage};
use super::tasks::{Answer, Id, id, page, readable, writable};
use super::view;
use crate::fields::clip;
use crate::http::Api;
use crate::http::access::Caller;
use crate::http::problem::{Body as Problem, Refusal};

/// Bytes of a message that are shown if nobody asks for more.
const BYTES: u64 = 64 << 10;

type Of = Result<Path<(String, String)>, PathRejection>;

fn of(path: Of) -> Result<(String, String), Refusal> {
    path.map(|Path(found)| found)
        .map_err(|_| Refusal::invalid("the task id or the key in the address cannot be read"))
}

/// Messages of a task that could not be carried, ordered by their keys
///
/// Each is what one collection stopped at. Up to 100 are kept of a task; those that are settled go first.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/quarantine", tag = "tasks", operation_id = "listQuarantine",
    params(
        ("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("after" = Option<String>, Query, description = "`next` of the answer before"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "100 if left out"),
    ),
    responses(
        (status = 200, body = Page<Quarantined>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(State(api): State<Api>, path: Id, uri: Uri) -> Answer {
    let id = id(path)?;
    let window = query::window(&uri)?;
    readable(&api)?;
    let all = api.tasks.quarantine(&id).await?;
    let all = all
        .iter()
        .map(|(key, record)| (key.clone(), view::quarantined(record)))
        .collect();
    Ok(Json(page(all, &window, |after, key| after < key)).into_response())
}

/// One message that could not be carried, with what can be read of it
///
/// Its bytes are rows of the source: a token that may only read does not see them.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/quarantine/{key}", tag = "tasks", operation_id = "getQuarantined",
    params(
        ("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("key" = String, Path, pattern = "^[0-9a-f-]{1,64}$"),
        ("bytes" = Option<u64>, Query, minimum = 0, maximum = 8_388_608,
            description = "How many of its bytes to show; 65536 if left out"),
    ),
    responses(
        (status = 200, body = QuarantinedMessage),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn get(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: Of,
    uri: Uri,
) -> Answer {
    let (id, key) = of(path)?;
    let limit = limit(&uri)?;
    readable(&api)?;
    let record = api.tasks.quarantined(&id, &key).await?;
    let message = api.tasks.message(&id, &record).await?;
    let shown = QuarantinedMessage {
        record: view::quarantined(&record),
        header: message.as_deref().map(|m| view::header(header(m))),
        bytes: message.filter(|_| caller.may_write()).map(|mut message| {
            message.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            STANDARD.encode(message)
        }),
    };
    Ok(Json(shown).into_response())
}

/// Reads `bytes`; there is no other parameter.
fn limit(uri: &Uri) -> Result<u64, Refusal> {
    let pairs: Query<Vec<(String, String)>> = Query::try_from_uri(uri)
        .map_err(|_| Refusal::invalid("the parameters of the address cannot be read"))?;
    let mut limit = None;
    for (name, value) in pairs.0 {
        if name != "bytes" {
            return Err(Refusal::invalid(format!(
                "{}: unknown parameter; allowed here: bytes",
                clip(&name)
            )));
        }
        let bytes = query::number(&value).filter(|n| *n <= MESSAGE_BYTES);
        let bytes = bytes.ok_or_else(|| {
            Refusal::invalid(format!(
                "bytes: a whole number from 0 to {MESSAGE_BYTES} expected, not {:?}",
                clip(&value)
            ))
        })?;
        if limit.replace(bytes).is_some() {
            return Err(Refusal::invalid("bytes: given twice"));
        }
    }
    Ok(limit.unwrap_or(BYTES))
}

/// Try a message again
///
/// Its collection goes on at it, at once. If it cannot be carried still, it waits again.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/quarantine/{key}/retry", tag = "tasks", operation_id = "retryQuarantined",
    params(
        ("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("key" = String, Path, pattern = "^[0-9a-f-]{1,64}$"),
    ),
    responses(
        (status = 200, body = Quarantined),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Its collection does not wait at it now"),
    ))]
pub(super) async fn retry(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: Of,
) -> Answer {
    judge(api, caller, path, Verdict::Retry).await
}

/// Leave a message out
///
/// Its collection goes on behind it, and its rows will be missing on the target. Its bytes stay, with who said so and
/// when.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/quarantine/{key}/drop", tag = "tasks", operation_id = "dropQuarantined",
    params(
        ("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("key" = String, Path, pattern = "^[0-9a-f-]{1,64}$"),
    ),
    responses(
        (status = 200, body = Quarantined),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Its collection does not wait at it now"),
    ))]
pub(super) async fn leave_out(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: Of,
) -> Answer {
    judge(api, caller, path, Verdict::Drop).await
}

async fn judge(api: Api, caller: Caller, path: Of, verdict: Verdict) -> Answer {
    let (id, key) = of(path)?;
    // In a task of its own: a client that hangs up does not leave a request half done.
    let judged = tokio::spawn(async move {
        writable(&api)?;
        let judged = api.tasks.judge(&id, &key, verdict, caller.name());
        let shown = view::quarantined(&judged.await?);
        Ok(Json(shown).into_response())
    });
    judged.await.unwrap_or_else(|_| Err(Refusal::internal()))
}
