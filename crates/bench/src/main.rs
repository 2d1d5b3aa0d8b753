//! `cdc-bench`: scenarios by name, one line of JSON for each on standard output.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cdc_bench::proc::{OTHERS, Pinning};
use cdc_bench::run::{self, Program, Setup};
use cdc_bench::scenario;
use clap::Parser;

/// Measures milvus-cdc on a generated queue, with a target that only counts. One line of JSON for each scenario.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Names of scenarios; `all`, or none: these are listed.
    scenarios: Vec<String>,
    /// The source's queue: natsmq, or kafka in a build with that feature.
    #[arg(long, default_value = "natsmq")]
    queue: String,
    /// Of the backlog, in place of the scenario's own size.
    #[arg(long)]
    megabytes: Option<u64>,
    /// For how long is looked, in place of the scenario's own time.
    #[arg(long)]
    seconds: Option<u64>,
    /// Milliseconds between a call and the target's answer; with commas between, one run for each.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    ack_delay_ms: Vec<u64>,
    /// The target is a Milvus of its own: rows by Insert and Delete.
    #[arg(long)]
    plain: bool,
    /// Another server than milvus-cdc, as NAME=COMMAND: a command for `sh -c` that ends in `exec` of the server. Its HTTP
    /// interface, with the Go server's `POST /cdc`, has to be on 127.0.0.1:$CDC_BENCH_PORT; the source is at
    /// $CDC_BENCH_ETCD below $CDC_BENCH_ROOT, its queue at $CDC_BENCH_NATS or $CDC_BENCH_KAFKA, its replicate channel
    /// $CDC_BENCH_REPLICATE_CHANNEL; files go to $CDC_BENCH_DIR.
    #[arg(long)]
    against: Option<String>,
    /// Of the rows' content.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// All processes on all cores. Else the measured one is on core 1, everything else on core 0.
    #[arg(long)]
    no_pin: bool,
    /// Adds each line to the end of this file, too.
    #[arg(long)]
    append: Option<PathBuf>,
    /// Where the servers' files go: a queue needs three times the backlog. A temporary folder if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match begin(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin(args: Args) -> Result<()> {
    let pinning = match args.no_pin {
        true => Pinning { on: false },
        false => Pinning::detect(),
    };
    // Before there are threads: they begin where their maker is, and so do the servers.
    pinning.pin(std::process::id(), OTHERS)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(measure(args, pinning))
}

async fn measure(args: Args, pinning: Pinning) -> Result<()> {
    if args.scenarios.is_empty() {
        for scenario in scenario::ALL {
            println!("{:<16} {}", scenario.name, scenario.about);
        }
        return Ok(());
    }
    let mut chosen = Vec::new();
    for name in &args.scenarios {
        match (name.as_str(), scenario::find(name)) {
            ("all", _) => chosen.extend(scenario::ALL.iter().copied()),
            (_, Some(scenario)) => chosen.push(scenario),
            _ => bail!("no such scenario: {name}; without a name they are listed"),
        }
    }
    let program = match &args.against {
        None => Program::Ours,
        Some(against) => {
            let (name, command) = against.split_once('=').context("--against NAME=COMMAND")?;
            let (name, command) = (name.to_owned(), command.to_owned());
            Program::Other { name, command }
        }
    };
    let temporary;
    let dir = match args.dir {
        Some(dir) => dir,
        None => {
            temporary = tempfile::Builder::new().prefix("cdc-bench-").tempdir()?;
            temporary.path().to_owned()
        }
    };
    let mut append = match &args.append {
        None => None,
        Some(path) => Some(
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("open {}", path.display()))?,
        ),
    };
    let versions = run::versions(&args.queue)?;
    let mut failed = Vec::new();
    for scenario in chosen {
        for ack_delay_ms in &args.ack_delay_ms {
            let setup = Setup {
                queue: args.queue.clone(),
                ack_delay_ms: *ack_delay_ms,
                plain: args.plain,
                program: program.clone(),
                dir: dir.clone(),
                pinning,
                seed: args.seed,
                versions: versions.clone(),
            };
            let scenario = scenario.sized(args.megabytes, args.seconds);
            match run::run(&scenario, &setup).await {
                Ok(line) => {
                    println!("{line}");
                    if let Some(file) = &mut append {
                        writeln!(file, "{line}")?;
                    }
                }
                Err(error) => {
                    eprintln!("{}: {error:#}", scenario.name);
                    failed.push(scenario.name);
                }
            }
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("these did not come to their end: {}", failed.join(", ")),
    }
}
