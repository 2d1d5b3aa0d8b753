//! The day the source is gone: it is killed under load, its standby is promoted, and is a Milvus like any other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdc_lab::cdc::command;
use cdc_lab::client::{Client, Query, Value as Cell};
use milvus::proto::common::ConsistencyLevel;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, PATIENCE, until};
use crate::plain::Plain;

tests![Alone: with_the_targets_etcd, by_hand_and_cut_off_on_the_way];

/// What the writer knows: for each key the source's timestamp of its insert, 0 if it was not acknowledged.
type Written = Arc<Mutex<BTreeMap<i64, u64>>>;
/// Rows that have to be there before the source is killed.
const ENOUGH: usize = 600;

/// Inserts without end until the source is gone.
async fn write_until_it_fails(client: Client, c: Plain, written: Written, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for batch in 0.. {
        let keys: Vec<i64> = (batch * 20..(batch + 1) * 20).collect();
        // Noted before: what is not acknowledged may be there.
        written.lock().extend(keys.iter().map(|key| (*key, 0)));
        let Ok(at) = c.timed_insert(&client, &keys, &mut random).await else {
            return;
        };
        written.lock().extend(keys.iter().map(|key| (*key, at)));
    }
}

/// A lab whose source was killed under load, and what was written there.
async fn bereft(random: &mut StdRng) -> Result<(Lab, Written)> {
    let mut lab = Lab::start(Kind::Natsmq, random.random()).await?;
    let from = lab.from.clone();
    let c = Plain::create(&from, "rows", 2).await?;
    let mut quiet = Plain::create(&from, "quiet", 1).await?;
    quiet.insert(&from, "", 30, random).await?;
    // Loaded on the target, before there is a load.
    lab.equal_rows(30).await?;
    let written = Written::default();
    let writer = tokio::spawn(write_until_it_fails(
        from,
        c,
        written.clone(),
        random.random(),
    ));
    until("rows flow to the target", async || {
        let there = lab
            .to
            .count(DB, "rows", &[], ConsistencyLevel::Eventually)
            .await?;
        Ok(there >= ENOUGH as u64)
    })
    .await?;
    lab.source.kill9().await?;
    writer.await?;
    Ok((lab, written))
}

/// Up to which source timestamp the task has everything of the channels of this collection.
async fn last_tick(lab: &Lab) -> Result<u64> {
    let answer = lab
        .cdc
        .request("position", json!({ "task_id": lab.task }))
        .await?;
    let positions = answer["positions"].as_array().context("positions")?;
    let ticks = positions
        .iter()
        .filter(|p| p["collection_id"].as_i64() != Some(-10))
        .filter_map(|p| p["tt"].as_u64());
    ticks.min().context("there are positions")
}

/// The former standby has everything up to the last tick, nothing that was never written, and nothing twice.
async fn nothing_is_lost(lab: &Lab, written: &Written, tick: u64) -> Result<Vec<i64>> {
    let output = ["pk".to_owned(), "a".to_owned(), "vec".to_owned()];
    let rows = lab
        .to
        .query(&Query {
            db: DB,
            collection: "rows",
            partitions: &[],
            expr: "pk >= 0",
            output: &output,
            consistency: ConsistencyLevel::Strong,
        })
        .await?;
    let there: Vec<i64> = rows
        .iter()
        .filter_map(|row| match row.get("pk") {
            Some(Cell::Int(key)) => Some(*key),
            _ => None,
        })
        .collect();
    let written = written.lock().clone();
    let unknown: Vec<&i64> = there.iter().filter(|k| !written.contains_key(k)).collect();
    ensure!(unknown.is_empty(), "never written: {unknown:?}");
    let promised: Vec<i64> = written
        .iter()
        .filter(|(_, at)| **at > 0 && **at <= tick)
        .map(|(key, _)| *key)
        .collect();
    let lost: Vec<&i64> = promised.iter().filter(|k| !there.contains(k)).collect();
    ensure!(lost.is_empty(), "lost although ticked: {lost:?}");
    let acknowledged = written.values().filter(|at| **at > 0).count();
    say(&format!(
        "{} rows written, {acknowledged} acknowledged, {} up to the last tick, {} there",
        written.len(),
        promised.len(),
        there.len()
    ));
    ensure!(
        promised.len() >= ENOUGH,
        "only {} rows up to the last tick: nothing is proven",
        promised.len()
    );
    let count = lab
        .to
        .count(DB, "rows", &[], ConsistencyLevel::Strong)
        .await?;
    ensure!(
        count == there.len() as u64,
        "{count} copies of {} rows",
        there.len()
    );
    Ok(there)
}

/// Inserts, Strong reads, deletes, new collections and drops: what a standby refuses.
async fn a_milvus_like_any_other(lab: &Lab, there: &[i64], random: &mut StdRng) -> Result<()> {
    let to = &lab.to;
    let mut new = Plain::create(to, "afterwards", 2).await?;
    new.round(to, random).await?;
    let count = to
        .count(DB, new.name(), &[], ConsistencyLevel::Strong)
        .await?;
    ensure!(count == new.keys.len() as u64, "{count} rows");
    to.drop_collection(DB, new.name()).await?;
    // Into a collection that was carried there.
    let old = Plain::known("rows");
    let next = there.iter().max().context("rows")? + 1_000_000;
    old.write(to, "", &[next, next + 1], random).await?;
    old.erase(to, "", &there[..1]).await?;
    let count = to.count(DB, "rows", &[], ConsistencyLevel::Strong).await?;
    ensure!(
        count == there.len() as u64 + 1,
        "{count} rows in the old one"
    );
    let quiet = to.count(DB, "quiet", &[], ConsistencyLevel::Strong).await?;
    ensure!(quiet == 30, "{quiet} rows in the quiet one");
    let left = to.collections(DB).await?;
    ensure!(left.len() == 2, "the scratch collection is gone: {left:?}");
    Ok(())
}

