//! Mutates the corpus of each target for a while, and keeps what takes a new way.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Target;
use crate::mutate::mutate;

/// Inputs kept in memory for one target.
const KEPT: usize = 4000;
/// An input that takes more of a processor than this counts as a failure: a request that is read so slowly stops a server.
const SLOW: Duration = Duration::from_secs(1);
/// Failures of one target after which it is left alone.
const ENOUGH: usize = 10;

/// What came of one target.
#[derive(Debug)]
pub struct Report {
    pub target: &'static str,
    pub runs: u64,
    /// Inputs that took a way of their own, those of the corpus included.
    pub ways: usize,
    /// Of a processor, for one input.
    pub slowest: Duration,
    /// Each with its input.
    pub failures: Vec<(String, Vec<u8>)>,
}

/// The committed corpus of a target.
///
/// # Errors
/// The folder cannot be read.
pub fn corpus(target: &Target) -> std::io::Result<Vec<Vec<u8>>> {
    let folder = root().join("corpus").join(target.name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    files.iter().map(std::fs::read).collect()
}

/// The folder `fuzz` of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Runs one target for `time`: first the corpus as it is, then what is made of it.
pub fn run(target: &Target, corpus: Vec<Vec<u8>>, time: Duration, seed: u64) -> Report {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut report = Report {
        target: target.name,
        runs: 0,
        ways: 0,
        slowest: Duration::ZERO,
        failures: Vec::new(),
    };
    let mut seen = HashSet::new();
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for input in corpus {
        if let Some(way) = one(target, &input, &mut report) {
            seen.insert(way);
        }
        kept.push(input);
    }
    kept.push(Vec::new());
    let end = Instant::now() + time;
    while report.failures.len() < ENOUGH
        && (!report.runs.is_multiple_of(64) || Instant::now() < end)
    {
        // Recent ones more often: they are the ones that lead on.
        let from = match rng.random_range(0..3) {
            0 => kept.len() - 1 - rng.random_range(0..kept.len().min(32)),
            _ => rng.random_range(0..kept.len()),
        };
        let other = rng.random_range(0..kept.len());
        let input = mutate(&mut rng, &kept[from], &kept[other], target.words);
        if let Some(way) = one(target, &input, &mut report)
            && seen.insert(way)
        {
            if kept.len() < KEPT {
                kept.push(input);
            } else {
                let out = rng.random_range(0..kept.len());
                kept[out] = input;
            }
        }
    }
    report.ways = seen.len();
    report
}

/// What this thread has had of a processor.
pub fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn one(target: &Target, input: &[u8], report: &mut Report) -> Option<u64> {
    report.runs += 1;
    let began = processor_time();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let took = processor_time().saturating_sub(began);
    report.slowest = report.slowest.max(took);
    let mut failed = |why: String| report.failures.push((why, input.to_vec()));
    match outcome {
        Ok(_) if took > SLOW => {
            failed(format!("took {} ms", took.as_millis()));
            None
        }
        Ok(way) => Some(way),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            failed(text.unwrap_or("a panic").to_owned());
            None
        }
    }
}
