//! Reading a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use futures::StreamExt;

/// Largest body that is read.
const LIMIT: usize = 1024 * 1024;
/// A larger body is taken in and thrown away up to here, so that its sender hears the answer instead of a broken
/// connection.
const DISCARD: usize = 32 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn read(body: Body) -> Result<Vec<u8>, (StatusCode, String)> {
    match tokio::time::timeout(DEADLINE, collect(body)).await {
        Ok(result) => result,
        Err(_) => Err((
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive within 10 s".to_owned(),
        )),
    }
}

async fn collect(body: Body) -> Result<Vec<u8>, (StatusCode, String)> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut size = 0;
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|e| (StatusCode::BAD_REQUEST, format!("the body broke off: {e}")))?;
        size += chunk.len();
        if size <= LIMIT {
            bytes.extend_from_slice(&chunk);
        } else if size > DISCARD {
            break;
        }
    }
    if size > LIMIT {
        return Err((
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {LIMIT} bytes"),
        ));
    }
    Ok(bytes)
}
