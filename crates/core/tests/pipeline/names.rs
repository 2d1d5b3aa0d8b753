//! Names that change on the source: of collections, and their aliases.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::ids::{CollectionId, DbId};
use cdc_core::select::Name;
use cdc_core::select::Operation;
use cdc_core::target::memory::Weather;
use cdc_core::target::{Target, TargetConnector};
use cdc_core::task::{CollectionState, Mode};
use rand::Rng;

use crate::writes;
use cdc_sim::world::{PATIENCE, World, seeds};

const DEFAULT: DbId = DbId(1);

/// A person at the target.
pub(crate) async fn target(world: &World) -> Arc<dyn Target> {
    let spec = &world.tasks[0].target;
    world.target.connect(spec).await.unwrap()
}

fn is_streaming(state: &CollectionState) -> bool {
    matches!(state, CollectionState::Streaming { .. })
}

/// A world, changed by `set` before it begins, in which collection "a" is carried and has rows.
async fn with_one(seed: u64, set: impl FnOnce(&mut World)) -> (World, CollectionId) {
    let mut world = World::new(seed, 2, 2);
    set(&mut world);
    let id = world.source.create("a", 2);
    world.start();
    world.until("a", is_streaming).await;
    world.run(1_000, writes(&[id])).await;
    (world, id)
}

/// Until the call that is to come late was made, with rows of these meanwhile.
pub(crate) async fn until_called(world: &mut World, ids: &[CollectionId]) {
    for _ in 0..PATIENCE / 20 {
        if world.target.has_delayed() {
            return;
        }
        if ids.is_empty() {
            world.run(20, |_| {}).await;
        } else {
            world.run(20, writes(ids)).await;
        }
    }
    panic!("it was never called\n{}", world.report());
}

fn rough() -> Weather {
    Weather {
        lost: 0.04,
        late: 0.02,
        late_by: Duration::from_millis(900),
        unreachable: 0.03,
        ..Weather::default()
    }
}

/// Renamed again and again: in chains and rings, into a database and back, with new ones of names that have become free;
/// killed in the middle.
async fn renamed(seed: u64, mode: Mode, weather: Weather) {
    let mut world = World::new(seed, 3, 2);
    world.tasks[0].target.mode = mode;
    world.target.set_weather(weather);
    let mut ids: Vec<CollectionId> = ["a", "b", "c"]
        .into_iter()
        .enumerate()
        .map(|(i, name)| world.source.create(name, 1 + i % 3))
        .collect();
    let shop = world.source.create_database("shop");
    world.start();
    world.run(1_500, writes(&ids)).await;
    let mut made = 0;
    for round in 0..8 {
        for _ in 0..world.rng.random_range(1..4) {
            let n = world.rng.random_range(0..ids.len());
            let id = ids[n];
            match world.rng.random_range(0..10) {
                // Two swap their names.
                0..3 => {
                    let other = ids[(n + 1) % ids.len()];
                    assert!(world.source.swap_names(id, other));
                }
                // A new one of its name.
                3..5 => {
                    let (db, old) = named(&world, id);
                    made += 1;
                    assert!(world.source.rename(id, DEFAULT, &format!("old{made}")));
                    ids.push(world.source.create_in(db, &old, 1 + round % 3));
                }
                // Dropped, and its name goes to another one.
                5 if ids.len() > 2 => {
                    let (db, old) = named(&world, id);
                    world.source.drop_collection(id);
                    ids.retain(|other| *other != id);
                    let heir = ids[n % ids.len()];
                    assert!(world.source.rename(heir, db, &old));
                }
                5..8 => {
                    let db = if world.rng.random() { shop } else { DEFAULT };
                    let name = format!("n{}", world.rng.random_range(0..5));
                    world.source.rename(id, db, &name);
                }
                _ => {
                    let time = world.rng.random_range(0..400);
                    world.run(time, writes(&ids)).await;
                }
            }
        }
        let time = world.rng.random_range(0..1_500);
        world.run(time, writes(&ids)).await;
        if world.rng.random() {
            world.kill_somewhere(writes(&ids)).await;
            let down = world.rng.random_range(0..400);
            world.run(down, writes(&ids)).await;
            world.start();
        }
    }
    world.target.set_weather(Weather::default());
    world.run(2_000, writes(&ids)).await;
    world.equal().await;
}

fn named(world: &World, id: CollectionId) -> (DbId, String) {
    let collection = &world.source.live[&id].catalog;
    (collection.db, collection.name.clone())
}

