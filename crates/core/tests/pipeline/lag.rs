//! What a task says of its lag: never less than what is missing, whatever the reason.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cdc_core::catalog::{Catalog, CatalogError};
use cdc_core::ids::CollectionId;
use cdc_core::store::ProgressStore;
use cdc_core::target::memory::Key;
use cdc_core::task::{CollectionState, TaskStatus};
use cdc_core::tso::Tso;
use rand::Rng;
use tokio::time::Instant;

use crate::writes;
use cdc_sim::source::Source;
use cdc_sim::world::{PATIENCE, Setup, World, seeds};

/// With ticks every 30 ms or so, and calls of some milliseconds.
const SOON: f64 = 1.0;

/// The clock that all of a world shares.
struct Clock {
    epoch: Tso,
    since: Instant,
}

impl Clock {
    async fn of(world: &World) -> Self {
        Self {
            epoch: world.source.catalog.tso_bound().await.unwrap(),
            since: Instant::now(),
        }
    }

    fn now(&self) -> Tso {
        self.epoch.plus(self.since.elapsed())
    }

    fn status(&self, world: &World) -> TaskStatus {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.now().millis());
        let status = world.engine().status_at(&world.tasks[0].id, now);
        status.unwrap()
    }

    fn lag(&self, world: &World) -> Option<f64> {
        self.status(world).lag_seconds
    }

    /// Waits until next to nothing is behind.
    async fn until_small(&self, world: &mut World) {
        for _ in 0..PATIENCE / 100 {
            if self.lag(world).is_some_and(|lag| lag < SOON) {
                return;
            }
            world.run(100, |_| {}).await;
        }
        panic!("{:?}", self.status(world));
    }

    /// Of one collection.
    fn of_one(&self, world: &World, name: &str) -> Option<f64> {
        let status = self.status(world);
        let found = status.collections.into_iter().rfind(|c| c.name == name);
        found.and_then(|c| c.lag_seconds)
    }
}

fn seconds(from: Tso, to: Tso) -> f64 {
    from.behind(to).as_secs_f64()
}

/// A new row. Only inserts may follow: nothing is to replace it.
fn mark(source: &mut Source, id: CollectionId) -> Key {
    let partition = source.default_partition(id);
    let before: Vec<i64> = source.live[&id].rows.keys().copied().collect();
    source.insert(id, partition, 1, 0);
    let new = source.live[&id].rows.keys();
    Key::Int(*new.into_iter().find(|k| !before.contains(k)).unwrap())
}

fn holds(world: &World, name: &str, key: &Key) -> bool {
    let rows = world.target.rows("default", name);
    rows.is_some_and(|rows| rows.iter().any(|row| row.key == *key))
}

/// Nothing is written: the lag is next to nothing, and stays so. What is not flushed is another matter.
async fn idle(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let clock = Clock::of(&world).await;
    let ids: Vec<_> = (0..4)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 3))
        .collect();
    world.start();
    world.run(2000, writes(&ids)).await;
    world.equal().await;
    let begun = clock.now();
    for _ in 0..200 {
        world.run(100, |_| {}).await;
        let status = clock.status(&world);
        let lag = status.lag_seconds.unwrap();
        assert!(lag < SOON, "idle, and {lag} s behind");
        for c in &status.collections {
            assert!(c.lag_seconds.unwrap() < SOON, "{c:?}");
        }
        // A round comes every five minutes: until then nothing of it is known to be flushed.
        let durable = status.durable_lag_seconds.unwrap();
        assert!(
            durable > seconds(begun, clock.now()),
            "{durable} s are not flushed"
        );
    }
    // Behind a round both are small, and apart still: what is flushed is never more than what is applied.
    world.stop().await;
    world.tasks[0].durable_every = Duration::from_secs(2);
    world.start();
    world.run(1000, writes(&ids)).await;
    let mut flushed = false;
    for _ in 0..1200 {
        world.run(100, |_| {}).await;
        let status = clock.status(&world);
        let (lag, durable) = (status.lag_seconds.unwrap(), status.durable_lag_seconds);
        let durable = durable.unwrap();
        assert!(lag <= durable, "{lag} s applied, {durable} s flushed");
        flushed |= durable < 15.0;
    }
    assert!(flushed, "{:?}", clock.status(&world));
}

