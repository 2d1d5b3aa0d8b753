//! A source, a standby, a store, and an engine between them that can be killed.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::engine::{Engine, Parts};
use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::secret::Secret;
use cdc_core::snapshot::SourceRows;
use cdc_core::store::memory::MemoryStore;
use cdc_core::target::TargetConnector;
use cdc_core::target::memory::MemoryTarget;
use cdc_core::task::{
    CollectionState, CollectionStatus, OnConflict, Pattern, Selection, StartPoint, TargetSpec,
    TaskSpec,
};
use cdc_core::tso::Tso;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

use crate::gate::{self, Gate, Gated, Kind, Trap};
use crate::plan::EPOCH;
use crate::rows::ShownRows;
use crate::source::{Live, Source};

/// Source time between two looks at the world.
pub const STEP: u64 = 20;
/// The longest a test waits for something, in its own time.
pub const PATIENCE: u64 = 180_000;
pub const REPLICATE: &str = "src-replicate-msg";

/// Runs a test under `count` seeds, or under the one that `CDC_PIPELINE_SEED` names, each in a time of its own that
/// passes as fast as the work is done.
pub fn seeds<F: Future<Output = ()>>(count: u64, test: impl Fn(u64) -> F) {
    let given = std::env::var("CDC_PIPELINE_SEED").ok();
    let seeds: Vec<u64> = match given.and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            // More of them, for a long search.
            let times = std::env::var("CDC_PIPELINE_TIMES").ok();
            let times: u64 = times.and_then(|n| n.parse().ok()).unwrap_or(1);
            (0..count * times)
                .map(|_| rand::random::<u32>().into())
                .collect()
        }
    };
    if std::env::var("RUST_LOG").is_ok() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
        let _ = subscriber.with_test_writer().try_init();
    }
    for seed in seeds {
        println!("CDC_PIPELINE_SEED={seed}");
        paused(seed).unwrap().block_on(test(seed));
    }
}

/// A runtime whose time passes as fast as the work is done. Built with `--cfg tokio_unstable` what it chooses is of the
/// seed, as the jitter of this thread's waits is.
pub fn paused(seed: u64) -> std::io::Result<Runtime> {
    cdc_core::backoff::seeded::seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    builder.build()
}

pub fn task(name: &str, selection: Selection) -> TaskSpec {
    TaskSpec {
        id: TaskId::new(name),
        target: TargetSpec {
            uri: "http://memory:19530".to_owned(),
            token: Secret::default(),
            tls: Default::default(),
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(1),
            mode: cdc_core::task::Mode::Replicate,
        },
        selection,
        mapping: Default::default(),
        skip: Default::default(),
        start: StartPoint::Created,
        starts: Default::default(),
        added: Default::default(),
        created: cdc_core::tso::Tso::ZERO,
        positions: Default::default(),
        on_conflict: OnConflict::Ask,
        memory_budget: 64 << 20,
        snapshot: Default::default(),
        durable_every: Duration::from_secs(300),
    }
}

/// A selection of collections of the default database.
pub fn these(names: &[&str]) -> Selection {
    let name = |name: &&str| Pattern::exact("default", *name);
    Selection::Collections(names.iter().map(name).collect())
}

pub struct World {
    pub source: Source,
    pub target: MemoryTarget,
    pub store: MemoryStore,
    pub rng: StdRng,
    /// The tasks that run now, and are started again after a kill.
    pub tasks: Vec<TaskSpec>,
    pub kills: usize,
    /// Where the engines that are started read the source's rows, if anywhere.
    pub rows: Option<Arc<ShownRows>>,
    engine: Option<Engine>,
    /// The one that was started last, for who has to ask it at the moment something is shown.
    pub last_engine: Arc<Mutex<Option<Engine>>>,
    pub gate: Arc<Gate>,
}

