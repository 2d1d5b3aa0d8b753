//! Rows that were there before the task, and are in no queue: copied, while rows go on, whatever is killed.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::ids::{CollectionId, DbId, PChannel};
use cdc_core::snapshot::Initial;
use cdc_core::source::LogSource;
use cdc_core::target::memory::{Lack, Weather};
use cdc_core::task::{Choice, CollectionState, Mode};
use cdc_core::tso::Tso;
use rand::Rng;

use crate::writes;
use cdc_sim::gate::{Kind, Trap};
use cdc_sim::rows::ShownRows;
use cdc_sim::world::{STEP, World, seeds};

/// A source with rows, of which its queue knows nothing any more.
async fn before(seed: u64, mode: Mode) -> (World, Vec<CollectionId>) {
    let mut world = World::new(seed, 3, 2);
    world.rows = Some(Arc::new(ShownRows::new(seed)));
    world.source.hashes = true;
    world.tasks[0].target.mode = mode;
    world.tasks[0].snapshot.initial = Initial::Snapshot;
    world.tasks[0].created = Tso(u64::MAX);
    let ids: Vec<CollectionId> = (0..4)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 3))
        .collect();
    // Pieces for all that copy, and more.
    for n in 0..6 {
        let partition = world.source.create_partition(ids[1], &format!("p{n}"));
        world.source.insert(ids[1], partition, 5, 0);
    }
    world.run(4_000, writes(&ids)).await;
    purge(&mut world).await;
    (world, ids)
}

async fn purge(world: &mut World) {
    world.source.flush();
    for i in 0..3 {
        let channel: PChannel = world.source.channel(i);
        if let Some(bounds) = world.source.log.bounds(&channel).await.unwrap() {
            world.source.log.purge_to(&channel, bounds.last);
        }
    }
    world.run(500, |_| {}).await;
}

async fn through_kills(seed: u64, mode: Mode, weather: Weather) {
    let (mut world, mut ids) = before(seed, mode).await;
    world.target.set_weather(weather);
    world.start();
    for round in 0..8 {
        let time = world.rng.random_range(0..600);
        world.run(time, writes(&ids)).await;
        if round == 3 {
            // Gone in the middle, and another one of its name, which begins with its creation.
            let gone = ids.pop().unwrap();
            world.source.drop_collection(gone);
            ids.push(world.source.create("c3", 2));
        }
        world.kill_somewhere(writes(&ids)).await;
        let down = world.rng.random_range(0..400);
        world.run(down, writes(&ids)).await;
        world.start();
    }
    world.target.set_weather(Weather::default());
    world.run(2_000, writes(&ids)).await;
    world.equal().await;
    println!("{} kills", world.kills);
}

fn rough() -> Weather {
    Weather {
        lost: 0.03,
        late: 0.02,
        late_by: Duration::from_millis(900),
        unreachable: 0.03,
        ..Weather::default()
    }
}

#[test]
fn all_rows_are_there_once_whenever_it_is_killed() {
    seeds(6, |seed| {
        through_kills(seed, Mode::Replicate, Weather::default())
    });
    seeds(3, |seed| {
        through_kills(seed, Mode::Plain, Weather::default())
    });
}

#[test]
fn all_rows_are_there_once_when_answers_are_lost() {
    seeds(4, |seed| through_kills(seed, Mode::Replicate, rough()));
    seeds(2, |seed| through_kills(seed, Mode::Plain, rough()));
}

/// A standby that restarts has lost what it had not flushed, and no queue has these rows.
async fn through_restarts(seed: u64) {
    let (mut world, ids) = before(seed, Mode::Replicate).await;
    world.tasks[0].durable_every = Duration::from_millis(2_000);
    world.start();
    for _ in 0..4 {
        let time = world.rng.random_range(0..3_000);
        world.run(time, writes(&ids)).await;
        world.target.restart_losing();
        if world.rng.random() {
            world.kill_somewhere(writes(&ids)).await;
            world.start();
        }
    }
    world.run(20_000, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn rows_that_a_restart_of_the_target_has_lost_are_copied_again() {
    seeds(4, through_restarts);
}

/// The queue lets go of what comes behind the copy, while it goes on.
async fn lost_on_the_way(seed: u64) {
    let (mut world, ids) = before(seed, Mode::Replicate).await;
    // Slow enough to be in the middle.
    world.tasks[0].snapshot.rows_per_second = std::num::NonZeroU64::new(5);
    let rows = world.rows.clone().unwrap();
    rows.most.store(4, std::sync::atomic::Ordering::Relaxed);
    world.start();
    let copying = |state: &CollectionState| matches!(state, CollectionState::Snapshotting { rows_copied, .. } if *rows_copied > 0);
    world.until("c1", copying).await;
    world.run(500, writes(&ids)).await;
    // One that had few rows may have its copy already.
    let begun = |state: &CollectionState| {
        matches!(
            state,
            CollectionState::Snapshotting { .. } | CollectionState::Streaming { .. }
        )
    };
    for i in 0..4 {
        world.until(&format!("c{i}"), begun).await;
    }
    purge(&mut world).await;
    world.run(2_000, writes(&ids)).await;
    world.kill();
    world.tasks[0].snapshot.rows_per_second = None;
    rows.most.store(0, std::sync::atomic::Ordering::Relaxed);
    world.start();
    world.run(3_000, writes(&ids)).await;
    // Nobody was asked.
    world.equal().await;
}

#[test]
fn a_copy_whose_place_in_the_queue_is_lost_begins_anew() {
    seeds(3, lost_on_the_way);
}

/// A task without a copy, whose place is lost while it is stopped; a person asks for one.
async fn answered(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    world.rows = Some(Arc::new(ShownRows::new(seed)));
    world.source.hashes = true;
    let ids: Vec<CollectionId> = (0..2)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i))
        .collect();
    world.start();
    world.run(2_000, writes(&ids)).await;
    world.kill();
    world.run(1_000, writes(&ids)).await;
    purge(&mut world).await;
    world.start();
    for name in ["c0", "c1"] {
        let lost = |state: &CollectionState| matches!(state, CollectionState::PositionLost { .. });
        world.until(name, lost).await;
        let task = world.tasks[0].id.clone();
        let engine = world.engine().clone();
        let answer = engine
            .choose(&task, "default", name, Choice::Snapshot)
            .await;
        answer.unwrap();
        world.kill_somewhere(writes(&ids)).await;
        world.start();
        world.run(1_000, writes(&ids)).await;
    }
    world.equal().await;
}

