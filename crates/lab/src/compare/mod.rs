//! Compares two servers by reading both, object by object, row by row, every field and vector, and by `count(*)`.
//!
//! Nothing here knows what was written or what milvus-cdc says of itself. The source is read with Strong consistency,
//! the target with Eventually, again and again until both are equal or the deadline is over: the copy is asynchronous.
//!
//! A collection that is not wholly loaded cannot be read. It is loaded, and given an index if it has none, and flushed,
//! *on the source only*, after indexes and load states have been compared; milvus-cdc has to carry that over. So the rows are
//! read last and the source is changed by a comparison. The target is never touched: a client's DDL disturbs a standby.

mod objects;
mod report;
mod rows;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::stream::{self, StreamExt};
use milvus::proto::common::LoadState;

use crate::client::Client;
use objects::{Collection, Objects};
pub use report::{Difference, Kind, Line, Report};

/// Collections read at the same time.
const AT_ONCE: usize = 4;
/// How long rows may take to become equal when objects have not.
const HOPELESS: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(300);

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Until when the target may take to become equal, in each of the three stages: objects, load, rows.
    pub patience: Duration,
    /// Whether rows are compared, for which collections may be loaded and indexed on the source.
    pub rows: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(120),
            rows: true,
        }
    }
}

/// Compares `target` with `source`. Clients that write to the source have to have stopped.
///
/// # Errors
/// A server cannot be read. What differs is no error but in the report.
pub async fn compare(source: &Client, target: &Client, options: Options) -> Result<Report> {
    let mut report = Report::default();
    let (wanted, found) =
        objects_until_equal(source, target, options.patience, &mut report).await?;
    if !options.rows {
        return Ok(report);
    }
    // It is lost already: the rows are read to name them, not to wait for them.
    let patience = if report.is_equal() {
        options.patience
    } else {
        options.patience.min(HOPELESS)
    };
    let changed = prepare(source, &wanted).await?;
    let readable: Vec<&Collection> = wanted
        .collections
        .values()
        .filter(|c| found.collections.contains_key(&c.key()))
        .collect();
    if changed {
        wait_loaded(target, &readable, patience).await;
    }
    let end = Instant::now() + patience;
    let lines: Vec<Result<(Line, Vec<Difference>)>> = stream::iter(readable)
        .map(|c| rows::compare_collection(source, target, c, end))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for line in lines {
        let (line, differences) = line?;
        report.lines.push(line);
        report.differences.extend(differences);
    }
    report.lines.sort_by(|a, b| a.object.cmp(&b.object));
    report.differences.sort();
    Ok(report)
}

async fn objects_until_equal(
    source: &Client,
    target: &Client,
    patience: Duration,
    report: &mut Report,
) -> Result<(Objects, Objects)> {
    let end = Instant::now() + patience;
    loop {
        // The source again, too: what it is still loading it shows as loaded a moment later. And an object may vanish
        // between two calls of one reading.
        match tokio::try_join!(Objects::read(source), Objects::read(target)) {
            Ok((wanted, found)) => {
                let (lines, differences) = differences(&wanted.described, &found.described);
                if differences.is_empty() || Instant::now() >= end {
                    report.lines.extend(lines);
                    report.differences.extend(differences);
                    return Ok((wanted, found));
                }
            }
            Err(e) if Instant::now() >= end => return Err(e),
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

type Described = BTreeMap<(&'static str, String), String>;

/// One line per kind of object; what is missing, extra or changed by name.
fn differences(wanted: &Described, found: &Described) -> (Vec<Line>, Vec<Difference>) {
    let mut all = Vec::new();
    let mut counts: BTreeMap<&'static str, (u64, u64, u64)> = BTreeMap::new();
    for ((kind, name), text) in wanted {
        let count = counts.entry(kind).or_default();
        count.0 += 1;
        let object = format!("{kind} {name}");
        match found.get(&(*kind, name.clone())) {
            None => all.push(Difference {
                object,
                kind: Kind::Missing,
                detail: String::new(),
            }),
            Some(other) if other == text => {
                count.2 += 1;
                continue;
            }
            Some(other) => {
                all.push(Difference {
                    object,
                    kind: Kind::Changed,
                    detail: format!("source {text}, target {other}"),
                });
            }
        }
    }
    for ((kind, name), text) in found {
        counts.entry(kind).or_default().1 += 1;
        if !wanted.contains_key(&(*kind, name.clone())) {
            all.push(Difference {
                object: format!("{kind} {name}"),
                kind: Kind::Extra,
                detail: text.clone(),
            });
        }
    }
    let lines = counts
        .into_iter()
        .map(|(kind, (source, target, equal))| Line {
            object: kind.to_owned(),
            source,
            target,
            equal: source == equal && target == equal,
        })
        .collect();
    (lines, all)
}

/// Loads on the source what is not loaded wholly; whether there was anything.
async fn prepare(source: &Client, wanted: &Objects) -> Result<bool> {
    let mut changed = false;
    for c in wanted.collections.values().filter(|c| !c.loaded) {
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
        source.load(&c.db, &c.name).await?;
    }
    for c in wanted.collections.values().filter(|c| !c.loaded) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn described(all: &[(&'static str, &str, &str)]) -> Described {
        all.iter()
            .map(|(k, n, d)| ((*k, (*n).to_owned()), (*d).to_owned()))
            .collect()
    }

    #[test]
    fn objects_are_named_as_missing_extra_and_changed() {
        let source = described(&[
            ("database", "a", ""),
            ("index", "a.b vec", "FLAT"),
            ("index", "a.c vec", "FLAT"),
        ]);
        let target = described(&[
            ("database", "a", ""),
            ("index", "a.b vec", "HNSW"),
            ("index", "a.d vec", "FLAT"),
        ]);
        let (lines, differences) = differences(&source, &target);
        let found: Vec<_> = differences
            .iter()
            .map(|d| (d.kind, d.object.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (Kind::Changed, "index a.b vec"),
                (Kind::Missing, "index a.c vec"),
                (Kind::Extra, "index a.d vec")
            ]
        );
        assert_eq!(
            lines.iter().map(|l| l.equal).collect::<Vec<_>>(),
            [true, false]
        );
    }
}