#[test]
fn a_collection_has_its_new_name_on_the_target() {
    seeds(4, |seed| renamed(seed, Mode::Replicate, Weather::default()));
    seeds(3, |seed| renamed(seed, Mode::Plain, Weather::default()));
}

#[test]
fn a_collection_has_its_new_name_when_answers_are_lost() {
    seeds(2, |seed| renamed(seed, Mode::Replicate, rough()));
    seeds(2, |seed| renamed(seed, Mode::Plain, rough()));
}

/// Somebody else's collection has the name: that is said, rows go on, and when it is free it is taken.
async fn taken(seed: u64, mode: Mode) {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].target.mode = mode;
    let id = world.source.create("a", 2);
    world.start();
    world.run(1_000, writes(&[id])).await;
    let person = target(&world).await;
    let mut other = world.source.live[&id].catalog.clone();
    other.name = "b".to_owned();
    let now = person.now().await.unwrap();
    person
        .create_collection("default", &other, now)
        .await
        .unwrap();
    assert!(world.source.rename(id, DEFAULT, "b"));
    let mut said = String::new();
    for _ in 0..100 {
        world.run(100, writes(&[id])).await;
        let status = world.status("b").unwrap();
        let problem = status.last_error.map(|e| e.problem.to_string());
        said = problem.unwrap_or_default();
        if said.contains("default.b") {
            break;
        }
    }
    assert!(said.contains("belongs to something else"), "{said:?}");
    let status = world.status("b").unwrap();
    assert!(
        matches!(status.state, CollectionState::Streaming { .. }),
        "{status:?}"
    );
    assert_eq!(status.target, Some(Name::new("default", "a")));
    world.source.flush();
    let wanted = world.source.expected(id);
    for _ in 0..200 {
        if world.target.rows("default", "a").as_ref() == Some(&wanted) {
            break;
        }
        world.run(100, |_| {}).await;
    }
    assert_eq!(world.target.rows("default", "a"), Some(wanted));
    let now = person.now().await.unwrap();
    person.drop_collection("default", "b", now).await.unwrap();
    world.equal().await;
    world.run(1_500, |_| {}).await;
    let status = world.status("b").unwrap();
    assert_eq!(status.target, None);
}

#[test]
fn a_name_that_is_somebody_elses_on_the_target_is_left_to_him() {
    seeds(2, |seed| taken(seed, Mode::Replicate));
    seeds(1, |seed| taken(seed, Mode::Plain));
}

/// A task that does not carry renames.
async fn left_out(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].skip = [Operation::RenameCollection, Operation::Alias].into();
    let id = world.source.create("a", 2);
    world.start();
    world.run(1_000, writes(&[id])).await;
    assert!(world.source.rename(id, DEFAULT, "b"));
    assert!(world.source.put_alias(id, "x"));
    world.run(3_000, writes(&[id])).await;
    assert!(world.target.rows("default", "a").is_some());
    assert!(world.target.rows("default", "b").is_none());
    assert!(world.target.aliases().is_empty());
    let status = world.status("b").unwrap();
    assert_eq!(status.target, Some(Name::new("default", "a")));
    assert_eq!(status.last_error, None);
}

#[test]
fn names_can_be_left_out() {
    seeds(1, left_out);
}

/// Aliases that are made, moved, dropped, whose name a collection gets, and the other way round.
async fn aliased(seed: u64, mode: Mode, weather: Weather) {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].target.mode = mode;
    world.target.set_weather(weather);
    let mut ids: Vec<CollectionId> = (0..3)
        .map(|i| world.source.create(&format!("c{i}"), 1 + i % 2))
        .collect();
    world.start();
    world.run(1_000, writes(&ids)).await;
    for round in 0..10 {
        for _ in 0..3 {
            let n = world.rng.random_range(0..ids.len());
            let name = format!("x{}", world.rng.random_range(0..4));
            match world.rng.random_range(0..10) {
                0..5 => drop(world.source.put_alias(ids[n], &name)),
                5..7 => world.source.drop_alias(DEFAULT, &name),
                7 => {
                    world.source.drop_alias(DEFAULT, &name);
                    world.source.rename(ids[n], DEFAULT, &name);
                }
                8 => {
                    // Its aliases with it.
                    let (_, old) = named(&world, ids[n]);
                    for (_, alias, of) in world.source.aliases() {
                        if of == ids[n] {
                            world.source.drop_alias(DEFAULT, &alias);
                        }
                    }
                    world.source.drop_collection(ids[n]);
                    ids[n] = world.source.create(&format!("d{round}{n}"), 1);
                    world.source.put_alias(ids[n], &old);
                }
                _ => drop(world.source.rename(ids[n], DEFAULT, &format!("r{round}"))),
            }
        }
        let time = world.rng.random_range(0..1_200);
        world.run(time, writes(&ids)).await;
        if world.rng.random() {
            world.kill_somewhere(writes(&ids)).await;
            world.start();
        }
    }
    world.target.set_weather(Weather::default());
    world.equal().await;
}

