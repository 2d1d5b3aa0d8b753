//! TLS with certificates made here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use milvus_cdc::config::access::{Access, TlsFiles};
use milvus_cdc::listen::Tls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::server::{Server, access, start_with};

const SURELY: Duration = Duration::from_secs(20);

/// Who signs.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn sign(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn server(&self, pair: &Pair, client_ca: Option<&Ca>) -> TlsFiles {
        TlsFiles {
            certificate: self.write("server.pem", &pair.certificate),
            key: self.write("server.key", &pair.key),
            client_ca: client_ca.map(|ca| self.write("clients.pem", &ca.pem())),
        }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("s.db")
    }
}

async fn start(path: &Path, tls: TlsFiles) -> Server {
    let access = Access {
        tls: Some(tls),
        ..access()
    };
    start_with(path, true, access).await
}

/// Asks for `/healthz` over TLS; the error says what was refused.
async fn ask(server: &Server, trusted: &Ca, shown: Option<&Pair>) -> Result<String, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(trusted.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    let stream = server.connect().await;
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect(name, stream)
        .await
        .map_err(|e| text(&e))?;
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(|e| text(&e))?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(format!("{read:?} {answer}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_tls_and_only_the_certificate_that_is_trusted() {
    let (ca, other) = (Ca::new(), Ca::new());
    let files = Files::new();
    let server = start(&files.db(), files.server(&ca.sign("localhost"), None)).await;
    let answer = ask(&server, &ca, None).await.unwrap();
    assert!(answer.contains("live"), "{answer}");
    ask(&server, &other, None).await.unwrap_err();
    let mut plain = server.connect().await;
    let request = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut heard = Vec::new();
    let _ = plain.read_to_end(&mut heard).await;
    assert!(
        !String::from_utf8_lossy(&heard).contains("live"),
        "{heard:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_a_certificate_if_it_has_to() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let files = Files::new();
    let tls = files.server(&ca.sign("localhost"), Some(&clients));
    let server = start(&files.db(), tls).await;
    ask(&server, &ca, None).await.unwrap_err();
    ask(&server, &ca, Some(&ca.sign("somebody")))
        .await
        .unwrap_err();
    ask(&server, &ca, Some(&clients.sign("somebody")))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_without_a_restart() {
    let (first, second) = (Ca::new(), Ca::new());
    let files = Files::new();
    let server = start(&files.db(), files.server(&first.sign("localhost"), None)).await;
    ask(&server, &first, None).await.unwrap();
    files.server(&second.sign("localhost"), None);
    tokio::time::timeout(SURELY, async {
        while ask(&server, &second, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the new certificate was never used");
    ask(&server, &first, None).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_shake_hands_is_closed() {
    let ca = Ca::new();
    let files = Files::new();
    let access = Access {
        tls: Some(files.server(&ca.sign("localhost"), None)),
        header_timeout: Duration::from_millis(300),
        ..access()
    };
    let server = start_with(&files.db(), true, access).await;
    let mut silent = server.connect().await;
    let mut heard = Vec::new();
    let end = tokio::time::timeout(SURELY, silent.read_to_end(&mut heard)).await;
    assert!(end.is_ok(), "it was waited for");
}

#[test]
fn what_cannot_be_used_leaves_what_was_there() {
    let (ca, files) = (Ca::new(), Files::new());
    let tls = Tls::load(&files.server(&ca.sign("localhost"), None)).unwrap();
    assert!(!tls.look().unwrap());
    files.write("server.pem", "no certificate");
    tls.look().unwrap_err();
    let error = tls.look().unwrap_err().to_string();
    assert!(error.contains("security.tls.certFile"), "{error}");
    files.server(&ca.sign("localhost"), None);
    assert!(tls.look().unwrap());
    assert!(!tls.look().unwrap());
}

#[test]
fn files_that_cannot_work_are_named() {
    let (ca, files) = (Ca::new(), Files::new());
    let (one, other) = (ca.sign("localhost"), ca.sign("localhost"));
    let refused = |tls: &TlsFiles| Tls::load(tls).err().unwrap().to_string();
    let mut tls = files.server(&one, None);
    assert!(Tls::load(&tls).is_ok());
    files.write("server.key", &other.key);
    assert!(refused(&tls).contains("security.tls.certFile"));
    files.write("server.key", &one.certificate);
    assert!(refused(&tls).contains("security.tls.keyFile"));
    files.write("server.key", &one.key);
    tls.client_ca = Some(files.write("clients.pem", ""));
    assert!(refused(&tls).contains("security.tls.clientCAFile"));
    tls.client_ca = Some(files.dir.path().join("missing"));
    let error = refused(&tls);
    assert!(
        error.contains("clientCAFile") && error.contains("missing"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_and_checks_certificates() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let files = Files::new();
    let tls = files.server(&ca.sign("localhost"), Some(&clients));
    let server = start(&files.db(), tls).await;
    let own = clients.sign("somebody");
    let ca = files.write("ca.pem", &ca.pem());
    let wrong_ca = files.write("wrong.pem", &clients.pem());
    let certificate = files.write("own.pem", &own.certificate);
    let key = files.write("own.key", &own.key);
    let list = async |ca: &Path, shown: bool| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_milvus-cdc"));
        command.args(["task", "list", "--server"]);
        command.arg(format!("https://localhost:{}", server.address.port()));
        command.arg("--ca-cert").arg(ca);
        if shown {
            command.arg("--client-cert").arg(&certificate);
            command.arg("--client-key").arg(&key);
        }
        let done = command.env("NO_PROXY", "localhost").output().await.unwrap();
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let granted = list(&ca, true).await;
    assert_eq!(granted.0, Some(0), "{}", granted.1);
    for (ca, shown) in [(&ca, false), (&wrong_ca, true)] {
        let refused = list(ca, shown).await;
        assert_eq!(refused.0, Some(3), "{}", refused.1);
    }
}
