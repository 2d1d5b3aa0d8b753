//! Which collections a task carries and under which names, on real servers: rules, a mapping, and edits while rows flow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::command;
use cdc_lab::client::{Client, Query, Row, Value as Field};
use milvus::proto::common::ConsistencyLevel;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::kills::{some_rounds, write};
use crate::lab::{DB, Lab, PATIENCE, until};
use crate::plain::Plain;

tests![Test: edited_twenty_times_under_load];

/// Edits of the running task.
const EDITS: usize = 20;

/// Every row by its key, and `count(*)`, which counts each copy.
type Rows = (BTreeMap<i64, Row>, u64);

async fn rows(
    client: &Client,
    (db, collection): (&str, &str),
    consistency: ConsistencyLevel,
) -> Result<Rows> {
    let output = ["pk", "a", "vec"].map(str::to_owned);
    let found = client
        .query(&Query {
            db,
            collection,
            partitions: &[],
            expr: "pk >= 0",
            output: &output,
            consistency,
        })
        .await?;
    let mut by_key = BTreeMap::new();
    for row in found {
        match row.get("pk") {
            Some(Field::Int(key)) => drop(by_key.insert(*key, row)),
            other => anyhow::bail!("{db}.{collection}: a row of the key {other:?}"),
        }
    }
    let count = client.count(db, collection, &[], consistency).await?;
    Ok((by_key, count))
}

/// Waits until the collection of the source and the one of this name on the target hold the same.
async fn equal(lab: &Lab, from: &(&str, &str), to: &(&str, &str)) -> Result<()> {
    let wanted = rows(&lab.from, *from, ConsistencyLevel::Strong).await?;
    ensure!(
        wanted.0.len() as u64 == wanted.1,
        "the source holds {} keys and counts {}",
        wanted.0.len(),
        wanted.1
    );
    let mut last = String::new();
    let outcome = until("both are equal", async || {
        match rows(&lab.to, *to, ConsistencyLevel::Eventually).await {
            Ok(found) => {
                last = format!(
                    "{} keys and {} rows wanted, {} and {} found",
                    wanted.0.len(),
                    wanted.1,
                    found.0.len(),
                    found.1
                );
                Ok(found == wanted)
            }
            // Not there, or not loaded yet.
            Err(error) => {
                last = format!("{error:#}");
                Ok(false)
            }
        }
    })
    .await;
    outcome.map_err(|e| e.context(format!("{from:?} and {to:?}: {last}")))
}

