//! Many collections at once, and names that come again.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use cdc_lab::latency::visibility;
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::lab::{DB, Lab};
use crate::plain::Plain;

tests![Test:
    thirty_collections_at_once,
    created_and_dropped_again_at_once,
    another_shard_count_while_rows_flow,
    latency_is_told,
];

async fn thirty_collections_at_once(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let create = (0..30).map(|n| {
        let from = from.clone();
        async move { Plain::bare(&from, DB, &format!("many{n}"), 1 + n % 3).await }
    });
    let mut all = try_join_all(create).await?;
    for c in &mut all {
        c.insert(&from, "", 10, random).await?;
    }
    lab.equal_objects().await?;
    let drop = (0..24).map(|n| {
        let from = from.clone();
        async move { from.drop_collection(DB, &format!("many{n}")).await }
    });
    try_join_all(drop).await?;
    for c in &mut all[24..] {
        c.round(&from, random).await?;
    }
    let rows = all[24..].iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(rows).await
}

async fn created_and_dropped_again_at_once(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut bystander = Plain::create(&from, "bystander", 2).await?;
    for n in 0..10 {
        let c = Plain::bare(&from, DB, "brief", 1 + n % 4).await?;
        from.drop_collection(DB, c.name()).await?;
        bystander.round(&from, random).await?;
    }
    lab.equal_rows(bystander.keys.len()).await?;
    // With rows, and under another name each time.
    for n in 0..10 {
        let mut c = Plain::bare(&from, DB, &format!("brief{n}"), 2).await?;
        c.insert(&from, "", 10, random).await?;
        from.drop_collection(DB, c.name()).await?;
    }
    bystander.round(&from, random).await?;
    lab.equal_rows(bystander.keys.len()).await
}

async fn another_shard_count_while_rows_flow(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut bystander = Plain::create(&lab.from, "bystander", 2).await?;
    let enough = AtomicBool::new(false);
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let change = async {
        for shards in [1, 3, 2, 4] {
            let mut c = Plain::create(&lab.from, "reborn", shards).await?;
            for _ in 0..random.random_range(3..10) {
                c.round(&lab.from, random).await?;
            }
            if shards != 4 {
                lab.from.drop_collection(DB, "reborn").await?;
            }
        }
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let write = async {
        while !enough.load(Ordering::Relaxed) {
            bystander.round(&lab.from, &mut of_rows).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(change, write)?;
    lab.equal().await?;
    let shards = lab.to.describe(DB, "reborn").await?.shards_num;
    ensure!(shards == 4, "the last one has 4 shards, not {shards}");
    Ok(())
}

/// Only told: the machine is busy with other things.
async fn latency_is_told(lab: &mut Lab, _: &mut StdRng) -> Result<()> {
    let latency = visibility(&lab.from, &lab.to, 100).await?;
    for (server, latency) in [
        ("target", &latency.target),
        ("source itself", &latency.source),
    ] {
        say(&format!(
            "visible on the {server} after the source's ack: p50 {} ms, p99 {} ms",
            latency.percentile(50).as_millis(),
            latency.percentile(99).as_millis()
        ));
    }
    Ok(())
}
