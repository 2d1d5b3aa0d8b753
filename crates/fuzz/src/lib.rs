//! Everything that reads bytes from outside, as functions of bytes: `fuzz/` gives them to libFuzzer, [`runner`] to a
//! mutator that needs no nightly compiler.
//!
//! A target fails by a panic: one of the program, or one of its own assertions about what was read. What it gives back
//! says which way the bytes took, as far as that can be seen from outside: inputs that take a new one are kept.

mod core;
pub mod mutate;
pub mod runner;
mod server;

use std::hash::{DefaultHasher, Hash, Hasher};

/// One reader.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> u64,
    /// Words that its inputs are made of.
    pub words: &'static [&'static str],
}

/// All of them. Each has a corpus in `fuzz/corpus/{name}` and a binary in `fuzz/fuzz_targets/{name}.rs`.
pub const TARGETS: &[Target] = &[
    core::MESSAGE,
    core::POSITION,
    core::CATALOG,
    core::KEY,
    server::CDC,
    server::NEW_TASK,
    server::PATCH,
    server::CONFIG,
    server::GO_STORE,
];

/// Runs one target; for libFuzzer.
#[allow(
    clippy::panic,
    reason = "a target that is not there is a mistake in fuzz/"
)]
pub fn run(name: &str, data: &[u8]) {
    match TARGETS.iter().find(|t| t.name == name) {
        Some(target) => {
            let _ = (target.run)(data);
        }
        None => panic!("no target {name}"),
    }
}

/// The way that some bytes took.
fn way(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The same for an outcome in words: without what is quoted and counted in it.
fn way_of(outcome: &Result<(), String>) -> u64 {
    let text = match outcome {
        Ok(()) => return 0,
        Err(text) => text,
    };
    let mut quoted = false;
    let plain = text.chars().filter(|c| {
        if *c == '"' || *c == '`' {
            quoted = !quoted;
        }
        !quoted && !c.is_ascii_digit()
    });
    way(plain.take(200).collect::<String>())
}
