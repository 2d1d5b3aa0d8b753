//! The in-memory twin of a 2.3.5 standby, for tests: what it accepts, what it loses, what it counts, and what must
//! never be done to it.
//!
//! It behaves as tried on the real server: a call with an invalid entry writes nothing; a message id that comes again
//! before the next tick is dropped by the readers; rows are there once a tick at or above them is written; a delete
//! kills the copies that are strictly older, in whatever order the two were written. What the real server accepts and
//! then suffers from (times at or below a tick, unknown shards, ids that come again later) is kept as a *violation*.

mod calls;
mod channel;
mod content;
mod flushed;
mod message;
mod names;
mod plain;
mod properties;
pub mod rules;
mod session;
mod state;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use super::plain::PlainWriter;
use super::{Target, TargetConnector, TargetError, TargetIndex};
use crate::ids::{CollectionId, PChannel};
use crate::task::{Mode, TargetSpec};
use crate::tso::Tso;
use calls::Session;
pub use properties::Lack;
use rules::Rule;
use state::State;

const URI: &str = "memory";

/// A primary key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    Int(i64),
    Text(String),
}

/// One physical copy of a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    pub partition: String,
    pub key: Key,
    /// Value of the first Int64 column that is not the key; 0 if there is none.
    pub version: i64,
}

/// What a tick shows.
#[derive(Clone, PartialEq, Debug)]
pub struct Shown {
    pub channel: PChannel,
    pub tick: Tso,
    pub keys: Vec<ShownKey>,
    /// All shards that live on this channel, as source and target id of their collection and their number.
    pub shards: Vec<(CollectionId, CollectionId, usize)>,
}

/// One key of which a message came to be shown, and what a reader at this tick sees of it.
#[derive(Clone, PartialEq, Debug)]
pub struct ShownKey {
    /// The collection's id on the source it was made for, and on the target.
    pub source: CollectionId,
    pub target: CollectionId,
    pub shard: usize,
    pub key: Key,
    /// Of the messages that this tick shows.
    pub times: Vec<Tso>,
    pub rows: Vec<Row>,
}

/// Calls that went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wrongs {
    pub lost: u64,
    pub partly: u64,
    pub late: u64,
    pub unreachable: u64,
    /// Their caller was gone when they were carried out.
    pub outlived: u64,
}

/// Messages that were written, those dropped by the readers left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    pub calls: u64,
    pub inserts: u64,
    pub rows: u64,
    pub deletes: u64,
    pub drops: u64,
    pub ticks: u64,
    /// Messages dropped because their id came again before a tick.
    pub repeats: u64,
}

/// How often calls go wrong. Probabilities of one call.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Weather {
    /// Carried out, but the answer is lost.
    pub lost: f64,
    /// The answer is lost, and the call is carried out up to `late_by` later.
    pub late: f64,
    pub late_by: Duration,
    /// Does not get out.
    pub unreachable: f64,
    /// Its first messages are written, the answer is lost.
    pub partly: f64,
    /// What its caller no longer waits for is carried out all the same, at any time before its deadline.
    pub outlives: f64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Well,
    Lost,
    /// Part of the messages.
    Partly(f64),
    /// So many of the messages.
    First(usize),
    Late(Duration),
    Unreachable,
}