/// What a world is made of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setup {
    pub source_channels: usize,
    pub target_channels: usize,
    /// Now, on the source.
    pub epoch: Tso,
    /// By how many ms the target's clock is ahead.
    pub ahead: i64,
    /// The share of messages that the source's producers write twice.
    pub retries: f64,
}

impl Drop for World {
    /// What watches the target holds the engine, and that the target.
    fn drop(&mut self) {
        self.last_engine.lock().take();
    }
}

impl World {
    /// With one task that carries everything.
    pub fn new(seed: u64, source_channels: usize, target_channels: usize) -> Self {
        let setup = Setup {
            source_channels,
            target_channels,
            // Where courses are to be the same again, the date is, too.
            epoch: match cfg!(tokio_unstable) {
                true => Tso::from_millis(EPOCH),
                false => Tso::now(),
            },
            ahead: 0,
            retries: 0.0,
        };
        Self::of(seed, &setup)
    }

    pub fn of(seed: u64, setup: &Setup) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let epoch = setup.epoch;
        let source = Source::new(setup.source_channels, epoch, rng.random(), setup.retries);
        let epoch = Tso::from_millis(epoch.millis().saturating_add_signed(setup.ahead));
        source.log.create_channel(&PChannel::new(REPLICATE));
        Self {
            source,
            target: MemoryTarget::new(setup.target_channels, epoch, rng.random()),
            store: MemoryStore::default(),
            gate: Gate::new(StdRng::seed_from_u64(rng.random())),
            rng,
            tasks: vec![task("t", Selection::All)],
            kills: 0,
            rows: None,
            engine: None,
            last_engine: Arc::default(),
        }
    }

    pub fn running(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// Takes the engine, to end it in good order.
    pub fn take_engine(&mut self) -> Option<Engine> {
        self.engine.take()
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub fn is_running(&self) -> bool {
        self.engine.is_some()
    }

    /// A new process on the same store.
    pub fn start(&mut self) {
        self.gate = Gate::new(StdRng::seed_from_u64(self.rng.random()));
        let gate = self.gate.clone();
        self.target.set_row_gate(gate.clone());
        let engine = Engine::new(Parts {
            rows: self
                .rows
                .clone()
                .map(|rows| -> Arc<dyn SourceRows> { rows }),
            catalog: Arc::new(Gated {
                gate: gate.clone(),
                inner: self.source.catalog.clone() as Arc<dyn cdc_core::catalog::Catalog>,
            }),
            source: Arc::new(Gated {
                gate: gate.clone(),
                inner: Arc::new(self.source.log.clone()) as Arc<dyn cdc_core::source::LogSource>,
            }),
            store: gate::store(&gate, Arc::new(self.store.clone())),
            connector: Arc::new(Gated {
                gate: gate.clone(),
                inner: Arc::new(self.target.clone()) as Arc<dyn TargetConnector>,
            }),
            replicate_channel: REPLICATE.to_owned(),
        });
        for task in &self.tasks {
            engine.start(task.clone()).unwrap();
        }
        *self.last_engine.lock() = Some(engine.clone());
        self.engine = Some(engine);
    }

    /// The process ends at this instant.
    pub fn kill(&mut self) {
        self.gate.kill();
        self.kills += 1;
        if let Some(engine) = self.engine.take() {
            // It cannot do anything any more; this only ends its tasks.
            tokio::spawn(async move { engine.stop_all(Duration::ZERO).await });
        }
    }

    /// Kills at a moment the seed chooses: now, or at one of the calls that come, on either side of its effect.
    pub async fn kill_somewhere(&mut self, mut work: impl FnMut(&mut Source)) {
        let kind = match self.rng.random_range(0..8) {
            0..3 => Some(Kind::Replicate),
            3..6 => Some(Kind::Store),
            6 => Some(Kind::Ddl),
            _ => None,
        };
        if let Some(kind) = kind {
            self.gate.set(Trap {
                kind,
                after: self.rng.random_range(1..12),
                behind: self.rng.random(),
            });
            let gate = self.gate.clone();
            for _ in 0..100 {
                work(&mut self.source);
                self.step_source();
                let step = Duration::from_millis(STEP);
                if tokio::time::timeout(step, gate.died()).await.is_ok() {
                    break;
                }
            }
        }
        self.kill();
    }

    /// Ends the process in good order.
    pub async fn stop(&mut self) {
        let engine = self.engine.take().unwrap();
        let stopping = tokio::spawn(async move { engine.stop_all(Duration::from_secs(60)).await });
        let mut waited = 0;
        while !stopping.is_finished() {
            self.run(STEP, |_| {}).await;
            waited += STEP;
        }
        assert!(waited < 30_000, "a clean stop took {waited} ms");
    }

    /// A step of the source; who asks for its rows is answered.
    pub fn step_source(&mut self) {
        self.source.step(STEP);
        if let Some(rows) = &self.rows {
            rows.answer(&self.source);
        }
    }

    /// Lets `ms` of time pass while `work` is done at the source.
    pub async fn run(&mut self, ms: u64, mut work: impl FnMut(&mut Source)) {
        for _ in 0..ms.div_ceil(STEP) {
            work(&mut self.source);
            self.step_source();
            tokio::time::sleep(Duration::from_millis(STEP)).await;
        }
    }

    /// What differs between source and target, for the collections of which `of` is true.
    pub fn difference(&self, of: impl Fn(&str) -> bool) -> Option<String> {
        for (id, live) in &self.source.live {
            let name = &live.catalog.name;
            if !of(name) {
                continue;
            }
            let wanted = self.source.expected(*id);
            let database = &self.source.database_of(*id);
            let Some(found) = self.target.rows(database, name) else {
                return Some(format!("{name} ({id}) is not on the target"));
            };
            if wanted != found {
                let missing: Vec<_> = wanted
                    .iter()
                    .filter(|r| !found.contains(r))
                    .take(5)
                    .collect();
                let extra: Vec<_> = found
                    .iter()
                    .filter(|r| !wanted.contains(r))
                    .take(5)
                    .collect();
                let twice: Vec<_> = found.windows(2).filter(|w| w[0] == w[1]).take(5).collect();
                let first = missing.first().or(extra.first()).map(|row| &row.key);
                let first = first.or(twice.first().map(|rows| &rows[0].key));
                let history = first.map(|key| (key, self.target.history(database, name, key)));
                return Some(format!(
                    "{name} ({id}): {} rows wanted, {} found; missing {missing:?}, extra {extra:?}, twice {twice:?}; {history:?}",
                    wanted.len(),
                    found.len(),
                ));
            }
        }
        let names = self.target.names();
        let strange = names
            .iter()
            .find(|(database, name)| {
                let mut live = self.source.live.iter();
                let is = |(id, l): (&CollectionId, &Live)| {
                    l.catalog.name == *name && self.source.database_of(*id) == *database
                };
                of(name) && !live.any(is)
            })
            .map(|(_, name)| format!("{name} is on the target, not on the source"));
        strange.or_else(|| self.other_aliases(of))
    }

    /// Aliases that are not what they are on the source.
    fn other_aliases(&self, of: impl Fn(&str) -> bool) -> Option<String> {
        let name_of = |id: &CollectionId| &self.source.live[id].catalog.name;
        let wanted = self.source.aliases().into_iter();
        let wanted = wanted.filter(|(_, _, id)| of(name_of(id)));
        let wanted: BTreeSet<_> = wanted
            .map(|(db, alias, id)| {
                let there = self.target.id(&db, name_of(&id));
                (db, alias, there)
            })
            .collect();
        let carried = self.source.live.keys().filter(|id| of(name_of(id)));
        let carried: BTreeSet<_> = carried
            .filter_map(|id| self.target.id(&self.source.database_of(*id), name_of(id)))
            .collect();
        let found = self.target.aliases().into_iter();
        let found = found.filter(|(_, _, id)| carried.contains(id));
        let found: BTreeSet<_> = found.map(|(db, alias, id)| (db, alias, Some(id))).collect();
        (wanted != found).then(|| format!("aliases {wanted:?} wanted, {found:?} found"))
    }

    /// Waits until source and target are equal, row by row and copy by copy.
    pub async fn equal(&mut self) {
        self.equal_of(|_| true).await;
    }

    pub async fn equal_of(&mut self, of: impl Fn(&str) -> bool + Copy) {
        self.source.flush();
        let mut waited = 0;
        while let Some(difference) = self.difference(of) {
            if waited > PATIENCE {
                let stored = self.stored().await;
                panic!(
                    "after {} kills: {difference}\n{}\n{stored}",
                    self.kills,
                    self.report()
                );
            }
            self.run(100, |_| {}).await;
            waited += 100;
        }
        self.nothing_forbidden();
    }

    pub async fn stored(&self) -> String {
        use cdc_core::store::ProgressStore;
        let mut text = String::new();
        for task in &self.tasks {
            let stored = self.store.load(&task.id).await.unwrap();
            for (id, object) in &stored.collections {
                text += &format!("{id}: {:?} {:?}\n", object.phase, object.dropped_shards);
            }
            for (id, object) in &stored.partitions {
                text += &format!(
                    "partition {id}: {:?} {:?}\n",
                    object.phase, object.dropped_shards
                );
            }
            text += &format!("{:?}\n{:?}\n", stored.channels, stored.detached);
        }
        text
    }

    /// Whether the next stop would leave nothing in doubt can be seen in what it stored.
    pub async fn assert_clean(&self) {
        use cdc_core::store::ProgressStore;
        for task in &self.tasks {
            let stored = self.store.load(&task.id).await.unwrap();
            for (at, p) in &stored.channels {
                assert_eq!(p.sent, p.applied, "{at} is left in doubt");
            }
            for (at, p) in &stored.detached {
                assert_eq!(p.sent, p.applied, "{at:?} is left in doubt");
            }
        }
    }

    pub fn nothing_forbidden(&self) {
        let violations = self.target.violations();
        let some: Vec<_> = violations.iter().take(5).collect();
        assert!(
            violations.is_empty(),
            "{} violations after {} kills: {some:#?}",
            violations.len(),
            self.kills
        );
    }

    pub fn report(&self) -> String {
        match &self.engine {
            Some(engine) => self.report_of(engine),
            None => "no engine".to_owned(),
        }
    }

    /// What an engine says of its tasks.
    pub fn report_of(&self, engine: &Engine) -> String {
        let mut text = String::new();
        for task in &self.tasks {
            if let Some(status) = engine.status(&task.id) {
                text += &format!("{} {:?}\n{:?}\n", task.id, status.problems, status.counters);
                for collection in status.collections {
                    text += &format!("  {collection:?}\n");
                }
            }
        }
        let violations = self.target.violations();
        text + &format!("{} violations, {:?}", violations.len(), violations.first())
    }

    /// The living collection of that name, as the first task that has it says.
    pub fn status(&self, name: &str) -> Option<CollectionStatus> {
        let tasks = self.tasks.iter();
        let all = tasks.filter_map(|t| self.engine().status(&t.id));
        all.flat_map(|status| status.collections)
            .filter(|c| c.name == name && c.state != CollectionState::Dropped)
            .last()
    }

    /// Waits until a collection is in a state.
    pub async fn until(
        &mut self,
        name: &str,
        is: impl Fn(&CollectionState) -> bool,
    ) -> CollectionState {
        for _ in 0..PATIENCE / 100 {
            if let Some(status) = self.status(name)
                && is(&status.state)
            {
                return status.state;
            }
            self.run(100, |_| {}).await;
        }
        panic!("{name} never got there\n{}", self.report());
    }
}
