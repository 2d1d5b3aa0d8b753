//! The source's broker breaks off while things happen, and comes back: nobody touches the task.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::kills::some_rounds;
use crate::lab::{DB, Lab};
use crate::plain::Plain;

tests![Test:
    broker_restarted,
];

/// What is written while the broker is away the source refuses or not, as it likes: then what it says it has is asked.
async fn broker_restarted(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut collections = Vec::new();
    for shards in 1..=3 {
        collections.push(Plain::create(&from, &format!("broker{shards}"), shards).await?);
    }
    let (rounds, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let enough = AtomicBool::new(false);
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let write = async {
        while !enough.load(Ordering::Relaxed) {
            for c in &mut collections {
                match c.round(&from, &mut of_rows).await {
                    Ok(()) => _ = rounds.fetch_add(1, Ordering::Relaxed),
                    Err(e) => {
                        say(&format!("refused by the source: {e:#}"));
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        anyhow::Ok(())
    };
    let restarts = async {
        for _ in 0..3 {
            some_rounds(&rounds, random).await?;
            let down = Duration::from_millis(random.random_range(0..8000));
            say(&format!(
                "kill -9 of the broker in round {}, for {down:?}",
                rounds.load(Ordering::Relaxed)
            ));
            lab.source.restart_broker(down, &lab.progress).await?;
        }
        some_rounds(&rounds, random).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    tokio::try_join!(write, restarts)?;
    say(&format!(
        "{} rounds, {} refused",
        rounds.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed)
    ));
    let report = lab.equal().await?;
    ensure!(report.rows() > 0, "nothing was compared");
    let status = lab.cdc.task(&lab.task).await?;
    for c in 1..=3 {
        let name = format!("broker{c}");
        let state = status.states_of(DB, &name);
        let last = state.last().context("the collection is not shown")?;
        ensure!(*last == "Streaming", "{name} is {last}");
    }
    Ok(())
}
