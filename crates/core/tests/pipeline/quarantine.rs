//! Messages that cannot be carried: kept with their bytes, tried again, left out.

use bytes::Bytes;
use cdc_core::error::ErrorClass;
use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::position::Position;
use cdc_core::quarantine::{Kept, Record, State, key};
use cdc_core::store::ProgressStore;
use cdc_core::task::{CollectionState, Verdict};
use rand::Rng;

use super::choices::{quarantined, truncated};
use super::writes;
use cdc_sim::world::{PATIENCE, World, seeds};

async fn records(world: &World) -> Vec<Record> {
    let task = &world.tasks[0].id;
    let stored = world.store.load(task).await.unwrap();
    for (key, record) in &stored.quarantine {
        assert_eq!(*key, record.key());
    }
    stored.quarantine.into_values().collect()
}

async fn bytes_of(world: &World, record: &Record) -> Vec<u8> {
    let task = &world.tasks[0].id;
    let message = record.message();
    world.store.message(task, &message).await.unwrap()
}

/// Waits until a record is in a state.
async fn until(world: &mut World, key: &str, is: impl Fn(&State) -> bool) -> Record {
    for _ in 0..PATIENCE / 100 {
        let found = records(world).await.into_iter().find(|r| r.key() == key);
        if let Some(found) = found.filter(|r| is(&r.state)) {
            return found;
        }
        world.run(100, |_| {}).await;
    }
    panic!("{:#?}", records(world).await);
}

async fn judge(world: &mut World, key: &str, verdict: Verdict) {
    let task = world.tasks[0].id.clone();
    let engine = world.engine().clone();
    engine.judge(&task, key, verdict, "me").await.unwrap();
}

/// A refused message is tried again by itself as well: while that is under way its collection does not wait there. If it
/// is taken then, no verdict is needed.
async fn retry(world: &mut World, key: &str) {
    let task = world.tasks[0].id.clone();
    for _ in 0..PATIENCE / 20 {
        let engine = world.engine().clone();
        match engine.judge(&task, key, Verdict::Retry, "me").await {
            Ok(()) => return,
            Err(e) => assert_eq!(e.class, ErrorClass::Conflict, "{e}"),
        }
        let all = records(world).await;
        let carried = |r: &Record| r.key() == key && matches!(r.state, State::Carried { .. });
        if all.iter().any(carried) {
            return;
        }
        world.run(20, |_| {}).await;
    }
    panic!("the message {key} takes no verdict");
}

/// Whether the verdict is refused because the collection does not wait there.
async fn is_contradicted(world: &World, key: &str, verdict: Verdict) -> bool {
    let task = world.tasks[0].id.clone();
    let said = world.engine().judge(&task, key, verdict, "me").await;
    said.is_err_and(|e| e.class == ErrorClass::Conflict)
}

async fn of_one(seed: u64) {
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
    let at = world.source.raw(&channel, message.clone());
    let its = key(bad, &channel, at);
    world.run(500, writes(&ids)).await;
    // At whatever moment it dies: what is kept then is whole, and found again.
    for _ in 0..3 {
        world.kill_somewhere(writes(&ids)).await;
        for record in records(&world).await {
            assert_eq!(record.kept, Kept::Whole);
            assert!(bytes_of(&world, &record).await == message);
        }
        world.start();
        world.run(500, writes(&ids)).await;
    }
    let record = until(&mut world, &its, |s| *s == State::Waiting).await;
    world.until("c2", quarantined).await;
    assert_eq!((record.collection, record.name.as_str()), (bad, "c2"));
    assert_eq!((&record.channel, record.position), (&channel, at));
    assert_eq!(record.kind.as_deref(), Some("Insert"));
    assert_eq!(record.size, Some(message.len() as u64));
    assert_eq!(records(&world).await.len(), 1);

    // The message is as bad as it was.
    judge(&mut world, &its, Verdict::Retry).await;
    let again = until(&mut world, &its, |s| *s == State::Waiting).await;
    assert_eq!(again.since, record.since);
    world.until("c2", quarantined).await;
    world.equal_of(|name| name != "c2").await;

    judge(&mut world, &its, Verdict::Drop).await;
    assert!(is_contradicted(&world, &its, Verdict::Retry).await);
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    world.kill_somewhere(writes(&ids)).await;
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    let dropped = records(&world).await.remove(0);
    assert!(matches!(&dropped.state, State::Dropped { by, at } if by == "me" && *at > 0));
    assert!(bytes_of(&world, &dropped).await == message);
}

#[test]
fn a_message_is_kept_tried_again_and_left_out() {
    seeds(6, of_one);
}

