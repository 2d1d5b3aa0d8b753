//! The contract of the message queues on RocksDB files in RocksMQ's layout, written by a primary of our own.
#![cfg(feature = "rocksmq")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::source::contract::{self, ContractHarness};
use cdc_core::source::rocksmq::{RocksmqConfig, RocksmqSource};
use cdc_core::source::{LogSource, SourceError, Start};
use rocksdb::{DB, Options, WriteBatch};

struct Primary {
    data: DB,
    meta: DB,
}

impl Primary {
    fn open(path: &Path) -> Self {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let data = DB::open_cf(&options, path, ["default", "properties"]).unwrap();
        let meta = DB::open(&options, format!("{}_meta_kv", path.display())).unwrap();
        Self { data, meta }
    }

    fn create(&self, channel: &PChannel) {
        self.meta
            .put(format!("topic_id/{channel}"), "1700000000")
            .unwrap();
    }

    fn put(&self, channel: &PChannel, id: i64, payload: &[u8]) {
        self.data.put(format!("{channel}/{id}"), payload).unwrap();
    }

    fn delete_to(&self, channel: &PChannel, id: i64) {
        let mut batch = WriteBatch::default();
        batch.delete_range(format!("{channel}/0"), format!("{channel}/{}", id + 1));
        self.data.write(batch).unwrap();
    }
}

const FIRST: i64 = 454_000_000_000_000_000;

struct Rocks {
    source: RocksmqSource,
    primary: Primary,
    /// Shared by all channels, so that each has gaps.
    id: AtomicI64,
    /// How far the next id is away.
    step: i64,
    /// Whether each purge is followed by a flush and a compaction, so that files go away under the reader.
    compact: bool,
    _folder: tempfile::TempDir,
}

fn source(path: &Path, own: &Path) -> RocksmqSource {
    RocksmqSource::open(RocksmqConfig {
        path: path.to_owned(),
        secondary_dir: Some(own.to_owned()),
    })
}

fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (path, own) = (folder.path().join("rdb_data"), folder.path().join("own"));
    (folder, path, own)
}

impl Rocks {
    fn new(step: i64, compact: bool) -> Self {
        let (folder, path, own) = folders();
        let primary = Primary::open(&path);
        let source = source(&path, &own);
        Self {
            source,
            primary,
            id: AtomicI64::new(FIRST),
            step,
            compact,
            _folder: folder,
        }
    }
}

#[async_trait]
impl ContractHarness for Rocks {
    fn source(&self) -> &dyn LogSource {
        &self.source
    }

    async fn create(&self) -> PChannel {
        let channel = PChannel::new(format!(
            "by-dev-rootcoord-dml_{}",
            self.id.fetch_add(1, Ordering::Relaxed)
        ));
        self.primary.create(&channel);
        channel
    }

    async fn append(&self, channel: &PChannel, payload: Bytes) -> Position {
        tokio::task::yield_now().await;
        let id = self.id.fetch_add(self.step, Ordering::Relaxed);
        self.primary.put(channel, id, &payload);
        Position::Rocksmq(id)
    }

    async fn purge_to(&self, channel: &PChannel, position: Position) {
        let Position::Rocksmq(id) = position else {
            panic!("{position} is not of rocksmq")
        };
        self.primary.delete_to(channel, id);
        if self.compact {
            self.primary.data.flush().unwrap();
            self.primary
                .data
                .compact_range(None::<&[u8]>, None::<&[u8]>);
        }
        // A reader may go on with the state it has seen, which still is whole.
        self.source.ping().await.unwrap();
    }
}

#[tokio::test]
async fn the_contract_on_rocksmq() {
    contract::run(Rocks::new(1, false)).await;
}

#[tokio::test]
async fn gaps_and_compaction_change_nothing() {
    contract::run(Rocks::new(3, true)).await;
}

#[tokio::test]
async fn a_database_that_comes_later_is_found_and_a_restart_of_the_primary_is_survived() {
    let (_folder, path, own) = folders();
    let source = source(&path, &own);
    let channel = PChannel::new("by-dev-rootcoord-dml_0");
    assert!(matches!(
        source.ping().await,
        Err(SourceError::Unreachable { .. })
    ));
    let mut primary = Primary::open(&path);
    primary.create(&channel);
    let mut reader = source.open(&channel, Start::Earliest).await.unwrap();
    for i in 0..20 {
        primary.put(&channel, FIRST + 2 * i, &[i as u8]);
        let got = tokio::time::timeout(Duration::from_secs(20), reader.next(100))
            .await
            .unwrap()
            .unwrap();
        let ids: Vec<_> = got.iter().map(|m| m.position).collect();
        assert_eq!(ids, [Position::Rocksmq(FIRST + 2 * i)]);
        if i % 4 == 3 {
            drop(primary);
            primary = Primary::open(&path);
        }
    }
}

#[tokio::test]
async fn the_last_message_of_a_deleted_page_is_no_loss_if_the_next_id_is_there() {
    let (_folder, path, own) = folders();
    let (primary, channel) = (Primary::open(&path), PChannel::new("c"));
    primary.create(&channel);
    for id in [FIRST, FIRST + 1, FIRST + 5] {
        primary.put(&channel, id, b"x");
    }
    let source = source(&path, &own);
    primary.delete_to(&channel, FIRST);
    let mut reader = source
        .open(&channel, Start::After(Position::Rocksmq(FIRST)))
        .await
        .unwrap();
    assert_eq!(
        reader.next(1).await.unwrap()[0].position,
        Position::Rocksmq(FIRST + 1)
    );
    primary.delete_to(&channel, FIRST + 1);
    source.ping().await.unwrap();
    let got = reader.next(1).await;
    assert!(
        matches!(got, Err(SourceError::PositionLost { .. })),
        "a gap cannot be told from a loss: {got:?}"
    );
}

#[tokio::test]
async fn what_was_written_and_deleted_between_two_looks_is_missed_loudly() {
    let (_folder, path, own) = folders();
    let (primary, channel) = (Primary::open(&path), PChannel::new("c"));
    primary.create(&channel);
    primary.put(&channel, FIRST, b"x");
    let source = source(&path, &own);
    let mut reader = source.open(&channel, Start::Earliest).await.unwrap();
    reader.next(1).await.unwrap();
    for id in 1..5 {
        primary.put(&channel, FIRST + id, b"x");
    }
    primary.delete_to(&channel, FIRST + 3);
    primary.data.flush().unwrap();
    primary.data.compact_range(None::<&[u8]>, None::<&[u8]>);
    let got = reader.next(100).await;
    assert!(
        matches!(got, Err(SourceError::PositionLost { .. })),
        "{got:?}"
    );
}

#[tokio::test]
async fn our_folder_goes_and_the_primary_is_left_as_it_was() {
    let (_folder, path, own) = folders();
    let (primary, channel) = (Primary::open(&path), PChannel::new("c"));
    primary.create(&channel);
    primary.put(&channel, FIRST, b"x");
    let list = |p: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(p)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = list(&path);
    let source = source(&path, &own);
    let mut reader = source.open(&channel, Start::Earliest).await.unwrap();
    reader.next(1).await.unwrap();
    assert_eq!(list(&own).len(), 1);
    drop((source, reader));
    assert_eq!(list(&own).len(), 0);
    assert_eq!(list(&path), before);
}
