//! Places that need a course of events of their own: what is forgotten, what is left out, calls of plain mode, a repair.

use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{CollectionId, DbId, PChannel};
use cdc_core::position::Position;
use cdc_core::quarantine::{Kept, RECORDS, Record, State};
use cdc_core::store::{Change, ProgressStore, TaskProgress};
use cdc_core::task::{CollectionState, Mode, OnConflict, TaskSpec};

use super::{Course, POINTS, comes_by, die};
use crate::repair::{read, spoil, suspects};
use crate::selected::{exclude, include, with};
use crate::writes;
use cdc_sim::gate::Trap;
use cdc_sim::world::{World, seeds};

/// Where something is forgotten, or left out.
const LEAVING: [&str; 6] = [
    "forget a channel's place",
    "forget a collection",
    "forget a task",
    "forget its bytes",
    "forget what could not be carried",
    "note that a collection stands apart",
];
/// The calls of plain mode that write rows.
const ROWS: [&str; 2] = ["delete rows", "insert rows"];
/// Where a collection, or an alias, gets another name, or properties change.
const NAMES: [&str; 6] = [
    "alter_collection",
    "drop_alias",
    "note the aliases",
    "put_alias",
    "rename_collection",
    "store that a collection is being renamed",
];
/// Where properties of a database, or of an index, change.
const PROPERTIES: [&str; 3] = [
    "alter_database",
    "alter_index",
    "note the properties of databases",
];
/// What a repair writes.
const REPAIR: [&str; 5] = [
    "flush",
    "note whether the task has ended well",
    "replicate",
    "store F",
    "store W",
];

impl Course {
    fn new(world: World, trap: Option<Trap>) -> Self {
        if let Some(trap) = trap {
            world.gate.set(trap);
        }
        Self {
            world,
            died: false,
            passed: Default::default(),
        }
    }

    async fn stored(&self) -> TaskProgress {
        stored(&self.world).await
    }

    /// A running task is asked for something else; a later start asks for it too.
    fn change(&mut self, spec: &TaskSpec) {
        self.world.tasks = vec![spec.clone()];
        self.world.engine().change(spec.clone()).unwrap();
    }

    /// The task is deleted: by the process that is asked first, or by the next one, which does not start it.
    async fn forget(&mut self, spec: &TaskSpec) {
        self.world.tasks = Vec::new();
        for _ in 0..500 {
            let (engine, task) = (self.world.engine().clone(), spec.id.clone());
            let forgetting = tokio::spawn(async move {
                engine.stop(&task, Duration::from_secs(60)).await;
                engine.forget(&task).await
            });
            while !forgetting.is_finished() && !self.world.gate.is_dead() {
                self.world.run(20, |_| {}).await;
            }
            if forgetting.is_finished() {
                let forgotten = forgetting.await.unwrap();
                self.mind();
                forgotten.unwrap();
                return;
            }
            forgetting.abort();
            self.mind();
        }
        panic!("the task is not forgotten");
    }
}

async fn stored(world: &World) -> TaskProgress {
    world.store.load(&world.tasks[0].id).await.unwrap()
}

/// Messages that were left out long ago: as many as are kept.
async fn old_records(world: &World) {
    let task = &world.tasks[0].id;
    let record = |n: usize| {
        let record = Record {
            collection: CollectionId(1),
            database: "default".to_owned(),
            name: "old".to_owned(),
            channel: PChannel::new("old"),
            position: Position::Natsmq(1 + n as u64),
            kind: None,
            size: Some(3),
            problem: Problem::new(ErrorClass::Data, "bad", ""),
            since: 1 + n as u64,
            kept: Kept::Not("it is old".to_owned()),
            state: State::Dropped {
                by: "me".to_owned(),
                at: 1 + n as u64,
            },
        };
        Change::PutQuarantined {
            task: task.clone(),
            key: record.key(),
            record,
        }
    };
    let changes = (0..RECORDS).map(record).collect();
    world.store.commit(changes).await.unwrap();
}

