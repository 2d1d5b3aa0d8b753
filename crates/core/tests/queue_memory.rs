//! The contract of the message queues, on the in-memory twin.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::position::{Position, QueueKind};
use cdc_core::source::contract::{self, ContractHarness};
use cdc_core::source::memory::MemoryLog;
use cdc_core::source::{LogSource, SourceError, Start};

const KEPT: Duration = Duration::from_secs(3600);

struct Memory(MemoryLog, AtomicUsize);

#[async_trait]
impl ContractHarness for Memory {
    fn source(&self) -> &dyn LogSource {
        &self.0
    }

    async fn create(&self) -> PChannel {
        let channel = PChannel::new(format!("c{}", self.1.fetch_add(1, Ordering::Relaxed)));
        self.0.create_channel(&channel);
        channel
    }

    async fn append(&self, channel: &PChannel, payload: Bytes) -> Position {
        tokio::task::yield_now().await;
        self.0.append(channel, payload)
    }

    async fn purge_to(&self, channel: &PChannel, position: Position) {
        self.0.purge_to(channel, position);
    }

    fn retention(&self) -> Option<Duration> {
        Some(KEPT)
    }
}

#[tokio::test]
async fn the_twin_keeps_the_contract() {
    let log = MemoryLog::new();
    log.set_retention(Some(KEPT));
    contract::run(Memory(log, AtomicUsize::new(0))).await;
}

#[tokio::test]
async fn gaps_between_ids_are_no_loss() {
    for kind in [QueueKind::Rocksmq, QueueKind::Kafka, QueueKind::Pulsar] {
        let log = MemoryLog::with(kind, 3);
        log.set_retention(Some(KEPT));
        contract::run(Memory(log, AtomicUsize::new(0))).await;
    }
}

#[tokio::test]
async fn a_fault_is_told_once_and_loses_nothing() {
    let log = MemoryLog::new();
    let channel = PChannel::new("c");
    let position = log.append(&channel, "a");
    let mut reader = log.open(&channel, Start::Earliest).await.unwrap();
    log.fail_next(1);
    assert!(matches!(
        reader.next(10).await,
        Err(SourceError::Unreachable { .. })
    ));
    assert_eq!(reader.next(10).await.unwrap()[0].position, position);
}
