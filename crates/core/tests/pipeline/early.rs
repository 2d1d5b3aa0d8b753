//! A target that is an ordinary Milvus sees rows before their tick, and what is read behind them puts nothing wrong.

use std::time::Duration;

use bytes::Bytes;
use cdc_core::ids::CollectionId;
use cdc_core::target::memory::{Key, Row};
use cdc_core::task::Mode;
use cdc_core::tso::Tso;
use cdc_sim::messages::{self, To};
use cdc_sim::world::{World, seeds};

/// One collection on one channel, whose messages and ticks come one by one, at times that the test gives.
struct Log {
    world: World,
    id: CollectionId,
    begin: Tso,
}

impl Log {
    async fn new(seed: u64) -> Self {
        Self::of(seed, 1).await
    }

    async fn of(seed: u64, shards: usize) -> Self {
        let mut world = World::new(seed, 1, 1);
        world.tasks[0].target.mode = Mode::Plain;
        // What is too large for this between two ticks is read twice.
        world.tasks[0].memory_budget = 4 << 20;
        let id = world.source.create("c", shards);
        world.start();
        world.equal().await;
        world.run(2000, |_| {}).await;
        let begin = world.source.ts();
        Self { world, id, begin }
    }

    fn write(&mut self, message: impl FnOnce(&To<'_>, i64) -> Bytes) {
        self.write_to(0, message);
    }

    fn write_to(&mut self, shard: usize, message: impl FnOnce(&To<'_>, i64) -> Bytes) {
        let source = &mut self.world.source;
        let shard = source.live[&self.id].catalog.shards[shard].clone();
        let to = To {
            collection: self.id,
            partition: source.default_partition(self.id),
            vchannel: &shard.vchannel,
        };
        let msg_id = source.msg_id();
        source.raw(&shard.pchannel, message(&to, msg_id));
    }

    /// So many milliseconds behind the beginning.
    fn at(&self, ms: u64) -> Tso {
        self.begin.plus(Duration::from_millis(ms))
    }

    fn insert(&mut self, ms: u64, keys: &[i64], padding: usize) {
        self.insert_to(0, ms, keys, padding);
    }

    fn insert_to(&mut self, shard: usize, ms: u64, keys: &[i64], padding: usize) {
        let ts = self.at(ms);
        let version = ms as i64;
        self.write_to(shard, |to, id| {
            messages::insert(to, keys, version, ts, ts, id, padding)
        });
    }

    fn delete(&mut self, ms: u64, keys: &[i64]) {
        let ts = self.at(ms);
        self.write(|to, id| messages::delete(to, keys, ts, id));
    }

    fn tick(&mut self, ms: u64) {
        let ts = self.at(ms);
        self.write(|_, id| messages::tick(ts, id));
    }

    /// Keys, and the time each was written at.
    fn rows(&self) -> Vec<(i64, i64)> {
        let rows = self.world.target.rows("default", "c").unwrap();
        let row = |row: Row| match row.key {
            Key::Int(key) => (key, row.version),
            Key::Text(_) => panic!("{row:?}"),
        };
        rows.into_iter().map(row).collect()
    }

    /// Waits until these are there, each once, and no others.
    async fn until(&self, wanted: &[(i64, i64)]) {
        for _ in 0..1000 {
            if self.rows() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{wanted:?} wanted, {:?} found", self.rows());
    }
}

async fn before_its_tick(seed: u64) {
    let mut log = Log::new(seed).await;
    log.insert(10, &[1, 2], 0);
    log.until(&[(1, 10), (2, 10)]).await;
    log.delete(20, &[1]);
    log.insert(30, &[1], 0);
    log.insert(40, &[3], 0);
    // Row 1 waits for its delete.
    log.until(&[(1, 10), (2, 10), (3, 40)]).await;
    log.tick(50);
    log.until(&[(1, 30), (2, 10), (3, 40)]).await;
    // Not once more with the next tick.
    log.insert(60, &[4], 0);
    log.tick(70);
    log.until(&[(1, 30), (2, 10), (3, 40), (4, 60)]).await;
}

#[test]
fn a_row_is_there_before_its_tick() {
    seeds(2, before_its_tick);
}

/// The halves of an upsert, and a delete of the time before: read when the row is there already.
async fn deleted_before(seed: u64) {
    let mut log = Log::new(seed).await;
    log.insert(10, &[1], 0);
    log.insert(20, &[2, 3], 0);
    log.until(&[(1, 10), (2, 20), (3, 20)]).await;
    log.delete(10, &[1]);
    log.delete(15, &[2]);
    // Of a later time: it is gone.
    log.delete(25, &[3]);
    log.tick(30);
    log.until(&[(1, 10), (2, 20)]).await;
}

#[test]
fn a_delete_that_is_read_behind_a_newer_row_spares_it() {
    seeds(2, deleted_before);
}

/// The tick stands between the times of the delete and of the row.
async fn a_tick_between(seed: u64) {
    let mut log = Log::new(seed).await;
    log.insert(30, &[1], 0);
    log.until(&[(1, 30)]).await;
    log.delete(10, &[1]);
    log.tick(20);
    log.insert(25, &[2], 0);
    log.tick(40);
    log.until(&[(1, 30), (2, 25)]).await;
}

#[test]
fn a_delete_of_an_earlier_stretch_spares_a_row_of_the_next() {
    seeds(2, a_tick_between);
}

/// Behind rows that are there comes so much that the stretch is read once more, in parts.
async fn read_again(seed: u64) {
    let mut log = Log::new(seed).await;
    log.insert(10, &[1], 0);
    log.insert(20, &[2], 0);
    log.until(&[(1, 10), (2, 20)]).await;
    let mut wanted = vec![(1, 10), (2, 20)];
    for n in 0..100 {
        let key = 100 + n;
        log.insert(30, &[key], 128 << 10);
        wanted.push((key, 30));
    }
    log.tick(40);
    log.until(&wanted).await;
    log.insert(50, &[3], 0);
    log.tick(60);
    wanted.insert(2, (3, 50));
    log.until(&wanted).await;
}

#[test]
fn what_is_there_does_not_come_twice_where_its_stretch_is_read_again() {
    seeds(2, read_again);
}

/// The later rows of a stretch that is read in parts are read once more, but not those of a shard that was read to its end
/// the first time.
async fn beside_parts(seed: u64) {
    let mut log = Log::of(seed, 2).await;
    let mut wanted = Vec::new();
    for n in 0..100 {
        log.insert(30 + n, &[n as i64], 128 << 10);
        wanted.push((n as i64, 30 + n as i64));
    }
    log.insert_to(1, 150, &[1000], 0);
    wanted.push((1000, 150));
    log.tick(200);
    log.until(&wanted).await;
}

#[test]
fn a_shard_beside_one_that_is_read_in_parts_keeps_its_rows() {
    seeds(2, beside_parts);
}

/// Killed between the row and its tick: the next process finds it in doubt.
async fn killed(seed: u64) {
    let mut log = Log::new(seed).await;
    log.insert(10, &[1], 0);
    log.until(&[(1, 10)]).await;
    log.world.kill();
    log.delete(10, &[1]);
    log.world.start();
    log.insert(20, &[2], 0);
    log.tick(30);
    log.until(&[(1, 10), (2, 20)]).await;
}

#[test]
fn killed_before_its_tick_it_is_there_once() {
    seeds(2, killed);
}
