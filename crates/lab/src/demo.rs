//! The demo: two real Milvus, milvus-cdc between them, a workload, the comparison.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use parking_lot::Mutex;

use crate::cdc::{Cdc, Status};
use crate::client::Client;
use crate::compare::{Likeness, Options, Report, compare};
use crate::latency::visibility;
use crate::progress::Progress;
use crate::sabotage::{Sabotage, sabotage};
use crate::servers::{Lite, Milvus, Mq, Spec};
use crate::workload::{Done, Plan, Workload};

/// What the demo is asked to do.
#[derive(Debug, Clone)]
pub struct Demo {
    pub source: Mq,
    pub target: Target,
    /// Leave everything running at the end and say how to go on by hand.
    pub keep: bool,
    pub sabotage: Option<Sabotage>,
    pub plan: Plan,
    /// Everything goes below this folder; a temporary one if `None`.
    pub dir: Option<PathBuf>,
}

/// What takes the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A Milvus 2.3.5 that takes replicated messages.
    Standby,
    /// A Milvus 2.3.5 of its own.
    Plain,
    MilvusLite,
}

impl Target {
    fn likeness(self) -> Likeness {
        match self {
            Target::Standby => Likeness::Standby,
            Target::Plain => Likeness::Plain,
            Target::MilvusLite => Likeness::Lite,
        }
    }
}

/// A server that takes the rows.
enum Taker {
    Milvus(Box<Milvus>),
    Lite(Lite),
}

impl Taker {
    async fn start(target: Target, dir: PathBuf, progress: &Progress) -> Result<Self> {
        Ok(match target {
            Target::Standby => Self::milvus(Spec::standby("target", dir), progress).await?,
            Target::Plain => Self::milvus(Spec::plain("target", dir), progress).await?,
            Target::MilvusLite => Self::Lite(Lite::start(dir, progress).await?),
        })
    }

    async fn milvus(spec: Spec, progress: &Progress) -> Result<Self> {
        let server = Milvus::start(spec, progress).await?;
        Ok(Self::Milvus(Box::new(server)))
    }

    fn uri(&self) -> String {
        match self {
            Self::Milvus(server) => server.uri(),
            Self::Lite(server) => server.uri(),
        }
    }

    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Milvus(server) => server.pids().collect(),
            Self::Lite(server) => server.pid().into_iter().collect(),
        }
    }

    fn leave_running(&mut self) {
        match self {
            Self::Milvus(server) => server.leave_running(),
            Self::Lite(server) => server.leave_running(),
        }
    }

    async fn kill9(&mut self) -> Result<()> {
        match self {
            Self::Milvus(server) => server.kill9().await,
            Self::Lite(server) => server.kill9().await.map(drop),
        }
    }
}

/// Rows of the latency measurement.
const PROBES: usize = 100;
/// How often the live line is renewed: on a terminal, and elsewhere.
const LIVE: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(3)];
/// What the source may take to show again what it has acknowledged.
const SETTLE: Duration = Duration::from_secs(60);
/// Database, collection and rows that the source has acknowledged and that were not deleted.
type Acknowledged = Vec<(String, String, u64)>;
/// What a clean stop of milvus-cdc may take.
const STOP: Duration = Duration::from_secs(5);

struct Lab {
    source: Milvus,
    target: Taker,
    kind: Target,
    cdc: Cdc,
    task: String,
}

/// Runs it; whether source and target were equal at the end.
///
/// # Errors
/// Something does not start or refuses a call.
pub async fn run(demo: &Demo, progress: &Progress) -> Result<bool> {
    let begun = Instant::now();
    let dir = demo.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("milvus-cdc-demo-{}", std::process::id()))
    });
    let outcome = tokio::select! {
        outcome = inside(demo, &dir, progress) => outcome,
        () = asked_to_stop() => bail!("interrupted; everything that was started has been killed, logs are in {}", dir.display()),
    };
    match &outcome {
        Ok(true) if !demo.keep && demo.dir.is_none() => {
            let _ = std::fs::remove_dir_all(&dir);
        }
        _ => progress.line(&format!("data and logs: {}", dir.display())),
    }
    if let Ok(equal) = &outcome {
        let verdict = if *equal { "EQUAL" } else { "NOT EQUAL" };
        progress.line(&format!(
            "{verdict}, after {:.0} s",
            begun.elapsed().as_secs_f64()
        ));
    }
    outcome
}

