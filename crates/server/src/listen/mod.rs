//! The server's side of a connection: how many there are, how long each may take, and TLS.

mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::config::access::Access;
pub use tls::{Tls, TlsError};

/// How long to wait when the system has no more file descriptors for connections.
const NO_MORE: Duration = Duration::from_millis(100);

/// What a connection has to keep.
#[derive(Clone, Copy)]
struct Times {
    header: Duration,
    write: Duration,
}

/// Takes connections until `stop`, then lets those that are there finish what they are at. Dropped, it ends them all.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    access: &Access,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(access.connections));
    let times = Times {
        header: access.header_timeout,
        write: access.write_timeout,
    };
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Those for whom there is no place wait in the system's own queue, which has an end.
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let taken = tokio::select! {
            () = stop.cancelled() => break,
            // Ends are collected as they come.
            Some(_) = connections.join_next() => continue,
            taken = next => taken,
        };
        match taken {
            None => break,
            Some((place, Ok((stream, _)))) => {
                let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, router, tls, times, stop).await;
                    drop(place);
                });
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(NO_MORE) => {}
                }
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    router: Router,
    tls: Option<Arc<Tls>>,
    times: Times,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(stream, router, times, stop).await;
    };
    // The handshake has the time that the head of a request has.
    let handshake = tokio::time::timeout(times.header, tls.acceptor().accept(stream));
    let shaken = tokio::select! {
        () = stop.cancelled() => return,
        shaken = handshake => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => requests(stream, router, times, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn requests<S>(stream: S, router: Router, times: Times, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(times.write));
    // `header_read_timeout` also runs while a connection waits for its next request.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(times.header)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(router),
        );
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
