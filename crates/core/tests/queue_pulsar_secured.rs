//! A Pulsar source over TLS with a token and with a certificate, on a real broker of the test's own.
#![cfg(all(feature = "pulsar", feature = "e2e"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cdc_core::ids::PChannel;
use cdc_core::secret::Secret;
use cdc_core::source::pulsar::PulsarSource;
use cdc_core::source::{
    LogSource, PulsarAuth, PulsarConfig, PulsarLogin, PulsarTls, SourceError, Start,
};
use pulsar::TokioExecutor;
use ring::hmac;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &[u8] = b"the key of the tests, of 32 bytes";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

/// A JSON Web Token (HS256) for the role `cdc`, which is what Pulsar's token authentication takes.
fn token(key: &[u8]) -> String {
    let said = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(r#"{"sub":"cdc"}"#)
    );
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), said.as_bytes());
    format!("{said}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Its key is an RSA one, for Pulsar 3.0.7 reads no other. Without TLS anybody is let in, for the tests' producer and for
/// the broker's own start; over TLS whoever logs in has to be right.
struct Broker {
    lab: Child,
    /// It ends with its input.
    input: Option<ChildStdin>,
    url: String,
    tls: u16,
    _dir: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tls = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let key = dir.path().join("token.key");
        std::fs::write(&key, KEY).unwrap();
        let conf = dir.path().join("more.conf");
        let plugin = "org.apache.pulsar.broker.authentication.AuthenticationProvider";
        std::fs::write(
            &conf,
            format!(
                "brokerServicePortTls={tls}\ntlsCertificateFilePath={}\ntlsKeyFilePath={}\n\
                 tlsTrustCertsFilePath={}\nauthenticationEnabled=true\nanonymousUserRole=anybody\n\
                 authenticationProviders={plugin}Token,{plugin}Tls\ntokenSecretKey=file://{}\n",
                file("rsa-server.pem").display(),
                file("rsa-server.key").display(),
                file("ca.pem").display(),
                key.display(),
            ),
        )
        .unwrap();
        let mut lab = Command::new(std::env::var("CDC_LAB_BIN").expect("set by cdc-lab beside"))
            .arg("pulsar")
            .arg("--dir")
            .arg(dir.path().join("pulsar"))
            .arg("--conf")
            .arg(&conf)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(lab.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("pulsar://"), "the broker starts: {line:?}");
        Self {
            input: lab.stdin.take(),
            lab,
            url: line.trim().to_owned(),
            tls,
            _dir: dir,
        }
    }

    fn source(&self, method: &str, data: &str, tls: PulsarTls) -> PulsarSource {
        PulsarSource::new(PulsarConfig {
            address: format!("pulsar+ssl://127.0.0.1:{}", self.tls),
            tenant: "public".to_owned(),
            namespace: "default".to_owned(),
            auth: Some(PulsarAuth {
                method: method.to_owned(),
                data: PulsarLogin::Fixed(Secret::new(data)),
            }),
            tls,
            max_message_size: 5 << 20,
            connect_timeout: Duration::from_secs(10),
        })
        .unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.lab.wait();
    }
}

#[tokio::test]
async fn a_token_or_a_certificate_opens_and_nothing_else_does() {
    let broker = Broker::start();
    let trusting = PulsarTls {
        ca: Some(file("rsa-ca.pem")),
        client: None,
    };
    let with_certificate = PulsarTls {
        client: Some((file("client.pem"), file("client.key"))),
        ..trusting.clone()
    };
    let channel = PChannel::new("secured");
    let client = pulsar::Pulsar::builder(&broker.url, TokioExecutor)
        .build()
        .await
        .unwrap();
    let mut producer = client
        .producer()
        .with_topic("persistent://public/default/secured")
        .build()
        .await
        .unwrap();
    let receipt = producer.send_non_blocking(b"one".to_vec()).await.unwrap();
    timeout(PATIENCE, receipt).await.unwrap().unwrap();

    for source in [
        broker.source("token", &token(KEY), trusting.clone()),
        broker.source("tls", "", with_certificate),
    ] {
        source.ping().await.unwrap();
        let mut reader = source.open(&channel, Start::Earliest).await.unwrap();
        let got = timeout(PATIENCE, reader.next(1 << 20)).await.unwrap();
        assert_eq!(got.unwrap()[0].payload, "one");
    }

    let forged = token(b"another key of 32 bytes and more.");
    for (method, data) in [("token", &*forged), ("token", "hush-hush"), ("tls", "")] {
        let source = broker.source(method, data, trusting.clone());
        let opened = source.open(&channel, Start::Earliest).await.err();
        for error in [source.ping().await.err(), opened] {
            let Some(error @ SourceError::Login { .. }) = error else {
                panic!("{method}: {error:?}")
            };
            let told = format!("{error} {error:?}");
            assert!(data.is_empty() || !told.contains(data), "{told}");
        }
    }
    // A certificate nobody vouches for: the token is not shown to it.
    let error = broker
        .source("token", &token(KEY), PulsarTls::default())
        .ping()
        .await;
    let Err(SourceError::Unreachable { cause, .. }) = error else {
        panic!("{error:?}")
    };
    assert!(cause.contains("UnknownIssuer"), "{cause}");
}
