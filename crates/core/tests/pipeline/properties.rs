//! Properties of databases, collections and indexes that change on the source.

use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::ids::{CollectionId, DbId};
use cdc_core::select::Operation;
use cdc_core::target::memory::Lack;
use cdc_core::task::Mode;
use rand::Rng;

use crate::names::{target, until_called};
use crate::writes;
use cdc_sim::world::{World, seeds};

const DEFAULT: DbId = DbId(1);
const TTL: &str = "collection.ttl.seconds";
const MMAP: &str = "mmap.enabled";
const MOST: &str = "database.max.collections";
const QUOTA: &str = "database.diskQuota.mb";

type Pairs = Vec<(String, String)>;

fn pairs(of: &[(&str, &str)]) -> Pairs {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    let mut pairs: Pairs = of.iter().map(own).collect();
    pairs.sort();
    pairs
}

fn sorted(mut of: Pairs) -> Pairs {
    of.sort();
    of
}

/// A world in which collection "a" of "default" and "b" of "shop" are carried.
async fn with_two(seed: u64, mode: Mode) -> (World, DbId, [CollectionId; 2]) {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].target.mode = mode;
    let shop = world.source.create_database("shop");
    let ids = [
        world.source.create("a", 1),
        world.source.create_in(shop, "b", 1),
    ];
    world.start();
    world.run(1_000, writes(&ids)).await;
    (world, shop, ids)
}

/// Properties are set, changed and taken away, sometimes while nobody looks; the target's own stay.
async fn properties(seed: u64, mode: Mode) {
    let (mut world, shop, ids) = with_two(seed, mode).await;
    let person = target(&world).await;
    let own = pairs(&[("own", "1")]);
    let (a, db) = ("default", "shop");
    person.alter_collection(a, "a", &own, &[]).await.unwrap();
    person.alter_database(db, &own, &[]).await.unwrap();
    for (wanted, of_shop) in [
        (&[(TTL, "60"), (MMAP, "true")][..], &[(MOST, "7")][..]),
        (&[(TTL, "90"), (MMAP, "true")], &[(MOST, "9"), (QUOTA, "1")]),
        (&[(TTL, "90")], &[(QUOTA, "1")]),
        (&[], &[]),
        (&[(MMAP, "true")], &[(MOST, "7"), (QUOTA, "2")]),
        (&[(TTL, "90")], &[]),
    ] {
        let down = world.rng.random_bool(0.5);
        if down {
            match world.rng.random() {
                true => world.kill_somewhere(writes(&ids)).await,
                false => world.stop().await,
            }
        }
        world.source.set_properties(ids[0], wanted);
        world.source.set_database_properties(shop, of_shop);
        world.source.set_database_properties(DEFAULT, of_shop);
        if down {
            world.start();
        }
        world.run(1_500, writes(&ids)).await;
        if !down && world.rng.random() {
            world.kill_somewhere(writes(&ids)).await;
            world.start();
            world.run(1_500, writes(&ids)).await;
        }
        let mut there = world.target.properties("default", "a").unwrap();
        there.retain(|p| !own.contains(p));
        assert_eq!(sorted(there), pairs(wanted));
        let mut there = world.target.database_properties("shop");
        there.retain(|p| !own.contains(p));
        assert_eq!(sorted(there), pairs(of_shop));
        let there = world.target.database_properties("default");
        assert_eq!(sorted(there), pairs(of_shop));
    }
    let there = world.target.properties("default", "a").unwrap();
    assert!(there.contains(&own[0]));
    assert_eq!(world.target.database_properties("shop"), own);
    world.equal().await;
}

#[test]
fn properties_are_as_on_the_source() {
    seeds(4, |seed| properties(seed, Mode::Replicate));
    seeds(2, |seed| properties(seed, Mode::Plain));
}