/// One collection is left out and comes back, one is dropped with the last of its channel and of its metadata, one is
/// refused and taken; then the task is deleted and made anew. The process dies at `trap`.
async fn leaving(seed: u64, trap: Option<Trap>) -> Course {
    let mut world = World::new(seed, 3, 2);
    let all = with(vec![include(&["*.*"])]);
    world.tasks = vec![all.clone()];
    let (a, b) = (world.source.create("a", 1), world.source.create("b", 1));
    let alone = world.source.create("alone", 1);
    let ids = [a, b, alone];
    let channel = world.source.live[&alone].catalog.shards[0].pchannel.clone();
    old_records(&world).await;
    world.run(300, writes(&ids)).await;
    world.start();
    let mut course = Course::new(world, trap);
    course.pass(1500, &ids).await;

    course.change(&with(vec![include(&["*.*"]), exclude(&["*.b"])]));
    course
        .until("it stands apart", async |world| {
            world.status("b").is_none() && stored(world).await.notes.contains_key(&b)
        })
        .await;
    course.pass(600, &ids).await;
    course.change(&all);
    course.pass(600, &ids).await;

    course.world.source.drop_collection(alone);
    let gone = async |world: &World| {
        let objects = stored(world).await.collections;
        objects
            .get(&alone)
            .is_none_or(|o| o.phase == cdc_core::store::ObjectPhase::Dropped)
    };
    course.until("it is dropped", gone).await;
    course.pass(600, &[a, b]).await;
    course.world.source.collect_garbage(0);
    let forgotten = async |world: &World| {
        let stored = stored(world).await;
        !stored.collections.contains_key(&alone) && !stored.channels.contains_key(&channel)
    };
    course.until("it is forgotten", forgotten).await;

    course.world.target.refuse("default", "a");
    let partition = course.world.source.default_partition(a);
    course.world.source.insert(a, partition, 2, 0);
    course.world.source.flush();
    let waits = async |world: &World| {
        let records = stored(world).await.quarantine;
        records.values().any(|r| r.state == State::Waiting)
    };
    course.until("a message is refused", waits).await;
    course.world.target.accept("default", "a");
    let carried = async |world: &World| {
        let records = stored(world).await.quarantine;
        let of_a = records.values().filter(|r| r.collection == a);
        let mut states = of_a.map(|r| (&r.state, &r.kept));
        states.all(|(s, k)| matches!((s, k), (State::Carried { .. }, Kept::Not(_))))
    };
    course.until("it is taken", carried).await;
    let streams = async |world: &World| {
        let is = |s: CollectionState| matches!(s, CollectionState::Streaming { .. });
        world.status("a").is_some_and(|c| is(c.state))
    };
    course.until("it goes on", streams).await;
    assert!(course.stored().await.quarantine.len() <= RECORDS);

    let mut spec = all;
    course.forget(&spec).await;
    assert!(course.world.store.load(&spec.id).await.unwrap() == TaskProgress::default());
    spec.on_conflict = OnConflict::Adopt;
    course.world.tasks = vec![spec.clone()];
    course.world.engine().start(spec).unwrap();
    course.pass(600, &[a, b]).await;
    course.world.equal().await;
    course
}

#[test]
fn what_is_forgotten_comes_by_every_place_that_is_named() {
    seeds(1, |seed| comes_by(seed, &LEAVING, &POINTS, leaving));
}

#[test]
fn killed_before_something_is_forgotten() {
    seeds(1, |seed| die(seed, false, &LEAVING, leaving));
}

#[test]
fn killed_behind_something_is_forgotten() {
    seeds(1, |seed| die(seed, true, &LEAVING, leaving));
}

/// Rows, upserts and deletes to a target in plain mode.
async fn rows(seed: u64, trap: Option<Trap>) -> Course {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].target.mode = Mode::Plain;
    let ids = [world.source.create("a", 2), world.source.create("b", 1)];
    world.run(300, writes(&ids)).await;
    world.start();
    let mut course = Course::new(world, None);
    course.pass(1000, &ids).await;
    // In the midst of it.
    if let Some(trap) = trap {
        course.world.gate.set(trap);
    }
    for _ in 0..10 {
        for id in ids {
            let partition = course.world.source.default_partition(id);
            course.world.source.upsert(id, partition, 3);
            course.world.source.delete(id, 2);
        }
        course.pass(200, &ids).await;
    }
    course.world.equal().await;
    course
}

#[test]
fn plain_mode_comes_by_every_place_that_is_named() {
    seeds(1, |seed| comes_by(seed, &ROWS, &POINTS, rows));
}

#[test]
fn killed_before_rows_are_written() {
    seeds(3, |seed| die(seed, false, &ROWS, rows));
}

#[test]
fn killed_behind_rows_are_written() {
    seeds(3, |seed| die(seed, true, &ROWS, rows));
}

/// Two collections swap their names, one goes into a database; aliases come, move and go; properties change.
async fn names(seed: u64, trap: Option<Trap>) -> Course {
    const DEFAULT: DbId = DbId(1);
    let mut world = World::new(seed, 2, 2);
    let (a, b) = (world.source.create("a", 2), world.source.create("b", 1));
    let shop = world.source.create_database("shop");
    world.run(300, writes(&[a, b])).await;
    world.start();
    let mut course = Course::new(world, trap);
    course.pass(600, &[a, b]).await;
    course.world.source.put_alias(a, "x");
    course
        .world
        .source
        .set_properties(a, &[("collection.ttl.seconds", "60")]);
    course.pass(600, &[a, b]).await;
    course.world.source.rename(a, DEFAULT, "between");
    course.world.source.rename(b, DEFAULT, "a");
    course.world.source.rename(a, DEFAULT, "b");
    course.pass(300, &[a, b]).await;
    course.world.source.put_alias(b, "x");
    course.pass(600, &[a, b]).await;
    course.world.source.drop_alias(DEFAULT, "x");
    course.world.source.rename(b, shop, "a");
    course.pass(600, &[a, b]).await;
    course.world.equal().await;
    let properties = course.world.target.properties("default", "b").unwrap();
    let ttl = ("collection.ttl.seconds".to_owned(), "60".to_owned());
    assert_eq!(properties, [ttl]);
    course
}

