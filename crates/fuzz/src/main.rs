//! `cargo xtask fuzz`: mutates the corpora for a while.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_fuzz::runner::{corpus, processor_time, root, run};
use cdc_fuzz::{TARGETS, Target};

const HELP: &str = "\
cargo xtask fuzz [--seconds N] [--seed N] [--target NAME]

N seconds (20) for all targets together. Inputs that fail go into fuzz/failures. Exits 0 only if there are none.";

struct Wish {
    seconds: u64,
    seed: u64,
    targets: Vec<Target>,
}

fn wish() -> Result<Wish, String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut wish = Wish {
        seconds: 20,
        seed: clock.map_or(0, |d| u64::from(d.subsec_nanos())),
        targets: TARGETS.to_vec(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(HELP)?;
        let number = || {
            value
                .parse()
                .map_err(|_| format!("{flag}: a number expected, not {value:?}"))
        };
        match flag.as_str() {
            "--seconds" => wish.seconds = number()?,
            "--seed" => wish.seed = number()?,
            "--target" => wish.targets.retain(|t| t.name == value),
            _ => return Err(HELP.to_owned()),
        }
    }
    match wish.targets.is_empty() {
        true => Err(format!(
            "the targets are: {}",
            TARGETS
                .iter()
                .map(|t| t.name)
                .collect::<Vec<_>>()
                .join(", ")
        )),
        false => Ok(wish),
    }
}

fn main() -> ExitCode {
    match wish().and_then(|wish| fuzz(&wish)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing failed.
fn fuzz(wish: &Wish) -> Result<bool, String> {
    println!("seed {}", wish.seed);
    // What fails is told with its input; a line for each panic would be no help.
    std::panic::set_hook(Box::new(|_| {}));
    let time = Duration::from_secs(wish.seconds) / wish.targets.len() as u32;
    let (mut runs, mut well) = (0, true);
    for target in &wish.targets {
        let corpus = corpus(target).map_err(|e| format!("the corpus of {}: {e}", target.name))?;
        let report = run(target, corpus, time, wish.seed);
        runs += report.runs;
        println!(
            "{:<10} {:>10} runs, {:>5} ways, slowest {:>4} ms, {} failures",
            report.target,
            report.runs,
            report.ways,
            report.slowest.as_millis(),
            report.failures.len()
        );
        for (n, (why, input)) in report.failures.iter().enumerate() {
            well = false;
            let folder = root().join("failures");
            let file = folder.join(format!("{}-{}-{n}", report.target, wish.seed));
            std::fs::create_dir_all(&folder)
                .and_then(|()| std::fs::write(&file, input))
                .map_err(|e| format!("{}: {e}", file.display()))?;
            println!("  {}: {why}", file.display());
        }
    }
    println!(
        "{runs} runs, {:.1} s of a processor",
        processor_time().as_secs_f64()
    );
    Ok(well)
}
