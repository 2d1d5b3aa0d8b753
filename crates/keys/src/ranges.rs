//! Ranges of keys that hold no more rows than a bound. Pure.
//!
//! Nothing tells where the keys are, so ranges are halved until `count(*)` of each is small enough. A query with `limit`
//! is no way: on 2.3.5 it may leave out rows between the last of one segment and the first of another.

use serde::{Deserialize, Serialize};

use crate::Key;

/// Keys that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Range {
    /// From and to, both included.
    Int { low: i64, high: i64 },
    /// From, included, up to, not included; `None` is beyond every key. By code points, which is the order of the
    /// UTF-8 bytes, and the servers'.
    Str { low: String, high: Option<String> },
}

/// The first code point above ASCII: where keys are rarely on both sides.
const BEYOND_ASCII: char = '\u{80}';

impl Range {
    /// Ranges that hold every key. Two for integers: one would have no condition, and a query asks for one.
    pub fn all(string_key: bool) -> Vec<Range> {
        match string_key {
            true => vec![Range::Str {
                low: String::new(),
                high: None,
            }],
            false => vec![
                Range::Int {
                    low: i64::MIN,
                    high: -1,
                },
                Range::Int {
                    low: 0,
                    high: i64::MAX,
                },
            ],
        }
    }

    /// As a condition on the field `key`. The smallest integer is not written out: 2.3.5 cannot read it.
    pub fn expr(&self, key: &str) -> String {
        match self {
            Range::Int {
                low: i64::MIN,
                high,
            } => format!("{key} <= {high}"),
            Range::Int {
                low,
                high: i64::MAX,
            } => format!("{key} >= {low}"),
            Range::Int { low, high } => format!("{key} >= {low} and {key} <= {high}"),
            Range::Str { low, high } => {
                let from = format!("{key} >= {}", Key::Str(low.clone()).literal());
                match high {
                    None => from,
                    Some(high) => {
                        format!("{from} and {key} < {}", Key::Str(high.clone()).literal())
                    }
                }
            }
        }
    }

    /// Two ranges that hold what this one does; `None` if it is of one key.
    pub fn split(&self) -> Option<(Range, Range)> {
        match self {
            Range::Int { low, high } => {
                let middle = i64::midpoint(*low, *high);
                // Rounded towards zero, `midpoint` may be the upper end of two.
                let middle = if middle == *high { *low } else { middle };
                (low < high).then(|| {
                    let (low, high) = (*low, *high);
                    (
                        Range::Int { low, high: middle },
                        Range::Int {
                            low: middle + 1,
                            high,
                        },
                    )
                })
            }
            Range::Str { low, high } => {
                let middle = between(low, high.as_deref())?;
                Some((
                    Range::Str {
                        low: low.clone(),
                        high: Some(middle.clone()),
                    },
                    Range::Str {
                        low: middle,
                        high: high.clone(),
                    },
                ))
            }
        }
    }

    /// Parts that hold what this one does, by keys that are known to be in it, sorted: two with about half of these keys
    /// each, or, where there is only one, that key alone and what lies on both sides of it. `None` if that is all there
    /// can be.
    pub fn divide(&self, keys: &[Key]) -> Option<Vec<Range>> {
        let middle = keys.get(keys.len() / 2)?;
        let cuts = match keys.len() {
            1 => vec![Some(middle.clone()), after(middle)],
            _ => vec![Some(middle.clone())],
        };
        let mut parts = vec![self.clone()];
        for cut in cuts.into_iter().flatten() {
            let (low, high) = parts.pop().and_then(|last| last.cut(&cut))?;
            parts.extend([low, high].into_iter().flatten());
        }
        (parts.len() > 1).then_some(parts)
    }

    /// What is below a key, and the rest from it on; one of them is `None` if the key is not inside.
    fn cut(self, key: &Key) -> Option<(Option<Range>, Option<Range>)> {
        match (self, key) {
            (Range::Int { low, high }, Key::Int(key)) => {
                let below = (low < *key).then(|| Range::Int {
                    low,
                    high: high.min(key.saturating_sub(1)),
                });
                let rest = (*key <= high).then(|| Range::Int {
                    low: low.max(*key),
                    high,
                });
                Some((below, rest))
            }
            (Range::Str { low, high }, Key::Str(key)) => {
                let inside = high.as_ref().is_none_or(|high| key < high);
                let below = (low < *key).then(|| Range::Str {
                    low: low.clone(),
                    high: match inside {
                        true => Some(key.clone()),
                        false => high.clone(),
                    },
                });
                let rest = inside.then(|| Range::Str {
                    low: low.max(key.clone()),
                    high,
                });
                Some((below, rest))
            }
            _ => None,
        }
    }

