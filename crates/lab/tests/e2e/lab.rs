//! Two servers with `milvus-cdc` between them, a proxy before the target, and what is asserted of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdc_lab::audit::verdict;
use cdc_lab::cdc::Cdc;
use cdc_lab::client::Client;
use cdc_lab::compare::{Likeness, Options, Report, compare};
use cdc_lab::progress::Progress;
use cdc_lab::proxy::{Faults, Proxy};
use cdc_lab::servers::{Milvus, Mq, Spec};

use crate::harness::{say, shown};

pub(crate) const DB: &str = "default";
/// What the target may take to catch up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// What a clean stop of milvus-cdc may take.
const STOP: Duration = Duration::from_secs(5);
/// Physical channels of a crowded source.
pub(crate) const CROWDED: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Natsmq,
    Rocksmq,
    Pulsar,
    Kafka,
    /// A natsmq source whose collections share few physical channels.
    Crowded,
    /// natsmq without the cluster-level task. Fresh for each test.
    NoTask,
    /// natsmq, and a target that is a Milvus of its own.
    Plain,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Rocksmq => "rocksmq",
            Kind::Pulsar => "pulsar",
            Kind::Kafka => "kafka",
            Kind::Natsmq | Kind::Crowded | Kind::NoTask => "natsmq",
            Kind::Plain => "plain",
        }
    }

    fn likeness(self) -> Likeness {
        match self {
            Kind::Plain => Likeness::Plain,
            _ => Likeness::Standby,
        }
    }

    /// Whether several tests may use one.
    pub(crate) fn is_shared(self) -> bool {
        self != Kind::NoTask
    }

    pub(crate) fn mq(self) -> Mq {
        match self {
            Kind::Rocksmq => Mq::Rocksmq,
            Kind::Pulsar => Mq::Pulsar,
            Kind::Kafka => Mq::Kafka,
            Kind::Natsmq | Kind::Crowded | Kind::NoTask | Kind::Plain => Mq::Natsmq,
        }
    }
}

/// Dropping it kills the servers; the folder stays unless [`Lab::end`].
pub(crate) struct Lab {
    pub(crate) kind: Kind,
    pub(crate) source: Milvus,
    pub(crate) target: Milvus,
    pub(crate) cdc: Cdc,
    pub(crate) from: Client,
    pub(crate) to: Client,
    pub(crate) proxy: Proxy,
    /// The cluster-level task; empty without one.
    pub(crate) task: String,
    pub(crate) progress: Progress,
    dir: PathBuf,
}

/// A new folder for servers; it stays until somebody removes it.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(tempfile::Builder::new()
        .prefix("milvus-cdc-e2e-")
        .tempdir()?
        .keep())
}

pub(crate) fn progress() -> Progress {
    if shown() {
        Progress::auto()
    } else {
        Progress::silent()
    }
}

impl Lab {
    pub(crate) async fn start(kind: Kind, seed: u64) -> Result<Self> {
        Self::start_with(kind, seed, |target| target).await
    }

    /// As [`Lab::start`] with a target of other settings.
    pub(crate) async fn start_with(
        kind: Kind,
        seed: u64,
        edit: impl FnOnce(Spec) -> Spec,
    ) -> Result<Self> {
        let progress = progress();
        let dir = folder()?;
        let mut source = Spec::source("source", kind.mq(), dir.join("source"));
        if kind == Kind::Crowded {
            source = source.set("rootCoord.dmlChannelNum", &CROWDED.to_string());
        }
        let target = match kind {
            Kind::Plain => Spec::plain("target", dir.join("target")),
            _ => Spec::standby("target", dir.join("target")),
        };
        let target = edit(target);
        let (source, target) = tokio::try_join!(
            Milvus::start(source, &progress),
            Milvus::start(target, &progress),
        )?;
        let proxy = Proxy::start(&target.uri(), Faults::default(), seed).await?;
        let cdc = Cdc::start(&source, dir.join("cdc"), &progress).await?;
        let from = Client::connect("source", &source.uri()).await?;
        let to = Client::connect("target", &target.uri()).await?;
        let mut lab = Self {
            kind,
            source,
            target,
            cdc,
            from,
            to,
            proxy,
            task: String::new(),
            progress,
            dir,
        };
        if kind != Kind::NoTask {
            lab.task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
        }
        Ok(lab)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// SIGKILL and a new start of milvus-cdc.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.cdc.kill9().await?;
        self.cdc.restart(&self.progress).await
    }

