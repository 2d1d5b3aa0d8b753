//! What a reader of the target sees at every tick, against what the source held at that time.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::ids::CollectionId;
use cdc_core::target::memory::{Key, Row, Shown};
use cdc_core::tso::Tso;

use crate::source::Source;

/// So long a collection's state may lag behind what is so: a difference counts if it still is said to stream, unraised.
const GRACE: u64 = 600;

/// A promise that was not kept.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// Runs fail alike if this is the same.
    pub kind: String,
    pub text: String,
}

impl Failure {
    pub fn new(kind: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            text: text.into(),
        }
    }
}

#[derive(Default)]
struct Shard {
    /// Key to version, as a reader at the last tick sees it.
    mirror: BTreeMap<i64, i64>,
    /// It was equal to the source at the last tick, and everything since then came with the source's times.
    natural: bool,
    judged: Tso,
}

struct Suspicion {
    since: u64,
    collection: CollectionId,
    text: String,
}

/// Collections that are said to stream and to be at the source's times.
pub type Steady = BTreeSet<CollectionId>;

#[derive(Default)]
pub struct Judge {
    shards: BTreeMap<(CollectionId, CollectionId, usize), Shard>,
    suspicions: Vec<Suspicion>,
    /// Ticks at which a shard was compared with the source, and was to be equal.
    pub compared: u64,
    /// Raised windows of collections whose state did not tell of them.
    pub untold: u64,
    /// Keys that were there twice for a while, in a window of which the collection's state told.
    pub exposed: u64,
}

impl Judge {
    /// The engine was killed or ended: what it had sent last is not known to it, and is sent again otherwise.
    pub fn restarted(&mut self) {
        for shard in self.shards.values_mut() {
            shard.natural = false;
        }
        self.suspicions.clear();
    }

    /// At `now`, in ms of this run. `said`: which collections were said to be steady when it was shown, if that was asked;
    /// `steady`, of now, is asked only where it matters.
    pub fn tick(
        &mut self,
        shown: &Shown,
        said: Option<&Steady>,
        source: &Source,
        steady: &mut impl FnMut() -> Steady,
        now: u64,
    ) -> Result<(), Failure> {
        let mut touched: BTreeMap<(CollectionId, usize), (Vec<i64>, bool)> = BTreeMap::new();
        for key in &shown.keys {
            // Of one that the source has dropped half of an upsert may stand behind its drop: nothing of it is read any
            // more, and it goes from the target with the call that drops it.
            if !source.live.contains_key(&key.source) {
                continue;
            }
            let rows = key.rows.iter().filter(|row| is_there(source, row));
            let versions: Vec<i64> = rows.map(|row| row.version).collect();
            let Key::Int(number) = key.key else { continue };
            let told = said.is_some_and(|said| !said.contains(&key.source));
            if versions.len() > 1 && (told || !steady().contains(&key.source)) {
                // What was sent in part is in place again at the end of its window, of which its state tells.
                self.exposed += 1;
                let shard = self.shard(key.source, key.target, key.shard);
                shard.mirror.insert(number, i64::MIN);
                shard.natural = false;
                continue;
            }
            if versions.len() > 1 {
                let text = format!(
                    "{} copies of key {number} of collection {} at tick {} of {}: versions {versions:?}",
                    versions.len(),
                    key.source,
                    shown.tick,
                    shown.channel
                );
                return Err(Failure::new("doubled", text));
            }
            let shard = self.shard(key.source, key.target, key.shard);
            match versions.first() {
                Some(version) => shard.mirror.insert(number, *version),
                None => shard.mirror.remove(&number),
            };
            let natural = source.history.get(&key.source);
            let natural = natural.is_some_and(|h| key.times.iter().all(|ts| h.has(*ts)));
            let entry = touched.entry((key.target, key.shard)).or_default();
            entry.0.push(number);
            entry.1 |= !natural;
        }
        for (from, target, number) in &shown.shards {
            let (true, Some(history)) = (source.live.contains_key(from), source.history.get(from))
            else {
                continue;
            };
            let (keys, raised) = touched.remove(&(*target, *number)).unwrap_or_default();
            let tick = shown.tick;
            let shard = self.shard(*from, *target, *number);
            let judged = std::mem::replace(&mut shard.judged, tick);
            shard.natural &= !raised;
            if raised {
                // What was missing comes with other times: its state ought to have said so.
                let before = self.suspicions.len();
                self.suspicions.retain(|s| s.collection != *from);
                self.untold += (before - self.suspicions.len()) as u64;
            }
            let shard = self.shard(*from, *target, *number);
            let differs = |shard: &Shard, key: i64| {
                let there = |version: &i64| is_in(source, *version);
                let wanted = history.at(key, tick).filter(there);
                let found = shard.mirror.get(&key).copied().filter(there);
                (wanted != found).then_some((key, wanted, found))
            };
            if shard.natural {
                let changed = history.changed(*number, judged, tick);
                let wrong = keys
                    .into_iter()
                    .chain(changed)
                    .find_map(|key| differs(shard, key));
                if let Some((key, wanted, found)) = wrong {
                    shard.natural = false;
                    let text = format!(
                        "at tick {tick} of {} key {key} of collection {from} is {found:?}, on the source {wanted:?}",
                        shown.channel
                    );
                    self.suspicions.push(Suspicion {
                        since: now,
                        collection: *from,
                        text,
                    });
                }
                self.compared += 1;
            } else if steady().contains(from) {
                let all = history.changed(*number, Tso::ZERO, tick);
                let mut keys: BTreeSet<i64> = all.collect();
                keys.extend(shard.mirror.keys());
                shard.natural = keys.into_iter().all(|key| differs(shard, key).is_none());
            }
        }
        Ok(())
    }

    fn shard(&mut self, source: CollectionId, target: CollectionId, number: usize) -> &mut Shard {
        self.shards.entry((source, target, number)).or_default()
    }

    /// Whether a difference that was seen is one: its collection has been said to stream at the source's times since.
    pub fn confirm(
        &mut self,
        source: &Source,
        steady: &mut impl FnMut() -> Steady,
        now: u64,
    ) -> Result<(), Failure> {
        if self.suspicions.is_empty() {
            return Ok(());
        }
        let steady = steady();
        self.suspicions
            .retain(|s| steady.contains(&s.collection) && source.live.contains_key(&s.collection));
        match self.suspicions.iter().find(|s| now >= s.since + GRACE) {
            Some(real) => Err(Failure::new("not the source's state", real.text.clone())),
            None => Ok(()),
        }
    }
}

/// Rows of a dropped partition go with the call that drops it there, at any time.
fn is_in(source: &Source, version: i64) -> bool {
    let place = source.places.get(&version);
    place.is_none_or(|partition| !source.gone.contains(partition))
}

fn is_there(source: &Source, row: &Row) -> bool {
    is_in(source, row.version)
}