#[test]
fn aliases_are_as_on_the_source() {
    seeds(3, |seed| aliased(seed, Mode::Replicate, Weather::default()));
    seeds(2, |seed| aliased(seed, Mode::Plain, Weather::default()));
    seeds(2, |seed| aliased(seed, Mode::Replicate, rough()));
}

/// An alias that somebody else has made on the target is left alone, and said.
async fn of_somebody(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let id = world.source.create("a", 1);
    world.start();
    world.run(1_000, writes(&[id])).await;
    let person = target(&world).await;
    let mut other = world.source.live[&id].catalog.clone();
    other.name = "theirs".to_owned();
    let now = person.now().await.unwrap();
    person
        .create_collection("default", &other, now)
        .await
        .unwrap();
    person
        .put_alias("default", "x", "theirs", false)
        .await
        .unwrap();
    person
        .put_alias("default", "own", "a", false)
        .await
        .unwrap();
    assert!(world.source.put_alias(id, "x"));
    assert!(world.source.put_alias(id, "y"));
    world.run(3_000, writes(&[id])).await;
    let theirs = world.target.id("default", "theirs").unwrap();
    let ours = world.target.id("default", "a").unwrap();
    let there = world.target.aliases();
    let wanted = [("own", ours), ("x", theirs), ("y", ours)];
    let wanted = wanted.map(|(alias, of)| ("default".to_owned(), alias.to_owned(), of));
    assert_eq!(there, wanted);
    let said = world.status("a").unwrap().last_error;
    let said = said.map(|e| e.problem.to_string()).unwrap_or_default();
    assert!(said.contains("default.x"), "{said:?}");
    // Free, it is taken.
    person.drop_alias("default", "x").await.unwrap();
    world.run(12_000, writes(&[id])).await;
    let there = world.target.aliases();
    assert!(
        there.contains(&("default".to_owned(), "x".to_owned(), ours)),
        "{there:?}"
    );
    world.source.drop_alias(DEFAULT, "x");
    world.source.drop_alias(DEFAULT, "y");
    world.run(1_000, writes(&[id])).await;
    let wanted = [("default".to_owned(), "own".to_owned(), ours)];
    assert_eq!(world.target.aliases(), wanted);
}

#[test]
fn an_alias_of_somebody_else_stays_his() {
    seeds(2, of_somebody);
}

/// The call that renames is carried out three seconds after its answer was lost. Meanwhile the source has given its old
/// name to a new collection, and it another one.
async fn late(seed: u64, mode: Mode) {
    let (mut world, id) = with_one(seed, |world| world.tasks[0].target.mode = mode).await;
    let by = Duration::from_secs(3);
    world.target.delay_call("RenameCollection", by);
    assert!(world.source.rename(id, DEFAULT, "b"));
    until_called(&mut world, &[id]).await;
    assert!(world.source.rename(id, DEFAULT, "c"));
    let new = world.source.create("a", 2);
    if world.rng.random() {
        world.run(200, writes(&[id, new])).await;
        world.kill();
        world.start();
    }
    world.run(6_000, writes(&[id, new])).await;
    world.equal().await;
}

#[test]
fn a_rename_that_is_carried_out_late_finds_its_own_collection() {
    seeds(3, |seed| late(seed, Mode::Replicate));
    seeds(2, |seed| late(seed, Mode::Plain));
}

/// The same, of a collection that the source drops meanwhile: none of its names is free before.
async fn late_and_dropped(seed: u64) {
    let (mut world, id) = with_one(seed, |world| {
        world.target.set_latency(Duration::from_millis(200))
    })
    .await;
    let by = Duration::from_millis(world.rng.random_range(300..3_000));
    world.target.delay_call("RenameCollection", by);
    assert!(world.source.rename(id, DEFAULT, "b"));
    until_called(&mut world, &[id]).await;
    world.source.drop_collection(id);
    let new = world.source.create("a", 1);
    world.run(6_000, writes(&[new])).await;
    world.equal().await;
}