struct Faults {
    weather: Weather,
    wrongs: Wrongs,
    lose: usize,
    first: Option<usize>,
    fail: usize,
    late: usize,
    late_by: Duration,
    /// The next call of this name.
    delayed: Option<(&'static str, Duration)>,
    rng: StdRng,
    latency: Duration,
}

/// What each Insert and each Delete of plain mode passes on its way: a place where their caller may die.
#[async_trait]
pub trait RowGate: Send + Sync {
    async fn pass_rows(
        &self,
        name: &'static str,
        call: BoxFuture<'_, Result<(), TargetError>>,
    ) -> Result<(), TargetError>;
}

struct Inner {
    state: Mutex<State>,
    faults: Mutex<Faults>,
    row_gate: Mutex<Option<Arc<dyn RowGate>>>,
    hung: watch::Sender<bool>,
    epoch: Tso,
    since: Instant,
}

/// A standby in memory. Clones share their content.
#[derive(Clone)]
pub struct MemoryTarget {
    inner: Arc<Inner>,
}

impl MemoryTarget {
    /// With `channels` physical channels, its clock starting at `epoch`; `seed` decides latencies and faults.
    pub fn new(channels: usize, epoch: Tso, seed: u64) -> Self {
        let faults = Faults {
            weather: Weather::default(),
            wrongs: Wrongs::default(),
            lose: 0,
            first: None,
            fail: 0,
            late: 0,
            late_by: Duration::ZERO,
            delayed: None,
            rng: StdRng::seed_from_u64(seed),
            latency: Duration::from_millis(4),
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State::new(channels)),
                faults: Mutex::new(faults),
                row_gate: Mutex::default(),
                hung: watch::Sender::new(false),
                epoch,
                since: Instant::now(),
            }),
        }
    }

    /// What was done to it that a real standby would suffer from.
    pub fn violations(&self) -> Vec<String> {
        self.inner.state.lock().violations.clone()
    }

    /// The first of them.
    pub fn violation(&self) -> Option<String> {
        self.inner.state.lock().violations.first().cloned()
    }

    /// The rows that `count(*)` counts, sorted. `None` if there is no such collection.
    pub fn rows(&self, database: &str, name: &str) -> Option<Vec<Row>> {
        self.inner.state.lock().rows(database, name)
    }

    /// All that was written for one key, in order of time, for the message of a test that fails.
    pub fn history(&self, database: &str, name: &str, key: &Key) -> Vec<String> {
        self.inner.state.lock().history(database, name, key)
    }

    /// `watcher` is told of every tick that counts.
    pub fn watch(&self, watcher: impl FnMut(Shown) + Send + 'static) {
        self.inner.state.lock().watcher = Some(Box::new(watcher));
    }

    /// Inserts and deletes of plain mode pass this one from now on.
    pub fn set_row_gate(&self, gate: Arc<dyn RowGate>) {
        *self.inner.row_gate.lock() = Some(gate);
    }

    /// A hash of all that was done to it, and when.
    pub fn trace(&self) -> u64 {
        self.inner.state.lock().trace()
    }

    pub fn wrongs(&self) -> Wrongs {
        self.inner.faults.lock().wrongs
    }

    pub fn indexes(&self, database: &str, name: &str) -> Option<Vec<TargetIndex>> {
        let mut state = self.inner.state.lock();
        state.find(database, name).map(|c| c.indexes.clone())
    }

    /// Whether it is loaded, and the partitions that are.
    pub fn loaded(&self, database: &str, name: &str) -> Option<(bool, Vec<String>)> {
        let mut state = self.inner.state.lock();
        state.find(database, name).map(|c| {
            let loaded = c.partitions.iter().filter(|(_, p)| p.loaded);
            (c.loaded, loaded.map(|(name, _)| name.clone()).collect())
        })
    }

    pub fn partitions(&self, database: &str, name: &str) -> Option<Vec<String>> {
        let mut state = self.inner.state.lock();
        let found = state.find(database, name);
        found.map(|c| c.partitions.keys().cloned().collect())
    }

    pub fn databases(&self) -> Vec<String> {
        self.inner.state.lock().databases.keys().cloned().collect()
    }

    pub fn written(&self) -> Written {
        self.inner.state.lock().written
    }

    /// Database and name of every collection there is.
    pub fn names(&self) -> Vec<(String, String)> {
        let state = self.inner.state.lock();
        let names = |(db, names): (&String, &std::collections::BTreeMap<String, CollectionId>)| {
            names
                .keys()
                .map(|name| (db.clone(), name.clone()))
                .collect::<Vec<_>>()
        };
        state.databases.iter().flat_map(names).collect()
    }

    /// Database and name of every alias, and of which collection.
    pub fn aliases(&self) -> Vec<(String, String, CollectionId)> {
        let state = self.inner.state.lock();
        let all = state.aliases.iter();
        all.map(|((db, alias), of)| (db.clone(), alias.clone(), *of))
            .collect()
    }

    /// The collection of a name.
    pub fn id(&self, database: &str, name: &str) -> Option<CollectionId> {
        let state = self.inner.state.lock();
        state.databases.get(database)?.get(name).copied()
    }

    pub fn last_tick(&self, channel: &PChannel) -> Tso {
        self.inner.state.lock().last_tick(channel)
    }

    /// Faults of all calls from now on, at random.
    pub fn set_weather(&self, weather: Weather) {
        self.inner.faults.lock().weather = weather;
    }

    /// A call takes up to this long to get there, and up to this long to be answered.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.faults.lock().latency = latency;
    }

    /// The next `n` writing calls are carried out, their answers are lost.
    pub fn lose_replies(&self, n: usize) {
        self.inner.faults.lock().lose = n;
    }

    /// A twin that does not keep one of the rules, for a scenario to notice.
    #[must_use]
    pub fn without(self, rule: Rule) -> Self {
        self.inner.state.lock().broken = Some(rule);
        self
    }

    /// Whether GetPersistentSegmentInfo names a segment of a collection. `None` if there is no such collection.
    pub fn names_segments(&self, database: &str, name: &str) -> Option<bool> {
        self.inner.state.lock().names_segments(database, name)
    }

    /// Of the next ReplicateMessage the first `n` messages are written, and its answer is lost.
    pub fn cut_next(&self, n: usize) {
        self.inner.faults.lock().first = Some(n);
    }

    /// It restarts, and reads again what it has not flushed.
    pub fn restart(&self) {
        self.inner.state.lock().restart();
    }

    /// It restarts, and everything that it has not flushed is gone.
    pub fn restart_losing(&self) {
        self.inner.state.lock().restart_losing();
    }

    /// It leaves one of its nodes out of its topology from now on, or no longer.
    pub fn leave_out_a_node(&self, silent: bool) {
        self.inner.state.lock().node_is_silent = silent;
    }

    /// The next `n` calls do not get out.
    pub fn fail_next(&self, n: usize) {
        self.inner.faults.lock().fail = n;
    }

    /// The answers of the next `n` ReplicateMessage calls are lost at once; the calls are carried out `by` later.
    pub fn delay_next(&self, n: usize, by: Duration) {
        let mut faults = self.inner.faults.lock();
        (faults.late, faults.late_by) = (n, by);
    }

    /// The answer of the next call of this name is lost at once; it is carried out `by` later.
    pub fn delay_call(&self, call: &'static str, by: Duration) {
        self.inner.faults.lock().delayed = Some((call, by));
    }

    /// Whether that call was made.
    pub fn has_delayed(&self) -> bool {
        self.inner.faults.lock().delayed.is_none()
    }

    /// Calls hang from now on, until [`MemoryTarget::release`] or their deadline.
    pub fn hang(&self) {
        self.inner.hung.send_replace(true);
    }

    pub fn release(&self) {
        self.inner.hung.send_replace(false);
    }

    /// Refuses every insert and delete of this collection with code 1100, until [`MemoryTarget::accept`].
    pub fn refuse(&self, database: &str, name: &str) {
        let what = (database.to_owned(), name.to_owned());
        self.inner.state.lock().refused.push(what);
    }

    pub fn accept(&self, database: &str, name: &str) {
        let mut state = self.inner.state.lock();
        state.refused.retain(|(d, n)| d != database || n != name);
    }
}