/// Ends at ctrl-c or SIGTERM, so that nothing is left running behind either.
pub(crate) async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => {
            let _ = interrupt.await;
        }
    }
}

async fn inside(demo: &Demo, dir: &Path, progress: &Progress) -> Result<bool> {
    let mut lab = Lab::start(demo.source, demo.target, dir, progress).await?;
    let source = Client::connect("source", &lab.source.uri()).await?;
    let target = Client::connect("target", &lab.target.uri()).await?;

    progress.line(&format!(
        "workload: {} rows, {} operations, seed {}",
        demo.plan.rows, demo.plan.operations, demo.plan.seed
    ));
    let (done, acknowledged) = lab.work(&source, demo.plan, progress).await?;
    progress.line(&format!(
        "done: {} operations; rows inserted {}, upserted {}, deleted {}",
        done.operations, done.rows_inserted, done.rows_upserted, done.rows_deleted
    ));

    let what = format!("visibility of {PROBES} single rows");
    progress.begin(&what);
    let latency = visibility(&source, &target, PROBES).await?;
    progress.done(&what);
    for (server, latency) in [
        ("target", &latency.target),
        ("source itself", &latency.source),
    ] {
        progress.line(&format!(
            "visible on the {server} after the source's ack: p50 {} ms, p99 {} ms",
            latency.percentile(50).as_millis(),
            latency.percentile(99).as_millis()
        ));
    }

    progress.begin("compare source and target");
    let likeness = demo.target.likeness();
    let (mut report, unlike) = compared(&source, &target, &acknowledged, likeness).await?;
    progress.done("compare source and target");

    if let Some(kind) = demo.sabotage {
        if !report.is_equal() {
            bail!("source and target differ before the sabotage:\n{report}");
        }
        lab.stop_cdc(progress).await?;
        let spoilt = sabotage(&target, kind).await?;
        progress.line(&format!("sabotage on the target: {kind:?}: {spoilt}"));
        report = compare(
            &source,
            &target,
            Options {
                patience: Duration::from_secs(5),
                rows: true,
                ..Options::default()
            },
        )
        .await?;
    }
    println!("\n{report}\n");
    for line in &unlike {
        println!("the source itself: {line}");
    }
    let equal = report.is_equal() && unlike.is_empty();

    if demo.keep {
        lab.leave_running();
    } else {
        if demo.sabotage.is_none() {
            lab.stop_cdc(progress).await?;
        }
        progress.begin("stop the servers");
        tokio::try_join!(lab.source.kill9(), lab.target.kill9())?;
        progress.done("stop the servers");
    }
    Ok(equal)
}

/// Compares until source and target are equal *and* the source shows what it has acknowledged; what it does not show.
///
/// A 2.3.5 server can lose rows of its own. Two servers without a row are equal, and one of them alone without it looks
/// like a fault of the other; so the workload's account is heard as a third witness.
async fn compared(
    source: &Client,
    target: &Client,
    acknowledged: &Acknowledged,
    likeness: Likeness,
) -> Result<(Report, Vec<String>)> {
    let end = Instant::now() + SETTLE;
    loop {
        let options = Options {
            likeness,
            ..Options::default()
        };
        let report = compare(source, target, options).await?;
        let unlike: Vec<String> = acknowledged
            .iter()
            .filter_map(|(db, name, rows)| {
                let object = format!("rows {db}.{name}");
                let shown = report.lines.iter().find(|l| l.object == object)?.source;
                (shown != *rows).then(|| {
                    format!("{db}.{name} has {rows} rows acknowledged and not deleted, {shown} are shown")
                })
            })
            .collect();
        if unlike.is_empty() || !report.is_equal() || Instant::now() >= end {
            return Ok((report, unlike));
        }
    }
}

impl Lab {
    async fn start(mq: Mq, kind: Target, dir: &Path, progress: &Progress) -> Result<Self> {
        let (source, target) = tokio::try_join!(
            Milvus::start(Spec::source("source", mq, dir.join("source")), progress),
            Taker::start(kind, dir.join("target"), progress),
        )?;
        let cdc = Cdc::start(&source, dir.join("cdc"), progress).await?;
        progress.line(&format!(
            "source {}, target {}, milvus-cdc http://{}",
            source.uri(),
            target.uri(),
            cdc.address()
        ));
        let task = cdc.create_cluster_task(&target.uri()).await?;
        progress.line(&format!("task {task}: every collection of every database"));
        Ok(Self {
            source,
            target,
            kind,
            cdc,
            task,
        })
    }