/// The task is over for good: it says so, over a restart too.
async fn over_for_good(lab: &mut Lab) -> Result<()> {
    for again in [false, true] {
        let task = lab.cdc.task(&lab.task).await?;
        ensure!(task.state() == "Promoted", "{}", task.task);
        for kind in ["resume", "pause"] {
            let body = json!({ "request_type": kind, "request_data": { "task_id": lab.task } });
            let reply = lab.cdc.post(&body.to_string()).await?;
            ensure!(
                reply.status == 409 && reply.body.contains("promoted"),
                "{kind}: {}",
                reply.body
            );
        }
        if !again {
            lab.kill().await?;
            until("the tasks are recovered", async || {
                Ok(lab.cdc.get("/readyz").await?.status == 200)
            })
            .await?;
        }
    }
    Ok(())
}

async fn clear(mut lab: Lab) -> Result<()> {
    lab.stop_cdc().await?;
    let dir = lab.dir().to_owned();
    lab.abandon().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn with_the_targets_etcd(random: &mut StdRng) -> Result<()> {
    let (mut lab, written) = bereft(random).await?;
    let tick = last_tick(&lab).await?;
    let (server, task) = (format!("http://{}", lab.cdc.address()), lab.task.clone());
    let etcd = lab.target.etcd();
    // A root path that is not there: said, and nothing is broken by it.
    let wrong = [
        "promote",
        &task,
        "--server",
        &server,
        "--target-etcd",
        &etcd,
        "--target-root-path",
        "by-dev",
    ];
    let said = command(&wrong, PATIENCE).await?;
    say(&said.stdout);
    ensure!(
        said.code == Some(1) && said.stdout.contains("found instead: target"),
        "{said:?}"
    );
    let task_now = lab.cdc.task(&task).await?;
    ensure!(
        task_now.state() == "Running",
        "it still runs: {}",
        task_now.task
    );
    let right = [
        "promote",
        &task,
        "--server",
        &server,
        "--target-etcd",
        &etcd,
        "--target-root-path",
        lab.target.root_path(),
    ];
    let said = command(&right, PATIENCE).await?;
    say(&said.stdout);
    ensure!(said.code == Some(0), "{said:?}");
    let there = nothing_is_lost(&lab, &written, tick).await?;
    a_milvus_like_any_other(&lab, &there, random).await?;
    over_for_good(&mut lab).await?;
    // Once more is no error.
    let said = command(
        &[
            "promote",
            &task,
            "--server",
            &format!("http://{}", lab.cdc.address()),
            "-o",
            "json",
        ],
        PATIENCE,
    )
    .await?;
    ensure!(
        said.code == Some(0) && said.stdout.contains("promoted"),
        "{said:?}"
    );
    clear(lab).await
}

/// Without the target's etcd, and with milvus-cdc killed while it waits for the hand.
async fn by_hand_and_cut_off_on_the_way(random: &mut StdRng) -> Result<()> {
    let (mut lab, written) = bereft(random).await?;
    let tick = last_tick(&lab).await?;
    let path = format!("/api/v1/tasks/{}/promote", lab.task);
    for run in ["first", "second"] {
        let (status, answer) = lab.cdc.rest(&path, Some(&json!({}))).await?;
        ensure!(status == 202, "{status}: {answer}");
        let shown = wait_for_step(&lab, &path, "switch").await?;
        for word in ["ttMsgEnabled", "true", "milvus.yaml", "etcd"] {
            ensure!(
                shown["hint"].to_string().contains(word),
                "{word} in {shown}"
            );
        }
        if run == "first" {
            lab.kill().await?;
            until("the tasks are recovered", async || {
                Ok(lab.cdc.get("/readyz").await?.status == 200)
            })
            .await?;
            let (_, answer) = lab.cdc.rest(&path, None).await?;
            ensure!(answer["state"] == "interrupted", "{answer}");
            let body = json!({ "request_type": "resume", "request_data": { "task_id": lab.task } });
            let reply = lab.cdc.post(&body.to_string()).await?;
            ensure!(reply.status == 409, "{}", reply.body);
        }
    }
    // A person's hand: the file, and a restart.
    let yaml = lab.target.dir().join("configs/milvus.yaml");
    let text = std::fs::read_to_string(&yaml)?;
    ensure!(text.contains("ttMsgEnabled: false"), "{text}");
    std::fs::write(
        &yaml,
        text.replace("ttMsgEnabled: false", "ttMsgEnabled: true"),
    )?;
    lab.target.restart(&lab.progress).await?;
    let end = wait_for_state(&lab, &path, "promoted").await?;
    say(&end.to_string());
    let there = nothing_is_lost(&lab, &written, tick).await?;
    a_milvus_like_any_other(&lab, &there, random).await?;
    over_for_good(&mut lab).await?;
    clear(lab).await
}

async fn wait_for_step(lab: &Lab, path: &str, step: &str) -> Result<Value> {
    poll(lab, path, |answer| answer["step"] == step).await
}

async fn wait_for_state(lab: &Lab, path: &str, state: &str) -> Result<Value> {
    poll(lab, path, |answer| answer["state"] == state).await
}

async fn poll(lab: &Lab, path: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, answer) = lab.cdc.rest(path, None).await?;
        if wanted(&answer) {
            return Ok(answer);
        }
        if answer["state"] == "failed" || std::time::Instant::now() >= end {
            bail!("the promotion stands at {answer}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
