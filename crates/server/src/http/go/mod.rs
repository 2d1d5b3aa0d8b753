//! `POST /cdc`: the requests of the Go server.

mod shape;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::store::StoreError;
use serde_json::{Map, Value, json};

use super::access::Caller;
use super::{Api, answer, answer_error, body, show};
use crate::fields::{Errors, Fields, clip};
use crate::maintenance::{self, Operation};
use crate::request;
use crate::tasks::{Standing, TaskError};
use shape::{CdcAnswer, CdcError, CdcRequest};

const TYPES: &[&str] = &[
    "create",
    "delete",
    "pause",
    "resume",
    "get",
    "list",
    "position",
    "maintenance",
];

type Failure = (StatusCode, String);

/// Every request of the Go server
///
/// `request_type` says what is asked for, `request_data` holds its parameters. An error has an HTTP status beside the
/// same `code` in the body.
#[utoipa::path(post, path = "/cdc", tag = "go", operation_id = "cdc",
    request_body = CdcRequest,
    responses(
        (status = 200, body = CdcAnswer),
        (status = 400, body = CdcError, description = "The request, or what it asks for, cannot work"),
        (status = 401, body = CdcError, description = "No token, or the source or target refused the login"),
        (status = 404, body = CdcError, description = "No such task"),
        (status = 409, body = CdcError, description = "It contradicts what is there"),
        (status = 413, body = CdcError, description = "The body is too large"),
    ))]
pub(super) async fn cdc(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Response {
    let bytes = match body::read(body, &api.body).await {
        Ok(bytes) => bytes,
        Err(refusal) => return refusal.answer(super::GO_PATH),
    };
    // In a task of its own: a client that hangs up does not leave a request half done.
    let handled = tokio::spawn(async move { handle(&api, &caller, &bytes).await }).await;
    match handled {
        Ok(Ok(data)) => answer(data),
        Ok(Err((status, message))) => answer_error(status, message),
        Err(_) => answer_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request broke off inside; see the log",
        ),
    }
}

/// A request that can be carried out as far as its form goes.
pub(super) enum Request {
    Create(Box<request::CreateTask>),
    Delete { id: String, ignore_not_found: bool },
    Pause(String),
    Resume(String, Vec<request::Answer>),
    Get(String),
    Position(String),
    List,
    Maintenance(Operation),
}

impl Request {
    fn is_reading(&self) -> bool {
        matches!(self, Request::Get(_) | Request::Position(_) | Request::List)
    }
}

pub(super) fn parse(limits: &request::Limits, bytes: &[u8]) -> Result<Request, Failure> {
    let body: Value =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("malformed JSON: {e}")))?;
    let Value::Object(map) = &body else {
        return Err(bad(
            "a JSON object with request_type and request_data expected",
        ));
    };
    let errors = Errors::default();
    let envelope = Fields::root(map, &errors);
    let kind = envelope.string("request_type");
    if kind.is_none() && !envelope.has("request_type") {
        envelope.wrong(
            "request_type",
            format_args!("missing; one of {}", TYPES.join(", ")),
        );
    }
    let empty = Map::new();
    let data = match envelope.secret_object("request_data") {
        Some(data) => data,
        None => Fields::element("request_data".to_owned(), &empty, &errors),
    };
    envelope.finish();
    check(&errors)?;
    let request = match kind.as_deref() {
        Some("create") => {
            let request = request::create(data, limits);
            check(&errors)?;
            Request::Create(Box::new(request.ok_or_else(|| bad("incomplete request"))?))
        }
        Some("delete") => {
            let ignore_not_found = data.boolean("ignore_not_found").unwrap_or(false);
            Request::Delete {
                id: task_id(data, &errors)?,
                ignore_not_found,
            }
        }
        Some("pause") => Request::Pause(task_id(data, &errors)?),
        Some("resume") => {
            let answers = request::answers(&data, limits);
            Request::Resume(task_id(data, &errors)?, answers)
        }
        Some("get") => Request::Get(task_id(data, &errors)?),
        Some("position") => Request::Position(task_id(data, &errors)?),
        Some("list") => {
            data.finish();
            check(&errors)?;
            Request::List
        }
        Some("maintenance") => {
            let operation = maintenance::read(data);
            check(&errors)?;
            Request::Maintenance(operation.ok_or_else(|| bad("incomplete request"))?)
        }
        other => {
            let other = clip(other.unwrap_or_default());
            return Err(bad(format!(
                "request_type: one of {} expected, not {other:?}",
                TYPES.join(", ")
            )));
        }
    };
    Ok(request)
}

async fn handle(api: &Api, caller: &Caller, bytes: &[u8]) -> Result<Value, Failure> {
    let request = parse(&api.limits, bytes)?;
    if !request.is_reading() && !caller.may_write() {
        let refusal = caller.read_only();
        return Err((
            refusal.status,
            format!("{}; {}", refusal.detail, refusal.hint),
        ));
    }
    let owner = match api.tasks.standing() {
        Standing::Owner => None,
        // It concerns this process, whoever runs the tasks.
        _ if matches!(request, Request::Maintenance(_)) => None,
        Standing::Waiting { owner } if request.is_reading() => Some(owner),
        standing => {
            owner_only(standing)?;
            None
        }
    };
    let mut data = carry_out(api, caller, request).await?;
    if let (Some(owner), Some(map)) = (owner, data.as_object_mut()) {
        map.insert("owner".to_owned(), json!(owner));
    }
    Ok(data)
}

