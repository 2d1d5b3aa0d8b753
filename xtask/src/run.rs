//! The commands.

use std::path::PathBuf;
use std::process::Command;

use crate::env::{self, Env};
use crate::schemathesis;

pub(crate) type Outcome = Result<(), String>;

/// Of all that is built for the tests, always with `--workspace`: what is built with other features, or for one package
/// alone, has dependencies with other features, and they are compiled again.
const FEATURES: [&str; 2] = [
    "--features",
    "cdc-lab/e2e,cdc-lab/audit,cdc-core/e2e,milvus-cdc/e2e,cdc-bench/e2e,cdc-bench/kafka",
];

/// The tests of cdc-core on real servers: the contract of the queues on each, and the catalog.
const BESIDE: [&str; 7] = [
    "queue_natsmq",
    "queue_rocksmq",
    "queue_kafka",
    "queue_pulsar",
    "queue_pulsar_secured",
    "queue_pulsar_restart",
    "catalog_etcd",
];

/// Builds what the demo needs with the one queue it needs, and runs it.
pub(crate) fn demo(args: &[String]) -> Outcome {
    let queue = queue(args, "--source");
    let env = env::build(queue == "rocksmq")?;
    lab(&env, "demo", queue, &[], args)
}

/// As the demo; `--audit`, and a queue that needs RocksDB anyway, has the target's own log read as well.
pub(crate) fn chaos(args: &[String]) -> Outcome {
    let queue = queue(args, "--queue");
    let audit = queue == "rocksmq" || args.iter().any(|a| a == "--audit");
    let rest: Vec<String> = args.iter().filter(|a| *a != "--audit").cloned().collect();
    let more: &[&str] = if audit { &["cdc-lab/audit"] } else { &[] };
    let env = env::build(audit)?;
    lab(&env, "chaos", queue, more, &rest)
}

/// The queue that `args` name with this flag. What is no queue is told by the program itself, with what is one.
fn queue(args: &[String], flag: &str) -> &'static str {
    let named = args
        .windows(2)
        .find(|w| w[0] == flag)
        .map(|w| w[1].as_str())
        .or_else(|| {
            args.iter()
                .find_map(|a| a.strip_prefix(flag)?.strip_prefix('='))
        });
    ["natsmq", "rocksmq", "kafka", "pulsar"]
        .into_iter()
        .find(|queue| Some(*queue) == named)
        .unwrap_or("natsmq")
}

/// Builds milvus-cdc with one queue and the lab with some features more, and runs a command of the lab.
fn lab(env: &Env, command: &str, queue: &str, more: &[&str], args: &[String]) -> Outcome {
    let queue = format!("milvus-cdc/{queue}");
    let features = [&[queue.as_str()], more].concat().join(",");
    step("build");
    cargo(
        env,
        &[
            "build",
            "-p",
            "milvus-cdc",
            "-p",
            "cdc-lab",
            "--bins",
            "--no-default-features",
            "--features",
            &features,
        ],
    )?;
    let mut lab = Command::new(built("cdc-lab")?);
    lab.arg(command)
        .args(args)
        .env("MILVUS_CDC_BIN", built("milvus-cdc")?);
    finish(lab, &format!("cdc-lab {command}"))
}

/// Builds what is measured as it is released, and measures it. Without names of scenarios they are listed.
pub(crate) fn bench(args: &[String]) -> Outcome {
    let queue = queue(args, "--queue");
    let env = env::build(false)?;
    if args.iter().any(|a| a == "--micro") {
        return cargo(&env, &["bench", "-p", "cdc-bench", "--bench", "heart"]);
    }
    let mut features = format!("milvus-cdc/{queue}");
    if queue == "kafka" {
        features += ",cdc-bench/kafka";
    }
    step("build, as released");
    cargo(
        &env,
        &[
            "build",
            "--release",
            "-p",
            "milvus-cdc",
            "-p",
            "cdc-bench",
            "--bins",
            "--no-default-features",
            "--features",
            &features,
        ],
    )?;
    // Beside the folder of this very program, which is built for debugging.
    let released = |name: &str| -> Result<PathBuf, String> {
        let own = built(name)?;
        let target = own.ancestors().nth(2).ok_or("where is the build folder")?;
        Ok(target.join("release").join(name))
    };
    let mut bench = Command::new(released("cdc-bench")?);
    bench
        .args(args)
        .env("MILVUS_CDC_BIN", released("milvus-cdc")?);
    finish(bench, "cdc-bench")
}

