//! TLS and logins of a Pulsar source, on a broker that only greets.
#![cfg(feature = "pulsar")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cdc_core::secret::Secret;
use cdc_core::source::{
    LogSource, PulsarAuth, PulsarConfig, PulsarLogin, PulsarTls, QueueConfig, SourceError,
    open_source,
};
use prost::Message;
use pulsar::proto::base_command::Type;
use pulsar::proto::{BaseCommand, CommandConnect, CommandConnected, CommandPong};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

fn of(kind: Type) -> BaseCommand {
    BaseCommand {
        r#type: kind as i32,
        ..Default::default()
    }
}

/// Answers Connect and Ping; tells what each client said at its Connect. `mutual`: asks for a client's certificate.
async fn greeter(mutual: bool) -> (u16, mpsc::Receiver<CommandConnect>) {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if mutual {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(file("ca.pem")).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![CertificateDer::from_pem_file(file("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (said, heard) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((peer, _)) = listener.accept().await {
            let (acceptor, said) = (acceptor.clone(), said.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(peer).await?;
                loop {
                    let total = stream.read_u32().await? as usize;
                    let mut frame = vec![0; total];
                    stream.read_exact(&mut frame).await?;
                    let command = BaseCommand::decode(&frame[4..])?;
                    let answer = match command.connect {
                        Some(connect) => {
                            said.send(connect).await.map_err(std::io::Error::other)?;
                            BaseCommand {
                                connected: Some(CommandConnected {
                                    server_version: "greeter".to_owned(),
                                    ..Default::default()
                                }),
                                ..of(Type::Connected)
                            }
                        }
                        None => BaseCommand {
                            pong: Some(CommandPong {}),
                            ..of(Type::Pong)
                        },
                    };
                    let body = answer.encode_to_vec();
                    stream.write_u32(body.len() as u32 + 4).await?;
                    stream.write_u32(body.len() as u32).await?;
                    stream.write_all(&body).await?;
                    stream.flush().await?;
                }
                #[allow(unreachable_code, reason = "names the error type")]
                Ok::<(), std::io::Error>(())
            });
        }
    });
    (port, heard)
}

fn config(port: u16, tls: PulsarTls) -> PulsarConfig {
    PulsarConfig {
        address: format!("pulsar+ssl://localhost:{port}"),
        tenant: "public".to_owned(),
        namespace: "default".to_owned(),
        auth: Some(PulsarAuth {
            method: "token".to_owned(),
            data: PulsarLogin::Fixed(Secret::new("t0k3n")),
        }),
        tls,
        max_message_size: 5 << 20,
        connect_timeout: Duration::from_secs(5),
    }
}

async fn source(config: PulsarConfig) -> Arc<dyn LogSource> {
    open_source(QueueConfig::Pulsar(config)).await.unwrap()
}

fn trusting(client: bool) -> PulsarTls {
    PulsarTls {
        ca: Some(file("ca.pem")),
        client: client.then(|| (file("client.pem"), file("client.key"))),
    }
}

#[tokio::test]
async fn the_token_goes_to_a_server_whose_certificate_is_trusted() {
    let (port, mut heard) = greeter(false).await;
    source(config(port, trusting(false)))
        .await
        .ping()
        .await
        .unwrap();
    let said = heard.recv().await.unwrap();
    assert_eq!(said.auth_method_name.as_deref(), Some("token"));
    assert_eq!(said.auth_data.as_deref(), Some(&b"t0k3n"[..]));
}

#[tokio::test]
async fn and_to_no_other() {
    let (port, mut heard) = greeter(false).await;
    let error = source(config(port, PulsarTls::default()))
        .await
        .ping()
        .await;
    let Err(SourceError::Unreachable { cause, .. }) = error else {
        panic!("{error:?}")
    };
    assert!(
        cause.contains("TLS") && cause.contains("UnknownIssuer"),
        "{cause}"
    );
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn a_certificate_of_our_own_where_the_server_wants_one() {
    let (port, _heard) = greeter(true).await;
    assert!(
        source(config(port, trusting(false)))
            .await
            .ping()
            .await
            .is_err()
    );
    source(config(port, trusting(true)))
        .await
        .ping()
        .await
        .unwrap();
}

#[tokio::test]
async fn certificates_that_were_renewed_are_read_again() {
    let (port, _heard) = greeter(false).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::copy(file("server.pem"), &ca).unwrap();
    let tls = PulsarTls {
        ca: Some(ca.clone()),
        client: None,
    };
    let source = source(config(port, tls)).await;
    assert!(source.ping().await.is_err());
    std::fs::copy(file("ca.pem"), &ca).unwrap();
    source.ping().await.unwrap();
}