#[test]
fn a_lost_position_is_answered_with_a_copy() {
    seeds(3, answered);
}

/// A person asks for a copy of what has lost its place, and its name changes, or it is dropped, before that is made.
async fn asked_for_and_changed(seed: u64, mode: Mode) {
    let mut world = World::new(seed, 3, 2);
    world.rows = Some(Arc::new(ShownRows::new(seed)));
    world.source.hashes = true;
    world.tasks[0].target.mode = mode;
    let ids: Vec<CollectionId> = (0..3)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i))
        .collect();
    let other = world.source.create_database("d0");
    world.start();
    world.run(2_000, writes(&ids)).await;
    world.kill();
    world.run(500, writes(&ids)).await;
    purge(&mut world).await;
    world.source.rename(ids[0], other, "c0");
    world.start();
    for (i, id) in ids.iter().enumerate() {
        let lost = |state: &CollectionState| matches!(state, CollectionState::PositionLost { .. });
        world.until(&format!("c{i}"), lost).await;
        let status = world.status(&format!("c{i}")).unwrap();
        assert_eq!(status.database, world.source.database_of(*id));
    }
    for (i, id) in ids.iter().enumerate() {
        let task = world.tasks[0].id.clone();
        let engine = world.engine().clone();
        let database = world.source.database_of(*id);
        let name = format!("c{i}");
        let choice = engine.choose(&task, &database, &name, Choice::Snapshot);
        choice.await.unwrap();
        match i {
            1 => assert!(world.source.rename(*id, DbId(1), "other")),
            2 => world.source.drop_collection(*id),
            _ => {}
        }
    }
    let left = &ids[..2];
    if world.rng.random() {
        world.kill_somewhere(writes(left)).await;
        world.start();
    }
    world.run(1_000, writes(left)).await;
    // With nothing left under the old names.
    world.equal().await;
}

#[test]
fn a_copy_that_is_asked_for_is_of_the_collection_not_of_its_name() {
    seeds(3, |seed| asked_for_and_changed(seed, Mode::Replicate));
    seeds(3, |seed| asked_for_and_changed(seed, Mode::Plain));
}

/// A standby that could not be asked for its nodes at the start restarts while rows are copied: what it had taken of them
/// is gone, and what was noted of it says nothing.
async fn restarted_unknown(seed: u64) {
    let (mut world, _) = before(seed, Mode::Replicate).await;
    world.tasks[0].snapshot.rows_per_second = std::num::NonZeroU64::new(200);
    world.target.lacks("GetMetrics", Some(Lack::Call));
    world.start();
    let copying = |state: &CollectionState| matches!(state, CollectionState::Snapshotting { rows_copied, .. } if *rows_copied > 0);
    world.until("c1", copying).await;
    world.target.restart_losing();
    world.run(10_000, |_| {}).await;
    world.target.lacks("GetMetrics", None);
    world.run(15_000, |_| {}).await;
    world.equal().await;
}

#[test]
fn a_target_that_was_not_known_and_restarts_gets_all_rows_again() {
    seeds(2, restarted_unknown);
}

/// Two swap their names and swap them back, over and over, while their rows are read by these names.
async fn swapped(seed: u64, mode: Mode) {
    let (mut world, ids) = before(seed, mode).await;
    let rows = world.rows.clone().unwrap();
    rows.most.store(4, std::sync::atomic::Ordering::Relaxed);
    world.start();
    for _ in 0..30 {
        // Seen by nobody who only watches.
        world.source.go_blind(400, STEP);
        for most in [300, 100] {
            assert!(world.source.swap_names(ids[0], ids[1]));
            let time = world.rng.random_range(20..most);
            world.run(time, |_| {}).await;
        }
    }
    world.equal().await;
}