#[test]
fn a_rename_that_is_carried_out_late_finds_nobody_where_it_was_dropped() {
    seeds(12, late_and_dropped);
}

/// In plain mode rows go by name: an insert that is carried out late must not find what has the old name by then.
async fn late_rows(seed: u64) {
    let (mut world, id) = with_one(seed, |world| world.tasks[0].target.mode = Mode::Plain).await;
    world.equal().await;
    world
        .target
        .delay_call("Insert", Duration::from_millis(900));
    let partition = world.source.default_partition(id);
    world.source.insert(id, partition, 5, 0);
    world.source.flush();
    until_called(&mut world, &[]).await;
    assert!(world.source.rename(id, DEFAULT, "b"));
    let new = world.source.create("a", 2);
    world.run(3_000, |_| {}).await;
    world.run(1_000, writes(&[id, new])).await;
    world.equal().await;
}

#[test]
fn rows_that_come_late_find_their_own_collection() {
    seeds(3, late_rows);
}

/// Partitions are made and dropped while their collection gets another name.
async fn partitions(seed: u64, mode: Mode) {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].target.mode = mode;
    world.target.set_latency(Duration::from_millis(20));
    let id = world.source.create("a", 2);
    world.start();
    world.run(1_000, writes(&[id])).await;
    for round in 0..12 {
        let partition = world
            .source
            .create_partition(id, &format!("p{}", round % 3));
        world.source.insert(id, partition, 4, 0);
        let time = world.rng.random_range(0..1_000);
        world.run(time, writes(&[id])).await;
        world.source.drop_partition(id, partition);
        let time = world.rng.random_range(0..200);
        world.run(time, writes(&[id])).await;
        assert!(world.source.rename(id, DEFAULT, &format!("a{round}")));
        let time = world.rng.random_range(0..600);
        world.run(time, writes(&[id])).await;
    }
    world.equal().await;
    world.run(2_000, |_| {}).await;
    let (_, name) = named(&world, id);
    let there = world.target.partitions("default", &name).unwrap();
    assert_eq!(there, ["_default"]);
}

#[test]
fn partitions_follow_the_name_of_their_collection() {
    seeds(4, |seed| partitions(seed, Mode::Replicate));
    seeds(2, |seed| partitions(seed, Mode::Plain));
}

/// Collections that are just being made swap their names.
async fn swapped_while_made(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    world.target.set_latency(Duration::from_millis(30));
    world.start();
    world.run(500, |_| {}).await;
    let mut ids = Vec::new();
    for round in 0..10 {
        let one = world.source.create(&format!("x{round}"), 1);
        let time = world.rng.random_range(0..300);
        world.run(time, writes(&[one])).await;
        let other = world.source.create(&format!("y{round}"), 2);
        let time = world.rng.random_range(0..200);
        world.run(time, writes(&[one, other])).await;
        assert!(world.source.swap_names(one, other));
        ids.extend([one, other]);
    }
    world.run(1_000, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn collections_that_are_just_being_made_swap_their_names() {
    seeds(4, swapped_while_made);
}

/// A creation that is called for twice, for the first call had no answer, and comes late: not behind a rename.
async fn made_late(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    world.start();
    world.run(500, |_| {}).await;
    world
        .target
        .delay_call("CreateCollection", Duration::from_secs(3));
    let id = world.source.create("a", 2);
    until_called(&mut world, &[id]).await;
    world.run(500, writes(&[id])).await;
    assert!(world.source.rename(id, DEFAULT, "b"));
    world.run(5_000, writes(&[id])).await;
    world.equal().await;
}

#[test]
fn a_creation_that_is_carried_out_late_leaves_nothing_under_the_old_name() {
    seeds(2, made_late);
}

/// An alias that is made late, when the source has none any more.
async fn aliased_late(seed: u64) {
    let (mut world, id) = with_one(seed, |_| {}).await;
    world
        .target
        .delay_call("AlterAlias", Duration::from_secs(3));
    assert!(world.source.put_alias(id, "x"));
    until_called(&mut world, &[id]).await;
    world.source.drop_alias(DEFAULT, "x");
    if world.rng.random() {
        world.kill();
        world.start();
    }
    world.run(5_000, writes(&[id])).await;
    world.equal().await;
}

#[test]
fn an_alias_that_is_made_late_goes_again() {
    seeds(3, aliased_late);
}