/// Only the owner changes tasks and knows how far it is with that.
fn owner_only(standing: Standing) -> Result<(), Failure> {
    let why = match standing {
        Standing::Owner => return Ok(()),
        Standing::Waiting { owner } => format!(
            "{owner} owns the store and runs its tasks; ask that one, or this one again when it has taken over"
        ),
        Standing::Starting => "the stored tasks are being recovered; try again".to_owned(),
    };
    Err((StatusCode::SERVICE_UNAVAILABLE, why))
}

async fn carry_out(api: &Api, caller: &Caller, request: Request) -> Result<Value, Failure> {
    match request {
        Request::Create(request) => {
            let id = api.tasks.create(*request).await.map_err(failure)?;
            Ok(json!({ "task_id": id }))
        }
        Request::Delete {
            id,
            ignore_not_found,
        } => {
            match api.tasks.delete(&id).await {
                Err(TaskError::NotFound(_)) if ignore_not_found => {}
                other => other.map_err(failure)?,
            }
            Ok(json!({}))
        }
        Request::Pause(id) => {
            api.tasks
                .pause(&id, caller.name(), None)
                .await
                .map_err(failure)?;
            Ok(json!({}))
        }
        Request::Resume(id, answers) => {
            api.tasks.resume(&id, answers).await.map_err(failure)?;
            Ok(json!({}))
        }
        Request::Get(id) => {
            let task = match api.tasks.get(&id) {
                Err(TaskError::Unreadable { .. }) => {
                    let all = api.tasks.unreadable();
                    let found = all.iter().find(|task| task.id.as_str() == id);
                    return Ok(json!({ "task": found.map(show::failed) }));
                }
                other => other.map_err(failure)?,
            };
            let status = api.tasks.status(&task.spec.id);
            let events = api
                .tasks
                .events(&task.spec.id)
                .await
                .map_err(|e| failure(e.into()))?;
            let progress = api
                .tasks
                .progress(&task.spec.id)
                .await
                .map_err(|e| failure(e.into()))?;
            Ok(json!({ "task": show::full(&task, status.as_ref(), &progress, &events) }))
        }
        Request::Position(id) => {
            let task = api.tasks.get(&id).map_err(failure)?;
            let status = api.tasks.status(&task.spec.id);
            let progress = api
                .tasks
                .progress(&task.spec.id)
                .await
                .map_err(|e| failure(e.into()))?;
            Ok(show::positions(
                status.as_ref(),
                &progress,
                &api.limits.replicate_channel,
            ))
        }
        Request::Maintenance(operation) => {
            let state = maintenance::carry_out(&operation, &api.log_level).map_err(bad)?;
            tracing::warn!(by = caller.name(), "{state}");
            // The Go server's structure has lost its tag: it answers with the name of the field.
            Ok(json!({ "State": state, "state": state }))
        }
        Request::List => {
            let mut tasks: Vec<Value> = api
                .tasks
                .list()
                .iter()
                .map(|task| Value::Object(show::brief(task)))
                .collect();
            tasks.extend(api.tasks.unreadable().iter().map(show::failed));
            Ok(json!({ "tasks": tasks }))
        }
    }
}

fn task_id(data: Fields<'_>, errors: &Errors) -> Result<String, Failure> {
    let id = data.string("task_id");
    if id.is_none() && !data.has("task_id") || id.as_deref() == Some("") {
        data.wrong("task_id", "missing");
    }
    data.finish();
    check(errors)?;
    id.ok_or_else(|| bad("task_id: missing"))
}

fn check(errors: &Errors) -> Result<(), Failure> {
    errors.check().map_err(|all| bad(all.join("; ")))
}

fn bad(message: impl Into<String>) -> Failure {
    (StatusCode::BAD_REQUEST, message.into())
}

fn with_hint(problem: &Problem) -> String {
    if problem.hint.is_empty() {
        problem.message.clone()
    } else {
        format!("{}; {}", problem.message, problem.hint)
    }
}

pub(super) fn failure(error: TaskError) -> Failure {
    match &error {
        TaskError::NotFound(_) => (
            StatusCode::NOT_FOUND,
            format!("{error}; list shows what there is"),
        ),
        TaskError::NoMessage(_) => (StatusCode::NOT_FOUND, error.to_string()),
        TaskError::Refused(problem) => (refused(problem), with_hint(problem)),
        TaskError::Conflict(problem) => (StatusCode::CONFLICT, with_hint(problem)),
        TaskError::Unreadable { .. } => (
            StatusCode::CONFLICT,
            format!("{error}; delete it and create it again"),
        ),
        TaskError::Store(StoreError::NotOwner(_)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{error}; nothing was changed, see /readyz for who owns the store"),
        ),
        TaskError::Store(cause) => {
            tracing::error!(%cause, "the store failed");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("{cause}; see get for what is in effect, then try again"),
            )
        }
    }
}

/// The HTTP status of something that cannot be carried out now or ever.
fn refused(problem: &Problem) -> StatusCode {
    match (problem.code, problem.class) {
        (Some(ProblemCode::Login), _) => StatusCode::UNAUTHORIZED,
        (_, ErrorClass::Transient) => StatusCode::SERVICE_UNAVAILABLE,
        (_, ErrorClass::Conflict) => StatusCode::CONFLICT,
        (_, ErrorClass::Bug) => StatusCode::INTERNAL_SERVER_ERROR,
        (_, ErrorClass::Configuration | ErrorClass::Data) => StatusCode::BAD_REQUEST,
    }
}
