//! One run of a plan, from its first act until source and target are equal, or a promise is broken.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cdc_core::catalog::{CatalogError, LoadState, ObjectState};
use cdc_core::ids::{CollectionId, DbId, PartitionId};
use cdc_core::source::LogSource;
use cdc_core::target::memory::{Shown, Weather, Wrongs};
use cdc_core::task::{Choice, CollectionState, Mode, TaskStatus};
use parking_lot::Mutex;

use crate::gate::{DiskWeather, Trap};
use crate::judge::{Failure, Judge, Steady};
use crate::plan::{Act, Copies, Plan};
use crate::rows::ShownRows;
use crate::world::{self, STEP, World};

/// A tick, and, where it shows keys twice, which collections were said to be steady at that moment.
type Seen = (Shown, Option<Steady>);

/// Within so many ms after the last fault, source and target are equal, or it is stuck.
const SETTLED: u64 = 120_000;
/// A restart of the target is seen by then.
const SEEN: u64 = 15_000;
/// A clean stop takes no longer.
const STOPPED: u64 = 60_000;
/// More collections than that are not made.
const MOST: usize = 5;

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub failure: Option<Failure>,
    /// A hash of all that was done to the target.
    pub trace: u64,
    pub kills: usize,
    /// ReplicateMessage calls that were sent and not answered when their process was killed.
    pub cut: usize,
    pub wrongs: Wrongs,
    pub ddl: usize,
    pub rows: usize,
    /// Ticks at which a shard was compared with the source.
    pub compared: u64,
    /// Raised windows that the state of their collection did not tell of.
    pub untold: u64,
    /// Keys that were there twice for a while, in a window that was told of.
    pub exposed: u64,
    /// Rows that were read from the source, beside its queue.
    pub read: u64,
    /// In the run's own time.
    pub ms: u64,
}

impl Outcome {
    /// Enough happened in it to say something.
    pub fn counts(&self) -> bool {
        self.cut >= 1
            && self.wrongs.lost + self.wrongs.partly >= 1
            && self.ddl >= 5
            && self.rows >= 200
    }
}

/// Runs a plan in a time of its own. With `say` each act is printed.
pub fn run(plan: &Plan, say: bool) -> Outcome {
    let runtime = match world::paused(plan.seed) {
        Ok(runtime) => runtime,
        Err(e) => return failed(Failure::new("no runtime", e.to_string())),
    };
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(Run::of(plan, say))));
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        failed(Failure::new("panic", text.unwrap_or_default()))
    })
}

fn failed(failure: Failure) -> Outcome {
    Outcome {
        failure: Some(failure),
        ..Outcome::default()
    }
}

struct Run {
    world: World,
    judge: Judge,
    /// Since the last look.
    shown: Arc<Mutex<Vec<Seen>>>,
    disk: DiskWeather,
    /// Ms of nothing after the crash that is set.
    down: u64,
    now: u64,
    etcd_back: u64,
    released: u64,
    rows_back: u64,
    /// The target has restarted.
    restarts: bool,
    unseen_until: u64,
    say: bool,
    outcome: Outcome,
}

impl Run {
    async fn of(plan: &Plan, say: bool) -> Outcome {
        let mut world = World::of(plan.seed, &plan.setup);
        world.tasks[0].target.mode = plan.mode;
        if let Some(every) = plan.durable_every {
            world.tasks[0].durable_every = every;
        }
        let shown: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let seen = shown.clone();
        if plan.mode == Mode::Replicate {
            let (engine, task) = (world.last_engine.clone(), world.tasks[0].id.clone());
            world.target.watch(move |tick| {
                let twice = tick.keys.iter().any(|key| key.rows.len() > 1);
                let said = || {
                    let status = engine.lock().as_ref()?.status(&task);
                    Some(steady(status.into_iter()))
                };
                let said = if twice { said() } else { None };
                seen.lock().push((tick, said));
            });
        }
        world.target.set_weather(plan.weather);
        world.target.set_latency(plan.latency);
        let mut run = Self {
            world,
            judge: Judge::default(),
            shown,
            disk: plan.disk,
            down: 0,
            now: 0,
            etcd_back: 0,
            released: 0,
            rows_back: 0,
            restarts: false,
            unseen_until: 0,
            say,
            outcome: Outcome::default(),
        };
        let result = run.all(plan).await;
        let source = &run.world.source;
        let read = run.world.rows.as_ref();
        Outcome {
            failure: result.err(),
            trace: run.world.target.trace(),
            kills: run.world.kills,
            wrongs: run.world.target.wrongs(),
            rows: source.history.values().map(|h| h.written()).sum(),
            compared: run.judge.compared,
            untold: run.judge.untold,
            exposed: run.judge.exposed,
            read: read.map_or(0, |rows| rows.shown.load(Ordering::Relaxed)),
            ms: run.now,
            ..run.outcome
        }
    }

