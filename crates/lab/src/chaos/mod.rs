//! Chaos: a workload over every operation on real servers, and faults from a seed, for as long as wanted; then all is up
//! again, nobody touches anything, and source and target have to become equal.
//!
//! [`plan`] says which faults come when and is pure; `bench` has the servers and does the faults; `writer` writes;
//! `mend` repairs what a Milvus has lost itself; `figures` is the line of JSON that is left of a run.

mod bench;
mod disk;
mod figures;
mod mend;
pub mod plan;
mod starts;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::bench::Bench;
use self::figures::{Figures, Outcome};
use self::plan::{Chosen, Schedule, choose};
use self::writer::{beat, write};
use crate::cdc::Status;
use crate::client::Client;
use crate::compare::{Options, Report, compare};
use crate::demo::asked_to_stop;
use crate::progress::Progress;
use crate::servers::Mq;

/// What is asked of a run.
#[derive(Debug, Clone)]
pub struct Chaos {
    /// Of the faults and of the workload.
    pub seed: u64,
    /// How long faults come.
    pub lasts: Duration,
    pub queue: Mq,
    /// Names of faults; empty: all that are safe on this queue.
    pub faults: Vec<String>,
    /// Rows written in a second, about.
    pub rate: u64,
    /// The longest time between the end of a fault and the next one.
    pub gap: Duration,
    /// The last line goes to the end of this file, too.
    pub append: Option<PathBuf>,
    /// For data and logs; a temporary one if `None`.
    pub dir: Option<PathBuf>,
}

/// A 2.3.5 target whose data node has waited for ticks on a channel in vain (while it was killed, or milvus-cdc was killed
/// more often than it may send ticks) gives that channel out again only five minutes later
/// (`dataCoord.channel.watchTimeoutInterval`), and until then it loads and flushes nothing that needs it.
const PATIENCE: Duration = Duration::from_secs(420);
/// Until when all collections have to be well once everything is up.
const WELL: Duration = PATIENCE;
/// For each stage of the comparison.
const EQUAL: Duration = PATIENCE;
/// Differences and lines of a verdict that go into the figures.
const NAMED: usize = 20;

/// Runs it; whether source and target were equal at the end and nothing needed a hand. The last line on standard output
/// is one of JSON.
///
/// # Errors
/// The arguments cannot be met, a server does not start, or the figures cannot be written.
pub async fn run(chaos: &Chaos, progress: &Progress) -> Result<bool> {
    let mut chosen = choose(&chaos.faults, chaos.queue)?;
    let dir = chaos.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("milvus-cdc-chaos-{}", std::process::id()))
    });
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let mut figures = Figures::new(chaos);
    let ran = tokio::select! {
        ran = inside(chaos, &mut chosen, &dir, &mut figures, progress) => ran,
        () = asked_to_stop() => bail!("interrupted; everything that was started has been killed, logs are in {}", dir.display()),
    };
    if let Err(e) = ran {
        figures.outcome = Outcome::Broken;
        figures.detail.push(format!("{e:#}"));
    }
    figures.left_out = chosen.left_out;
    let good = figures.outcome == Outcome::Equal;
    for line in &figures.detail {
        progress.line(line);
    }
    if good && chaos.dir.is_none() {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        progress.line(&format!("data and logs: {}", dir.display()));
    }
    let line = figures.line();
    if let Some(file) = &chaos.append {
        figures::append(file, &line)?;
    }
    println!("{line}");
    Ok(good)
}

