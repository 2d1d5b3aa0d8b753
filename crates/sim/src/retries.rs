//! A producer whose broker did not acknowledge a message in time writes it again, before the tick that shows it.

use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::source::memory::MemoryLog;
use cdc_core::tso::Tso;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Second copies of messages, on their way to the queue.
pub struct Retries {
    odds: f64,
    rng: StdRng,
    waiting: Vec<(PChannel, Tso, Bytes)>,
}

impl Retries {
    /// Of one message in `1 / odds`. Random numbers of its own: whatever else a seed stands for does not depend on it.
    pub fn new(odds: f64, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed ^ 0x7265_7472_6965_7321);
        Self {
            odds,
            rng,
            waiting: Vec::new(),
        }
    }

    /// A message of request time `ts` has been written; it may come again, at once or later.
    pub fn written(&mut self, log: &MemoryLog, channel: &PChannel, ts: Tso, message: Bytes) {
        if !self.rng.random_bool(self.odds) {
            return;
        }
        if self.rng.random_bool(0.5) {
            log.append(channel, message);
        } else {
            self.waiting.push((channel.clone(), ts, message));
        }
    }

    /// `tick` is about to be written: what it shows stands before it.
    pub fn before(&mut self, log: &MemoryLog, channel: &PChannel, tick: Tso) {
        let rng = &mut self.rng;
        let due = self.waiting.extract_if(.., |(of, ts, _)| {
            of == channel && (*ts <= tick || rng.random_bool(0.5))
        });
        for (channel, _, message) in due {
            log.append(&channel, message);
        }
    }
}
