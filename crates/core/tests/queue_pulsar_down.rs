//! A Pulsar source whose broker is not there, or is none.
#![cfg(feature = "pulsar")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::time::Duration;

use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::secret::Secret;
use cdc_core::source::{
    PulsarAuth, PulsarConfig, PulsarLogin, PulsarTls, QueueConfig, SourceError, Start, open_source,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn config(address: String) -> PulsarConfig {
    PulsarConfig {
        address,
        tenant: "public".to_owned(),
        namespace: "default".to_owned(),
        auth: Some(PulsarAuth {
            method: "token".to_owned(),
            data: PulsarLogin::Fixed(Secret::new("hush")),
        }),
        tls: PulsarTls::default(),
        max_message_size: 5 << 20,
        connect_timeout: Duration::from_millis(300),
    }
}

async fn said(config: PulsarConfig) -> SourceError {
    let source = open_source(QueueConfig::Pulsar(config)).await.unwrap();
    let pinged = source.ping().await.unwrap_err();
    let opened = source.open(&PChannel::new("c"), Start::Earliest).await;
    assert_eq!(opened.err(), Some(pinged.clone()));
    assert!(!format!("{pinged:?} {pinged}").contains("hush"));
    pinged
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_by_the_calls_not_by_the_making() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = said(config(format!("pulsar://{free}"))).await;
    let SourceError::Unreachable { address, cause } = error else {
        panic!("{error:?}")
    };
    assert!(
        address.contains(&free.to_string()) && cause.contains("refused"),
        "{cause}"
    );
}

#[tokio::test]
async fn one_that_says_nothing_is_given_up_in_time() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("pulsar://{}", silent.local_addr().unwrap());
    let error = said(config(address)).await;
    assert!(
        error
            .to_string()
            .contains("no answer of a Pulsar broker within 300ms"),
        "{error}"
    );
}

#[tokio::test]
async fn another_kind_of_server_is_told() {
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("pulsar://{}", other.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = other.accept().await {
            let _ = peer.read(&mut [0; 100]).await;
            let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = said(config(address)).await;
    assert!(
        error.to_string().contains("Pulsar broker's binary port"),
        "{error}"
    );
}

#[tokio::test]
async fn certificates_that_cannot_be_read_are_named() {
    let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(format!("pulsar+ssl://{}", there.local_addr().unwrap()));
    config.tls.ca = Some("/nowhere/ca.pem".into());
    let error = said(config).await;
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn an_address_that_is_none_and_a_position_of_another_queue_are_refused() {
    let made = open_source(QueueConfig::Pulsar(config("not an address".to_owned()))).await;
    assert!(matches!(
        made.err(),
        Some(SourceError::Configuration { .. })
    ));
    let source = open_source(QueueConfig::Pulsar(config("pulsar://h:1".to_owned())));
    let source = source.await.unwrap();
    let at = Start::At(Position::Natsmq(1));
    let opened = source.open(&PChannel::new("c"), at).await.err();
    assert!(
        matches!(opened, Some(SourceError::Configuration { .. })),
        "{opened:?}"
    );
}
