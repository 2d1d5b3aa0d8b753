//! The little HTTP/1.1 a test needs: one request per connection, the reply read to its end.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A reply.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// `GET path` from `host:port`.
///
/// # Errors
/// No connection, no reply within `deadline`, or a reply that is not HTTP.
pub async fn get(authority: &str, path: &str, deadline: Duration) -> Result<Reply> {
    request(authority, "GET", path, None, deadline).await
}

/// `POST path` with a JSON body.
///
/// # Errors
/// As [`get`].
pub async fn post(authority: &str, path: &str, body: &str, deadline: Duration) -> Result<Reply> {
    request(authority, "POST", path, Some(body), deadline).await
}

/// `PATCH path` with a JSON body.
///
/// # Errors
/// As [`get`].
pub async fn patch(authority: &str, path: &str, body: &str, deadline: Duration) -> Result<Reply> {
    request(authority, "PATCH", path, Some(body), deadline).await
}

async fn request(
    authority: &str,
    method: &str,
    path: &str,
    body: Option<&str>,
    deadline: Duration,
) -> Result<Reply> {
    let exchange = async {
        let mut stream = TcpStream::connect(authority)
            .await
            .with_context(|| format!("connect to {authority}"))?;
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
        // Only with a body: Milvus answers a GET that names JSON in JSON.
        if let Some(body) = body {
            head += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        head += "\r\n";
        let body = body.unwrap_or_default();
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        parse(&reply)
    };
    tokio::time::timeout(deadline, exchange)
        .await
        .with_context(|| {
            format!("{method} http://{authority}{path}: no reply within {deadline:?}")
        })?
        .with_context(|| format!("{method} http://{authority}{path}"))
}

fn parse(bytes: &[u8]) -> Result<Reply> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        bail!("the reply has no end of its head")
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let body = &bytes[end + 4..];
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("the reply has no status")?;
    let body = if head.contains("transfer-encoding: chunked") {
        unchunk(body)?
    } else {
        body.to_vec()
    };
    Ok(Reply {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn unchunk(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let Some(eol) = bytes.windows(2).position(|w| w == b"\r\n") else {
            bail!("a chunk without its size")
        };
        let size = String::from_utf8_lossy(&bytes[..eol]);
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
            .context("the size of a chunk")?;
        if size == 0 {
            return Ok(out);
        }
        let data = bytes
            .get(eol + 2..eol + 2 + size)
            .context("a chunk is cut off")?;
        out.extend_from_slice(data);
        bytes = bytes
            .get(eol + 2 + size + 2..)
            .context("a chunk without its end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_replies() {
        let r = parse(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!((r.status, r.body.as_str()), (404, "no"));
        let r = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!((r.status, r.body.as_str()), (200, "abcde"));
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
    }
}
