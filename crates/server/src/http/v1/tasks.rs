//! `/api/v1/tasks`: the tasks as resources.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cdc_core::ids::TaskId;
use serde_json::{Map, Value};

use super::query::{self, Window};
use super::shape::{Collection, Page, Positions, Task};
use super::{body, view};
use crate::fields::{Errors, Fields, clip};
use crate::http::access::Caller;
use crate::http::problem::{Body as Problem, Refusal};
use crate::http::{Api, body as raw};
use crate::request;
use crate::tasks::{self, Standing, TaskError};

pub(super) type Answer = Result<Response, Refusal>;
pub(super) type Id = Result<Path<String>, PathRejection>;

pub(super) fn id(id: Id) -> Result<String, Refusal> {
    id.map(|Path(id)| id)
        .map_err(|_| Refusal::invalid("the task id in the address cannot be read"))
}

/// The tasks, ordered by id
#[utoipa::path(get, path = "/api/v1/tasks", tag = "tasks", operation_id = "listTasks",
    params(
        ("after" = Option<String>, Query, description = "`next` of the answer before"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "100 if left out"),
    ),
    responses(
        (status = 200, body = Page<Task>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Answer {
    let window = query::window(&uri)?;
    readable(&api)?;
    let mut all: Vec<(String, Task)> = api
        .tasks
        .list()
        .iter()
        .map(|task| (task.spec.id.to_string(), view::task(task, None)))
        .collect();
    let others = api.tasks.unreadable();
    all.extend(
        others
            .iter()
            .map(|t| (t.id.to_string(), view::unreadable(t))),
    );
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Json(page(all, &window, |after, id| after < id)).into_response())
}

/// The items behind the window's `after`, and where the next page begins. `all` is in order.
pub(super) fn page<T>(
    all: Vec<(String, T)>,
    window: &Window,
    before: impl Fn(&str, &str) -> bool,
) -> Page<T> {
    let mut rest = all.into_iter().filter(|(id, _)| {
        window
            .after
            .as_deref()
            .is_none_or(|after| before(after, id))
    });
    let mut items = Vec::new();
    let mut last = None;
    for (id, item) in rest.by_ref().take(window.limit) {
        items.push(item);
        last = Some(id);
    }
    let more = rest.next().is_some();
    Page {
        items,
        next: last.filter(|_| more),
    }
}

/// Make a task and start it
///
/// The source and the target are looked at first. With an `id` a request can be repeated: a task of that id that asks
/// for the same is the answer, one that asks for something else is a conflict.
#[utoipa::path(post, path = "/api/v1/tasks", tag = "tasks", operation_id = "createTask",
    request_body = body::NewTask,
    responses(
        (status = 201, body = Task, headers(("Location" = String, description = "Address of the task"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "What is asked for cannot work, or the source or target refused the login"),
    ))]
pub(super) async fn create(State(api): State<Api>, headers: HeaderMap, body: Body) -> Answer {
    let map = object(&api, &headers, body).await?;
    // In a task of its own: a client that hangs up does not leave a request half done.
    let made = tokio::spawn(async move {
        let errors = Errors::default();
        let request = request::task(Fields::root(&map, &errors), &api.limits);
        check(&errors)?;
        let request = request.ok_or_else(|| Refusal::invalid("incomplete request"))?;
        writable(&api)?;
        let id = api.tasks.create(request).await?;
        let task = api.tasks.get(id.as_str())?;
        let location = format!("/api/v1/tasks/{id}");
        let shown = Json(view::task(&task, None));
        Ok((StatusCode::CREATED, [(header::LOCATION, location)], shown).into_response())
    });
    made.await.unwrap_or_else(|_| Err(Refusal::internal()))
}

/// One task, with how far it is
#[utoipa::path(get, path = "/api/v1/tasks/{id}", tag = "tasks", operation_id = "getTask",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, body = Task),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn get(State(api): State<Api>, path: Id) -> Answer {
    let id = id(path)?;
    Ok(Json(full(&api, &id).await?).into_response())
}

