//! `/api/v1`: the tasks as resources, described by an OpenAPI document that is made from the handlers.

pub(crate) mod body;
mod doctor;
mod events;
mod plan;
mod promote;
mod quarantine;
mod query;
mod repair;
pub(crate) mod shape;
mod tasks;
mod view;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use crate::tasks::Standing;
use shape::Version;

const OWNER: HeaderName = HeaderName::from_static("milvus-cdc-owner");

/// The routes, each with its description.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(version))
        .routes(routes!(tasks::list, tasks::create))
        .routes(routes!(tasks::get, tasks::change, tasks::delete))
        .routes(routes!(plan::plan))
        .routes(routes!(tasks::collections))
        .routes(routes!(tasks::positions))
        .routes(routes!(promote::look, promote::promote))
        .routes(routes!(quarantine::list))
        .routes(routes!(quarantine::get))
        .routes(routes!(quarantine::retry))
        .routes(routes!(quarantine::leave_out))
        .routes(routes!(repair::repair))
        .routes(routes!(events::of_task))
        .routes(routes!(events::all))
        .routes(routes!(doctor::look, doctor::look_further))
}

/// Where another server runs the tasks, its name goes with every answer.
pub(super) async fn name_owner(State(api): State<Api>, mut response: Response) -> Response {
    if let Standing::Waiting { owner } = api.tasks.standing()
        && let Ok(owner) = HeaderValue::from_str(&owner)
    {
        response.headers_mut().insert(OWNER, owner);
    }
    response
}

/// Which program this is
#[utoipa::path(get, path = "/api/v1/version", tag = "server", operation_id = "getVersion",
    responses((status = 200, body = Version)))]
async fn version() -> Response {
    let built = [
        ("natsmq", cfg!(feature = "natsmq")),
        ("rocksmq", cfg!(feature = "rocksmq")),
        ("kafka", cfg!(feature = "kafka")),
        ("pulsar", cfg!(feature = "pulsar")),
    ];
    let queues = built.into_iter().filter(|(_, here)| *here);
    let queues = queues.map(|(name, _)| name).collect();
    Json(Version {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        queues,
    })
    .into_response()
}
