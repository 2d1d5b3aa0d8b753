//! What people do to collections and databases that is easy to get wrong: names that come again, names that change, one
//! name in two databases, many at once, while nobody looks, and on the target itself.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::catalog::{Database, ObjectState};
use cdc_core::ids::{CollectionId, DbId, PartitionId};
use cdc_core::store::{ObjectPhase, ProgressStore};
use cdc_core::target::{Target, TargetConnector};
use cdc_core::task::{Choice, CollectionState, CollectionStatus, OnConflict};
use rand::Rng;

use crate::writes;
use cdc_sim::world::{World, seeds};

/// A person at the target.
async fn target(world: &World) -> Arc<dyn Target> {
    let spec = &world.tasks[0].target;
    world.target.connect(spec).await.unwrap()
}

/// Waits until `is`, in the world's time.
async fn until(world: &mut World, what: &str, mut is: impl AsyncFnMut(&World) -> bool) {
    for _ in 0..cdc_sim::world::PATIENCE / 100 {
        if is(world).await {
            return;
        }
        world.run(100, |_| {}).await;
    }
    panic!("{what}: {:?}", world.engine().status(&world.tasks[0].id));
}

/// Some are created and dropped within 50 ms, some never seen by the watch while they live, with rows and kills.
async fn brief(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let other = world.source.create("other", 2);
    world.start();
    world.run(500, writes(&[other])).await;
    for round in 0..20 {
        let shards = world.rng.random_range(1..4);
        // One name again and again, and a new one.
        let name = match round % 2 {
            0 => "again".to_owned(),
            _ => format!("once{round}"),
        };
        let id = world.source.create(&name, shards);
        let lives = world.rng.random_range(0..50);
        world.run(lives, writes(&[id, other])).await;
        world.source.drop_collection(id);
        let gap = world.rng.random_range(0..200);
        world.run(gap, writes(&[other])).await;
        if round % 5 == 4 {
            world.kill_somewhere(writes(&[other])).await;
            world.start();
        }
    }
    world.equal().await;
    let names = world.target.names();
    assert_eq!(names, [("default".to_owned(), "other".to_owned())]);
}

#[test]
fn created_and_dropped_within_fifty_milliseconds() {
    seeds(4, brief);
}

/// Twenty times, and each time the name is free at once.
async fn twenty_times(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let other = world.source.create("other", 2);
    world.start();
    world.run(500, writes(&[other])).await;
    let mut id = world.source.create("again", 2);
    for round in 0..20 {
        let lives = world.rng.random_range(0..300);
        world.run(lives, writes(&[id, other])).await;
        world.source.drop_collection(id);
        // No time passes in between.
        id = world.source.create("again", 1 + round % 3);
    }
    world.run(500, writes(&[id, other])).await;
    world.equal().await;
    // Of those that were, nothing is shown any more once the source has forgotten them.
    let dropped: Vec<CollectionId> = {
        let view = world.source.catalog.view();
        let gone = view.collections.values();
        let gone = gone.filter(|c| c.state == ObjectState::Dropping);
        gone.map(|c| c.id).collect()
    };
    assert_eq!(dropped.len(), 20);
    for id in dropped {
        world.source.catalog.remove_collection(id);
    }
    until(&mut world, "they are forgotten", async |world| {
        let status = world.engine().status(&world.tasks[0].id).unwrap();
        status.collections.len() == 2
    })
    .await;
}

#[test]
fn one_name_twenty_times_without_a_pause() {
    seeds(3, twenty_times);
}

fn database(world: &World, id: i64, name: &str) -> DbId {
    let id = DbId(id);
    world.source.catalog.put_database(Database {
        id,
        name: name.to_owned(),
        properties: Vec::new(),
    });
    id
}

/// As if created in that database: nobody has looked since.
fn create_in(world: &mut World, db: DbId, name: &str, shards: usize) -> CollectionId {
    let id = world.source.create(name, shards);
    let mut catalog = world.source.live[&id].catalog.clone();
    catalog.db = db;
    world.source.catalog.put_collection(catalog.clone());
    world.source.live.get_mut(&id).unwrap().catalog = catalog;
    id
}

