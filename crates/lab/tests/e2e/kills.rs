//! milvus-cdc is killed while things happen: nothing is lost, doubled or old.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use cdc_lab::servers::Mq;
use cdc_lab::workload::{Plan, Workload};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::lab::{DB, Lab, until};
use crate::plain::Plain;

tests![Test:
    ten_kills_under_rows,
    kill_restart_stop_start_kill,
    one_partition_name_twenty_times_with_a_kill,
];
tests![Test as WORKLOAD: the_whole_workload_through_three_kills];

/// Writes rounds to some collections until `enough`.
pub(crate) async fn write(
    from: &cdc_lab::client::Client,
    collections: &mut [Plain],
    random: &mut StdRng,
    rounds: &AtomicU64,
    enough: &AtomicBool,
) -> Result<()> {
    while !enough.load(Ordering::Relaxed) {
        for c in &mut *collections {
            c.round(from, random).await?;
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Waits for some rounds more, and then for any moment within one.
pub(crate) async fn some_rounds(rounds: &AtomicU64, random: &mut StdRng) -> Result<()> {
    let next = rounds.load(Ordering::Relaxed) + random.random_range(1..10);
    until("some rounds of rows", async || {
        Ok(rounds.load(Ordering::Relaxed) >= next)
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
    Ok(())
}

async fn ten_kills_under_rows(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut collections = Vec::new();
    for shards in 1..=3 {
        collections.push(Plain::create(&from, &format!("rows{shards}"), shards).await?);
    }
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let kill = async {
        for _ in 0..10 {
            some_rounds(&rounds, random).await?;
            lab.cdc.kill9().await?;
            say(&format!(
                "kill -9 in round {}",
                rounds.load(Ordering::Relaxed)
            ));
            // It stays dead for a while, too: there has to be something to catch up.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            lab.cdc.restart(&lab.progress).await?;
        }
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let write = write(&from, &mut collections, &mut of_rows, &rounds, &enough);
    tokio::try_join!(write, kill)?;
    let keys = collections.iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await
}

async fn kill_restart_stop_start_kill(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut collections = Vec::new();
    for shards in 1..=3 {
        collections.push(Plain::create(&from, &format!("steps{shards}"), shards).await?);
    }
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let steps = async {
        some_rounds(&rounds, random).await?;
        lab.kill().await?;
        some_rounds(&rounds, random).await?;
        lab.stop_cdc().await?;
        lab.cdc.restart(&lab.progress).await?;
        some_rounds(&rounds, random).await?;
        lab.kill().await?;
        // Before it has caught up with the last one.
        lab.kill().await?;
        some_rounds(&rounds, random).await?;
        lab.stop_cdc().await?;
        some_rounds(&rounds, random).await?;
        lab.cdc.restart(&lab.progress).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let write = write(&from, &mut collections, &mut of_rows, &rounds, &enough);
    tokio::try_join!(write, steps)?;
    let keys = collections.iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await
}

async fn one_partition_name_twenty_times_with_a_kill(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    const DROPS: u64 = 20;
    let from = lab.from.clone();
    // Not loaded: a loaded partition cannot be dropped.
    let mut c = Plain::bare(&from, DB, "parted", 2).await?;
    c.index(&from).await?;
    let drops = AtomicU64::new(0);
    let at = random.random_range(3..DROPS - 3);
    say(&format!("kill -9 after {at} drops of the partition"));
    let pause = Duration::from_millis(random.random_range(0..200));
    let change = async {
        for n in 0..=DROPS {
            from.create_partition(DB, "parted", "again").await?;
            for _ in 0..random.random_range(1..4) {
                c.insert(&from, "again", 20, random).await?;
                c.insert(&from, "", 5, random).await?;
            }
            // The last one stays.
            if n < DROPS {
                from.drop_partition(DB, "parted", "again").await?;
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
        lab.kill().await
    };
    tokio::try_join!(change, kill)?;
    lab.equal().await.map(drop)
}

async fn the_whole_workload_through_three_kills(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    const OPERATIONS: u64 = 220;
    let plan = Plan {
        rows: if lab.kind.mq() == Mq::Rocksmq {
            4_000
        } else {
            20_000
        },
        operations: OPERATIONS,
        seed: random.random(),
        ..Plan::default()
    };
    // Counts of operations after which it is killed, all well before the last one.
    let mut moments: Vec<u64> = (0..3)
        .map(|_| random.random_range(15..OPERATIONS - 30))
        .collect();
    moments.sort_unstable();
    say(&format!("kill -9 after these operations: {moments:?}"));
    let operations = AtomicU64::new(0);
    let source = lab.from.clone();
    let mut workload = Workload::new(&source, plan, |what, now| {
        say(&format!("{:>4} {what}", now.operations));
        operations.store(now.operations, Ordering::Relaxed);
    });
    let work = async {
        let done = workload.run().await?;
        ensure!(done.operations >= OPERATIONS && done.rows_inserted >= plan.rows);
        ensure!(done.rows_upserted > 0 && done.rows_deleted > 0);
        anyhow::Ok(())
    };
    let kill = async {
        for moment in moments {
            until("the next kill's operation", async || {
                Ok(operations.load(Ordering::Relaxed) >= moment)
            })
            .await?;
            // Anywhere within the operations that follow.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            lab.cdc.kill9().await?;
            say("kill -9");
            lab.cdc.restart(&lab.progress).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(work, kill)?;
    drop(workload);
    let report = lab.equal().await?;
    for object in ["database", "collection", "partition", "index", "load state"] {
        ensure!(
            report
                .lines
                .iter()
                .any(|l| l.object == object && l.source > 0),
            "no {object} has been compared"
        );
    }
    Ok(())
}
