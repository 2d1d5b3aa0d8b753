//! The source's broker breaks off while things happen, and comes back: nobody touches the task.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::client::{Client, Query, Value};
use cdc_lab::compare::{Kind as DiffKind, Options, compare};
use milvus::proto::common::ConsistencyLevel;
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
    match lab.kind {
        Kind::Pulsar => equal_to_the_writers_account(lab, &collections).await?,
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

/// A 2.3.5 source whose Pulsar broker was killed is no witness of its own rows: some it takes into its segments a second
/// time, others it does not show at all, while its log has each once. So what it shows is compared as far as it goes,
/// and for keys and count the writer's own account stands beside it: for all keys but those of writes that were refused.
async fn equal_to_the_writers_account(lab: &Lab, written: &[Plain]) -> Result<()> {
    for c in written {
        let (known, doubted) = (c.keys.len(), c.doubted.len());
        ensure!(
            known > doubted,
            "{}: of {known} keys {doubted} are in doubt",
            c.name()
        );
    }
    let options = Options {
        patience: Duration::ZERO,
        rows: true,
        ..Options::default()
    };
    let mut last = String::new();
    let equal = until("equal to the writer's account", async || {
        let report = compare(&lab.from, &lab.to, options).await?;
        let mut wrong: Vec<String> = report
            .differences
            .iter()
            .filter(|d| !(d.kind == DiffKind::Changed && d.object.starts_with("rows ")))
            .filter(|d| !(d.kind == DiffKind::Extra && d.object.starts_with("row ")))
            .map(ToString::to_string)
            .collect();
        for c in written {
            let known = |key: &i64| !c.doubted.contains(key);
            let account: BTreeSet<i64> = c.keys.iter().copied().filter(known).collect();
            let all = keys(&lab.to, c.name()).await?;
            let count = lab.to.count(DB, c.name(), &[], STRONG).await?;
            let there: BTreeSet<i64> = all.iter().copied().filter(known).collect();
            // One in doubt may have been written more than once by the source.
            let copies = count.saturating_sub(all.len() as u64);
            if there != account || count < all.len() as u64 || copies > c.doubted.len() as u64 {
                wrong.push(format!(
                    "{}: {} keys written, {} of them and {count} copies of {} keys on the target; missing {:?}, extra {:?}",
                    c.name(),
                    account.len(),
                    there.len(),
                    all.len(),
                    account.difference(&there).collect::<Vec<_>>(),
                    there.difference(&account).collect::<Vec<_>>(),
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

const STRONG: ConsistencyLevel = ConsistencyLevel::Strong;

async fn keys(of: &Client, collection: &str) -> Result<BTreeSet<i64>> {
    let rows = of
        .query(&Query {
            db: DB,
            collection,
            partitions: &[],
            expr: "pk >= 0",
            output: &["pk".to_owned()],
            consistency: STRONG,
        })
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| match row.get("pk") {
            Some(Value::Int(key)) => Some(*key),
            _ => None,
        })
        .collect())
}
