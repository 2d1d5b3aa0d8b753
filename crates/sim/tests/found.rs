//! What failed once does not fail any more.
#![cfg(feature = "run")]

use cdc_core::task::Mode;
use cdc_sim::found::FOUND;
use cdc_sim::plan::Plan;
use cdc_sim::run::run;

#[test]
fn no_seed_that_failed_once_fails_again() {
    let failed: Vec<_> = FOUND
        .iter()
        .filter_map(|(seed, what)| {
            let failure = run(&Plan::of(*seed, Mode::Replicate), false).failure?;
            Some(format!(
                "seed {seed} ({what}): {}: {}",
                failure.kind, failure.text
            ))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