    async fn all(&mut self, plan: &Plan) -> Result<(), Failure> {
        if let Some(copies) = &plan.copies {
            self.before(plan.seed, copies).await?;
        }
        self.start();
        self.acts(&plan.acts).await?;
        self.settle().await
    }

    async fn acts(&mut self, acts: &[(u64, Act)]) -> Result<(), Failure> {
        for (gap, act) in acts {
            self.pass(*gap).await?;
            if self.say {
                println!("{:>6} ms  {act:?}", self.now);
            }
            self.outcome.ddl += usize::from(act.is_ddl() && self.apply(act).await?);
            if !act.is_ddl() {
                self.apply(act).await?;
            }
        }
        Ok(())
    }

    /// What the source did before there was a task.
    async fn before(&mut self, seed: u64, copies: &Copies) -> Result<(), Failure> {
        let rows = ShownRows::new(seed);
        rows.most.store(copies.most, Ordering::Relaxed);
        self.world.rows = Some(Arc::new(rows));
        self.world.source.hashes = true;
        self.acts(&copies.acts).await?;
        for (channel, purged) in copies.purged.iter().enumerate() {
            if *purged {
                self.purge(channel).await;
            }
        }
        let task = &mut self.world.tasks[0];
        task.snapshot.initial = copies.initial;
        task.snapshot.rows_per_second = copies.rows_per_second;
        task.created = self.world.source.now();
        Ok(())
    }

    async fn purge(&mut self, channel: usize) {
        let source = &mut self.world.source;
        let channel = source.channel(channel);
        if let Ok(Some(bounds)) = source.log.bounds(&channel).await {
            source.log.purge_to(&channel, bounds.last);
        }
    }

    /// A person has all copied whose place is lost. Nobody waits for an answer: its process may die before.
    fn copy_lost(&self) {
        let Some(engine) = self.world.running() else {
            return;
        };
        let task = &self.world.tasks[0].id;
        let status = engine.status(task);
        for c in status.into_iter().flat_map(|s| s.collections) {
            if matches!(c.state, CollectionState::PositionLost { .. }) {
                let (engine, task) = (engine.clone(), task.clone());
                let (say, now) = (self.say, self.now);
                tokio::spawn(async move {
                    let chosen = engine.choose(&task, &c.database, &c.name, Choice::Snapshot);
                    if let (Err(problem), true) = (chosen.await, say) {
                        // It is asked for again.
                        println!("{now:>6} ms  no copy of {}: {problem}", c.name);
                    }
                });
            }
        }
    }

    fn start(&mut self) {
        self.world.start();
        self.world.gate.set_disk(self.disk);
    }

