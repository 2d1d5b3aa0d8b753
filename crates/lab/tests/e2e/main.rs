//! Every promise on real servers, one test at a time: `cargo xtask test`, or
//! `cargo test -p cdc-lab --features e2e,audit --test e2e -- natsmq::kills`.
//!
//! A few that others show as well run only with `--include-ignored`.
//!
//! Consecutive tests on the same kind of lab share it. `CDC_E2E_SEED` repeats a run; `--nocapture` shows what happens;
//! how long each test took is in `e2e-times.txt` in the temporary folder of the build (`target/tmp`).

mod broker;
mod busy;
mod databases;
mod demo;
mod doctor;
mod failover;
mod harness;
mod import_go;
mod itself;
mod kills;
mod lab;
mod many;
mod merged;
mod names;
mod objects;
mod owners;
mod partitions;
mod paused;
mod plain;
mod properties;
mod refusals;
mod repair;
mod replies;
mod restarts;
mod rows;
mod rules;
mod schemas;
mod secured;
mod selected;
mod snapshot;
mod source_rules;
mod starts;
mod stuck;
mod tasks;
mod verify;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use crate::harness::{Alone, Test, alone, shared};
use crate::lab::Kind;

/// On the lab of each queue.
const EACH: &[(&str, &[Test])] = &[
    ("operations", rows::TESTS),
    ("operations", objects::TESTS),
    ("operations", partitions::TESTS),
    ("operations", databases::TESTS),
    ("operations", schemas::TESTS),
    ("kills", kills::TESTS),
];

/// What does not depend on the queue, and takes long.
const ONE: &[(&str, &[Test])] = &[
    ("many", many::TESTS),
    ("kills", kills::WORKLOAD),
    ("replies", replies::TESTS),
    ("names", names::TESTS),
];

/// Each with servers of its own.
const ALONE: &[(&str, &[Alone])] = &[
    ("lab", itself::TESTS),
    ("rules", rules::TESTS),
    ("rules", source_rules::TESTS),
    ("refusals", refusals::TESTS),
    ("secured", secured::TESTS),
    ("owners", owners::TESTS),
    ("doctor", doctor::TESTS),
    ("restarts", restarts::TESTS),
    ("failover", failover::TESTS),
    ("verify", verify::TESTS),
    ("repair", repair::TESTS),
    ("snapshot", snapshot::TESTS),
    ("merged", merged::TESTS),
    ("properties", properties::TESTS),
    ("demo", demo::TESTS),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Two cores, and labs that are shared.
    args.test_threads = Some(1);
    let mut trials = Vec::new();
    let mut add = |kind: Kind, groups: &[(&str, &'static [Test])]| {
        for (group, tests) in groups {
            trials.extend(tests.iter().map(|t| shared(kind, group, t)));
        }
    };
    add(Kind::Natsmq, EACH);
    add(Kind::Natsmq, ONE);
    add(
        Kind::Natsmq,
        &[("paused", paused::TESTS), ("busy", busy::TESTS)],
    );
    add(Kind::Plain, EACH);
    add(Kind::Plain, ONE);
    add(Kind::Rocksmq, EACH);
    add(Kind::Kafka, EACH);
    add(Kind::Kafka, &[("broker", broker::TESTS)]);
    add(Kind::Pulsar, EACH);
    add(Kind::Pulsar, &[("broker", broker::TESTS)]);
    add(Kind::Crowded, &[("stuck", stuck::TESTS)]);
    add(
        Kind::NoTask,
        &[
            ("tasks", tasks::TESTS),
            ("selected", selected::TESTS),
            ("starts", starts::TESTS),
            ("import_go", import_go::TESTS),
        ],
    );
    for (group, tests) in ALONE {
        trials.extend(tests.iter().map(|t| alone(group, t)));
    }
    harness::run(&args, trials)
}
