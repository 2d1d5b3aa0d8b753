//! A seeded mix of every operation of Milvus 2.3.5, valid call by call, on one server.
//!
//! It keeps its own account of names and keys, to know what may be called next. The comparison never looks at it.

mod ops;
mod schema;

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::client::{Client, Key};
pub use schema::Shape;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rows to insert, at least.
    pub rows: u64,
    /// Operations to run, at least (each call that changes something counts).
    pub operations: u64,
    /// The same seed gives the same calls.
    pub seed: u64,
    /// Collections at the beginning; at least 6 for every shape.
    pub collections: usize,
    /// Whether databases, collections, partitions, indexes and load state change on the way; else only rows do.
    pub ddl: bool,
    /// Begins the names of databases (but `default`) and collections.
    pub prefix: &'static str,
    /// Rows of one insert, at most.
    pub batch: u64,
    /// Rows written in a second, at most, as [`Done::rows_written`] counts them; 0: as fast as the server takes them.
    pub rate: u64,
    /// Only what milvus-lite can hold: no binary vectors, and collections loaded as a whole.
    pub lite: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rows: 20_000,
            operations: 200,
            seed: rand::random(),
            collections: 8,
            ddl: true,
            prefix: "",
            batch: 500,
            rate: 0,
            lite: false,
        }
    }
}

/// What has been done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    pub operations: u64,
    pub rows_inserted: u64,
    pub rows_upserted: u64,
    pub rows_deleted: u64,
}

impl Done {
    /// Rows in all Insert and Delete messages that these calls made.
    pub fn rows_written(&self) -> u64 {
        self.rows_inserted + 2 * self.rows_upserted + self.rows_deleted
    }
}

/// The databases that stay through the whole workload.
const DATABASES: [&str; 3] = ["default", "shop", "library"];

/// What the workload knows of a collection.
#[derive(Debug)]
struct Collection {
    db: String,
    shape: Shape,
    /// Named ones and `_default`; of a partition key collection only the latter, which is not used.
    partitions: Vec<Partition>,
    vector_indexed: bool,
    scalar_indexes: Vec<String>,
    load: Load,
    /// Of keys.
    next: u64,
}

#[derive(Debug)]
struct Partition {
    name: String,
    keys: Vec<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Load {
    Not,
    All,
    /// Some partitions, by name.
    Some(Vec<String>),
}

impl Collection {
    fn name(&self) -> &str {
        &self.shape.schema.name
    }

    fn keyed_partitions(&self) -> bool {
        self.shape.key_partitions > 0
    }
}

/// One kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Insert,
    Upsert,
    Delete,
    CreatePartition,
    DropPartition,
    CreateIndex,
    DropIndex,
    Load,
    Release,
    LoadPartitions,
    ReleasePartitions,
    Flush,
    Recreate,
    CreateDatabase,
    DropDatabase,
}

/// How often each kind is in the deck from which operations are drawn.
const DECK: [(Op, usize); 15] = [
    (Op::Insert, 16),
    (Op::Upsert, 5),
    (Op::Delete, 6),
    (Op::CreatePartition, 3),
    (Op::DropPartition, 2),
    (Op::CreateIndex, 2),
    (Op::DropIndex, 1),
    (Op::Load, 2),
    (Op::Release, 1),
    (Op::LoadPartitions, 2),
    (Op::ReleasePartitions, 1),
    (Op::Flush, 2),
    (Op::Recreate, 1),
    (Op::CreateDatabase, 1),
    (Op::DropDatabase, 1),
];

/// Hears of each operation after it has succeeded.
type Say<'a> = Box<dyn FnMut(&str, Done) + Send + 'a>;

/// A workload under way on one server.
pub struct Workload<'a> {
    client: &'a Client,
    plan: Plan,
    random: StdRng,
    say: Say<'a>,
    done: Done,
    databases: Vec<String>,
    collections: Vec<Collection>,
    /// Of names and shapes.
    counter: usize,
}

impl<'a> Workload<'a> {
    /// `say` hears of each operation after it has succeeded.
    pub fn new(client: &'a Client, plan: Plan, say: impl FnMut(&str, Done) + Send + 'a) -> Self {
        Self {
            client,
            plan,
            random: StdRng::seed_from_u64(plan.seed),
            say: Box::new(say),
            done: Done::default(),
            databases: Vec::new(),
            collections: Vec::new(),
            counter: 0,
        }
    }