async fn same_rows(world: &mut World, of: &[(&str, &str, CollectionId)]) {
    world.source.flush();
    for (database, name, id) in of {
        until(world, &format!("{database}.{name}"), async |world| {
            world.target.rows(database, name) == Some(world.source.expected(*id))
        })
        .await;
    }
    world.nothing_forbidden();
}

/// One name in two databases is two collections; a database goes with everything in it, and comes again.
async fn databases(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let one = world.source.create("twin", 2);
    let shop = database(&world, 2, "shop");
    let two = create_in(&mut world, shop, "twin", 1);
    world.start();
    world.run(1000, writes(&[one, two])).await;
    same_rows(
        &mut world,
        &[("default", "twin", one), ("shop", "twin", two)],
    )
    .await;
    assert_ne!(world.source.expected(one), world.source.expected(two));
    for round in 0..3 {
        // Dropping one leaves the other.
        let more: Vec<_> = (0..5)
            .map(|i| create_in(&mut world, DbId(2 + round), &format!("more{i}"), 1 + i % 3))
            .collect();
        let all: Vec<_> = more.iter().copied().chain([one]).collect();
        let time = world.rng.random_range(0..600);
        world.run(time, writes(&all)).await;
        // All of it, at once: its collections, and the database behind them.
        let view = world.source.catalog.view();
        let here = view
            .collections
            .values()
            .filter(|c| c.db == DbId(2 + round));
        let here: Vec<_> = here.map(|c| c.id).chain(more).collect();
        for id in here {
            world.source.drop_collection(id);
        }
        world.source.catalog.remove_database(DbId(2 + round));
        if round == 1 {
            world.kill_somewhere(writes(&[one])).await;
            world.start();
        }
        if round < 2 {
            // The name again, at once.
            database(&world, 3 + round, "shop");
            let twin = create_in(&mut world, DbId(3 + round), "twin", 1);
            world.run(500, writes(&[one, twin])).await;
            same_rows(
                &mut world,
                &[("default", "twin", one), ("shop", "twin", twin)],
            )
            .await;
            until(&mut world, "only the new one is there", async |world| {
                let names = world.target.names();
                names.iter().filter(|(db, _)| db == "shop").count() == 1
            })
            .await;
        }
    }
    let there = target(&world).await;
    until(&mut world, "the database is gone", async |_| {
        there.databases().await.unwrap() == ["default"]
    })
    .await;
    same_rows(&mut world, &[("default", "twin", one)]).await;
    assert_eq!(world.target.names().len(), 1);
}

#[test]
fn one_name_in_two_databases_and_a_database_that_goes_with_all_in_it() {
    seeds(4, databases);
}

/// Created, dropped, both, and the other way round, while the task is paused.
async fn while_paused(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let kept = world.source.create("kept", 2);
    let gone = world.source.create("gone", 2);
    let again = world.source.create("again", 1);
    let shop = database(&world, 2, "shop");
    let sold = create_in(&mut world, shop, "sold", 1);
    world.start();
    world.run(1000, writes(&[kept, gone, again, sold])).await;
    same_rows(&mut world, &[("shop", "sold", sold)]).await;
    world.equal_of(|name| name != "sold").await;
    world.stop().await;
    world.run(300, writes(&[kept, gone, again])).await;
    world.source.drop_collection(gone);
    world.source.drop_collection(again);
    world.source.drop_collection(sold);
    world.source.catalog.remove_database(shop);
    let new = world.source.create("new", 3);
    let again = world.source.create("again", 3);
    let brief = world.source.create("brief", 1);
    world.run(500, writes(&[kept, new, again, brief])).await;
    world.source.drop_collection(brief);
    if world.rng.random_bool(0.5) {
        // Long ago: the source's garbage collection has been there too.
        for id in [gone, sold, brief] {
            world.source.catalog.remove_collection(id);
        }
    }
    world.run(300, writes(&[kept, new, again])).await;
    world.start();
    world.run(500, writes(&[kept, new, again])).await;
    world.equal().await;
    let there = target(&world).await;
    until(&mut world, "the database is gone", async |_| {
        there.databases().await.unwrap() == ["default"]
    })
    .await;
    assert_eq!(world.target.names().len(), 3);
}

#[test]
fn created_and_dropped_while_the_task_is_paused() {
    seeds(6, while_paused);
}

