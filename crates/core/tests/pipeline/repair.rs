//! Rows that are wrong on the target are copied anew while the task stands still and the source goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::{CollectionId, PartitionId};
use cdc_core::repair::{Keys, MOST_KEYS, NewRows, Repair, Repaired};
use cdc_core::route::hash::Value;
use cdc_core::target::memory::{Key, Row, Weather};
use cdc_core::target::{Target, TargetConnector};
use cdc_core::tso::Tso;
use cdc_sim::messages::{self, To};
use cdc_sim::source::Source;
use cdc_sim::world::{World, seeds};
use milvus::proto::msg::InsertRequest;
use prost::Message;
use rand::Rng;

/// Of a row that nobody wrote.
const WRONG: i64 = 1 << 40;

/// The model of the source puts keys on shards in its own way: only those count here that Milvus would put there too.
fn fits(key: i64, shards: usize) -> bool {
    Value::Int(key).place(shards) == key.rem_euclid(shards as i64) as usize
}

fn number(row: &Row) -> Option<i64> {
    match row.key {
        Key::Int(key) => Some(key),
        _ => None,
    }
}

/// Stops the task in good order, while the source goes on.
async fn pause(world: &mut World, mut work: impl FnMut(&mut Source)) {
    let (engine, task) = (world.engine().clone(), world.tasks[0].id.clone());
    let stopping = tokio::spawn(async move { engine.stop(&task, Duration::from_secs(60)).await });
    while !stopping.is_finished() {
        world.run(20, &mut work).await;
    }
}

fn resume(world: &World) {
    world.engine().start(world.tasks[0].clone()).unwrap();
}

