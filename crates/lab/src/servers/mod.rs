//! Real Milvus servers on this machine, each in one process with its own ports, folders and embedded etcd.

mod config;
pub mod kafka;
pub mod lite;
mod ports;
pub mod process;
pub mod pulsar;
mod pulsar_jars;
pub mod stores;
pub mod wheel;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use kafka::Kafka;
pub use lite::Lite;
pub use ports::free_port;
pub use process::{Exit, Process};
pub use pulsar::Pulsar;

use crate::client::Client;
use crate::http;
use crate::progress::Progress;
use config::Ports;

/// The message queue of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mq {
    /// NATS JetStream inside the server's process, reachable over TCP.
    Natsmq,
    /// A RocksDB in the server's process, reachable as files.
    Rocksmq,
    /// A Pulsar broker beside the server, in a process of its own.
    Pulsar,
    /// A broker of its own beside the server, started and stopped with it.
    Kafka,
}

/// What server to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name, also the etcd root path and the prefix of its channels.
    pub name: String,
    pub mq: Mq,
    /// Whether it takes ReplicateMessage (and then no rows from clients): `common.ttMsgEnabled: false`.
    pub standby: bool,
    /// Everything of this server is below this folder.
    pub dir: PathBuf,
    /// More settings of `milvus.yaml`: dotted key, value as YAML.
    pub overrides: Vec<(String, String)>,
}

impl Spec {
    /// A source: an ordinary server.
    pub fn source(name: &str, mq: Mq, dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            mq,
            standby: false,
            dir: dir.into(),
            overrides: Vec::new(),
        }
    }

    /// A target of ReplicateMessage.
    pub fn standby(name: &str, dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            mq: Mq::Rocksmq,
            standby: true,
            dir: dir.into(),
            overrides: Vec::new(),
        }
    }

    /// A target of its own: an ordinary server, whatever its queue.
    pub fn plain(name: &str, dir: impl Into<PathBuf>) -> Self {
        Self::source(name, Mq::Rocksmq, dir)
    }

    /// Adds a setting of `milvus.yaml`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.overrides.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A Milvus server started by us. Dropping it kills it; its folder stays.
#[derive(Debug)]
pub struct Milvus {
    spec: Spec,
    ports: Ports,
    unpacked: PathBuf,
    process: Option<Process>,
    /// With [`Mq::Kafka`]; in `{dir}/kafka`.
    kafka: Option<Kafka>,
    /// With [`Mq::Pulsar`]; in `{dir}/pulsar`.
    pulsar: Option<Pulsar>,
}

/// How long a server may take from its start to healthy. 10 to 15 s on two cores when nothing else runs.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// How long a graceful stop may take before the server is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

impl Milvus {
    /// Downloads the server if it is not cached, writes its configuration, starts it and waits until it is healthy.
    ///
    /// # Errors
    /// Any of these fails; the message has the last lines of the server's log.
    pub async fn start(spec: Spec, progress: &Progress) -> Result<Self> {
        let unpacked = wheel::ensure(progress).await?;
        std::fs::create_dir_all(&spec.dir)
            .with_context(|| format!("create {}", spec.dir.display()))?;
        let spec = Spec {
            dir: spec.dir.canonicalize()?,
            ..spec
        };
        let pulsar = match spec.mq {
            Mq::Pulsar => Some(Pulsar::start(spec.dir.join("pulsar"), "", progress).await?),
            _ => None,
        };
        let ports = Ports::pick()?;
        let kafka = match spec.mq {
            Mq::Kafka => Some(Kafka::start(spec.dir.join("kafka"), None, false, progress).await?),
            _ => None,
        };
        let broker = kafka.as_ref().map(Kafka::address).unwrap_or_default();
        config::write(&spec, &ports, &broker, pulsar.as_ref(), &unpacked)?;
        let mut server = Self {
            spec,
            ports,
            unpacked,
            process: None,
            kafka,
            pulsar,
        };
        server.launch(progress).await?;
        Ok(server)
    }

    async fn launch(&mut self, progress: &Progress) -> Result<()> {
        let what = format!("start Milvus {} ({})", self.spec.name, self.kind());
        progress.begin(&what);
        let mut command = Command::new(self.unpacked.join("milvus"));
        command
            .args(["run", "standalone"])
            .current_dir(&self.spec.dir)
            .env("LD_LIBRARY_PATH", &self.unpacked)
            .env("DEPLOY_MODE", "STANDALONE")
            .env("METRICS_PORT", self.ports.metrics.to_string())
            .env("MILVUSCONF", self.spec.dir.join("configs"));
        let process = Process::spawn(&self.spec.name, &mut command, &self.log())?;
        self.process = Some(process);
        self.wait_healthy().await?;
        progress.done(&what);
        Ok(())
    }

    async fn wait_healthy(&mut self) -> Result<()> {
        let url = format!("127.0.0.1:{}", self.ports.metrics);
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!(
                    "Milvus {} ended with {status} while starting; its last words:\n{}",
                    self.spec.name,
                    process.last_lines(30)
                );
            }
            if let Ok(reply) = http::get(&url, "/healthz", Duration::from_secs(3)).await
                && reply.status == 200
                && reply.body.trim() == "OK"
                && self.takes_calls().await
            {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "Milvus {} is not healthy after {} s; its last words:\n{}",
                    self.spec.name,
                    START_DEADLINE.as_secs(),
                    process::tail(&self.log(), 30)
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A 2.3.5 whose queue is slow to come up says that it is healthy before its proxy is ready.
    async fn takes_calls(&self) -> bool {
        let Ok(client) = Client::connect(&self.spec.name, &self.uri()).await else {
            return false;
        };
        // Any other refusal (of a login that we have not) comes from a proxy that is ready.
        !matches!(client.databases().await, Err(e) if format!("{e:#}").contains("not ready"))
    }

    fn kind(&self) -> &'static str {
        match (self.spec.mq, self.spec.standby) {
            (_, true) => "standby",
            (Mq::Natsmq, false) => "natsmq",
            (Mq::Rocksmq, false) => "rocksmq",
            (Mq::Kafka, false) => "kafka",
            (Mq::Pulsar, false) => "pulsar",
        }
    }