    /// The part of it from one of its keys to another one, as near as can be said without a key behind the last.
    #[must_use]
    pub fn narrow(self, first: &Key, last: &Key) -> Self {
        match (self, first, last) {
            (Range::Int { .. }, Key::Int(low), Key::Int(high)) => Range::Int {
                low: *low,
                high: *high,
            },
            (Range::Str { high, .. }, Key::Str(low), _) => Range::Str {
                low: low.clone(),
                high,
            },
            (range, ..) => range,
        }
    }

    pub fn contains(&self, key: &Key) -> bool {
        match (self, key) {
            (Range::Int { low, high }, Key::Int(k)) => low <= k && k <= high,
            (Range::Str { low, high }, Key::Str(k)) => {
                low <= k && high.as_ref().is_none_or(|high| k < high)
            }
            _ => false,
        }
    }
}

/// The next key; `None` behind the last one.
fn after(key: &Key) -> Option<Key> {
    match key {
        Key::Int(key) => key.checked_add(1).map(Key::Int),
        Key::Str(key) => Some(Key::Str(format!("{key}\0"))),
    }
}

/// A character as a number without gaps, from 1 on; 0 is the end of a string.
fn rank(c: Option<char>) -> u32 {
    match c {
        None => 0,
        Some(c) if u32::from(c) < 0xd800 => u32::from(c) + 1,
        Some(c) => u32::from(c) + 1 - 0x800,
    }
}

/// One more than the largest rank.
const RANKS: u32 = 0x11_0000 - 0x800 + 1;

fn ranked(rank: u32) -> Option<char> {
    let code = rank.checked_sub(1)?;
    char::from_u32(if code < 0xd800 { code } else { code + 0x800 })
}

/// A string above `low` and below `high`, about in the middle; `None` if there is none.
fn between(low: &str, high: Option<&str>) -> Option<String> {
    let mut common = String::new();
    let mut lows = low.chars();
    // `None` once what is built lies below it whatever follows.
    let mut highs = high.map(str::chars);
    loop {
        let from = lows.next();
        let to = highs.as_mut().map(Iterator::next);
        let (a, b) = (rank(from), to.map_or(RANKS, rank));
        if b <= a {
            // Equal: `low` is not above `high`.
            common.push(from?);
            continue;
        }
        let middle = match (a, b) {
            (a, b) if a < rank(Some(BEYOND_ASCII)) && rank(Some(BEYOND_ASCII)) < b => {
                rank(Some(BEYOND_ASCII))
            }
            (a, b) => a + (b - a) / 2,
        };
        if middle > a {
            common.push(ranked(middle)?);
            return Some(common);
        }
        // Neighbours. What begins as `high` does and is shorter lies between, unless it is `high` itself.
        if let (Some(highs), Some(Some(to))) = (&highs, to)
            && !highs.as_str().is_empty()
        {
            common.push(to);
            return Some(common);
        }
        match from {
            Some(from) => {
                common.push(from);
                highs = None;
            }
            None => return None,
        }
    }
}

/// What to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No row is there.
    Skip,
    /// Its rows are not more than the bound, or of one key.
    Read,
    /// Its halves come instead.
    Split,
}

/// Goes over all keys.
#[derive(Debug)]
pub struct Walk {
    /// The next one is the last.
    ahead: Vec<Range>,
    bound: u64,
}

impl Walk {
    /// `bound`: rows that a range to be read may have, at least one.
    pub fn new(string_key: bool, bound: u64) -> Self {
        let mut ahead = Range::all(string_key);
        ahead.reverse();
        Self {
            ahead,
            bound: bound.max(1),
        }
    }

    /// The next range, in the order of the keys.
    pub fn take(&mut self) -> Option<Range> {
        self.ahead.pop()
    }

    /// A range that was just taken has so many rows on the side that has more.
    pub fn judge(&mut self, range: &Range, rows: u64) -> Step {
        if rows == 0 {
            Step::Skip
        } else if rows > self.bound && self.halve(range) {
            Step::Split
        } else {
            Step::Read
        }
    }

    /// A range that was just taken is too much after all: its halves come instead. False if it is of one key.
    pub fn halve(&mut self, range: &Range) -> bool {
        let Some((low, high)) = range.split() else {
            return false;
        };
        self.ahead.extend([high, low]);
        true
    }

