//! How far back a queue reaches, on the in-memory twin and in virtual time.
#![cfg(feature = "testkit")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::ids::PChannel;
use cdc_core::position::QueueKind;
use cdc_core::source::memory::MemoryLog;
use cdc_core::source::reach::{Held, Reach};
use cdc_core::source::{Bounds, LogReader, LogSource, SourceError, Start};
use cdc_core::tso::Tso;
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::TimeTickMsg;
use prost::Message;

const HOUR: Duration = Duration::from_secs(3600);

/// Counts what it is asked, and does not answer at all while it hangs.
struct Counted {
    log: MemoryLog,
    bounds: AtomicUsize,
    opens: AtomicUsize,
    hangs: AtomicUsize,
}

#[async_trait]
impl LogSource for Counted {
    fn kind(&self) -> QueueKind {
        self.log.kind()
    }

    async fn ping(&self) -> Result<(), SourceError> {
        self.log.ping().await
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        self.bounds.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) > 0 {
            std::future::pending::<()>().await;
        }
        self.log.bounds(channel).await
    }

    async fn retention(&self, channel: &PChannel) -> Result<Option<Duration>, SourceError> {
        self.log.retention(channel).await
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        self.opens.fetch_add(1, Ordering::Relaxed);
        self.log.open(channel, start).await
    }
}

fn tick(ts: Tso) -> Vec<u8> {
    let base = MsgBase {
        timestamp: ts.0,
        ..MsgBase::new(MsgType::TimeTick)
    };
    TimeTickMsg { base: Some(base) }.encode_to_vec()
}

fn at(seconds: u64) -> Tso {
    Tso::from_millis(1_700_000_000_000 + seconds * 1000)
}

#[tokio::test(start_paused = true)]
async fn each_channel_is_asked_once_a_minute_at_most_and_only_if_somebody_wants_to_know() {
    let log = MemoryLog::new();
    let channels: BTreeSet<PChannel> = (0..5).map(|i| PChannel::new(format!("c{i}"))).collect();
    let mut first = Vec::new();
    for channel in &channels {
        // The insert of an upsert has no time of its own.
        first.push(log.append(channel, tick(Tso::ZERO)));
        for second in 0..100 {
            log.append(channel, tick(at(second)));
        }
    }
    let source = Arc::new(Counted {
        log: log.clone(),
        bounds: AtomicUsize::new(0),
        opens: AtomicUsize::new(0),
        hangs: AtomicUsize::new(0),
    });
    let asked = || {
        let count = |n: &AtomicUsize| n.swap(0, Ordering::Relaxed);
        (count(&source.bounds), count(&source.opens))
    };
    let reach = Reach::new(source.clone());
    let held = |first, retention| Held { first, retention };
    let all = |what: Held| channels.iter().map(|c| (c.clone(), what)).collect();
    assert_eq!(reach.of(&channels).await, all(held(Some(at(0)), None)));
    assert_eq!(asked(), (5, 5));
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(reach.of(&channels).await, all(held(Some(at(0)), None)));
    }
    assert_eq!(asked(), (0, 0));

    // Nothing was deleted: nothing is read again.
    log.set_retention(Some(HOUR));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        reach.of(&channels).await,
        all(held(Some(at(0)), Some(HOUR)))
    );
    assert_eq!(asked(), (5, 0));

    // The queue deletes, all of it in one channel.
    let emptied = channels.first().unwrap();
    for (channel, first) in channels.iter().zip(&first) {
        let cdc_core::position::Position::Natsmq(n) = first else {
            unreachable!()
        };
        let up_to = if channel == emptied { 1000 } else { n + 41 };
        log.purge_to(channel, cdc_core::position::Position::Natsmq(up_to));
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    let now = reach.of(&channels).await;
    for (channel, held) in &now {
        let first = (channel != emptied).then_some(at(41));
        assert_eq!(
            (held.first, held.retention),
            (first, Some(HOUR)),
            "{channel}"
        );
    }
    assert_eq!(now.len(), 5);

    // A queue that does not answer keeps nobody waiting, is not asked again and again, and is not known for ever.
    source.hangs.store(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    asked();
    let begun = tokio::time::Instant::now();
    assert_eq!(reach.of(&channels).await, now);
    assert!(begun.elapsed() <= Duration::from_secs(2));
    for _ in 0..10 {
        assert_eq!(reach.of(&channels).await, now);
    }
    assert!(begun.elapsed() <= Duration::from_secs(2));
    assert!(asked().0 <= 5);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(reach.of(&channels).await.is_empty());
    source.hangs.store(0, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(reach.of(&channels).await, now);
}

#[test]
fn what_is_left_is_told_by_the_clock_and_by_what_is_held() {
    let now = at(10_000);
    let room = |first, retention, needed| Held { first, retention }.headroom(needed, now);
    let known = room(Some(at(6_400)), Some(HOUR), at(9_000));
    assert_eq!((known.kept, known.left), (Some(2_600.0), Some(2_600.0)));
    // It was deleted already: for want of room, or by age.
    let lost = room(Some(at(9_500)), Some(HOUR), at(9_000));
    assert_eq!((lost.kept, lost.left), (Some(-500.0), Some(2_600.0)));
    let old = room(None, Some(HOUR), at(6_000));
    assert_eq!((old.kept, old.left), (None, Some(-400.0)));
    let silent = room(Some(at(0)), None, at(9_000));
    assert_eq!((silent.kept, silent.left), (Some(9_000.0), None));
}
