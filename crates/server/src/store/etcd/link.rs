//! Calls to etcd: each with a deadline, and with a login that is renewed when its token has run out.

use std::time::Duration;

use cdc_core::secret::Secret;
use cdc_core::store::StoreError;
use cdc_core::tls::{self, ClientTls, FieldNames, Ping};
use etcd_client::{Channel, Client, ConnectOptions, Error, KvClient};
use tokio::sync::Mutex;
use tonic::Code;

/// Deadline of one call. Far below a lease, so that the owner can try again.
const CALL: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);
/// etcd lets a client ping every 5 s and breaks off with one that does it more often.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 256 << 20;

/// What the configuration calls the settings of TLS.
const TLS_FIELDS: FieldNames = FieldNames {
    trusted: "metaStoreConfig.etcd.tlsCACertPath",
    certificate: "metaStoreConfig.etcd.tlsCertPath",
    key: "metaStoreConfig.etcd.tlsKeyPath",
    name: "a certificate for the host in metaStoreConfig.etcd.address",
    switch: "https:// and metaStoreConfig.etcd.enableTLS",
};

/// How to reach the store's etcd.
#[derive(Clone, PartialEq, Debug)]
pub struct EtcdServer {
    /// `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    pub root_path: String,
    pub login: Option<(String, Secret)>,
    /// For `https://`. The files are read at every new connection.
    pub tls: ClientTls,
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdStoreError {
    #[error("store in etcd {endpoints}: {cause}; {hint}")]
    Unreachable {
        endpoints: String,
        cause: String,
        hint: String,
    },
    #[error(
        "store in etcd {endpoints} has version {found}, this program knows up to {known}: it was written by a newer milvus-cdc; use that one"
    )]
    Newer {
        endpoints: String,
        found: String,
        known: i64,
    },
}

/// A connection that is made when it is needed.
pub(super) struct Link {
    pub(super) server: EtcdServer,
    client: Mutex<Option<Client>>,
}

impl Link {
    pub(super) fn new(server: EtcdServer) -> Self {
        Self {
            server,
            client: Mutex::new(None),
        }
    }

    pub(super) fn shown(&self) -> String {
        self.server.endpoints.join(", ")
    }

    async fn client(&self) -> Result<Client, Failure> {
        // The lock is held while connecting: one login, not one for each caller.
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let client = match tokio::time::timeout(CONNECT, self.connect()).await {
            Ok(client) => client?,
            Err(_) => return Err(Failure::Silent(CONNECT)),
        };
        Ok(slot.insert(client).clone())
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(false);
        if let Some((user, password)) = &self.server.login {
            let login = options.clone().with_user(user, password.expose());
            match self.open(login).await {
                // As etcd's own client does: a login that is not asked for is no error.
                Err(Failure::Etcd(Error::GRpcStatus(status)))
                    if status.message().contains("authentication is not enabled") => {}
                other => return other,
            }
        }
        self.open(options).await
    }

    async fn open(&self, options: ConnectOptions) -> Result<Client, Failure> {
        let server = &self.server;
        let ping = Ping {
            every: PING_EVERY,
            patience: PING_TIMEOUT,
        };
        // Not the TLS of the client itself: that keeps why there is no connection to itself, and the files as they once
        // were.
        let opened = match tls::etcd_channel(&server.endpoints, &server.tls, CALL, ping) {
            Some(channel) => Client::from_channel(Channel::Tonic(channel), Some(options)).await,
            None => Client::connect(&server.endpoints, Some(options)).await,
        };
        opened.map_err(Failure::Etcd)
    }

    /// One call, tried a second time with a new login if the old one has run out.
    pub(super) async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.try_call(call).await.map_err(|failure| {
            StoreError::Unavailable(match failure.hint() {
                Some(hint) => format!("{failure}; {hint}"),
                None => failure.to_string(),
            })
        })
    }

    /// The first call to an etcd: whatever is wrong is said with the settings it may be in.
    pub(super) async fn first_call<T, F>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<T, EtcdStoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.try_call(call).await.map_err(|failure| {
            let is_plain = self
                .server
                .endpoints
                .iter()
                .any(|e| e.starts_with("http://"));
            let tls = match is_plain {
                true => "metaStoreConfig.etcd.enableTLS: true if it has TLS on this port",
                false => {
                    "http:// without metaStoreConfig.etcd.enableTLS if it has no TLS on this port"
                }
            };
            let hint = failure
                .hint()
                .unwrap_or_else(|| format!("check metaStoreConfig.etcd.address, and {tls}"));
            EtcdStoreError::Unreachable {
                endpoints: self.shown(),
                cause: failure.to_string(),
                hint,
            }
        })
    }

    async fn try_call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut renewed = false;
        loop {
            let failure = match self.client().await {
                Err(failure) => failure,
                Ok(client) => match tokio::time::timeout(CALL, call(client)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => Failure::Etcd(error),
                    Err(_) => Failure::Silent(CALL),
                },
            };
            *self.client.lock().await = None;
            if renewed || !failure.is_stale_login() {
                return Err(failure);
            }
            renewed = true;
        }
    }

    pub(super) async fn txn(
        &self,
        txn: etcd_client::Txn,
    ) -> Result<etcd_client::TxnResponse, StoreError> {
        self.call(|client| {
            let mut kv = kv(&client);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        })
        .await
    }
}

/// For answers of any size: a task can have many thousands of objects.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER)
}

/// Why a call failed.
enum Failure {
    Etcd(Error),
    Silent(Duration),
}

impl Failure {
    fn is_stale_login(&self) -> bool {
        matches!(self, Failure::Etcd(Error::GRpcStatus(status))
            if status.code() == Code::Unauthenticated
                || status.message().contains("revision of auth store is old"))
    }

    fn is_login(&self) -> bool {
        let Failure::Etcd(Error::GRpcStatus(status)) = self else {
            return false;
        };
        let said = status.message();
        matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied
        ) || [
            "authentication failed",
            "user name is empty",
            "user name not found",
        ]
        .iter()
        .any(|refusal| said.contains(refusal))
    }

    /// What to set, if it is a matter of certificates or of the login.
    fn hint(&self) -> Option<String> {
        if let Failure::Etcd(Error::GRpcStatus(status)) = self
            && let Some(fault) = tls::fault(status)
        {
            return Some(fault.hint(&TLS_FIELDS));
        }
        self.is_login().then(|| {
            "check metaStoreConfig.etcd.username and password, with enableAuth: true; the user needs to read and write below rootPath".to_owned()
        })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Silent(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            Failure::Etcd(Error::GRpcStatus(status)) => {
                if let Some(fault) = tls::fault(status) {
                    return write!(f, "{fault}");
                }
                // The status of a failed connection says "transport error"; why is in its sources, which repeat each
                // other.
                let mut said = status.message().to_owned();
                let mut source = std::error::Error::source(status);
                while let Some(cause) = source {
                    let text = cause.to_string();
                    if !said.contains(&text) {
                        said = format!("{said}: {text}");
                    }
                    source = cause.source();
                }
                write!(f, "{said}")
            }
            Failure::Etcd(error) => write!(f, "{error}"),
        }
    }
}