/// Everything; `--quick`: what needs no servers; `--long`: also what other tests show as well.
pub(crate) fn test(args: &[String]) -> Outcome {
    let (quick, long) = match args {
        [] => (false, false),
        [one] if one == "--quick" => (true, false),
        [one] if one == "--long" => (false, true),
        other => {
            return Err(format!(
                "test: unknown arguments {other:?}; --quick or --long is known"
            ));
        }
    };
    let env = env::build(true)?;
    step("fmt");
    cargo(&env, &["fmt", "--all", "--check"])?;
    step("clippy");
    let clippy = ["clippy", "--workspace", "--all-targets"];
    cargo(
        &env,
        &[&clippy[..], &FEATURES, &["--", "-D", "warnings"]].concat(),
    )?;
    step("tests without servers");
    cargo(&env, &["test", "--workspace"])?;
    step("mutated input, 20 s");
    cargo(&env, &["build", "--workspace", "--bin", "cdc-fuzz"])?;
    finish(Command::new(built("cdc-fuzz")?), "cdc-fuzz")?;
    if quick {
        return Ok(());
    }
    cargo(
        &env,
        &[
            &["build", "--workspace", "--bins", "--example", "api"][..],
            &FEATURES,
        ]
        .concat(),
    )?;
    check_interface(None)?;
    step("the queues on real brokers, the catalog on a real etcd");
    let mut core = Command::new(built("cdc-lab")?);
    core.args(["beside", "--kafka", "--pulsar", "--"])
        .args(["cargo", "test", "--workspace"])
        .args(FEATURES)
        .args(BESIDE.iter().flat_map(|test| ["--test", test]))
        .envs(env.iter().cloned());
    let core = finish(core, "the tests of cdc-core on real servers");
    step("the stores on real etcd, MariaDB and PostgreSQL");
    let stores = cargo(
        &env,
        &[
            &["test", "--workspace"][..],
            &FEATURES,
            &["--test", "stores"],
        ]
        .concat(),
    );
    step("one scenario of the benchmarks, tiny");
    let mut smoke = Command::new("cargo");
    smoke
        .args(["test", "--workspace"])
        .args(FEATURES)
        .args(["--test", "smoke"])
        .envs(env.iter().cloned())
        .env("MILVUS_CDC_BIN", built("milvus-cdc")?);
    let smoke = finish(smoke, "the smoke test of the benchmarks");
    step("end-to-end tests on real servers");
    let mut e2e = Command::new("cargo");
    e2e.args(["test", "--workspace"])
        .args(FEATURES)
        .args(["--test", "e2e"])
        .args(if long {
            &["--", "--include-ignored"][..]
        } else {
            &[]
        })
        .envs(env)
        .env("MILVUS_CDC_BIN", built("milvus-cdc")?)
        .env("CDC_LAB_BIN", built("cdc-lab")?);
    let e2e = finish(e2e, "the end-to-end tests");
    core.and(stores).and(smoke).and(e2e)
}

/// The OpenAPI document against the running server. Needs no queue but one.
pub(crate) fn schemathesis(args: &[String]) -> Outcome {
    let seed = match args {
        [] => None,
        [flag, seed] if flag == "--seed" => Some(
            seed.parse()
                .map_err(|_| format!("--seed: a whole number expected, not {seed:?}"))?,
        ),
        other => {
            return Err(format!(
                "schemathesis: unknown arguments {other:?}; only --seed N is known"
            ));
        }
    };
    let env = env::build(false)?;
    step("build");
    cargo(
        &env,
        &[
            &["build", "-p", "milvus-cdc", "--bins", "--example", "api"][..],
            &["--no-default-features", "--features", "milvus-cdc/natsmq"],
        ]
        .concat(),
    )?;
    check_interface(seed)
}

