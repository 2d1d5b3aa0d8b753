//! `cdc-sim --seeds FROM..TO`, or `--seed N` for one with all that happens.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cdc_core::task::Mode;
use cdc_sim::plan::Plan;
use cdc_sim::run::{Outcome, run};
use cdc_sim::shrink::shrink;
use clap::Parser;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

#[derive(Parser)]
#[command(about = "Runs the corelib between models of a source and a target, one run a seed")]
struct Arguments {
    /// FROM..TO, TO left out.
    #[arg(long, default_value = "0..1000")]
    seeds: String,
    /// One seed, and what happens in it. RUST_LOG shows what the corelib says.
    #[arg(long)]
    seed: Option<u64>,
    /// With a target that is a Milvus of its own.
    #[arg(long)]
    plain: bool,
    /// No new seed is begun after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Goes on after a seed that fails, up to so many.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Seconds to make a failing run small.
    #[arg(long, default_value_t = 60)]
    shrink: u64,
    /// Runs the small one once more, with all that happens in it, and RUST_LOG for that alone.
    #[arg(long)]
    show: bool,
    /// Appends a line of JSON about these runs to a file.
    #[arg(long)]
    record: Option<std::path::PathBuf>,
}

impl Arguments {
    fn mode(&self) -> Mode {
        match self.plain {
            true => Mode::Plain,
            false => Mode::Replicate,
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if !cfg!(tokio_unstable) {
        eprintln!(
            "built without --cfg tokio_unstable: a seed does not run the same again. Use `cargo xtask simulate`."
        );
    }
    if !arguments.show {
        say();
    }
    match arguments.seed {
        Some(seed) => Ok(one(seed, &arguments)),
        None => many(&arguments),
    }
}

/// What the corelib and the model of the standby say, as far as RUST_LOG wants it.
fn say() {
    if std::env::var("RUST_LOG").is_ok() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
        let subscriber = subscriber.with_timer(Virtual(Instant::now()));
        let _ = subscriber.with_ansi(false).try_init();
    }
}

/// The time of the run, from a moment shortly before it.
struct Virtual(Instant);

impl FormatTime for Virtual {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        let since = tokio::time::Instant::now().into_std() - self.0;
        write!(w, "{:9.3}", since.as_secs_f64())
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let plan = Plan::of(seed, arguments.mode());
    println!(
        "{:?} {:?} {:?} latency {:?}",
        plan.setup, plan.weather, plan.disk, plan.latency
    );
    if let Some(copies) = &plan.copies {
        println!("{copies:?}");
    }
    let outcome = run(&plan, true);
    println!("{outcome:#?}");
    if outcome.failure.is_none() {
        return ExitCode::SUCCESS;
    }
    tell(&plan, &outcome, arguments);
    ExitCode::FAILURE
}

/// What failed, and the smallest run that was found to fail so.
fn tell(plan: &Plan, outcome: &Outcome, arguments: &Arguments) {
    let Some(failure) = &outcome.failure else {
        return;
    };
    println!("seed {}: {}: {}", plan.seed, failure.kind, failure.text);
    let plain = if arguments.plain { " --plain" } else { "" };
    println!("again: cargo xtask simulate --seed {}{plain}", plan.seed);
    if arguments.shrink == 0 {
        return;
    }
    let (small, outcome) = shrink(plan, outcome, Duration::from_secs(arguments.shrink));
    println!(
        "with {} of {} acts: {:?} {:?} {:?}",
        small.acts.len(),
        plan.acts.len(),
        small.setup,
        small.weather,
        small.disk
    );
    if let Some(copies) = &small.copies {
        println!("    before the task: {copies:?}");
    }
    for (gap, act) in &small.acts {
        println!("    +{gap:>4} ms {act:?}");
    }
    if let Some(failure) = &outcome.failure {
        println!("{}: {}", failure.kind, failure.text);
    }
    if arguments.show {
        say();
        run(&small, true);
    }
}

fn many(arguments: &Arguments) -> Result<ExitCode> {
    let (from, to) = range(&arguments.seeds)?;
    let begun = Instant::now();
    let over = |of: &Instant| {
        arguments
            .seconds
            .is_some_and(|s| of.elapsed() > Duration::from_secs(s))
    };
    let (mut counted, mut failures, mut ran) = (0u64, 0usize, 0u64);
    let (mut kills, mut cut, mut ms, mut compared, mut untold, mut exposed) = (0, 0, 0, 0, 0, 0);
    let mut read = 0;
    let mut next = from;
    while next < to && failures < arguments.failures && !over(&begun) {
        let plan = Plan::of(next, arguments.mode());
        let outcome = run(&plan, false);
        (next, ran) = (next + 1, ran + 1);
        counted += u64::from(outcome.counts());
        kills += outcome.kills;
        cut += outcome.cut;
        ms += outcome.ms;
        compared += outcome.compared;
        untold += outcome.untold;
        exposed += outcome.exposed;
        read += outcome.read;
        if outcome.failure.is_some() {
            failures += 1;
            tell(&plan, &outcome, arguments);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "seeds {from}..{next}: {ran} runs, {counted} count, {failures} failed; {kills} kills, {cut} calls cut, {compared} shards compared at ticks, {untold} raised windows not told, {exposed} keys seen twice in told windows, {read} rows read for copies, {} s simulated; {seconds:.1} s, {:.1} seeds/s",
        ms / 1000,
        ran as f64 / seconds
    );
    if let Some(path) = &arguments.record {
        let commit = Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .output();
        let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        let line = serde_json::json!({
            "kind": "simulation",
            "commit": commit.unwrap_or_default(),
            "from": from,
            "to": next,
            "counted": counted,
            "violations": failures,
            "mode": arguments.mode(),
            "rows_read": read,
        });
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        let mut file = file.with_context(|| format!("{}", path.display()))?;
        writeln!(file, "{line}")?;
    }
    if counted == 0 {
        bail!("no run counts: nothing is shown by them");
    }
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn range(text: &str) -> Result<(u64, u64)> {
    let (from, to) = text
        .split_once("..")
        .context("--seeds: FROM..TO expected")?;
    Ok((from.trim().parse()?, to.trim().parse()?))
}
