//! A Pulsar broker that is killed and comes back, which `cdc-lab beside --pulsar` sees to.
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
use cdc_core::source::contract::ContractHarness;
use cdc_core::source::{LogReader, LogSource, RawMessage, SourceError, Start};
use pulsar_lab::{Broker, variable};
use tokio::time::timeout;

/// A killed broker, the clearing of its metadata and a new start take half a minute on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Reads `n` messages, however often the broker is not there.
async fn read(reader: &mut dyn LogReader, n: usize) -> Vec<RawMessage> {
    let mut got = Vec::new();
    while got.len() < n {
        match reader.next(1 << 20).await {
            Ok(batch) => got.extend(batch),
            Err(SourceError::Unreachable { address, cause }) => {
                assert!(address.starts_with("pulsar://") && !cause.is_empty());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
    got
}

#[tokio::test]
async fn a_reader_survives_a_broker_that_is_killed() {
    let broker = Broker::new().await;
    let channel = broker.create().await;
    let mut all = Vec::new();
    for i in 0..20u8 {
        let payload = Bytes::from(vec![i; 50]);
        let position = broker.append(&channel, payload.clone()).await;
        all.push(RawMessage { position, payload });
    }
    let mut reader = broker.source.open(&channel, Start::Earliest).await.unwrap();
    let mut behind = broker
        .source
        .open(&channel, Start::At(all[5].position))
        .await
        .unwrap();
    assert_eq!(
        timeout(PATIENCE, read(&mut *reader, 20)).await.unwrap(),
        all
    );

    let pid = variable("CDC_TEST_PULSAR_PID");
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status();
    assert!(killed.unwrap().success());
    let pinged = timeout(PATIENCE, async {
        while broker.source.ping().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    pinged.await.expect("the source notices");
    assert_eq!(
        timeout(PATIENCE, read(&mut *behind, 15))
            .await
            .expect("the broker comes back"),
        all[5..]
    );
    // The producer of before does not come back by itself.
    let owner = broker.again().await;
    let payload = Bytes::from_static(b"more");
    let position = owner
        .append_batch(&channel, std::slice::from_ref(&payload))
        .await;
    for reader in [&mut reader, &mut behind] {
        let got = timeout(PATIENCE, read(&mut **reader, 1)).await.unwrap();
        assert_eq!(got[0].position, position);
    }
}
