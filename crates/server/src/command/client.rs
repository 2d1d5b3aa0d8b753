//! What the commands say to a server. One place, for one JSON answer each.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::http::Uri;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECT: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const LIMIT: u64 = 64 << 20;

/// `GET path`: the body of an answer with a status of 2xx.
///
/// # Errors
/// No answer within `deadline`, or one with another status: its message.
pub(super) async fn get(server: &str, path: &str, deadline: Duration) -> anyhow::Result<Value> {
    send(server, "GET", path, String::new(), deadline).await
}

/// `POST path` with a JSON body; otherwise as [`get`].
///
/// # Errors
/// As [`get`].
pub(super) async fn post(
    server: &str,
    path: &str,
    body: &Value,
    deadline: Duration,
) -> anyhow::Result<Value> {
    send(server, "POST", path, body.to_string(), deadline).await
}

async fn send(
    server: &str,
    method: &str,
    path: &str,
    body: String,
    deadline: Duration,
) -> anyhow::Result<Value> {
    let authority = authority(server)?;
    let ask = async {
        let mut stream = tokio::time::timeout(CONNECT, TcpStream::connect(&authority))
            .await
            .with_context(|| format!("{authority} does not answer"))?
            .with_context(|| format!("connect to {authority}"))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LIMIT).read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(deadline, ask)
        .await
        .with_context(|| format!("no answer of {authority} within {} s", deadline.as_secs()))??;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{authority} does not speak HTTP"))?;
    let status: u16 = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("{authority} does not speak HTTP"))?;
    let value: Value =
        serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    if !(200..300).contains(&status) {
        let message = ["message", "detail"]
            .iter()
            .find_map(|key| value.get(key).and_then(Value::as_str));
        bail!("{} (HTTP {status})", message.unwrap_or(body));
    }
    Ok(value)
}

/// `host:port` of `http://host:port`.
fn authority(server: &str) -> anyhow::Result<String> {
    let full = match server.contains("://") {
        true => server.to_owned(),
        false => format!("http://{server}"),
    };
    let expected = || format!("--server: http://host:port expected, not {server:?}");
    let uri: Uri = full.parse().with_context(expected)?;
    match (uri.scheme_str(), uri.host(), uri.port_u16()) {
        (Some("http"), Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        (Some("http"), Some(host), None) => Ok(format!("{host}:8444")),
        _ => bail!(expected()),
    }
}

/// A secret in a file, without the line end.
///
/// # Errors
/// The file cannot be read.
pub(super) fn secret_from(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_a_host_and_a_port() {
        for (given, found) in [
            ("http://h:1", "h:1"),
            ("h:1", "h:1"),
            ("http://h", "h:8444"),
            ("http://[::1]:2/", "[::1]:2"),
        ] {
            assert_eq!(authority(given).unwrap(), found);
        }
        for bad in ["https://h:1", "", "http://"] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }
}
