//! A connection to one server, for those who only look at it.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::{Address, ClientTls, TlsError, connect, fault};

/// Why there is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoChannel {
    #[error("http://host:port or https://host:port expected")]
    Address,
    #[error(transparent)]
    Tls(TlsError),
    #[error("{0}")]
    Unreachable(String),
}

/// Connects to `http://host:port`, or with TLS to `https://host:port`, within `patience`. Connections that the channel
/// makes later read the certificates anew.
///
/// # Errors
/// There is no connection.
pub async fn channel(uri: &str, tls: &ClientTls, patience: Duration) -> Result<Channel, NoChannel> {
    let secure = Address::parse(uri);
    if secure.is_none() && !uri.starts_with("http://") {
        return Err(NoChannel::Address);
    }
    let plain = secure.as_ref().map(|server| server.plain().to_string());
    let endpoint = Endpoint::from_shared(plain.unwrap_or_else(|| uri.to_owned()))
        .map_err(|_| NoChannel::Address)?
        .connect_timeout(patience)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20);
    let connecting = async {
        match secure {
            Some(server) => connect(&endpoint, tls, server, patience).await,
            None => endpoint.connect().await,
        }
    };
    match tokio::time::timeout(patience, connecting).await {
        Err(_) => Err(NoChannel::Unreachable(format!("none within {patience:?}"))),
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(match fault(&error) {
            Some(fault) => NoChannel::Tls(fault.clone()),
            None => NoChannel::Unreachable(causes(&error)),
        }),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
