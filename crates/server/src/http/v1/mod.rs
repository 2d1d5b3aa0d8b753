//! `/api/v1`: the tasks as resources, described by an OpenAPI document that is made from the handlers.

pub(crate) mod body;
mod events;
mod query;
pub(crate) mod shape;
mod tasks;
mod view;

use axum::Json;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use shape::Version;

/// The routes, each with its description.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(version))
        .routes(routes!(tasks::list, tasks::create))
        .routes(routes!(tasks::get, tasks::change, tasks::delete))
        .routes(routes!(tasks::collections))
        .routes(routes!(tasks::positions))
        .routes(routes!(events::of_task))
        .routes(routes!(events::all))
}

/// Which program this is
#[utoipa::path(get, path = "/api/v1/version", tag = "server", operation_id = "getVersion",
    responses((status = 200, body = Version)))]
async fn version() -> Response {
    let known = [
        ("natsmq", cfg!(feature = "natsmq")),
        ("rocksmq", cfg!(feature = "rocksmq")),
    ];
    let built = known.into_iter().filter(|(_, built)| *built);
    let queues = built.map(|(name, _)| name).collect();
    Json(Version {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        queues,
    })
    .into_response()
}
