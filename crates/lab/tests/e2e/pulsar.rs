//! The broker of a Pulsar source is killed and comes back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::lab::{Lab, until};
use crate::plain::Plain;

tests![Test: broker_restarted];

/// Under rows, twice; nobody touches the task.
async fn broker_restarted(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut collections = Vec::new();
    for shards in 1..=3 {
        collections.push(Plain::create(&from, &format!("broker{shards}"), shards).await?);
    }
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    // What the source refuses while its broker is away may have been written or not: then the source is what counts.
    let write = async {
        let mut refused = 0;
        while !enough.load(Ordering::Relaxed) {
            for c in &mut collections {
                if let Err(e) = c.round(&from, &mut of_rows).await {
                    refused += 1;
                    say(&format!("the source refuses: {e:#}"));
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(refused)
    };
    let (source, progress) = (&mut lab.source, &lab.progress);
    let restart = async {
        for _ in 0..2 {
            some_rounds(&rounds, random.random_range(2..8)).await?;
            let broker = source.pulsar_mut().context("no broker")?;
            broker.kill9().await?;
            say("kill -9 of the broker");
            // It stays dead for a while, too.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
            broker.restart(progress).await?;
        }
        some_rounds(&rounds, 3).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (refused, ()) = tokio::try_join!(write, restart)?;
    let keys: usize = collections.iter().map(|c| c.keys.len()).sum();
    if refused == 0 {
        return lab.equal_rows(keys).await;
    }
    say(&format!("{refused} rounds were refused in part"));
    let report = lab.equal().await?;
    ensure!(report.rows() > 0, "nothing was written");
    Ok(())
}

async fn some_rounds(rounds: &AtomicU64, n: u64) -> Result<()> {
    let next = rounds.load(Ordering::Relaxed) + n;
    until("some rounds of rows", async || {
        Ok(rounds.load(Ordering::Relaxed) >= next)
    })
    .await
}
