//! Compares two Milvus servers by reading both: every database, collection, schema, property, partition, index and load
//! state; every row by key and hash; `count(*)`. Nothing here knows what was written or what a replicator says of itself.
//!
//! - [`client`]: calls that look. [`objects`]: what is there beside rows. [`select`] and [`names`]: which of it.
//! - [`hash`]: a row as 128 bits. [`cdc_keys`]: the keys in parts that fit into memory. [`suspects`]: what differed, until a
//!   later look clears it. These three are pure.
//! - [`report`]: what it came to. [`copies`]: rows read to be copied, by whoever makes right what is wrong.
//!
//! It works while rows flow: what differs is looked at again after a settle time, on both sides, and what is equal then
//! was only on its way. It needs memory for a few ranges of keys, not for a collection.

pub mod client;
pub mod copies;
pub mod hash;
mod load;
pub mod names;
pub mod objects;
pub mod report;
mod rows;
pub mod select;
pub mod suspects;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::client::Client;
use crate::names::{Carried, read_both};
use crate::objects::{Collection, Likeness, Objects, differences};
use crate::report::{Counts, Difference, Line, Report, Verdict, Wrong};
use crate::rows::{Outcome, Place};
use crate::select::Selection;
use crate::table::Partition;

/// Partitions compared at the same time.
const AT_ONCE: usize = 4;
/// Bytes of the rows of one range and one side, roughly.
const RANGE_BYTES: usize = 4 << 20;
/// Rows of one range at most, however small they are.
const RANGE_ROWS: u64 = 5000;

/// When to stop to look again at what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// After so many looks more.
    Rounds(u32),
    /// After this time, in each stage: objects, and the rows of each partition.
    For(Duration),
}

impl Again {
    fn is_over(self, round: u32, begun: Instant) -> bool {
        match self {
            Again::Rounds(rounds) => round >= rounds,
            Again::For(time) => begun.elapsed() >= time,
        }
    }
}

/// How to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pause before another look.
    pub settle: Duration,
    pub again: Again,
    pub selection: Selection,
    /// What a task carries; `None`: everything, under its own name.
    pub carried: Option<Arc<dyn Carried>>,
    /// Keys of a partition that differ and are kept to be looked at again; what is more is counted.
    pub kept: usize,
    /// Rows of a partition that differ and are named; what is more is counted.
    pub named: usize,
    /// Rows of one range; by the width of the rows if `None`.
    pub range_rows: Option<u64>,
    pub likeness: Likeness,
    /// How long the target may take to load what was loaded on the source; `None`: nothing is loaded.
    pub load: Option<Duration>,
    /// Tell every key that is wrong, of which there are up to `kept` in a partition, in [`Report::wrong`]: each doubled row
    /// is looked for, too.
    pub keys: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(5),
            again: Again::Rounds(3),
            selection: Selection::default(),
            carried: None,
            kept: 10_000,
            named: 100,
            range_rows: None,
            likeness: Likeness::Standby,
            load: None,
            keys: false,
        }
    }
}

/// Compares `target` with `source`: objects first, then the rows of all collections that are on both.
///
/// # Errors
/// A server's objects cannot be read. What differs, and rows that cannot be read, are no error but in the report.
pub async fn verify(source: &Client, target: &Client, options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let mut both = compare_objects(source, target, options, &mut report).await?;
    if let Some(patience) = options.load {
        both = load::load(source, target, both, options, patience, &mut report).await?;
    }
    for (db, name) in options.selection.named() {
        let key = (db.to_owned(), name.to_owned());
        let carried = options.carried.as_ref();
        if carried.is_some_and(|carried| carried.collection(db, name).is_none()) {
            let line = format!("{db}.{name}: the task does not carry it");
            report.open.push(line);
        } else if !both.0.collections.contains_key(&key) && !both.1.collections.contains_key(&key) {
            let line = format!("{db}.{name}: it is on neither side");
            report.open.push(line);
        }
    }
    compare_rows(source, target, (&both.0, &both.1), options, &mut report).await;
    Ok(report)
}

/// Compares everything but rows, into `report`; what is there on source and target.
///
/// # Errors
/// A server cannot be read.
pub async fn compare_objects(
    source: &Client,
    target: &Client,
    options: &Options,
    report: &mut Report,
) -> Result<(Objects, Objects)> {
    let begun = Instant::now();
    let mut round = 0;
    // What a look finds wrong may be on its way, unless the look before has found the same.
    let mut before: Option<BTreeSet<Difference>> = None;
    loop {
        let over = options.again.is_over(round, begun);
        match read_both(source, target, options).await {
            Ok((wanted, found)) => {
                let (lines, all) = differences(&wanted.described, &found.described);
                if all.is_empty() || over {
                    settle_objects(lines, all, before, report);
                    return Ok((wanted, found));
                }
                before = Some(all.into_iter().collect());
            }
            // An object may vanish between two calls of one reading: read again.
            Err(e) if over => return Err(e),
            Err(_) => {}
        }
        round += 1;
        tokio::time::sleep(options.settle).await;
    }
}

