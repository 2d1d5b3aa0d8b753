//! The commands.

use std::path::PathBuf;
use std::process::Command;

use crate::env::{self, Env};
use crate::schemathesis;

pub(crate) type Outcome = Result<(), String>;

/// Builds what the demo needs with the one queue it needs, and runs it.
pub(crate) fn demo(args: &[String]) -> Outcome {
    let rocksmq = args.windows(2).any(|w| w == ["--source", "rocksmq"])
        || args.iter().any(|a| a == "--source=rocksmq");
    let env = env::build(rocksmq)?;
    let queue = if rocksmq {
        "milvus-cdc/rocksmq"
    } else {
        "milvus-cdc/natsmq"
    };
    step("build");
    cargo(
        &env,
        &[
            "build",
            "-p",
            "milvus-cdc",
            "-p",
            "cdc-lab",
            "--bins",
            "--no-default-features",
            "--features",
            queue,
        ],
    )?;
    let mut demo = Command::new(built("cdc-lab")?);
    demo.arg("demo")
        .args(args)
        .env("MILVUS_CDC_BIN", built("milvus-cdc")?);
    finish(demo, "the demo")
}

/// Everything; `--quick`: what needs no servers.
pub(crate) fn test(args: &[String]) -> Outcome {
    let quick = match args {
        [] => false,
        [one] if one == "--quick" => true,
        other => {
            return Err(format!(
                "test: unknown arguments {other:?}; only --quick is known"
            ));
        }
    };
    let env = env::build(true)?;
    step("fmt");
    cargo(&env, &["fmt", "--all", "--check"])?;
    step("clippy");
    cargo(
        &env,
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "cdc-lab/e2e,cdc-lab/audit,cdc-core/e2e",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    step("tests without servers");
    cargo(&env, &["test", "--workspace"])?;
    if quick {
        return Ok(());
    }
    cargo(&env, &["build", "--workspace", "--bins"])?;
    check_interface(&env, None, &[])?;
    step("the queue and the catalog on a real server's JetStream and etcd");
    let mut core = Command::new(built("cdc-lab")?);
    core.args(["beside", "--", "cargo", "test", "-p", "cdc-core"])
        .args(["--features", "e2e"])
        .args(["--test", "queue_natsmq", "--test", "catalog_etcd"])
        .envs(env.iter().cloned());
    let core = finish(core, "the tests of cdc-core on a real server");
    step("end-to-end tests on real servers");
    let mut e2e = Command::new("cargo");
    e2e.args(["test", "-p", "cdc-lab", "--features", "e2e,audit"])
        .args(["--test", "e2e"])
        .envs(env)
        .env("MILVUS_CDC_BIN", built("milvus-cdc")?)
        .env("CDC_LAB_BIN", built("cdc-lab")?);
    let e2e = finish(e2e, "the end-to-end tests");
    core.and(e2e)
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
    let least = ["--no-default-features", "--features", "milvus-cdc/natsmq"];
    step("build");
    let mut build = vec!["build", "-p", "milvus-cdc", "--bins"];
    build.extend(least);
    cargo(&env, &build)?;
    check_interface(&env, seed, &least)
}

fn check_interface(env: &Env, seed: Option<u64>, features: &[&str]) -> Outcome {
    let mut build = vec!["build", "-p", "milvus-cdc", "--example", "api"];
    build.extend(features);
    cargo(env, &build)?;
    let server = built("milvus-cdc")?;
    let example = server.with_file_name("examples").join("api");
    schemathesis::run(&server, &example, seed)
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
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{what} failed: {status}")),
        Err(e) => Err(format!("{what} could not be started: {e}")),
    }
}

/// A binary of the workspace: this one was built into the same folder.
fn built(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("where is this executable: {e}"))?;
    Ok(own.with_file_name(name))
}
