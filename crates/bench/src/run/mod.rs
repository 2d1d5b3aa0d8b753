//! One scenario from the start of its servers to its line of JSON.

mod alone;
mod servers;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::servers::{Cdc, Source, Target};
pub use self::servers::{Program, versions};
use self::watch::{Sample, Watch};
use crate::proc::{self, Pinning};
use crate::scenario::{Scenario, Tasks, Way};
use crate::source::metadata;
use crate::source::shape::Shape;
use crate::source::writer::{Load, Writer, Written};
use crate::source::{Collection, now_us};

/// A backlog begins so long ago.
const PAST_US: u64 = 2 * 3600 * 1_000_000;
/// What is waited for while nothing moves.
const STUCK: Duration = Duration::from_secs(60);
/// After everything is made, before an idle program is looked at.
const SETTLE: Duration = Duration::from_secs(8);
const START_DEADLINE: Duration = Duration::from_secs(300);

/// Of all scenarios of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub queue: String,
    pub ack_delay_ms: u64,
    /// The target is a Milvus of its own.
    pub plain: bool,
    pub program: Program,
    /// Where the servers' files go; removed after each scenario.
    pub dir: PathBuf,
    pub pinning: Pinning,
    pub seed: u64,
    /// Of what is measured, and of the servers.
    pub versions: BTreeMap<&'static str, String>,
}

