//! The outcome of a comparison, for people.

use std::fmt;

/// What is wrong with an object or a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// On the source, not on the target.
    Missing,
    /// On the target, not on the source.
    Extra,
    /// On both and different.
    Changed,
    /// On the target more often than on the source, by `count(*)`.
    Doubled,
    /// The target does not let it be read.
    Unreadable,
}

/// One difference, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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

/// One line of the table: how many there are on each side.
#[derive(Debug, Clone)]
pub struct Line {
    /// `rows db.collection` or a kind of object.
    pub object: String,
    /// Objects, or rows by `count(*)`.
    pub source: u64,
    pub target: u64,
    pub equal: bool,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub lines: Vec<Line>,
    pub differences: Vec<Difference>,
}

/// Differences shown one by one; the others are only counted.
const SHOWN: usize = 40;

impl Report {
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }

    /// Rows on the source by `count(*)`, over all collections.
    pub fn rows(&self) -> u64 {
        self.lines
            .iter()
            .filter(|l| l.object.starts_with("rows "))
            .map(|l| l.source)
            .sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .lines
            .iter()
            .map(|l| l.object.chars().count())
            .max()
            .unwrap_or(0)
            .max(6);
        writeln!(f, "{:width$}  {:>9}  {:>9}", "object", "source", "target")?;
        for l in &self.lines {
            let verdict = if l.equal { "equal" } else { "DIFFERENT" };
            writeln!(
                f,
                "{:width$}  {:>9}  {:>9}  {verdict}",
                l.object, l.source, l.target
            )?;
        }
        for d in self.differences.iter().take(SHOWN) {
            writeln!(f, "{d}")?;
        }
        match self.differences.len() {
            0 => write!(f, "source and target are equal"),
            n if n > SHOWN => write!(f, "… and {} more: {n} differences", n - SHOWN),
            n => write!(f, "{n} differences"),
        }
    }
}
