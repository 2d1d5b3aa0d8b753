//! The demo as a person runs it: it finds what is wrong, and names it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;

use crate::harness::{say, tests};

tests![Alone:
    a_lost_row_is_named,
    a_doubled_row_is_named,
    a_changed_field_is_named,
    a_missing_index_is_named,
    rocksmq_is_equal,
    kafka_is_equal,
    pulsar_is_equal,
    milvus_lite_is_equal,
];

const LIMIT: Duration = Duration::from_secs(600);

/// `CDC_LAB_BIN`, else beside this executable or in the folder above.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CDC_LAB_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("cdc-lab"))
        .find(|path| path.is_file())
        .context("no cdc-lab binary (cargo build -p cdc-lab) and CDC_LAB_BIN is not set")
}

/// Whether it exited with 0, what it printed, and what it told.
async fn demo(args: &[&str], random: &mut StdRng) -> Result<(bool, String, String)> {
    let seed = random.random::<u64>().to_string();
    let run = tokio::process::Command::new(binary()?)
        .args(["demo", "--rows", "1500", "--ops", "60", "--seed", &seed])
        .args(args)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, run)
        .await
        .context("the demo has not ended")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, told) = (text(&output.stdout), text(&output.stderr));
    say(&format!("{told}\n{printed}"));
    Ok((output.status.success(), printed, told))
}

async fn named(sabotage: &str, kind: &str, random: &mut StdRng) -> Result<()> {
    let (success, printed, told) = demo(&["--sabotage", sabotage], random).await?;
    let all = format!("{told}\n{printed}");
    ensure!(!success, "exit code 0 in spite of the sabotage\n{all}");
    let spoilt = told
        .lines()
        .find_map(|l| l.split_once("sabotage on the target: ")?.1.split_once(": "))
        .with_context(|| format!("it was not spoilt\n{all}"))?
        .1;
    let line = format!("{kind}: {spoilt}");
    ensure!(
        printed.lines().any(|l| l.starts_with(&line)),
        "no line {line:?}\n{all}"
    );
    ensure!(told.contains("NOT EQUAL"), "{all}");
    Ok(())
}

async fn a_lost_row_is_named(random: &mut StdRng) -> Result<()> {
    named("lose", "missing", random).await
}

async fn a_doubled_row_is_named(random: &mut StdRng) -> Result<()> {
    named("double", "doubled", random).await
}

async fn a_changed_field_is_named(random: &mut StdRng) -> Result<()> {
    named("change", "changed", random).await
}

async fn a_missing_index_is_named(random: &mut StdRng) -> Result<()> {
    named("index", "missing", random).await
}

async fn kafka_is_equal(random: &mut StdRng) -> Result<()> {
    equal("kafka", random).await
}

async fn equal(source: &str, random: &mut StdRng) -> Result<()> {
    equal_with(&["--source", source], random).await
}

async fn milvus_lite_is_equal(random: &mut StdRng) -> Result<()> {
    equal_with(&["--target", "milvus-lite"], random).await
}

async fn equal_with(args: &[&str], random: &mut StdRng) -> Result<()> {
    let (success, printed, told) = demo(args, random).await?;
    ensure!(
        success && printed.contains("source and target are equal"),
        "{told}\n{printed}"
    );
    Ok(())
}

async fn rocksmq_is_equal(random: &mut StdRng) -> Result<()> {
    equal("rocksmq", random).await
}

async fn pulsar_is_equal(random: &mut StdRng) -> Result<()> {
    equal("pulsar", random).await
}