async fn full(api: &Api, id: &str) -> Result<Task, Refusal> {
    let (task, collections, progress) = match look(api, id).await {
        Ok(found) => found,
        Err(Look::Unreadable(shown)) => return Ok(*shown),
        Err(Look::Refused(refusal)) => return Err(refusal),
    };
    let status = api.tasks.status(&task.spec.id);
    let channels = progress.needs().into_keys().collect();
    let held = api.tasks.reach(&channels).await;
    let progress = view::progress(status.as_ref(), &progress, &collections, &held);
    Ok(view::task(&task, Some(progress)))
}

enum Look {
    Unreadable(Box<Task>),
    Refused(Refusal),
}

impl From<Refusal> for Look {
    fn from(refusal: Refusal) -> Self {
        Look::Refused(refusal)
    }
}

impl From<TaskError> for Look {
    fn from(error: TaskError) -> Self {
        Look::Refused(error.into())
    }
}

impl From<Look> for Refusal {
    fn from(look: Look) -> Self {
        match look {
            Look::Refused(refusal) => refusal,
            Look::Unreadable(task) => Refusal::from(TaskError::Unreadable {
                id: task.id,
                cause: task.reason.unwrap_or_default(),
            }),
        }
    }
}

/// A task with its collections and what is stored of it.
async fn look(
    api: &Api,
    id: &str,
) -> Result<(tasks::Task, Vec<Collection>, cdc_core::store::TaskProgress), Look> {
    readable(api)?;
    let task = match api.tasks.get(id) {
        Err(TaskError::Unreadable { .. }) => {
            let all = api.tasks.unreadable();
            let found = all.iter().find(|task| task.id.as_str() == id);
            return Err(match found {
                Some(found) => Look::Unreadable(Box::new(view::unreadable(found))),
                None => TaskError::NotFound(clip(id)).into(),
            });
        }
        other => other?,
    };
    let status = api.tasks.status(&task.spec.id);
    let stored = api
        .tasks
        .progress(&task.spec.id)
        .await
        .map_err(TaskError::from)?;
    let collections = view::collections(&task, status.as_ref(), &stored);
    Ok((task, collections, stored))
}

/// Pause a task, let it run again, edit it, answer what its collections wait for
///
/// An edit comes first: it is checked as a creation is, and a task that runs is stopped, stored and started again, which
/// loses and doubles nothing. Answers are checked all before one is applied, and wait up to 10 s for their collection to
/// ask.
#[utoipa::path(patch, path = "/api/v1/tasks/{id}", tag = "tasks", operation_id = "changeTask",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    request_body = body::Patch,
    responses(
        (status = 200, body = Task),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn change(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let id = id(path)?;
    let map = object(&api, &headers, body).await?;
    let changed = tokio::spawn(async move {
        let errors = Errors::default();
        let current = api.tasks.get(&id).ok();
        let current = current.as_ref().map(|task| (&task.spec, &task.given));
        let patch = request::patch(Fields::root(&map, &errors), &api.limits, current);
        check(&errors)?;
        writable(&api)?;
        if let Some(edited) = patch.edited {
            api.tasks.edit(&id, edited, caller.name()).await?;
        }
        match patch.run {
            Some(false) => api.tasks.pause(&id, caller.name(), patch.reason).await?,
            Some(true) => api.tasks.resume(&id, patch.answers).await?,
            None if patch.answers.is_empty() => drop(api.tasks.get(&id)?),
            None => {
                let task = api.tasks.get(&id)?;
                if task.desired != crate::store::Desired::Running {
                    let detail = format!("task {} is paused and takes no answers", clip(&id));
                    return Err(Refusal::new(StatusCode::CONFLICT, "task_paused", detail)
                        .hint("add \"state\": \"running\""));
                }
                api.tasks.resume(&id, patch.answers).await?;
            }
        }
        Ok(Json(full(&api, &id).await?).into_response())
    });
    changed.await.unwrap_or_else(|_| Err(Refusal::internal()))
}

/// Stop a task and forget it
///
/// What it has carried stays on the target, and so does what is known of the target's time.
#[utoipa::path(delete, path = "/api/v1/tasks/{id}", tag = "tasks", operation_id = "deleteTask",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 204),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Its target is being promoted"),
    ))]