/// Rows of the target go, come twice, change, or come from nowhere. Only while no task writes there. At the target's own
/// time, which a repair has to be above; or `below` what milvus-cdc may have sent, so that a task may go on before it.
pub(crate) async fn spoil(world: &mut World, id: CollectionId, some: usize, below: bool) {
    if !below {
        world.run(2500, |_| {}).await;
    }
    let name = world.source.live[&id].catalog.name.clone();
    let target: std::sync::Arc<dyn Target> =
        world.target.connect(&world.tasks[0].target).await.unwrap();
    let there = target.describe("default", &name).await.unwrap().unwrap();
    let partitions = target.partitions("default", &name).await.unwrap();
    let shards = there.vchannels.len();
    let rows = world.target.rows("default", &name).unwrap();
    for _ in 0..some {
        let now = target.now().await.unwrap();
        let found: Vec<&Row> = rows
            .iter()
            .filter(|r| number(r).is_some_and(|k| fits(k, shards)))
            .collect();
        let extra = world.rng.random_bool(0.3) || found.is_empty();
        let (key, version, partition) = if extra {
            let key = (0..1000).find_map(|_| {
                let key = WRONG + world.rng.random_range(0..100_000);
                fits(key, shards).then_some(key)
            });
            let partition = &partitions[world.rng.random_range(0..partitions.len())].0;
            (key.unwrap(), WRONG, partition.clone())
        } else {
            let row = found[world.rng.random_range(0..found.len())];
            (number(row).unwrap(), row.version, row.partition.clone())
        };
        let partition = partitions.iter().find(|(n, _)| *n == partition).unwrap().1;
        let shard = key.rem_euclid(shards as i64) as usize;
        let ts = match below {
            true => world.target.last_tick(&there.pchannels[shard]).next(),
            false => now,
        };
        let to = To {
            collection: there.id,
            partition,
            vchannel: &there.vchannels[shard],
        };
        let mut ids = (1 << 50) + world.rng.random_range(0..1i64 << 48);
        let mut next = || {
            ids += 1;
            ids
        };
        let mut msgs = Vec::new();
        match world.rng.random_range(0..3) {
            _ if extra => {
                msgs.push(messages::insert(&to, &[key], version, ts, ts, next(), 0));
            }
            0 => msgs.push(messages::delete(&to, &[key], ts, next())),
            1 => msgs.push(messages::insert(&to, &[key], version, ts, ts, next(), 0)),
            _ => {
                msgs.push(messages::delete(&to, &[key], ts, next()));
                msgs.push(messages::insert(&to, &[key], WRONG, ts, ts, next(), 0));
            }
        }
        msgs.push(messages::tick(ts, next()));
        let channel = &there.pchannels[shard];
        target
            .replicate(channel, msgs.into_iter().map(Into::into).collect(), ts, ts)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the source holds of these keys now.
pub(crate) fn read(
    source: &mut Source,
    id: CollectionId,
    partition: PartitionId,
    keys: &[i64],
) -> Repair {
    let read_at = source.ts();
    let live = &source.live[&id];
    let shards = live.catalog.shards.len();
    let mut rows = Vec::new();
    for key in keys {
        let Some((version, p)) = live.rows.get(key) else {
            continue;
        };
        if *p != partition {
            continue;
        }
        let shard = key.rem_euclid(shards as i64) as usize;
        let to = To {
            collection: id,
            partition,
            vchannel: &live.catalog.shards[shard].vchannel,
        };
        let insert = messages::insert(&to, &[*key], *version, read_at, read_at, 1, 0);
        let insert = InsertRequest::decode(insert).unwrap();
        rows.push(NewRows {
            partition,
            shard,
            columns: insert.fields_data,
        });
    }
    Repair {
        collection: id,
        partition: Some(partition),
        read_at,
        keys: Keys::Int(keys.to_vec()),
        rows,
        flush: false,
    }
}

/// What a comparison would find, and some keys that are right.
pub(crate) fn suspects(world: &mut World, id: CollectionId, partition: PartitionId) -> Vec<i64> {
    let catalog = &world.source.live[&id].catalog;
    let (name, shards) = (catalog.name.clone(), catalog.shards.len());
    let partition = catalog.partitions[&partition].name.clone();
    let of = |rows: Vec<Row>| -> Vec<Row> {
        let mut rows = rows;
        rows.retain(|r| r.partition == partition);
        rows
    };
    let (wanted, found) = (
        of(world.source.expected(id)),
        of(world.target.rows("default", &name).unwrap()),
    );
    let mut keys = BTreeSet::new();
    for row in wanted.iter().chain(&found) {
        let copies = |rows: &[Row]| rows.iter().filter(|r| *r == row).count();
        let differs = copies(&wanted) != copies(&found);
        if differs || world.rng.random_bool(0.1) {
            keys.extend(number(row));
        }
    }
    keys.into_iter()
        .filter(|k| fits(*k, shards))
        .take(MOST_KEYS)
        .collect()
}

async fn ask(world: &mut World, wanted: &Repair) -> Result<Repaired, Problem> {
    let (engine, spec, wanted) = (
        world.engine().clone(),
        world.tasks[0].clone(),
        wanted.clone(),
    );
    let asked = tokio::spawn(async move { engine.repair(&spec, &wanted).await });
    while !asked.is_finished() {
        world.run(20, |_| {}).await;
    }
    asked.await.unwrap()
}

fn writes<'a>(ids: &'a [(CollectionId, PartitionId)]) -> impl FnMut(&mut Source) + 'a {
    |source| {
        let (id, p) = ids[source.rng.random_range(0..ids.len())];
        match source.rng.random_range(0..6) {
            0 => source.upsert(id, p, 3),
            1 => source.insert(id, p, 2, 0),
            2 | 3 => source.random_write(&[id]),
            _ => {}
        }
    }
}

