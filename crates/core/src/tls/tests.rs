//! Handshakes with a server in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::connect::open_one_of;
use super::*;

static ONLY_1_2: [&SupportedProtocolVersion; 1] = [&TLS12];

const PATIENCE: Duration = Duration::from_secs(10);
const FIELDS: FieldNames = FieldNames {
    trusted: "TRUSTED",
    certificate: "CERTIFICATE",
    key: "KEY",
    name: "NAME",
    switch: "SWITCH",
};

/// Certificate and key, both PEM.
#[derive(Clone)]
struct Pair(String, String);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Pair {
        self.issue_with(CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn issue_with(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair(certificate.pem(), key.serialize_pem())
    }
}

struct Setting<'a> {
    identity: &'a Pair,
    /// Whose clients are let in; all if `None`.
    clients: Option<&'a Authority>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'static [u8],
}

impl<'a> Setting<'a> {
    fn of(identity: &'a Pair) -> Self {
        Self {
            identity,
            clients: None,
            versions: &FROM_1_2,
            alpn: HTTP2,
        }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.versions)
            .unwrap();
        let builder = match self.clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = CertificateDer::pem_slice_iter(self.identity.0.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.identity.1.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![self.alpn.to_vec()];
        Arc::new(config)
    }
}

/// Says a word to everybody it lets in.
struct Server {
    port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Server {
    async fn start(setting: Setting<'_>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(Mutex::new(setting.config()));
        let current = config.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(current.lock().clone());
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(tcp).await?;
                    stream.write_all(b"SETTINGS").await?;
                    tokio::time::sleep(PATIENCE).await;
                    std::io::Result::Ok(())
                });
            }
        });
        Self { port, config }
    }

    fn change(&self, setting: Setting<'_>) {
        *self.config.lock() = setting.config();
    }

    fn address(&self) -> Address {
        Address::parse(&format!("https://localhost:{}", self.port)).unwrap()
    }

    async fn try_with(&self, tls: &ClientTls) -> Result<(), TlsError> {
        one_of(&[self.address()], tls).await
    }
}

async fn one_of(servers: &[Address], tls: &ClientTls) -> Result<(), TlsError> {
    match open_one_of(tls, servers, PATIENCE).await {
        Ok(_) => Ok(()),
        Err(error) => match fault(error.as_ref()) {
            Some(fault) => Err(fault.clone()),
            None => panic!("an error without a fault of TLS: {error}"),
        },
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn trusting(&self, pem: &str) -> ClientTls {
        ClientTls {
            trusted: Some(self.put("trusted.pem", pem)),
            ..ClientTls::default()
        }
    }

    fn identity(&self, pair: &Pair) -> Identity {
        Identity {
            certificate: self.put("client.pem", &pair.0),
            key: self.put("client.key", &pair.1),
        }
    }
}

fn hint_names(error: &TlsError, words: &[&str]) {
    let hint = error.hint(&FIELDS);
    for word in words {
        assert!(hint.contains(word), "{word} in {hint} of {error}");
    }
}

#[tokio::test]
async fn a_server_is_trusted_for_its_authority_and_its_name() {
    let folder = Folder::new();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = Server::start(Setting::of(&ours.issue("localhost"))).await;
    server
        .try_with(&folder.trusting(&ours.0.pem()))
        .await
        .unwrap();
    let both = other.0.pem() + &ours.0.pem();
    server.try_with(&folder.trusting(&both)).await.unwrap();

    let error = server
        .try_with(&folder.trusting(&other.0.pem()))
        .await
        .unwrap_err();
    assert!(matches!(error, TlsError::Untrusted(_)), "{error}");
    hint_names(&error, &["TRUSTED"]);

    server.change(Setting::of(&ours.issue("db.example")));
    let mut tls = folder.trusting(&ours.0.pem());
    let error = server.try_with(&tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Name(_)), "{error}");
    hint_names(&error, &["NAME"]);
    tls.server_name = Some("db.example".to_owned());
    server.try_with(&tls).await.unwrap();

    let mut old = CertificateParams::new(["localhost".to_owned()]).unwrap();
    old.not_after = date_time_ymd(2001, 1, 1);
    server.change(Setting::of(&ours.issue_with(old)));
    let error = server
        .try_with(&folder.trusting(&ours.0.pem()))
        .await
        .unwrap_err();
    assert!(matches!(error, TlsError::Date(_)), "{error}");
}

