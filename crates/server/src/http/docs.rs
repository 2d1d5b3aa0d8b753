//! `/docs`: Swagger UI on the OpenAPI document. Its files come out of the archive in which they were published.

use std::io::{Cursor, Read};
use std::sync::OnceLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

use super::openapi::PATH;
use super::problem::Refusal;

pub(super) const PAGES: &str = "/docs";
/// What the page needs, with its type. Each is taken out once.
const FILES: [(&str, &str); 7] = [
    ("index.html", "text/html; charset=utf-8"),
    ("index.css", "text/css"),
    ("swagger-ui.css", "text/css"),
    ("swagger-ui-bundle.js", "text/javascript"),
    ("swagger-ui-standalone-preset.js", "text/javascript"),
    ("favicon-16x16.png", "image/png"),
    ("favicon-32x32.png", "image/png"),
];
static CONTENTS: [OnceLock<Option<Vec<u8>>>; FILES.len()] =
    [const { OnceLock::new() }; FILES.len()];

pub(super) fn routes() -> Router<super::Api> {
    Router::new()
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(async || file("index.html")))
        .route(
            "/docs/swagger-initializer.js",
            get(async || typed("text/javascript", initializer())),
        )
        .route(
            "/docs/{name}",
            get(async |Path(name): Path<String>| file(&name)),
        )
}

fn file(name: &str) -> Response {
    let found = FILES.iter().zip(&CONTENTS).find(|((n, _), _)| *n == name);
    match found {
        Some(((name, kind), cell)) => match cell.get_or_init(|| unpacked(name)) {
            Some(bytes) => typed(kind, bytes.as_slice()),
            None => Refusal::internal().answer("/docs"),
        },
        None => {
            let detail = "no such page; /docs/ is the first one";
            Refusal::new(StatusCode::NOT_FOUND, "no_such_path", detail).answer("/docs")
        }
    }
}

fn typed(kind: &'static str, content: impl IntoResponse) -> Response {
    let mut response = content.into_response();
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn unpacked(name: &str) -> Option<Vec<u8>> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED)).ok()?;
    let end = format!("/dist/{name}");
    let whole = archive
        .file_names()
        .filter_map(Result::ok)
        .filter(|n| n.ends_with(&end))
        .min_by_key(|n| n.len())?
        .into_owned();
    let mut bytes = Vec::new();
    archive.by_name(&whole).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The published one shows a document of its own.
fn initializer() -> String {
    format!(
        "window.onload = () => {{ window.ui = SwaggerUIBundle({{ url: \"{PATH}\", dom_id: '#swagger-ui', \
         deepLinking: true, presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset], \
         layout: 'StandaloneLayout' }}); }};"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_all_that_the_page_needs() {
        for (name, _) in FILES {
            assert!(unpacked(name).is_some_and(|b| !b.is_empty()), "{name}");
        }
        let page = String::from_utf8(unpacked("index.html").unwrap()).unwrap();
        let names = FILES.map(|(name, _)| name);
        for part in page.split('"').filter_map(|p| p.strip_prefix("./")) {
            assert!(
                part == "swagger-initializer.js" || names.contains(&part),
                "{part}"
            );
        }
    }
}