async fn inside(
    chaos: &Chaos,
    chosen: &mut Chosen,
    dir: &std::path::Path,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let mut bench = Bench::start(chaos.queue, chaos.seed, chosen, dir, progress).await?;
    progress.line(&format!(
        "chaos with seed {} for {:.1} min: {}",
        chaos.seed,
        chaos.lasts.as_secs_f64() / 60.0,
        chosen
            .kinds
            .iter()
            .map(|k| k.name())
            .collect::<Vec<_>>()
            .join(", ")
    ));
    for (kind, why) in &chosen.left_out {
        progress.line(&format!("left out: {kind}: {why}"));
    }
    let source = Client::connect("source", &bench.source.uri()).await?;
    let target = Client::connect("target", &bench.target.uri()).await?;
    let began = Instant::now();
    let say =
        |what: &str| progress.line(&format!("{:7.1} s  {what}", began.elapsed().as_secs_f64()));
    // Rows come all the time.
    let rare = |what: &str| {
        if !["insert", "upsert", "delete"]
            .iter()
            .any(|p| what.starts_with(p))
        {
            say(&format!("  {what}"));
        }
    };
    let enough = AtomicBool::new(false);
    let strike = async {
        let outcome = strike(chaos, chosen, &mut bench, say).await;
        enough.store(true, Ordering::Relaxed);
        outcome
    };
    let (written, beaten, struck) = tokio::join!(
        async {
            let written = write(&source, chaos.seed, chaos.rate, &enough, rare).await;
            enough.store(true, Ordering::Relaxed);
            written
        },
        async {
            let beaten = beat(&source, chaos.seed, &enough).await;
            enough.store(true, Ordering::Relaxed);
            beaten
        },
        strike
    );
    bench.happened.starts.ended();
    figures.take(&bench.happened);
    struck?;
    let (written, beaten) = (written?, beaten?);
    figures.rows_written = written.done.rows_written() + beaten.done.rows_written();
    figures.operations = written.done.operations + beaten.done.operations;
    figures.refused = written.refused;
    say("the faults are over and nothing is written any more");
    judge(&mut bench, &source, &target, figures, progress).await?;
    figures.take(&bench.happened);
    if bench
        .happened
        .ended
        .iter()
        .any(|e| e.starts_with("milvus-cdc"))
    {
        figures.fail(
            Outcome::Ended,
            vec!["milvus-cdc ended by itself".to_owned()],
        );
    }
    bench.end().await;
    Ok(())
}

/// Fault after fault until the time is over; then all is up again.
async fn strike(
    chaos: &Chaos,
    chosen: &Chosen,
    bench: &mut Bench,
    say: impl Fn(&str),
) -> Result<()> {
    let end = Instant::now() + chaos.lasts;
    for planned in Schedule::new(chaos.seed, &chosen.kinds, chaos.gap) {
        if Instant::now() + planned.after >= end {
            break;
        }
        tokio::time::sleep(planned.after).await;
        say(&format!("FAULT {}", planned.fault));
        let outcome = bench.suffer(planned.fault).await;
        outcome.with_context(|| format!("the fault {}", planned.fault))?;
    }
    bench.heal().await
}

/// Whether all is well without hands, and equal; what is not goes into the figures.
async fn judge(
    bench: &mut Bench,
    source: &Client,
    target: &Client,
    figures: &mut Figures,
    progress: &Progress,
) -> Result<()> {
    let stuck = well(bench).await?;
    let options = Options {
        patience: EQUAL,
        rows: true,
        ..Options::default()
    };
    progress.begin("compare source and target");
    let report = compared(bench, source, target, options).await?;
    progress.done("compare source and target");
    progress.line(&report.to_string());
    figures.rows_compared = report.rows();
    if report.is_equal() {
        figures.outcome = Outcome::Equal;
    } else {
        let mut detail: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
        detail.extend(report.open.iter().cloned());
        detail.truncate(NAMED);
        figures.fail(Outcome::Different, detail);
    }
    logged(bench, source, target, &report, figures).await?;
    if !report.is_equal() {
        let mended = mend::mend(bench).await;
        figures.mended = Some(mended.unwrap_or_else(|e| format!("{e:#}").into()));
    }
    // What the comparison has loaded has to be carried, too.
    let stuck = if stuck.is_empty() {
        well(bench).await?
    } else {
        stuck
    };
    if !stuck.is_empty() {
        figures.fail(Outcome::NeedsHands, stuck);
    }
    Ok(())
}

