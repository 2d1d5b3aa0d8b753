//! `milvus-cdc verify` as a person runs it: equal while rows flow, and whatever is spoilt is named.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdc_lab::cdc::{Said, command};
use cdc_lab::sabotage::{Sabotage, sabotage};
use cdc_lab::workload::{Plan, Workload};
use milvus::proto::common::LoadState;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, until};
use crate::plain::Plain;

tests![Alone: equal_while_rows_flow_and_each_sabotage_is_named];

/// What one comparison of this lab may take.
const LIMIT: Duration = Duration::from_secs(180);
/// Comparisons while rows flow, at least.
const LOOKS: usize = 3;
/// Planted: nothing may show it.
const HUSH: &str = "root:hush-4711";

const EQUAL: i32 = 0;
const DIFFERS: i32 = 1;
const NOT_COMPARED: i32 = 9;

async fn verify(lab: &Lab, more: &[&str]) -> Result<Said> {
    let (source, target) = (lab.source.uri(), lab.target.uri());
    let mut args = vec!["verify", "--source", &source, "--target", &target];
    args.extend(more);
    let said = command(&args, LIMIT).await?;
    say(&format!(
        "{more:?}: {:?}\n{}{}",
        said.code, said.stdout, said.stderr
    ));
    Ok(said)
}

/// Looks every second; the report and the code.
async fn report(lab: &Lab, more: &[&str]) -> Result<(Value, i32)> {
    let mut all = vec!["--settle", "1", "-o", "json"];
    all.extend(more);
    let said = verify(lab, &all).await?;
    let report = serde_json::from_str(&said.stdout)
        .with_context(|| format!("no JSON: {} {}", said.stdout, said.stderr))?;
    Ok((report, said.code.context("ended by a signal")?))
}

fn lines<'a>(report: &'a Value, kind: &str) -> Result<impl Iterator<Item = &'a Value>> {
    let lines = report["lines"].as_array().context("no lines")?;
    let begin = format!("{kind} ");
    Ok(lines
        .iter()
        .filter(move |l| l["object"].as_str().is_some_and(|o| o.starts_with(&begin))))
}

fn rows(report: &Value) -> Result<u64> {
    Ok(lines(report, "rows")?
        .filter_map(|l| l["source"].as_u64())
        .sum())
}

