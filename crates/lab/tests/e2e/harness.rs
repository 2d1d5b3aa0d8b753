//! Runs the tests one after the other, with one lab for those that follow each other on the same kind.

use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};
use cdc_lab::audit::verdict::TheirFault;
use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::Runtime;

use crate::lab::{Kind, Lab};

/// A test on a lab.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a mut Lab, &'a mut StdRng) -> LocalBoxFuture<'a, Result<()>>,
}

/// A test that starts what it needs itself.
pub(crate) struct Alone {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut StdRng) -> LocalBoxFuture<'_, Result<()>>,
}

/// `tests![Test: one, two]`: the functions as tests of their names, in `TESTS`; `tests![Test as OTHERS: three]`.
macro_rules! tests {
    ($kind:ident: $($name:ident),* $(,)?) => {
        tests![$kind as TESTS: $($name),*];
    };
    ($kind:ident as $list:ident: $($name:ident),* $(,)?) => {
        pub(crate) const $list: &[$crate::harness::$kind] = &[$(tests!(@$kind $name)),*];
    };
    (@Test $name:ident) => {
        $crate::harness::Test { name: stringify!($name), run: |lab, random| Box::pin($name(lab, random)) }
    };
    (@Alone $name:ident) => {
        $crate::harness::Alone { name: stringify!($name), run: |random| Box::pin($name(random)) }
    };
}
pub(crate) use tests;

/// The lab of the test before.
static LAB: Mutex<Option<Lab>> = Mutex::new(None);
/// Whether what happens is shown.
static SHOWN: OnceLock<bool> = OnceLock::new();

/// A line for whoever watches, or reads a failure.
pub(crate) fn say(line: &str) {
    if SHOWN.get() == Some(&true) {
        eprintln!("{line}");
    }
}

pub(crate) fn shown() -> bool {
    SHOWN.get() == Some(&true)
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap_or_else(|e| fatal(&format!("no runtime: {e}")))
    })
}

fn fatal(text: &str) -> ! {
    eprintln!("{text}");
    std::process::exit(101)
}

pub(crate) fn shared(kind: Kind, group: &str, test: &'static Test) -> Trial {
    let name = format!("{}::{group}::{}", kind.name(), test.name);
    Trial::test(name.clone(), move || {
        timed(&name, || {
            tried(&name, || {
                runtime().block_on(unless_stopped(on_a_lab(kind, &name, test)))
            })
        })
    })
}

pub(crate) fn alone(group: &str, test: &'static Alone) -> Trial {
    let name = format!("{group}::{}", test.name);
    Trial::test(name.clone(), move || {
        timed(&name, || {
            tried(&name, || {
                runtime().block_on(unless_stopped(async {
                    // Its servers need the room.
                    end_the_lab().await?;
                    let seed = seed();
                    say(&format!("\n{name}: seed {seed}"));
                    (test.run)(&mut StdRng::seed_from_u64(seed))
                        .await
                        .with_context(|| format!("again with CDC_E2E_SEED={seed}"))
                }))
            })
        })
    })
}

/// What another test shows as well, at less cost: run with `--include-ignored` (`cargo xtask test --long`).
const RARE: &[&str] = &[
    // `verify` has each sabotage on one pair of servers; `a_lost_row_is_named` has the demo's own end.
    "demo::a_doubled_row_is_named",
    "demo::a_changed_field_is_named",
    "demo::a_missing_index_is_named",
    // Every operation is tested on each queue.
    "demo::rocksmq_is_equal",
    "demo::kafka_is_equal",
    "demo::pulsar_is_equal",
    // About the lab's sources alone: that of natsmq is tested always.
    "lab::a_rocksmq_source_survives_a_kill",
    "lab::a_kafka_source_survives_a_kill",
    "lab::a_pulsar_source_survives_a_kill",
    // About the number of collections and the queue's side: those of natsmq are tested always.
    "plain::many::thirty_collections_at_once",
    "plain::many::created_and_dropped_again_at_once",
    "plain::many::another_shard_count_while_rows_flow",
    "plain::kills::the_whole_workload_through_three_kills",
];

