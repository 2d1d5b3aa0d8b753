//! The rows of one collection on both servers, partition by partition.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use milvus::proto::common::ConsistencyLevel;

use super::objects::Collection;
use super::{Difference, Kind, Line, PAUSE};
use crate::client::{Client, Key, Query, Row};

/// Rows per query: keys first, then all fields by ranges of keys. Without `limit`: a query with a range has none on
/// 2.3.5, and with one it may leave out rows between the last of one segment and the first of another.
const PAGE: usize = 2000;
/// Doubled rows named one by one.
const NAMED: usize = 20;

/// One server's rows of one partition.
struct Rows {
    by_key: BTreeMap<Key, Row>,
    /// `count(*)`: physical copies.
    count: u64,
}

pub(super) async fn compare_collection(
    source: &Client,
    target: &Client,
    c: &Collection,
    end: Instant,
) -> Result<(Line, Vec<Difference>)> {
    // Strong once: afterwards every earlier write is readable at any level.
    source
        .count(&c.db, &c.name, &[], ConsistencyLevel::Strong)
        .await?;
    let mut line = Line {
        object: format!("rows {}.{}", c.db, c.name),
        source: 0,
        target: 0,
        equal: true,
    };
    let mut all = Vec::new();
    let all_at_once = [String::new()];
    for partition in if c.partition_key {
        &all_at_once
    } else {
        c.partitions.as_slice()
    } {
        let place = if partition.is_empty() {
            format!("{}.{}", c.db, c.name)
        } else {
            format!("{}.{}/{partition}", c.db, c.name)
        };
        loop {
            // The source again, too: a 2.3.5 that was just loaded or flushed shows some rows only seconds later.
            // And when that happens between two queries of one reading, it is read again.
            let wanted = match read(source, c, partition).await {
                Ok(wanted) => wanted,
                Err(e) if Instant::now() >= end => return Err(e),
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let outcome = read(target, c, partition).await;
            let over = Instant::now() >= end;
            match outcome {
                Ok(found) => {
                    let differences = differences(&place, &wanted, &found);
                    if differences.is_empty() || over {
                        line.source += wanted.count;
                        line.target += found.count;
                        let doubled = differences.iter().any(|d| d.kind == Kind::Doubled);
                        all.extend(differences);
                        if doubled {
                            all.extend(
                                name_doubled(source, target, c, partition, &place, &wanted, &found)
                                    .await,
                            );
                        }
                        break;
                    }
                }
                Err(e) if over => {
                    line.source += wanted.count;
                    all.push(Difference {
                        object: format!("rows {place}"),
                        kind: Kind::Unreadable,
                        detail: format!("{e:#}"),
                    });
                    break;
                }
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    line.equal = all.is_empty();
    Ok((line, all))
}

async fn read(client: &Client, c: &Collection, partition: &str) -> Result<Rows> {
    let partitions: Vec<String> = if partition.is_empty() {
        Vec::new()
    } else {
        vec![partition.to_owned()]
    };
    let count = client
        .count(&c.db, &c.name, &partitions, ConsistencyLevel::Eventually)
        .await?;
    let everything = if c.string_key {
        format!("{} >= \"\"", c.primary)
    } else {
        format!("{} >= {}", c.primary, i64::MIN + 1)
    };
    let only_key = [c.primary.clone()];
    let mut keys = Vec::new();
    for row in fetch(client, c, &partitions, &everything, &only_key).await? {
        keys.push(key_of(&row, c)?);
    }
    keys.sort();
    keys.dedup();
    let mut by_key = BTreeMap::new();
    for page in keys.chunks(PAGE) {
        let (Some(first), Some(last)) = (page.first(), page.last()) else {
            continue;
        };
        let range = format!(
            "{0} >= {1} and {0} <= {2}",
            c.primary,
            first.literal(),
            last.literal()
        );
        for row in fetch(client, c, &partitions, &range, &c.fields).await? {
            by_key.insert(key_of(&row, c)?, row);
        }
    }
    if by_key.len() != keys.len() {
        bail!(
            "{}: {} keys but {} rows in {}.{}/{partition}",
            client.name(),
            keys.len(),
            by_key.len(),
            c.db,
            c.name
        );
    }
    Ok(Rows { by_key, count })
}

async fn fetch(
    client: &Client,
    c: &Collection,
    partitions: &[String],
    expr: &str,
    output: &[String],
) -> Result<Vec<Row>> {
    let consistency = ConsistencyLevel::Eventually;
    client
        .query(&Query {
            db: &c.db,
            collection: &c.name,
            partitions,
            expr,
            output,
            consistency,
        })
        .await
}

/// Which keys the target holds more often than the source: `count(*)` of ranges, halved until one key is left. At most
/// [`NAMED`]; none where a count cannot be had, for the difference itself is known already.
async fn name_doubled(
    source: &Client,
    target: &Client,
    c: &Collection,
    partition: &str,
    place: &str,
    wanted: &Rows,
    found: &Rows,
) -> Vec<Difference> {
    let mut keys: Vec<&Key> = wanted.by_key.keys().chain(found.by_key.keys()).collect();
    keys.sort();
    keys.dedup();
    let partitions: Vec<String> = if partition.is_empty() {
        Vec::new()
    } else {
        vec![partition.to_owned()]
    };
    let mut named = Vec::new();
    let mut ranges = vec![keys.as_slice()];
    while let Some(range) = ranges.pop() {
        let (Some(first), Some(last)) = (range.first(), range.last()) else {
            continue;
        };
        if named.len() == NAMED {
            break;
        }
        let expr = format!(
            "{0} >= {1} and {0} <= {2}",
            c.primary,
            first.literal(),
            last.literal()
        );
        let counts = futures::try_join!(
            count(source, c, &partitions, &expr),
            count(target, c, &partitions, &expr)
        );
        let Ok((on_source, on_target)) = counts else {
            break;
        };
        if on_target <= on_source {
            continue;
        }
        if range.len() == 1 {
            let object = format!("row {place} {first}");
            let detail = format!("{on_target} times on the target, {on_source} on the source");
            named.push(Difference {
                object,
                kind: Kind::Doubled,
                detail,
            });
        } else {
            let (low, high) = range.split_at(range.len() / 2);
            ranges.extend([high, low]);
        }
    }
    named
}

async fn count(client: &Client, c: &Collection, partitions: &[String], expr: &str) -> Result<u64> {
    client
        .count_where(
            &c.db,
            &c.name,
            partitions,
            expr,
            ConsistencyLevel::Eventually,
        )
        .await
}

fn key_of(row: &Row, c: &Collection) -> Result<Key> {
    row.get(&c.primary)
        .and_then(|v| v.key())
        .with_context(|| format!("a row of {}.{} without its key", c.db, c.name))
}

fn differences(place: &str, wanted: &Rows, found: &Rows) -> Vec<Difference> {
    let mut all = Vec::new();
    let object = |key: &Key| format!("row {place} {key}");
    for (key, row) in &wanted.by_key {
        let Some(other) = found.by_key.get(key) else {
            all.push(Difference {
                object: object(key),
                kind: Kind::Missing,
                detail: String::new(),
            });
            continue;
        };
        for name in row
            .keys()
            .chain(other.keys().filter(|n| !row.contains_key(*n)))
        {
            let (a, b) = (row.get(name), other.get(name));
            if a != b {
                let detail = format!("source {a:?}, target {b:?}");
                all.push(Difference {
                    object: format!("{} field {name}", object(key)),
                    kind: Kind::Changed,
                    detail,
                });
            }
        }
    }
    for key in found
        .by_key
        .keys()
        .filter(|k| !wanted.by_key.contains_key(k))
    {
        all.push(Difference {
            object: object(key),
            kind: Kind::Extra,
            detail: String::new(),
        });
    }
    if wanted.count != found.count {
        let keys = found.by_key.len() as u64;
        let detail = format!(
            "count(*) is {} on the source and {} on the target, with {keys} keys there",
            wanted.count, found.count
        );
        let kind = if found.count > keys {
            Kind::Doubled
        } else {
            Kind::Changed
        };
        all.push(Difference {
            object: format!("rows {place}"),
            kind,
            detail,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Value;

    fn rows(of: &[(i64, &str)], count: u64) -> Rows {
        let row = |v: &str| Row::from([("f".to_owned(), Value::Str(v.to_owned()))]);
        Rows {
            by_key: of.iter().map(|(k, v)| (Key::Int(*k), row(v))).collect(),
            count,
        }
    }

    #[test]
    fn rows_are_named_as_missing_extra_changed_and_doubled() {
        let found = differences(
            "d.c/p",
            &rows(&[(1, "a"), (2, "b"), (3, "c")], 3),
            &rows(&[(2, "x"), (3, "c"), (4, "d")], 5),
        );
        let found: Vec<_> = found.iter().map(|d| (d.kind, d.object.as_str())).collect();
        assert_eq!(
            found,
            [
                (Kind::Missing, "row d.c/p 1"),
                (Kind::Changed, "row d.c/p 2 field f"),
                (Kind::Extra, "row d.c/p 4"),
                (Kind::Doubled, "rows d.c/p"),
            ]
        );
    }

    #[test]
    fn a_source_that_holds_a_key_twice_asks_the_target_for_both() {
        assert!(differences("p", &rows(&[(1, "a")], 2), &rows(&[(1, "a")], 2)).is_empty());
        let one = differences("p", &rows(&[(1, "a")], 2), &rows(&[(1, "a")], 1));
        assert_eq!(
            one.iter().map(|d| d.kind).collect::<Vec<_>>(),
            [Kind::Changed]
        );
    }
}
