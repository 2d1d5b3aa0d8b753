//! The rows of one place on both servers: all of them once, by ranges of keys, then what differed again, until it is
//! clear or there was enough time.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use tokio::time::Instant;

use crate::Options;
use crate::client::{Key, Row};
use crate::hash::RowHash;
use crate::report::{Counts, Difference, Kind};
use crate::suspects::{Seen, Suspects};
use crate::table::{Rows, Table, TooLarge};
use cdc_keys::{Range, Step, Walk};

/// Keys asked for by name in one query.
const AT_ONCE: usize = 200;
/// Ranges kept whose copies differ.
const DOUBTS: usize = 1000;
/// Doubled rows named one by one.
const DOUBLED: usize = 20;
/// Ranges of a place that come again in parts because they show fewer keys than rows.
const DIVIDED: usize = 1000;
/// Characters of a value in a report.
const CLIP: usize = 200;

/// What is compared.
pub(crate) struct Place<'a, S, T> {
    pub(crate) source: &'a S,
    pub(crate) target: &'a T,
    /// `db.collection/partition`, or without a partition where they cannot be named.
    pub(crate) name: String,
    pub(crate) string_key: bool,
    /// Rows of one range.
    pub(crate) bound: u64,
}

/// What it came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// `count(*)`.
    pub(crate) source: u64,
    pub(crate) target: u64,
    pub(crate) counts: Counts,
    pub(crate) differences: Vec<Difference>,
    pub(crate) more: u64,
    pub(crate) open: Vec<String>,
    pub(crate) remarks: Vec<String>,
    /// Keys that are known to be wrong.
    pub(crate) keys: BTreeSet<Key>,
}

/// A range whose rows have other numbers of copies on both sides.
#[derive(Debug)]
struct Doubt {
    range: Range,
    /// Both counts were the same before and behind the look at the keys.
    still: bool,
    doubled: bool,
    /// Source and target: `count(*)`, and keys.
    copies: (u64, u64),
    keys: (u64, u64),
}

/// Counts of all rows, source and target, before a look and after it.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    before: (u64, u64),
    after: (u64, u64),
}

impl Totals {
    fn stand_still(&self) -> bool {
        self.before == self.after
    }

    fn differ(&self) -> bool {
        self.stand_still() && self.after.0 != self.after.1
    }
}

struct Looks<'a, S, T> {
    place: &'a Place<'a, S, T>,
    suspects: Suspects,
    doubts: Vec<Doubt>,
    /// Doubts that were too many.
    dropped: u64,
    totals: Totals,
    /// The last look broke off.
    failed: Option<anyhow::Error>,
}

impl<S: Table, T: Table> Place<'_, S, T> {
    /// Compares. Ends after the looks that `options` allow; an error is part of the outcome.
    pub(crate) async fn compare(&self, options: &Options) -> Outcome {
        let begun = Instant::now();
        let mut looks = Looks {
            place: self,
            suspects: Suspects::new(options.kept),
            doubts: Vec::new(),
            dropped: 0,
            totals: Totals::default(),
            failed: None,
        };
        let mut everything = true;
        let mut round = 0;
        loop {
            looks.failed = looks.look(everything).await.err();
            if looks.is_clear() || options.again.is_over(round, begun) {
                break;
            }
            round += 1;
            everything = looks.failed.is_some()
                || looks.suspects.has_dropped()
                || looks.dropped > 0
                || looks.suspects.is_clear() && looks.doubts.is_empty();
            tokio::time::sleep(options.settle).await;
        }
        looks.outcome(options).await
    }

    async fn counts(&self, range: Option<&Range>) -> Result<(u64, u64)> {
        futures::try_join!(self.source.count(range), self.target.count(range))
    }

    async fn hashes(&self, which: Rows<'_>) -> Result<(Hashes, Hashes)> {
        futures::try_join!(
            async { Ok(hashed(self.source.rows(which).await?)) },
            async { Ok(hashed(self.target.rows(which).await?)) }
        )
    }
}

type Hashes = BTreeMap<Key, RowHash>;

fn hashed(rows: Vec<(Key, Row)>) -> Hashes {
    rows.into_iter()
        .map(|(key, row)| (key, RowHash::of(&row)))
        .collect()
}