async fn edited_twenty_times_under_load(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    for db in ["db1", "db2"] {
        from.create_database(db).await?;
    }
    // On the source, and on the target.
    let pairs = [
        ((DB, "a"), (DB, "a_copy")),
        (("db1", "b"), ("db3", "b")),
        (("db1", "c"), ("db3", "c")),
        (("db2", "d"), ("db2", "d_copy")),
    ];
    let never = [("db1", "tmp_1"), ("db2", "scratch")];
    let mut all = Vec::new();
    for (i, (db, name)) in pairs.iter().map(|(from, _)| *from).chain(never).enumerate() {
        let c = Plain::bare(&from, db, name, 1 + i as i32 % 2).await?;
        c.index(&from).await?;
        c.load(&from).await?;
        all.push(c);
    }
    let rules = |out: &[(&str, &str)]| {
        let mut rules = vec![
            json!({"include": ["*.*"]}),
            json!({"exclude": ["*.tmp_*", "db2./scr.*/"]}),
        ];
        if !out.is_empty() {
            let names: Vec<String> = out
                .iter()
                .map(|(db, name)| format!("{db}.{name}"))
                .collect();
            rules.push(json!({"exclude": names}));
        }
        Value::Array(rules)
    };
    let task = json!({
        "id": "selected",
        "target": {"uri": lab.proxy.uri()},
        "collections": rules(&[]),
        "mapping": [{"from": "db1.*", "to": "db3.*"}, {"from": "*.*", "to": "*.{}_copy"}],
    });
    let (status, plan) = lab.cdc.rest("/api/v1/plan", Some(&task)).await?;
    ensure!(status == 200 && plan["ok"] == true, "the plan: {plan}");
    let targets: Vec<&str> = plan["collections"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["target"].as_str())
        .collect();
    ensure!(
        targets.len() == pairs.len()
            && pairs
                .iter()
                .all(|(_, (db, name))| targets.contains(&format!("{db}.{name}").as_str())),
        "the plan: {plan}"
    );
    let (status, made) = lab.cdc.rest("/api/v1/tasks", Some(&task)).await?;
    ensure!(status == 201, "{made}");

    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let edits = async {
        let mut out: Vec<(&str, &str)> = Vec::new();
        for edit in 0..EDITS {
            some_rounds(&rounds, random).await?;
            out = pairs
                .iter()
                .map(|(from, _)| *from)
                .filter(|_| random.random_bool(0.4))
                .collect();
            say(&format!("edit {edit}: without {out:?}"));
            let body = json!({"collections": rules(&out)});
            let edited = lab.cdc.edit("selected", &body).await?;
            ensure!(edited["state"] == "running", "{edited}");
            if edit == EDITS / 2 {
                lab.cdc.kill9().await?;
                lab.cdc.restart(&lab.progress).await?;
            }
        }
        some_rounds(&rounds, random).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(out)
    };
    let write = write(&from, &mut all, &mut of_rows, &rounds, &enough);
    let ((), out) = tokio::try_join!(write, edits)?;

    // Those that are in are equal. Those that are out do not move: not even when more is written.
    for (from, to) in pairs.iter().filter(|(from, _)| !out.contains(from)) {
        equal(lab, from, to).await?;
    }
    let there = lab.to.databases().await?;
    let mut before = Vec::new();
    for (of, (db, name)) in pairs.iter().filter(|(from, _)| out.contains(from)) {
        let made = there.iter().any(|d| d == db)
            && lab.to.collections(db).await?.iter().any(|n| n == name);
        if made {
            before.push((
                of,
                (db, name),
                lab.to
                    .count(db, name, &[], ConsistencyLevel::Eventually)
                    .await,
            ));
        }
    }
    for c in &mut all {
        c.round(&from, random).await?;
    }
    for (from, to) in pairs.iter().filter(|(from, _)| !out.contains(from)) {
        equal(lab, from, to).await?;
    }
    for (of, (db, name), count) in before {
        let now = lab
            .to
            .count(db, name, &[], ConsistencyLevel::Eventually)
            .await;
        let same =
            matches!((&count, &now), (Ok(a), Ok(b)) if a == b) || (count.is_err() && now.is_err());
        ensure!(
            same,
            "{of:?} is left out, and {db}.{name} has changed: {count:?}, then {now:?}"
        );
    }
    // All of them again.
    let edited = lab
        .cdc
        .edit("selected", &json!({"collections": rules(&[])}))
        .await?;
    ensure!(edited["state"] == "running", "{edited}");
    for c in &mut all {
        c.round(&from, random).await?;
    }
    for (from, to) in &pairs {
        equal(lab, from, to).await?;
    }
    let mut names = Vec::new();
    for db in lab.to.databases().await? {
        for name in lab.to.collections(&db).await? {
            names.push(format!("{db}.{name}"));
        }
    }
    names.sort();
    let mut wanted: Vec<String> = pairs
        .iter()
        .map(|(_, (db, name))| format!("{db}.{name}"))
        .collect();
    wanted.sort();
    ensure!(
        names == wanted,
        "{names:?} on the target, {wanted:?} wanted"
    );
    let path = "/api/v1/tasks/selected/collections";
    until("all are in order", async || {
        let (_, page) = lab.cdc.rest(path, None).await?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        Ok(items.len() == pairs.len() && items.iter().all(|c| c["state"] == "Streaming"))
    })
    .await?;
    compared_by_task(lab).await?;
    say(&format!(
        "{} rounds, {PATIENCE:?} at most for each comparison",
        rounds.load(Ordering::Relaxed)
    ));
    lab.cdc.delete("selected").await
}

/// `milvus-cdc verify --task` knows the names on the target and what is not carried; without it, all of that differs.
async fn compared_by_task(lab: &Lab) -> Result<()> {
    let (source, target, server) = (
        lab.source.uri(),
        lab.target.uri(),
        format!("http://{}", lab.cdc.address()),
    );
    let both = [
        "verify", "--source", &source, "--target", &target, "-o", "json",
    ];
    let with = async |more: &[&str]| {
        let said = command(&[&both[..], more].concat(), PATIENCE).await?;
        let report: Value = serde_json::from_str(&said.stdout)
            .with_context(|| format!("{more:?}: {}", said.stderr))?;
        anyhow::Ok((said.code, report))
    };
    let task = ["--task", "selected", "--server", &server];
    let (code, report) = with(&task).await?;
    ensure!(code == Some(0), "by the task: {report:#}");
    let lines = report["lines"].as_array().into_iter().flatten();
    let rows: Vec<_> = lines
        .filter(|l| l["object"].as_str().is_some_and(|o| o.starts_with("rows ")))
        .collect();
    ensure!(
        rows.len() == 4 && rows.iter().all(|l| l["source"].as_u64() > Some(0)),
        "{report:#}"
    );
    let one = [&task[..], &["--collections", "db1.tmp_1"]].concat();
    let (code, report) = with(&one).await?;
    let open = report["open"][0].as_str().unwrap_or_default();
    ensure!(
        code == Some(9) && open.contains("does not carry"),
        "{report:#}"
    );
    let (code, report) = with(&["--settle", "1", "--rounds", "1"]).await?;
    ensure!(code == Some(1), "by equal names: {report:#}");
    Ok(())
}
