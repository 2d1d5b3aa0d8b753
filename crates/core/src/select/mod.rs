//! Which collections a task carries, under which names, and what it leaves out of what happens to them. Pure.
//!
//! [`rules`] decide by [`pattern`]s; [`mapping`] gives the names on the target; [`overlap`] is whether two tasks could
//! write the same collection.

pub mod mapping;
pub mod overlap;
pub mod pattern;
pub mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use mapping::{MapRule, Mapping};
pub use overlap::{Overlap, overlap};
pub use pattern::{BadPattern, Glob, Pattern};
pub use rules::{Rule, Rules, Verdict};

/// A collection's database and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Name {
    pub database: String,
    pub name: String,
}

impl Name {
    pub fn new(database: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            database: database.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.name)
    }
}

/// What happens on the source and can be left out of what is carried. Rows always are carried, and what they need:
/// databases, collections and partitions are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    DropDatabase,
    DropCollection,
    DropPartition,
    CreateIndex,
    DropIndex,
    Load,
    Release,
    Flush,
    RenameCollection,
    /// Properties.
    AlterCollection,
    AlterDatabase,
    AlterIndex,
    /// Made, moved and dropped.
    Alias,
}

impl Operation {
    pub const ALL: [(&'static str, Operation); 13] = [
        ("drop_database", Operation::DropDatabase),
        ("drop_collection", Operation::DropCollection),
        ("drop_partition", Operation::DropPartition),
        ("create_index", Operation::CreateIndex),
        ("drop_index", Operation::DropIndex),
        ("load", Operation::Load),
        ("release", Operation::Release),
        ("flush", Operation::Flush),
        ("rename_collection", Operation::RenameCollection),
        ("alter_collection", Operation::AlterCollection),
        ("alter_database", Operation::AlterDatabase),
        ("alter_index", Operation::AlterIndex),
        ("alias", Operation::Alias),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, o)| *o == self)
            .map_or("", |(name, _)| name)
    }
}

/// The operations that a task leaves out.
pub type Skipped = BTreeSet<Operation>;
