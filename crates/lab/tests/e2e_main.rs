#![cfg(feature = "e2e")]
//! Every operation of the workload is replicated by one cluster-level task, although milvus-cdc is killed on the way.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use cdc_lab::workload::{Plan, Workload};
use common::{Lab, seed, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const OPERATIONS: u64 = 220;
const KILLS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_workload_is_replicated_through_three_kills() -> Result<()> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut lab = Lab::start().await?;
    let task = lab.task().await?;

    // Counts of operations after which it is killed, all well before the last one.
    let mut moments: Vec<u64> = (0..KILLS)
        .map(|_| random.random_range(15..OPERATIONS - 30))
        .collect();
    moments.sort_unstable();
    println!("kill -9 after these operations: {moments:?}");

    let operations = AtomicU64::new(0);
    let plan = Plan {
        rows: 4_000,
        operations: OPERATIONS,
        seed,
        ..Plan::default()
    };
    let source = lab.from.clone();
    let mut workload = Workload::new(&source, plan, |what, now| {
        println!("{:>4} {what}", now.operations);
        operations.store(now.operations, Ordering::Relaxed);
    });
    let work = async {
        let done = workload.run().await?;
        ensure!(done.operations >= OPERATIONS && done.rows_inserted >= 4_000);
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
            println!("kill -9");
            lab.cdc.restart(&lab.progress).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(work, kill)?;
    drop(workload);

    lab.running(&task).await?;
    let report = lab.assert_equal().await?;
    for object in ["database", "collection", "partition", "index", "load state"] {
        ensure!(
            report
                .lines
                .iter()
                .any(|l| l.object == object && l.source > 0),
            "no {object} has been compared"
        );
    }
    lab.finish().await
}
