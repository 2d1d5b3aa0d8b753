//! Ordered rules of which collections are carried: the last one that matches wins. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::pattern::Pattern;

/// One step of a selection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    Include(Vec<Pattern>),
    Exclude(Vec<Pattern>),
}

impl Rule {
    pub fn patterns(&self) -> &[Pattern] {
        match self {
            Rule::Include(patterns) | Rule::Exclude(patterns) => patterns,
        }
    }

    fn matches(&self, database: &str, name: &str) -> bool {
        self.patterns().iter().any(|p| p.matches(database, name))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Include(_) => "include ",
            Rule::Exclude(_) => "exclude ",
        })?;
        for (i, pattern) in self.patterns().iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{pattern}")?;
        }
        Ok(())
    }
}

/// What rules say of a collection. The number is that of the rule that decides, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Included(usize),
    Excluded(usize),
    /// No rule matches: it is not carried.
    Unmatched,
}

/// Which collections a task carries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    pub fn verdict(&self, database: &str, name: &str) -> Verdict {
        let mut rules = self.0.iter().enumerate().rev();
        match rules.find(|(_, rule)| rule.matches(database, name)) {
            Some((i, Rule::Include(_))) => Verdict::Included(i),
            Some((i, Rule::Exclude(_))) => Verdict::Excluded(i),
            None => Verdict::Unmatched,
        }
    }

    pub fn contains(&self, database: &str, name: &str) -> bool {
        matches!(self.verdict(database, name), Verdict::Included(_))
    }

    /// Whether the database itself belongs to the task: the last rule that has all of it includes it. One of which only
    /// some names are excluded does, for the rest of it is wanted.
    pub fn whole_database(&self, database: &str) -> bool {
        let has_all = |rule: &&Rule| {
            let mut patterns = rule.patterns().iter();
            patterns.any(|p| p.is_whole_database(database))
        };
        let last = self.0.iter().rev().find(has_all);
        matches!(last, Some(Rule::Include(_)))
    }

    /// The patterns that may let something in, each with the excludes behind it.
    pub(super) fn includes(&self) -> impl Iterator<Item = (&Pattern, Vec<&Pattern>)> {
        self.0.iter().enumerate().flat_map(|(i, rule)| {
            let included: &[Pattern] = match rule {
                Rule::Include(patterns) => patterns,
                Rule::Exclude(_) => &[],
            };
            let behind: Vec<&Pattern> = self.0[i + 1..]
                .iter()
                .filter_map(|rule| match rule {
                    Rule::Exclude(patterns) => Some(patterns),
                    Rule::Include(_) => None,
                })
                .flatten()
                .collect();
            included.iter().map(move |p| (p, behind.clone()))
        })
    }
}