#[tokio::test]
async fn the_certificate_of_the_server_itself_may_be_what_is_trusted() {
    let folder = Folder::new();
    let leaf = Authority::new("ours").issue("localhost");
    let server = Server::start(Setting::of(&leaf)).await;
    server.try_with(&folder.trusting(&leaf.0)).await.unwrap();
    // What `openssl req -x509` makes: its own authority.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).unwrap().pem();
    server.change(Setting::of(&Pair(own.clone(), key.serialize_pem())));
    server.try_with(&folder.trusting(&own)).await.unwrap();
    // Another one of the same name is not it, and the name counts.
    let error = server
        .try_with(&folder.trusting(&leaf.0))
        .await
        .unwrap_err();
    assert!(matches!(error, TlsError::Untrusted(_)), "{error}");
    let mut tls = folder.trusting(&own);
    tls.server_name = Some("elsewhere".to_owned());
    let error = server.try_with(&tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Name(_)), "{error}");
}

#[tokio::test]
async fn a_server_says_whose_clients_it_lets_in() {
    let folder = Folder::new();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let identity = ours.issue("localhost");
    for versions in [&ONLY_1_2, &FROM_1_3] {
        let server = Server::start(Setting {
            clients: Some(&ours),
            versions,
            ..Setting::of(&identity)
        })
        .await;
        let mut tls = folder.trusting(&ours.0.pem());
        let error = server.try_with(&tls).await.unwrap_err();
        assert!(matches!(error, TlsError::Refused(_)), "none: {error}");
        hint_names(&error, &["CERTIFICATE", "KEY"]);
        tls.identity = Some(folder.identity(&other.issue("client")));
        let error = server.try_with(&tls).await.unwrap_err();
        assert!(matches!(error, TlsError::Refused(_)), "another's: {error}");
        tls.identity = Some(folder.identity(&ours.issue("client")));
        server.try_with(&tls).await.unwrap();
    }
}

/// Nothing but the files changes on our side.
#[tokio::test]
async fn files_that_change_count_for_the_next_connection() {
    let folder = Folder::new();
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let (a, b) = (first.issue("localhost"), second.issue("localhost"));
    fn mutual<'a>(identity: &'a Pair, clients: &'a Authority) -> Setting<'a> {
        Setting {
            clients: Some(clients),
            ..Setting::of(identity)
        }
    }
    let server = Server::start(mutual(&a, &first)).await;
    let tls = ClientTls {
        identity: Some(folder.identity(&first.issue("client"))),
        ..folder.trusting(&first.0.pem())
    };
    server.try_with(&tls).await.unwrap();
    server.change(mutual(&b, &second));
    server.try_with(&tls).await.unwrap_err();
    folder.trusting(&second.0.pem());
    let error = server.try_with(&tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Refused(_)), "{error}");
    let new = second.issue("client");
    // Half of the pair is there when somebody connects.
    folder.put("client.pem", &new.0);
    let error = server.try_with(&tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Identity { .. }), "{error}");
    folder.identity(&new);
    server.try_with(&tls).await.unwrap();
}

#[tokio::test]
async fn the_oldest_version_and_the_protocol_are_kept() {
    let folder = Folder::new();
    let ours = Authority::new("ours");
    let identity = ours.issue("localhost");
    let server = Server::start(Setting {
        versions: &ONLY_1_2,
        ..Setting::of(&identity)
    })
    .await;
    let mut tls = folder.trusting(&ours.0.pem());
    server.try_with(&tls).await.unwrap();
    tls.oldest = TlsVersion::V13;
    let error = server.try_with(&tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Unlike(_)), "{error}");
    server.change(Setting {
        alpn: b"http/1.1",
        ..Setting::of(&identity)
    });
    let error = server.try_with(&tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Unlike(_)), "{error}");

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = plain.accept().await {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let plain = Address::parse(&format!("https://localhost:{port}")).unwrap();
    let error = one_of(&[plain], &tls).await.unwrap_err();
    assert!(matches!(error, TlsError::Unlike(_)), "{error}");
    hint_names(&error, &["SWITCH"]);
}