    /// The workload, with a live line beside it.
    async fn work(
        &self,
        source: &Client,
        plan: Plan,
        progress: &Progress,
    ) -> Result<(Done, Acknowledged)> {
        let done = Arc::new(Mutex::new(Done::default()));
        let bar = progress.bar("rows", plan.rows);
        let says = |what: &str, now: Done| {
            *done.lock() = now;
            bar.set_position(now.rows_inserted);
            // Rows come by the hundred: the live line has them.
            if !["insert", "upsert", "delete"]
                .iter()
                .any(|p| what.starts_with(p))
            {
                progress.line(&format!("  {:>4} {what}", now.operations));
            }
        };
        let mut workload = Workload::new(source, plan, says);
        let outcome = tokio::select! {
            outcome = workload.run() => outcome,
            () = self.live(&done, &bar, progress) => bail!("the live line has ended"),
        };
        let acknowledged = workload.rows();
        drop(workload);
        bar.finish_and_clear();
        let status = self.cdc.task(&self.task).await.ok();
        let text = line(&done.lock(), status.as_ref());
        progress.line(&text);
        Ok((outcome?, acknowledged))
    }

    async fn live(&self, done: &Mutex<Done>, bar: &ProgressBar, progress: &Progress) {
        loop {
            tokio::time::sleep(if progress.is_live() { LIVE[0] } else { LIVE[1] }).await;
            let status = self.cdc.task(&self.task).await.ok();
            let text = line(&done.lock(), status.as_ref());
            if progress.is_live() {
                bar.set_message(text);
            } else {
                progress.line(&text);
            }
        }
    }

    async fn stop_cdc(&mut self, progress: &Progress) -> Result<()> {
        let exit = self.cdc.sigterm(STOP).await?;
        progress.line(&format!(
            "milvus-cdc stopped: code {:?} after {:.1} s",
            exit.code,
            exit.took.as_secs_f64()
        ));
        if exit.code != Some(0) || exit.forced {
            bail!(
                "milvus-cdc did not stop cleanly within {STOP:?}; its log: {}",
                self.cdc.log().display()
            );
        }
        Ok(())
    }

    fn leave_running(&mut self) {
        self.source.leave_running();
        self.target.leave_running();
        self.cdc.leave_running();
        let get =
            serde_json::json!({ "request_type": "get", "request_data": { "task_id": self.task } });
        let cdc = self.cdc.pid().into_iter();
        let pids: Vec<String> = cdc
            .chain(self.source.pids())
            .chain(self.target.pids())
            .map(|p| p.to_string())
            .collect();
        println!("left running:");
        println!(
            "  source      {}  (etcd {}, root path {})",
            self.source.uri(),
            self.source.etcd(),
            self.source.root_path()
        );
        if let Some(pulsar) = self.source.pulsar() {
            println!(
                "  its Pulsar  {}  (admin port {})",
                pulsar.url(),
                pulsar.admin_port()
            );
        }
        let what = match self.kind {
            Target::Standby => "  (a standby: read it with Eventually, never drop anything on it)",
            Target::Plain | Target::MilvusLite => "",
        };
        println!("  target      {}{what}", self.target.uri());
        println!(
            "  milvus-cdc  http://{}  (configuration {})",
            self.cdc.address(),
            self.cdc.config_path().display()
        );
        println!("go on by hand:");
        println!("  curl -s http://{}/cdc -d '{get}'", self.cdc.address());
        if let Ok(exe) = std::env::current_exe() {
            println!(
                "  {} work {} --rows 1000 --ops 50 --prefix more",
                exe.display(),
                self.source.uri()
            );
            println!(
                "  {} compare {} {}",
                exe.display(),
                self.source.uri(),
                self.target.uri()
            );
        }
        println!("stop all of it: kill {}", pids.join(" "));
    }
}

fn line(done: &Done, status: Option<&Status>) -> String {
    let (applied, lag) = match status {
        Some(s) => (
            s.rows().to_string(),
            s.lag_seconds()
                .map_or_else(|| "-".to_owned(), |l| format!("{l:.1} s")),
        ),
        None => ("?".to_owned(), "?".to_owned()),
    };
    format!(
        "rows written {}, rows applied {applied}, lag {lag}",
        done.rows_written()
    )
}
