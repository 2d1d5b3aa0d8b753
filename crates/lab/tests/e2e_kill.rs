#![cfg(feature = "e2e")]
//! milvus-cdc is killed ten times while rows are inserted, replaced and deleted: no row is lost, doubled or old.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use common::{Lab, Plain, seed, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const KILLS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_survive_ten_kills() -> Result<()> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut lab = Lab::start().await?;
    let task = lab.task().await?;
    let source = lab.from.clone();
    let mut collections = Vec::new();
    for shards in 1..=3 {
        collections.push(Plain::create(&source, &format!("rows{shards}"), shards).await?);
    }

    let rounds = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let write = async {
        while !enough.load(Ordering::Relaxed) {
            for c in &mut collections {
                c.round(&source, &mut of_rows).await?;
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let kill = async {
        for _ in 0..KILLS {
            // Some rounds on, at any moment within one.
            let next = rounds.load(Ordering::Relaxed) + random.random_range(1..10);
            until("the round of the next kill", async || {
                Ok(rounds.load(Ordering::Relaxed) >= next)
            })
            .await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
            lab.cdc.kill9().await?;
            println!("kill -9 in round {}", rounds.load(Ordering::Relaxed));
            // It stays dead for a while, too: there has to be something to catch up.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            lab.cdc.restart(&lab.progress).await?;
        }
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    tokio::try_join!(write, kill)?;

    lab.running(&task).await?;
    let report = lab.assert_equal().await?;
    // The comparison has read what has been written, by both accounts.
    let keys: usize = collections.iter().map(|c| c.keys.len()).sum();
    ensure!(
        report.rows() == keys as u64,
        "{keys} keys written, {} rows read",
        report.rows()
    );
    lab.finish().await
}
