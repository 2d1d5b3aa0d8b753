//! What failed once does not fail any more.
#![cfg(feature = "run")]

use cdc_sim::found::found;
use cdc_sim::plan::Plan;
use cdc_sim::run::run;

#[test]
fn no_seed_that_failed_once_fails_again() {
    let failed: Vec<_> = found()
        .filter_map(|(seed, mode, what)| {
            let failure = run(&Plan::of(seed, mode), false).failure?;
            Some(format!(
                "seed {seed}, {mode} ({what}): {}: {}",
                failure.kind, failure.text
            ))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
