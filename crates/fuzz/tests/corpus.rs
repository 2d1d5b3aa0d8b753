//! Every target takes its corpus and what is near it; and a target that fails is found.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use cdc_fuzz::runner::{corpus, root, run};
use cdc_fuzz::{TARGETS, Target};

#[test]
fn every_target_takes_its_corpus() {
    for target in TARGETS {
        let inputs = corpus(target).unwrap();
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        let largest = inputs.iter().map(Vec::len).max().unwrap();
        assert!(largest <= 4096, "a corpus is small");
        // 0: it was taken.
        let is_text = ["cdc", "new_task", "patch", "config", "go_store"].contains(&target.name);
        let taken = inputs.iter().filter(|i| (target.run)(i) == 0).count();
        assert!(!is_text || taken > 0, "{}: nothing is taken", target.name);
        let seed = rand::random();
        println!("{}: seed {seed}", target.name);
        let report = run(target, inputs, Duration::from_millis(200), seed);
        assert!(report.failures.is_empty(), "{report:?}");
        assert!(report.runs > 10 && report.ways > 1, "{report:?}");
    }
}

#[test]
fn each_target_is_one_of_libfuzzer_too() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        let body = root().join(format!("fuzz_targets/{name}.rs"));
        let body = std::fs::read_to_string(body).unwrap();
        assert!(
            body.contains(&format!("cdc_fuzz::run(\"{name}\", data)")),
            "{name}"
        );
    }
}

/// Fails only behind three bytes: those that lead there have to be kept.
fn hidden(data: &[u8]) -> u64 {
    match data {
        [b'x', b'y', b'z', ..] => panic!("found"),
        [b'x', b'y', ..] => 2,
        [b'x', ..] => 1,
        _ => 0,
    }
}

#[test]
fn a_failure_behind_several_steps_is_found() {
    let target = Target {
        name: "hidden",
        run: hidden,
        words: &[],
    };
    let seed = rand::random();
    println!("seed {seed}");
    let report = run(
        &target,
        vec![b"abc".to_vec()],
        Duration::from_secs(20),
        seed,
    );
    let (why, input) = report.failures.first().unwrap();
    assert_eq!(why, "found");
    assert!(input.starts_with(b"xyz"));
}