async fn equal_while_rows_flow_and_each_sabotage_is_named(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::Natsmq, random.random()).await?;
    // Every shape: both kinds of key, auto id, partition keys, all types.
    let plan = Plan {
        collections: 6,
        ddl: false,
        seed: random.random(),
        ..Plan::default()
    };
    let from = lab.from.clone();
    let written = AtomicU64::new(0);
    let mut workload = Workload::new(&from, plan, |_, done| {
        written.store(done.rows_written(), Ordering::Relaxed);
    });
    workload.begin().await?;
    let collections = workload.names().len();
    equal_in_the_end(&lab).await?;

    let enough = AtomicBool::new(false);
    let flow = workload.go_on(|_| enough.load(Ordering::Relaxed));
    let looks = async {
        let (mut looks, mut compared) = (0, 0);
        while looks < LOOKS || compared < 5000 {
            ensure!(looks < 30, "{compared} rows in {looks} comparisons");
            let before = written.load(Ordering::Relaxed);
            // Ranges so small that there are many.
            let more = ["--rounds", "15", "--range-rows", "40"];
            let (report, code) = report(&lab, &more).await?;
            let meanwhile = written.load(Ordering::Relaxed) - before;
            ensure!(meanwhile > 0, "no rows flow: {report:#}");
            ensure!(code == EQUAL && report["equal"] == true, "{report:#}");
            ensure!(lines(&report, "rows")?.count() == collections, "{report:#}");
            compared += rows(&report)?;
            looks += 1;
        }
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    tokio::try_join!(async { flow.await.map(drop) }, looks)?;
    drop(workload);
    equal_in_the_end(&lab).await?;

    not_loaded_and_not_there(&lab, random).await?;
    a_wrong_address_and_a_login(&lab).await?;

    lab.stop_cdc().await?;
    // The index last: it releases the collection.
    for (what, kind) in [
        (Sabotage::Lose, "missing"),
        (Sabotage::Double, "doubled"),
        (Sabotage::Change, "changed"),
        (Sabotage::Index, "missing"),
    ] {
        named(&lab, what, kind).await?;
    }
    let dir = lab.dir().to_owned();
    lab.abandon().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// With ranges as large as they come by themselves.
async fn equal_in_the_end(lab: &Lab) -> Result<()> {
    until("verify finds source and target equal", async || {
        let (report, code) = report(lab, &[]).await?;
        // A load state that is on its way has no row compared.
        ensure!([EQUAL, DIFFERS, NOT_COMPARED].contains(&code), "{report:#}");
        Ok(code == EQUAL && report["remarks"].as_array().is_some_and(Vec::is_empty))
    })
    .await
}

async fn not_loaded_and_not_there(lab: &Lab, random: &mut StdRng) -> Result<()> {
    let mut plain = Plain::bare(&lab.from, DB, "asleep", 1).await?;
    plain.index(&lab.from).await?;
    plain.insert(&lab.from, "", 30, random).await?;
    let alone = ["--collections", "asleep"];
    let mut last = Value::Null;
    until(
        "the collection that is not loaded is on both sides",
        async || {
            let (report, code) = report(lab, &alone).await?;
            ensure!(
                code != EQUAL,
                "its rows cannot have been compared: {report:#}"
            );
            last = report;
            Ok(code == NOT_COMPARED)
        },
    )
    .await?;
    ensure!(
        last["open"] == serde_json::json!(["default.asleep: not loaded"]),
        "{last:#}"
    );
    // Only looked at.
    for client in [&lab.from, &lab.to] {
        ensure!(client.load_state(DB, "asleep", &[]).await? == LoadState::NotLoad);
    }
    let loaded = [&alone[..], &["--load", "60", "--rounds", "20"]].concat();
    let (loaded, code) = report(lab, &loaded).await?;
    ensure!(code == EQUAL && rows(&loaded)? == 30, "{loaded:#}");
    let (neither, code) = report(lab, &["--collections", "nowhere.nothing"]).await?;
    ensure!(
        code == NOT_COMPARED && neither["open"][0] == "nowhere.nothing: it is on neither side",
        "{neither:#}"
    );
    Ok(())
}

/// The servers of this lab ask for no login: they take any. Nothing shows it.
async fn a_wrong_address_and_a_login(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("login");
    std::fs::write(&file, HUSH)?;
    let file = path(&file);
    let more = ["--source-token-file", &file, "--target-token-file", &file];
    let said = verify(lab, &[&more[..], &["--collections", "asleep"]].concat()).await?;
    ensure!(said.code == Some(EQUAL), "{said:?}");
    ensure!(said.stdout.contains("rows default.asleep"), "{said:?}");
    let source = lab.source.uri();
    let nobody = [
        "verify",
        "--source",
        &source,
        "--target",
        "http://127.0.0.1:9",
        "--target-token-file",
        &file,
    ];
    let nobody = command(&nobody, LIMIT).await?;
    ensure!(
        nobody.code == Some(3) && nobody.stderr.contains("the target http://127.0.0.1:9"),
        "{nobody:?}"
    );
    for said in [said, nobody] {
        ensure!(!format!("{said:?}").contains("hush"), "the login is shown");
    }
    Ok(())
}

fn path(of: &Path) -> String {
    of.display().to_string()
}

async fn named(lab: &Lab, what: Sabotage, kind: &str) -> Result<()> {
    let spoilt = sabotage(&lab.to, what).await?;
    say(&format!("{what:?}: {spoilt}"));
    let said = verify(lab, &["--settle", "1", "--rounds", "2"]).await?;
    ensure!(said.code == Some(DIFFERS), "{what:?}: {said:?}");
    let line = format!("{kind}: {spoilt}");
    ensure!(
        said.stdout.lines().any(|l| l.starts_with(&line)),
        "no line {line:?} in\n{}",
        said.stdout
    );
    // In the table of the collections, too.
    let (report, code) = report(lab, &["--rounds", "2"]).await?;
    ensure!(code == DIFFERS && report["differs"] == true, "{report:#}");
    let object = match what {
        Sabotage::Index => "index".to_owned(),
        _ => collection(&spoilt)?,
    };
    let all = report["lines"].as_array().context("no lines")?;
    let line = all.iter().find(|l| l["object"] == object.as_str());
    let line = line.with_context(|| format!("no line {object} in {report:#}"))?;
    ensure!(
        line["verdict"] == "different" && line[kind].as_u64() > Some(0),
        "{line:#}"
    );
    Ok(())
}

/// `rows db.collection` of `row db.collection/partition key …`.
fn collection(spoilt: &str) -> Result<String> {
    let place = spoilt.split(' ').nth(1).and_then(|p| p.split('/').next());
    match place {
        Some(place) => Ok(format!("rows {place}")),
        None => bail!("{spoilt} names no collection"),
    }
}
