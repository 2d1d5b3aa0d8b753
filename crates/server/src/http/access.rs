//! Who may ask for what, and how much: the guards before every handler.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use cdc_core::secret::Secret;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::body;
use super::problem::Refusal;
use crate::config::access::{Access, Open, Role};

/// Who asks.
#[derive(Clone)]
pub(crate) struct Caller {
    name: Arc<str>,
    role: Role,
}

impl Caller {
    /// The name of the token; `http` if the server has none.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn may_write(&self) -> bool {
        self.role == Role::Full
    }

    pub(crate) fn read_only(&self) -> Refusal {
        let detail = format!("the token {:?} may only read", self.name);
        Refusal::new(StatusCode::FORBIDDEN, "forbidden", detail).hint("use a token with role: full")
    }
}

struct Token {
    digest: [u8; 32],
    caller: Caller,
    rate: DefaultDirectRateLimiter,
}

/// The guards of one server.
#[derive(Clone)]
pub(crate) struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: Vec<Token>,
    open: BTreeSet<Open>,
    /// Of those without a token, and of those with a wrong one.
    rate: DefaultDirectRateLimiter,
    places: Semaphore,
}

impl Gate {
    pub(crate) fn new(access: &Access) -> Self {
        let quota = Quota::per_second(access.requests_per_second).allow_burst(access.burst);
        let tokens = access
            .tokens
            .iter()
            .map(|token| Token {
                digest: hash(&token.token),
                caller: Caller {
                    name: token.name.as_str().into(),
                    role: token.role,
                },
                rate: RateLimiter::direct(quota),
            })
            .collect();
        let inner = Inner {
            tokens,
            open: access.open.clone(),
            rate: RateLimiter::direct(quota),
            places: Semaphore::new(access.concurrent_requests),
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl Inner {
    fn anyone(&self) -> Caller {
        Caller {
            name: "http".into(),
            role: Role::Full,
        }
    }

    /// The token of a request. Takes the same time whichever it is, and whether it is one.
    fn find(&self, headers: &HeaderMap) -> Option<&Token> {
        let given = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, token) = given.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let given = hash_bytes(token.trim_ascii());
        let mut found = None;
        for token in &self.tokens {
            if bool::from(token.digest.ct_eq(&given)) {
                found = Some(token);
            }
        }
        found
    }
}

fn hash(secret: &Secret) -> [u8; 32] {
    hash_bytes(secret.expose().as_bytes())
}

fn hash_bytes(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
        *to = *from;
    }
    out
}

/// Which of the doors that can be left open a path is behind.
fn door(path: &str) -> Option<Open> {
    match path {
        "/healthz" => Some(Open::Healthz),
        "/readyz" => Some(Open::Readyz),
        "/cdc/metrics" => Some(Open::Metrics),
        super::openapi::PATH => Some(Open::Docs),
        path => path
            .strip_prefix(super::openapi::PAGES)
            .filter(|rest| rest.is_empty() || rest.starts_with('/'))
            .map(|_| Open::Docs),
    }
}

/// Lets a request through to its handler, with a [`Caller`] in its extensions.
pub(super) async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    match admit(&gate, request, next).await {
        Ok(response) => response,
        Err((refusal, request)) => {
            let path = request.uri().path().to_owned();
            body::drain(request.into_body()).await;
            refusal.answer(&path)
        }
    }
}

async fn admit(
    gate: &Gate,
    mut request: Request,
    next: Next,
) -> Result<Response, (Refusal, Request)> {
    let path = request.uri().path().to_owned();
    let door = door(&path);
    let inner = &gate.inner;
    let open = door.is_some_and(|door| inner.open.contains(&door));
    // Whoever watches this process has to hear from it above all when it is overloaded.
    if open && matches!(door, Some(Open::Healthz | Open::Readyz)) {
        request.extensions_mut().insert(inner.anyone());
        return Ok(next.run(request).await);
    }
    let token = inner.find(request.headers());
    let rate = token.map_or(&inner.rate, |token| &token.rate);
    if let Err(early) = rate.check() {
        let wait = early.wait_time_from(DefaultClock::default().now());
        let detail = "too many requests (limits.requestsPerSecond)";
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            .hint("Retry-After says when to go on")
            .retry_after(wait.as_secs() + 1);
        return Err((refusal, request));
    }
    let caller = match token {
        Some(token) => token.caller.clone(),
        None if open || inner.tokens.is_empty() => inner.anyone(),
        None => {
            let detail = "this needs a token that is in security.tokens";
            let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
                .hint("send it as Authorization: Bearer TOKEN");
            return Err((refusal, request));
        }
    };
    // What a POST of the Go server's interface does is in its body: its handler looks.
    let reads = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if !reads && path != super::GO_PATH && !caller.may_write() {
        return Err((caller.read_only(), request));
    }
    let Ok(_place) = inner.places.try_acquire() else {
        let detail = "too many requests at once (limits.concurrentRequests)";
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail)
            .hint("try again in a moment")
            .retry_after(1);
        return Err((refusal, request));
    };
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}