/// What differed at the last look and not in the same way at the one before is not yet known to be wrong.
fn settle_objects(
    mut lines: Vec<Line>,
    all: Vec<Difference>,
    before: Option<BTreeSet<Difference>>,
    report: &mut Report,
) {
    let known = |d: &Difference| before.as_ref().is_none_or(|b| b.contains(d));
    let (known, new): (Vec<_>, Vec<_>) = all.into_iter().partition(known);
    for d in new {
        for line in &mut lines {
            let of_this = d.object.strip_prefix(&line.object);
            if of_this.is_some_and(|rest| rest.starts_with(' '))
                && !known.iter().any(|k| k.object.starts_with(&line.object))
            {
                line.verdict = Verdict::NotCompared;
            }
        }
        report
            .open
            .push(format!("{}: it just changed ({d})", d.object));
    }
    report.lines.extend(lines);
    report.differences.extend(known);
}

/// Compares the rows of collections that are on both sides, into `report`. `objects`: of source and target.
pub async fn compare_rows(
    source: &Client,
    target: &Client,
    objects: (&Objects, &Objects),
    options: &Options,
    report: &mut Report,
) {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let mut places = Vec::new();
    for (key, wanted) in &objects.0.collections {
        let Some(found) = objects.1.collections.get(key) else {
            continue;
        };
        let object = format!("rows {}.{}", wanted.db, wanted.name);
        let plan = plan(wanted, found);
        let line = Line {
            object: object.clone(),
            source: 0,
            target: 0,
            counts: Counts::default(),
            verdict: match plan.open.is_empty() {
                true => Verdict::Equal,
                false => Verdict::NotCompared,
            },
        };
        lines.insert(object.clone(), line);
        report.open.extend(plan.open);
        for names in plan.parts {
            places.push((object.clone(), wanted, found, names));
        }
    }
    let outcomes = stream::iter(places)
        .map(|(object, wanted, found, names)| async move {
            let of = (wanted, names.first().cloned());
            let outcome = compare_place(source, target, wanted, found, names, options).await;
            (object, of, outcome)
        })
        .buffer_unordered(AT_ONCE);
    let mut outcomes = std::pin::pin!(outcomes);
    while let Some((object, (of, partition), outcome)) = outcomes.next().await {
        if let Some(line) = lines.get_mut(&object) {
            put(line, &outcome);
        }
        if options.keys && !outcome.keys.is_empty() {
            report.wrong.push(Wrong {
                db: of.db.clone(),
                collection: of.name.clone(),
                partition,
                keys: outcome.keys.into_iter().collect(),
            });
        }
        report.differences.extend(outcome.differences);
        report.more += outcome.more;
        report.open.extend(outcome.open);
        report.remarks.extend(outcome.remarks);
    }
    report.lines.extend(lines.into_values());
    report.lines.sort_by(|a, b| a.object.cmp(&b.object));
    report.differences.sort();
    report.open.sort();
    report.remarks.sort();
    let place = |w: &Wrong| (w.db.clone(), w.collection.clone(), w.partition.clone());
    report.wrong.sort_by_key(place);
}

fn put(line: &mut Line, outcome: &Outcome) {
    line.source += outcome.source;
    line.target += outcome.target;
    line.counts.plus(outcome.counts);
    if !outcome.differences.is_empty() || outcome.more > 0 {
        line.verdict = Verdict::Different;
    } else if !outcome.open.is_empty() && line.verdict == Verdict::Equal {
        line.verdict = Verdict::NotCompared;
    }
}

/// Which partitions of a collection can be compared; an empty list of names is all of them at once.
struct Plan {
    parts: Vec<Vec<String>>,
    open: Vec<String>,
}