/// Compares. A server that ends by itself meanwhile is started again, and all is compared anew: a 2.3.5 target can take
/// minutes to die of what was asked of it.
async fn compared(
    bench: &mut Bench,
    source: &Client,
    target: &Client,
    options: Options,
) -> Result<Report> {
    loop {
        let ended = bench.happened.ended.len();
        let report = {
            let comparing = std::pin::pin!(compare(source, target, options));
            let minding = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    if let Err(e) = bench.still_there().await {
                        break e;
                    }
                }
            };
            tokio::select! {
                report = comparing => report,
                e = minding => return Err(e),
            }
        };
        bench.still_there().await?;
        if bench.happened.ended.len() == ended {
            return report;
        }
    }
}

/// What the target's own log says: whether it goes by the rules, and on a difference who lost.
#[cfg(feature = "audit")]
async fn logged(
    bench: &Bench,
    source: &Client,
    target: &Client,
    report: &Report,
    figures: &mut Figures,
) -> Result<()> {
    use crate::audit::verdict;

    if let Err(e) = verdict::keep_the_rules(&bench.target) {
        figures.fail(Outcome::AgainstTheRules, vec![format!("{e:#}")]);
    }
    if !report.is_equal() {
        let servers = (&bench.source, &bench.target);
        let verdict = verdict::verdict(source, target, servers, report, true).await?;
        let of = match verdict.downcast_ref::<verdict::TheirFault>() {
            Some(fault) if fault.by_source => Outcome::SourceLost,
            Some(_) => Outcome::TargetLost,
            None => Outcome::Different,
        };
        figures.outcome = of;
        figures
            .detail
            .extend(figures::verdict(&format!("{verdict:#}")));
    }
    Ok(())
}

#[cfg(not(feature = "audit"))]
async fn logged(
    _: &Bench,
    _: &Client,
    _: &Client,
    report: &Report,
    figures: &mut Figures,
) -> Result<()> {
    if !report.is_equal() {
        let text = "the target's log was not read: this build is without `audit`";
        figures.detail.push(text.to_owned());
    }
    Ok(())
}

/// Waits until the task runs and each of its collections streams or is dropped; what does not, by name.
async fn well(bench: &mut Bench) -> Result<Vec<String>> {
    let end = Instant::now() + WELL;
    loop {
        let ill = match bench.cdc.task(&bench.task).await {
            Ok(status) => ill(&status),
            Err(e) => vec![format!("the task cannot be asked: {e:#}")],
        };
        if ill.is_empty() || Instant::now() >= end {
            return Ok(ill);
        }
        bench.still_there().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn ill(status: &Status) -> Vec<String> {
    let mut ill = Vec::new();
    if status.state() != "Running" {
        let why = &status.task["reason"];
        ill.push(format!("the task is {}: {why}", status.state()));
    }
    let words = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
    for c in status.collections() {
        if !matches!(c["state"].as_str(), Some("Streaming" | "Dropped")) {
            ill.push(format!(
                "{}.{} is {}: {}",
                words(&c["db"]),
                words(&c["name"]),
                words(&c["state"]),
                c["detail"]
            ));
        }
    }
    ill
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_waits_or_fails_is_named() {
        let status = |state: &str, collections: serde_json::Value| Status {
            task: json!({ "state": state, "collections": collections }),
        };
        let good = json!([{ "db": "d", "name": "a", "state": "Streaming" }, { "db": "d", "name": "a", "state": "Dropped" }]);
        assert!(ill(&status("Running", good.clone())).is_empty());
        assert!(ill(&status("Paused", good))[0].contains("Paused"));
        let bad =
            json!([{ "db": "d", "name": "b", "state": "Failing", "detail": { "attempt": 7 } }]);
        assert_eq!(
            ill(&status("Running", bad)),
            ["d.b is Failing: {\"attempt\":7}"]
        );
    }
}
