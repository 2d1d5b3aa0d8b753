//! The target restarts and loses what it has not flushed, at any time, also while nobody watches: it gets it again, once.

use std::time::Duration;

use cdc_core::ids::CollectionId;
use cdc_core::target::memory::Weather;
use rand::Rng;

use crate::writes;
use cdc_sim::world::{World, seeds};

async fn target_restarts(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    world.tasks[0].durable_every = Duration::from_millis(world.rng.random_range(1000..4000));
    let mut ids: Vec<CollectionId> = (0..5)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 3))
        .collect();
    if world.rng.random_bool(0.5) {
        world.target.set_weather(Weather {
            lost: 0.02,
            late: 0.01,
            late_by: Duration::from_millis(900),
            unreachable: 0.02,
            ..Weather::default()
        });
    }
    world.start();
    for round in 0..8 {
        let time = world.rng.random_range(0..12_000);
        world.run(time, writes(&ids)).await;
        match world.rng.random_range(0..5) {
            0 => ids.push(world.source.create(&format!("late{round}"), 2)),
            1 if ids.len() > 2 => {
                let gone = ids.swap_remove(world.rng.random_range(0..ids.len()));
                world.source.drop_collection(gone);
            }
            _ => {}
        }
        match world.rng.random_range(0..4) {
            // While it runs, and is killed before it has seen it, or while it goes back.
            0 => {
                world.target.restart_losing();
                let time = world.rng.random_range(0..11_000);
                world.run(time, writes(&ids)).await;
                world.kill_somewhere(writes(&ids)).await;
                world.start();
            }
            1 => {
                world.kill_somewhere(writes(&ids)).await;
                world.target.restart_losing();
                world.start();
            }
            2 => {
                // A stop in time is not what this is about.
                world.target.set_weather(Weather::default());
                world.stop().await;
                world.run(300, writes(&ids)).await;
                world.target.restart_losing();
                world.start();
            }
            _ => world.target.restart_losing(),
        }
    }
    world.target.set_weather(Weather::default());
    // Seen, if the last one was not.
    world.run(15_000, writes(&ids)).await;
    world.equal().await;
    // What is flushed is known to be: a restart now loses nothing, and little is sent again.
    world.run(100_000, |_| {}).await;
    let status = world.engine().status(&world.tasks[0].id).unwrap();
    for (c, (channel, at)) in status
        .collections
        .iter()
        .flat_map(|c| c.positions.iter().map(move |p| (&c.name, p)))
    {
        let behind = at.durable.unwrap().behind(at.applied);
        assert!(
            behind < Duration::from_secs(30),
            "{c} on {channel}: {behind:?} are not flushed, {:?}",
            status.problems
        );
    }
    let before = world.target.written();
    world.target.restart_losing();
    world.run(15_000, |_| {}).await;
    world.equal().await;
    let after = world.target.written();
    assert_eq!(before.inserts, after.inserts, "nothing was in doubt");
}

#[test]
fn a_target_that_loses_what_it_has_not_flushed_gets_it_again() {
    seeds(6, target_restarts);
}

/// A node that the target does not name for a moment is not gone; one that it does not name any more is.
async fn a_node_is_left_out(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let ids: Vec<CollectionId> = (0..3)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i))
        .collect();
    world.start();
    world.run(2_000, writes(&ids)).await;
    world.equal().await;
    world.run(2_000, |_| {}).await;
    let before = world.target.written();
    for _ in 0..3 {
        world.kill();
        world.target.leave_out_a_node(true);
        world.start();
        let silent = world.rng.random_range(1_000..50_000);
        world.run(silent, |_| {}).await;
        world.target.leave_out_a_node(false);
        world.run(11_000, |_| {}).await;
    }
    world.equal().await;
    let after = world.target.written();
    assert_eq!(before.inserts, after.inserts, "it has not restarted");
    world.kill();
    world.target.leave_out_a_node(true);
    world.start();
    world.run(70_000, |_| {}).await;
    let again = world.target.written();
    assert!(again.inserts > after.inserts, "nothing was sent again");
    world.run(20_000, |_| {}).await;
    assert_eq!(again.inserts, world.target.written().inserts, "once");
    world.equal().await;
}

#[test]
fn a_node_that_is_left_out_for_a_moment_is_not_gone() {
    seeds(3, a_node_is_left_out);
}
