//! The OpenAPI document as a whole, and its pages for people.

use axum::Router;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa_swagger_ui::SwaggerUi;

use super::problem;

/// Where the document is.
pub(super) const PATH: &str = "/api/v1/openapi.json";
pub(super) const PAGES: &str = "/docs";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "milvus-cdc",
        description = "Change data capture and replication for Milvus. Ids and timestamps of Milvus are strings, moments \
                       are unix milliseconds. Errors are application/problem+json with a code that does not change.",
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
        "Too many requests at once, still starting, or the source or target cannot be reached now",
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
        let writes = [&mut item.post, &mut item.patch, &mut item.delete];
        for operation in writes.into_iter().flatten() {
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
    SwaggerUi::new(PAGES).url(PATH, document).into()
}