#[test]
fn an_idle_task_has_no_lag_though_nothing_is_flushed() {
    seeds(2, idle);
}

/// One collection cannot go on: its lag and the task's grow with time, without a gap; the others' do not.
async fn stuck(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let clock = Clock::of(&world).await;
    let ids: Vec<_> = (0..4)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 2))
        .collect();
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    clock.until_small(&mut world).await;
    world.target.refuse("default", "c2");
    let begun = clock.now();
    let key = mark(&mut world.source, ids[2]);
    let others = [ids[0], ids[1], ids[3]];
    let mut states = std::collections::BTreeSet::new();
    while seconds(begun, clock.now()) < 60.0 {
        world.run(20, writes(&others)).await;
        let missing = seconds(begun, clock.now()) - 0.2;
        let status = clock.status(&world);
        let stuck = status.collections.iter().find(|c| c.name == "c2").unwrap();
        states.insert(format!("{:?}", std::mem::discriminant(&stuck.state)));
        for lag in [status.lag_seconds, stuck.lag_seconds] {
            let lag = lag.unwrap_or_default();
            assert!(
                lag >= missing && lag < missing + SOON + 1.0,
                "{missing} s are missing, it says {lag}: {stuck:?}"
            );
        }
        // They may share a lane with it for a while.
        if missing > 45.0 {
            for name in ["c0", "c1", "c3"] {
                let lag = clock.of_one(&world, name).unwrap();
                assert!(lag < 3.0, "{name} is {lag} s behind");
            }
        }
    }
    assert!(states.len() >= 2, "it was seen in one state only");
    assert!(!holds(&world, "c2", &key));
    world.target.accept("default", "c2");
    world.equal().await;
    clock.until_small(&mut world).await;
}

#[test]
fn the_lag_of_what_is_stuck_grows() {
    seeds(3, stuck);
}

/// One collection that waits for a person from the beginning counts from its creation, and one that is wanted from now
/// on does not.
async fn conflict(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let clock = Clock::of(&world).await;
    let id = world.source.create("c", 2);
    let first = mark(&mut world.source, id);
    world.source.flush();
    world.start();
    world.run(1000, |_| {}).await;
    assert!(holds(&world, "c", &first));
    world.stop().await;
    // Another task, to which it is in the way.
    let created = world.source.live[&id].catalog.create_ts;
    world.tasks[0].id = cdc_core::ids::TaskId::new("another");
    world.start();
    world
        .until("c", |s| matches!(s, CollectionState::Conflict { .. }))
        .await;
    world.run(20_000, |_| {}).await;
    let missing = seconds(created, clock.now());
    assert!(missing > 20.0, "the test waits too little");
    for lag in [clock.lag(&world), clock.of_one(&world, "c")] {
        let lag = lag.unwrap();
        assert!((lag - missing).abs() < SOON, "{missing} s, it says {lag}");
    }
}

#[test]
fn a_conflict_counts_from_the_creation() {
    seeds(1, conflict);
}

/// Collections that are made one right after the other do not take the target's time ahead: each is sent above what was
/// sent before, not above F, which is kept ahead of that on disk. What is far ahead of the target's clock waits for it,
/// with all that is sent on its channel. Nor do those that join their channels' readers keep these waiting.
async fn made_in_a_row(seed: u64) {
    let mut world = World::new(seed, 2, 1);
    let clock = Clock::of(&world).await;
    let mut ids = vec![world.source.create("old", 2)];
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    clock.until_small(&mut world).await;
    let (mut last, mut still) = (None, 0);
    for i in 0..24 {
        ids.push(world.source.create(&format!("c{i}"), 1 + i % 2));
        for _ in 0..5 {
            world.run(20, writes(&ids)).await;
            let floors = world.store.floors(&world.tasks[0].target.key()).await;
            let highest = floors.unwrap().into_values().max().unwrap();
            let ahead = seconds(clock.now(), highest);
            assert!(ahead < SOON, "with {i} of them F is {ahead} s ahead");
            let status = world.engine().status(&world.tasks[0].id);
            let read = status.map(|s| s.counters.messages_in);
            still = if read == last { still + 20 } else { 0 };
            last = read;
            assert!(
                still < 500,
                "with {i} of them nothing is read for {still} ms"
            );
        }
    }
    world.equal().await;
}

