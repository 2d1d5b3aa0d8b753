//! Several collections, several tasks: none stops the others.

use std::time::Duration;

use cdc_core::ids::CollectionId;
use cdc_core::task::CollectionState;
use rand::Rng;

use super::writes;
use cdc_sim::world::{World, seeds, task, these};

/// The target refuses one of ten collections of a channel for a while.
async fn one_refused(seed: u64) {
    let mut world = World::new(seed, 1, 1);
    let ids: Vec<CollectionId> = (0..10)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    world.start();
    let time = world.rng.random_range(0..1500);
    world.run(time, writes(&ids)).await;
    world.target.refuse("default", "c3");
    for _ in 0..2 {
        world.run(1500, writes(&ids)).await;
        // A row that cannot come, whatever the others' random writes leave of it; the others' rows must pass.
        let partition = world.source.default_partition(ids[3]);
        world.source.insert(ids[3], partition, 1, 0);
        world.equal_of(|name| name != "c3").await;
        assert!(world.difference(|name| name == "c3").is_some());
        world.kill_somewhere(writes(&ids)).await;
        world.start();
    }
    world.run(1500, writes(&ids)).await;
    world.equal_of(|name| name != "c3").await;
    world
        .until("c3", |s| matches!(s, CollectionState::Failing { .. }))
        .await;
    world.target.accept("default", "c3");
    world.run(500, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn a_refused_collection_stops_no_other() {
    seeds(5, one_refused);
}

/// Two tasks to one target.
async fn two_tasks(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let names = ["a0", "a1", "b0", "b1"];
    let mut ids: Vec<CollectionId> = names.map(|name| world.source.create(name, 2)).into();
    let (a, b) = (
        task("a", these(&["a0", "a1"])),
        task("b", these(&["b0", "b1", "b2"])),
    );
    world.tasks = vec![a.clone(), b.clone()];
    world.start();
    world.run(1500, writes(&ids)).await;
    // One is paused; the other goes on, and takes up a new collection.
    let engine = world.engine().clone();
    let id = a.id.clone();
    let pausing = tokio::spawn(async move { engine.stop(&id, Duration::from_secs(30)).await });
    while !pausing.is_finished() {
        world.run(20, writes(&ids)).await;
    }
    world.tasks = vec![b.clone()];
    ids.push(world.source.create("b2", 1));
    world.run(1000, writes(&ids)).await;
    world.equal_of(|name| name.starts_with('b')).await;
    if world.rng.random_bool(0.5) {
        world.kill_somewhere(writes(&ids)).await;
        world.start();
    }
    world.engine().start(a.clone()).unwrap();
    world.tasks = vec![a.clone(), b.clone()];
    world.run(500, writes(&ids)).await;
    world.kill_somewhere(writes(&ids)).await;
    world.start();
    world.run(500, writes(&ids)).await;
    world.equal().await;
    // One is deleted; the other goes on.
    let engine = world.engine().clone();
    let deleting = tokio::spawn(async move {
        engine.stop(&a.id, Duration::from_secs(30)).await;
        engine.forget(&a.id).await.unwrap();
    });
    while !deleting.is_finished() {
        world.run(20, writes(&ids)).await;
    }
    world.tasks = vec![b];
    world.run(500, writes(&ids)).await;
    world.equal_of(|name| name.starts_with('b')).await;
    world.kill_somewhere(writes(&ids)).await;
    world.start();
    world.run(500, writes(&ids)).await;
    world.equal_of(|name| name.starts_with('b')).await;
}

#[test]
fn a_task_that_is_paused_or_deleted_stops_no_other() {
    seeds(5, two_tasks);
}