    async fn pass(&mut self, ms: u64) -> Result<(), Failure> {
        for _ in 0..ms / STEP {
            self.step().await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Failure> {
        if self.etcd_back != 0 && self.now >= self.etcd_back {
            self.etcd_back = 0;
            self.world.source.catalog.fail(None);
        }
        if self.released != 0 && self.now >= self.released {
            self.released = 0;
            self.world.target.release();
        }
        if self.rows_back != 0 && self.now >= self.rows_back {
            self.set_rows_down(false);
        }
        self.world.step_source();
        self.now += STEP;
        tokio::time::sleep(Duration::from_millis(STEP)).await;
        self.look()?;
        if self.world.gate.is_dead() && self.world.running().is_some() {
            self.crash();
            for _ in 0..self.down / STEP {
                self.world.step_source();
                self.now += STEP;
                tokio::time::sleep(Duration::from_millis(STEP)).await;
                self.look()?;
            }
            self.start();
        }
        Ok(())
    }

    fn crash(&mut self) {
        self.world.kill();
        self.outcome.cut += self.world.gate.cut();
        self.judge.restarted();
        if self.say {
            println!(
                "{:>6} ms  killed, {} calls cut",
                self.now,
                self.world.gate.cut()
            );
        }
    }

    /// Judges what was shown since the last look.
    fn look(&mut self) -> Result<(), Failure> {
        let shown = std::mem::take(&mut *self.shown.lock());
        let (world, now) = (&self.world, self.now);
        // What a restart has lost is missing until it is seen: nothing else is promised.
        let mut known: Option<Steady> = (now < self.unseen_until).then(Steady::new);
        let mut steady = || {
            known
                .get_or_insert_with(|| said_to_be_steady(world))
                .clone()
        };
        for (tick, said) in &shown {
            self.judge
                .tick(tick, said.as_ref(), &world.source, &mut steady, now)?;
        }
        self.judge.confirm(&world.source, &mut steady, now)?;
        if let Some(violation) = world.target.violation() {
            let rule = violation.rsplit('[').next().unwrap_or_default();
            let kind = format!("violation [{rule}");
            return Err(Failure::new(kind, violation));
        }
        Ok(())
    }

    /// Whether there was something to do.
    async fn apply(&mut self, act: &Act) -> Result<bool, Failure> {
        let ids: Vec<CollectionId> = self.world.source.live.keys().copied().collect();
        let nth = |of: &usize| ids.get(of % ids.len().max(1)).copied();
        let source = &mut self.world.source;
        match act {
            Act::Insert { of, part, rows } => {
                let Some(id) = nth(of) else { return Ok(false) };
                let parts = self.parts(id);
                let source = &mut self.world.source;
                source.insert(id, parts[part % parts.len()].0, *rows, 0);
            }
            Act::Upsert { of, part, rows } => {
                let Some(id) = nth(of) else { return Ok(false) };
                let parts = self.parts(id);
                let source = &mut self.world.source;
                source.upsert(id, parts[part % parts.len()].0, *rows);
            }
            Act::Delete { of, rows } => {
                let Some(id) = nth(of) else { return Ok(false) };
                source.delete(id, *rows);
            }
            Act::Create { name, db, shards } => {
                let dbs: Vec<DbId> = source.databases.keys().copied().collect();
                let db = dbs[db % dbs.len()];
                let name = format!("c{name}");
                let mut live = source.live.values();
                let taken = live.any(|l| l.catalog.db == db && l.catalog.name == name);
                if taken || ids.len() >= MOST {
                    return Ok(false);
                }
                source.create_in(db, &name, *shards);
            }
            Act::Drop { of } => {
                let Some(id) = nth(of) else { return Ok(false) };
                source.drop_collection(id);
            }
            Act::Again { of, shards } => {
                let Some(id) = nth(of) else { return Ok(false) };
                let catalog = source.live[&id].catalog.clone();
                source.drop_collection(id);
                source.create_in(catalog.db, &catalog.name, *shards);
            }
            Act::CreatePartition { of, name } => {
                let Some(id) = nth(of) else { return Ok(false) };
                let name = format!("p{name}");
                if self.parts(id).iter().any(|(_, n)| *n == name) {
                    return Ok(false);
                }
                self.world.source.create_partition(id, &name);
            }
            Act::DropPartition { of, part } | Act::PartitionAgain { of, part } => {
                let Some(id) = nth(of) else { return Ok(false) };
                let mut parts = self.parts(id);
                parts.retain(|(_, name)| name != "_default");
                let source = &mut self.world.source;
                let loaded = source.live[&id].catalog.load != LoadState::Released;
                if parts.is_empty() || loaded {
                    return Ok(false);
                }
                let (partition, name) = &parts[part % parts.len()];
                source.drop_partition(id, *partition);
                if matches!(act, Act::PartitionAgain { .. }) {
                    source.create_partition(id, name);
                }
            }
            Act::CreateDatabase => {
                let free = (0..3).map(|i| format!("d{i}"));
                let mut free = free.filter(|n| source.databases.values().all(|d| d != n));
                let Some(name) = free.next() else {
                    return Ok(false);
                };
                source.create_database(&name);
            }
            Act::DropDatabase { db } => {
                let dbs: Vec<DbId> = source.databases.keys().copied().collect();
                return Ok(source.drop_database(dbs[db % dbs.len()]));
            }
            Act::Index { of } => {
                let Some(id) = nth(of) else { return Ok(false) };
                source.toggle_index(id);
            }
            Act::Load { of } => {
                let Some(id) = nth(of) else { return Ok(false) };
                source.toggle_load(id);
            }
            Act::Rename { of, name, db } => {
                let Some(id) = nth(of) else { return Ok(false) };
                let dbs: Vec<DbId> = source.databases.keys().copied().collect();
                return Ok(source.rename(id, dbs[db % dbs.len()], &format!("c{name}")));
            }
            Act::Swap { of, with } => {
                let (Some(one), Some(other)) = (nth(of), nth(with)) else {
                    return Ok(false);
                };
                return Ok(source.swap_names(one, other));
            }
            Act::Alias { of, name } => {
                let Some(id) = nth(of) else { return Ok(false) };
                return Ok(source.put_alias(id, &format!("x{name}")));
            }
            Act::DropAlias { name } => source.drop_alias(DbId(1), &format!("x{name}")),
            Act::Garbage { spare } => source.collect_garbage(*spare),
            Act::Blind { ms } => source.go_blind(*ms, STEP),
            Act::Slow { channel, ms } => {
                let channel = source.channel(*channel);
                source.slow_down(&channel, *ms, STEP);
            }
            Act::QueueDown { calls } => source.log.fail_next(*calls),
            Act::EtcdDown { ms } => {
                self.etcd_back = self.now + ms;
                source.catalog.fail(Some(CatalogError::Unreachable {
                    endpoints: "memory".to_owned(),
                    cause: "made to fail".to_owned(),
                }));
            }
            Act::LoseReplies { n } => self.world.target.lose_replies(*n),
            Act::Late { n, ms } => self.world.target.delay_next(*n, Duration::from_millis(*ms)),
            Act::TargetAway { n } => self.world.target.fail_next(*n),
            Act::TargetHangs { ms } => {
                self.released = self.now + ms;
                self.world.target.hang();
            }
            Act::Crash {
                kind,
                after,
                behind,
                down,
            } => {
                self.down = *down;
                self.world.gate.set(Trap {
                    kind: *kind,
                    after: *after,
                    behind: *behind,
                });
            }
            Act::Purge { channel } => self.purge(*channel).await,
            Act::RowsDown { ms } => {
                self.set_rows_down(true);
                self.rows_back = self.now + ms;
            }
            Act::CopyLost => self.copy_lost(),
            Act::Restart { loses } => {
                match loses {
                    true => self.world.target.restart_losing(),
                    false => self.world.target.restart(),
                }
                self.judge.restarted();
                self.unseen_until = self.now + SEEN;
                self.restarts = true;
            }
            Act::Rest => {}
            Act::Stop { down } => {
                self.stop().await?;
                self.pass(*down).await?;
                self.start();
            }
        }
        Ok(true)
    }

    fn set_rows_down(&mut self, down: bool) {
        self.rows_back = 0;
        if let Some(rows) = &self.world.rows {
            rows.set_down(down);
        }
    }

    /// A collection's living partitions, with their names.
    fn parts(&self, id: CollectionId) -> Vec<(PartitionId, String)> {
        let all = self.world.source.live[&id].catalog.partitions.values();
        let created = all.filter(|p| p.state == ObjectState::Created);
        created.map(|p| (p.id, p.name.clone())).collect()
    }

    /// Ends it in good order, if the crash that is set does not come before or in between.
    async fn stop(&mut self) -> Result<(), Failure> {
        let Some(engine) = self.world.take_engine() else {
            return Ok(());
        };
        let deadline = Duration::from_millis(STOPPED);
        let engine = Arc::new(engine);
        let stopped = engine.clone();
        let stopping = tokio::spawn(async move { stopped.stop_all(deadline).await });
        let since = self.now;
        while !stopping.is_finished() {
            self.step().await?;
            if self.world.gate.is_dead() {
                // Whoever waited for it is dead, too.
                stopping.abort();
                self.crash();
                return Ok(());
            }
            if self.now > since + STOPPED {
                let text = format!(
                    "a clean stop takes too long\n{}",
                    self.world.report_of(&engine)
                );
                return Err(Failure::new("stop", text));
            }
        }
        self.judge.restarted();
        Ok(())
    }

    /// No more faults: source and target become equal, in a bounded time.
    async fn settle(&mut self) -> Result<(), Failure> {
        let target = &self.world.target;
        target.set_weather(Weather::default());
        target.lose_replies(0);
        target.fail_next(0);
        target.delay_next(0, Duration::ZERO);
        target.release();
        self.disk = DiskWeather::default();
        self.world.gate.set_disk(self.disk);
        self.world.gate.clear();
        self.world.source.catalog.fail(None);
        self.world.source.log.fail_next(0);
        (self.etcd_back, self.released) = (0, 0);
        self.set_rows_down(false);
        let since = self.now;
        loop {
            self.pass(5 * STEP).await?;
            if self.world.rows.is_some() {
                self.copy_lost();
            }
            let Some(difference) = self.difference() else {
                // What is not seen yet may still change it.
                if std::mem::take(&mut self.restarts) {
                    self.pass(SEEN).await?;
                    continue;
                }
                return Ok(());
            };
            if self.now > since + SETTLED {
                let text = format!(
                    "{difference}\n{}\n{}\n{}",
                    self.world.report(),
                    self.world.stored().await,
                    waits().await
                );
                return Err(Failure::new("stuck", text));
            }
        }
    }

    /// Rows, copies, and objects.
    fn difference(&self) -> Option<String> {
        if let Some(rows) = self.world.difference(|_| true) {
            return Some(rows);
        }
        let (source, target) = (&self.world.source, &self.world.target);
        for (id, live) in &source.live {
            let (database, collection) = (source.database_of(*id), &live.catalog);
            let name = &collection.name;
            let mut wanted: Vec<String> = self.parts(*id).into_iter().map(|(_, n)| n).collect();
            wanted.sort();
            let found = target.partitions(&database, name).unwrap_or_default();
            if wanted != found {
                return Some(format!("{name}: partitions {found:?} for {wanted:?}"));
            }
            let indexes = target.indexes(&database, name).unwrap_or_default().len();
            if indexes != collection.indexes.len() {
                return Some(format!("{name}: {indexes} indexes"));
            }
            let loaded = target.loaded(&database, name).is_some_and(|(all, _)| all);
            if loaded != (collection.load != LoadState::Released) {
                return Some(format!("{name}: loaded is {loaded}"));
            }
        }
        let mut wanted: Vec<String> = source.databases.values().cloned().collect();
        wanted.sort();
        let found = target.databases();
        (wanted != found).then(|| format!("databases {found:?} for {wanted:?}"))
    }
}

fn said_to_be_steady(world: &World) -> Steady {
    let Some(engine) = world.running() else {
        return Steady::new();
    };
    let all = world.tasks.iter().filter_map(|t| engine.status(&t.id));
    steady(all)
}

fn steady(all: impl Iterator<Item = TaskStatus>) -> Steady {
    let steady = all
        .flat_map(|s| s.collections)
        .filter(|c| matches!(c.state, CollectionState::Streaming { raised: false, .. }));
    steady.map(|c| c.source_id).collect()
}

/// Where each task waits, by the lines of this project: the outermost first.
#[cfg(all(tokio_unstable, feature = "waits"))]
async fn waits() -> String {
    let dump = tokio::runtime::Handle::current().dump().await;
    let mut tasks = Vec::new();
    for task in dump.tasks().iter() {
        let trace = task.trace().to_string();
        let ours = trace.lines().filter_map(|line| {
            let (_, at) = line.rsplit_once("/crates/")?;
            // A wait on several things is a tree: how deep a line stands tells what belongs together.
            Some(format!("{}{at}\n", " ".repeat(line.find('╼')?)))
        });
        tasks.push(ours.collect::<String>());
    }
    tasks.join("\n")
}

#[cfg(not(all(tokio_unstable, feature = "waits")))]
async fn waits() -> String {
    String::new()
}
