//! Which collections are carried, under which names, and what is left out: rules, mappings and skipped operations, also
//! when they change while rows flow.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::ids::CollectionId;
use cdc_core::select::{MapRule, Mapping, Operation, Pattern, Rule, Rules};
use cdc_core::store::{ObjectPhase, ProgressStore};
use cdc_core::task::{Choice, CollectionState, OnConflict, Selection, TaskSpec};
use rand::Rng;

use super::writes;
use cdc_sim::world::{PATIENCE, World, seeds, task};

fn patterns(of: &[&str]) -> Vec<Pattern> {
    of.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

pub(crate) fn include(of: &[&str]) -> Rule {
    Rule::Include(patterns(of))
}

pub(crate) fn exclude(of: &[&str]) -> Rule {
    Rule::Exclude(patterns(of))
}

fn mapping(rules: &[(&str, &str)]) -> Mapping {
    let rule =
        |(from, to): &(&str, &str)| MapRule::new(MapRule::source(from).unwrap(), to).unwrap();
    Mapping(rules.iter().map(rule).collect())
}

pub(crate) fn with(rules: Vec<Rule>) -> TaskSpec {
    task("t", Selection::Rules(Rules(rules)))
}

/// A running task is asked for something else; a later start asks for it too.
fn change(world: &mut World, spec: &TaskSpec) {
    world.tasks = vec![spec.clone()];
    world.engine().change(spec.clone()).unwrap();
}

/// What differs between these collections of the source and those of these names on the target.
fn difference(world: &World, pairs: &BTreeMap<CollectionId, (&str, &str)>) -> Option<String> {
    pairs.iter().find_map(|(id, (database, name))| {
        let wanted = world.source.expected(*id);
        match world.target.rows(database, name) {
            Some(found) if found == wanted => None,
            Some(found) => Some(format!(
                "{database}.{name}: {} rows wanted, {} found",
                wanted.len(),
                found.len()
            )),
            None => Some(format!("{database}.{name} is not on the target")),
        }
    })
}

async fn equal(world: &mut World, pairs: &BTreeMap<CollectionId, (&str, &str)>) {
    world.source.flush();
    for _ in 0..PATIENCE / 100 {
        if difference(world, pairs).is_none() {
            return world.nothing_forbidden();
        }
        world.run(100, |_| {}).await;
    }
    panic!("{:?}\n{}", difference(world, pairs), world.report());
}

fn names(world: &World) -> BTreeSet<String> {
    let names = world.target.names();
    names.iter().map(|(d, n)| format!("{d}.{n}")).collect()
}

async fn mapped(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let db1 = world.source.create_database("db1");
    let a = world.source.create("a", 2);
    let b = world.source.create_in(db1, "b", 1);
    let tmp = world.source.create_in(db1, "tmp_1", 1);
    let x = world.source.create("x", 2);
    let ids = [a, b, tmp, x];
    let mut spec = with(vec![include(&["*.*"]), exclude(&["db1.tmp_*"])]);
    spec.mapping = mapping(&[
        ("default.x", "other.y"),
        ("db1.*", "db3.*"),
        ("*.*", "*.{}_copy"),
    ]);
    world.tasks = vec![spec];
    world.start();
    for _ in 0..4 {
        let time = world.rng.random_range(0..1500);
        world.run(time, writes(&ids)).await;
        world.kill_somewhere(writes(&ids)).await;
        world.start();
    }
    let late = world.source.create_in(db1, "late", 2);
    let partition = world.source.create_partition(a, "p");
    world.source.insert(a, partition, 5, 0);
    world.run(1000, writes(&[a, b, tmp, x, late])).await;
    let mut pairs = BTreeMap::from([
        (a, ("default", "a_copy")),
        (b, ("db3", "b")),
        (x, ("other", "y")),
        (late, ("db3", "late")),
    ]);
    equal(&mut world, &pairs).await;
    let there = ["db3.b", "db3.late", "default.a_copy", "other.y"].map(str::to_owned);
    assert_eq!(names(&world), BTreeSet::from(there));
    let status = world.status("b").unwrap();
    assert_eq!(
        status.target.map(|t| t.to_string()).as_deref(),
        Some("db3.b")
    );
    // A drop, a newer one of the name, and a rename of nothing.
    world.source.drop_collection(b);
    let b = world.source.create_in(db1, "b", 2);
    pairs.retain(|_, (_, name)| *name != "b");
    pairs.insert(b, ("db3", "b"));
    world.run(500, writes(&[a, b, x, late])).await;
    equal(&mut world, &pairs).await;
    // The database goes with its collections, by the name that it has there.
    for id in [b, tmp, late] {
        world.source.drop_collection(id);
    }
    pairs.retain(|_, (database, _)| *database != "db3");
    world.run(2000, writes(&[a, x])).await;
    assert!(world.source.drop_database(db1));
    for _ in 0..PATIENCE / 100 {
        if !world.target.databases().contains(&"db3".to_owned()) {
            break;
        }
        world.run(100, |_| {}).await;
    }
    assert!(!world.target.databases().contains(&"db3".to_owned()));
    equal(&mut world, &pairs).await;
}

#[test]
fn collections_and_databases_have_other_names_on_the_target() {
    seeds(4, mapped);
}

/// The rules change again and again while rows flow and the process is killed: at the end what is carried is equal, and
/// what was left out is as it was when it was.
async fn edits(seed: u64) {
    let mut world = World::new(seed, 3, 2);
    let names: Vec<String> = (0..6).map(|i| format!("c{i}")).collect();
    let ids: Vec<CollectionId> = names
        .iter()
        .enumerate()
        .map(|(i, name)| world.source.create(name, 1 + i % 2))
        .collect();
    world.tasks = vec![with(vec![include(&["*.*"])])];
    world.start();
    world.run(1000, writes(&ids)).await;
    for round in 0..20 {
        let out: Vec<usize> = (0..6).filter(|_| world.rng.random_bool(0.4)).collect();
        let excluded: Vec<String> = out.iter().map(|i| format!("default.c{i}")).collect();
        let excluded: Vec<&str> = excluded.iter().map(String::as_str).collect();
        let mut rules = vec![include(&["*.*"])];
        if !excluded.is_empty() {
            rules.push(exclude(&excluded));
        }
        let spec = with(rules);
        if round % 5 == 4 {
            // While nothing runs.
            world.kill_somewhere(writes(&ids)).await;
            world.tasks = vec![spec];
            world.start();
        } else {
            change(&mut world, &spec);
            if round % 7 == 3 {
                world.kill_somewhere(writes(&ids)).await;
                world.start();
            }
        }
        let time = world.rng.random_range(300..1500);
        world.run(time, writes(&ids)).await;
        if round % 4 != 0 {
            continue;
        }
        // Those that are in are equal; those that are out do not move.
        let inside = |name: &str| !excluded.contains(&format!("default.{name}").as_str());
        world.equal_of(inside).await;
        let before: Vec<_> = out
            .iter()
            .map(|i| world.target.rows("default", &names[*i]))
            .collect();
        world.run(1000, writes(&ids)).await;
        world.equal_of(inside).await;
        let after: Vec<_> = out
            .iter()
            .map(|i| world.target.rows("default", &names[*i]))
            .collect();
        assert!(
            before == after,
            "what is left out has changed on the target"
        );
        for i in &out {
            assert!(world.status(&names[*i]).is_none());
        }
    }
    change(&mut world, &with(vec![include(&["*.*"])]));
    world.run(500, writes(&ids)).await;
    world.equal().await;
}

#[test]
fn a_task_is_edited_while_rows_flow() {
    seeds(4, edits);
}

/// What is left out does not restart the others: their streams go on as they are.
#[test]
fn an_edit_leaves_the_others_as_they_are() {
    seeds(2, |seed| async move {
        let mut world = World::new(seed, 2, 2);
        let ids: Vec<CollectionId> = ["a", "b", "c"]
            .map(|name| world.source.create(name, 1))
            .into();
        world.tasks = vec![with(vec![include(&["default.a", "default.b"])])];
        world.start();
        world.run(2000, writes(&ids)).await;
        world
            .until("a", |s| matches!(s, CollectionState::Streaming { .. }))
            .await;
        let rows = world.status("a").unwrap().rows;
        assert!(rows > 0);
        change(
            &mut world,
            &with(vec![include(&["default.a", "default.c"])]),
        );
        world
            .until("c", |s| matches!(s, CollectionState::Streaming { .. }))
            .await;
        for _ in 0..20 {
            world.run(100, writes(&ids)).await;
            // A stream that began anew would be raised, or at least not be there for a moment.
            let state = world.status("a").unwrap().state;
            assert!(
                matches!(state, CollectionState::Streaming { raised: false, .. }),
                "{state:?}"
            );
        }
        assert!(world.status("a").unwrap().rows >= rows);
        assert!(world.status("b").is_none());
        world.equal_of(|name| name != "b").await;
    });
}

/// A collection that was left out and dropped on the source meanwhile is forgotten; it stays on the target, and a newer
/// one of its name asks.
#[test]
fn one_that_is_left_out_and_dropped_is_nobodys() {
    seeds(3, |seed| async move {
        let mut world = World::new(seed, 2, 2);
        let ids: Vec<CollectionId> = ["a", "b"].map(|name| world.source.create(name, 1)).into();
        let all = with(vec![include(&["*.*"])]);
        world.tasks = vec![all.clone()];
        world.start();
        let partition = world.source.default_partition(ids[0]);
        world.source.insert(ids[0], partition, 10, 0);
        world.run(1500, writes(&ids)).await;
        world.equal().await;
        change(
            &mut world,
            &with(vec![include(&["*.*"]), exclude(&["*.a"])]),
        );
        world.run(1000, writes(&ids)).await;
        let kept = world.target.rows("default", "a");
        world.source.drop_collection(ids[0]);
        world.run(3000, writes(&ids[1..])).await;
        assert!(kept.is_some() && world.target.rows("default", "a") == kept);
        let again = world.source.create("a", 1);
        change(&mut world, &all);
        let conflict = |s: &CollectionState| matches!(s, CollectionState::Conflict { choices, .. } if !choices.is_empty());
        world.run(1000, writes(&[again, ids[1]])).await;
        world.until("a", conflict).await;
        let engine = world.engine().clone();
        let id = world.tasks[0].id.clone();
        let answer = engine
            .choose(&id, "default", "a", Choice::Conflict(OnConflict::Recreate))
            .await;
        answer.unwrap();
        world.run(500, writes(&[again, ids[1]])).await;
        world.equal().await;
    });
}

/// Whether what is stored says that the collection `a` is nobody's.
async fn is_left(world: &World) -> bool {
    let stored = world.store.load(&world.tasks[0].id).await.unwrap();
    let mut of_a = stored.collections.values().filter(|o| o.name == "a");
    of_a.all(|o| o.phase == ObjectPhase::Dropped)
}

/// The source's drops are not carried.
async fn kept(seed: u64) {
    let mut world = World::new(seed, 2, 2);
    let mut spec = with(vec![include(&["*.*"])]);
    spec.skip = [Operation::DropCollection, Operation::DropPartition].into();
    world.tasks = vec![spec];
    let a = world.source.create("a", 2);
    let b = world.source.create("b", 2);
    world.start();
    let old = world.source.create_partition(b, "p");
    world.run(1500, writes(&[a, b])).await;
    world.source.insert(b, old, 7, 0);
    world.source.flush();
    let some = world.rng.random_range(0..300);
    world.run(some, writes(&[a])).await;
    // A partition: its rows stay, and those of a newer one of its name go beside them.
    let before = world.source.expected(b);
    world.source.drop_partition(b, old);
    let new = world.source.create_partition(b, "p");
    world.source.insert(b, new, 3, 0);
    let left: Vec<_> = before
        .into_iter()
        .filter(|row| !world.source.expected(b).contains(row))
        .collect();
    assert_eq!(left.len(), 7);
    if world.rng.random_bool(0.5) {
        world.kill_somewhere(|_| {}).await;
        world.start();
    }
    world.source.flush();
    let has_both = |world: &World| {
        let found = world.target.rows("default", "b").unwrap_or_default();
        left.iter().all(|row| found.contains(row))
            && found.len() == world.source.expected(b).len() + left.len()
    };
    let mut waited = 0;
    while !has_both(&world) {
        assert!(waited < PATIENCE, "{}", world.report());
        world.run(100, |_| {}).await;
        waited += 100;
    }
    // A collection: all its rows are there, it is done, and it stays.
    let partition = world.source.default_partition(a);
    world.source.insert(a, partition, 20, 0);
    let wanted = world.source.expected(a);
    world.source.drop_collection(a);
    let kills = world.kills;
    let done = |world: &World, left: bool| {
        let status = world.engine().status(&world.tasks[0].id).unwrap();
        let of_a = status.collections.into_iter().find(|c| c.name == "a");
        // A process that was started later has nothing to say of what was done before.
        match of_a {
            Some(c) => {
                c.state == CollectionState::Dropped && c.note.is_some_and(|n| n.contains("stays"))
            }
            None => world.kills > kills && left,
        }
    };
    let mut waited = 0;
    while !done(&world, is_left(&world).await) {
        assert!(waited < PATIENCE, "{}", world.report());
        if waited == 200 && world.rng.random_bool(0.5) {
            world.kill_somewhere(writes(&[b])).await;
            world.start();
        }
        world.run(100, writes(&[b])).await;
        waited += 100;
    }
    assert!(
        world.target.rows("default", "a") == Some(wanted.clone()),
        "{}",
        world.report()
    );
    // A newer one of its name is for a person.
    let again = world.source.create("a", 2);
    let conflict = |s: &CollectionState| matches!(s, CollectionState::Conflict { .. });
    world.run(500, writes(&[again, b])).await;
    world.until("a", conflict).await;
    assert!(world.target.rows("default", "a") == Some(wanted));
    world.nothing_forbidden();
}

#[test]
fn what_the_source_drops_stays_where_that_is_asked_for() {
    seeds(4, kept);
}

/// Two collections that would have one name, one that can have none: the later one waits, the others go on, and it goes on
/// by itself once it has a name.
#[test]
fn a_name_is_one_collections() {
    seeds(3, |seed| async move {
        let mut world = World::new(seed, 2, 2);
        let db1 = world.source.create_database("db1");
        let mut spec = with(vec![include(&["*.*"])]);
        spec.mapping = mapping(&[("*.a", "all.{name}"), ("*.*", "all.{database}_{}")]);
        let a = world.source.create("a", 1);
        world.tasks = vec![spec.clone()];
        world.start();
        world.run(1000, writes(&[a])).await;
        let second = world.source.create_in(db1, "a", 1);
        let b = world.source.create("b", 1);
        let ids = [a, second, b];
        let clash = |s: &CollectionState| {
            matches!(s, CollectionState::Conflict { problem, choices }
                if choices.is_empty() && problem.message.contains("all.a"))
        };
        let mut waited = 0;
        loop {
            let status = world.engine().status(&spec.id).unwrap();
            let mut of_second = status.collections.iter().filter(|c| c.source_id == second);
            if of_second.any(|c| clash(&c.state)) {
                break;
            }
            assert!(waited < PATIENCE, "{}", world.report());
            world.run(100, writes(&ids)).await;
            waited += 100;
        }
        equal(
            &mut world,
            &BTreeMap::from([(a, ("all", "a")), (b, ("all", "default_b"))]),
        )
        .await;
        spec.mapping = mapping(&[
            ("db1.a", "all.second"),
            ("*.a", "all.{name}"),
            ("*.*", "all.{database}_{}"),
        ]);
        change(&mut world, &spec);
        world.run(500, writes(&ids)).await;
        let pairs = BTreeMap::from([
            (a, ("all", "a")),
            (second, ("all", "second")),
            (b, ("all", "default_b")),
        ]);
        equal(&mut world, &pairs).await;
    });
}

/// Two tasks whose rules could not be told apart at their creation come to one collection: the second one waits.
#[test]
fn a_collection_is_written_by_one_task() {
    seeds(3, |seed| async move {
        let mut world = World::new(seed, 2, 2);
        let a = world.source.create("a", 1);
        let one = task(
            "one",
            Selection::Rules(Rules(vec![include(&["/default\\.[a-c]/"])])),
        );
        let mut two = task(
            "two",
            Selection::Rules(Rules(vec![include(&["/default\\.[a-c]/"])])),
        );
        two.on_conflict = OnConflict::Adopt;
        world.tasks = vec![one.clone()];
        world.start();
        world.run(1500, writes(&[a])).await;
        world.equal().await;
        world.tasks = vec![one.clone(), two.clone()];
        world.engine().start(two.clone()).unwrap();
        let waits = |world: &World| {
            let status = world.engine().status(&two.id);
            status.is_some_and(|s| s.collections.iter().any(|c| {
                matches!(&c.state, CollectionState::Conflict { problem, .. } if problem.message.contains("task one"))
            }))
        };
        let mut waited = 0;
        while !waits(&world) {
            assert!(waited < PATIENCE, "{}", world.report());
            world.run(100, writes(&[a])).await;
            waited += 100;
        }
        world.equal().await;
        // Once the first one lets it go, the second one carries it.
        let mut without = one.clone();
        without.selection = Selection::Rules(Rules(vec![include(&["/default\\.[b-c]/"])]));
        world.tasks = vec![without.clone(), two.clone()];
        world.engine().change(without).unwrap();
        world.run(8000, writes(&[a])).await;
        world.equal().await;
    });
}

/// What waits in Conflict goes on when the task's `on_conflict` is changed, as it runs.
#[test]
fn an_edit_of_on_conflict_answers_what_waits() {
    seeds(2, |seed| async move {
        let mut world = World::new(seed, 2, 2);
        let a = world.source.create("a", 1);
        let partition = world.source.default_partition(a);
        world.source.insert(a, partition, 5, 0);
        let mut spec = with(vec![include(&["*.*"])]);
        world.tasks = vec![spec.clone()];
        world.start();
        world.run(1000, writes(&[a])).await;
        world.equal().await;
        world.stop().await;
        // Another task, over what is there.
        spec.id = cdc_core::ids::TaskId::new("other");
        world.tasks = vec![spec.clone()];
        world.start();
        let conflict = |s: &CollectionState| matches!(s, CollectionState::Conflict { .. });
        world.until("a", conflict).await;
        spec.on_conflict = OnConflict::Adopt;
        change(&mut world, &spec);
        world.run(500, writes(&[a])).await;
        world.equal().await;
    });
}
