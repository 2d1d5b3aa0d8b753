//! TLS to a source's etcd and to a target: whom we trust, who we are, and connections that read both anew.
//!
//! The files are read for every connection, not once: a certificate that is replaced counts from the next connection
//! on, and one that is broken is an error only until it is mended. Nothing is kept of them in between.

mod channel;
mod connect;
mod error;
mod files;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, SupportedProtocolVersion};

pub use self::channel::{NoChannel, channel};
pub use self::error::{FieldNames, TlsError, TlsFile, fault};
pub use self::files::is_server_name;

pub(crate) use self::connect::{Address, connect};
pub use self::connect::{Ping, etcd_channel};

/// What HTTP/2 is called in a handshake. etcd and Milvus, both with Go's gRPC, insist on it.
const HTTP2: &[u8] = b"h2";

static FROM_1_2: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
static FROM_1_3: [&SupportedProtocolVersion; 1] = [&TLS13];

/// How to be sure of a server, and how to prove who we are. Holds paths, never what is in the files.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientTls {
    /// PEM file of the certificates to trust, authorities or the server's own one; the system's if `None`.
    pub trusted: Option<PathBuf>,
    /// What the server asks for in mutual TLS.
    pub identity: Option<Identity>,
    /// The name that the server's certificate has to be for; the host of the address if `None`.
    pub server_name: Option<String>,
    /// No older version is spoken.
    pub oldest: TlsVersion,
}

/// A client certificate, with those of its issuers behind it if the server needs them, and its private key: PEM files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// rustls has no older ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TlsVersion {
    #[default]
    #[serde(rename = "1.2")]
    V12,
    #[serde(rename = "1.3")]
    V13,
}

impl ClientTls {
    /// Whether the files can be read and belong together. Reads them on this thread; they are small.
    ///
    /// # Errors
    /// The first file that cannot be used, and why.
    pub fn check(&self) -> Result<(), TlsError> {
        if let Some(path) = &self.trusted {
            files::certificates(path, TlsFile::Trusted)?;
        }
        if let Some(identity) = &self.identity {
            files::identity(identity)?;
        }
        Ok(())
    }

    /// What the files say at this moment.
    async fn read(&self) -> Result<ClientConfig, TlsError> {
        let settings = self.clone();
        let read = tokio::task::spawn_blocking(move || settings.read_now());
        read.await
            .unwrap_or_else(|e| Err(TlsError::System(e.to_string())))
    }

    fn read_now(&self) -> Result<ClientConfig, TlsError> {
        // Not the process-wide default: that is for whoever starts the process to choose, and may be unset.
        let provider = Arc::new(ring::default_provider());
        let trusted = match &self.trusted {
            Some(path) => files::certificates(path, TlsFile::Trusted)?,
            None => files::system_certificates()?,
        };
        // Certificates of the system are authorities; only of our own file one may be the server's itself.
        let pinned = self.trusted.is_some();
        let verifier = verify::verifier(trusted, pinned, provider.clone())?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions())
            .map_err(|e| TlsError::System(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = files::identity(identity)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| TlsError::identity(identity, &e))?
            }
        };
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(config)
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        match self.oldest {
            TlsVersion::V12 => &FROM_1_2,
            TlsVersion::V13 => &FROM_1_3,
        }
    }
}

type Provider = Arc<CryptoProvider>;

#[cfg(test)]
mod tests;
