//! Compares two servers when the workload has come to its end: `cdc_verify` until both are equal, or the deadline is
//! over, for the copy is asynchronous.
//!
//! A collection that is not wholly loaded cannot be read. It is loaded, and given an index if it has none, and flushed,
//! *on the source only*, after indexes and load states have been compared; milvus-cdc has to carry that over. So the rows are
//! read last and the source is changed by a comparison. The target is never touched: a client's DDL disturbs a standby.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
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
/// A 2.3.5 that loads a collection may leave out the deletes that were not flushed yet, until it is loaded again (a
/// standby was seen to show 13 deleted rows, whose log had their deletes and which was equal after a restart). So what
/// was loaded for the comparison, and whose rows differ, is loaded once more, and a remark says so.
///
/// # Errors
/// A server cannot be read. What differs is no error but in the report.
pub async fn compare(source: &Client, target: &Client, options: Options) -> Result<Report> {
    let (mut report, loaded) = look(source, target, options).await?;
    let Some(again) = differing(&report, &loaded) else {
        return Ok(report);
    };
    for (db, name) in &again {
        if let Err(e) = load_again(source, target, (db, name), options.patience).await {
            let remark = format!("{db}.{name} cannot be loaded once more: {e:#}");
            report.remarks.push(remark);
            return Ok(report);
        }
    }
    let (mut report, _) = look(source, target, options).await?;
    for (db, name) in again {
        report.remarks.push(format!(
            "{db}.{name} was loaded for the comparison, differed in its rows, and was loaded once more"
        ));
    }
    Ok(report)
}

/// Database and name of a collection.
type Place = (String, String);

/// Those of `loaded` whose rows differ, if there are any and nothing else differs.
fn differing(report: &Report, loaded: &BTreeSet<Place>) -> Option<BTreeSet<Place>> {
    let mut places = BTreeSet::new();
    for difference in &report.differences {
        let (kind, place) = difference.object.split_once(' ')?;
        let (db, name) = place.split(['/', ' ']).next()?.split_once('.')?;
        let place = (db.to_owned(), name.to_owned());
        if !kind.starts_with("row") || !loaded.contains(&place) {
            return None;
        }
        places.insert(place);
    }
    (!places.is_empty()).then_some(places)
}

/// Released and loaded on the source, and by milvus-cdc on the target, each seen there.
async fn load_again(
    source: &Client,
    target: &Client,
    (db, name): (&str, &str),
    patience: Duration,
) -> Result<()> {
    source.release(db, name).await?;
    let end = Instant::now() + patience;
    while target.load_state(db, name, &[]).await? == LoadState::Loaded {
        ensure!(
            Instant::now() < end,
            "the release of {db}.{name} did not come to the target"
        );
        tokio::time::sleep(PAUSE).await;
    }
    source.load(db, name).await?;
    source.wait_loaded(db, name, &[], patience).await?;
    target.wait_loaded(db, name, &[], patience).await
}

/// One comparison, and what was loaded for it.
async fn look(
    source: &Client,
    target: &Client,
    options: Options,
) -> Result<(Report, BTreeSet<Place>)> {
    let mut report = Report::default();
    let all = within(options.patience, options.likeness);
    let (mut wanted, mut found) = compare_objects(source, target, &all, &mut report).await?;
    if !options.rows {
        return Ok((report, BTreeSet::new()));
    }
    // It is lost already: the rows are read to name them, not to wait for them.
    let patience = if report.is_equal() {
        options.patience
    } else {
        options.patience.min(HOPELESS)
    };
    let loaded = prepare(source, &wanted).await?;
    if !loaded.is_empty() {
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
    Ok((report, loaded))
}

/// Loads on the source what is not loaded wholly, and says what that was.
async fn prepare(source: &Client, wanted: &Objects) -> Result<BTreeSet<Place>> {
    let mut loaded = BTreeSet::new();
    for c in wanted.collections.values().filter(|c| !c.is_loaded()) {
        loaded.insert((c.db.clone(), c.name.clone()));
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
    Ok(loaded)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_loaded_for_it_and_differs_in_rows_alone_is_loaded_again() {
        let place = |name: &str| ("db".to_owned(), name.to_owned());
        let loaded = BTreeSet::from([place("a"), place("b")]);
        let again = |objects: &[&str]| {
            let differences = objects.iter().map(|o| Difference {
                object: (*o).to_owned(),
                kind: Kind::Extra,
                detail: String::new(),
            });
            let report = Report {
                differences: differences.collect(),
                ..Report::default()
            };
            differing(&report, &loaded)
        };
        assert_eq!(again(&[]), None);
        let rows = ["row db.a/_default 7", "rows db.a", "row db.a/p0 8"];
        assert_eq!(again(&rows), Some(BTreeSet::from([place("a")])));
        assert_eq!(again(&["row db.a/_default 7", "row db.c/_default 7"]), None);
        assert_eq!(again(&["row db.a/_default 7", "index db.a vec"]), None);
    }
}
