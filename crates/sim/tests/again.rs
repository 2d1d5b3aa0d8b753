//! A seed is the same run, whenever it is run.
#![cfg(feature = "run")]

use cdc_core::task::Mode;
use cdc_sim::plan::Plan;
use cdc_sim::run::run;

/// Built without `--cfg tokio_unstable`, tokio's own dice have no seed: `cargo xtask simulate` runs this test as it is
/// to be.
#[test]
#[cfg_attr(
    not(tokio_unstable),
    ignore = "needs --cfg tokio_unstable: cargo xtask simulate"
)]
fn a_seed_does_the_same_to_the_target_at_the_same_times() {
    for seed in 0..12 {
        let plan = Plan::of(seed, Mode::Replicate);
        let (first, second) = (run(&plan, false), run(&plan, false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.ms, second.ms, "seed {seed}");
    }
}

#[test]
fn different_seeds_are_different_runs() {
    let traces = [1, 2, 3].map(|seed| run(&Plan::of(seed, Mode::Replicate), false).trace);
    assert!(traces[0] != traces[1] && traces[1] != traces[2]);
}
