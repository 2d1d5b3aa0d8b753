//! The source's broker breaks off while things happen, and comes back: nobody touches the task.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::compare::{Kind as DiffKind, Options, compare};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::kills::some_rounds;
use crate::lab::{DB, Kind, Lab, until};
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
    let refused = refused.into_inner();
    match lab.kind {
        Kind::Pulsar => equal_but_for_the_sources_copies(lab, &collections, refused).await?,
        _ => {
            let report = lab.equal().await?;
            ensure!(report.rows() > 0, "nothing was compared");
        }
    }
    let status = lab.cdc.task(&lab.task).await?;
    for c in 1..=3 {
        let name = format!("broker{c}");
        let state = status.states_of(DB, &name);
        let last = state.last().context("the collection is not shown")?;
        ensure!(*last == "Streaming", "{name} is {last}");
    }
    Ok(())
}

/// Whoever reads a Pulsar whose broker was killed may be given again what it had not acknowledged. A 2.3.5 source takes
/// that into its own segments a second time: its `count(*)` is above the keys it holds. So it is a witness of keys and
/// values only, and for the count the writer's own account is one: as many copies on the target as there are keys.
async fn equal_but_for_the_sources_copies(
    lab: &Lab,
    written: &[Plain],
    refused: u64,
) -> Result<()> {
    let options = Options {
        patience: Duration::ZERO,
        rows: true,
    };
    let mut last = String::new();
    let equal = until("equal but for the source's own copies", async || {
        let report = compare(&lab.from, &lab.to, options).await?;
        let mut wrong: Vec<String> = report
            .differences
            .iter()
            .filter(|d| d.kind != DiffKind::Changed || !d.object.starts_with("rows "))
            .map(ToString::to_string)
            .collect();
        for c in written {
            let object = format!("rows {DB}.{}", c.name());
            let line = report.lines.iter().find(|l| l.object == object);
            let line = line.with_context(|| format!("{object} was not compared"))?;
            let account = c.keys.len() as u64;
            // A refused write may have been carried out.
            if line.target > line.source || (refused == 0 && line.target != account) {
                wrong.push(format!(
                    "{object}: {account} written, {} on the source, {} on the target",
                    line.source, line.target
                ));
            }
        }
        last = format!("{report}\n{}", wrong.join("\n"));
        Ok(wrong.is_empty())
    });
    equal.await.with_context(|| last.clone())?;
    say(&last);
    Ok(())
}