    /// SIGTERM, SIGKILL after half a minute; a broker beside it is killed. Does nothing if it does not run.
    ///
    /// # Errors
    /// It cannot be stopped.
    pub async fn stop(&mut self) -> Result<Option<Exit>> {
        let exit = match self.process.take() {
            Some(mut p) => Some(p.stop(STOP_PATIENCE).await?),
            None => None,
        };
        self.kill9().await?;
        Ok(exit)
    }

    /// SIGKILL, to a broker beside it as well.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill9(&mut self) -> Result<()> {
        if let Some(mut p) = self.process.take() {
            p.kill9().await?;
        }
        if let Some(kafka) = &mut self.kafka {
            kafka.kill9().await?;
        }
        if let Some(pulsar) = &mut self.pulsar {
            pulsar.kill9().await?;
        }
        Ok(())
    }

    /// Starts it again after [`Milvus::stop`] or [`Milvus::kill9`] (stops it first if it runs), with the same folder and ports.
    ///
    /// # Errors
    /// As [`Milvus::start`].
    pub async fn restart(&mut self, progress: &Progress) -> Result<()> {
        self.stop().await?;
        if let Some(kafka) = &mut self.kafka {
            kafka.restart(progress).await?;
        }
        if let Some(pulsar) = &mut self.pulsar
            && !pulsar.is_running()
        {
            pulsar.restart(progress).await?;
        }
        self.launch(progress).await
    }

    /// SIGKILL for its broker alone, and after `down` a new start on the same data.
    ///
    /// # Errors
    /// It has no broker, or that does not start.
    pub async fn restart_broker(&mut self, down: Duration, progress: &Progress) -> Result<()> {
        if let Some(kafka) = &mut self.kafka {
            kafka.kill9().await?;
            tokio::time::sleep(down).await;
            return kafka.restart(progress).await;
        }
        let pulsar = self.pulsar.as_mut().context("this server has no broker")?;
        pulsar.kill9().await?;
        tokio::time::sleep(down).await;
        pulsar.restart(progress).await
    }

    /// SIGKILL for the server without its broker, and after `down` a new start on the same data.
    ///
    /// # Errors
    /// As [`Milvus::start`].
    pub async fn restart_alone(&mut self, down: Duration, progress: &Progress) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill9().await?;
        }
        tokio::time::sleep(down).await;
        self.launch(progress).await
    }

    /// How it ended, if it was started and has ended by itself.
    ///
    /// # Errors
    /// The operating system refuses to tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.process {
            Some(process) => process.ended(),
            None => Ok(None),
        }
    }

    /// From now on dropping it leaves it running.
    pub fn leave_running(&mut self) {
        if let Some(kafka) = &mut self.kafka {
            kafka.leave_running();
        }
        if let Some(process) = &mut self.process {
            process.leave_running();
        }
        if let Some(pulsar) = &mut self.pulsar {
            pulsar.leave_running();
        }
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn mq(&self) -> Mq {
        self.spec.mq
    }

    /// The process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The process ids of all that runs of it.
    pub fn pids(&self) -> impl Iterator<Item = u32> + use<> {
        let broker = self.kafka.as_ref().and_then(Kafka::pid);
        let pulsar = self.pulsar.as_ref().and_then(Pulsar::pid);
        self.pid().into_iter().chain(broker).chain(pulsar)
    }

    /// The gRPC address, `http://127.0.0.1:port`.
    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.proxy)
    }

    /// The gRPC address of a server with `common.security.tlsMode` 1 or 2, `https://localhost:port`.
    pub fn secure_uri(&self) -> String {
        format!("https://localhost:{}", self.ports.proxy)
    }

    /// `http://127.0.0.1:port` of the embedded etcd's clients.
    pub fn etcd(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd)
    }

    /// `etcd.rootPath`; the metadata is below `{root path}/meta`.
    pub fn root_path(&self) -> &str {
        &self.spec.name
    }

    /// The channel on which the source tells of DDL, `{cluster prefix}-replicate-msg`.
    pub fn replicate_channel(&self) -> String {
        format!("{}-replicate-msg", self.spec.name)
    }

    /// `nats://127.0.0.1:port`; of use only with [`Mq::Natsmq`].
    pub fn nats(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ports.nats)
    }

    /// `host:port` of the broker; empty but for [`Mq::Kafka`].
    pub fn kafka(&self) -> String {
        self.kafka.as_ref().map(Kafka::address).unwrap_or_default()
    }

    /// The live RocksDB of RocksMQ; of use only with [`Mq::Rocksmq`].
    pub fn rocksmq_path(&self) -> PathBuf {
        self.spec.dir.join("rocksmq")
    }

    /// The broker beside it, with [`Mq::Pulsar`].
    pub fn pulsar(&self) -> Option<&Pulsar> {
        self.pulsar.as_ref()
    }

    pub fn metrics_port(&self) -> u16 {
        self.ports.metrics
    }

    pub fn dir(&self) -> &Path {
        &self.spec.dir
    }

    /// Everything the server has printed.
    pub fn log(&self) -> PathBuf {
        self.spec.dir.join("milvus.log")
    }
}