    /// Objects, rows by key and value, and `count(*)` are equal on both sides.
    pub(crate) async fn equal(&self) -> Result<Report> {
        self.compared(true).await
    }

    /// As [`Lab::equal`] but without rows, for which the comparison may have to load on the source.
    pub(crate) async fn equal_objects(&self) -> Result<Report> {
        self.compared(false).await
    }

    /// As [`Lab::equal`], and the source has as many rows as the test thinks.
    pub(crate) async fn equal_rows(&self, rows: usize) -> Result<()> {
        let report = self.equal().await?;
        ensure!(
            report.rows() == rows as u64,
            "{rows} rows expected, {} on the source",
            report.rows()
        );
        Ok(())
    }

    async fn compared(&self, rows: bool) -> Result<Report> {
        let options = Options {
            patience: PATIENCE,
            rows,
            likeness: self.kind.likeness(),
        };
        let report = compare(&self.from, &self.to, options).await?;
        say(&report.to_string());
        if !report.is_equal() {
            // A plain target writes its log itself, of the calls that it has answered: the same is true of it.
            let servers = (&self.source, &self.target);
            let ours = self.kind != Kind::Plain;
            let why = verdict::verdict(&self.from, &self.to, servers, &report, ours).await;
            return Err(why.unwrap_or_else(|e| {
                e.context(format!(
                    "source and target differ\n{report}\nthe target's log cannot be read"
                ))
            }));
        }
        Ok(report)
    }

    /// The state of the newest collection of this name is `state`.
    pub(crate) async fn wait_state(&self, task: &str, name: &str, state: &str) -> Result<()> {
        let what = format!("{name} is {state}");
        self.cdc
            .wait(task, &what, PATIENCE, |s| {
                s.states_of(DB, name).last() == Some(&state)
            })
            .await
            .map(drop)
    }

    /// Everything is dropped on the source and gone from the target, and the target's log keeps the rules.
    pub(crate) async fn tidy(&mut self) -> Result<()> {
        self.proxy.set(Faults::default());
        if self.kind != Kind::NoTask {
            for db in self.from.databases().await? {
                for name in self.from.collections(&db).await? {
                    self.from.drop_collection(&db, &name).await?;
                }
                if db != DB {
                    self.from.drop_database(&db).await?;
                }
            }
            let mut left = Vec::new();
            let empty = until("the target is empty again", async || {
                left = self.to.databases().await?;
                left.retain(|db| db != DB);
                left.extend(self.to.collections(DB).await?);
                Ok(left.is_empty())
            });
            empty.await.with_context(|| {
                format!(
                    "everything was dropped on the source; on the target there still is {left:?}"
                )
            })?;
        }
        self.keeps_the_rules()
    }

    /// Of messages on a standby.
    fn keeps_the_rules(&self) -> Result<()> {
        match self.kind {
            Kind::Plain => Ok(()),
            _ => verdict::keep_the_rules(&self.target),
        }
    }

    /// SIGTERM to milvus-cdc, which has to end well in time; then the servers and the folder go.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.stop_cdc().await?;
        tokio::try_join!(self.source.kill9(), self.target.kill9())?;
        self.keeps_the_rules()?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }

    /// SIGTERM: code 0 within five seconds.
    pub(crate) async fn stop_cdc(&mut self) -> Result<()> {
        let exit = self.cdc.sigterm(STOP).await?;
        say(&format!("SIGTERM: {exit:?}"));
        ensure!(
            exit.code == Some(0) && !exit.forced && exit.took <= STOP,
            "milvus-cdc did not end well: {exit:?}; its log: {}",
            self.cdc.log().display()
        );
        Ok(())
    }

    /// Kills everything; the folder stays.
    pub(crate) async fn abandon(mut self) {
        // Dropping them kills them as well.
        let _ = self.cdc.kill9().await;
        let _ = tokio::join!(self.source.kill9(), self.target.kill9());
    }
}

/// Polls until `done`.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done().await? {
        if Instant::now() >= end {
            bail!("{what}: not within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
