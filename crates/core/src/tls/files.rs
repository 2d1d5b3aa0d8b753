//! Certificates and keys from PEM files, without ever showing what is in them.

use std::path::Path;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::{Identity, TlsError, TlsFile};

/// Far more than the authorities of any company. The path may come from a request: it must not be able to make us read
/// without an end.
const MAX_FILE: u64 = 4 << 20;

pub(super) type Chain = Vec<CertificateDer<'static>>;

pub(super) fn certificates(path: &Path, file: TlsFile) -> Result<Chain, TlsError> {
    let text = read(path, file)?;
    let all: Result<Chain, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(TlsError::file(
            file,
            path,
            "no certificate in PEM form is in it",
        )),
        // What the parser says may quote the file.
        Err(_) => Err(TlsError::file(file, path, "what is in it is no whole PEM")),
    }
}

/// The certificate and its key, which has to be its own.
pub(super) fn identity(of: &Identity) -> Result<(Chain, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&of.certificate, TlsFile::Certificate)?;
    let text = read(&of.key, TlsFile::Key)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let cause = "no private key in PEM form without a password is in it";
        TlsError::file(TlsFile::Key, &of.key, cause)
    })?;
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider())
        .map_err(|e| TlsError::identity(of, &e))?;
    Ok((chain, key))
}

pub(super) fn system_certificates() -> Result<Chain, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    match (found.certs.is_empty(), found.errors.first()) {
        (false, _) => Ok(found.certs),
        (true, Some(error)) => Err(TlsError::System(error.to_string())),
        (true, None) => Err(TlsError::System(
            "the system has no trusted certificates".to_owned(),
        )),
    }
}

/// Whether a certificate can be for this name: a host name or an IP address.
pub fn is_server_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

fn read(path: &Path, file: TlsFile) -> Result<Vec<u8>, TlsError> {
    let bad = |cause: String| TlsError::file(file, path, cause);
    let about = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
    if !about.is_file() || about.len() > MAX_FILE {
        return Err(bad(format!(
            "a file of at most {} MiB expected",
            MAX_FILE >> 20
        )));
    }
    std::fs::read(path).map_err(|e| bad(e.to_string()))
}
