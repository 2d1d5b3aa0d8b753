//! Bounded memory.

use std::time::Instant;

use cdc_sim::source::Source;
use cdc_sim::world::{World, seeds};

const MIB: usize = 1 << 20;
/// The largest message: 8 rows of 64 KiB. One larger than a reader's reserve may go over the budget.
const MESSAGE: usize = 8 * (64 << 10) + (4 << 10);

/// Sixteen channels with a budget of 4 MiB, one of them a minute behind, and one pack of 100 MiB.
async fn backlog(seed: u64) {
    let began = Instant::now();
    let mut world = World::new(seed, 16, 16);
    world.tasks[0].memory_budget = 4 * MIB;
    let ids: Vec<_> = (0..16)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    let write = |source: &mut Source, rows: usize| {
        for id in &ids {
            let partition = source.default_partition(*id);
            source.insert(*id, partition, rows, 1000);
        }
    };
    // A minute of time passes at the source before anything is read.
    for _ in 0..60 {
        write(&mut world.source, 2);
        world.source.step(1000);
    }
    // 100 MiB between two ticks, on one channel.
    let partition = world.source.default_partition(ids[5]);
    for _ in 0..200 {
        world.source.insert(ids[5], partition, 8, 64 << 10);
    }
    world.source.flush();
    world.source.tick();
    world.start();
    let mut peak = 0;
    let task = world.tasks[0].id.clone();
    for round in 0..2000 {
        if round % 20 == 0 {
            write(&mut world.source, 1);
        }
        world.run(20, |_| {}).await;
        let status = world.engine().status(&task);
        peak = peak.max(status.map_or(0, |s| s.counters.in_flight_bytes));
        if round > 100 && round % 50 == 10 && world.difference(|_| true).is_none() {
            break;
        }
    }
    world.equal().await;
    println!(
        "peak in flight {:.1} MiB of a budget of 4 MiB, {:?}",
        peak as f64 / MIB as f64,
        began.elapsed()
    );
    assert!(peak as usize <= 4 * MIB + MESSAGE);
}

#[test]
fn a_large_pack_and_a_backlog_pass_a_small_budget() {
    seeds(1, backlog);
}

/// A collection that could not go on for a minute, while its lane did, has a pack of 100 MiB to catch up with: its
/// times have to be raised, all of them at once, without its messages being in memory at once.
async fn raised(seed: u64) {
    let mut world = World::new(seed, 16, 4);
    world.tasks[0].memory_budget = 4 * MIB;
    let ids: Vec<_> = (0..16)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    let write = |source: &mut Source| {
        for id in &ids {
            let partition = source.default_partition(*id);
            source.insert(*id, partition, 1, 1000);
        }
    };
    world.start();
    world.run(500, write).await;
    world.equal().await;
    world.target.refuse("default", "c5");
    let mut peak = 0;
    let task = world.tasks[0].id.clone();
    for round in 0..6000 {
        if round % 20 == 0 {
            write(&mut world.source);
        }
        if round == 100 {
            let partition = world.source.default_partition(ids[5]);
            for n in 0..200 {
                world.source.insert(ids[5], partition, 8, 64 << 10);
                if n % 40 == 0 {
                    world.source.upsert(ids[5], partition, 20);
                    world.source.delete(ids[5], 3);
                }
            }
        }
        if round == 3100 {
            world.target.accept("default", "c5");
        }
        world.run(20, |_| {}).await;
        let status = world.engine().status(&task);
        peak = peak.max(status.map_or(0, |s| s.counters.in_flight_bytes));
        if round > 3200 && round % 50 == 10 && world.difference(|_| true).is_none() {
            break;
        }
    }
    world.equal().await;
    println!(
        "peak in flight {:.1} MiB of a budget of 4 MiB",
        peak as f64 / MIB as f64
    );
    assert!(peak as usize <= 4 * MIB + MESSAGE);
}

#[test]
fn a_large_pack_is_raised_within_a_small_budget() {
    seeds(2, raised);
}
