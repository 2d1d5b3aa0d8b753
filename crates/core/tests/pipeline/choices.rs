//! What waits for a person: messages that cannot be carried, positions the queue no longer holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use cdc_core::ids::CollectionId;
use cdc_core::position::Position;
use cdc_core::task::{Choice, CollectionState, GivenPosition, StartPoint, TaskSpec};
use cdc_core::tso::Tso;
use rand::Rng;

use super::writes;
use cdc_sim::messages;
use cdc_sim::source::Source;
use cdc_sim::world::{World, seeds};

async fn choose(world: &mut World, name: &str, choice: Choice) {
    let task: TaskSpec = world.tasks[0].clone();
    let engine = world.engine().clone();
    let answer = engine.choose(&task.id, "default", name, choice).await;
    answer.unwrap();
}

/// An insert of which the middle of a row's timestamp is the end; its collection can be read.
pub(crate) fn truncated(source: &mut Source, id: CollectionId) -> Bytes {
    let shard = source.live[&id].catalog.shards[0].clone();
    let to = messages::To {
        collection: id,
        partition: source.default_partition(id),
        vchannel: &shard.vchannel,
    };
    let (ts, msg_id) = (source.ts(), source.msg_id());
    let whole = messages::insert(&to, &[-1000], 1, ts, ts, msg_id, 0);
    // Field 10 is the first length-delimited one behind the ids: its key byte is 0x52.
    let at = whole.iter().rposition(|byte| *byte == 0x52).unwrap();
    whole.slice(..at + 3)
}

pub(crate) fn quarantined(state: &CollectionState) -> bool {
    matches!(state, CollectionState::Quarantined { .. })
}