/// Copies beyond one of each key; negative where rows came between the looks.
fn excess(count: u64, keys: usize) -> i64 {
    let of = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    of(count).saturating_sub(of(keys as u64))
}

impl<S: Table, T: Table> Looks<'_, S, T> {
    fn is_clear(&self) -> bool {
        self.failed.is_none()
            && self.suspects.is_clear()
            && self.doubts.is_empty()
            && self.dropped == 0
            && !self.totals.differ()
    }

    async fn look(&mut self, everything: bool) -> Result<()> {
        if everything {
            self.place.source.catch_up().await?;
        }
        let before = self.place.counts(None).await?;
        if everything {
            self.suspects.begin();
            let outcome = self.look_at_everything().await;
            match outcome {
                Ok(()) => self.suspects.end(),
                Err(_) => self.suspects.break_off(),
            }
            outcome?;
        } else {
            self.look_again().await?;
        }
        let after = self.place.counts(None).await?;
        self.totals = Totals { before, after };
        Ok(())
    }

    async fn look_at_everything(&mut self) -> Result<()> {
        self.doubts.clear();
        self.dropped = 0;
        let mut walk = Walk::new(self.place.string_key, self.place.bound);
        let mut divided = 0;
        while let Some(range) = walk.take() {
            let (on_source, on_target) = self.place.counts(Some(&range)).await?;
            if walk.judge(&range, on_source.max(on_target)) != Step::Read {
                continue;
            }
            let (source, target) = match self.place.hashes(Rows::Range(&range)).await {
                Ok(both) => both,
                Err(e) if e.is::<TooLarge>() && walk.halve(&range) => continue,
                Err(e) => return Err(e),
            };
            // A query of 2.3.5 that finds a key twice can leave out a row of another key (seen: the largest one). Alone,
            // none is hidden behind a doubled one.
            let doubled =
                excess(on_source, source.len()) > 0 || excess(on_target, target.len()) > 0;
            if doubled && divided < DIVIDED {
                let keys: BTreeSet<&Key> = source.keys().chain(target.keys()).collect();
                let keys: Vec<Key> = keys.into_iter().cloned().collect();
                if walk.divide(&range, &keys) {
                    divided += 1;
                    continue;
                }
            }
            self.compare(source.keys().chain(target.keys()), &source, &target);
            if excess(on_source, source.len()) != excess(on_target, target.len()) {
                drop((source, target));
                self.doubt(range).await?;
            }
        }
        Ok(())
    }

    fn compare<'k>(
        &mut self,
        keys: impl Iterator<Item = &'k Key>,
        source: &Hashes,
        target: &Hashes,
    ) {
        for key in keys {
            let seen = Seen {
                source: source.get(key).copied(),
                target: target.get(key).copied(),
            };
            self.suspects.look(key, seen);
        }
    }

    async fn look_again(&mut self) -> Result<()> {
        let keys = self.suspects.keys();
        let mut parts: Vec<&[Key]> = keys.chunks(AT_ONCE.min(self.bound())).collect();
        while let Some(part) = parts.pop() {
            let (source, target) = match self.place.hashes(Rows::Keys(part)).await {
                Ok(both) => both,
                Err(e) if e.is::<TooLarge>() && part.len() > 1 => {
                    parts.extend(<[&[Key]; 2]>::from(part.split_at(part.len() / 2)));
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.compare(part.iter(), &source, &target);
        }
        for doubt in std::mem::take(&mut self.doubts) {
            self.doubt(doubt.range).await?;
        }
        Ok(())
    }

    fn bound(&self) -> usize {
        usize::try_from(self.place.bound)
            .unwrap_or(usize::MAX)
            .max(1)
    }

    /// Looks whether the copies of a range's rows differ while the counts stand still.
    async fn doubt(&mut self, range: Range) -> Result<()> {
        let before = self.place.counts(Some(&range)).await?;
        let (source, target) = self.place.hashes(Rows::Range(&range)).await?;
        let after = self.place.counts(Some(&range)).await?;
        let (on_source, on_target) = (excess(after.0, source.len()), excess(after.1, target.len()));
        if on_source == on_target {
            return Ok(());
        }
        if self.doubts.len() >= DOUBTS {
            self.dropped += 1;
            return Ok(());
        }
        self.doubts.push(Doubt {
            range,
            still: before == after,
            doubled: on_target > on_source,
            copies: after,
            keys: (source.len() as u64, target.len() as u64),
        });
        Ok(())
    }

    async fn outcome(self, options: &Options) -> Outcome {
        let place = &self.place.name;
        let mut all = Outcome {
            source: self.totals.after.0,
            target: self.totals.after.1,
            ..Outcome::default()
        };
        if let Some(error) = &self.failed {
            all.differences.push(Difference {
                object: format!("rows {place}"),
                kind: Kind::Unreadable,
                detail: format!("{error:#}"),
            });
            // What is known from before may be said, but not looked at in full.
            return all;
        }
        let found = self.suspects.outcome();
        all.keys = found.different.iter().map(|(key, _)| key.clone()).collect();
        let mut named = found.different.iter();
        for (key, kind) in named.by_ref().take(options.named) {
            match kind {
                Kind::Changed => self.name_changed(key, &mut all).await,
                _ => {
                    all.counts.add(*kind, 1);
                    all.differences.push(Difference {
                        object: format!("row {place} {key}"),
                        kind: *kind,
                        detail: String::new(),
                    });
                }
            }
        }
        for (_, kind) in named {
            all.counts.add(*kind, 1);
            all.more += 1;
        }
        if found.dropped > 0 {
            all.open.push(format!(
                "{place}: {} rows more differed when all were looked at, too many to be looked at again",
                found.dropped
            ));
        }
        if !found.unsettled.is_empty() {
            let some: Vec<String> = found.unsettled.iter().take(3).map(Key::to_string).collect();
            all.open.push(format!(
                "{place}: {} rows differed and were changed on the source between the looks ({} …)",
                found.unsettled.len(),
                some.join(", ")
            ));
        }
        self.name_copies(options, &mut all).await;
        let quiet = all.differences.is_empty() && all.open.is_empty();
        if !self.totals.stand_still() {
            all.remarks.push(format!(
                "{place}: count(*) does not stand still, so it was compared by ranges of keys only"
            ));
        } else if quiet && self.totals.differ() {
            all.counts.changed += 1;
            all.differences.push(Difference {
                object: format!("rows {place}"),
                kind: Kind::Changed,
                detail: format!(
                    "count(*) is {} on the source and {} on the target",
                    self.totals.after.0, self.totals.after.1
                ),
            });
        }
        all
    }

    /// The fields that differ; nothing if the row has become equal.
    async fn name_changed(&self, key: &Key, all: &mut Outcome) {
        let name = &self.place.name;
        let which = Rows::Keys(std::slice::from_ref(key));
        let rows = futures::try_join!(self.place.source.rows(which), self.place.target.rows(which));
        let mut add = |object: String, detail: String| {
            all.differences.push(Difference {
                object,
                kind: Kind::Changed,
                detail,
            });
        };
        match rows {
            Ok((source, target)) => {
                let (source, target) = (source.first(), target.first());
                let fields = match (source, target) {
                    (Some((_, a)), Some((_, b))) => changed(a, b),
                    (None, None) => Vec::new(),
                    _ => vec![(String::new(), "it is on one side only by now".to_owned())],
                };
                if fields.is_empty() {
                    return;
                }
                for (field, detail) in fields {
                    let field = match field.as_str() {
                        "" => String::new(),
                        field => format!(" field {field}"),
                    };
                    add(format!("row {name} {key}{field}"), detail);
                }
            }
            Err(e) => add(
                format!("row {name} {key}"),
                format!("its fields cannot be read now: {e:#}"),
            ),
        }
        all.counts.changed += 1;
    }

    /// What is known of copies.
    async fn name_copies(&self, options: &Options, all: &mut Outcome) {
        let place = &self.place.name;
        if self.dropped > 0 {
            all.open.push(format!(
                "{place}: the copies of rows in {} more ranges of keys differ, too many to be looked at again",
                self.dropped
            ));
        }
        let (still, moving): (Vec<&Doubt>, Vec<&Doubt>) = self.doubts.iter().partition(|d| d.still);
        if !moving.is_empty() {
            all.open.push(format!(
                "{place}: the copies of rows in {} ranges of keys differ and do not stand still",
                moving.len()
            ));
        }
        // Each of them only where somebody wants to make it right.
        let mut left = match options.keys {
            true => options.kept,
            false => DOUBLED.min(options.named),
        };
        for doubled in [true, false] {
            let ranges: Vec<&&Doubt> = still.iter().filter(|d| d.doubled == doubled).collect();
            if ranges.is_empty() {
                continue;
            }
            let kind = match doubled {
                true => Kind::Doubled,
                false => Kind::Changed,
            };
            let sum = |of: fn(&Doubt) -> u64| ranges.iter().map(|d| of(d)).sum::<u64>();
            all.differences.push(Difference {
                object: format!("rows {place}"),
                kind,
                detail: format!(
                    "count(*) is {} of {} keys on the source and {} of {} keys on the target",
                    sum(|d| d.copies.0),
                    sum(|d| d.keys.0),
                    sum(|d| d.copies.1),
                    sum(|d| d.keys.1),
                ),
            });
            let mut rows = Vec::new();
            for doubt in ranges.iter().filter(|_| doubled) {
                rows.extend(self.find_doubled(&doubt.range, &mut left).await);
            }
            all.counts
                .add(kind, (rows.len() as u64).max(ranges.len() as u64));
            let named = rows.iter().take(DOUBLED.min(options.named));
            all.differences
                .extend(named.map(|(key, (on_source, on_target))| Difference {
                    object: format!("row {place} {key}"),
                    kind: Kind::Doubled,
                    detail: format!("{on_target} times on the target, {on_source} on the source"),
                }));
            all.keys.extend(rows.into_iter().map(|(key, _)| key));
        }
    }

    /// Which keys of a range the target holds more often than the source, with both numbers: `count(*)` beyond the number
    /// of keys, so that a missing row does not hide a doubled one; halved until one key is left. None where it cannot be
    /// read, for the difference itself is known already.
    async fn find_doubled(&self, range: &Range, left: &mut usize) -> Vec<(Key, (u64, u64))> {
        let mut doubled = Vec::new();
        let Ok((source, target)) = self.place.hashes(Rows::Range(range)).await else {
            return doubled;
        };
        let both: BTreeSet<&Key> = source.keys().chain(target.keys()).collect();
        let keys_in = |of: &Hashes, range: &Range| of.keys().filter(|k| range.contains(k)).count();
        let mut ranges = vec![range.clone()];
        while let Some(range) = ranges.pop() {
            if *left == 0 {
                break;
            }
            if keys_in(&target, &range) == 0 {
                continue;
            }
            let mut inside = both.iter().filter(|k| range.contains(k));
            let (Some(first), last) = (inside.next(), inside.next_back()) else {
                continue;
            };
            let range = range.narrow(first, last.unwrap_or(first));
            let Ok(copies) = self.place.counts(Some(&range)).await else {
                break;
            };
            if excess(copies.1, keys_in(&target, &range))
                <= excess(copies.0, keys_in(&source, &range))
            {
                continue;
            }
            if last.is_some()
                && let Some((low, high)) = range.split()
            {
                ranges.extend([high, low]);
                continue;
            }
            *left -= 1;
            doubled.push(((*first).clone(), copies));
        }
        doubled
    }
}

/// The fields that differ, with both values, clipped.
fn changed(source: &Row, target: &Row) -> Vec<(String, String)> {
    let clip = |value: Option<&crate::client::Value>| {
        let text = value.map_or_else(|| "nothing".to_owned(), |v| format!("{v:?}"));
        match text.char_indices().nth(CLIP) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    };
    let more = target.keys().filter(|n| !source.contains_key(*n));
    source
        .keys()
        .chain(more)
        .filter_map(|name| {
            let (a, b) = (source.get(name), target.get(name));
            (a != b).then(|| {
                let detail = format!("source {}, target {}", clip(a), clip(b));
                (name.clone(), detail)
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
