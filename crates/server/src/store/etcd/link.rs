//! Calls to etcd: each with a deadline, and with a login that is renewed when its token has run out.

use std::path::PathBuf;
use std::time::Duration;

use cdc_core::secret::Secret;
use cdc_core::store::StoreError;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, KvClient, TlsOptions};
use tokio::sync::Mutex;

/// Deadline of one call. Far below a lease, so that the owner can try again.
const CALL: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);
/// etcd lets a client ping every 5 s and breaks off with one that does it more often.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 256 << 20;

/// PEM files; they are read at every new connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsFiles {
    /// Who signed the servers' certificates; without it the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How to reach the store's etcd.
#[derive(Clone, PartialEq, Debug)]
pub struct EtcdServer {
    /// `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    pub root_path: String,
    pub login: Option<(String, Secret)>,
    pub tls: TlsFiles,
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdStoreError {
    #[error("store in etcd {endpoints}: {cause}; check metaStoreConfig.etcd")]
    Unreachable {
        endpoints: String,
        cause: StoreError,
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
        let server = &self.server;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(false);
        // Only https takes these options. Those it has of itself hold no roots and trust nobody.
        if server.endpoints.iter().any(|e| e.starts_with("https://")) {
            options = options.with_tls(self.tls().await?);
        }
        if let Some((user, password)) = &server.login {
            let login = options.clone().with_user(user, password.expose());
            match Client::connect(&server.endpoints, Some(login)).await {
                // As etcd's own client does: a login that is not asked for is no error.
                Err(Error::GRpcStatus(status))
                    if status.message().contains("authentication is not enabled") => {}
                other => return other.map_err(Failure::Etcd),
            }
        }
        Client::connect(&server.endpoints, Some(options))
            .await
            .map_err(Failure::Etcd)
    }

    async fn tls(&self) -> Result<TlsOptions, Failure> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path)
                .await
                .map_err(|cause| Failure::File(path.clone(), cause))
        };
        let files = &self.server.tls;
        let mut tls = match &files.ca {
            Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca).await?)),
            None => TlsOptions::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &files.identity {
            let identity = Identity::from_pem(read(certificate).await?, read(key).await?);
            tls = tls.identity(identity);
        }
        Ok(tls)
    }

    /// One call, tried a second time with a new login if the old one has run out.
    pub(super) async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, StoreError>
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
                return Err(StoreError::Unavailable(failure.to_string()));
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
    File(PathBuf, std::io::Error),
}

impl Failure {
    fn is_stale_login(&self) -> bool {
        matches!(self, Failure::Etcd(Error::GRpcStatus(status))
            if status.code() == tonic::Code::Unauthenticated
                || status.message().contains("revision of auth store is old"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Silent(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            Failure::File(path, cause) => write!(f, "cannot read {}: {cause}", path.display()),
            Failure::Etcd(Error::GRpcStatus(status)) => {
                write!(f, "{}", status.message())?;
                // The status of a failed connection says "transport error"; why is in its sources.
                let mut source = std::error::Error::source(status);
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
            Failure::Etcd(error) => write!(f, "{error}"),
        }
    }
}
