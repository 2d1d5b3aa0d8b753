//! The demo, and its parts by hand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::chaos::{self, Chaos};
use cdc_lab::client::Client;
use cdc_lab::compare::{Options, compare};
use cdc_lab::demo::{self, Demo};
use cdc_lab::progress::Progress;
use cdc_lab::sabotage::Sabotage;
use cdc_lab::servers::{Kafka, Milvus, Mq, Pulsar, Spec};
use cdc_lab::workload::{Plan, Workload};
use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(
    name = "cdc-lab",
    about = "Real Milvus servers, a workload, and the comparison of two servers",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two real Milvus, milvus-cdc between them, a workload, the comparison. Exits 0 only if all is equal.
    Demo {
        /// The source's message queue.
        #[arg(long, value_enum, default_value = "natsmq")]
        source: Source,
        /// What takes the rows.
        #[arg(long, value_enum, default_value = "standby")]
        target: Taker,
        /// Leaves everything running at the end and prints how to go on by hand.
        #[arg(long)]
        keep: bool,
        /// Spoils one thing on the target before the comparison, which then must fail and name it.
        #[arg(long, value_enum)]
        sabotage: Option<Spoil>,
        #[command(flatten)]
        size: Size,
        /// The folder for data and logs; a temporary one if not given.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Two real Milvus, milvus-cdc between them, a workload over every operation, and faults from a seed; then the
    /// comparison. Exits 0 only if all is equal and nothing needs a hand. The last line on standard output is JSON.
    Chaos {
        /// Of faults and workload; random if not given. What the servers make of it is their own.
        #[arg(long)]
        seed: Option<u64>,
        /// How long faults come.
        #[arg(long, default_value_t = 5.0)]
        minutes: f64,
        /// The source's message queue.
        #[arg(long, value_enum, default_value = "natsmq")]
        queue: Source,
        /// Names of faults, with commas between them; `proxy` is all that break connections. If not given: all that are
        /// safe with this queue. Only if named: kill-target, kill-source, kill-etcd, and kill-broker with pulsar, because
        /// a Milvus 2.3.5 that is killed, or whose etcd or Pulsar is, can lose or double rows of its own.
        #[arg(long, value_delimiter = ',')]
        faults: Vec<String>,
        /// Rows written in a second, about.
        #[arg(long, default_value_t = 50)]
        rate: u64,
        /// The longest time between the end of a fault and the next one, in seconds.
        #[arg(long, default_value_t = chaos::plan::LONGEST_GAP.as_secs_f64())]
        gap: f64,
        /// Adds the last line to the end of this file, too.
        #[arg(long)]
        append: Option<PathBuf>,
        /// The folder for data and logs; a temporary one if not given.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Starts a source and a standby, prints their addresses and waits for ctrl-c.
    Up {
        #[arg(long, value_enum, default_value = "natsmq")]
        source: Source,
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Runs the workload on one server.
    Work {
        /// `http://host:port`.
        uri: String,
        #[command(flatten)]
        size: Size,
        /// Begins the names of databases and collections, so that several workloads can follow each other.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Compares two servers; fails if they differ. Loads on the source what is not loaded.
    Compare {
        source: String,
        target: String,
        /// Seconds the target may take to become equal.
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// Runs a command beside a natsmq source, which it finds in CDC_TEST_NATS_URL and CDC_TEST_ETCD; ends as it does.
    Beside {
        /// And beside a Kafka: CDC_TEST_KAFKA*.
        #[arg(long)]
        kafka: bool,
        /// And beside a Pulsar broker whose ledgers hold one entry each and that is started again when it is killed:
        /// CDC_TEST_PULSAR_URL, CDC_TEST_PULSAR_ADMIN (its HTTP address), CDC_TEST_PULSAR_PID.
        #[arg(long)]
        pulsar: bool,
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Starts a Kafka broker, prints its address and process id, and ends with it or at the end of its input.
    Kafka {
        /// For its data and log; what is there already is used.
        #[arg(long)]
        dir: PathBuf,
        /// A free one if not given.
        #[arg(long)]
        port: Option<u16>,
    },
    /// Starts a Pulsar broker, prints its address, and ends with it or at the end of its input.
    Pulsar {
        /// For its data and log.
        #[arg(long)]
        dir: PathBuf,
        /// More lines of standalone.conf.
        #[arg(long)]
        conf: PathBuf,
    },
    /// Reads what a standby was given from its RocksMQ, and fails if time or message ids go against the rules.
    #[cfg(feature = "audit")]
    Audit {
        /// `rocksmq.path` of the standby, which may run.
        dir: PathBuf,
        /// Shows every message of this physical channel instead.
        #[arg(long)]
        list: Option<String>,
        /// Shows the rows of this collection id instead, as partition, key and copies: those that readers of the log have
        /// to have. Of a source with RocksMQ as well.
        #[arg(long, conflicts_with = "list")]
        rows: Option<i64>,
    },
}

#[derive(clap::Args)]
struct Size {
    /// Rows to insert, at least.
    #[arg(long, default_value_t = 20_000)]
    rows: u64,
    /// Operations to run, at least.
    #[arg(long, default_value_t = 200)]
    ops: u64,
    /// The same seed gives the same calls; random if not given.
    #[arg(long)]
    seed: Option<u64>,
}

impl Size {
    fn plan(&self) -> Plan {
        let seed = self.seed.unwrap_or_else(rand::random);
        Plan {
            rows: self.rows,
            operations: self.ops,
            seed,
            ..Plan::default()
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    Natsmq,
    Rocksmq,
    Pulsar,
    Kafka,
}

#[derive(Clone, Copy, ValueEnum)]
enum Taker {
    /// A Milvus 2.3.5 that takes replicated messages.
    Standby,
    /// A Milvus 2.3.5 of its own, written to by ordinary calls.
    Plain,
    /// milvus-lite 3.2.2, by ordinary calls.
    MilvusLite,
}

impl From<Source> for Mq {
    fn from(source: Source) -> Self {
        match source {
            Source::Natsmq => Mq::Natsmq,
            Source::Rocksmq => Mq::Rocksmq,
            Source::Pulsar => Mq::Pulsar,
            Source::Kafka => Mq::Kafka,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Spoil {
    /// Deletes one row.
    Lose,
    /// Writes one row a second time.
    Double,
    /// Changes one field of one row.
    Change,
    /// Writes a row that the source has not.
    Extra,
    /// Drops one index.
    Index,
}

impl From<Spoil> for Sabotage {
    fn from(spoil: Spoil) -> Self {
        match spoil {
            Spoil::Lose => Sabotage::Lose,
            Spoil::Double => Sabotage::Double,
            Spoil::Change => Sabotage::Change,
            Spoil::Extra => Sabotage::Extra,
            Spoil::Index => Sabotage::Index,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    let progress = Progress::auto();
    match command {
        Command::Demo {
            source,
            target,
            keep,
            sabotage,
            size,
            dir,
        } => {
            let demo = Demo {
                source: source.into(),
                target: match target {
                    Taker::Standby => demo::Target::Standby,
                    Taker::Plain => demo::Target::Plain,
                    Taker::MilvusLite => demo::Target::MilvusLite,
                },
                keep,
                sabotage: sabotage.map(Into::into),
                plan: Plan {
                    lite: matches!(target, Taker::MilvusLite),
                    ..size.plan()
                },
                dir,
            };
            ensure!(
                demo::run(&demo, &progress).await?,
                "source and target differ"
            );
        }
        Command::Chaos {
            seed,
            minutes,
            queue,
            faults,
            rate,
            gap,
            append,
            dir,
        } => {
            let chaos = Chaos {
                seed: seed.unwrap_or_else(rand::random),
                lasts: Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?,
                queue: queue.into(),
                faults,
                rate,
                gap: Duration::try_from_secs_f64(gap).context("--gap")?,
                append,
                dir,
            };
            ensure!(
                chaos::run(&chaos, &progress).await?,
                "the run did not end well; its last line says how"
            );
        }
        Command::Up { source, dir } => {
            let dir = dir.unwrap_or_else(|| {
                std::env::temp_dir().join(format!("cdc-lab-{}", std::process::id()))
            });
            let (source, target) = tokio::try_join!(
                Milvus::start(
                    Spec::source("source", source.into(), dir.join("source")),
                    &progress
                ),
                Milvus::start(Spec::standby("target", dir.join("target")), &progress),
            )?;
            for m in [&source, &target] {
                println!(
                    "{}: {}, etcd {}, root path {}",
                    m.name(),
                    m.uri(),
                    m.etcd(),
                    m.root_path()
                );
                println!(
                    "  nats {}, kafka {}, rocksmq {}, log {}",
                    m.nats(),
                    m.kafka(),
                    m.rocksmq_path().display(),
                    m.log().display()
                );
            }
            tokio::signal::ctrl_c().await?;
        }
        Command::Work { uri, size, prefix } => {
            let client = Client::connect("source", &uri).await?;
            let plan = Plan {
                prefix: prefix.leak(),
                ..size.plan()
            };
            println!("seed {}", plan.seed);
            let say = |what: &str, done: cdc_lab::workload::Done| {
                println!("{:>5} {:>7} {what}", done.operations, done.rows_inserted)
            };
            println!("{:?}", Workload::new(&client, plan, say).run().await?);
        }
        Command::Compare {
            source,
            target,
            patience,
        } => {
            let (source, target) = (
                Client::connect("source", &source).await?,
                Client::connect("target", &target).await?,
            );
            let options = Options {
                patience: Duration::from_secs(patience),
                ..Options::default()
            };
            let report = compare(&source, &target, options).await?;
            println!("{report}");
            ensure!(report.is_equal(), "source and target differ");
        }
        Command::Beside {
            kafka,
            pulsar,
            command,
        } => beside(&command, kafka, pulsar, &progress).await?,
        Command::Kafka { dir, port } => {
            let mut kafka = Kafka::start(dir, port, false, &progress).await?;
            println!("{} {}", kafka.address(), kafka.pid().unwrap_or_default());
            until_closed(kafka.ended()).await?;
            kafka.kill9().await?;
        }
        Command::Pulsar { dir, conf } => {
            let more = std::fs::read_to_string(&conf)
                .with_context(|| format!("read {}", conf.display()))?;
            let mut pulsar = Pulsar::start(dir, &more, &progress).await?;
            println!("{}", pulsar.url());
            until_closed(pulsar.ended()).await?;
            pulsar.kill9().await?;
        }
        #[cfg(feature = "audit")]
        Command::Audit {
            dir,
            list: Some(channel),
            ..
        } => {
            for line in cdc_lab::audit::list(&dir, &channel)? {
                println!("{line}");
            }
        }
        #[cfg(feature = "audit")]
        Command::Audit {
            dir,
            rows: Some(collection),
            ..
        } => {
            for (partition, keys) in cdc_lab::audit::Log::read(&dir)?.rows(collection) {
                for (key, copies) in keys {
                    println!("{partition} {key:?} {copies}");
                }
            }
        }
        #[cfg(feature = "audit")]
        Command::Audit { dir, .. } => {
            let log = cdc_lab::audit::Log::read(&dir)?;
            println!("{log}");
            ensure!(
                log.violations().is_empty(),
                "the log goes against the rules"
            );
        }
    }
    Ok(())
}

/// The servers' folder stays if the command fails.
async fn beside(
    command: &[String],
    with_kafka: bool,
    with_pulsar: bool,
    progress: &Progress,
) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("cdc-lab-{}", std::process::id()));
    let mut source = Milvus::start(
        Spec::source("source", Mq::Natsmq, dir.join("source")),
        progress,
    )
    .await?;
    let (program, args) = command.split_first().context("no command")?;
    let etcd = source.etcd();
    let mut run = tokio::process::Command::new(program);
    run.args(args)
        .env("CDC_TEST_NATS_URL", source.nats())
        .env("CDC_TEST_ETCD", etcd.trim_start_matches("http://"))
        .kill_on_drop(true);
    let mut kafka = None;
    if with_kafka {
        let broker = Kafka::start(dir.join("kafka"), None, true, progress).await?;
        let secured = broker.secured().context("Kafka without a login")?;
        run.env("CDC_TEST_KAFKA", broker.address())
            .env("CDC_TEST_KAFKA_SECURED", &secured.address)
            .env("CDC_TEST_KAFKA_CA", &secured.ca)
            .env("CDC_TEST_KAFKA_USERNAME", secured.username)
            .env("CDC_TEST_KAFKA_PASSWORD", secured.password);
        kafka = Some(broker);
    }
    let mut pulsar = None;
    if with_pulsar {
        let broker = Pulsar::start(dir.join("pulsar"), SMALL_LEDGERS, progress).await?;
        run.env("CDC_TEST_PULSAR_URL", broker.url())
            .env(
                "CDC_TEST_PULSAR_ADMIN",
                format!("127.0.0.1:{}", broker.admin_port()),
            )
            .env(
                "CDC_TEST_PULSAR_PID",
                broker.pid().unwrap_or_default().to_string(),
            );
        pulsar = Some(broker);
    }
    run.env("CDC_LAB_BIN", std::env::current_exe()?);
    let mut run = run.spawn().with_context(|| format!("start {program}"))?;
    let status = loop {
        if let Ok(status) = tokio::time::timeout(Duration::from_millis(100), run.wait()).await {
            break status?;
        }
        if let Some(broker) = &mut pulsar
            && !broker.is_running()
        {
            broker.restart(progress).await?;
        }
    };
    source.kill9().await?;
    if let Some(broker) = &mut kafka {
        broker.kill9().await?;
    }
    if let Some(broker) = &mut pulsar {
        broker.kill9().await?;
    }
    ensure!(
        status.success(),
        "{program} failed: {status}; the servers' data and logs: {}",
        dir.display()
    );
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Retention deletes whole ledgers: with one entry in each the tests can have any message deleted. Nothing is kept that no
/// subscription of the tests holds back (deduplication has one of its own); and where a subscription is counts at once:
/// of more than one move in a second Pulsar else takes note within a minute only.
const SMALL_LEDGERS: &str = "\
managedLedgerMaxEntriesPerLedger=1
managedLedgerMinLedgerRolloverTimeMinutes=0
defaultRetentionTimeInMinutes=0
defaultRetentionSizeInMB=0
managedLedgerDefaultMarkDeleteRateLimit=0
brokerDeduplicationEnabled=false
";

/// Waits until `ended`, or the end of our input.
async fn until_closed(ended: impl Future<Output = Result<()>>) -> Result<()> {
    let (close, closed) = tokio::sync::oneshot::channel();
    // A thread of its own: the read cannot be given up, and the runtime would wait for it.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = close.send(());
    });
    tokio::select! {
        ended = ended => ended,
        _ = closed => Ok(()),
    }
}