#[tokio::test]
async fn one_of_several_servers_is_enough() {
    let folder = Folder::new();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let good = Server::start(Setting::of(&ours.issue("localhost"))).await;
    let strange = Server::start(Setting::of(&other.issue("localhost"))).await;
    let down = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let down = Address::parse(&format!("https://{down}")).unwrap();
    let tls = folder.trusting(&ours.0.pem());
    // Begins with any of them: many times.
    for _ in 0..20 {
        one_of(&[down.clone(), strange.address(), good.address()], &tls)
            .await
            .unwrap();
        let error = one_of(&[down.clone(), strange.address()], &tls)
            .await
            .unwrap_err();
        assert!(matches!(error, TlsError::Untrusted(_)), "{error}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_without_what_is_in_it() {
    let folder = Folder::new();
    let ours = Authority::new("ours");
    let good = ours.issue("client");
    let check = |trusted: Option<&Path>, identity: Option<(&Path, &Path)>| {
        let tls = ClientTls {
            trusted: trusted.map(Path::to_owned),
            identity: identity.map(|(certificate, key)| Identity {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            }),
            ..ClientTls::default()
        };
        tls.check().map_err(|e| (e.to_string(), e.hint(&FIELDS)))
    };
    let certificate = folder.put("c.pem", &good.0);
    let key = folder.put("k.pem", &good.1);
    let hush = folder.put(
        "hush.pem",
        "-----BEGIN PRIVATE KEY-----\nhush-hush\n-----END",
    );
    let text = folder.put("text.pem", "hush-hush");
    let locked = folder.put(
        "locked.pem",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\naHVzaA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    check(Some(&certificate), Some((&certificate, &key))).unwrap();
    check(None, None).unwrap();
    let nowhere = folder.0.path().join("nowhere.pem");
    for (trusted, identity, field) in [
        (Some(nowhere.as_path()), None, "TRUSTED"),
        (Some(folder.0.path()), None, "TRUSTED"),
        (Some(Path::new("/dev/zero")), None, "TRUSTED"),
        (Some(&text), None, "TRUSTED"),
        (Some(&key), None, "TRUSTED"),
        (
            None,
            Some((nowhere.as_path(), key.as_path())),
            "CERTIFICATE",
        ),
        (None, Some((&key, &key)), "CERTIFICATE"),
        (None, Some((&certificate, &nowhere)), "KEY"),
        (None, Some((&certificate, &certificate)), "KEY"),
        (None, Some((&certificate, &hush)), "KEY"),
        (None, Some((&certificate, &text)), "KEY"),
        (None, Some((&certificate, &locked)), "KEY"),
    ] {
        let (error, hint) = check(trusted, identity).unwrap_err();
        assert!(hint.contains(field), "{field} in {hint}: {error}");
        assert!(
            error.contains(".pem") || error.contains('/'),
            "the file in {error}"
        );
        assert!(
            !error.contains("hush-hush") && !hint.contains("hush-hush"),
            "{error}"
        );
    }
    let other = folder.put("other.pem", &ours.issue("other").1);
    let (error, hint) = check(None, Some((&certificate, &other))).unwrap_err();
    assert!(error.contains("another certificate's"), "{error}");
    assert!(
        hint.contains("CERTIFICATE") && hint.contains("KEY"),
        "{hint}"
    );
}

#[test]
fn addresses_and_names() {
    let address = Address::parse("https://[::1]:2379").unwrap();
    assert_eq!(address.plain().to_string(), "http://[::1]:2379/");
    assert!(Address::parse("http://h:1").is_none());
    assert!(is_server_name("db.example") && is_server_name("10.0.0.1") && is_server_name("::1"));
    assert!(!is_server_name("") && !is_server_name("a b") && !is_server_name("h:1"));
}

#[tokio::test]
async fn a_channel_says_why_there_is_none() {
    let folder = Folder::new();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = Server::start(Setting::of(&ours.issue("localhost"))).await;
    let uri = format!("https://localhost:{}", server.port);
    let no = async |uri: &str, tls: &ClientTls| channel(uri, tls, PATIENCE).await.unwrap_err();
    let error = no(&uri, &folder.trusting(&other.0.pem())).await;
    assert!(
        matches!(error, NoChannel::Tls(TlsError::Untrusted(_))),
        "{error}"
    );
    let plain = ClientTls::default();
    for bad in ["localhost:1", "ftp://localhost:1", "http://", "https://"] {
        assert_eq!(no(bad, &plain).await, NoChannel::Address, "{bad}");
    }
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let error = no(&format!("http://127.0.0.1:{port}"), &plain).await;
    assert!(matches!(error, NoChannel::Unreachable(_)), "{error}");
}
