//! Reading a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use futures::StreamExt;

use super::problem::Refusal;
use crate::config::access::BodyLimits;

/// A larger body is taken in and thrown away up to here, so that its sender hears the answer instead of a broken
/// connection.
const DISCARD: usize = 32 * 1024 * 1024;
/// The same for a request that may not even be asked, and for how long.
const REFUSED: usize = 64 * 1024;
const REFUSED_TIME: Duration = Duration::from_millis(500);

pub(super) async fn read(body: Body, limits: &BodyLimits) -> Result<Vec<u8>, Refusal> {
    match tokio::time::timeout(limits.timeout, collect(body, limits.bytes)).await {
        Ok(result) => result,
        Err(_) => {
            let detail = format!(
                "the body did not arrive within {} ms (limits.bodyTimeoutMs)",
                limits.timeout.as_millis()
            );
            Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                detail,
            ))
        }
    }
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut size = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| {
            let detail = format!("the body broke off: {e}");
            Refusal::new(StatusCode::BAD_REQUEST, "body_broke_off", detail)
        })?;
        size += chunk.len();
        if size <= limit {
            bytes.extend_from_slice(&chunk);
        } else if size > DISCARD.max(limit) {
            break;
        }
    }
    if size > limit {
        let detail = format!("the body is larger than {limit} bytes (limits.bodyBytes)");
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            detail,
        ));
    }
    Ok(bytes)
}

/// Takes in what is left of the body of a request that is refused without being read, within narrow bounds: closed with
/// unread bytes, a connection breaks before its client has heard the answer.
pub(super) async fn drain(body: Body) {
    let mut stream = body.into_data_stream();
    let all = async {
        let mut left = REFUSED;
        while let Some(Ok(chunk)) = stream.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(REFUSED_TIME, all).await;
}