impl Faults {
    fn fate(&mut self, call: &str, writes: bool, replicate: bool) -> Fate {
        if let Some((_, by)) = self.delayed.take_if(|(delayed, _)| *delayed == call) {
            return Fate::Late(by);
        }
        if self.fail > 0 {
            self.fail -= 1;
            return Fate::Unreachable;
        }
        if writes && self.lose > 0 {
            self.lose -= 1;
            return Fate::Lost;
        }
        if replicate && let Some(first) = self.first.take() {
            return Fate::First(first);
        }
        if replicate && self.late > 0 {
            self.late -= 1;
            return Fate::Late(self.late_by);
        }
        let weather = self.weather;
        let only = |on: bool, odds: f64| if on { odds } else { 0.0 };
        let mut dice: f64 = self.rng.random();
        for (odds, fate) in [
            (weather.unreachable, Fate::Unreachable),
            (only(writes, weather.lost), Fate::Lost),
            (only(replicate, weather.late), Fate::Late(weather.late_by)),
            (only(replicate, weather.partly), Fate::Partly(1.0)),
        ] {
            if dice < odds {
                return match fate {
                    Fate::Late(by) => Fate::Late(by.mul_f64(self.rng.random())),
                    Fate::Partly(_) => Fate::Partly(self.rng.random()),
                    other => other,
                };
            }
            dice -= odds;
        }
        Fate::Well
    }
}

impl Inner {
    fn keeps(&self, rule: Rule) -> bool {
        self.state.lock().keeps(rule)
    }

    fn now(&self) -> Tso {
        let mut state = self.state.lock();
        let now = self.epoch.plus(self.since.elapsed());
        state.clock = now.max(state.clock.next());
        state.clock
    }

    fn fate(&self, call: &str, writes: bool, replicate: bool) -> Fate {
        let mut faults = self.faults.lock();
        let fate = faults.fate(call, writes, replicate);
        let wrongs = &mut faults.wrongs;
        match fate {
            Fate::Well => {}
            Fate::Lost => wrongs.lost += 1,
            Fate::Partly(_) | Fate::First(_) => wrongs.partly += 1,
            Fate::Late(_) => wrongs.late += 1,
            Fate::Unreachable => wrongs.unreachable += 1,
        }
        fate
    }

    /// When a call whose caller is gone is carried out, within what is left of its deadline; `None`: never.
    fn outlives(&self, left: Duration) -> Option<Duration> {
        let mut faults = self.faults.lock();
        if faults.weather.outlives == 0.0 {
            return None;
        }
        let (dice, part) = (faults.rng.random::<f64>(), faults.rng.random::<f64>());
        let outlives = dice < faults.weather.outlives;
        faults.wrongs.outlived += u64::from(outlives);
        outlives.then(|| left.mul_f64(part))
    }

    /// The time on the wire, one way.
    async fn travel(&self) {
        let wait = {
            let mut faults = self.faults.lock();
            let part = faults.rng.random::<f64>();
            faults.latency.mul_f64(part)
        };
        tokio::time::sleep(wait).await;
        let mut hung = self.hung.subscribe();
        // The sender lives in `self`: this cannot fail.
        let _ = hung.wait_for(|hung| !hung).await;
    }
}

#[async_trait]
impl TargetConnector for MemoryTarget {
    async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError> {
        let plain = spec.mode == Mode::Plain;
        if plain {
            self.inner.state.lock().plain = true;
        }
        Ok(Arc::new(Session {
            inner: self.inner.clone(),
            deadline: spec.call_timeout,
            writer: plain.then(PlainWriter::default),
        }))
    }
}
