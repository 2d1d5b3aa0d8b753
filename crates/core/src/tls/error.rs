//! Why there is no TLS connection, and what to do about it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::{self, AlertDescription, CertificateError, InconsistentKeys};

use super::Identity;

/// Which of our files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsFile {
    Trusted,
    Certificate,
    Key,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot use {path}: {cause}")]
    File {
        file: TlsFile,
        path: PathBuf,
        cause: String,
    },
    #[error("{certificate} and {key} do not belong together: {cause}")]
    Identity {
        certificate: PathBuf,
        key: PathBuf,
        cause: String,
    },
    #[error("TLS cannot be set up: {0}")]
    System(String),
    /// We do not trust the server.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(String),
    #[error("the server's certificate is not for this name: {0}")]
    Name(String),
    #[error("the server's certificate is not valid now: {0}")]
    Date(String),
    /// The server does not trust us.
    #[error("the server refused our certificate, or that we have none: {0}")]
    Refused(String),
    /// No version, cipher or protocol in common; or no TLS at all.
    #[error("no TLS for gRPC with the server: {0}")]
    Unlike(String),
}

/// What a person calls the settings, for the hints.
#[derive(Clone, Copy, Debug)]
pub struct FieldNames {
    pub trusted: &'static str,
    pub certificate: &'static str,
    pub key: &'static str,
    /// What sets the name that the certificate has to be for.
    pub name: &'static str,
    /// What switches TLS on.
    pub switch: &'static str,
}

impl TlsError {
    pub(super) fn file(file: TlsFile, path: &Path, cause: impl Into<String>) -> Self {
        TlsError::File {
            file,
            path: path.to_owned(),
            cause: cause.into(),
        }
    }

    pub(super) fn identity(of: &Identity, error: &rustls::Error) -> Self {
        let cause = match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                "the key is another certificate's".to_owned()
            }
            other => other.to_string(),
        };
        TlsError::Identity {
            certificate: of.certificate.clone(),
            key: of.key.clone(),
            cause,
        }
    }

    /// What a handshake came to; `None` if it is no matter of TLS: a connection that broke, for example.
    pub fn of_handshake(error: &io::Error) -> Option<Self> {
        use rustls::Error as E;
        let error = error.get_ref()?.downcast_ref::<E>()?;
        let said = error.to_string();
        Some(match error {
            E::InvalidCertificate(why) => match why {
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => TlsError::Name(said),
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => TlsError::Date(said),
                _ => TlsError::Untrusted(said),
            },
            E::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                // OpenSSL's word for a certificate whose issuer it knows by name and not by this key.
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied,
            ) => TlsError::Refused(said),
            _ => TlsError::Unlike(said),
        })
    }

    /// The next step, in a person's words for the settings.
    pub fn hint(&self, names: &FieldNames) -> String {
        let FieldNames {
            trusted,
            certificate,
            key,
            name,
            switch,
        } = names;
        let step = match self {
            TlsError::File { file, .. } => format!(
                "put a PEM file that can be read there, or correct {}",
                match file {
                    TlsFile::Trusted => trusted,
                    TlsFile::Certificate => certificate,
                    TlsFile::Key => key,
                }
            ),
            TlsError::Identity { .. } => format!("{certificate} and {key} have to be of one pair"),
            TlsError::System(_) => format!("name the certificates to trust in {trusted}"),
            TlsError::Untrusted(_) => format!(
                "put the authority that issued the server's certificate (or that certificate) into the file of {trusted}"
            ),
            TlsError::Name(_) => format!("use an address the certificate is for, or {name}"),
            TlsError::Date(_) => {
                "renew the server's certificate, or set the clock of this machine".to_owned()
            }
            TlsError::Refused(_) => format!(
                "name a client certificate that the server trusts in {certificate} and {key}"
            ),
            TlsError::Unlike(_) => format!(
                "check that the server has TLS on this port (if not, leave out {switch}) and speaks TLS 1.2 or newer"
            ),
        };
        format!("{step}; the files are read again for every attempt")
    }
}

/// The fault of TLS among the causes of an error.
pub fn fault<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(fault) = error.downcast_ref::<TlsError>() {
            return Some(fault);
        }
        next = error.source();
    }
    None
}
