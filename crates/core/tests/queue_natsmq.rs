//! The contract of the message queues on a real JetStream server, at `CDC_TEST_NATS_URL`.
#![cfg(all(feature = "natsmq", feature = "e2e"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::source::contract::{self, ContractHarness};
use cdc_core::source::natsmq::{NatsmqConfig, NatsmqSource};
use cdc_core::source::{LogSource, SourceError, Start};

/// Milvus' own default is three days.
const KEPT: Duration = Duration::from_secs(72 * 3600);

struct Nats {
    source: NatsmqSource,
    context: jetstream::Context,
}

impl Nats {
    async fn new() -> Self {
        let address = std::env::var("CDC_TEST_NATS_URL").expect(
            "CDC_TEST_NATS_URL names a NATS server with JetStream, such as nats://127.0.0.1:4222",
        );
        let client = async_nats::connect(&address)
            .await
            .expect("the server at CDC_TEST_NATS_URL answers");
        let config = NatsmqConfig {
            address,
            connect_timeout: Duration::from_secs(5),
        };
        Self {
            source: NatsmqSource::connect(config).await.unwrap(),
            context: jetstream::new(client),
        }
    }
}

#[async_trait]
impl ContractHarness for Nats {
    fn retention(&self) -> Option<Duration> {
        Some(KEPT)
    }

    fn source(&self) -> &dyn LogSource {
        &self.source
    }

    async fn create(&self) -> PChannel {
        let name = format!("cdc-test-{:016x}", rand::random::<u64>());
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![name.clone()],
            max_age: KEPT,
            ..Default::default()
        };
        self.context.create_stream(config).await.unwrap();
        PChannel::new(name)
    }

    async fn append(&self, channel: &PChannel, payload: Bytes) -> Position {
        let ack = self
            .context
            .publish(channel.as_str().to_owned(), payload)
            .await
            .unwrap();
        Position::Natsmq(ack.await.unwrap().sequence)
    }

    async fn purge_to(&self, channel: &PChannel, position: Position) {
        let Position::Natsmq(sequence) = position else {
            panic!("{position} is not of natsmq")
        };
        let stream = self.context.get_stream(channel.as_str()).await.unwrap();
        stream.purge().sequence(sequence + 1).await.unwrap();
    }
}

#[tokio::test]
async fn the_contract_on_natsmq() {
    contract::run(Nats::new().await).await;
}

#[tokio::test]
async fn a_reader_survives_the_loss_of_its_consumer_and_leaves_none_behind() {
    let nats = Nats::new().await;
    let channel = nats.create().await;
    let stream = nats.context.get_stream(channel.as_str()).await.unwrap();
    let mut reader = nats.source.open(&channel, Start::Earliest).await.unwrap();
    for i in 0..3u8 {
        let position = nats.append(&channel, Bytes::from(vec![i])).await;
        assert_eq!(reader.next(100).await.unwrap()[0].position, position);
        use futures::TryStreamExt;
        let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
        assert_eq!(names.len(), 1, "{names:?}");
        if i < 2 {
            stream.delete_consumer(&names[0]).await.unwrap();
        }
    }
    drop(reader);
    tokio::time::timeout(Duration::from_secs(10), async {
        while stream.get_info().await.unwrap().state.consumer_count > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the consumer is removed with its reader");
}

#[tokio::test]
async fn a_stream_made_anew_is_a_lost_position() {
    let nats = Nats::new().await;
    let channel = nats.create().await;
    let mut reader = nats.source.open(&channel, Start::Earliest).await.unwrap();
    nats.append(&channel, Bytes::from_static(b"old")).await;
    reader.next(100).await.unwrap();
    nats.context.delete_stream(channel.as_str()).await.unwrap();
    let config = stream::Config {
        name: channel.to_string(),
        subjects: vec![channel.to_string()],
        ..Default::default()
    };
    nats.context.create_stream(config).await.unwrap();
    for _ in 0..3 {
        nats.append(&channel, Bytes::from_static(b"new")).await;
    }
    let got = tokio::time::timeout(Duration::from_secs(30), reader.next(100))
        .await
        .unwrap();
    assert!(
        matches!(got, Err(SourceError::PositionLost { .. })),
        "{got:?}"
    );
}
