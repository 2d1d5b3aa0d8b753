//! Requests to the server, and what their failures mean.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Method, Request, StatusCode};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::Failure;
use crate::cli::{Connection, Output};

/// Largest answer that is read.
const ANSWER: u64 = 32 * 1024 * 1024;

pub(super) struct Client {
    agent: ureq::Agent,
    server: String,
    /// No `Debug`, and never shown.
    authorization: Option<String>,
    pub(super) output: Output,
}

impl Client {
    pub(super) fn new(connection: &Connection) -> Result<Self, Failure> {
        let server = connection.server.trim_end_matches('/').to_owned();
        let plain = server.strip_prefix("http://");
        let host = plain.or_else(|| server.strip_prefix("https://"));
        if !host.is_some_and(|host| !host.is_empty() && !host.contains(['@', '?', '#'])) {
            let what = "--server: http://host:port or https://host:port expected, without a login";
            return Err(Failure::new(2, what));
        }
        let tls = match plain {
            Some(_) => TlsConfig::builder().build(),
            None => tls(connection)?,
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(connection.timeout().min(Duration::from_secs(10))))
            .timeout_global(Some(connection.timeout()))
            .user_agent(concat!("milvus-cdc/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build()
            .into();
        let token = connection
            .token
            .as_deref()
            .filter(|token| !token.is_empty());
        let authorization = token
            .map(|token| secret(token, "--token"))
            .transpose()?
            .map(|token| format!("Bearer {token}"));
        Ok(Self {
            agent,
            server,
            authorization,
            output: connection.output,
        })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, None)
    }

    /// The answer's JSON; null if it has none.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let unreachable =
            |e: ureq::Error| Failure::new(3, format!("{}: {e}; check --server", self.server));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header("Accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let malformed = |_| Failure::new(2, "--server or --token: not fit for a request");
        let mut response = match body {
            None => self.agent.run(request.body(()).map_err(malformed)?),
            Some(body) => {
                let request = request.header("Content-Type", "application/json");
                let request = request.body(body.to_string()).map_err(malformed)?;
                self.agent.run(request)
            }
        }
        .map_err(unreachable)?;
        let status = response.status();
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER)
            .read_to_string()
            .map_err(unreachable)?;
        let value: Value = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or(Value::Null),
        };
        if status.is_success() {
            return Ok(value);
        }
        Err(refused(status, &value))
    }
}

fn refused(status: StatusCode, problem: &Value) -> Failure {
    let code = match status.as_u16() {
        401 | 403 => 4,
        404 => 5,
        409 => 6,
        400 | 413 | 415 | 422 => 7,
        429 | 500.. => 3,
        _ => 1,
    };
    let text = |key: &str| problem[key].as_str().unwrap_or_default();
    let message = match (text("detail"), text("hint")) {
        ("", _) => format!("the server answered {status}"),
        (detail, "") => detail.to_owned(),
        (detail, hint) => format!("{detail}; {hint}"),
    };
    Failure::new(code, message)
}

fn tls(connection: &Connection) -> Result<TlsConfig, Failure> {
    let roots = match &connection.ca_cert {
        Some(path) => certificates(path, "--ca-cert")?,
        None => {
            let found = rustls_native_certs::load_native_certs();
            let own = |der: &[u8]| Certificate::from_der(der).to_owned();
            found.certs.iter().map(|c| own(c.as_ref())).collect()
        }
    };
    let client = match (&connection.client_cert, &connection.client_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate, "--client-cert")?;
            let pem = read(key, "--client-key")?;
            let key = PrivateKey::from_pem(&pem)
                .map_err(|_| Failure::new(2, "--client-key: a private key in PEM form expected"))?;
            Some(ClientCert::new_with_certs(&chain, key))
        }
        _ => None,
    };
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(client)
        .build())
}

fn certificates(path: &Path, option: &str) -> Result<Vec<Certificate<'static>>, Failure> {
    let wrong = || Failure::new(2, format!("{option}: certificates in PEM form expected"));
    let pem = read(path, option)?;
    let found: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match found.is_empty() {
        true => Err(wrong()),
        false => Ok(found),
    }
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|e| Failure::new(2, format!("{option}: cannot read {}: {e}", path.display())))
}

/// A secret that was given, or that is in the file of `file:PATH`.
pub(super) fn secret(given: &str, option: &str) -> Result<String, Failure> {
    match given.strip_prefix("file:") {
        None => Ok(given.to_owned()),
        Some(path) => {
            let bytes = read(Path::new(path), option)?;
            let text = String::from_utf8(bytes)
                .map_err(|_| Failure::new(2, format!("{option}: text expected in {path}")))?;
            Ok(text.trim_end_matches(['\n', '\r']).to_owned())
        }
    }
}
