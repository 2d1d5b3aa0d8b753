//! A start after a kill: the calls of the process before may still arrive, so ticks wait until they cannot. Rows do not.

use std::time::Duration;

use cdc_core::ids::CollectionId;
use rand::Rng;

use crate::writes;
use cdc_sim::world::{World, seeds};

/// From a start to the first row that the target has acknowledged, in milliseconds: well before the calls of the process
/// before have ended for sure (5.3 s), for which only ticks wait.
const FIRST_ROW_WITHIN: u64 = 1_000;

/// Kills at any moment, with drops under way: at each start rows are acknowledged at once, those of a collection that was
/// new last as well.
async fn first_rows(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    // As a real one: what may still arrive keeps ticks back for longer than a row may take.
    world.tasks[0].target.call_timeout = Duration::from_secs(5);
    let mut ids: Vec<CollectionId> = (0..6)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 3))
        .collect();
    world.start();
    world.run(1_000, writes(&ids)).await;
    for round in 0..8 {
        let time = world.rng.random_range(0..1_000);
        world.run(time, writes(&ids)).await;
        // Dropped right before the kill, or while nobody looks.
        let drops_first = world.rng.random();
        let gone = ids.swap_remove(world.rng.random_range(0..ids.len()));
        if drops_first {
            world.source.drop_collection(gone);
            let time = world.rng.random_range(0..100);
            world.run(time, writes(&ids)).await;
        }
        world.kill_somewhere(writes(&ids)).await;
        if !drops_first {
            world.source.drop_collection(gone);
        }
        if world.rng.random() {
            world.source.catalog.remove_collection(gone);
        }
        ids.push(world.source.create(&format!("d{round}"), 1 + round % 3));
        world.start();
        let mut waited = 0;
        let task = world.tasks[0].id.clone();
        while world.engine().status(&task).unwrap().counters.rows_out == 0 {
            assert!(
                waited < FIRST_ROW_WITHIN,
                "start {round}: no row within {waited} ms: {:#?}",
                world.engine().status(&task)
            );
            world.run(20, writes(&ids)).await;
            waited += 20;
        }
    }
    world.run(1_000, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn rows_go_on_at_once_after_a_kill_whatever_is_being_dropped() {
    seeds(6, first_rows);
}
