//! What the simulation found, each made small.

use cdc_sim::gate::{Kind, Trap};
use cdc_sim::world::{World, seeds};

/// The reader of a channel with nothing under way ends at once. It must not hold the ticks that the drop on the others
/// still needs.
#[test]
fn a_stop_right_behind_a_drop_does_not_wait_for_its_deadline() {
    seeds(4, |seed| async move {
        let mut world = World::new(seed, 3, 3);
        let dropped = world.source.create("dropped", 2);
        world.source.create("stays", 3);
        world.start();
        world.run(400, |_| {}).await;
        world.source.drop_collection(dropped);
        world.stop().await;
        world.assert_clean().await;
        world.start();
        world.equal().await;
    });
}

/// It is noted before it is made, so that what was made is not forgotten; what is only noted is made after the start.
#[test]
fn an_empty_database_is_made_though_a_crash_kept_it_from_being_made() {
    seeds(3, |seed| async move {
        let mut world = World::new(seed, 1, 1);
        world.source.create("c", 1);
        world.start();
        world.run(1000, |_| {}).await;
        world.gate.set(Trap {
            kind: Kind::Ddl,
            after: 1,
            behind: false,
        });
        world.source.create_database("d");
        world.run(1000, |_| {}).await;
        assert!(world.gate.is_dead(), "it was not about to be made");
        world.kill();
        world.start();
        for _ in 0..100 {
            if world.target.databases().iter().any(|d| d == "d") {
                return;
            }
            world.run(100, |_| {}).await;
        }
        panic!("the database is never made");
    });
}
