//! What is done to a source, and what it answered.

use std::sync::Arc;

use async_trait::async_trait;

use super::Rule;
use crate::catalog::Catalog;
use crate::ids::{CollectionId, PChannel};
use crate::source::LogSource;
use crate::tso::Tso;

/// A collection's database and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name {
    pub db: String,
    pub name: String,
}

impl Name {
    pub fn new(db: &str, name: &str) -> Self {
        Self {
            db: db.to_owned(),
            name: name.to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    Insert,
    Upsert,
    Delete,
}

/// An operation of a client.
#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    CreateDatabase(String),
    DropDatabase(String),
    Create {
        name: Name,
        shards: usize,
    },
    Drop(Name),
    CreatePartition {
        of: Name,
        partition: String,
    },
    DropPartition {
        of: Name,
        partition: String,
    },
    /// One request, each key once. Without a partition: the default one; of a delete, all.
    Write {
        of: Name,
        partition: Option<String>,
        write: Write,
        keys: Vec<i64>,
    },
    Index(Name),
    DropIndex(Name),
    Load(Name),
    Release(Name),
    Rename {
        of: Name,
        to: Name,
    },
    /// Made, or moved to this collection.
    Alias {
        of: Name,
        alias: String,
    },
    DropAlias(Name),
}

impl Act {
    /// The collection it is about, under the name it has before.
    pub fn of(&self) -> Option<&Name> {
        match self {
            Act::CreateDatabase(_) | Act::DropDatabase(_) | Act::DropAlias(_) => None,
            Act::Create { name: of, .. }
            | Act::Drop(of)
            | Act::CreatePartition { of, .. }
            | Act::DropPartition { of, .. }
            | Act::Write { of, .. }
            | Act::Index(of)
            | Act::DropIndex(of)
            | Act::Load(of)
            | Act::Release(of)
            | Act::Rename { of, .. }
            | Act::Alias { of, .. } => Some(of),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// Of a request with rows, if the server says it: its time.
    pub ts: Tso,
    /// The collection it was about.
    pub collection: Option<CollectionId>,
}

/// An act that has ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Done {
    pub act: Act,
    /// Places in one count of all that begins and ends.
    pub began: u64,
    pub ended: u64,
    /// Or what the server said instead.
    pub answer: Result<Answer, String>,
    /// The rule by which it has to be refused (`false`) or carried out (`true`).
    pub by: Option<(Rule, bool)>,
    /// Whether the metadata showed it at once; of databases and aliases, which only the watch shows, soon.
    pub shown: Option<bool>,
    /// Whether the watch did not show it when it was answered.
    pub late: bool,
}

/// A source with what a course of events needs beside its queue and its metadata.
#[async_trait]
pub trait Origin: Send + Sync {
    fn log(&self) -> Arc<dyn LogSource>;

    fn catalog(&self) -> Arc<dyn Catalog>;

    /// All data channels it has, used or not.
    fn channels(&self) -> Vec<PChannel>;

    /// Carries it out, or says why not.
    async fn act(&self, act: &Act) -> Result<Answer, String>;

    /// Some of its time goes by: less than a second.
    async fn pass(&self);
}
