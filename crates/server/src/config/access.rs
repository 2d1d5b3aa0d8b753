//! `security` and `limits`: who may use the HTTP interface, and how much of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use cdc_core::secret::Secret;

use super::resolve_secret;
use crate::fields::{Fields, clip};

/// Shorter ones can be guessed.
const TOKEN_MIN: usize = 16;

#[derive(Clone, PartialEq, Debug)]
pub struct Access {
    /// Without any everybody may do everything.
    pub tokens: Vec<ApiToken>,
    /// What needs no token.
    pub open: BTreeSet<Open>,
    pub tls: Option<TlsFiles>,
    /// Of one token, or of all that have none.
    pub requests_per_second: NonZeroU32,
    /// Requests that may come at once after a pause.
    pub burst: NonZeroU32,
    /// Requests in work.
    pub concurrent_requests: usize,
    pub connections: usize,
    /// Clients that follow the history.
    pub event_streams: usize,
    pub body: BodyLimits,
    /// Until the whole head of a request is there; a connection on which none begins is closed after the same time.
    pub header_timeout: Duration,
    /// A client that takes nothing of its answer for so long is cut off.
    pub write_timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BodyLimits {
    pub bytes: usize,
    pub timeout: Duration,
}

#[derive(Clone, PartialEq, Debug)]
pub struct ApiToken {
    pub name: String,
    pub token: Secret,
    pub role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Read,
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Open {
    Healthz,
    Readyz,
    Metrics,
    /// The OpenAPI document and its pages.
    Docs,
}

#[derive(Clone, PartialEq, Debug)]
pub struct TlsFiles {
    /// PEM: the server's certificate, then those that signed it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// PEM: who signs the certificates that clients have to show; `None`: they need none.
    pub client_ca: Option<PathBuf>,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            bytes: 1024 * 1024,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            open: BTreeSet::from([Open::Healthz, Open::Readyz]),
            tls: None,
            requests_per_second: count(100),
            burst: count(200),
            concurrent_requests: 64,
            connections: 256,
            event_streams: 32,
            body: BodyLimits::default(),
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Access {
    /// What is unsafe about an interface that listens there.
    pub fn warnings(&self, address: &str) -> Vec<String> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if loopback {
            return Vec::new();
        }
        let mut found = Vec::new();
        if self.tokens.is_empty() {
            found.push(format!(
                "everybody who reaches {address} may do everything: set security.tokens, or listen on 127.0.0.1"
            ));
        }
        if self.tls.is_none() {
            found.push(format!(
                "requests to {address} can be read on their way, with tokens and passwords: set security.tls, or listen on 127.0.0.1"
            ));
        }
        found
    }
}

/// `n` is one of the numbers that the configuration allows, none of which is zero.
fn count(n: u64) -> NonZeroU32 {
    u32::try_from(n)
        .ok()
        .and_then(NonZeroU32::new)
        .unwrap_or(NonZeroU32::MIN)
}

pub(super) fn read(top: &Fields<'_>) -> Access {
    let mut access = Access::default();
    if let Some(security) = top.object("security") {
        read_security(security, &mut access);
    }
    if let Some(limits) = top.object("limits") {
        read_limits(limits, &mut access);
    }
    access
}

fn read_security(security: Fields<'_>, access: &mut Access) {
    for item in security.objects("tokens").unwrap_or_default() {
        if let Some(token) = read_token(&item) {
            if access.tokens.iter().any(|t| t.name == token.name) {
                item.wrong("name", format_args!("{:?} is there twice", token.name));
            }
            if access.tokens.iter().any(|t| t.token == token.token) {
                item.wrong("token", "two names have the same token");
            }
            access.tokens.push(token);
        }
        item.finish();
    }
    if let Some(list) = security.list("open") {
        access.open.clear();
        for value in list {
            let door = match value.as_str() {
                Some("healthz") => Open::Healthz,
                Some("readyz") => Open::Readyz,
                Some("metrics") => Open::Metrics,
                Some("docs") => Open::Docs,
                _ => {
                    let what = format!(
                        "healthz, readyz, metrics, docs expected, not {}",
                        clip(&value.to_string())
                    );
                    security.wrong("open", what);
                    continue;
                }
            };
            access.open.insert(door);
        }
    }
    if let Some(tls) = security.object("tls") {
        let file = |key: &'static str| tls.string(key).filter(|path| !path.is_empty());
        let (certificate, key) = (file("certFile"), file("keyFile"));
        let client_ca = file("clientCAFile");
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                access.tls = Some(TlsFiles {
                    certificate: certificate.into(),
                    key: key.into(),
                    client_ca: client_ca.map(PathBuf::from),
                });
            }
            _ => tls.wrong("certFile", "certFile and keyFile expected, both PEM files"),
        }
        tls.finish();
    }
    security.finish();
}

fn read_token(item: &Fields<'_>) -> Option<ApiToken> {
    let name = item.string("name");
    let legal = |name: &str| {
        (1..=64).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if !name.as_deref().is_some_and(legal) {
        let what =
            "up to 64 letters, digits, '-', '_' and '.' expected: it is shown in the history";
        item.wrong("name", what);
    }
    let role = item
        .choice("role", &[("read", Role::Read), ("full", Role::Full)])
        .or_else(|| {
            if !item.has("role") {
                item.wrong("role", "missing; read or full");
            }
            None
        });
    let token = match item.secret("token") {
        Some(text) => resolve_secret(&text)
            .map_err(|cause| item.wrong("token", cause))
            .ok(),
        None => {
            if !item.has("token") {
                item.wrong("token", "missing; file:PATH or ${NAME}");
            }
            None
        }
    };
    let long = |token: &Secret| {
        let text = token.expose();
        text.len() >= TOKEN_MIN && text.bytes().all(|b| b.is_ascii_graphic())
    };
    if token.as_ref().is_some_and(|token| !long(token)) {
        let what = format!("at least {TOKEN_MIN} letters, digits and signs expected, no spaces");
        item.wrong("token", what);
    }
    Some(ApiToken {
        name: name?,
        token: token?,
        role: role?,
    })
}

fn read_limits(limits: Fields<'_>, access: &mut Access) {
    let number = |key, allowed, place: &mut usize| {
        if let Some(n) = limits.integer(key, allowed) {
            *place = n as usize;
        }
    };
    number("bodyBytes", 1024..=64 * 1024 * 1024, &mut access.body.bytes);
    number(
        "concurrentRequests",
        1..=10_000,
        &mut access.concurrent_requests,
    );
    number("connections", 1..=100_000, &mut access.connections);
    number("eventStreams", 0..=10_000, &mut access.event_streams);
    for (key, place) in [
        ("requestsPerSecond", &mut access.requests_per_second),
        ("burst", &mut access.burst),
    ] {
        if let Some(n) = limits.integer(key, 1..=1_000_000) {
            *place = count(n);
        }
    }
    for (key, place) in [
        ("bodyTimeoutMs", &mut access.body.timeout),
        ("headerTimeoutMs", &mut access.header_timeout),
        ("writeTimeoutMs", &mut access.write_timeout),
    ] {
        if let Some(ms) = limits.integer(key, 100..=3_600_000) {
            *place = Duration::from_millis(ms);
        }
    }
    limits.finish();
}