    /// Runs the whole plan.
    ///
    /// # Errors
    /// The server refuses a call; the message has the seed.
    pub async fn run(&mut self) -> Result<Done> {
        let seed = self.plan.seed;
        self.begin()
            .await
            .with_context(|| format!("the workload with seed {seed}"))?;
        self.go_on(|w| {
            w.done.operations >= w.plan.operations && w.done.rows_inserted >= w.plan.rows
        })
        .await
    }

    /// Runs the operations after [`Workload::begin`] until `enough` says so.
    ///
    /// # Errors
    /// As [`Workload::run`].
    pub async fn go_on(&mut self, enough: impl Fn(&Self) -> bool) -> Result<Done> {
        let seed = self.plan.seed;
        let begun = tokio::time::Instant::now();
        let mut deck: Vec<Op> = Vec::new();
        while !enough(self) {
            if deck.is_empty() {
                deck = DECK
                    .iter()
                    .flat_map(|(op, n)| std::iter::repeat_n(*op, *n))
                    .collect();
                if !self.plan.ddl {
                    deck.retain(|op| matches!(op, Op::Insert | Op::Upsert | Op::Delete));
                }
                if self.plan.lite {
                    deck.retain(|op| !matches!(op, Op::LoadPartitions | Op::ReleasePartitions));
                }
                deck.shuffle(&mut self.random);
            }
            let Some(op) = deck.pop() else { break };
            self.step(op)
                .await
                .with_context(|| format!("the workload with seed {seed}, operation {op:?}"))?;
            if self.plan.rate > 0 {
                let seconds = self.done.rows_written() as f64 / self.plan.rate as f64;
                tokio::time::sleep_until(begun + Duration::from_secs_f64(seconds)).await;
            }
        }
        Ok(self.done)
    }

    /// Creates the first databases and collections, some of them loaded.
    ///
    /// # Errors
    /// The server refuses a call.
    pub async fn begin(&mut self) -> Result<()> {
        for name in DATABASES {
            let db = if name == "default" {
                name.to_owned()
            } else {
                format!("{}{name}", self.plan.prefix)
            };
            if name != "default" {
                self.client.create_database(&db).await?;
                self.tell(format!("create database {db}"));
            }
            self.databases.push(db);
        }
        for n in 0..self.plan.collections {
            let db = self.databases[n % DATABASES.len()].clone();
            let at = self.create_collection(&db, None).await?;
            // Every third starts without an index.
            if n % 3 != 2 || !self.plan.ddl {
                self.index_vector(at).await?;
                self.load(at).await?;
            }
        }
        Ok(())
    }

    pub fn done(&self) -> Done {
        self.done
    }

    /// Names of the collections that are there now: database, collection.
    pub fn names(&self) -> Vec<(String, String)> {
        self.collections
            .iter()
            .map(|c| (c.db.clone(), c.name().to_owned()))
            .collect()
    }

    /// Rows the server has acknowledged and that were not deleted: database, collection, rows.
    pub fn rows(&self) -> Vec<(String, String, u64)> {
        self.collections
            .iter()
            .map(|c| {
                let rows = c.partitions.iter().map(|p| p.keys.len() as u64).sum();
                (c.db.clone(), c.name().to_owned(), rows)
            })
            .collect()
    }

    /// Of these, the rows of collections with a partition key.
    pub fn rows_by_partition_key(&self) -> usize {
        self.collections
            .iter()
            .filter(|c| c.keyed_partitions())
            .flat_map(|c| &c.partitions)
            .map(|p| p.keys.len())
            .sum()
    }

    fn tell(&mut self, what: String) {
        self.done.operations += 1;
        (self.say)(&what, self.done);
    }

    fn any(&mut self, fits: impl Fn(&Collection) -> bool) -> Option<usize> {
        let all: Vec<usize> = self
            .collections
            .iter()
            .enumerate()
            .filter(|(_, c)| fits(c))
            .map(|(n, _)| n)
            .collect();
        if all.is_empty() {
            return None;
        }
        Some(all[self.random.random_range(0..all.len())])
    }
}

/// How long the server may take to load a collection of a few thousand rows.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);