async fn spoilt_and_repaired(seed: u64, weather: Weather, kills: bool) {
    let mut world = World::new(seed, 2, 2);
    let ids: Vec<(CollectionId, PartitionId)> = (0..3)
        .map(|i| {
            let id = world.source.create(&format!("c{i}"), 1 + i % 2);
            (id, world.source.create_partition(id, "p"))
        })
        .collect();
    world.start();
    world.run(1500, writes(&ids)).await;
    for (id, p) in &ids {
        world.source.insert(*id, *p, 3, 0);
    }
    world.equal().await;
    for _ in 0..3 {
        let time = world.rng.random_range(0..1500);
        world.run(time, writes(&ids)).await;
        pause(&mut world, writes(&ids)).await;
        for (id, _) in &ids {
            spoil(&mut world, *id, 6, kills).await;
        }
        world.target.set_weather(weather);
        let down = world.rng.random_range(0..800);
        world.run(down, writes(&ids)).await;
        for (id, p) in &ids {
            for partition in [*p, world.source.default_partition(*id)] {
                let keys = suspects(&mut world, *id, partition);
                if keys.is_empty() {
                    continue;
                }
                let wanted = read(&mut world.source, *id, partition, &keys);
                // The source changes what was read, before it is written and behind that.
                world.run(200, writes(&ids)).await;
                if kills && world.rng.random_bool(0.3) {
                    let (engine, spec) = (world.engine().clone(), world.tasks[0].clone());
                    let again = wanted.clone();
                    tokio::spawn(async move { engine.repair(&spec, &again).await });
                    world.kill_somewhere(writes(&ids)).await;
                    world.start();
                    world.run(300, writes(&ids)).await;
                    pause(&mut world, writes(&ids)).await;
                    // The task has gone on since: what was read is old.
                    let refused = ask(&mut world, &wanted).await;
                    if let Err(refused) = &refused {
                        // Or an answer was lost before that was seen.
                        let known = [ErrorClass::Conflict, ErrorClass::Transient];
                        assert!(known.contains(&refused.class), "{refused}");
                    }
                }
                let keys = suspects(&mut world, *id, partition);
                if keys.is_empty() {
                    continue;
                }
                let wanted = read(&mut world.source, *id, partition, &keys);
                let mut done = ask(&mut world, &wanted).await;
                // With answers lost it may take some more tries, of the same.
                for _ in 0..20 {
                    match &done {
                        Err(e) if e.class == ErrorClass::Transient => {
                            done = ask(&mut world, &wanted).await;
                        }
                        _ => break,
                    }
                }
                let done = done.unwrap();
                assert_eq!(done.replaced, wanted.rows.len());
                assert_eq!(done.deleted, keys.len() - wanted.rows.len());
            }
        }
        world.target.set_weather(Weather::default());
        world.run(200, writes(&ids)).await;
        resume(&world);
        let time = world.rng.random_range(0..1000);
        world.run(time, writes(&ids)).await;
        world.equal().await;
    }
}

#[test]
fn what_is_wrong_is_made_right_while_the_source_goes_on() {
    seeds(6, |seed| {
        spoilt_and_repaired(seed, Weather::default(), false)
    });
}

#[test]
fn a_repair_may_be_killed_and_its_answers_lost() {
    let weather = Weather {
        lost: 0.1,
        late: 0.05,
        late_by: Duration::from_millis(900),
        unreachable: 0.05,
        ..Weather::default()
    };
    seeds(5, |seed| spoilt_and_repaired(seed, weather, true));
}

/// One that cannot be right is refused before anything is sent.
async fn refusals(seed: u64) {
    let mut world = World::new(seed, 1, 1);
    let id = world.source.create("c", 1);
    let partition = world.source.default_partition(id);
    world.source.insert(id, partition, 5, 0);
    world.start();
    world.equal().await;
    let keys = [0, 1];
    let old = read(&mut world.source, id, partition, &keys);
    let running = ask(&mut world, &old).await.unwrap_err();
    assert!(running.message.contains("runs"), "{running}");
    world.run(1000, |s| s.upsert(id, partition, 2)).await;
    pause(&mut world, |_| {}).await;
    let written = world.target.written();
    let good = read(&mut world.source, id, partition, &keys);
    let mut nowhere = good.clone();
    nowhere.collection = CollectionId(1);
    let mut twice = good.clone();
    twice.keys = Keys::Int(vec![0, 1, 1]);
    let mut foreign = good.clone();
    foreign.keys = Keys::Int(vec![0]);
    let mut shard = good.clone();
    shard.rows[0].shard = 1;
    let mut gone = good.clone();
    gone.partition = Some(PartitionId(1));
    let mut column = good.clone();
    column.rows[0].columns.remove(0);
    let mut none = good.clone();
    none.keys = Keys::Int(Vec::new());
    for (wanted, words) in [
        (old, "they may be old"),
        (nowhere, "the source has no collection 1"),
        (twice, "there twice"),
        (foreign, "1 is not one of the keys"),
        (shard, "shard 1: 0 to 0 expected"),
        (gone, "no partition 1"),
        (column, "one column of it expected"),
        (none, "keys: 0 of them; 1 to 1000"),
    ] {
        let refused = ask(&mut world, &wanted).await.unwrap_err();
        assert!(refused.message.contains(words), "{refused}");
    }
    let after = world.target.written();
    assert_eq!(
        (written.inserts, written.deletes),
        (after.inserts, after.deletes)
    );
    let early = Repair {
        read_at: Tso::ZERO,
        ..good.clone()
    };
    assert!(ask(&mut world, &early).await.is_err());
    ask(&mut world, &good).await.unwrap();
    resume(&world);
    world.equal().await;
}

#[test]
fn what_cannot_be_right_is_refused() {
    seeds(2, refusals);
}