#[test]
fn collections_that_are_made_in_a_row_do_not_take_the_time_ahead() {
    seeds(3, made_in_a_row);
}

/// After a start with a backlog no collection says less than what it lacks, at no moment; also those that have to wait
/// until others have caught up.
async fn restarted(seed: u64, one_by_one: bool) {
    let mut world = World::new(seed, 2, 2);
    let clock = Clock::of(&world).await;
    let count = if one_by_one { 14 } else { 5 };
    let insert = |source: &mut Source, ids: &[CollectionId]| {
        for id in ids {
            let partition = source.default_partition(*id);
            let rows = source.rng.random_range(0..3);
            if rows > 0 {
                source.insert(*id, partition, rows, 0);
            }
        }
    };
    let names: Vec<String> = (0..count).map(|i| format!("c{i}")).collect();
    let ids: Vec<_> = names.iter().map(|n| world.source.create(n, 1)).collect();
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    let begun;
    let mut marks = Vec::new();
    if one_by_one {
        // Each goes by itself, from where it was refused; more than may catch up at the same time.
        for name in &names {
            world.target.refuse("default", name);
        }
        begun = clock.now();
        for id in &ids {
            marks.push(mark(&mut world.source, *id));
        }
        world.source.flush();
        world.run(60_000, |_| {}).await;
        for name in &names {
            let failing = |s: &CollectionState| !matches!(s, CollectionState::Streaming { .. });
            world.until(name, failing).await;
        }
        world.run(5_000, |source| insert(source, &ids)).await;
        for name in &names {
            world.target.accept("default", name);
        }
    } else {
        if world.rng.random_bool(0.5) {
            world.kill();
        } else {
            world.stop().await;
        }
        begun = clock.now();
        for id in &ids {
            marks.push(mark(&mut world.source, *id));
        }
        world.source.flush();
        world.run(60_000, |source| insert(source, &ids)).await;
        world.target.set_latency(Duration::from_millis(100));
        world.start();
    }
    let (mut asked, mut looks) = (0, 0);
    let mut taken = std::collections::BTreeMap::new();
    let mut known = 0;
    while names
        .iter()
        .zip(&marks)
        .any(|(n, key)| !holds(&world, n, key))
    {
        let status = clock.status(&world);
        for (name, key) in names.iter().zip(&marks) {
            // First what it says, then what there is.
            let said = status.collections.iter().find(|c| c.name == *name);
            let said = said.and_then(|c| c.lag_seconds);
            if holds(&world, name, key) {
                continue;
            }
            asked += 1;
            let missing = seconds(begun, clock.now()) - 0.5;
            for lag in [said, status.lag_seconds].into_iter().flatten() {
                known += 1;
                if lag >= missing {
                    continue;
                }
                // Taken by the target, with a raised time: shown with the next tick, for which the lane may wait for
                // another reader that is near.
                let since = *taken.entry(name).or_insert_with(|| clock.now());
                assert!(
                    seconds(since, clock.now()) < 3.5,
                    "{name} lacks {missing} s, and it says {lag}: {:?}",
                    status.collections.iter().find(|c| c.name == *name)
                );
            }
        }
        let now = clock.now();
        assert!(seconds(begun, now) < 240.0, "it never caught up");
        // Four looks in each of the source's steps.
        tokio::time::sleep(Duration::from_millis(5)).await;
        looks += 1;
        if looks % 4 == 0 {
            world.source.step(20);
        }
    }
    println!("asked {asked} times, {known} answers");
    assert!(known > 20, "it was hardly ever asked: {known} of {asked}");
    world.target.set_latency(Duration::from_millis(4));
    world.equal().await;
    clock.until_small(&mut world).await;
}

