//! The target's own log, beside a comparison of what it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Error, Result, bail, ensure};
use milvus::proto::common::ConsistencyLevel;
use milvus::proto::schema::DataType;

use super::Log;
use crate::client::{Client, Key, Query};
use crate::compare::Report;
use crate::servers::{Milvus, Mq};

/// Time and message ids on the target go by the rules.
///
/// # Errors
/// They do not, or the log cannot be read.
pub fn keep_the_rules(target: &Milvus) -> Result<()> {
    let log = Log::read(&target.rocksmq_path())?;
    ensure!(
        log.violations().is_empty(),
        "the target's log goes against the rules:\n{}",
        log.violations().join("\n")
    );
    Ok(())
}

/// Source and target differ although the target was given the right rows: its own log has them, by key and by copies,
/// each below a tick, and keeps the rules.
#[derive(Debug)]
pub struct TheirFault {
    text: String,
    /// The source shows other rows than its own log has; else the target does.
    pub by_source: bool,
}

impl fmt::Display for TheirFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TheirFault {}

/// Of each collection whose rows differ: whether the target's log has the rows of the source: those it shows, or, with
/// RocksMQ, those of its own log (a 2.3.5 source on a busy machine was seen to show rows that its log deletes). A
/// [`TheirFault`] if that alone explains the report.
///
/// `ours`: milvus-cdc wrote the target's log, which has to keep the rules then. A Milvus that is written to by calls writes
/// its log itself, with ids as it likes.
///
/// # Errors
/// The log cannot be read.
pub async fn verdict(
    source: &Client,
    target: &Client,
    servers: (&Milvus, &Milvus),
    report: &Report,
    ours: bool,
) -> Result<Error> {
    let log = Log::read(&servers.1.rocksmq_path())?;
    let sources = match servers.0.mq() {
        Mq::Rocksmq => Some(Log::read(&servers.0.rocksmq_path())?),
        _ => None,
    };
    let mut by_source = false;
    let rows_alone = report
        .differences
        .iter()
        .all(|d| d.object.starts_with("row"));
    let violations = if ours { log.violations() } else { &[] };
    let mut innocent = rows_alone && violations.is_empty() && log.unticked().is_empty();
    let mut lines = vec!["the target's log:".to_owned()];
    for v in violations {
        lines.push(format!("  against the rules: {v}"));
    }
    for line in log.unticked() {
        lines.push(format!("  {line}"));
    }
    let differing: BTreeSet<(&str, &str)> = report
        .differences
        .iter()
        .filter_map(|d| d.object.split_once(' '))
        .filter(|(kind, _)| ["row", "rows"].contains(kind))
        .filter_map(|(_, place)| place.split(['/', ' ']).next()?.split_once('.'))
        .collect();
    for (db, name) in differing {
        let line = match collection(source, target, &log, db, name).await {
            Ok(wrong) if wrong.is_empty() => {
                "keys and copies are right in the log: the target itself has lost or not yet shown them"
                    .to_owned()
            }
            Ok(_) if alike(source, target, sources.as_ref(), &log, db, name).await? => {
                by_source = true;
                "the source's own log has the rows of the target's log: the source shows others".to_owned()
            }
            Ok(wrong) => {
                innocent = false;
                format!("WRONG in the log, milvus-cdc wrote it so: {}", wrong.join("; "))
            }
            Err(e) => {
                innocent = false;
                format!("cannot be compared with the source: {e:#}")
            }
        };
        lines.push(format!("  {db}.{name}: {line}"));
    }
    let text = format!("source and target differ\n{report}\n{}", lines.join("\n"));
    Ok(if innocent {
        Error::new(TheirFault { text, by_source })
    } else {
        Error::msg(text)
    })
}

/// Whether the logs of both have the same keys of a collection, as often.
async fn alike(
    source: &Client,
    target: &Client,
    sources: Option<&Log>,
    targets: &Log,
    db: &str,
    name: &str,
) -> Result<bool> {
    let Some(sources) = sources else {
        return Ok(false);
    };
    let all = |log: &Log, id: i64| {
        let mut keys: BTreeMap<Key, u64> = BTreeMap::new();
        for (key, copies) in log.rows(id).into_values().flatten() {
            *keys.entry(key).or_default() += copies;
        }
        keys
    };
    let of = source.describe(db, name).await?.collection_id;
    let to = target.describe(db, name).await?.collection_id;
    Ok(all(sources, of) == all(targets, to))
}

/// What is wrong in the log, partition by partition.
async fn collection(
    source: &Client,
    target: &Client,
    log: &Log,
    db: &str,
    name: &str,
) -> Result<Vec<String>> {
    let id = target.describe(db, name).await?.collection_id;
    let in_log = log.rows(id);
    let schema = source.describe(db, name).await?.schema.unwrap_or_default();
    let keyed = schema.fields.iter().any(|f| f.is_partition_key);
    let Some(primary) = schema.fields.iter().find(|f| f.is_primary_key) else {
        bail!("no primary key");
    };
    let expr = if primary.data_type() == DataType::VarChar {
        format!("{} >= \"\"", primary.name)
    } else {
        format!("{} >= {}", primary.name, i64::MIN + 1)
    };
    let mut wrong = Vec::new();
    let partitions = if keyed {
        vec![(String::new(), 0)]
    } else {
        target.partitions(db, name).await?
    };
    for (partition, id) in partitions {
        let logged: Vec<(&Key, u64)> = in_log
            .iter()
            .filter(|(p, _)| keyed || **p == id)
            .flat_map(|(_, rows)| rows.iter().map(|(k, n)| (k, *n)))
            .collect();
        let names: Vec<String> = if keyed {
            Vec::new()
        } else {
            vec![partition.clone()]
        };
        let output = [primary.name.clone()];
        let rows = source
            .query(&Query {
                db,
                collection: name,
                partitions: &names,
                expr: &expr,
                output: &output,
                consistency: ConsistencyLevel::Strong,
            })
            .await?;
        let wanted: BTreeSet<Key> = rows
            .iter()
            .filter_map(|r| r.get(&primary.name)?.key())
            .collect();
        let count = source
            .count(db, name, &names, ConsistencyLevel::Strong)
            .await?;
        let mut found: BTreeMap<&Key, u64> = BTreeMap::new();
        for (key, n) in logged {
            *found.entry(key).or_default() += n;
        }
        let copies: u64 = found.values().sum();
        let missing: Vec<&Key> = wanted.iter().filter(|k| !found.contains_key(k)).collect();
        let extra: Vec<&&Key> = found.keys().filter(|k| !wanted.contains(k)).collect();
        let many: Vec<&&Key> = found
            .iter()
            .filter(|(_, n)| **n > 1)
            .map(|(k, _)| k)
            .collect();
        if !missing.is_empty() || !extra.is_empty() || copies != count {
            wrong.push(format!(
                "{partition}: {count} on the source, {copies} copies in the log; missing {:?}, extra {:?}, several times {:?}",
                &missing[..missing.len().min(20)],
                &extra[..extra.len().min(20)],
                &many[..many.len().min(20)],
            ));
        }
    }
    Ok(wrong)
}
