//! Insert, delete, upsert, flush.

use anyhow::{Result, ensure};
use milvus::proto::common::SegmentState;
use rand::rngs::StdRng;

use crate::harness::tests;
use crate::lab::{DB, Lab, PATIENCE, until};
use crate::plain::Plain;

tests![Test: insert, delete, upsert, flush];

async fn insert(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut rows = 0;
    for shards in 1..=4 {
        let mut c = Plain::create(&lab.from, &format!("insert{shards}"), shards).await?;
        // One row leaves most shards without any.
        for count in [1, 2, 300, 1] {
            c.insert(&lab.from, "", count, random).await?;
        }
        rows += c.keys.len();
    }
    lab.equal_rows(rows).await
}

async fn delete(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let c = Plain::create(&lab.from, "delete", 2).await?;
    let keys: Vec<i64> = (0..60).collect();
    // The same keys in two partitions: with and without a partition's name are two different deletes.
    for partition in ["p", "q"] {
        lab.from.create_partition(DB, c.name(), partition).await?;
        lab.from
            .wait_loaded(DB, c.name(), &[partition.to_owned()], PATIENCE)
            .await?;
        c.write(&lab.from, partition, &keys, random).await?;
    }
    lab.equal_rows(120).await?;
    c.erase(&lab.from, "p", &keys[..20]).await?;
    lab.equal_rows(100).await?;
    c.erase(&lab.from, "", &keys[10..30]).await?;
    lab.equal_rows(70).await?;
    // Keys that are not there, and those of which one partition has none left.
    c.erase(&lab.from, "q", &[0, 15, 7_000]).await?;
    lab.equal_rows(69).await?;
    // A deleted key comes again.
    c.write(&lab.from, "p", &keys[..5], random).await?;
    lab.equal_rows(74).await
}

async fn upsert(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::create(&lab.from, "upsert", 3).await?;
    c.insert(&lab.from, "", 200, random).await?;
    for _ in 0..10 {
        c.upsert(&lab.from, 50, 5, random).await?;
    }
    // Several times within one tick of the source.
    for _ in 0..20 {
        c.upsert(&lab.from, 1, 0, random).await?;
    }
    lab.equal_rows(250).await
}

/// The flush of the source is one of the target: its rows are in its storage.
async fn flush(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::create(&lab.from, "flush", 2).await?;
    c.insert(&lab.from, "", 400, random).await?;
    lab.equal_rows(400).await?;
    lab.from.flush_and_wait(DB, c.name(), PATIENCE).await?;
    let mut last = Vec::new();
    let flushed = until("the target's segments are flushed", async || {
        last = lab.to.persistent_segments(DB, "flush").await?;
        let done = last
            .iter()
            .filter(|(state, _)| *state == SegmentState::Flushed);
        Ok(done.map(|(_, rows)| rows).sum::<i64>() == 400)
    })
    .await;
    ensure!(flushed.is_ok(), "{flushed:?}: {last:?}");
    c.insert(&lab.from, "", 10, random).await?;
    c.delete(&lab.from, 20, random).await?;
    lab.equal_rows(390).await
}