    /// A range that was just taken shows fewer keys than rows: it comes again in parts, by the keys that are known. False
    /// if it is of one key.
    pub fn divide(&mut self, range: &Range, keys: &[Key]) -> bool {
        let Some(parts) = range.divide(keys) else {
            return false;
        };
        self.ahead.extend(parts.into_iter().rev());
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn conditions_are_written_as_milvus_reads_them() {
        let int = |low, high| Range::Int { low, high }.expr("pk");
        assert_eq!(int(i64::MIN, -1), "pk <= -1");
        assert_eq!(int(0, i64::MAX), "pk >= 0");
        assert_eq!(int(-3, 4), "pk >= -3 and pk <= 4");
        let all = Range::all(true);
        assert_eq!(all[0].expr("pk"), r#"pk >= """#);
        let quoted = Range::Str {
            low: "a\"".to_owned(),
            high: Some("b\\".to_owned()),
        };
        assert_eq!(quoted.expr("pk"), r#"pk >= "a\"" and pk < "b\\""#);
    }

    #[test]
    fn a_range_is_narrowed_to_its_keys() {
        let [below, _] = &Range::all(false)[..] else {
            panic!("two ranges")
        };
        let narrow = below.clone().narrow(&Key::Int(-9), &Key::Int(-4));
        assert_eq!(narrow, Range::Int { low: -9, high: -4 });
        let key = |k: &str| Key::Str(k.to_owned());
        let all = Range::all(true).remove(0);
        let from_b = all.narrow(&key("b"), &key("c"));
        assert!(!from_b.contains(&key("a")) && from_b.contains(&key("b")));
        assert!(from_b.contains(&key("c")));
    }

    #[test]
    fn a_key_is_set_apart_from_what_may_lie_around_it() {
        let range = |low, high| Range::Int { low, high };
        let int = |keys: &[i64]| keys.iter().map(|k| Key::Int(*k)).collect::<Vec<_>>();
        assert_eq!(
            range(0, i64::MAX).divide(&int(&[7])),
            Some(vec![range(0, 6), range(7, 7), range(8, i64::MAX)])
        );
        assert_eq!(
            range(0, 9).divide(&int(&[1, 3, 5])),
            Some(vec![range(0, 2), range(3, 9)])
        );
        assert_eq!(
            range(0, 9).divide(&int(&[0, 9])),
            Some(vec![range(0, 8), range(9, 9)])
        );
        assert_eq!(
            range(4, 5).divide(&int(&[4])),
            Some(vec![range(4, 4), range(5, 5)])
        );
        assert_eq!(range(4, 4).divide(&int(&[4])), None);
        let last = range(i64::MAX, i64::MAX);
        assert_eq!(last.divide(&int(&[i64::MAX])), None);
        assert_eq!(range(0, 9).divide(&[]), None);
        let text = |low: &str, high: Option<&str>| Range::Str {
            low: low.to_owned(),
            high: high.map(str::to_owned),
        };
        let key = |k: &str| Key::Str(k.to_owned());
        assert_eq!(
            text("", None).divide(&[key("k")]),
            Some(vec![
                text("", Some("k")),
                text("k", Some("k\0")),
                text("k\0", None)
            ])
        );
        assert_eq!(text("k", Some("k\0")).divide(&[key("k")]), None);
    }

    #[test]
    fn the_ends_of_the_integers_can_be_reached() {
        for key in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX] {
            let key = Key::Int(key);
            let mut range = Range::all(false)
                .into_iter()
                .find(|r| r.contains(&key))
                .unwrap();
            let mut halvings = 0;
            while let Some((low, high)) = range.split() {
                assert!(low.contains(&key) != high.contains(&key));
                range = if low.contains(&key) { low } else { high };
                halvings += 1;
            }
            assert!(halvings <= 64);
        }
    }

    #[test]
    fn between_two_strings_is_one_unless_they_are_neighbours() {
        assert_eq!(between("a", Some("a\0")), None);
        assert_eq!(between("a", Some("a\0\0")).as_deref(), Some("a\0"));
        assert_eq!(between("", Some("\0")), None);
        for (low, high) in [
            ("", None),
            ("a", Some("b")),
            ("a", Some("aa")),
            ("az", Some("b")),
            ("ab", Some("abc")),
            ("\u{10ffff}", None),
            ("\u{d7ff}", Some("\u{e001}")),
            ("key-0001", Some("key-0002")),
        ] {
            let middle = between(low, high).unwrap();
            assert!(low < middle.as_str(), "{low:?} {middle:?} {high:?}");
            assert!(
                high.is_none_or(|h| middle.as_str() < h),
                "{middle:?} {high:?}"
            );
        }
    }

    /// Walks over keys with their numbers of copies; the ranges that were read.
    fn walk(keys: &BTreeMap<Key, u64>, string_key: bool, bound: u64) -> (Vec<Range>, usize) {
        let mut walk = Walk::new(string_key, bound);
        let mut read = Vec::new();
        let mut counts = 0;
        while let Some(range) = walk.take() {
            counts += 1;
            let inside: u64 = keys
                .iter()
                .filter(|(k, _)| range.contains(k))
                .map(|(_, n)| n)
                .sum();
            if walk.judge(&range, inside) == Step::Read {
                read.push(range);
            }
        }
        (read, counts)
    }

    /// No range holds more rows than the bound, unless they are copies of one key, and each key is in one range.
    fn holds(keys: &BTreeMap<Key, u64>, string_key: bool, bound: u64) -> Result<(), TestCaseError> {
        let (read, counts) = walk(keys, string_key, bound);
        for range in &read {
            let inside: Vec<u64> = keys
                .iter()
                .filter(|(k, _)| range.contains(k))
                .map(|(_, n)| *n)
                .collect();
            prop_assert!(inside.len() == 1 || inside.iter().sum::<u64>() <= bound);
        }
        for key in keys.keys() {
            prop_assert_eq!(read.iter().filter(|r| r.contains(key)).count(), 1);
        }
        let longest = keys.keys().map(|k| k.to_string().chars().count()).max();
        let depth = if string_key {
            24 * (longest.unwrap_or(0) + 1)
        } else {
            64
        };
        prop_assert!(
            counts <= 4 + 2 * depth * keys.len().max(1),
            "{} counts",
            counts
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn integers_are_walked_within_the_bound(
            keys in prop::collection::btree_map(
                prop_oneof![any::<i64>(), 0..100i64, (i64::MAX - 50)..=i64::MAX, i64::MIN..(i64::MIN + 9)]
                    .prop_map(Key::Int),
                1..4u64,
                0..80,
            ),
            bound in 1..20u64,
        ) {
            holds(&keys, false, bound)?;
        }

        #[test]
        fn strings_are_walked_within_the_bound(
            keys in prop::collection::btree_map(
                prop_oneof!["[a-c]{0,4}", "key-[0-9]{3}", "[\u{0}\u{1}a]{0,4}", ".{0,3}"]
                    .prop_map(Key::Str),
                1..4u64,
                0..40,
            ),
            bound in 1..20u64,
        ) {
            holds(&keys, true, bound)?;
        }

        /// Where a doubled key is, the largest key of a range is not shown: doubled ones come to stand alone, and no key is
        /// left out, read twice, or read before a smaller one.
        #[test]
        fn what_is_divided_comes_again_whole_and_in_order(
            keys in prop::collection::btree_map((0..60i64).prop_map(Key::Int), 1..3u64, 0..30),
            bound in 1..60u64,
        ) {
            let mut walk = Walk::new(false, bound);
            let mut read = Vec::new();
            while let Some(range) = walk.take() {
                let inside: Vec<(&Key, &u64)> =
                    keys.iter().filter(|(key, _)| range.contains(key)).collect();
                let rows: u64 = inside.iter().map(|(_, copies)| **copies).sum();
                if walk.judge(&range, rows) != Step::Read {
                    continue;
                }
                let mut shown: Vec<Key> = inside.iter().map(|(key, _)| (*key).clone()).collect();
                if rows > shown.len() as u64 {
                    if shown.len() > 1 {
                        shown.pop();
                    }
                    if walk.divide(&range, &shown) {
                        continue;
                    }
                    prop_assert_eq!(inside.len(), 1, "not alone in {:?}", range);
                }
                read.extend(inside.into_iter().map(|(key, _)| key));
            }
            prop_assert_eq!(read, keys.keys().collect::<Vec<_>>());
        }

        #[test]
        fn a_middle_lies_between(low in ".{0,4}", high in prop::option::of("[\u{0}a-c\u{10ffff}]{0,4}")) {
            prop_assume!(high.as_ref().is_none_or(|h| &low < h));
            match between(&low, high.as_deref()) {
                Some(middle) => {
                    prop_assert!(low < middle);
                    prop_assert!(high.as_ref().is_none_or(|h| &middle < h));
                }
                // Only where nothing lies between: `high` is the very next string.
                None => prop_assert_eq!(high, Some(format!("{}\0", low))),
            }
        }
    }
}