/// Two hundred at once, and most of them gone at once.
async fn many(seed: u64) {
    let mut world = World::new(seed, 8, 4);
    let other = world.source.create("other", 2);
    world.start();
    world.run(500, writes(&[other])).await;
    let ids: Vec<_> = (0..200)
        .map(|i| world.source.create(&format!("many{i}"), 1 + i % 2))
        .collect();
    for id in &ids {
        let partition = world.source.default_partition(*id);
        world.source.insert(*id, partition, 3, 0);
    }
    world.run(1000, writes(&[other])).await;
    world.equal().await;
    for id in &ids[..190] {
        world.source.drop_collection(*id);
    }
    world.run(500, writes(&ids[190..])).await;
    world.equal().await;
    assert_eq!(world.target.names().len(), 11);
}

#[test]
fn two_hundred_collections_at_once() {
    seeds(1, many);
}

/// Someone drops collections on the target: with rows that come and without, and one that is made again there. Each
/// waits for a person and says what there is to do; the others go on; the answer copies what the queue still holds.
async fn dropped_on_the_target(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let names = ["busy", "quiet", "replaced", "other"];
    let ids = names.map(|name| world.source.create(name, 2));
    let [busy, quiet, replaced, other] = ids;
    world.start();
    world.run(1500, writes(&ids)).await;
    world.equal().await;
    let there = target(&world).await;
    let now = there.now().await.unwrap();
    for name in ["busy", "quiet", "replaced"] {
        there.drop_collection("default", name, now).await.unwrap();
    }
    let mut like = world.source.live[&replaced].catalog.clone();
    like.shards.truncate(1);
    there
        .create_collection("default", &like, now)
        .await
        .unwrap();
    let conflict = |s: &CollectionState| matches!(s, CollectionState::Conflict { .. });
    // The target has one of that name: told at the next row.
    world.run(3000, writes(&[busy, replaced, other])).await;
    for name in ["busy", "quiet", "replaced"] {
        let CollectionState::Conflict { problem, choices } = world.until(name, conflict).await
        else {
            unreachable!()
        };
        assert!(
            problem.message.contains("no longer on the target"),
            "{problem}"
        );
        assert!(problem.hint.contains("recreate"), "{problem}");
        assert!(choices.contains(&"recreate".to_owned()));
    }
    // It waits, and does not try.
    let calls = world.target.written().calls;
    let errors = world.engine().status(&world.tasks[0].id).unwrap().errors;
    world.run(60_000, |_| {}).await;
    let status = world.engine().status(&world.tasks[0].id).unwrap();
    assert_eq!(status.errors, errors);
    println!("{} calls in a minute", world.target.written().calls - calls);
    world.equal_of(|name| name == "other").await;
    for kill in [true, false] {
        if kill {
            world.kill_somewhere(writes(&[other])).await;
        } else {
            world.stop().await;
        }
        world.start();
        for name in ["busy", "quiet", "replaced"] {
            world.until(name, conflict).await;
        }
    }
    let task = world.tasks[0].id.clone();
    let engine = world.engine().clone();
    for name in ["busy", "quiet", "replaced"] {
        let choice = Choice::Conflict(OnConflict::Recreate);
        let answer = engine.choose(&task, "default", name, choice).await;
        answer.unwrap();
    }
    world.run(1000, writes(&[busy, quiet, other])).await;
    // Nothing was purged: all of it comes back.
    world.equal().await;
    let streaming = |s: &CollectionState| matches!(s, CollectionState::Streaming { .. });
    for name in names {
        world.until(name, streaming).await;
    }
}

#[test]
fn what_someone_drops_on_the_target_waits_for_a_person() {
    seeds(4, dropped_on_the_target);
}

