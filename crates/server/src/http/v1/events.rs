//! The history: a page of it as JSON, or all of it as it comes as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use cdc_core::ids::TaskId;
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::query::{self, PAGE};
use super::shape::{Event, Page};
use super::tasks::{Id, exists, id, readable};
use super::view;
use crate::http::Api;
use crate::http::problem::{Body as Problem, Refusal};
use crate::store::Logged;
use crate::tasks::TaskError;

/// How often the store is asked although nothing was said to have changed: another server may write to it too.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A follower is sent away after so long, and comes back with its `Last-Event-ID`: nobody is followed for ever.
const LIFE: Duration = Duration::from_secs(3600);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The history of all tasks, the oldest first
///
/// With `Accept: text/event-stream` the answer follows the history: each event with its `id`, its kind as `event` and
/// the same JSON as `data`. It begins behind `Last-Event-ID` or `after`, else with the oldest event that is kept: 200 of
/// each task, and of the last 200 deleted tasks that they were deleted.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", operation_id = "listEvents",
    params(
        ("after" = Option<u64>, Query, description = "`next` of the answer before, or the id of an event"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "100 if left out; not for following"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The last event seen, for following"),
    ),
    responses(
        (status = 200, content((Page<Event> = "application/json"), (String = "text/event-stream"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn all(
    State(api): State<Api>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    answer(api, None, &headers, &uri).await
}

/// The history of one task, the oldest first
///
/// With `Accept: text/event-stream` the answer follows the history, as that of all tasks does, and ends with the task.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/events", tag = "events", operation_id = "listTaskEvents",
    params(
        ("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("after" = Option<u64>, Query, description = "`next` of the answer before, or the id of an event"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "100 if left out; not for following"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The last event seen, for following"),
    ),
    responses(
        (status = 200, content((Page<Event> = "application/json"), (String = "text/event-stream"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn of_task(
    State(api): State<Api>,
    path: Id,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let id = id(path)?;
    readable(&api)?;
    let task = exists(&api, &id)?;
    answer(api, Some(task), &headers, &uri).await
}

async fn answer(
    api: Api,
    of: Option<TaskId>,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Response, Refusal> {
    let window = query::window(uri)?;
    let after = window.after_number()?;
    readable(&api)?;
    let last = match headers.get("last-event-id").map(|v| v.to_str()) {
        None => None,
        Some(text) => Some(text.ok().and_then(query::number).ok_or_else(|| {
            Refusal::invalid("Last-Event-ID: the id of an event expected, a whole number")
        })?),
    };
    if wants_stream(headers) {
        let after = last.or(after).unwrap_or(0);
        return follow(api, of, after);
    }
    // One more than asked for says whether there is more.
    let limit = window.limit as u32;
    let after = after.unwrap_or(0);
    let mut found = api
        .tasks
        .history(of.as_ref(), after, limit + 1)
        .await
        .map_err(TaskError::from)?;
    let more = found.len() > window.limit;
    found.truncate(window.limit);
    let next = found.last().map(|l| l.seq.to_string()).filter(|_| more);
    let items = found.into_iter().map(view::event).collect();
    Ok(Json(Page { items, next }).into_response())
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|kind| kind.trim().starts_with("text/event-stream"))
}

/// One who follows the history. Reads only when the connection takes more, one page at a time: a slow reader costs one
/// page of memory, and none of it is lost.
struct Follower {
    api: Api,
    of: Option<TaskId>,
    after: u64,
    page: VecDeque<Logged>,
    changes: watch::Receiver<()>,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

fn follow(api: Api, of: Option<TaskId>, after: u64) -> Result<Response, Refusal> {
    let place = api.followers.clone().try_acquire_owned().map_err(|_| {
        let detail = "too many follow the history already (limits.eventStreams)";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail)
            .hint("try again later, or read pages")
            .retry_after(10)
    })?;
    let follower = Follower {
        changes: api.tasks.history_changes(),
        api,
        of,
        after,
        page: VecDeque::new(),
        until: Instant::now() + LIFE,
        _place: place,
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events(follower))
        .keep_alive(keep_alive)
        .into_response())
}

fn events(follower: Follower) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    })
}

impl Follower {
    /// The next event; `None` when the server stops, the task is gone, the store fails or it has followed long enough.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(logged) = self.page.pop_front() {
                self.after = logged.seq;
                let shown = view::event(logged);
                let event = sse::Event::default()
                    .id(shown.id.to_string())
                    .event(shown.kind.as_str());
                return event.json_data(&shown).ok();
            }
            // Before the look: what is added during it is not missed.
            self.changes.mark_unchanged();
            let read = self
                .api
                .tasks
                .history(self.of.as_ref(), self.after, PAGE as u32);
            match read.await {
                Ok(found) => self.page = found.into(),
                Err(error) => {
                    tracing::warn!(%error, "the history cannot be followed");
                    return None;
                }
            }
            if !self.page.is_empty() {
                continue;
            }
            if let Some(of) = &self.of {
                // Its last event was seen. A task that was made anew under its id goes on.
                exists(&self.api, of.as_str()).ok()?;
            }
            tokio::select! {
                biased;
                () = self.api.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.until) => return None,
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}
