//! The contract of the message queues on a real Pulsar broker.
#![cfg(all(feature = "pulsar", feature = "e2e"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "shared with other tests")]
mod pulsar_lab;

use std::time::Duration;

use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::source::contract::{self, ContractHarness};
use cdc_core::source::{LogReader, LogSource, RawMessage, SourceError, Start};
use pulsar_lab::Broker;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

async fn read(reader: &mut dyn LogReader, n: usize, max_bytes: usize) -> Vec<RawMessage> {
    let mut got = Vec::new();
    while got.len() < n {
        let batch = timeout(PATIENCE, reader.next(max_bytes)).await;
        got.extend(batch.expect("a message comes").unwrap());
    }
    got
}

async fn write(broker: &Broker, channel: &PChannel, n: u8) -> Vec<RawMessage> {
    let mut all = Vec::new();
    for i in 0..n {
        let payload = Bytes::from(vec![i; 50]);
        let position = broker.append(channel, payload.clone()).await;
        all.push(RawMessage { position, payload });
    }
    all
}

#[tokio::test]
async fn the_contract_on_pulsar() {
    contract::run(Broker::new().await).await;
}

#[tokio::test]
async fn the_messages_of_an_entry_have_positions_of_their_own() {
    let broker = Broker::new().await;
    let channel = broker.create().await;
    let mut all = Vec::new();
    for n in [1u8, 10, 3] {
        let payloads: Vec<Bytes> = (0..n).map(|i| Bytes::from(vec![i; 50])).collect();
        let entry = broker.append_batch(&channel, &payloads).await;
        let Position::Pulsar { ledger, entry, .. } = entry else {
            panic!("{entry}")
        };
        for (batch, payload) in (0..).zip(payloads) {
            let position = Position::Pulsar {
                ledger,
                entry,
                batch,
            };
            all.push(RawMessage { position, payload });
        }
    }
    let held = broker.source.bounds(&channel).await.unwrap().unwrap();
    assert_eq!((held.first, held.last), (all[0].position, all[13].position));
    for max_bytes in [1, 120, 1 << 20] {
        for (i, message) in all.iter().enumerate() {
            let at = Start::At(message.position);
            let mut reader = broker.source.open(&channel, at).await.unwrap();
            assert_eq!(
                read(&mut *reader, all.len() - i, max_bytes).await,
                all[i..],
                "{at:?}"
            );
        }
    }
    let mut after = broker
        .source
        .open(&channel, Start::After(all[4].position))
        .await
        .unwrap();
    assert_eq!(read(&mut *after, 9, 1 << 20).await, all[5..]);
    // An id that stands for the whole entry, as Milvus' own clients write it.
    let Position::Pulsar { ledger, entry, .. } = all[4].position else {
        panic!("{}", all[4].position)
    };
    let whole = Position::Pulsar {
        ledger,
        entry,
        batch: -1,
    };
    let mut at = broker
        .source
        .open(&channel, Start::At(whole))
        .await
        .unwrap();
    assert_eq!(read(&mut *at, 13, 1 << 20).await, all[1..]);
    let mut after = broker
        .source
        .open(&channel, Start::After(whole))
        .await
        .unwrap();
    assert_eq!(read(&mut *after, 3, 1 << 20).await, all[11..]);
    let beyond = Position::Pulsar {
        ledger,
        entry,
        batch: 10,
    };
    let mut reader = broker
        .source
        .open(&channel, Start::At(beyond))
        .await
        .unwrap();
    let got = timeout(PATIENCE, reader.next(100)).await.unwrap();
    assert!(
        matches!(got, Err(SourceError::PositionLost { .. })),
        "{got:?}"
    );
}

#[tokio::test]
async fn a_reader_goes_on_after_an_unload_and_leaves_nothing_behind() {
    let broker = Broker::new().await;
    let channel = broker.create().await;
    let mut reader = broker.source.open(&channel, Start::Earliest).await.unwrap();
    for _ in 0..3 {
        let all = write(&broker, &channel, 5).await;
        assert_eq!(read(&mut *reader, 5, 1 << 20).await, all);
        let topic = broker.topic(&channel);
        broker.ask("PUT", &format!("{topic}/unload"), None).await;
    }
    let all = write(&broker, &channel, 5).await;
    assert_eq!(read(&mut *reader, 5, 1 << 20).await, all);
    // One that the reader has given up is closed a moment later.
    timeout(PATIENCE, async {
        loop {
            let names = broker.subscriptions(&channel).await;
            if names.len() == 2 {
                assert!(names.iter().any(|n| n.starts_with("milvus-cdc-")));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("one subscription beside the tests' own");
    drop(reader);
    timeout(PATIENCE, async {
        while broker.subscriptions(&channel).await != ["keep"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the subscription goes with its reader");
}

#[tokio::test]
async fn a_topic_is_not_made_because_somebody_reads_it() {
    let broker = Broker::new().await;
    let channel = PChannel::new(format!("cdc-test-{:016x}", rand::random::<u64>()));
    for _ in 0..2 {
        let opened = broker.source.open(&channel, Start::Latest).await.err();
        assert!(
            matches!(opened, Some(SourceError::NoSuchChannel { .. })),
            "{opened:?}"
        );
    }
    let all = broker
        .ask(
            "GET",
            &format!("persistent/public/{}", broker.namespace),
            None,
        )
        .await;
    assert!(!all.to_string().contains(channel.as_str()), "{all}");
}

#[tokio::test]
async fn a_topic_made_anew_is_a_lost_position() {
    let broker = Broker::new().await;
    let channel = broker.create().await;
    let old = write(&broker, &channel, 3).await;
    let mut reader = broker.source.open(&channel, Start::Earliest).await.unwrap();
    assert_eq!(read(&mut *reader, 3, 1 << 20).await, old);
    let topic = broker.topic(&channel);
    broker
        .ask("DELETE", &format!("{topic}?force=true"), None)
        .await;
    broker.ask("PUT", &topic, None).await;
    broker
        .append_batch(&channel, &[Bytes::from_static(b"new")])
        .await;
    let got = timeout(PATIENCE, async {
        loop {
            match reader.next(100).await {
                Err(SourceError::NoSuchChannel { .. } | SourceError::Unreachable { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => break other,
            }
        }
    });
    let got = got.await.expect("an answer");
    assert!(
        matches!(got, Err(SourceError::PositionLost { .. })),
        "{got:?}"
    );
}