async fn of_nobody(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let ids: Vec<CollectionId> = (0..6)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    let first = world.source.channel(0);
    world.start();
    let time = world.rng.random_range(500..1500);
    world.run(time, writes(&ids)).await;
    let garbage = Bytes::from_static(&[0x0a, 0xff, 0x01, 7, 7, 7]);
    let at: Position = world.source.raw(&first, garbage.clone());
    world.run(1000, writes(&ids)).await;
    let hit =
        |world: &World| ["c0", "c2", "c4"].map(|name| key(world.source.find(name), &first, at));
    let keys = hit(&world);
    for key in &keys {
        let record = until(&mut world, key, |s| *s == State::Waiting).await;
        assert_eq!((record.kind.as_deref(), &record.kept), (None, &Kept::Whole));
        assert!(bytes_of(&world, &record).await == garbage);
    }
    // Two go on, the third one is dropped on the source: its record says so.
    for key in &keys[..2] {
        judge(&mut world, key, Verdict::Drop).await;
    }
    let third = world.source.find("c4");
    world.source.drop_collection(third);
    world.run(1000, |_| {}).await;
    let gone = until(&mut world, &keys[2], |s| matches!(s, State::Gone { .. })).await;
    assert!(matches!(gone.kept, Kept::Not(_)));
    let left: Vec<CollectionId> = ids.iter().copied().filter(|id| *id != third).collect();
    world.run(500, writes(&left)).await;
    world.equal().await;
    // Those that were dropped are kept.
    assert!(bytes_of(&world, &gone).await == garbage);
}

#[test]
fn a_message_of_nobody_is_kept_once_for_all() {
    seeds(3, of_nobody);
}

/// The target refuses a collection's messages for a while: what it takes in the end is not kept.
async fn refused(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let ids: Vec<CollectionId> = (0..3)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    world.start();
    world.run(1000, writes(&ids)).await;
    world.equal().await;
    world.target.refuse("default", "c1");
    let bad = world.source.find("c1");
    let partition = world.source.default_partition(bad);
    world.source.insert(bad, partition, 2, 0);
    world.source.flush();
    world
        .until("c1", |s| matches!(s, CollectionState::Failing { .. }))
        .await;
    let mut found = records(&world).await;
    let record = found.pop().unwrap();
    assert!(found.is_empty() && record.state == State::Waiting);
    assert_eq!(record.kind.as_deref(), Some("Insert"));
    assert_eq!(
        bytes_of(&world, &record).await.len() as u64,
        record.size.unwrap()
    );
    // Tried again at once, with the same outcome; then it is taken.
    retry(&mut world, &record.key()).await;
    until(&mut world, &record.key(), |s| *s == State::Waiting).await;
    world.target.accept("default", "c1");
    retry(&mut world, &record.key()).await;
    let carried = until(&mut world, &record.key(), |s| {
        matches!(s, State::Carried { .. })
    })
    .await;
    assert!(bytes_of(&world, &carried).await.is_empty());
    world.run(500, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn a_message_that_is_taken_in_the_end_is_carried() {
    seeds(3, refused);
}

/// More messages than are kept, by their number and by their bytes: all their collections stop, and all go on.
async fn too_many(seed: u64) {
    let mut world = World::new(seed, 1, 1);
    let ids: Vec<CollectionId> = (0..4)
        .map(|i| world.source.create(&format!("c{i}"), 1))
        .collect();
    world.start();
    world.run(500, writes(&ids)).await;
    let channel: PChannel = world.source.channel(0);
    let mut last = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        let mut message = truncated(&mut world.source, *id).to_vec();
        // Field 99 at the end, cut off: as large as one may be, and one that is larger.
        let size = (7 << 20) + if n == 0 { 2 << 20 } else { 0 };
        message.truncate(message.len() - 3);
        message.extend([0x9a, 0x06, 0xff, 0xff, 0xff, 0x7f]);
        message.resize(size, 1);
        let at = world.source.raw(&channel, message.into());
        last.push(key(*id, &channel, at));
    }
    let mut kept = 0;
    for (n, key) in last.iter().enumerate() {
        let record = until(&mut world, key, |s| *s == State::Waiting).await;
        let whole = record.kept == Kept::Whole;
        assert!(n > 0 || !whole, "larger than the limit of a message");
        assert_eq!(!bytes_of(&world, &record).await.is_empty(), whole);
        kept += usize::from(whole);
    }
    assert_eq!(kept, 2, "of what fits into the limit of a task");
    for key in &last {
        judge(&mut world, key, Verdict::Drop).await;
    }
    world.run(500, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn what_is_over_the_bounds_is_named_and_not_kept() {
    seeds(2, too_many);
}
