//! The rules of a source, on the simulation's model of one; `source_rules` of the end-to-end tests has them on a real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::catalog::{Catalog, LoadState, ObjectState};
use cdc_core::ids::{CollectionId, DbId, PChannel, PartitionId};
use cdc_core::source::LogSource;
use cdc_core::source::rules::course::{CHANNELS, course};
use cdc_core::source::rules::{Act, Answer, Name, Origin, Write, judge, unnoticed};
use cdc_core::tso::Tso;
use cdc_sim::source::Source;
use cdc_sim::world::STEP;
use parking_lot::Mutex;

struct Model {
    source: Mutex<Source>,
    /// Beside what the course does, the model writes as the simulation lets it.
    wild: bool,
}

impl Model {
    fn new(seed: u64, wild: bool) -> Self {
        let retries = if wild { 0.05 } else { 0.0 };
        let epoch = Tso::from_millis(1_750_000_000_000);
        let mut source = Source::new(CHANNELS, epoch, seed, retries);
        source.hashes = true;
        Self {
            source: Mutex::new(source),
            wild,
        }
    }
}

fn database(source: &Source, name: &str) -> Result<DbId, String> {
    let mut all = source.databases.iter();
    let found = all.find(|(_, n)| *n == name).map(|(id, _)| *id);
    found.ok_or_else(|| format!("no database {name}"))
}

fn find(source: &Source, of: &Name) -> Result<CollectionId, String> {
    let db = database(source, &of.db)?;
    let mut all = source.live.values();
    let found = all.find(|l| l.catalog.db == db && l.catalog.name == of.name);
    let found = found.ok_or_else(|| format!("no collection {of:?}"))?;
    Ok(found.catalog.id)
}

fn partition(source: &Source, of: CollectionId, name: &str) -> Result<PartitionId, String> {
    let mut all = source.live[&of].catalog.partitions.values();
    let found = all.find(|p| p.name == name && p.state == ObjectState::Created);
    found
        .map(|p| p.id)
        .ok_or_else(|| format!("no partition {name}"))
}

fn refused_unless(done: bool) -> Result<(), String> {
    done.then_some(()).ok_or_else(|| "refused".to_owned())
}

/// Whether the collection is not what it was.
fn changed(source: &mut Source, id: CollectionId, act: impl FnOnce(&mut Source)) -> bool {
    let before = source.live[&id].catalog.clone();
    act(source);
    source.live[&id].catalog != before
}

/// What [`Source`] does of itself, and what its callers see to (`crates/sim/src/run.rs`).
fn carry_out(source: &mut Source, act: &Act) -> Result<Answer, String> {
    let known = act.of().map(|of| find(source, of));
    let mut answer = Answer {
        collection: known.clone().and_then(Result::ok),
        ts: Tso::ZERO,
    };
    let id = known.unwrap_or_else(|| Err("of no collection".to_owned()));
    let indexed = |source: &Source, id| !source.live[&id].catalog.indexes.is_empty();
    let loaded = |source: &Source, id| source.live[&id].catalog.load != LoadState::Released;
    match act {
        Act::CreateDatabase(name) => {
            refused_unless(database(source, name).is_err())?;
            source.create_database(name);
        }
        Act::DropDatabase(name) => {
            let db = database(source, name)?;
            refused_unless(source.drop_database(db))?;
        }
        Act::Create { name, shards } => {
            let db = database(source, &name.db)?;
            refused_unless(!source.is_taken(db, &name.name))?;
            answer.collection = Some(source.create_in(db, &name.name, *shards));
        }
        Act::Drop(_) => source.drop_collection(id?),
        Act::CreatePartition {
            partition: name, ..
        } => {
            let id = id?;
            refused_unless(partition(source, id, name).is_err())?;
            source.create_partition(id, name);
        }
        Act::DropPartition {
            partition: name, ..
        } => {
            let id = id?;
            refused_unless(!loaded(source, id))?;
            let partition = partition(source, id, name)?;
            source.drop_partition(id, partition);
        }
        Act::Write {
            partition: name,
            write,
            keys,
            ..
        } => {
            let id = id?;
            let named = name.as_ref().map(|name| partition(source, id, name));
            let named = named.transpose()?;
            let into = named.unwrap_or_else(|| source.default_partition(id));
            answer.ts = match write {
                Write::Insert => source.write(id, into, keys, false, 0),
                Write::Upsert => source.write(id, into, keys, true, 0),
                Write::Delete => source.delete_keys(id, named, keys),
            };
        }
        Act::Index(_) => {
            let id = id?;
            refused_unless(!indexed(source, id))?;
            refused_unless(changed(source, id, |s| s.toggle_index(id)))?;
        }
        Act::DropIndex(_) => {
            let id = id?;
            refused_unless(indexed(source, id))?;
            refused_unless(changed(source, id, |s| s.toggle_index(id)))?;
        }
        Act::Load(_) => {
            let id = id?;
            refused_unless(!loaded(source, id))?;
            refused_unless(changed(source, id, |s| s.toggle_load(id)))?;
        }
        Act::Release(_) => {
            let id = id?;
            refused_unless(loaded(source, id))?;
            refused_unless(changed(source, id, |s| s.toggle_load(id)))?;
        }
        Act::Rename { to, .. } => {
            let db = database(source, &to.db)?;
            refused_unless(source.rename(id?, db, &to.name))?;
        }
        Act::Alias { alias, .. } => refused_unless(source.put_alias(id?, alias))?,
        Act::DropAlias(alias) => {
            let db = database(source, &alias.db)?;
            source.drop_alias(db, &alias.name);
        }
    }
    Ok(answer)
}

#[async_trait]
impl Origin for Model {
    fn log(&self) -> Arc<dyn LogSource> {
        Arc::new(self.source.lock().log.clone())
    }

    fn catalog(&self) -> Arc<dyn Catalog> {
        self.source.lock().catalog.clone()
    }

    fn channels(&self) -> Vec<PChannel> {
        let source = self.source.lock();
        (0..CHANNELS).map(|i| source.channel(i)).collect()
    }

    async fn act(&self, act: &Act) -> Result<Answer, String> {
        carry_out(&mut self.source.lock(), act)
    }

    async fn pass(&self) {
        {
            let mut source = self.source.lock();
            let ids: Vec<CollectionId> = source.live.keys().copied().collect();
            if self.wild && !ids.is_empty() {
                source.random_write(&ids);
            }
            source.step(STEP);
        }
        tokio::time::sleep(Duration::from_millis(STEP)).await;
    }
}

async fn keeps_each_rule(seed: u64, wild: bool) {
    println!("seed {seed}");
    let model = Model::new(seed, wild);
    let trace = course(&model, seed, 40).await.unwrap();
    let mut broken = Vec::new();
    for (rule, outcome) in judge(&trace) {
        match outcome {
            Ok(seen) => println!("{seen:6}  {rule:?}"),
            Err(e) => broken.push(format!("{rule:?}: {e}")),
        }
    }
    for (what, seen) in trace.notes() {
        println!("{seen:6}  {what}");
    }
    assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    let unnoticed = unnoticed(&trace);
    assert!(unnoticed.is_empty(), "seed {seed}: {unnoticed:?}");
}

#[tokio::test(start_paused = true)]
async fn the_model_keeps_each_rule_and_a_break_is_noticed() {
    for _ in 0..3 {
        keeps_each_rule(rand::random::<u32>().into(), false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn so_it_does_when_it_writes_by_itself() {
    for _ in 0..3 {
        keeps_each_rule(rand::random::<u32>().into(), true).await;
    }
}