/// Mutated bytes to everything that reads bytes from outside. The runner needs no queue.
pub(crate) fn fuzz(args: &[String]) -> Outcome {
    let env = env::build(false)?;
    step("build");
    cargo(
        &env,
        &[
            &["build", "-p", "cdc-fuzz", "--bins"][..],
            &["--no-default-features", "--features", "milvus-cdc/natsmq"],
        ]
        .concat(),
    )?;
    let mut fuzz = Command::new(built("cdc-fuzz")?);
    fuzz.args(args);
    finish(fuzz, "cdc-fuzz")
}

/// The program and its example are built.
fn check_interface(seed: Option<u64>) -> Outcome {
    let server = built("milvus-cdc")?;
    let example = server.with_file_name("examples").join("api");
    schemathesis::run(&server, &example, seed)
}

/// Of `simulate`: a build that says where its tasks wait.
const WAITS: &str = "--waits";

/// Runs of the corelib between models of a source and a target. With a build of their own: tokio gives its dice a seed
/// only with a flag that all crates have to be built with, and without a seed no run is the same again.
pub(crate) fn simulate(args: &[String]) -> Outcome {
    let mut env = env::build(false)?;
    let own = built("simulate")?;
    let target = own.parent().and_then(|p| p.parent()).ok_or("no folder")?;
    let target = target.join("simulate").display().to_string();
    env.push(("CARGO_TARGET_DIR".to_owned(), target));
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let flags = format!("{flags} --cfg tokio_unstable");
    env.push(("RUSTFLAGS".to_owned(), flags.trim().to_owned()));
    let waits = args.iter().any(|arg| arg == WAITS);
    let features = if waits { "waits" } else { "run" };
    // Repetition is what all of it stands on.
    let test = [
        "test",
        "--profile",
        "simulate",
        "-p",
        "cdc-sim",
        "--features",
        features,
    ];
    cargo(&env, &test)?;
    let run = [
        "run",
        "--profile",
        "simulate",
        "-p",
        "cdc-sim",
        "--features",
        features,
        "--",
    ];
    let args = args.iter().map(String::as_str).filter(|arg| *arg != WAITS);
    cargo(&env, &run.into_iter().chain(args).collect::<Vec<_>>())
}

/// `export NAME='value'` lines.
pub(crate) fn print_env(args: &[String]) -> Outcome {
    if !args.is_empty() {
        return Err(format!("env: unknown arguments {args:?}"));
    }
    for (name, value) in env::build(true)? {
        println!("export {name}='{}'", value.replace('\'', r"'\''"));
    }
    Ok(())
}

pub(crate) fn step(what: &str) {
    eprintln!("== {what}");
}

fn cargo(env: &Env, args: &[&str]) -> Outcome {
    let mut cargo = Command::new("cargo");
    cargo.args(args).envs(env.iter().cloned());
    finish(cargo, &format!("cargo {}", args.join(" ")))
}

pub(crate) fn finish(mut command: Command, what: &str) -> Outcome {
    // This very program was started by cargo, with variables of its own package. A build script that watches one of
    // them (ring's) would be run again for every change between `cargo xtask` and plain `cargo`, and with it all that
    // depends on it compiled anew.
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_MANIFEST_", "CARGO_PKG_"];
        if own.iter().any(|o| name.to_string_lossy().starts_with(o)) {
            command.env_remove(name);
        }
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{what} failed: {status}")),
        Err(e) => Err(format!("{what} could not be started: {e}")),
    }
}

/// A binary of the workspace: this one was built into the same folder.
pub(crate) fn built(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("where is this executable: {e}"))?;
    Ok(own.with_file_name(name))
}