#[test]
fn names_come_by_every_place_that_is_named() {
    let known: Vec<&str> = POINTS.iter().chain(&LEAVING).copied().collect();
    seeds(1, |seed| comes_by(seed, &NAMES, &known, names));
}

#[test]
fn killed_before_a_name_changes() {
    seeds(1, |seed| die(seed, false, &NAMES, names));
}

#[test]
fn killed_behind_a_name_changes() {
    seeds(1, |seed| die(seed, true, &NAMES, names));
}

/// Properties of a database, a collection and an index come, change and go.
async fn properties(seed: u64, trap: Option<Trap>) -> Course {
    const MOST: &str = "database.max.collections";
    const MMAP: &str = "mmap.enabled";
    let mut world = World::new(seed, 2, 2);
    world.target.asks_for_release();
    let shop = world.source.create_database("shop");
    let id = world.source.create_in(shop, "a", 1);
    world.source.toggle_index(id);
    world.run(300, writes(&[id])).await;
    world.start();
    let mut course = Course::new(world, trap);
    course.pass(600, &[id]).await;
    for (value, index) in [("7", &[(MMAP, "true")][..]), ("9", &[])] {
        let source = &mut course.world.source;
        source.set_database_properties(shop, &[(MOST, value), ("a", value)]);
        source.set_index_params(id, index);
        source.set_properties(id, &[(MMAP, "true")]);
        source.toggle_load(id);
        course.pass(900, &[id]).await;
    }
    course
        .world
        .source
        .set_database_properties(shop, &[(MOST, "9")]);
    course.world.source.set_properties(id, &[]);
    course.pass(900, &[id]).await;
    course.world.equal().await;
    let target = &course.world.target;
    let most = (MOST.to_owned(), "9".to_owned());
    assert_eq!(target.database_properties("shop"), [most]);
    assert_eq!(target.properties("shop", "a"), Some(Vec::new()));
    assert_eq!(target.indexes("shop", "a").unwrap()[0].params, []);
    course
}

#[test]
fn properties_come_by_every_place_that_is_named() {
    let known: Vec<&str> = POINTS.iter().chain(&NAMES).copied().collect();
    seeds(1, |seed| comes_by(seed, &PROPERTIES, &known, properties));
}

#[test]
fn killed_before_a_property_changes() {
    let points = [&PROPERTIES[..], &["alter_collection"]].concat();
    seeds(3, |seed| die(seed, false, &points, properties));
}

#[test]
fn killed_behind_a_property_changes() {
    let points = [&PROPERTIES[..], &["alter_collection"]].concat();
    seeds(3, |seed| die(seed, true, &points, properties));
}

/// Rows that are wrong on the target are copied anew by a process that does nothing else, and dies at `trap`; the next one
/// is asked for the same.
async fn repaired(seed: u64, trap: Option<Trap>) -> Course {
    let mut world = World::new(seed, 2, 2);
    let id = world.source.create("a", 2);
    let partition = world.source.default_partition(id);
    world.source.insert(id, partition, 12, 0);
    world.start();
    world.run(1000, writes(&[id])).await;
    world.equal().await;
    world.stop().await;
    spoil(&mut world, id, 6, false).await;
    world.run(400, writes(&[id])).await;
    let keys = suspects(&mut world, id, partition);
    let mut wanted = read(&mut world.source, id, partition, &keys);
    wanted.flush = true;
    let tasks = std::mem::take(&mut world.tasks);
    world.start();
    let mut course = Course::new(world, trap);
    let mut said = Ok(());
    for _ in 0..5 {
        let (engine, spec, wanted) = (
            course.world.engine().clone(),
            tasks[0].clone(),
            wanted.clone(),
        );
        let asked = tokio::spawn(async move { engine.repair(&spec, &wanted).await });
        while !asked.is_finished() && !course.world.gate.is_dead() {
            course.world.run(20, writes(&[id])).await;
        }
        if asked.is_finished() {
            said = asked.await.unwrap().map(drop);
        } else {
            asked.abort();
            said = Err(Problem::new(ErrorClass::Transient, "it has died", ""));
        }
        course.mind();
        if said.is_ok() {
            break;
        }
    }
    said.unwrap();
    for task in &tasks {
        course.world.engine().start(task.clone()).unwrap();
    }
    course.world.tasks = tasks;
    course.world.run(400, writes(&[id])).await;
    course.world.equal().await;
    course
}

#[test]
fn a_repair_comes_by_every_place_that_is_named() {
    seeds(1, |seed| comes_by(seed, &REPAIR, &[], repaired));
}

#[test]
fn killed_before_each_write_of_a_repair() {
    seeds(3, |seed| die(seed, false, &REPAIR, repaired));
}

#[test]
fn killed_behind_each_write_of_a_repair() {
    seeds(3, |seed| die(seed, true, &REPAIR, repaired));
}
