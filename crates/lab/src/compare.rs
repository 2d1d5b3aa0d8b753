//! Compares two servers when the workload has come to its end: `cdc_verify` until both are equal, or the deadline is
//! over, for the copy is asynchronous.
//!
//! A collection that is not wholly loaded cannot be read. It is loaded, and given an index if it has none, and flushed,
//! *on the source only*, after indexes and load states have been compared; milvus-cdc has to carry that over. So the rows are
//! read last and the source is changed by a comparison. The target is never touched: a client's DDL disturbs a standby.

use std::time::{Duration, Instant};

use anyhow::Result;
pub use cdc_verify::objects::Likeness;
use cdc_verify::objects::{Collection, Objects};
use cdc_verify::{Again, compare_objects, compare_rows};
use milvus::proto::common::LoadState;

use crate::client::Client;
pub use cdc_verify::report::{Difference, Kind, Line, Report};

/// How long rows may take to become equal when objects have not.
const HOPELESS: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(300);
/// Differences kept and named of one partition: all that a test can have.
const ALL: usize = 200_000;

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Until when the target may take to become equal, in each of the three stages: objects, load, rows.
    pub patience: Duration,
    /// Whether rows are compared, for which collections may be loaded and indexed on the source.
    pub rows: bool,
    pub likeness: Likeness,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(120),
            rows: true,
            likeness: Likeness::default(),
        }
    }
}

fn within(patience: Duration, likeness: Likeness) -> cdc_verify::Options {
    cdc_verify::Options {
        settle: PAUSE,
        again: Again::For(patience),
        kept: ALL,
        named: ALL,
        likeness,
        ..cdc_verify::Options::default()
    }
}

/// Compares `target` with `source`. Clients that write to the source have to have stopped.
///
/// # Errors
/// A server cannot be read. What differs is no error but in the report.
pub async fn compare(source: &Client, target: &Client, options: Options) -> Result<Report> {
    let mut report = Report::default();
    let all = within(options.patience, options.likeness);
    let (wanted, found) = compare_objects(source, target, &all, &mut report).await?;
    if !options.rows {
        return Ok(report);
    }
    // It is lost already: the rows are read to name them, not to wait for them.
    let patience = if report.is_equal() {
        options.patience
    } else {
        options.patience.min(HOPELESS)
    };
    let (mut wanted, mut found) = (wanted, found);
    if prepare(source, &wanted).await? {
        let on_both: Vec<&Collection> = wanted
            .collections
            .values()
            .filter(|c| found.collections.contains_key(&c.key()))
            .collect();
        wait_loaded(target, &on_both, patience).await;
        let selection = &all.selection;
        wanted = Objects::read(source, selection, all.likeness).await?;
        found = Objects::read(target, selection, all.likeness).await?;
    }
    let rows = within(patience, options.likeness);
    compare_rows(source, target, (&wanted, &found), &rows, &mut report).await;
    Ok(report)
}

/// Loads on the source what is not loaded wholly; whether there was anything.
async fn prepare(source: &Client, wanted: &Objects) -> Result<bool> {
    let mut changed = false;
    for c in wanted.collections.values().filter(|c| !c.is_loaded()) {
        changed = true;
        if !c.indexed {
            let (kind, metric) = if c.binary {
                ("BIN_FLAT", "HAMMING")
            } else {
                ("FLAT", "L2")
            };
            let params = [
                ("index_type", kind),
                ("metric_type", metric),
                ("params", "{}"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
            source
                .create_index(&c.db, &c.name, &c.vector, "for_comparison", &params)
                .await?;
        }
        source.load_rest(&c.db, &c.name).await?;
    }
    for c in wanted.collections.values().filter(|c| !c.is_loaded()) {
        source
            .wait_loaded(&c.db, &c.name, &[], Duration::from_secs(120))
            .await?;
        // A 2.3.5 that loads a collection whose channel another one shares may leave out its unflushed rows; its data
        // node has them, and a flush brings them back.
        flush(source, c).await?;
    }
    Ok(changed)
}

/// Until it is taken: a server that was killed and is up again refuses it while its old session lasts.
async fn flush(source: &Client, c: &Collection) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    while let Err(e) = source.flush(&c.db, std::slice::from_ref(&c.name)).await {
        if Instant::now() >= end {
            return Err(e);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Waits, without complaint at the end: what is not loaded then cannot be read, and the rows' comparison says so.
async fn wait_loaded(target: &Client, collections: &[&Collection], patience: Duration) {
    let end = Instant::now() + patience;
    for c in collections {
        let partitions: Vec<String> = c.partitions.clone();
        loop {
            match target.load_state(&c.db, &c.name, &partitions).await {
                Ok(LoadState::Loaded) => break,
                _ if Instant::now() >= end => return,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}
