//! Authorities, and what they issue, as PEM files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// An authority of certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Issued {
    certificate: String,
    key: String,
}

/// The files of one who takes part: whom it trusts, and who it is.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) trusted: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// For somebody of this common name, at these names and addresses.
    pub(crate) fn issue(&self, common_name: &str, names: &[&str]) -> Result<Issued> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, common_name);
        let key = KeyPair::generate()?;
        Ok(Issued {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// For a server on this machine.
    pub(crate) fn server(&self, common_name: &str) -> Result<Issued> {
        self.issue(common_name, &["localhost", "127.0.0.1"])
    }

    /// What a client of ours needs to know the servers of this authority, and to be known by them.
    pub(crate) fn client_tls(&self, common_name: &str) -> Result<ClientTlsConfig> {
        let own = self.issue(common_name, &[])?;
        Ok(ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.pem()))
            .identity(Identity::from_pem(own.certificate, own.key)))
    }
}

impl Files {
    /// In this folder, which is made if it is not there.
    pub(crate) fn at(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self {
            trusted: dir.join("trusted.pem"),
            certificate: dir.join("own.pem"),
            key: dir.join("own.key"),
        })
    }

    pub(crate) fn write(&self, trusted: &Authority, own: &Issued) -> Result<()> {
        std::fs::write(&self.trusted, trusted.pem())?;
        std::fs::write(&self.certificate, &own.certificate)?;
        std::fs::write(&self.key, &own.key)?;
        Ok(())
    }
}
