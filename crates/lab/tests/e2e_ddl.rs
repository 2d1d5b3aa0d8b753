#![cfg(feature = "e2e")]
//! Names that come again while rows flow, and a task that is deleted and created again.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use cdc_lab::client::Client;
use common::{DB, Lab, PATIENCE, Plain, seed, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

const PARTITION: &str = "again";
const DROPS: usize = 20;

/// One test, for the servers are started once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_tasks_come_again() -> Result<()> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut lab = Lab::start().await?;
    let task = lab.task().await?;
    a_collection_with_other_shards(&lab, &mut random).await?;
    a_partition_twenty_times(&mut lab, &mut random).await?;
    lab.running(&task).await?;
    lab.cdc.delete(&task).await?;
    for answer in ["adopt", "recreate"] {
        a_task(&lab, answer, &mut random).await?;
    }
    lab.finish().await
}

/// Writes to `collection` until `enough`; the rounds written are counted.
async fn write(
    client: &Client,
    collection: &mut Plain,
    random: &mut StdRng,
    rounds: &AtomicU64,
    enough: &AtomicBool,
) -> Result<()> {
    while !enough.load(Ordering::Relaxed) {
        collection.round(client, random).await?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn a_collection_with_other_shards(lab: &Lab, random: &mut StdRng) -> Result<()> {
    let mut bystander = Plain::create(&lab.from, "bystander", 2).await?;
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
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
    tokio::try_join!(
        change,
        write(&lab.from, &mut bystander, &mut of_rows, &rounds, &enough)
    )?;
    let described = lab.to.describe(DB, "reborn").await;
    println!(
        "target while it follows: {:?}",
        described.map(|d| d.shards_num)
    );
    lab.assert_equal().await?;
    ensure!(
        lab.to.describe(DB, "reborn").await?.shards_num == 4,
        "the last one has 4 shards"
    );
    Ok(())
}

async fn a_partition_twenty_times(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    // Not loaded: a loaded partition cannot be dropped.
    let mut c = Plain::create(&from, "parted", 2).await?;
    from.release(DB, "parted").await?;
    let drops = AtomicU64::new(0);
    let at = random.random_range(3..DROPS as u64 - 3);
    println!("kill -9 after {at} drops of the partition");
    let pause = Duration::from_millis(random.random_range(0..200));
    let change = async {
        for n in 0..=DROPS {
            from.create_partition(DB, "parted", PARTITION).await?;
            for _ in 0..random.random_range(1..4) {
                c.insert(&from, PARTITION, 20, random).await?;
                c.insert(&from, "", 5, random).await?;
            }
            // The last one stays.
            if n < DROPS {
                from.drop_partition(DB, "parted", PARTITION).await?;
                drops.fetch_add(1, Ordering::Relaxed);
            }
        }
        anyhow::Ok(())
    };
    let kill = async {
        until("the drop of the kill", async || {
            Ok(drops.load(Ordering::Relaxed) >= at)
        })
        .await?;
        tokio::time::sleep(pause).await;
        lab.cdc.kill9().await?;
        lab.cdc.restart(&lab.progress).await
    };
    tokio::try_join!(change, kill)?;
    lab.assert_equal().await.map(drop)
}

/// Creates a task with `on_conflict` over what an earlier task has left on the target, and deletes it at the end.
async fn a_task(lab: &Lab, answer: &str, random: &mut StdRng) -> Result<()> {
    println!("a new task, on_conflict {answer}");
    let mut more = Plain::create(&lab.from, &format!("before_{answer}"), 1).await?;
    more.round(&lab.from, random).await?;
    let task = lab
        .cdc
        .create(json!({
            "milvus_connect_param": { "uri": lab.target.uri() },
            "collection_infos": [{ "name": "*" }],
            "on_conflict": answer,
        }))
        .await?;
    lab.cdc
        .wait(&task, "every collection streams", PATIENCE, |s| {
            ["bystander", "reborn", "parted", more.name()]
                .iter()
                .all(|name| s.states_of(DB, name).last() == Some(&"Streaming"))
        })
        .await?;
    more.round(&lab.from, random).await?;
    lab.assert_equal().await?;
    lab.cdc.delete(&task).await
}
