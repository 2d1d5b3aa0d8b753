//! The commands.

use std::path::PathBuf;
use std::process::Command;

use crate::env::{self, Env};

type Outcome = Result<(), String>;

/// Builds what the demo needs with the one queue it needs, and runs it.
pub(crate) fn demo(args: &[String]) -> Outcome {
    let source = args
        .iter()
        .position(|a| a == "--source")
        .and_then(|i| args.get(i + 1).map(String::as_str))
        .or_else(|| args.iter().find_map(|a| a.strip_prefix("--source=")))
        .unwrap_or("natsmq");
    // What is none is refused by the demo itself.
    let queue = match source {
        "rocksmq" => "milvus-cdc/rocksmq",
        "kafka" => "milvus-cdc/kafka",
        _ => "milvus-cdc/natsmq",
    };
    let env = env::build(source == "rocksmq")?;
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
    step("the queues and the catalog on a real server's JetStream and etcd, and on Kafka");
    let mut core = Command::new(built("cdc-lab")?);
    core.args(["beside", "--", "cargo", "test", "-p", "cdc-core"])
        .args(["--features", "e2e"])
        .args(["--test", "queue_natsmq", "--test", "queue_kafka"])
        .args(["--test", "catalog_etcd"])
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

fn step(what: &str) {
    eprintln!("== {what}");
}

fn cargo(env: &Env, args: &[&str]) -> Outcome {
    let mut cargo = Command::new("cargo");
    cargo.args(args).envs(env.iter().cloned());
    finish(cargo, &format!("cargo {}", args.join(" ")))
}

fn finish(mut command: Command, what: &str) -> Outcome {
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
