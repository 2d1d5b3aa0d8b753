//! A Kafka source whose broker is not there.
#![cfg(feature = "kafka")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::time::Duration;

use cdc_core::ids::PChannel;
use cdc_core::source::kafka::{KafkaConfig, KafkaTls};
use cdc_core::source::{QueueConfig, SourceError, Start, open_source};

fn config(brokers: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.to_owned(),
        tls: None,
        sasl: None,
        timeout: Duration::from_millis(300),
        prefetch: 64 << 10,
    }
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_by_the_calls_not_by_the_making() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let source = open_source(QueueConfig::Kafka(config(&free)))
        .await
        .unwrap();
    for told in [
        source.ping().await.err(),
        source
            .open(&PChannel::new("c"), Start::Earliest)
            .await
            .err(),
    ] {
        let Some(SourceError::Unreachable { address, cause }) = &told else {
            panic!("{told:?}")
        };
        assert_eq!(address, &free);
        assert!(cause.contains("refused"), "{cause}");
    }
}

#[tokio::test]
async fn what_cannot_be_an_address_or_a_certificate_is_refused() {
    for brokers in [
        "",
        "not an address",
        "h",
        "h:0",
        "h:9092,",
        "user:pw@h:9092",
    ] {
        let made = open_source(QueueConfig::Kafka(config(brokers))).await.err();
        assert!(
            matches!(made, Some(SourceError::Configuration { .. })),
            "{brokers}: {made:?}"
        );
    }
    let tls = KafkaTls {
        ca: Some("/nowhere/ca.pem".into()),
        client: None,
        verify_hostname: true,
    };
    let with = KafkaConfig {
        tls: Some(tls),
        ..config("h:9092,i:9092")
    };
    let made = open_source(QueueConfig::Kafka(with)).await.err();
    assert!(
        matches!(&made, Some(SourceError::Configuration { cause, .. }) if cause.contains("ssl.ca.location")),
        "{made:?}"
    );
}
