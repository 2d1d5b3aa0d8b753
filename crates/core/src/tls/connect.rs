//! Connections for gRPC channels.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rand::Rng;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use super::{ClientTls, HTTP2, TlsError};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Stream = TokioIo<BufReader<TlsStream<TcpStream>>>;
type Opening = Pin<Box<dyn Future<Output = Result<Stream, Failure>> + Send>>;

/// How long a server may take to say its first word after the handshake before we begin. Go's servers, etcd and Milvus,
/// say it at once.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// One server of a channel.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// `http://host:port`: TLS comes from the connector, and tonic would put its own on top of `https`.
    plain: Uri,
    /// As the calls name it.
    secure: Uri,
    /// Without the brackets of an IPv6 address.
    host: String,
}

impl Address {
    /// `None` if it is no `https://host:port`.
    pub(crate) fn parse(address: &str) -> Option<Self> {
        let rest = address.strip_prefix("https://")?;
        let secure: Uri = address.parse().ok()?;
        let plain: Uri = format!("http://{rest}").parse().ok()?;
        let host = plain.host()?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Some(Self {
            plain,
            secure,
            host,
        })
    }

    pub(crate) fn plain(&self) -> &Uri {
        &self.plain
    }
}

/// A channel to one server; `endpoint` is its plain address. Every connection the channel makes, this first one and
/// those after one that broke, is made with what the files say then, and may take `patience`, handshake included.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    tls: &ClientTls,
    server: Address,
    patience: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = endpoint.clone().origin(server.secure.clone());
    let connector = connector(tls.clone(), vec![server], patience);
    endpoint.connect_with_connector(connector).await
}

/// How often a silent connection to etcd is asked whether it lives, and how long the answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    pub every: Duration,
    pub patience: Duration,
}

/// A channel to an etcd with these `https://host:port` endpoints, connected at the first call, to any one of them, and
/// where that fails to the next. Every connection is made with what the files say then. `patience` is for all attempts
/// of one connection together.
///
/// `None` if one of the endpoints has no such form, or there is none.
pub fn etcd_channel(
    endpoints: &[String],
    tls: &ClientTls,
    patience: Duration,
    ping: Ping,
) -> Option<Channel> {
    let servers = endpoints.iter().map(|endpoint| Address::parse(endpoint));
    let servers: Vec<Address> = servers.collect::<Option<_>>()?;
    let first = servers.first()?;
    let endpoint = Endpoint::from(first.plain.clone())
        .origin(first.secure.clone())
        .http2_keep_alive_interval(ping.every)
        .keep_alive_timeout(ping.patience)
        .keep_alive_while_idle(false);
    // Each has a part of the time, so that the next is tried, and the reason told, before all of it is over.
    let patience = patience
        / (u32::try_from(servers.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1));
    Some(endpoint.connect_with_connector_lazy(connector(tls.clone(), servers, patience)))
}

fn connector(
    tls: ClientTls,
    servers: Vec<Address>,
    patience: Duration,
) -> impl Service<Uri, Response = Stream, Error = Failure, Future = Opening> + Send + 'static {
    let shared = Arc::new((tls, servers));
    tower::service_fn(move |_: Uri| {
        let shared = shared.clone();
        let opening: Opening = Box::pin(async move {
            let (tls, servers) = shared.as_ref();
            open_one_of(tls, servers, patience).await
        });
        opening
    })
}

pub(super) async fn open_one_of(
    tls: &ClientTls,
    servers: &[Address],
    patience: Duration,
) -> Result<Stream, Failure> {
    let config = Arc::new(tls.read().await?);
    let first = rand::rng().random_range(0..servers.len().max(1));
    let (behind, before) = servers.split_at(first.min(servers.len()));
    let mut failed: Option<Failure> = None;
    for server in before.iter().chain(behind) {
        let opened = timeout(patience, open(tls, config.clone(), server)).await;
        let error = match opened {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => format!(
                "{} did not answer within {} ms",
                server.plain,
                patience.as_millis()
            )
            .into(),
        };
        // A fault of certificates says more than a server that is down.
        if failed.as_ref().is_none_or(|f| !f.is::<TlsError>()) {
            failed = Some(error);
        }
    }
    Err(failed.unwrap_or_else(|| "no server is named".into()))
}

async fn open(
    tls: &ClientTls,
    config: Arc<ClientConfig>,
    server: &Address,
) -> Result<Stream, Failure> {
    let name = tls.server_name.as_ref().unwrap_or(&server.host);
    let name = ServerName::try_from(name.clone())
        .map_err(|_| TlsError::Name(format!("{name:?} is no name of a server")))?;
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let tcp = http.call(server.plain.clone()).await?.into_inner();
    let explain = |error: std::io::Error| -> Failure {
        match TlsError::of_handshake(&error) {
            Some(fault) => fault.into(),
            None => error.into(),
        }
    };
    let stream = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(explain)?;
    if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
        return Err(TlsError::Unlike("it does not offer HTTP/2 (ALPN h2)".to_owned()).into());
    }
    // With TLS 1.3 our side of the handshake is through before the server looks at our certificate. Its refusal comes
    // instead of its first word, which in HTTP/2 it says unasked; without a look at it a call would fail with a broken
    // connection, and without the reason.
    let mut stream = BufReader::new(stream);
    match timeout(FIRST_WORD, stream.fill_buf()).await {
        Ok(Ok([])) => Err("the server closed the connection right after the handshake".into()),
        Ok(Err(error)) => Err(explain(error)),
        Ok(Ok(_)) | Err(_) => Ok(TokioIo::new(stream)),
    }
}