/// While the task stands still a person drops what it has made and makes something else of that name, and the source drops
/// its own: what the person has made stays.
async fn another_of_the_name(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let (a, other) = (world.source.create("a", 1), world.source.create("other", 1));
    world.start();
    world.run(1000, writes(&[a, other])).await;
    world.equal().await;
    world.stop().await;
    let made = world.source.live[&a].catalog.clone();
    let person = target(&world).await;
    let now = person.now().await.unwrap();
    person.drop_collection("default", "a", now).await.unwrap();
    person
        .create_collection("default", &made, now)
        .await
        .unwrap();
    let theirs = person.describe("default", "a").await.unwrap().unwrap().id;
    world.source.drop_collection(a);
    world.start();
    let task = world.tasks[0].id.clone();
    until(&mut world, "its drop is done", async |world| {
        let stored = world.store.load(&task).await.unwrap();
        let object = stored.collections.get(&a);
        object.is_none_or(|o| o.phase == ObjectPhase::Dropped)
    })
    .await;
    let found = person.describe("default", "a").await.unwrap();
    assert_eq!(found.map(|c| c.id), Some(theirs), "{}", world.report());
    world.run(500, writes(&[other])).await;
    world.equal_of(|name| name == "other").await;
}

#[test]
fn what_a_person_has_made_of_a_dropped_ones_name_stays() {
    seeds(2, another_of_the_name);
}

/// The same of a partition.
async fn another_partition_of_the_name(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let a = world.source.create("a", 1);
    let part = world.source.create_partition(a, "part");
    world.source.insert(a, part, 5, 0);
    world.start();
    world.run(1000, writes(&[a])).await;
    world.equal().await;
    world.stop().await;
    let person = target(&world).await;
    let now = person.now().await.unwrap();
    person
        .drop_partition("default", "a", "part", now)
        .await
        .unwrap();
    person
        .create_partition("default", "a", "part", now)
        .await
        .unwrap();
    let theirs = |there: Vec<(String, PartitionId)>| {
        let mut there = there.into_iter();
        there.find(|(name, _)| name == "part").map(|(_, id)| id)
    };
    let made = theirs(person.partitions("default", "a").await.unwrap());
    assert!(made.is_some());
    world.source.drop_partition(a, part);
    world.start();
    let task = world.tasks[0].id.clone();
    until(&mut world, "its drop is done", async |world| {
        let stored = world.store.load(&task).await.unwrap();
        let object = stored.partitions.get(&part);
        object.is_none_or(|o| o.phase == ObjectPhase::Dropped)
    })
    .await;
    let found = theirs(person.partitions("default", "a").await.unwrap());
    assert_eq!(found, made, "{}", world.report());
}

#[test]
fn what_a_person_has_made_of_a_dropped_partitions_name_stays() {
    seeds(2, another_partition_of_the_name);
}

/// A collection that goes by itself is dropped while the target does not answer: its drop waits for a tick, and nothing
/// else may wait for that.
async fn dropped_without_a_tick(seed: u64) {
    let mut world = World::new(seed, 1, 1);
    let ids = ["a", "b"].map(|name| world.source.create(name, 1));
    let [a, b] = ids;
    world.tasks[0].durable_every = Duration::from_secs(2);
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    world.target.refuse("default", "a");
    world.run(3000, writes(&ids)).await;
    let partition = world.source.default_partition(a);
    world.source.insert(a, partition, 3, 0);
    world.source.flush();
    world.run(60_000, writes(&[b])).await;
    until(&mut world, "a is refused", async |world| {
        let state = world.status("a").map(|a| a.state);
        state.is_some_and(|s| !matches!(s, CollectionState::Streaming { .. }))
    })
    .await;
    world.target.set_latency(Duration::from_millis(100));
    world.target.accept("default", "a");
    let streams = |a: CollectionStatus| matches!(a.state, CollectionState::Streaming { .. });
    while !world.status("a").is_some_and(streams) {
        world.run(20, writes(&[b])).await;
    }
    // It reads all of its backlog, and cannot join the others: nothing of it is acknowledged.
    world.target.hang();
    world.run(1000, writes(&[b])).await;
    world.source.drop_collection(a);
    world.run(30_000, writes(&[b])).await;
    let (engine, task) = (world.engine().clone(), world.tasks[0].id.clone());
    let asked = engine.choose(&task, "default", "b", Choice::Skip);
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    assert!(
        answer.is_ok(),
        "no answer while a drop waits for a tick: {}",
        world.report()
    );
    world.target.set_latency(Duration::ZERO);
    world.target.release();
    world.equal().await;
    assert_eq!(
        world.target.names(),
        [("default".to_owned(), "b".to_owned())]
    );
}

#[test]
fn a_drop_that_waits_for_a_tick_keeps_nobody_waiting() {
    seeds(4, dropped_without_a_tick);
}
