//! What a person would do about rows that a Milvus has lost or doubled itself.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bench::Bench;
use crate::cdc::command;

const WITHIN: Duration = Duration::from_secs(420);

/// Runs `milvus-cdc verify --repair` for the task, and then `verify` alone: what was said of both, for the figures.
///
/// # Errors
/// The command does not end, or says nothing that is JSON.
pub(super) async fn mend(bench: &Bench) -> Result<Value> {
    let (source, target) = (bench.source.uri(), bench.target.uri());
    let server = format!("http://{}", bench.cdc.address());
    let compare = ["verify", "--source", &source, "--target", &target];
    let compare = [&compare[..], &["--settle", "1", "-o", "json"]].concat();
    let repair = ["--repair", "--task", &bench.task, "--server", &server];
    let (report, repaired) = said(&[&compare[..], &repair].concat()).await?;
    let places = report["repair"]["places"].as_array().into_iter().flatten();
    let sum = |what: &str| -> u64 { places.clone().filter_map(|p| p[what].as_u64()).sum() };
    let (replaced, deleted) = (sum("replaced"), sum("deleted"));
    let (after, code) = said(&compare).await?;
    let left: Vec<&Value> = after["differences"]
        .as_array()
        .into_iter()
        .flatten()
        .take(super::NAMED)
        .collect();
    Ok(json!({
        "repair_exit": repaired,
        "keys_replaced": replaced,
        "keys_deleted": deleted,
        "verify_exit": code,
        "left": left,
    }))
}

async fn said(args: &[&str]) -> Result<(Value, Option<i32>)> {
    let said = command(args, WITHIN).await?;
    let report = serde_json::from_str(&said.stdout)
        .with_context(|| format!("{args:?}: no JSON: {} {}", said.stdout, said.stderr))?;
    Ok((report, said.code))
}