/// Runs it; the figures.
///
/// # Errors
/// A server does not come up, the program refuses a task or gets stuck.
pub async fn run(scenario: &Scenario, setup: &Setup) -> Result<Value> {
    let load_before = proc::load();
    let begin = Instant::now();
    let dir = setup.dir.join(scenario.name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let figures = match scenario.way {
        Way::TargetAlone { load, megabytes } => {
            alone::run(scenario, &load, megabytes, setup, &dir).await
        }
        Way::Backlog { .. } => Run::start(scenario, setup, &dir).await?.backlog().await,
        Way::Live { load, seconds } => {
            let run = Run::start(scenario, setup, &dir).await?;
            run.live(&load, seconds).await
        }
        Way::Idle { seconds, paused } => {
            let run = Run::start(scenario, setup, &dir).await?;
            run.idle(seconds, paused).await
        }
    };
    let mut figures = figures?;
    let program = match &setup.program {
        Program::Ours => "milvus-cdc".to_owned(),
        Program::Other { name, .. } => name.clone(),
    };
    let of = json!({
        "scenario": scenario.name,
        "program": program,
        "queue": setup.queue,
        "collections": scenario.collections,
        "channels": scenario.channels,
        "ack_delay_ms": setup.ack_delay_ms,
        "mode": if setup.plain { "plain" } else { "replicate" },
        "seed": setup.seed,
        "pinned": setup.pinning.on,
        "machine": proc::machine(),
        "versions": setup.versions,
        "load_before": load_before,
        "load_after": proc::load(),
        "took_s": round(begin.elapsed().as_secs_f64()),
        "unix": now_us() / 1_000_000,
    });
    if let (Some(figures), Value::Object(of)) = (figures.as_object_mut(), of) {
        figures.extend(of);
    }
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    Ok(figures)
}

/// Three digits behind the point.
fn round(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

struct Run<'a> {
    scenario: &'a Scenario,
    setup: &'a Setup,
    dir: &'a Path,
    source: Source,
    target: Target,
    writer: Writer,
    collections: Vec<Collection>,
}

impl<'a> Run<'a> {
    /// Everything but the program.
    async fn start(scenario: &'a Scenario, setup: &'a Setup, dir: &'a Path) -> Result<Self> {
        let (shape, slow, past) = match scenario.way {
            Way::Backlog {
                load,
                target_mb_per_second,
                ..
            } => (load.shape, target_mb_per_second, PAST_US),
            Way::Live { load, .. } | Way::TargetAlone { load, .. } => (load.shape, None, 0),
            Way::Idle { .. } => (SMALL.shape, None, 0),
        };
        let source = Source::start(dir, &setup.queue, setup.pinning).await?;
        let target = Target::start(dir, setup, slow).await?;
        let queue = source.broker.queue().await?;
        let mut writer = Writer::new(queue, scenario.channels, setup.seed, now_us() - past);
        let made = writer.prepare(scenario.collections).await?;
        metadata::write(&source.etcd.url(), &made, shape).await?;
        let collections = made.into_iter().map(|(collection, _)| collection).collect();
        Ok(Self {
            scenario,
            setup,
            dir,
            source,
            target,
            writer,
            collections,
        })
    }

    async fn program(&self) -> Result<Cdc> {
        let setup = self.setup;
        Cdc::start(setup.program.clone(), &self.source, self.dir, setup.pinning).await
    }

    async fn create(&self, cdc: &Cdc, tasks: Tasks) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        match tasks {
            Tasks::One => ids.push(cdc.create(&self.target.uri, "*").await?),
            Tasks::OfEach => {
                for collection in &self.collections {
                    ids.push(cdc.create(&self.target.uri, &collection.name).await?);
                }
            }
        }
        Ok(ids)
    }

    fn watch<'w>(&'w self, cdc: &'w Cdc) -> Watch<'w> {
        Watch {
            target: &self.target,
            cdc,
            broker: self.source.broker.pid(),
        }
    }

    async fn backlog(mut self) -> Result<Value> {
        let Way::Backlog {
            load,
            megabytes,
            tasks,
            target_mb_per_second,
            seconds,
        } = self.scenario.way
        else {
            bail!("not a backlog")
        };
        let begin = Instant::now();
        let written = self
            .writer
            .backlog(&self.collections, &load, megabytes * 1_000_000)
            .await?;
        let generated = begin.elapsed();
        let mut cdc = self.program().await?;
        let rss_idle = proc::memory_mb(cdc.pid()?, "VmRSS")?;
        let created = Instant::now();
        self.create(&cdc, tasks).await?;
        let (first, last) = {
            let (target, broker) = (&self.target, self.source.broker.pid());
            let watch = Watch {
                target,
                cdc: &cdc,
                broker,
            };
            let wanted = written.rows_inserted + written.rows_deleted;
            let carry = async {
                let first = watch.until(1, STUCK, Duration::from_millis(2)).await?;
                let last = match seconds {
                    Some(seconds) => {
                        let end = Duration::from_secs(seconds);
                        watch.until_or(wanted, end).await?
                    }
                    None => {
                        watch
                            .until(wanted, STUCK, Duration::from_millis(10))
                            .await?
                    }
                };
                anyhow::Ok((first, last))
            };
            let ticks = ticks(&mut self.writer);
            tokio::select! {
                carried = carry => carried,
                failed = ticks => Err(failed),
            }
        }
        .with_context(|| format!("its last words:\n{}", cdc.last_words()))?;
        let peak = proc::memory_mb(cdc.pid()?, "VmHWM")?;
        let ledger = self.target.ledger().await?;
        if seconds.is_none() {
            cdc.stop().await?;
        }
        let mut figures = carried(&first, &last);
        let more = json!({
            "backlog": shown(&written, &load),
            "write_mb_per_second": round(written.bytes as f64 / 1e6 / generated.as_secs_f64()),
            "target_mb_per_second": target_mb_per_second,
            "create_to_first_row_ms": (first.at - created).as_millis() as u64,
            "startup_cpu_s": round(first.ours.as_secs_f64()),
            "rss_idle_mb": round(rss_idle),
            "rss_peak_mb": round(peak),
            "rows_in_ledger": last.rows,
            "complete": last.rows >= written.rows_inserted + written.rows_deleted,
        });
        extend(&mut figures, more);
        extend(&mut figures, judged(&ledger));
        Ok(figures)
    }

    async fn live(mut self, load: &Load, seconds: u64) -> Result<Value> {
        let cdc = self.program().await?;
        self.create(&cdc, Tasks::One).await?;
        self.all_made(&cdc).await?;
        self.settle().await?;
        self.target.forget().await?;
        let first = self.watch(&cdc).sample().await?;
        let until = now_us() + seconds * 1_000_000;
        let written = self.writer.live(&self.collections, load, until).await?;
        let wanted = first.rows + written.rows_inserted + written.rows_deleted;
        let last = self
            .watch(&cdc)
            .until(wanted, STUCK, Duration::from_millis(10))
            .await?;
        let ledger = self.target.ledger().await?;
        let mut figures = carried(&first, &last);
        let more = json!({
            "live": shown(&written, load),
            "rss_peak_mb": round(proc::memory_mb(cdc.pid()?, "VmHWM")?),
            "rows_late": ledger["rows_late"],
            "ticks_late": ledger["ticks_late"],
        });
        extend(&mut figures, more);
        extend(&mut figures, judged(&ledger));
        Ok(figures)
    }

    async fn idle(mut self, seconds: u64, paused: bool) -> Result<Value> {
        let mut cdc = self.program().await?;
        let created = Instant::now();
        let tasks = self.create(&cdc, Tasks::One).await?;
        self.all_made(&cdc).await?;
        let made = created.elapsed();
        let startup = proc::cpu(cdc.pid()?)?;
        self.settle().await?;
        if paused {
            for task in &tasks {
                cdc.request("pause", json!({ "task_id": task })).await?;
            }
            self.settle().await?;
        }
        let first = self.watch(&cdc).sample().await?;
        let end = Instant::now() + Duration::from_secs(seconds);
        tokio::select! {
            failed = ticks(&mut self.writer) => return Err(failed),
            () = tokio::time::sleep_until(end.into()) => {}
        }
        let last = self.watch(&cdc).sample().await?;
        let long = (last.at - first.at).as_secs_f64();
        let percent = |a: Duration, b: Duration| round((b - a).as_secs_f64() / long * 100.0);
        let mut figures = json!({
            "seconds": round(long),
            "cpu_percent": percent(first.ours, last.ours),
            "broker_cpu_percent": percent(first.broker, last.broker),
            "target_cpu_percent": percent(first.target, last.target),
            "calls_per_second": round((last.calls - first.calls) as f64 / long),
            "rss_mb": round(proc::memory_mb(cdc.pid()?, "VmRSS")?),
            "rss_peak_mb": round(proc::memory_mb(cdc.pid()?, "VmHWM")?),
            "create_to_all_made_ms": made.as_millis() as u64,
            "startup_cpu_s": round(startup.as_secs_f64()),
        });
        if !paused {
            let restart = self.restart(&mut cdc).await?;
            extend(&mut figures, restart);
        }
        extend(&mut figures, judged(&self.target.ledger().await?));
        Ok(figures)
    }

    /// A row is written while the program is down, into the collection that is last in every order.
    async fn restart(&mut self, cdc: &mut Cdc) -> Result<Value> {
        cdc.stop().await?;
        let before = self.target.ledger().await?;
        let Some(last) = self.collections.last().cloned() else {
            bail!("no collection")
        };
        self.writer.tick_now().await?;
        self.writer.request(&last, &SMALL).await?;
        self.writer.tick_now().await?;
        let begin = Instant::now();
        cdc.launch().await?;
        let up = begin.elapsed();
        let wanted = watch::rows(&before) + 1;
        let (target, broker) = (&self.target, self.source.broker.pid());
        let watch = Watch {
            target,
            cdc,
            broker,
        };
        let sample = tokio::select! {
            failed = ticks(&mut self.writer) => return Err(failed),
            sample = watch.until(wanted, STUCK, Duration::from_millis(2)) => sample?,
        };
        Ok(json!({
            "restart_to_healthy_ms": up.as_millis() as u64,
            "restart_to_first_row_ms": (sample.at - begin).as_millis() as u64,
            "restart_cpu_s": round(sample.ours.as_secs_f64()),
        }))
    }

    /// Waits until every collection is on the target and its index, too; ticks go on.
    async fn all_made(&mut self, cdc: &Cdc) -> Result<()> {
        let wanted = self.collections.len() as u64;
        let target = &self.target;
        let made = async {
            loop {
                let ledger = target.ledger().await?;
                let of = |name: &str| ledger["rpcs"][name].as_u64().unwrap_or_default();
                let loaded = of("LoadCollection").max(of("LoadPartitions"));
                if of("CreateCollection") >= wanted && loaded >= wanted {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            failed = ticks(&mut self.writer) => Err(failed),
            made = tokio::time::timeout(START_DEADLINE, made) => made
                .with_context(|| format!("not all collections are made within {START_DEADLINE:?}; its last words:\n{}", cdc.last_words()))?,
        }
    }

    async fn settle(&mut self) -> Result<()> {
        tokio::select! {
            failed = ticks(&mut self.writer) => Err(failed),
            () = tokio::time::sleep(SETTLE) => Ok(()),
        }
    }
}

/// One row of a small shape.
const SMALL: Load = Load {
    kind: crate::source::writer::Kind::Insert,
    shape: Shape { dim: 128, text: 0 },
    rows: 1,
    per_second: 1.0,
};

/// A source that is up: a tick each 200 ms. Ends only with an error.
async fn ticks(writer: &mut Writer) -> anyhow::Error {
    let mut every = tokio::time::interval(Duration::from_micros(crate::source::writer::TICK_US));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if let Err(error) = writer.tick_now().await {
            return error;
        }
    }
}

fn extend(figures: &mut Value, more: Value) {
    if let (Some(figures), Value::Object(more)) = (figures.as_object_mut(), more) {
        figures.extend(more);
    }
}

fn shown(written: &Written, load: &Load) -> Value {
    json!({
        "requests": written.requests,
        "messages": written.messages,
        "rows_inserted": written.rows_inserted,
        "rows_deleted": written.rows_deleted,
        "mb": round(written.bytes as f64 / 1e6),
        "rows_per_request": load.rows,
        "requests_per_second_of_source_time": load.per_second,
    })
}

/// What it took from one sample to the other. A GB is a billion bytes of inserts and deletes as they reach the target.
fn carried(first: &Sample, last: &Sample) -> Value {
    let long = (last.at - first.at).as_secs_f64();
    let bytes = (last.bytes - first.bytes) as f64;
    let messages = (last.messages - first.messages) as f64;
    let used = |a: Duration, b: Duration| (b - a).as_secs_f64();
    let per_gb = |cpu: f64| round(cpu / (bytes / 1e9));
    let ours = used(first.ours, last.ours);
    json!({
        "seconds": round(long),
        "mb": round(bytes / 1e6),
        "cpu_s": round(ours),
        "cpu_s_per_gb": per_gb(ours),
        "cpu_us_per_message": round(ours / messages * 1e6),
        "broker_cpu_s_per_gb": per_gb(used(first.broker, last.broker)),
        "target_cpu_s_per_gb": per_gb(used(first.target, last.target)),
        "cpu_percent": round(ours / long * 100.0),
        "mb_per_second": round(bytes / 1e6 / long),
        "messages_per_second": round(messages / long),
        "rows_per_second": round((last.rows - first.rows) as f64 / long),
        "calls": last.calls - first.calls,
        "messages": last.messages - first.messages,
        "ticks": last.ticks - first.ticks,
    })
}

/// What the ledger has against it.
fn judged(ledger: &Value) -> Value {
    json!({
        "resent": ledger["counts"]["resent"],
        "violations": ledger["violations"],
        "violations_in_words": ledger["violations_in_words"],
        "unknown_rpcs": ledger["unknown_rpcs"],
    })
}