/// A collection and a database that are made with properties lose them while nobody looks. What was theirs never is left
/// alone, and so is what the source's cluster has for itself.
async fn taken_away_meanwhile(seed: u64, mode: Mode) {
    let mut world = World::new(seed, 2, 2);
    world.tasks[0].target.mode = mode;
    let shop = world.source.create_database("shop");
    let id = world.source.create_in(shop, "b", 1);
    let groups = ("database.resource_groups", "rg1");
    let deny = ("database.force.deny.writing", "true");
    let group = ("collection.resource_groups", "rg1");
    world
        .source
        .set_database_properties(shop, &[(MOST, "7"), groups, deny]);
    world.source.set_properties(id, &[(TTL, "60"), group]);
    world.start();
    world.run(1_500, writes(&[id])).await;
    let of_shop = world.target.database_properties("shop");
    assert_eq!(of_shop, pairs(&[(MOST, "7")]));
    let of_b = world.target.properties("shop", "b").unwrap();
    assert!(of_b.contains(&pairs(&[(TTL, "60")])[0]), "{of_b:?}");
    match world.rng.random() {
        true => world.kill(),
        false => world.stop().await,
    }
    world.source.set_database_properties(shop, &[groups]);
    world.source.set_properties(id, &[group]);
    let person = target(&world).await;
    let own = pairs(&[(QUOTA, "5")]);
    person.alter_database("shop", &own, &[]).await.unwrap();
    world.start();
    world.run(1_500, writes(&[id])).await;
    assert_eq!(world.target.database_properties("shop"), own);
    let of_b = world.target.properties("shop", "b").unwrap();
    assert!(of_b.iter().all(|(key, _)| key != TTL), "{of_b:?}");
    world.equal().await;
}

#[test]
fn what_is_taken_away_while_nobody_looks_goes_all_the_same() {
    seeds(2, |seed| taken_away_meanwhile(seed, Mode::Replicate));
    seeds(2, |seed| taken_away_meanwhile(seed, Mode::Plain));
}

/// A database is dropped and made again under its name, with other properties, while the target's is still in use.
async fn made_again(seed: u64) {
    let (mut world, shop, ids) = with_two(seed, Mode::Replicate).await;
    world
        .source
        .set_database_properties(shop, &[(MOST, "7"), (QUOTA, "1")]);
    world.run(1_000, writes(&ids)).await;
    if world.rng.random() {
        world.kill();
    }
    world.source.drop_collection(ids[1]);
    assert!(world.source.drop_database(shop));
    let shop = world.source.create_database("shop");
    let b = world.source.create_in(shop, "b", 1);
    world.source.set_database_properties(shop, &[(MOST, "9")]);
    if !world.is_running() {
        world.start();
    }
    world.run(2_500, writes(&[ids[0], b])).await;
    world.equal().await;
    let there = world.target.database_properties("shop");
    assert_eq!(there, pairs(&[(MOST, "9")]));
}

#[test]
fn a_database_that_is_made_again_has_its_own_properties() {
    seeds(4, made_again);
}

/// What the task has to say of its databases.
fn of_databases(world: &World) -> Vec<Problem> {
    let status = world.engine().status(&world.tasks[0].id).unwrap();
    let of = |p: &Problem| p.message.contains("properties of database");
    status.problems.into_iter().filter(of).collect()
}