#[test]
fn names_that_are_swapped_and_swapped_back_while_rows_are_read() {
    seeds(3, |seed| swapped(seed, Mode::Replicate));
    seeds(3, |seed| swapped(seed, Mode::Plain));
}

/// Where the rows cannot be read it says so, and goes on when they can.
async fn not_readable(seed: u64) {
    let (mut world, ids) = before(seed, Mode::Plain).await;
    let rows = world.rows.clone().unwrap();
    rows.set_down(true);
    world.start();
    world.run(3_000, writes(&ids)).await;
    let failing = |state: &CollectionState| matches!(state, CollectionState::Failing { problem, .. } if problem.message.contains("down"));
    world.until("c0", failing).await;
    rows.set_down(false);
    world.equal().await;
}

#[test]
fn a_source_whose_rows_cannot_be_read_is_said_and_waited_for() {
    seeds(2, not_readable);
}

/// Dropped on the source in the middle of its copy, and to stay on the target: nothing waits for the rest.
async fn dropped_and_stays(seed: u64) {
    let (mut world, ids) = before(seed, Mode::Replicate).await;
    world.tasks[0].skip = [cdc_core::select::Operation::DropCollection].into();
    world.tasks[0].snapshot.rows_per_second = std::num::NonZeroU64::new(20);
    let rows = world.rows.clone().unwrap();
    rows.most.store(4, std::sync::atomic::Ordering::Relaxed);
    world.start();
    let copying = |state: &CollectionState| matches!(state, CollectionState::Snapshotting { rows_copied, .. } if *rows_copied > 0);
    world.until("c1", copying).await;
    world.source.drop_collection(ids[1]);
    let left: Vec<CollectionId> = ids.iter().copied().filter(|id| *id != ids[1]).collect();
    world.run(5_000, writes(&left)).await;
    let status = world.engine().status(&world.tasks[0].id).unwrap();
    let gone = status.collections.iter().find(|c| c.name == "c1");
    assert!(
        gone.is_none_or(|c| c.state == CollectionState::Dropped),
        "{gone:?}"
    );
    assert!(world.target.rows("default", "c1").is_some());
    world.equal_of(|name| name != "c1").await;
}

#[test]
fn what_is_dropped_on_the_source_in_the_middle_of_its_copy_can_stay() {
    seeds(2, dropped_and_stays);
}

/// Each note of how far a copy is, is one where the process dies: before the write, and behind it before it hears of it.
async fn at_each_note(seed: u64, mode: Mode) {
    for (after, behind) in [
        (1, false),
        (1, true),
        (2, false),
        (2, true),
        (5, false),
        (5, true),
    ] {
        let (mut world, ids) = before(seed, mode).await;
        let rows = world.rows.clone().unwrap();
        rows.most.store(16, std::sync::atomic::Ordering::Relaxed);
        world.start();
        world.gate.set(Trap {
            kind: Kind::Point("note how far a copy is"),
            after,
            behind,
        });
        let mut waited = 0;
        while !world.gate.is_dead() {
            assert!(waited < 60_000, "nothing has died at note {after}");
            world.run(20, writes(&ids)).await;
            waited += 20;
        }
        world.kill();
        world.start();
        world.run(1_000, writes(&ids)).await;
        world.equal().await;
    }
}

#[test]
fn killed_at_each_note_of_how_far_a_copy_is() {
    seeds(1, |seed| at_each_note(seed, Mode::Replicate));
    seeds(1, |seed| at_each_note(seed, Mode::Plain));
}

/// What will take longer than the queue keeps the messages behind it is said before its first row.
async fn too_slow(seed: u64) {
    let (mut world, ids) = before(seed, Mode::Replicate).await;
    world.source.log.set_retention(Some(Duration::from_secs(5)));
    world.tasks[0].snapshot.rows_per_second = std::num::NonZeroU64::new(3);
    world.start();
    let known = |state: &CollectionState| {
        matches!(
            state,
            CollectionState::Snapshotting {
                rows_copied: 0,
                eta_seconds: Some(_),
                ..
            }
        )
    };
    let state = world.until("c1", known).await;
    let CollectionState::Snapshotting {
        eta_seconds,
        queue_keeps_seconds,
        ..
    } = state
    else {
        unreachable!()
    };
    assert!(eta_seconds > queue_keeps_seconds, "{eta_seconds:?}");
    assert_eq!(queue_keeps_seconds, Some(5.));
    world.run(1_000, writes(&ids)).await;
    let said = world.status("c1").unwrap().last_error;
    let said = said.map(|e| e.problem.to_string()).unwrap_or_default();
    assert!(said.contains("begin anew"), "{said:?}");
}

#[test]
fn a_copy_that_takes_longer_than_the_queue_keeps_messages_says_so() {
    seeds(1, too_slow);
}