pub(super) async fn delete(State(api): State<Api>, path: Id) -> Answer {
    let id = id(path)?;
    let gone = tokio::spawn(async move {
        writable(&api)?;
        api.tasks.delete(&id).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    });
    gone.await.unwrap_or_else(|_| Err(Refusal::internal()))
}

/// The collections of a task, ordered by the source's id
#[utoipa::path(get, path = "/api/v1/tasks/{id}/collections", tag = "tasks", operation_id = "listCollections",
    params(
        ("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("after" = Option<u64>, Query, description = "`next` of the answer before"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "100 if left out"),
    ),
    responses(
        (status = 200, body = Page<Collection>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn collections(State(api): State<Api>, path: Id, uri: Uri) -> Answer {
    let id = id(path)?;
    let window = query::window(&uri)?;
    window.after_number()?;
    let (_, collections, _) = look(&api, &id).await?;
    let all = collections.into_iter().map(|c| (c.id.clone(), c)).collect();
    let before = |after: &str, id: &str| query::number(after) < query::number(id);
    Ok(Json(page(all, &window, before)).into_response())
}

/// How far every stream of a task is
///
/// First the source's channels as stored, then the streams of single collections.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/positions", tag = "tasks", operation_id = "getPositions",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    responses(
        (status = 200, body = Positions),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn positions(State(api): State<Api>, path: Id) -> Answer {
    let id = id(path)?;
    let (_, collections, stored) = look(&api, &id).await?;
    let positions = view::positions(collections, &stored);
    Ok(Json(Positions { positions }).into_response())
}

/// Whether the tasks are known.
pub(super) fn readable(api: &Api) -> Result<(), Refusal> {
    match api.tasks.standing() {
        Standing::Owner | Standing::Waiting { .. } => Ok(()),
        Standing::Starting => Err(Refusal::not_ready()),
    }
}

/// Whether the tasks are this server's.
pub(super) fn writable(api: &Api) -> Result<(), Refusal> {
    match api.tasks.standing() {
        Standing::Owner => Ok(()),
        Standing::Waiting { owner } => Err(Refusal::not_owner(&owner)),
        Standing::Starting => Err(Refusal::not_ready()),
    }
}

pub(super) fn exists(api: &Api, id: &str) -> Result<TaskId, Refusal> {
    match api.tasks.get(id) {
        Ok(_) | Err(TaskError::Unreadable { .. }) => Ok(TaskId::new(id)),
        Err(error) => Err(error.into()),
    }
}

/// The body as a JSON object.
pub(super) async fn object(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
) -> Result<Map<String, Value>, Refusal> {
    parse(&bytes(api, headers, body).await?)
}

/// The same, where no body says as much as an empty object.
pub(super) async fn object_if_any(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
) -> Result<Map<String, Value>, Refusal> {
    match bytes(api, headers, body).await?.as_slice() {
        [] => Ok(Map::new()),
        bytes => parse(bytes),
    }
}

async fn bytes(api: &Api, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Refusal> {
    let bytes = raw::read(body, &api.body).await?;
    if let Some(kind) = headers.get(header::CONTENT_TYPE)
        && !is_json(kind.to_str().unwrap_or_default())
    {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Content-Type: application/json expected",
        ));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "malformed_json",
            format!("malformed JSON: {e}"),
        )
    })?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Refusal::invalid("a JSON object expected")),
    }
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

pub(super) fn check(errors: &Errors) -> Result<(), Refusal> {
    errors
        .check()
        .map_err(|all| Refusal::invalid(all.join("; ")))
}
