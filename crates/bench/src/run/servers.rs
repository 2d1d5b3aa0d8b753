//! The servers of a run: the source's etcd and queue, the null target, and the program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdc_lab::cdc::{self, Addresses};
use cdc_lab::http;
use cdc_lab::servers::stores::{StoreKind, StoreServer};
use cdc_lab::servers::{Mq, Process, free_port};
use serde_json::{Value, json};

use super::Setup;
use crate::proc::{OTHERS, OURS, Pinning};
use crate::source::queue::Queue;
use crate::source::{ROOT, replicate_channel};

const START_DEADLINE: Duration = Duration::from_secs(60);
const CALL_DEADLINE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `up` says so, for no longer than a start may take.
async fn wait_up(
    process: &mut Process,
    name: &str,
    up: impl AsyncFn(&Process) -> bool,
) -> Result<()> {
    let end = Instant::now() + START_DEADLINE;
    while !up(process).await {
        let ended = process.ended()?;
        if ended.is_some() || Instant::now() >= end {
            bail!(
                "{name} does not come up ({ended:?}); its last words:\n{}",
                process.last_lines(20)
            );
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The source's queue.
pub(super) enum Broker {
    Nats {
        process: Process,
        url: String,
    },
    #[cfg(feature = "kafka")]
    Kafka(cdc_lab::servers::Kafka),
}

/// A program of a Debian package, which may be where only root looks.
fn installed(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/bin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("there is no {name} on this machine: apt-get install -y --no-install-recommends {package}"))
}

/// The versions of what a run is made of, by name.
///
/// # Errors
/// The binary of milvus-cdc is not there.
pub fn versions(queue: &str) -> Result<BTreeMap<&'static str, String>> {
    let mut all = BTreeMap::from([("milvus-cdc", version_of(&cdc::binary()?))]);
    all.insert("etcd", version_of(&installed("etcd", "etcd-server")?));
    match queue {
        "natsmq" => all.insert(
            "queue",
            version_of(&installed("nats-server", "nats-server")?),
        ),
        _ => all.insert(
            "queue",
            format!("Kafka {}", cdc_lab::servers::kafka::VERSION),
        ),
    };
    // Of the source, where it is there.
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    if let Some(output) = commit.ok().filter(|o| o.status.success()) {
        all.insert(
            "commit",
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        );
    }
    Ok(all)
}

/// What a program answers to `--version`, in one line.
fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let said = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    said.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

impl Broker {
    /// The server that is in a 2.3.5 with `mq.type: natsmq`, on its own, with the same bound of a message.
    async fn nats(dir: &Path, pinning: Pinning) -> Result<Self> {
        let program = installed("nats-server", "nats-server")?;
        let port = free_port()?;
        let config = dir.join("nats.conf");
        let store = dir.join("nats");
        std::fs::write(
            &config,
            format!(
                "listen: 127.0.0.1:{port}\nmax_payload: 8388608\njetstream {{ store_dir: \"{}\", max_file_store: 64GB }}\n",
                store.display()
            ),
        )?;
        let mut command = pinning.command(&program, OTHERS);
        command.arg("-c").arg(&config);
        let mut process = Process::spawn("nats-server", &mut command, &dir.join("nats.log"))?;
        let address = format!("127.0.0.1:{port}");
        wait_up(&mut process, "nats-server", async |p| {
            p.last_lines(50).contains("Server is ready")
        })
        .await?;
        Ok(Self::Nats {
            process,
            url: format!("nats://{address}"),
        })
    }

    pub(super) async fn queue(&self) -> Result<Queue> {
        match self {
            Self::Nats { url, .. } => Queue::natsmq(url).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => Queue::kafka(&kafka.address()),
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Nats { process, .. } => Some(process.pid()),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.pid(),
        }
    }

    fn mq(&self) -> Mq {
        match self {
            Self::Nats { .. } => Mq::Natsmq,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Mq::Kafka,
        }
    }
}

/// The null target as a process.
pub(super) struct Target {
    process: Process,
    pub(super) uri: String,
    ledger: String,
}

impl Target {
    pub(super) async fn start(
        dir: &Path,
        setup: &Setup,
        mb_per_second: Option<f64>,
    ) -> Result<Self> {
        let own = std::env::current_exe().context("find this executable")?;
        let beside = own.ancestors().skip(1).take(2);
        let program = beside
            .map(|dir| dir.join("cdc-null-target"))
            .find(|p| p.is_file())
            .context("no cdc-null-target beside this program: cargo build -p cdc-bench --bins")?;
        let (rpc, http) = (free_port()?, free_port()?);
        let mut command = setup.pinning.command(&program, OTHERS);
        if setup.plain {
            command.arg("--plain");
        }
        command
            .args(["--listen", &format!("127.0.0.1:{rpc}")])
            .args(["--http", &format!("127.0.0.1:{http}")])
            .args(["--ack-delay-ms", &setup.ack_delay_ms.to_string()]);
        if let Some(rate) = mb_per_second {
            command.args(["--mb-per-second", &rate.to_string()]);
        }
        let log = dir.join("null-target.log");
        let mut process = Process::spawn("cdc-null-target", &mut command, &log)?;
        let ledger = format!("127.0.0.1:{http}");
        wait_up(&mut process, "cdc-null-target", async |_| {
            http::get(&ledger, "/ledger", Duration::from_secs(1))
                .await
                .is_ok()
        })
        .await?;
        Ok(Self {
            process,
            uri: format!("http://127.0.0.1:{rpc}"),
            ledger,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(super) async fn ledger(&self) -> Result<Value> {
        let reply = http::get(&self.ledger, "/ledger", CALL_DEADLINE).await?;
        Ok(serde_json::from_str(&reply.body)?)
    }

    /// Latencies count from now on.
    pub(super) async fn forget(&self) -> Result<()> {
        http::post(&self.ledger, "/forget", "", CALL_DEADLINE)
            .await
            .map(drop)
    }
}

/// The source's servers.
pub(super) struct Source {
    pub(super) etcd: StoreServer,
    pub(super) broker: Broker,
}

impl Source {
    pub(super) async fn start(dir: &Path, queue: &str, pinning: Pinning) -> Result<Self> {
        let etcd = StoreServer::start(StoreKind::Etcd).await?;
        let broker = match queue {
            "natsmq" => Broker::nats(dir, pinning).await?,
            #[cfg(feature = "kafka")]
            "kafka" => {
                let progress = cdc_lab::progress::Progress::silent();
                let kafka =
                    cdc_lab::servers::Kafka::start(dir.join("kafka"), None, false, &progress)
                        .await?;
                if let Some(pid) = kafka.pid() {
                    pinning.pin(pid, OTHERS)?;
                }
                Broker::Kafka(kafka)
            }
            other => bail!(
                "{other}: no such queue in this build; natsmq, or kafka with the feature of that name"
            ),
        };
        Ok(Self { etcd, broker })
    }

    fn addresses(&self) -> Addresses {
        let mut addresses = Addresses {
            mq: self.broker.mq(),
            rows: None,
            etcd: self.etcd.url(),
            nats: String::new(),
            rocksmq: PathBuf::new(),
            pulsar: String::new(),
            kafka: String::new(),
            root_path: ROOT.to_owned(),
            replicate_channel: replicate_channel(),
        };
        match &self.broker {
            Broker::Nats { url, .. } => addresses.nats.clone_from(url),
            #[cfg(feature = "kafka")]
            Broker::Kafka(kafka) => addresses.kafka = kafka.address(),
        }
        addresses
    }
}

/// Which program is measured.
#[derive(Clone, Debug)]
pub enum Program {
    /// The binary of milvus-cdc.
    Ours,
    /// A command of a shell that has to end in `exec` of the server, so that the process is the server: with its HTTP
    /// interface on `CDC_BENCH_PORT`, its files in `CDC_BENCH_DIR`, the source at `CDC_BENCH_ETCD`, `CDC_BENCH_ROOT`,
    /// `CDC_BENCH_NATS` or `CDC_BENCH_KAFKA`, `CDC_BENCH_REPLICATE_CHANNEL`.
    Other { name: String, command: String },
}

/// The measured program as a process.
pub(super) struct Cdc {
    program: Program,
    pinning: Pinning,
    dir: PathBuf,
    port: u16,
    addresses: Addresses,
    process: Option<Process>,
}

impl Cdc {
    pub(super) async fn start(
        program: Program,
        source: &Source,
        dir: &Path,
        pinning: Pinning,
    ) -> Result<Self> {
        let dir = dir.join("cdc");
        std::fs::create_dir_all(&dir)?;
        let addresses = source.addresses();
        let port = free_port()?;
        std::fs::write(dir.join("cdc.yaml"), cdc::config(&addresses, port, &dir))?;
        let mut cdc = Self {
            program,
            pinning,
            dir,
            port,
            addresses,
            process: None,
        };
        cdc.launch().await?;
        Ok(cdc)
    }

    /// Starts it and waits until it answers.
    pub(super) async fn launch(&mut self) -> Result<()> {
        let mut command = match &self.program {
            Program::Ours => {
                let mut command = self.pinning.command(&cdc::binary()?, OURS);
                command
                    .arg("server")
                    .arg("--config")
                    .arg(self.dir.join("cdc.yaml"));
                command
            }
            Program::Other { command: line, .. } => {
                let mut command = self.pinning.command(Path::new("sh"), OURS);
                command.arg("-c").arg(line);
                command
            }
        };
        let a = &self.addresses;
        command
            .current_dir(&self.dir)
            .env("CDC_BENCH_PORT", self.port.to_string())
            .env("CDC_BENCH_DIR", &self.dir)
            .env("CDC_BENCH_ETCD", &a.etcd)
            .env("CDC_BENCH_ROOT", &a.root_path)
            .env("CDC_BENCH_NATS", &a.nats)
            .env("CDC_BENCH_KAFKA", &a.kafka)
            .env("CDC_BENCH_REPLICATE_CHANNEL", &a.replicate_channel);
        let mut process = Process::spawn("cdc", &mut command, &self.dir.join("log"))?;
        let address = self.address();
        // Another server need not have this path: any answer will do.
        wait_up(&mut process, "the measured server", async |_| {
            http::get(&address, "/healthz", Duration::from_secs(1))
                .await
                .is_ok()
        })
        .await?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGTERM.
    pub(super) async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let exit = process.stop(STOP_PATIENCE).await?;
            // Of another server only its figures are asked for.
            ensure!(
                !exit.forced || !matches!(self.program, Program::Ours),
                "the server did not stop within {STOP_PATIENCE:?}"
            );
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.process
            .as_ref()
            .map(Process::pid)
            .context("the server does not run")
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `POST /cdc` in the Go server's form; the `data` of the answer. Waits while tasks are being recovered.
    pub(super) async fn request(&self, kind: &str, data: Value) -> Result<Value> {
        let body = json!({ "request_type": kind, "request_data": data }).to_string();
        let end = Instant::now() + CALL_DEADLINE;
        loop {
            let reply = http::post(&self.address(), "/cdc", &body, CALL_DEADLINE).await?;
            let mut answer: Value = serde_json::from_str(&reply.body).unwrap_or_default();
            if reply.status == 200 && answer["code"].as_i64().is_none_or(|code| code == 200) {
                return Ok(answer["data"].take());
            }
            let recovering = reply.status == 503 && reply.body.contains("being recovered");
            if !recovering || Instant::now() > end {
                bail!("{kind}: HTTP {}: {}", reply.status, reply.body);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Creates a task for `*` or one collection; its id.
    pub(super) async fn create(&self, target: &str, collection: &str) -> Result<String> {
        let data = json!({
            "milvus_connect_param": { "uri": target },
            "collection_infos": [{ "name": collection }],
        });
        let answer = self.request("create", data).await?;
        let id = answer["task_id"].as_str();
        id.map(str::to_owned)
            .with_context(|| format!("create answered without a task_id: {answer}"))
    }

    pub(super) fn last_words(&self) -> String {
        cdc_lab::servers::process::tail(&self.dir.join("log"), 20)
    }
}