/// Runs all that `args` select and prints the summary.
pub(crate) fn run(args: &Arguments, trials: Vec<Trial>) -> ExitCode {
    let _ = SHOWN.set(args.nocapture || args.show_output);
    let rare = |trial: Trial| {
        let rare = RARE.contains(&trial.name());
        trial.with_ignored_flag(rare)
    };
    // The last lab ends within a test of its own: the summary is to be the last word.
    let mut all: Vec<Trial> = trials.into_iter().map(rare).collect();
    all.push(Trial::test("lab::the_last_one_ends_well", || {
        timed("lab::the_last_one_ends_well", || {
            runtime().block_on(end_the_lab())
        })
    }));
    let conclusion = libtest_mimic::run(args, all);
    // Where a filter left that test out.
    if let Err(e) = runtime().block_on(end_the_lab()) {
        fatal(&format!("{e:#}"));
    }
    conclusion.exit_code()
}

/// A target that was given the right rows and does not show them has lost them itself, as 2.3.5 does now and then (or a
/// source shows others than its own log has): such
/// a run says nothing of milvus-cdc. It is told at once, and the test runs once more on fresh servers. Every other
/// failure stands.
fn tried(name: &str, run: impl Fn() -> Result<()>) -> Result<()> {
    match run() {
        Err(e) if e.downcast_ref::<TheirFault>().is_some() => {
            eprintln!("{name}: MILVUS ITSELF LOST ROWS: {e:#}\n{name} runs once more");
            run()
        }
        other => other,
    }
}

/// `CDC_E2E_SEED`, else a new one.
fn seed() -> u64 {
    std::env::var("CDC_E2E_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(rand::random)
}

/// At ctrl-c or SIGTERM the test's servers are killed, which a signal to us alone does not do, and all ends.
async fn unless_stopped(test: impl Future<Output = Result<()>>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::select! {
        outcome = test => return outcome,
        () = stopped => {}
    }
    // The test and what it held are gone by now.
    drop(LAB.lock().take());
    fatal("interrupted; everything that was started has been killed")
}

async fn end_the_lab() -> Result<()> {
    let lab = LAB.lock().take();
    match lab {
        Some(lab) => lab.end().await,
        None => Ok(()),
    }
}

async fn on_a_lab(kind: Kind, name: &str, test: &Test) -> Result<()> {
    let seed = seed();
    // Taken out: a test that fails or panics does not put it back.
    let before = LAB.lock().take();
    let mut lab = match before {
        Some(lab) if lab.kind == kind && kind.is_shared() => lab,
        Some(other) => {
            other.end().await?;
            Lab::start(kind, seed).await?
        }
        None => Lab::start(kind, seed).await?,
    };
    say(&format!(
        "\n{name}: seed {seed}, data and logs in {}",
        lab.dir().display()
    ));
    let mut random = StdRng::seed_from_u64(seed);
    let outcome = async {
        (test.run)(&mut lab, &mut random).await?;
        lab.tidy().await
    }
    .await;
    if let Err(e) = outcome {
        let dir = lab.dir().display().to_string();
        lab.abandon().await;
        return Err(e.context(format!(
            "again with CDC_E2E_SEED={seed}; data and logs are kept in {dir}"
        )));
    }
    *LAB.lock() = Some(lab);
    Ok(())
}

/// Keeps how long it took in a file: the lines on the screen are the runner's own.
fn timed(name: &str, run: impl FnOnce() -> Result<()>) -> Result<(), Failed> {
    let begun = Instant::now();
    let outcome = run();
    let line = format!(
        "{:7.1} s  {}  {name}",
        begun.elapsed().as_secs_f64(),
        if outcome.is_ok() { "ok    " } else { "FAILED" }
    );
    say(&line);
    let times = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-times.txt");
    if let Ok(mut file) = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(times)
    {
        let _ = writeln!(file, "{line}");
    }
    outcome.map_err(|e| {
        let text = format!("{e:#}");
        // At the end, too; but that may be an hour away.
        say(&text);
        Failed::from(text)
    })
}
