//! A gRPC proxy in front of a target that loses calls which write rows: the request before it arrives, or the reply
//! after the target has done the work. Everything else passes through unread.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::poll_fn;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::{Body as _, BoxFuture, Service, http};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

/// The calls that write rows.
const WRITE: [&str; 3] = [
    "/milvus.proto.milvus.MilvusService/ReplicateMessage",
    "/milvus.proto.milvus.MilvusService/Insert",
    "/milvus.proto.milvus.MilvusService/Delete",
];

/// How often which fault hits a call that writes rows; probabilities from 0 to 1, of which the sum is at most 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The target did it, the caller sees UNAVAILABLE.
    pub lose_reply: f64,
    /// The target never saw it, the caller sees UNAVAILABLE.
    pub lose_request: f64,
    /// The target did it, the caller sees nothing until its deadline.
    pub hang_reply: f64,
    /// No fault any more once this many have happened; 0: no limit.
    pub limit: u64,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub calls: u64,
    pub lost_replies: u64,
    pub lost_requests: u64,
    pub hung_replies: u64,
}

impl Counts {
    /// All faults together.
    pub fn faults(&self) -> u64 {
        self.lost_replies + self.lost_requests + self.hung_replies
    }
}

/// A running proxy. Dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    faults: Mutex<Faults>,
    random: Mutex<StdRng>,
    calls: AtomicU64,
    lost_replies: AtomicU64,
    lost_requests: AtomicU64,
    hung_replies: AtomicU64,
}

#[derive(Clone, Copy)]
enum Fault {
    LoseReply,
    LoseRequest,
    HangReply,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `target` (`http://host:port`). The same seed and the same
    /// order of calls give the same faults.
    ///
    /// # Errors
    /// No port, or `target` is no address.
    pub async fn start(target: &str, faults: Faults, seed: u64) -> Result<Self> {
        let upstream = Endpoint::from_shared(target.to_owned())
            .with_context(|| format!("the address {target}"))?
            .connect_timeout(Duration::from_secs(5))
            .connect_lazy();
        let shared = Arc::new(Shared {
            faults: Mutex::new(faults),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            calls: AtomicU64::new(0),
            lost_replies: AtomicU64::new(0),
            lost_requests: AtomicU64::new(0),
            hung_replies: AtomicU64::new(0),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("bind the proxy")?;
        let address = listener.local_addr()?;
        let forward = Forward {
            upstream,
            shared: Arc::clone(&shared),
        };
        let server = tokio::spawn(async move {
            let _ = Server::builder()
                .initial_stream_window_size(16 << 20)
                .initial_connection_window_size(64 << 20)
                .serve_with_incoming(
                    forward,
                    TcpIncoming::from(listener).with_nodelay(Some(true)),
                )
                .await;
        });
        Ok(Self {
            address,
            shared,
            server,
        })
    }

    /// `http://127.0.0.1:port`: what a client is given instead of the target.
    pub fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Other faults from now on.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock() = faults;
    }

    pub fn counts(&self) -> Counts {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counts {
            calls: get(&self.shared.calls),
            lost_replies: get(&self.shared.lost_replies),
            lost_requests: get(&self.shared.lost_requests),
            hung_replies: get(&self.shared.hung_replies),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn next(&self) -> Option<Fault> {
        let faults = *self.faults.lock();
        self.calls.fetch_add(1, Ordering::Relaxed);
        let dice: f64 = self.random.lock().random();
        let so_far = [&self.lost_replies, &self.lost_requests, &self.hung_replies]
            .map(|n| n.load(Ordering::Relaxed));
        if faults.limit > 0 && so_far.iter().sum::<u64>() >= faults.limit {
            return None;
        }
        let (fault, counter) = if dice < faults.lose_reply {
            (Fault::LoseReply, &self.lost_replies)
        } else if dice < faults.lose_reply + faults.lose_request {
            (Fault::LoseRequest, &self.lost_requests)
        } else if dice < faults.lose_reply + faults.lose_request + faults.hang_reply {
            (Fault::HangReply, &self.hung_replies)
        } else {
            return None;
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }
}

#[derive(Clone)]
struct Forward {
    upstream: Channel,
    shared: Arc<Shared>,
}

impl Service<http::Request<Body>> for Forward {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut upstream = self.upstream.clone();
        let fault = if WRITE.contains(&request.uri().path()) {
            self.shared.next()
        } else {
            None
        };
        Box::pin(async move {
            if let Some(Fault::LoseRequest) = fault {
                return Ok(Status::unavailable("the proxy lost this request").into_http());
            }
            let answer = match poll_fn(|cx| upstream.poll_ready(cx)).await {
                Ok(()) => upstream.call(request).await,
                Err(e) => Err(e),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(e) => {
                    return Ok(Status::new(
                        Code::Unavailable,
                        format!("the target does not answer: {e}"),
                    )
                    .into_http());
                }
            };
            let Some(fault) = fault else {
                return Ok(answer);
            };
            read_to_end(answer.into_body()).await;
            if let Fault::HangReply = fault {
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
            Ok(Status::unavailable("the proxy lost this reply").into_http())
        })
    }
}

/// The work is done for sure once the whole answer is here.
async fn read_to_end(mut body: Body) {
    while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
}
