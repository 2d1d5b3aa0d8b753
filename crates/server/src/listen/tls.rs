//! The server's certificate and whom it trusts, read again when the files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::config::access::TlsFiles;

/// How often the files are looked at. Their contents are compared: a mounted secret changes by a link, not by a date.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("security.tls.{key}: cannot read {path}: {cause}")]
    Read {
        key: &'static str,
        path: PathBuf,
        cause: std::io::Error,
    },
    /// The cause shows nothing of what is in the file.
    #[error("security.tls.{key}: {path}: {cause}")]
    Content {
        key: &'static str,
        path: PathBuf,
        cause: String,
    },
}

/// The TLS side of the server.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<(Contents, Arc<ServerConfig>)>,
}

#[derive(PartialEq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// # Errors
    /// A file cannot be read, or is not what it has to be.
    pub fn load(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        let contents = Contents::read(files)?;
        let config = contents.config(files)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            current: RwLock::new((contents, config)),
        }))
    }

    /// For one connection: with what is true now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().1.clone().into()
    }

    /// Reads the files again when they change. What cannot be used is said once, and what was there before goes on.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut said = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let tls = self.clone();
            let looked = tokio::task::spawn_blocking(move || tls.look()).await;
            match looked {
                Ok(Ok(false)) => said.clear(),
                Ok(Ok(true)) => {
                    said.clear();
                    tracing::info!("the TLS certificates have changed and are in use");
                }
                Ok(Err(error)) => {
                    let text = error.to_string();
                    if text != said {
                        tracing::warn!(%error, "the TLS files have changed and cannot be used; the former go on");
                        said = text;
                    }
                }
                Err(error) => tracing::warn!(%error, "the TLS files could not be looked at"),
            }
        }
    }

    /// Reads the files again; says whether something has changed.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it has to be; what was there before goes on.
    pub fn look(&self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.files)?;
        if contents == self.current.read().0 {
            return Ok(false);
        }
        let config = contents.config(&self.files)?;
        *self.current.write() = (contents, config);
        Ok(true)
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read("certFile", &files.certificate)?,
            key: read("keyFile", &files.key)?,
            client_ca: match &files.client_ca {
                Some(path) => Some(read("clientCAFile", path)?),
                None => None,
            },
        })
    }

    fn config(&self, files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
        let certificate = |cause: String| content("certFile", &files.certificate, cause);
        let chain = certificates(&self.certificate).map_err(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            let cause = "a private key in PEM form expected".to_owned();
            content("keyFile", &files.key, cause)
        })?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| certificate(e.to_string()))?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(pem), Some(path)) => {
                let wrong = |cause: String| content("clientCAFile", path, cause);
                let mut roots = RootCertStore::empty();
                for root in certificates(pem).map_err(wrong)? {
                    roots.add(root).map_err(|e| wrong(e.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|e| wrong(e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| certificate(format!("it and keyFile do not fit: {e}")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|cause| TlsError::Read {
        key,
        path: path.to_owned(),
        cause,
    })
}

fn content(key: &'static str, path: &Path, cause: String) -> TlsError {
    TlsError::Content {
        key,
        path: path.to_owned(),
        cause,
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err("certificates in PEM form expected".to_owned()),
    }
}
