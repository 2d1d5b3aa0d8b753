//! `/api/v1/plan`: what a task would do.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;

use super::body;
use super::shape::{LeftOut, Plan, PlannedCollection};
use super::tasks::{Answer, check, object, writable};
use crate::fields::{Errors, Fields};
use crate::http::Api;
use crate::http::problem::{Body as Problem, Refusal};
use crate::request;

/// What a task would do, with nothing written
///
/// The body is that of a creation. The answer says which collections of the source would be carried, under which names,
/// which are left out by which rule, and what speaks against it: names that are none or that two would have, collections
/// that are on the target with rows, other tasks that write them. With the `id` of a task that is there it is what an edit
/// of it would come to.
#[utoipa::path(post, path = "/api/v1/plan", tag = "tasks", operation_id = "planTask",
    request_body = body::NewTask,
    responses(
        (status = 200, body = Plan),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "The source refused the login, or what is configured cannot work"),
    ))]
pub(super) async fn plan(State(api): State<Api>, headers: HeaderMap, body: Body) -> Answer {
    let map = object(&api, &headers, body).await?;
    let errors = Errors::default();
    let request = request::task(Fields::root(&map, &errors), &api.limits);
    check(&errors)?;
    let request = request.ok_or_else(|| Refusal::invalid("incomplete request"))?;
    writable(&api)?;
    let plan = api.tasks.plan(request).await?;
    let shown = Plan {
        ok: plan.is_ok(),
        collections: plan
            .carried
            .into_iter()
            .map(|c| PlannedCollection {
                source: c.source.to_string(),
                target: c.target.to_string(),
                rule: c.rule,
                problems: c.problems,
            })
            .collect(),
        left_out: plan
            .left_out
            .into_iter()
            .map(|(source, rule)| LeftOut {
                source: source.to_string(),
                rule,
            })
            .collect(),
        problems: plan.problems,
    };
    Ok(Json(shown).into_response())
}
