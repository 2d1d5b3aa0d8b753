//! A target that is an ordinary Milvus.

use std::time::Duration;

use cdc_core::target::memory::Weather;
use cdc_core::task::Mode;
use cdc_sim::retries::Retries;
use cdc_sim::source::Source;
use cdc_sim::world::{World, seeds};
use rand::Rng;

use super::writes;

const MIB: usize = 1 << 20;

fn world(seed: u64, source: usize) -> World {
    let mut world = World::new(seed, source, 2);
    world.tasks[0].target.mode = Mode::Plain;
    world
}

/// Rows flow into collections that share channels, one of them comes and goes, and the engine is killed again and again.
async fn kills(seed: u64, weather: Weather) {
    let mut world = world(seed, 3);
    world.source.retries = Retries::new(0.1, seed);
    let mut ids: Vec<_> = (0..5)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 3))
        .collect();
    let mut again = world.source.create("again", 1);
    ids.push(again);
    world.target.set_weather(weather);
    world.start();
    for round in 0..12 {
        let time = world.rng.random_range(0..2500);
        world.run(time, writes(&ids)).await;
        if round % 3 == 1 {
            world.source.drop_collection(again);
            again = world.source.create("again", 1 + round % 4);
            ids.pop();
            ids.push(again);
        }
        world.kill_somewhere(writes(&ids)).await;
        let down = world.rng.random_range(0..400);
        world.run(down, writes(&ids)).await;
        world.start();
    }
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    assert!(world.kills >= 10);
    println!("{:?} of {:?}", world.target.written(), world.source.sent);
}

#[test]
fn nothing_is_lost_or_twice_whenever_it_is_killed() {
    seeds(4, |seed| kills(seed, Weather::default()));
}

#[test]
fn nothing_is_lost_or_twice_when_answers_are_lost_and_calls_are_late() {
    // Behind each Insert or Delete of unknown outcome a lane waits for two seconds: with more of them nothing would get on
    // between two kills.
    let weather = Weather {
        lost: 0.015,
        late: 0.01,
        late_by: Duration::from_millis(900),
        unreachable: 0.03,
        outlives: 0.5,
        ..Weather::default()
    };
    seeds(6, |seed| kills(seed, weather));
}

/// The answer of a write is lost and it is carried out 900 ms later: what is sent again behind a Delete of its keys waits
/// for it, or its rows would come a second time.
async fn one_is_late(seed: u64) {
    let mut world = world(seed, 1);
    let id = world.source.create("c", 1);
    let partition = world.source.default_partition(id);
    world.source.insert(id, partition, 3, 0);
    world.start();
    world.equal().await;
    for _ in 0..5 {
        world.target.delay_next(1, Duration::from_millis(900));
        world.source.insert(id, partition, 3, 0);
        world.source.flush();
        // Until it is carried out, whenever that is.
        world.run(3000, |_| {}).await;
        world.equal().await;
    }
    assert_eq!(world.target.wrongs().late, 5);
}

#[test]
fn what_may_still_arrive_is_waited_for() {
    seeds(2, one_is_late);
}

/// A pack of 100 MiB between two ticks passes a budget of 4 MiB in the order of its times, though it is in any order in
/// the queue.
async fn large(seed: u64) {
    let mut world = world(seed, 4);
    world.tasks[0].memory_budget = 4 * MIB;
    let id = world.source.create("c", 2);
    let write = |source: &mut Source| {
        let partition = source.default_partition(id);
        source.insert(id, partition, 1, 1000);
    };
    world.start();
    world.run(500, write).await;
    let partition = world.source.default_partition(id);
    for n in 0..200 {
        world.source.insert(id, partition, 8, 64 << 10);
        if n % 10 == 0 {
            world.source.upsert(id, partition, 20);
            world.source.delete(id, 3);
        }
    }
    let mut peak = 0;
    let task = world.tasks[0].id.clone();
    for round in 0..2000 {
        world.run(20, |_| {}).await;
        let status = world.engine().status(&task);
        peak = peak.max(status.map_or(0, |s| s.counters.in_flight_bytes));
        if round > 20 && round % 50 == 10 && world.difference(|_| true).is_none() {
            break;
        }
    }
    world.equal().await;
    println!(
        "peak in flight {:.1} MiB of a budget of 4 MiB",
        peak as f64 / MIB as f64
    );
    assert!(peak as usize <= 5 * MIB);
}

#[test]
fn a_large_pack_passes_a_small_budget_in_the_order_of_its_times() {
    seeds(2, large);
}
