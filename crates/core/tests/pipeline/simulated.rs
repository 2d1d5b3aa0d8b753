//! A few courses of events of the simulation; `cargo xtask simulate` has any number of them, each the same again.

use cdc_core::task::Mode;
use cdc_sim::found::found;
use cdc_sim::plan::Plan;
use cdc_sim::run::run;

#[test]
fn chosen_courses_of_events_end_well() {
    let from = std::env::var("CDC_PIPELINE_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let from: u64 = from.unwrap_or_else(|| rand::random_range(0..1 << 32));
    println!("seeds {from}..{}", from + 40);
    let found = found().map(|(seed, mode, _)| (seed, mode));
    let new =
        (from..from + 40).flat_map(|seed| [Mode::Replicate, Mode::Plain].map(|mode| (seed, mode)));
    let (mut failed, mut counted) = (Vec::new(), 0);
    for (seed, mode) in found.chain(new) {
        let outcome = run(&Plan::of(seed, mode), false);
        counted += usize::from(outcome.counts());
        if let Some(failure) = outcome.failure {
            failed.push(format!(
                "seed {seed}, {mode}: {}: {}",
                failure.kind, failure.text
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(counted > 40, "too little happened in them: {counted} count");
}
