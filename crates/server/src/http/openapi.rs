//! The OpenAPI document as a whole, and its pages for people.

use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

use super::{docs, problem};

/// Where the document is.
pub(super) const PATH: &str = "/api/v1/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "milvus-cdc",
        description = "Change data capture and replication for Milvus. Ids and timestamps of Milvus are strings, moments \
                       are unix milliseconds. Errors are application/problem+json with a code that does not change. \
                       A server that shares its store and waits answers reads as well, with the name of the one that \
                       runs the tasks in the header milvus-cdc-owner; it refuses everything else with not_owner.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(problem::Body)),
    tags(
        (name = "tasks", description = "What is carried from the source to a target"),
        (name = "events", description = "What became of the tasks"),
        (name = "server", description = "The program itself"),
        (name = "go", description = "The interface of the Go server"),
    ),
)]
pub(super) struct Document;

/// What may come of every request, beside what its own description says.
const ALWAYS: [(&str, &str); 5] = [
    ("401", "No token, or a wrong one (with security.tokens)"),
    (
        "429",
        "Too many requests with this token; Retry-After says when to go on",
    ),
    ("500", "The store failed, or a bug"),
    (
        "503",
        "Too many requests at once, still starting, waiting for another server to end, or the source or target cannot be \
         reached now",
    ),
    ("408", "The body did not arrive in time"),
];

/// Adds what holds for all: the login and the answers of the guards before the handlers.
pub(super) fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let components = document.components.get_or_insert_default();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("token", bearer);
    document.security = Some(vec![SecurityRequirement::new(
        "token",
        Vec::<String>::new(),
    )]);
    for (path, item) in &mut document.paths.paths {
        // Those of the Go server answer in its form.
        let kind = path.starts_with("/api/");
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            for (status, description) in ALWAYS {
                let answer = refusal(description, kind);
                responses.entry(status.to_owned()).or_insert(answer);
            }
        }
        let writing = [&mut item.post, &mut item.patch, &mut item.delete];
        for operation in writing.into_iter().flatten() {
            let answer = refusal("The token may only read", kind);
            let responses = &mut operation.responses.responses;
            responses.entry("403".to_owned()).or_insert(answer);
        }
    }
    document
}

fn refusal(description: &str, problem: bool) -> RefOr<Response> {
    let (kind, schema) = match problem {
        true => ("application/problem+json", "Problem"),
        false => ("application/json", "CdcError"),
    };
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .build();
    let response = ResponseBuilder::new()
        .description(description)
        .content(kind, content)
        .build();
    RefOr::T(response)
}

/// The document and its pages.
pub(super) fn pages(document: utoipa::openapi::OpenApi) -> Router<super::Api> {
    let document = Arc::new(document);
    Router::new()
        .route(
            PATH,
            get(async move || axum::Json(document.as_ref()).into_response()),
        )
        .merge(docs::routes())
}