fn plan(source: &Collection, target: &Collection) -> Plan {
    let mut plan = Plan {
        parts: Vec::new(),
        open: Vec::new(),
    };
    let full = format!("{}.{}", source.db, source.name);
    if !source.fits(target) {
        plan.open.push(format!("{full}: the schemas differ"));
        return plan;
    }
    let not_loaded = |on_source: bool, on_target: bool| match (on_source, on_target) {
        (true, true) => None,
        (false, false) => Some("not loaded"),
        (false, true) => Some("not loaded on the source"),
        (true, false) => Some("not loaded on the target"),
    };
    if source.partition_key || source.loaded.is_empty() || target.loaded.is_empty() {
        match not_loaded(source.is_loaded(), target.is_loaded()) {
            None => plan.parts.push(Vec::new()),
            Some(why) => plan.open.push(format!("{full}: {why}")),
        }
        return plan;
    }
    for partition in &source.partitions {
        // One that is missing on the target is named with the objects.
        if !target.partitions.contains(partition) {
            continue;
        }
        let on = |c: &Collection| c.loaded.contains(partition);
        match not_loaded(on(source), on(target)) {
            None => plan.parts.push(vec![partition.clone()]),
            Some(why) => plan.open.push(format!("{full}/{partition}: {why}")),
        }
    }
    plan
}

async fn compare_place(
    source: &Client,
    target: &Client,
    wanted: &Collection,
    found: &Collection,
    names: Vec<String>,
    options: &Options,
) -> Outcome {
    let full = format!("{}.{}", wanted.db, wanted.name);
    let name = match names.first() {
        None => full,
        Some(partition) => format!("{full}/{partition}"),
    };
    let by_width = (RANGE_BYTES / wanted.width.max(1)) as u64;
    let bound = options
        .range_rows
        .unwrap_or_else(|| by_width.min(RANGE_ROWS))
        .max(1);
    let side = |client, of, strong| Partition {
        client,
        of,
        names: names.clone(),
        strong,
        likeness: options.likeness,
    };
    Place {
        source: &side(source, wanted, true),
        target: &side(target, found, false),
        name,
        string_key: wanted.string_key,
        bound,
    }
    .compare(options)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Kind;

    fn collection(loaded: &[&str]) -> Collection {
        Collection {
            db: "d".to_owned(),
            name: "c".to_owned(),
            partitions: vec!["a".to_owned(), "b".to_owned()],
            loaded: loaded.iter().map(|p| (*p).to_owned()).collect(),
            partition_key: false,
            primary: "pk".to_owned(),
            string_key: false,
            fields: vec!["pk".to_owned()],
            vector: String::new(),
            binary: false,
            indexed: true,
            width: 1,
        }
    }

    #[test]
    fn what_is_not_loaded_is_said_by_name() {
        let all = collection(&["a", "b"]);
        let plan_of = |s: &Collection, t: &Collection| {
            let plan = plan(s, t);
            (plan.parts.len(), plan.open.join("; "))
        };
        assert_eq!(plan_of(&all, &all), (2, String::new()));
        let none = collection(&[]);
        assert_eq!(plan_of(&none, &none), (0, "d.c: not loaded".to_owned()));
        assert_eq!(
            plan_of(&all, &none),
            (0, "d.c: not loaded on the target".to_owned())
        );
        let some = collection(&["b"]);
        assert_eq!(
            plan_of(&some, &all),
            (1, "d.c/a: not loaded on the source".to_owned())
        );
        // Of a partition key collection all or nothing can be read.
        let mut keyed = collection(&["b"]);
        keyed.partition_key = true;
        assert_eq!(plan_of(&keyed, &keyed), (0, "d.c: not loaded".to_owned()));
        let mut other = collection(&["a", "b"]);
        other.fields.push("more".to_owned());
        assert_eq!(
            plan_of(&all, &other),
            (0, "d.c: the schemas differ".to_owned())
        );
    }

    #[test]
    fn an_object_that_differs_at_the_last_look_only_is_open() {
        let d = |object: &str| Difference {
            object: object.to_owned(),
            kind: Kind::Missing,
            detail: String::new(),
        };
        let line = |object: &str| Line {
            object: object.to_owned(),
            source: 1,
            target: 0,
            counts: Counts::default(),
            verdict: Verdict::Different,
        };
        let lines = || vec![line("database"), line("index")];
        let all = || vec![d("database a"), d("index b.c v")];
        let before = BTreeSet::from([d("database a")]);
        let mut report = Report::default();
        settle_objects(lines(), all(), Some(before), &mut report);
        assert_eq!(report.differences, [d("database a")]);
        assert_eq!(report.open.len(), 1);
        let verdicts: Vec<Verdict> = report.lines.iter().map(|l| l.verdict).collect();
        assert_eq!(verdicts, [Verdict::Different, Verdict::NotCompared]);
        // Where there is only one look, it has to do.
        let mut report = Report::default();
        settle_objects(lines(), all(), None, &mut report);
        assert_eq!(report.differences.len(), 2);
    }
}