#[test]
fn after_a_start_the_lag_is_what_is_missing() {
    seeds(4, |seed| restarted(seed, false));
}

#[test]
fn those_that_wait_to_catch_up_say_so() {
    seeds(2, |seed| restarted(seed, true));
}

/// What the source says: silent, its queue away, its metadata away.
async fn source_down(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let mut clock = Clock::of(&world).await;
    let ids = [world.source.create("a", 1), world.source.create("b", 2)];
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    let problems = |world: &World, clock: &Clock| format!("{:?}", clock.status(world).problems);

    // The queue: what comes is not seen, so the lag grows, and it is said why.
    world.source.log.fail_next(usize::MAX);
    for round in 1..=20 {
        world.run(1000, writes(&ids)).await;
        let lag = clock.lag(&world).unwrap();
        let lacks = f64::from(round) - 0.5;
        assert!(lag > lacks, "{round} s without its queue, it says {lag}");
    }
    let said = problems(&world, &clock);
    assert!(said.contains("injected fault"), "{said}");
    world.source.log.fail_next(0);
    world.equal().await;
    clock.until_small(&mut world).await;
    assert_eq!(problems(&world, &clock), "[]");

    // The metadata: what is known flows on, its lag is true; that new collections are not seen is said.
    let endpoints = "http://etcd:2379".to_owned();
    let cause = "down".to_owned();
    let away = CatalogError::Unreachable { endpoints, cause };
    world.source.catalog.fail(Some(away));
    for _ in 0..50 {
        world.run(200, writes(&ids)).await;
        assert!(clock.lag(&world).unwrap() < SOON);
    }
    let said = problems(&world, &clock);
    assert!(said.contains("source etcd at http://etcd:2379"), "{said}");
    world.source.catalog.fail(None);
    world.equal().await;
    // While nothing happens this is looked at once a second.
    world.run(1500, |_| {}).await;
    assert_eq!(problems(&world, &clock), "[]");

    // All of it: no ticks, nobody can say that nothing is written.
    let drift = clock.now();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let lag = clock.lag(&world).unwrap();
    let late = 30.0..30.0 + SOON;
    assert!(late.contains(&lag), "{lag} after {drift}");
    world.source.advance(30_000);
    clock.until_small(&mut world).await;

    // A start that finds nothing: not known, not 0, and it is said why.
    world.stop().await;
    world.run(5000, writes(&ids)).await;
    world.target.fail_next(usize::MAX);
    world.start();
    world.run(5000, |_| {}).await;
    assert_eq!(clock.lag(&world), None);
    assert_ne!(problems(&world, &clock), "[]");
    world.target.fail_next(0);
    world.equal().await;
    clock = Clock::of(&world).await;
    clock.until_small(&mut world).await;
}

#[test]
fn without_its_source_the_lag_grows_or_is_unknown() {
    seeds(2, source_down);
}

/// The target's clock is five seconds behind: it would refuse rows of the source's now, so they wait for it, and it is said.
async fn behind_the_sources(seed: u64) {
    let setup = Setup {
        source_channels: 2,
        target_channels: 2,
        epoch: Tso::from_millis(1_796_000_000_000),
        ahead: -5000,
        retries: 0.0,
    };
    let mut world = World::of(seed, &setup);
    let ids = vec![world.source.create("c", 2)];
    world.start();
    let task = world.tasks[0].id.clone();
    let mut said = BTreeSet::new();
    for _ in 0..500 {
        world.run(20, writes(&ids)).await;
        let status = world.engine().status(&task).unwrap();
        said.extend(status.problems.into_iter().map(|p| p.message));
    }
    let all = format!("{said:?}");
    assert!(all.contains("ahead of the target's clock"), "{all}");
    assert!(!all.contains("failRemainRequest"), "{all}");
    world.equal().await;
}

#[test]
fn rows_wait_for_a_target_whose_clock_is_behind() {
    seeds(2, behind_the_sources);
}
