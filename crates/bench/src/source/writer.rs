//! Writes a load: requests of rows at the pace of a source's clock, with its ticks between them.

use anyhow::Result;

use super::queue::Queue;
use super::shape::{Pool, Shape};
use super::{Collection, channel, messages, now_us, tso};

/// A Milvus' `proxy.timeTickInterval`, in microseconds.
pub const TICK_US: u64 = 200_000;

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Insert,
    Delete,
    /// One insert and one delete of the same keys, at one time.
    Upsert,
}

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub kind: Kind,
    pub shape: Shape,
    /// Of one request.
    pub rows: usize,
    /// Requests in a second of the source's time.
    pub per_second: f64,
}

/// What was written.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Written {
    pub requests: u64,
    /// Inserts and deletes.
    pub messages: u64,
    pub rows_inserted: u64,
    pub rows_deleted: u64,
    /// Of inserts and deletes.
    pub bytes: u64,
}

/// The source's hand: its clock, its ids, its channels in use.
pub struct Writer {
    pub queue: Queue,
    pool: Pool,
    channels: usize,
    next_id: i64,
    next_key: i64,
    /// Unix microseconds; every message and tick has a later one than the one before.
    clock: u64,
}

impl Writer {
    pub fn new(queue: Queue, channels: usize, seed: u64, clock: u64) -> Self {
        Self {
            queue,
            pool: Pool::new(seed),
            channels,
            next_id: 1,
            next_key: 0,
            clock,
        }
    }

    fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    /// The channels, and the messages that make collections: each with its start position.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn prepare(&mut self, collections: usize) -> Result<Vec<(Collection, Vec<u8>)>> {
        self.queue.create(&super::replicate_channel()).await?;
        for i in 0..self.channels {
            self.queue.create(&channel(i)).await?;
        }
        let mut all = Vec::new();
        for i in 0..collections {
            self.clock += 10;
            let collection = Collection::new(i, self.channels, tso(self.clock));
            let message = messages::create(&collection, self.id());
            let start = self.queue.write_now(&collection.pchannel, message).await?;
            all.push((collection, start));
        }
        self.tick().await?;
        Ok(all)
    }

    /// A tick above everything so far on every channel.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn tick(&mut self) -> Result<()> {
        self.clock += 1;
        for i in 0..self.channels {
            let message = messages::tick(tso(self.clock), self.id());
            self.queue.write(&channel(i), message).await?;
        }
        Ok(())
    }

    /// A tick at the present.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn tick_now(&mut self) -> Result<()> {
        self.clock = self.clock.max(now_us());
        self.tick().await?;
        self.queue.settle().await
    }

    /// One request at the clock's next moment.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn request(&mut self, to: &Collection, load: &Load) -> Result<Written> {
        self.clock += 1;
        let ts = tso(self.clock);
        let keys: Vec<i64> = (0..load.rows as i64).map(|i| self.next_key + i).collect();
        self.next_key += load.rows as i64;
        let mut written = Written {
            requests: 1,
            ..Written::default()
        };
        let mut payloads = Vec::new();
        if load.kind != Kind::Delete {
            let columns = self.pool.columns(load.shape, &keys);
            let base_ts = if load.kind == Kind::Upsert { 0 } else { ts };
            let id = self.id();
            payloads.push(messages::insert(to, &keys, columns, ts, base_ts, id));
            written.rows_inserted = keys.len() as u64;
        }
        if load.kind != Kind::Insert {
            payloads.push(messages::delete(to, &keys, ts, self.id()));
            written.rows_deleted = keys.len() as u64;
        }
        for payload in payloads {
            written.messages += 1;
            written.bytes += payload.len() as u64;
            self.queue.write(&to.pchannel, payload).await?;
        }
        Ok(written)
    }

    /// As much as fast as it goes, until `bytes` or `requests` are written, to the collections in turn. The source's
    /// clock goes as if the load had come at its own pace, and ends a little in the past.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn backlog(&mut self, to: &[Collection], load: &Load, bytes: u64) -> Result<Written> {
        let mut written = Written::default();
        let begin = self.clock;
        let mut next_tick = self.clock + TICK_US;
        while written.bytes < bytes {
            let due = begin + (written.requests as f64 / load.per_second * 1e6) as u64;
            self.clock = self.clock.max(due);
            while self.clock >= next_tick {
                self.tick().await?;
                next_tick += TICK_US;
            }
            let collection = &to[written.requests as usize % to.len()];
            written += self.request(collection, load).await?;
        }
        self.tick().await?;
        self.queue.settle().await?;
        Ok(written)
    }

    /// The load at its pace until `until_us`, unix microseconds. What cannot be written in time is written late, with
    /// the time at which it is written.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn live(&mut self, to: &[Collection], load: &Load, until_us: u64) -> Result<Written> {
        let mut written = Written::default();
        let begin = now_us();
        let mut next_tick = begin + TICK_US;
        let mut now = begin;
        while now < until_us {
            let due = begin + (written.requests as f64 / load.per_second * 1e6) as u64;
            let next = due.min(next_tick);
            if next > now {
                // Nothing is kept in the client while it sleeps.
                self.queue.settle().await?;
                tokio::time::sleep(std::time::Duration::from_micros(next - now)).await;
            }
            now = now_us();
            self.clock = self.clock.max(now);
            if now >= next_tick {
                self.tick().await?;
                next_tick += TICK_US;
            } else if now >= due {
                let collection = &to[written.requests as usize % to.len()];
                written += self.request(collection, load).await?;
            }
        }
        self.tick_now().await?;
        Ok(written)
    }
}

impl std::ops::AddAssign for Written {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.messages += other.messages;
        self.rows_inserted += other.rows_inserted;
        self.rows_deleted += other.rows_deleted;
        self.bytes += other.bytes;
    }
}