/// A target without the calls: that is said once, and everything else goes on.
async fn unable(seed: u64, mode: Mode, lacking: (&'static str, Lack)) {
    let (mut world, shop, ids) = with_two(seed, mode).await;
    world.target.lacks(lacking.0, Some(lacking.1));
    world.source.set_database_properties(shop, &[(MOST, "7")]);
    world.run(8_000, writes(&ids)).await;
    let said = of_databases(&world);
    assert_eq!(said.len(), 1, "{said:?}");
    let problem = &said[0];
    assert_eq!(problem.class, ErrorClass::Configuration);
    assert_eq!(problem.code, Some(ProblemCode::Unable));
    let named = format!("database shop are not as on the source: {MOST}=7");
    assert!(problem.message.contains(&named), "{problem}");
    assert!(problem.hint.contains("alter_database"), "{problem:?}");
    let status = world.engine().status(&world.tasks[0].id).unwrap();
    assert_eq!(status.errors.get("configuration"), Some(&1));
    // It is not asked again: a target that could by now is not found out.
    world.target.lacks(lacking.0, None);
    world.run(15_000, writes(&ids)).await;
    assert_eq!(world.target.database_properties("shop"), []);
    assert_eq!(of_databases(&world).len(), 1);
    // By the next change it is.
    world.source.set_database_properties(shop, &[(MOST, "9")]);
    world.run(1_500, writes(&ids)).await;
    let there = world.target.database_properties("shop");
    assert_eq!(there, pairs(&[(MOST, "9")]));
    assert_eq!(of_databases(&world), []);
    world.equal().await;
}

#[test]
fn a_target_that_knows_no_properties_of_databases_is_told_of_once() {
    for call in ["DescribeDatabase", "AlterDatabase"] {
        let lacking = (call, Lack::Call);
        seeds(1, |seed| unable(seed, Mode::Replicate, lacking));
        seeds(1, |seed| unable(seed, Mode::Plain, lacking));
    }
    let deaf = ("AlterDatabase", Lack::Effect);
    seeds(2, |seed| unable(seed, Mode::Replicate, deaf));
}

/// A target that takes nothing away says so of the collection, whose rows go on; what is set is set.
async fn takes_nothing_away(seed: u64) {
    let (mut world, _, ids) = with_two(seed, Mode::Replicate).await;
    world
        .target
        .lacks("AlterCollection", Some(Lack::TakingAway));
    let set = [(TTL, "60"), (MMAP, "true")];
    world.source.set_properties(ids[0], &set);
    world.run(1_500, writes(&ids)).await;
    world.source.set_properties(ids[0], &[(MMAP, "false")]);
    world.run(2_500, writes(&ids)).await;
    let there = world.target.properties("default", "a").unwrap();
    assert_eq!(sorted(there), pairs(&[(TTL, "60"), (MMAP, "false")]));
    let last = world.status("a").unwrap().last_error.unwrap().problem;
    assert_eq!(last.class, ErrorClass::Configuration);
    let named = format!("default.a are not as on the source: {TTL} taken away");
    assert!(last.message.contains(&named), "{last}");
    // The next process knows of it still.
    world.kill();
    world.target.lacks("AlterCollection", None);
    world.start();
    world.run(1_500, writes(&ids)).await;
    let there = world.target.properties("default", "a").unwrap();
    assert_eq!(there, pairs(&[(MMAP, "false")]));
    world.equal().await;
}

#[test]
fn a_target_that_takes_no_property_away_says_so() {
    seeds(2, takes_nothing_away);
}

/// Parameters of an index that can be changed do so without a new index; a loaded collection is released for it.
async fn of_an_index(seed: u64, mode: Mode) {
    let (mut world, _, ids) = with_two(seed, mode).await;
    let [a, _] = ids;
    world.target.asks_for_release();
    world.source.toggle_index(a);
    let kind = ("index_type", "HNSW");
    world.source.set_index_params(a, &[kind, (MMAP, "true")]);
    world.source.toggle_load(a);
    world.run(2_500, writes(&ids)).await;
    for (down, wanted) in [
        (false, &[kind, (MMAP, "false")][..]),
        (world.rng.random(), &[kind]),
        (world.rng.random(), &[kind, (MMAP, "true")]),
        (true, &[kind]),
    ] {
        if down {
            world.kill_somewhere(writes(&ids)).await;
        }
        world.source.set_index_params(a, wanted);
        world.source.set_properties(a, &wanted[1..]);
        if down {
            world.start();
        }
        world.run(2_500, writes(&ids)).await;
        let there = world.target.indexes("default", "a").unwrap();
        assert_eq!(there.len(), 1, "{there:?}");
        assert_eq!(sorted(there[0].params.clone()), pairs(wanted));
        let own = world.target.properties("default", "a").unwrap();
        assert_eq!(own, pairs(&wanted[1..]));
        assert!(world.target.loaded("default", "a").unwrap().0);
    }
    assert!(!world.target.was_called("DropIndex"));
    world.equal().await;
}

#[test]
fn parameters_of_an_index_change_without_a_new_one() {
    seeds(3, |seed| of_an_index(seed, Mode::Replicate));
    seeds(2, |seed| of_an_index(seed, Mode::Plain));
}

/// An index that cannot be altered stays as it is, and loaded.
async fn index_stays(seed: u64, lack: Lack) {
    let (mut world, _, ids) = with_two(seed, Mode::Plain).await;
    world.target.lacks("AlterIndex", Some(lack));
    world.source.toggle_index(ids[0]);
    world.source.set_index_params(ids[0], &[(MMAP, "true")]);
    world.source.toggle_load(ids[0]);
    world.run(1_500, writes(&ids)).await;
    world.source.set_index_params(ids[0], &[]);
    world.run(8_000, writes(&ids)).await;
    let last = world.status("a").unwrap().last_error.unwrap().problem;
    assert_eq!(last.class, ErrorClass::Configuration);
    let named = format!("of default.a are not as on the source: {MMAP} taken away");
    assert!(last.message.contains(&named), "{last}");
    let there = world.target.indexes("default", "a").unwrap();
    assert_eq!(there[0].params, pairs(&[(MMAP, "true")]));
    assert!(!world.target.was_called("DropIndex"));
    world.equal().await;
}

#[test]
fn an_index_that_cannot_be_altered_stays() {
    seeds(1, |seed| index_stays(seed, Lack::Call));
    seeds(1, |seed| index_stays(seed, Lack::Effect));
}

/// A task that leaves them out.
async fn left_out(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let skip = [Operation::AlterDatabase, Operation::AlterIndex];
    world.tasks[0].skip = skip.into();
    let shop = world.source.create_database("shop");
    let id = world.source.create_in(shop, "a", 1);
    world.source.toggle_index(id);
    world.start();
    world.run(1_000, writes(&[id])).await;
    world.source.set_database_properties(shop, &[(MOST, "7")]);
    world.source.set_index_params(id, &[(MMAP, "true")]);
    world.run(1_500, writes(&[id])).await;
    assert_eq!(world.target.database_properties("shop"), []);
    assert_eq!(world.target.indexes("shop", "a").unwrap()[0].params, []);
    world.equal().await;
}

#[test]
fn properties_can_be_left_out() {
    seeds(1, left_out);
}

/// The call that sets one is carried out three seconds after its answer was lost. Meanwhile the source has none any more.
async fn late(seed: u64, call: &'static str) {
    let (mut world, shop, ids) = with_two(seed, Mode::Replicate).await;
    world.target.delay_call(call, Duration::from_secs(3));
    world.source.set_database_properties(shop, &[(MOST, "7")]);
    world.source.set_properties(ids[0], &[(TTL, "60")]);
    until_called(&mut world, &ids).await;
    world.source.set_database_properties(shop, &[(MOST, "9")]);
    world.source.set_properties(ids[0], &[]);
    if world.rng.random() {
        world.kill();
        world.start();
    }
    world.run(9_000, writes(&ids)).await;
    let there = world.target.database_properties("shop");
    assert_eq!(there, pairs(&[(MOST, "9")]));
    assert_eq!(world.target.properties("default", "a"), Some(Pairs::new()));
    world.equal().await;
}

#[test]
fn a_property_that_is_set_late_is_put_right() {
    seeds(3, |seed| late(seed, "AlterDatabase"));
    seeds(3, |seed| late(seed, "AlterCollection"));
}
