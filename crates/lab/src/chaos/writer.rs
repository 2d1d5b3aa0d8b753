//! The workload of a run: it goes on where the source refuses something.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Client;
use crate::workload::{Done, Plan, Workload};

/// Collections of one workload at its beginning: one of each shape.
const COLLECTIONS: usize = 6;
/// Rows of one insert.
const BATCH: u64 = 60;
/// Of the small workload beside it: single rows, so many a second.
const BEATS: u64 = 10;
/// What a source may take to come back.
const COME_BACK: Duration = Duration::from_secs(180);
/// A source that refuses more often does not work.
const REFUSALS: u32 = 40;

/// What has been done, and how often the source refused a call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Written {
    pub(super) done: Done,
    pub(super) refused: u32,
}

/// Writes until `enough`, about `rate` rows a second. Where the source refuses a call nobody knows what has become of
/// it: the account of that workload ends, and another one with names of its own begins.
///
/// # Errors
/// The source does not come back, or refuses too often.
pub(super) async fn write(
    source: &Client,
    seed: u64,
    rate: u64,
    enough: &AtomicBool,
    say: impl Fn(&str) + Send + Sync,
) -> Result<Written> {
    let plan = Plan {
        seed,
        collections: COLLECTIONS,
        ddl: true,
        batch: BATCH,
        rate,
        ..Plan::default()
    };
    go_on(source, plan, "g", enough, say).await
}

/// As [`write`], and beside it: single rows into one collection, all the time. While the other one waits for a load, or
/// writes many rows at once, a server that was started has nothing to carry, and its time to the first row would be that
/// of the workload.
pub(super) async fn beat(source: &Client, seed: u64, enough: &AtomicBool) -> Result<Written> {
    let plan = Plan {
        seed: !seed,
        collections: 1,
        ddl: false,
        batch: 1,
        rate: BEATS,
        ..Plan::default()
    };
    go_on(source, plan, "beat", enough, |_| {}).await
}

async fn go_on(
    source: &Client,
    plan: Plan,
    name: &str,
    enough: &AtomicBool,
    say: impl Fn(&str) + Send + Sync,
) -> Result<Written> {
    let mut written = Written::default();
    for n in 0..=REFUSALS {
        // Once for each refusal of the source: a few bytes.
        let prefix: &'static str = format!("{name}{n}_").leak();
        let plan = Plan {
            rows: u64::MAX,
            operations: u64::MAX,
            seed: plan.seed.wrapping_add(u64::from(n)),
            prefix,
            ..plan
        };
        let mut workload = Workload::new(source, plan, |what: &str, _| say(what));
        let outcome = async {
            workload.begin().await?;
            workload.go_on(|_| enough.load(Ordering::Relaxed)).await
        }
        .await;
        let done = workload.done();
        let all = &mut written.done;
        all.operations += done.operations;
        all.rows_inserted += done.rows_inserted;
        all.rows_upserted += done.rows_upserted;
        all.rows_deleted += done.rows_deleted;
        let Err(refusal) = outcome else {
            return Ok(written);
        };
        written.refused += 1;
        say(&format!("the source refuses: {refusal:#}"));
        come_back(source).await?;
        if enough.load(Ordering::Relaxed) {
            return Ok(written);
        }
        // Room for the next ones; of several two stay, with what nobody writes to any more.
        let stay = plan.collections.saturating_sub(1).min(2);
        for (db, name) in workload.names().into_iter().skip(stay) {
            if let Err(e) = source.drop_collection(&db, &name).await {
                say(&format!("drop collection {db}.{name}: {e:#}"));
            }
        }
    }
    bail!("the source has refused {REFUSALS} calls")
}

async fn come_back(source: &Client) -> Result<()> {
    let end = Instant::now() + COME_BACK;
    while let Err(e) = source.databases().await {
        if Instant::now() >= end {
            return Err(e).with_context(|| format!("the source is not back after {COME_BACK:?}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
