//! Calls to etcd: each with a deadline, and with a login that is renewed when its token has run out.

use std::time::Duration;

use etcd_client::{
    Channel, Client, ConnectOptions, Error, GetOptions, GetResponse, KeyValue, KvClient,
};
use tokio::sync::Mutex;
use tonic::Code;

use super::{CatalogError, EtcdConfig};
use crate::tls::{self, FieldNames, Ping};

/// etcd lets a client ping every 5 s and breaks off with one that does it more often.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// One value may have 1.5 MiB; pages are cut by count, so that an answer of long values stays far below this.
const MAX_ANSWER: usize = 256 << 20;
const PAGE: i64 = 500;

/// What the configuration calls the settings of TLS.
const TLS_FIELDS: FieldNames = FieldNames {
    trusted: "sourceConfig.etcd.tlsCACertPath",
    certificate: "sourceConfig.etcd.tlsCertPath",
    key: "sourceConfig.etcd.tlsKeyPath",
    name: "a certificate for the host in sourceConfig.etcd.address",
    switch: "https:// and sourceConfig.etcd.enableTLS",
};

/// A connection that is made when it is needed.
pub(crate) struct Link {
    pub(super) config: EtcdConfig,
    client: Mutex<Option<Client>>,
}

impl Link {
    pub(crate) fn new(config: EtcdConfig) -> Self {
        Self {
            config,
            client: Mutex::new(None),
        }
    }

    /// The connection there is, or a new one.
    pub(super) async fn client(&self) -> Result<Client, CatalogError> {
        // The lock is held while connecting: one login, not one for each caller.
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        Ok(slot.insert(client).clone())
    }

    /// The next call connects and logs in anew.
    pub(super) async fn forget(&self) {
        *self.client.lock().await = None;
    }

    async fn connect(&self) -> Result<Client, CatalogError> {
        let config = &self.config;
        let plain = ConnectOptions::new()
            .with_connect_timeout(config.connect_timeout)
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(false);
        if !config.username.is_empty() {
            let login = plain
                .clone()
                .with_user(config.username.as_str(), config.password.expose());
            match self.open(login).await {
                // As etcd's own client does: a login that is not asked for is no error.
                Err(Failure::Etcd(Error::GRpcStatus(status)))
                    if status.message().contains("authentication is not enabled") => {}
                other => return other.map_err(|failure| self.explain(failure)),
            }
        }
        let answer = self.open(plain).await;
        answer.map_err(|failure| self.explain(failure))
    }

    async fn open(&self, options: ConnectOptions) -> Result<Client, Failure> {
        let limit = self.config.connect_timeout;
        let config = &self.config;
        let ping = Ping {
            every: PING_EVERY,
            patience: PING_TIMEOUT,
        };
        match tls::etcd_channel(&config.endpoints, &config.tls, limit, ping) {
            Some(channel) => {
                let channel = Channel::Tonic(channel);
                self.in_time(limit, Client::from_channel(channel, Some(options)))
                    .await
            }
            None => {
                let connecting = Client::connect(&config.endpoints, Some(options));
                self.in_time(limit, connecting).await
            }
        }
    }

    /// One idempotent call, tried a second time with a new login if the old one has run out.
    pub(crate) async fn call<T, F>(&self, call: impl Fn(KvClient) -> F) -> Result<T, CatalogError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut renewed = false;
        loop {
            let kv = self
                .client()
                .await?
                .kv_client()
                .max_decoding_message_size(MAX_ANSWER);
            match self.in_time(self.config.request_timeout, call(kv)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    if !failure.is_refusal() {
                        self.forget().await;
                    }
                    if renewed || !failure.is_stale_login() {
                        return Err(self.explain(failure));
                    }
                    renewed = true;
                }
            }
        }
    }

    pub(crate) async fn get(
        &self,
        key: &[u8],
        options: GetOptions,
    ) -> Result<GetResponse, CatalogError> {
        self.call(|mut kv| {
            let (key, options) = (key.to_vec(), options.clone());
            async move { kv.get(key, Some(options)).await }
        })
        .await
    }

    /// All keys below `prefix` at one revision (0: that of the first page), in pages. Returns the revision.
    pub(super) async fn pages(
        &self,
        prefix: &str,
        options: GetOptions,
        revision: i64,
        mut take: impl FnMut(&KeyValue),
    ) -> Result<i64, CatalogError> {
        let mut end = prefix.as_bytes().to_vec();
        // Every prefix here ends in `/`, whose successor is `0`.
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        let mut from = prefix.as_bytes().to_vec();
        let mut revision = revision;
        loop {
            let options = options
                .clone()
                .with_range(end.clone())
                .with_limit(PAGE)
                .with_revision(revision);
            let answer = self.get(&from, options).await?;
            if revision == 0 {
                revision = answer.header().map_or(0, |header| header.revision());
            }
            answer.kvs().iter().for_each(&mut take);
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(revision),
            }
        }
    }

    pub(super) async fn in_time<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer.map_err(Failure::Etcd),
            Err(_) => Err(Failure::Silent(limit)),
        }
    }

    pub(super) fn unreachable(&self, cause: impl Into<String>) -> CatalogError {
        CatalogError::Unreachable {
            endpoints: self.config.shown_endpoints(),
            cause: cause.into(),
        }
    }

    pub(super) fn explain(&self, failure: Failure) -> CatalogError {
        if let Failure::Etcd(Error::GRpcStatus(status)) = &failure
            && let Some(fault) = tls::fault(status)
        {
            return CatalogError::Tls {
                endpoints: self.config.shown_endpoints(),
                cause: fault.to_string(),
                hint: fault.hint(&TLS_FIELDS),
            };
        }
        if let Failure::Etcd(Error::GRpcStatus(status)) = &failure
            && is_login(status)
        {
            let cause = status.message().to_owned();
            return CatalogError::Login {
                endpoints: self.config.shown_endpoints(),
                cause,
            };
        }
        self.unreachable(failure.to_string())
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    Etcd(Error),
    Silent(Duration),
}

impl Failure {
    /// etcd answered: the connection itself is sound.
    fn is_refusal(&self) -> bool {
        matches!(self, Failure::Etcd(Error::GRpcStatus(status))
            if matches!(status.code(), Code::OutOfRange | Code::PermissionDenied))
    }

    fn is_stale_login(&self) -> bool {
        matches!(self, Failure::Etcd(Error::GRpcStatus(status)) if status.code() == Code::Unauthenticated
            || status.message().contains("revision of auth store is old"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Silent(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
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

fn is_login(status: &tonic::Status) -> bool {
    let said = status.message();
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied
    ) || said.contains("authentication failed")
        || said.contains("user name is empty")
        || said.contains("user name not found")
}
