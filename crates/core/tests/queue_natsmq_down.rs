//! A natsmq source whose server is not there.
#![cfg(feature = "natsmq")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::time::Duration;

use cdc_core::ids::PChannel;
use cdc_core::source::{QueueConfig, SourceError, Start, open_source};

fn config(address: String) -> QueueConfig {
    QueueConfig::Natsmq {
        address,
        connect_timeout: Duration::from_millis(300),
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_told_by_the_calls_not_by_the_making() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let source = open_source(config(format!("nats://{free}"))).await.unwrap();
    assert!(matches!(
        source.ping().await,
        Err(SourceError::Unreachable { .. })
    ));
    let opened = source.open(&PChannel::new("c"), Start::Earliest).await;
    assert!(matches!(opened, Err(SourceError::Unreachable { .. })));
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    let made = open_source(config("not an address".to_owned())).await.err();
    assert!(
        matches!(made, Some(SourceError::Configuration { .. })),
        "{made:?}"
    );
}
