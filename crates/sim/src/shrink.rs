//! A failing run, made as small as it still fails in.

use std::time::{Duration, Instant};

use crate::plan::Plan;
use crate::run::{Outcome, run};

/// Leaves out what is not needed for a failure of the same kind: first halves of what happens, then ever smaller parts,
/// for at most so long.
pub fn shrink(plan: &Plan, outcome: &Outcome, within: Duration) -> (Plan, Outcome) {
    let until = Instant::now() + within;
    let (mut best, mut came) = (plan.clone(), outcome.clone());
    let kind = |o: &Outcome| o.failure.as_ref().map(|f| f.kind.clone());
    let wanted = kind(outcome);
    let mut part = best.acts.len().div_ceil(2).max(1);
    loop {
        let (mut from, mut smaller) = (0, false);
        while from < best.acts.len() && Instant::now() < until {
            let mut less = best.clone();
            let to = (from + part).min(less.acts.len());
            less.acts.drain(from..to);
            let outcome = run(&less, false);
            if kind(&outcome) == wanted {
                (best, came, smaller) = (less, outcome, true);
            } else {
                from = to;
            }
        }
        if Instant::now() >= until || (part == 1 && !smaller) {
            break;
        }
        part = if smaller && part == 1 {
            1
        } else {
            (part / 2).max(1)
        };
    }
    if let Some(copies) = &best.copies {
        // What was before the task, one by one.
        for at in (0..copies.acts.len()).rev() {
            let mut less = best.clone();
            let acts = less.copies.as_mut().map(|c| &mut c.acts);
            if Instant::now() >= until || acts.map(|acts| acts.remove(at)).is_none() {
                break;
            }
            let outcome = run(&less, false);
            if kind(&outcome) == wanted {
                (best, came) = (less, outcome);
            }
        }
    }
    // Without the weather, if that has nothing to do with it.
    for calm in [
        |p: &mut Plan| p.copies.iter_mut().for_each(|c| c.most = 0),
        |p: &mut Plan| p.copies.iter_mut().for_each(|c| c.rows_per_second = None),
        |p: &mut Plan| p.weather = Default::default(),
        |p: &mut Plan| p.disk = Default::default(),
        |p: &mut Plan| p.setup.ahead = 0,
        |p: &mut Plan| p.setup.retries = 0.0,
        |p: &mut Plan| p.setup.target_channels = 1,
        |p: &mut Plan| p.setup.source_channels = 1,
    ] {
        let mut less = best.clone();
        calm(&mut less);
        let outcome = run(&less, false);
        if kind(&outcome) == wanted {
            (best, came) = (less, outcome);
        }
    }
    (best, came)
}
