//! How a collection that goes by itself comes to its channel's reader.

use std::time::Duration;

use cdc_core::ids::CollectionId;
use cdc_core::task::CollectionState;
use cdc_sim::source::Source;
use cdc_sim::world::{World, seeds};
use rand::Rng;

/// As a load does that does not pause: of each collection something is on its way at every tick.
const JOINED_WITHIN: u64 = 20_000;

/// Collections that are new while their channels are read, with rows in every step from their first moment on; right
/// behind the join the process is killed or stopped, or a channel falls silent.
async fn without_a_pause(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let old = world.source.create("old", 2);
    world.start();
    let mut ids = vec![old];
    // How often the others are written to: rarely, and all that their reader holds for is what it has taken over.
    let then = world.rng.random_range(0..4);
    let others = if world.rng.random() { 1.0 } else { 0.02 };
    let load = |ids: &[CollectionId], source: &mut Source| {
        for (n, id) in ids.iter().enumerate() {
            if n + 1 < ids.len() && !source.rng.random_bool(others) {
                continue;
            }
            for _ in 0..2 {
                let partition = source.default_partition(*id);
                let rows = source.rng.random_range(1..4);
                source.upsert(*id, partition, rows);
            }
            if source.rng.random_bool(0.2) {
                source.delete(*id, 1);
            }
        }
    };
    world.run(500, |source| load(&ids, source)).await;
    for round in 0..5 {
        let name = format!("c{round}");
        ids.push(world.source.create(&name, 1 + round % 3));
        let mut waited = 0;
        loop {
            let status = world.status(&name).map(|c| c.state);
            if matches!(
                status,
                Some(CollectionState::Streaming { raised: false, .. })
            ) {
                break;
            }
            assert!(waited < JOINED_WITHIN, "{name}: {status:?}");
            world.run(20, |source| load(&ids, source)).await;
            waited += 20;
        }
        match then {
            0 => world.kill_somewhere(|source| load(&ids, source)).await,
            1 => world.stop().await,
            2 => {
                // The others' ticks go on meanwhile.
                let shards = &world.source.live[&ids[ids.len() - 1]].catalog.shards;
                let channel = shards[0].pchannel.clone();
                world.source.slow_down(&channel, 8_000, 20);
                world.run(8_000, |source| load(&ids, source)).await;
            }
            _ => {}
        }
        if !world.is_running() {
            world.start();
        }
    }
    world.run(500, |source| load(&ids, source)).await;
    world.equal().await;
}

#[test]
fn a_collection_joins_though_its_rows_do_not_pause() {
    seeds(6, without_a_pause);
}

/// A channel's reader begins at a collection that was made later than another one, for which the target took longer, and
/// between the halves of an upsert of that one. That one catches up, and the process is killed before or behind its join.
async fn between_two_halves(seed: u64) {
    let mut world = World::new(seed, 2, 1);
    world.start();
    // On the other channel: the lane is there, and has ticks.
    world.source.create("e", 1);
    world.run(2_000, |_| {}).await;
    let slow = Duration::from_millis(world.rng.random_range(50..300));
    world.target.delay_call("CreateCollection", slow);
    let c = world.source.create("c", 1);
    let partition = world.source.default_partition(c);
    while !world.target.has_delayed() {
        world.run(20, |_| {}).await;
    }
    let time = world.rng.random_range(0..200);
    world.run(time, |_| {}).await;
    world.source.holds_last = true;
    while !world.source.is_in_between() {
        world.source.upsert(c, partition, 1);
        world.step_source();
    }
    world.source.create("x", 1);
    world.source.create("d", 1);
    let time = world.rng.random_range(500..2_000);
    world.run(time, |_| {}).await;
    world.source.holds_last = false;
    let time = world.rng.random_range(0..200);
    world.run(time, |_| {}).await;
    world.kill();
    world.start();
    world.source.upsert(c, partition, 1);
    world.run(200, |_| {}).await;
    world.equal().await;
}

#[test]
fn a_collection_joins_a_reader_that_has_both_halves_of_its_upserts() {
    seeds(250, between_two_halves);
}
