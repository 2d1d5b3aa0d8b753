//! Nothing stays behind: tasks of the runtime, connections of readers, records in the store.

use std::time::Duration;

use cdc_core::store::{ProgressStore, TaskProgress};
use cdc_core::task::CollectionState;
use rand::Rng;
use tokio::runtime::Handle;

use crate::world::{World, seeds};
use crate::writes;

fn alive() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

async fn stored(world: &World) -> TaskProgress {
    world.store.load(&world.tasks[0].id).await.unwrap()
}

/// How much of each kind is stored.
async fn records(world: &World) -> [usize; 6] {
    let stored = stored(world).await;
    [
        stored.channels.len(),
        stored.detached.len(),
        stored.collections.len(),
        stored.partitions.len(),
        stored
            .notes
            .values()
            .filter(|note| !note.is_empty())
            .count(),
        stored.quarantine.len(),
    ]
}

/// Waits until no more tasks are alive than there were: what winds down takes a moment.
async fn settled(world: &mut World, most: usize) {
    for _ in 0..300 {
        if alive() <= most {
            return;
        }
        world.run(100, |_| {}).await;
    }
    panic!("{} tasks are alive, {most} were at the start", alive());
}

/// A thousand times: paused and resumed, half of them before anything was read, some while something is stuck.
async fn pauses(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let ids: Vec<_> = (0..4)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 3))
        .collect();
    world.start();
    let engine = world.engine().clone();
    let task = world.tasks[0].clone();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    world.run(3000, |_| {}).await;
    let (before, kept) = (alive(), records(&world).await);
    for round in 0..1000 {
        let stuck = round % 50 == 49;
        if stuck {
            world.target.hang();
        }
        let (stopping, id) = (engine.clone(), task.id.clone());
        let deadline = Duration::from_millis(if stuck { 300 } else { 5000 });
        let stop = tokio::spawn(async move { stopping.stop(&id, deadline).await });
        while !stop.is_finished() {
            world.run(20, |_| {}).await;
        }
        if stuck {
            world.target.release();
        }
        engine.start(task.clone()).unwrap();
        let time = world.rng.random_range(0..60);
        world.run(time, writes(&ids)).await;
    }
    world.equal().await;
    world.run(3000, |_| {}).await;
    settled(&mut world, before).await;
    assert_eq!(records(&world).await, kept);
    world.stop().await;
    // The late call of a twin, at most.
    settled(&mut world, 1).await;
}

#[test]
fn a_thousand_pauses_leave_nothing_behind() {
    seeds(1, pauses);
}

/// A thousand collections come and go, with partitions, indexes that cannot be made, and messages that cannot be read.
async fn collections(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let other = world.source.create("other", 2);
    world.start();
    world.run(1000, writes(&[other])).await;
    world.equal().await;
    world.run(3000, |_| {}).await;
    let (before, kept) = (alive(), records(&world).await);
    for round in 0..100 {
        let ids: Vec<_> = (0..10)
            .map(|i| {
                let shards = world.rng.random_range(1..4);
                world.source.create(&format!("r{round}c{i}"), shards)
            })
            .collect();
        let partition = world.source.create_partition(ids[0], "p");
        let time = world.rng.random_range(0..300);
        world.run(time, writes(&ids)).await;
        world.source.insert(ids[0], partition, 3, 0);
        if round % 10 == 0 {
            world.source.flush();
            let shard = world.source.live[&ids[1]].catalog.shards[0].clone();
            let bad = crate::choices::truncated(&mut world.source, ids[1]);
            world.source.raw(&shard.pchannel, bad);
            let name = format!("r{round}c1");
            let quarantined =
                |s: &CollectionState| matches!(s, CollectionState::Quarantined { .. });
            world.until(&name, quarantined).await;
        }
        for id in &ids {
            world.source.drop_collection(*id);
        }
        world.run(100, writes(&[other])).await;
        world.equal().await;
        // The source's garbage collection.
        for id in ids {
            world.source.catalog.remove_collection(id);
        }
    }
    world.run(3000, |_| {}).await;
    settled(&mut world, before).await;
    let status = world.engine().status(&world.tasks[0].id).unwrap();
    assert_eq!(status.collections.len(), 1, "{status:?}");
    // Messages that are settled are kept for people, within bounds of their own.
    let (mut now, mut was) = (records(&world).await, kept);
    (now[5], was[5]) = (0, 0);
    assert_eq!(now, was, "{:?}", stored(&world).await);
}

#[test]
fn a_thousand_collections_leave_nothing_behind() {
    seeds(1, collections);
}