async fn garbage_of_one(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let ids: Vec<CollectionId> = (0..5)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 2))
        .collect();
    world.start();
    let time = world.rng.random_range(0..1500);
    world.run(time, writes(&ids)).await;
    world.source.flush();
    let bad = world.source.find("c2");
    let channel = world.source.live[&bad].catalog.shards[0].pchannel.clone();
    let message = truncated(&mut world.source, bad);
    let at = world.source.raw(&channel, message);
    world.run(1000, writes(&ids)).await;
    for kill in [true, false] {
        let state = world.until("c2", quarantined).await;
        let CollectionState::Quarantined {
            channel: on,
            position,
            ..
        } = state
        else {
            unreachable!()
        };
        assert_eq!((on, position), (channel.clone(), at.to_string()));
        world.equal_of(|name| name != "c2").await;
        if kill {
            world.kill_somewhere(writes(&ids)).await;
            world.start();
            world.run(1000, writes(&ids)).await;
        }
    }
    choose(&mut world, "c2", Choice::Skip).await;
    world.run(1000, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn a_message_that_cannot_be_read_stops_its_collection_until_skipped() {
    seeds(4, garbage_of_one);
}

async fn garbage_of_nobody(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    // Every second collection is on the first channel.
    let ids: Vec<CollectionId> = (0..6)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    let first = world.source.channel(0);
    world.start();
    let time = world.rng.random_range(500..1500);
    world.run(time, writes(&ids)).await;
    let bytes: Vec<u8> = (0..20).map(|_| world.source.rng.random()).collect();
    let mut garbage = vec![0x0a, 0xff, 0x01];
    garbage.extend(bytes);
    let at: Position = world.source.raw(&first, garbage.into());
    world.run(1000, writes(&ids)).await;
    for name in ["c0", "c2", "c4"] {
        let state = world.until(name, quarantined).await;
        assert!(
            matches!(&state, CollectionState::Quarantined { channel, position, .. }
                if *channel == first && *position == at.to_string()),
            "{state:?}"
        );
    }
    let elsewhere = |name: &str| ["c1", "c3", "c5"].contains(&name);
    world.equal_of(elsewhere).await;
    for name in ["c0", "c2", "c4"] {
        choose(&mut world, name, Choice::Skip).await;
        world.run(300, writes(&ids)).await;
    }
    world.equal().await;
}

#[test]
fn a_message_of_nobody_stops_its_channel_until_skipped() {
    seeds(4, garbage_of_nobody);
}

#[derive(Clone, Copy, PartialEq)]
enum Goes {
    Earliest,
    Now,
    Positions,
}

/// The queue's retention passes a paused task's position.
async fn purged(seed: u64, goes: Goes) {
    let mut world = World::new(seed, 2, 2);
    let a = world.source.create("a", 1);
    let b = world.source.create("b", 1);
    world.start();
    world.run(1500, writes(&[a, b])).await;
    world.equal().await;
    world.stop().await;
    let kept = world.target.rows("default", "a").unwrap();
    // Lost rows: inserts only, so that what is missing afterwards is known.
    let partition = world.source.default_partition(a);
    let channel = world.source.live[&a].catalog.shards[0].pchannel.clone();
    let before: Vec<i64> = world.source.live[&a].rows.keys().copied().collect();
    for _ in 0..10 {
        world.source.insert(a, partition, 3, 0);
        world.run(60, |_| {}).await;
    }
    world.source.flush();
    world.source.tick();
    let lost: Vec<i64> = world.source.live[&a].rows.keys().copied().collect();
    let (ts, msg_id) = (world.source.ts(), world.source.msg_id());
    let last = world.source.raw(&channel, messages::tick(ts, msg_id));
    world.source.log.purge_to(&channel, last);
    // Still in the queue at the restart.
    for _ in 0..5 {
        world.source.insert(a, partition, 3, 0);
        world.run(60, writes(&[b])).await;
    }
    world.source.flush();
    let held: Vec<i64> = world.source.live[&a].rows.keys().copied().collect();
    let (ts, msg_id) = (world.source.ts(), world.source.msg_id());
    let end = world.source.raw(&channel, messages::tick(ts, msg_id));
    world.start();
    world.run(500, writes(&[b])).await;
    let state = world
        .until("a", |s| matches!(s, CollectionState::PositionLost { .. }))
        .await;
    let CollectionState::PositionLost {
        channel: on,
        wanted,
        first,
        last: newest,
        choices,
    } = state
    else {
        unreachable!()
    };
    assert_eq!(on, channel);
    assert!(!wanted.is_empty() && first.is_some() && newest.is_some());
    assert_eq!(choices.len(), 4);
    world.equal_of(|name| name == "b").await;
    assert_eq!(
        world.target.rows("default", "a").unwrap(),
        kept,
        "not by itself"
    );
    let choice = match goes {
        Goes::Earliest => Choice::Start(StartPoint::Earliest),
        Goes::Now => Choice::Start(StartPoint::Now),
        Goes::Positions => Choice::At(BTreeMap::from([(
            channel,
            GivenPosition {
                position: end,
                applied: Tso::ZERO,
            },
        )])),
    };
    choose(&mut world, "a", choice).await;
    // Let it get there before more is written: `now` is when it is read.
    world
        .until("a", |s| matches!(s, CollectionState::Streaming { .. }))
        .await;
    for _ in 0..5 {
        world.source.insert(a, partition, 3, 0);
        world.run(60, writes(&[b])).await;
    }
    // What was purged is not there, nor what lies before the chosen place; all else is, once.
    let carried = |key: i64| {
        before.contains(&key)
            || (goes == Goes::Earliest && held.contains(&key) && !lost.contains(&key))
            || !held.contains(&key)
    };
    let rows = &mut world.source.live.get_mut(&a).unwrap().rows;
    rows.retain(|key, _| carried(*key));
    world.equal().await;
    world.kill_somewhere(writes(&[a, b])).await;
    world.start();
    world.run(500, writes(&[a, b])).await;
    world.equal().await;
}

#[test]
fn after_a_lost_position_every_choice_goes_on() {
    for goes in [Goes::Earliest, Goes::Now, Goes::Positions] {
        seeds(2, |seed| purged(seed, goes));
    }
}
