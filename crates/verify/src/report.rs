//! The outcome of a comparison, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::client::Key;

/// What is wrong with an object or a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// On the source, not on the target.
    Missing,
    /// On the target, not on the source.
    Extra,
    /// On both and different.
    Changed,
    /// On the target more often than on the source, by `count(*)`.
    Doubled,
    /// One of the servers does not let it be read.
    Unreadable,
}

/// One difference, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// `row db.collection/partition key`, `index db.collection field`, …
    pub object: String,
    pub kind: Kind,
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            format!("{:?}", self.kind).to_lowercase(),
            self.object
        )?;
        if self.detail.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.detail)
        }
    }
}

/// How many rows, or objects, differ in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    pub missing: u64,
    pub extra: u64,
    pub changed: u64,
    /// Of rows: keys, or where they cannot be told apart, places.
    pub doubled: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, kind: Kind, number: u64) {
        match kind {
            Kind::Missing => self.missing += number,
            Kind::Extra => self.extra += number,
            Kind::Changed => self.changed += number,
            Kind::Doubled => self.doubled += number,
            Kind::Unreadable => {}
        }
    }

    pub(crate) fn plus(&mut self, other: Counts) {
        self.missing += other.missing;
        self.extra += other.extra;
        self.changed += other.changed;
        self.doubled += other.doubled;
    }
}

/// The keys of a place whose rows on the target are not those of the source: missing, extra, changed or doubled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub db: String,
    pub collection: String,
    /// `None`: the partitions of the collection cannot be named.
    pub partition: Option<String>,
    /// Each once, in their order.
    pub keys: Vec<Key>,
}

/// What is said of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Equal,
    Different,
    /// What could be compared is equal.
    NotCompared,
}

/// One line of the table: how many there are on each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `rows db.collection` or a kind of object.
    pub object: String,
    /// Objects, or rows by `count(*)`.
    pub source: u64,
    pub target: u64,
    #[serde(flatten)]
    pub counts: Counts,
    pub verdict: Verdict,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub lines: Vec<Line>,
    /// By name; of each place not more than were asked for.
    pub differences: Vec<Difference>,
    /// Differences that are counted only.
    pub more: u64,
    /// What was not compared, or did not settle, and why.
    pub open: Vec<String>,
    /// What else is to be known, and says nothing against the target.
    pub remarks: Vec<String>,
    /// All that is known to be wrong by its key, if that was asked for.
    #[serde(skip)]
    pub wrong: Vec<Wrong>,
}

impl Report {
    /// Everything was compared and nothing differs.
    pub fn is_equal(&self) -> bool {
        !self.differs() && self.open.is_empty()
    }

    /// Something differs, whatever else was not compared.
    pub fn differs(&self) -> bool {
        !self.differences.is_empty() || self.more > 0
    }

    /// Rows on the source by `count(*)`, over all collections.
    pub fn rows(&self) -> u64 {
        self.lines
            .iter()
            .filter(|l| l.object.starts_with("rows "))
            .map(|l| l.source)
            .sum()
    }

    /// As a table, with up to `shown` of the differences by name.
    pub fn table(&self, shown: usize) -> String {
        let head = ["source", "target", "missing", "extra", "changed", "doubled"];
        let width = self
            .lines
            .iter()
            .map(|l| l.object.chars().count())
            .max()
            .unwrap_or(0)
            .max(6);
        let mut text = format!("{:width$}", "object");
        for name in head {
            text += &format!("  {name:>9}");
        }
        text += "\n";
        for l in &self.lines {
            text += &format!("{:width$}", l.object);
            let c = &l.counts;
            for n in [l.source, l.target, c.missing, c.extra, c.changed, c.doubled] {
                text += &format!("  {n:>9}");
            }
            text += match l.verdict {
                Verdict::Equal => "  equal\n",
                Verdict::Different => "  DIFFERENT\n",
                Verdict::NotCompared => "  NOT COMPARED\n",
            };
        }
        for d in self.differences.iter().take(shown) {
            text += &format!("{d}\n");
        }
        let all = self.differences.len() as u64 + self.more;
        let hidden = all - self.differences.len().min(shown) as u64;
        if hidden > 0 {
            text += &format!("… and {hidden} more\n");
        }
        for line in &self.open {
            text += &format!("not compared: {line}\n");
        }
        for line in &self.remarks {
            text += &format!("note: {line}\n");
        }
        text += &match (all, self.open.len()) {
            (0, 0) => "source and target are equal".to_owned(),
            (0, n) => format!("what was compared is equal; {n} not compared"),
            (n, _) => format!("{n} differences"),
        };
        text
    }
}

/// Differences shown one by one; the others are only counted.
const SHOWN: usize = 40;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table(SHOWN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference() -> Difference {
        Difference {
            object: "row d.c 1".to_owned(),
            kind: Kind::Missing,
            detail: String::new(),
        }
    }

    #[test]
    fn what_was_not_compared_is_not_equal() {
        let mut report = Report::default();
        assert!(report.is_equal() && report.to_string().ends_with("are equal"));
        report.open.push("d.c: not loaded".to_owned());
        assert!(!report.is_equal() && !report.differs());
        let shown = report.to_string();
        assert!(
            shown.contains("\nnot compared: d.c: not loaded\n"),
            "{shown}"
        );
        report.differences.push(difference());
        assert!(report.differs() && report.to_string().ends_with("1 differences"));
    }

    #[test]
    fn differences_that_are_not_shown_are_counted() {
        let report = Report {
            differences: vec![difference(); 5],
            more: 7,
            ..Report::default()
        };
        let shown = report.table(2);
        assert_eq!(shown.matches("missing: row d.c 1").count(), 2);
        assert!(shown.contains("… and 10 more\n12 differences"), "{shown}");
    }
}
