//! The day the source is gone: it is killed under load, its standby is promoted, and is a Milvus like any other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cdc_lab::cdc::{command, command_in};
use cdc_lab::client::{Client, Query, Value as Cell};
use cdc_lab::servers::Spec;
use etcd_client::Permission;
use milvus::proto::common::ConsistencyLevel;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, PATIENCE, folder, until};
use crate::plain::Plain;
use crate::secured::certs::{Authority, Files};
use crate::secured::etcd::{Etcd, ROOT};

tests![Alone: with_the_targets_etcd, by_hand_and_cut_off_on_the_way];

/// Of the login to the target's etcd.
const USER: &str = "cdc";
/// Planted: no log and no answer may show it.
const PASSWORD: &str = "hush-target-etcd-4711";

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
async fn bereft(random: &mut StdRng, target: impl FnOnce(Spec) -> Spec) -> Result<(Lab, Written)> {
    let mut lab = Lab::start_with(Kind::Natsmq, random.random(), target).await?;
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

/// Which source channels this collection has.
async fn channels(lab: &Lab, name: &str) -> Result<(String, Vec<String>)> {
    let task = lab.cdc.task(&lab.task).await?;
    let c = task.collection(DB, name).context("the collection")?;
    let id = c["collection_id"].as_i64().context("its id")?;
    let positions = c["positions"].as_array().context("its positions")?;
    let channels: Vec<String> = positions
        .iter()
        .filter_map(|p| Some(p["channel_name"].as_str()?.to_owned()))
        .collect();
    ensure!(channels.len() == 2, "one for each shard: {positions:?}");
    Ok((id.to_string(), channels))
}

/// Up to which source timestamp the promoted task had everything of the channels of a collection: from what is stored,
/// since what a running task shows may be half a second old, in which all the rows of these tests are written.
async fn last_tick(lab: &Lab, (id, channels): &(String, Vec<String>)) -> Result<u64> {
    let path = format!("/api/v1/tasks/{}/positions", lab.task);
    let (status, answer) = lab.cdc.rest(&path, None).await?;
    ensure!(status == 200, "{status}: {answer}");
    let positions = answer["positions"].as_array().context("positions")?;
    let mut last = u64::MAX;
    for channel in channels {
        let of = |whose: Value| {
            let here = |p: &&Value| p["channel"] == **channel && p["collection_id"] == whose;
            positions.iter().find(here)
        };
        // A collection that has left its channel's main stream has a place of its own.
        let position = of(json!(id)).or_else(|| of(Value::Null));
        let applied = position.and_then(|p| p["applied"].as_str());
        let applied = applied.with_context(|| format!("{channel} in {answer}"))?;
        last = last.min(applied.parse()?);
    }
    Ok(last)
}

/// The former standby has everything up to the last tick, nothing that was never written, and nothing twice.
async fn nothing_is_lost(
    lab: &Lab,
    written: &Written,
    streams: &(String, Vec<String>),
) -> Result<Vec<i64>> {
    let tick = last_tick(lab, streams).await?;
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

/// Neither the log nor the answers show what was planted.
async fn keeps_secrets(lab: &Lab, said: &str) -> Result<()> {
    let mut shown = std::fs::read_to_string(lab.cdc.log())? + said;
    shown += &lab.cdc.task(&lab.task).await?.task.to_string();
    let path = format!("/api/v1/tasks/{}/promote", lab.task);
    shown += &lab.cdc.rest(&path, None).await?.1.to_string();
    ensure!(!shown.contains(PASSWORD), "the password is shown");
    ensure!(!shown.contains("PRIVATE KEY"), "a key is shown");
    Ok(())
}

async fn clear(mut lab: Lab) -> Result<()> {
    lab.stop_cdc().await?;
    let dir = lab.dir().to_owned();
    lab.abandon().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// Through the target's etcd, which is behind certificates and a login.
async fn with_the_targets_etcd(random: &mut StdRng) -> Result<()> {
    let dir = folder()?;
    let files = |name: &str| Files::at(&dir.join("certs").join(name));
    let (etcd_files, target_files, files) = (files("etcd")?, files("target")?, files("cdc")?);
    let authority = Authority::new("first")?;
    etcd_files.write(&authority, &authority.server("etcd")?)?;
    target_files.write(&authority, &authority.issue(ROOT, &[])?)?;
    files.write(&authority, &authority.issue("milvus-cdc", &[])?)?;
    let admin = authority.client_tls(ROOT)?;
    let etcd = Etcd::start(dir.join("etcd"), etcd_files, admin.clone()).await?;
    // No more than it needs, and to see what else is there.
    let allowed = [
        Permission::read("").with_all_keys(),
        Permission::write("target/config/common/ttMsgEnabled"),
    ];
    etcd.ask_for_logins(admin, USER, PASSWORD, &allowed).await?;

    let (mut lab, written) = bereft(random, |target| etcd.used_by(target, &target_files)).await?;
    let streams = channels(&lab, "rows").await?;
    let (server, task) = (format!("http://{}", lab.cdc.address()), lab.task.clone());
    let address = format!("https://{}", etcd.address());
    let text = |path: &Path| path.display().to_string();
    let (trusted, certificate) = (text(&files.trusted), text(&files.certificate));
    let (key, password) = (text(&files.key), text(&dir.join("password")));
    std::fs::write(&password, format!("{PASSWORD}\n"))?;
    let begin = |root: &'static str| {
        vec![
            "promote",
            &task,
            "--server",
            &server,
            "--target-etcd",
            &address,
            "--target-root-path",
            root,
            "--target-etcd-ca-cert",
            &trusted,
            "--target-etcd-cert",
            &certificate,
            "--target-etcd-key",
            &key,
            "--target-etcd-user",
            USER,
        ]
    };
    // A root path that is not there, and a wrong password: said, and nothing is broken by it.
    let variable = "MILVUS_CDC_TARGET_ETCD_PASSWORD";
    for (root, password, part) in [
        ("by-dev", PASSWORD, "found instead: target"),
        ("target", "wrong", "login"),
    ] {
        let said = command_in(&begin(root), &[(variable, password)], PATIENCE).await?;
        say(&said.stdout);
        ensure!(
            said.code == Some(1) && said.stdout.contains(part),
            "{said:?}"
        );
        let now = lab.cdc.task(&task).await?;
        ensure!(now.state() == "Running", "it still runs: {}", now.task);
    }
    let mut right = begin("target");
    right.extend(["--target-etcd-password-file", &password]);
    let said = command(&right, PATIENCE).await?;
    say(&said.stdout);
    ensure!(said.code == Some(0), "{said:?}");
    keeps_secrets(&lab, &format!("{said:?}")).await?;
    let there = nothing_is_lost(&lab, &written, &streams).await?;
    a_milvus_like_any_other(&lab, &there, random).await?;
    over_for_good(&mut lab).await?;
    // Once more is no error.
    let server = format!("http://{}", lab.cdc.address());
    let again = ["promote", &task, "--server", &server, "-o", "json"];
    let said = command(&again, PATIENCE).await?;
    ensure!(
        said.code == Some(0) && said.stdout.contains("promoted"),
        "{said:?}"
    );
    clear(lab).await?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// By the file: without the target's etcd, with milvus-cdc killed while it waits for the hand, and with an etcd that is
/// embedded in the target, from which Milvus takes no settings.
async fn by_hand_and_cut_off_on_the_way(random: &mut StdRng) -> Result<()> {
    let (mut lab, written) = bereft(random, |target| target).await?;
    let streams = channels(&lab, "rows").await?;
    let path = format!("/api/v1/tasks/{}/promote", lab.task);
    let (status, answer) = lab.cdc.rest(&path, Some(&json!({}))).await?;
    ensure!(status == 202, "{status}: {answer}");
    let shown = poll(&lab, &path, |answer| answer["step"] == "switch").await?;
    for word in ["ttMsgEnabled: true", "milvus.yaml", "etcd"] {
        ensure!(
            shown["hint"].to_string().contains(word),
            "{word} in {shown}"
        );
    }
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

    let etcd = json!({ "target_etcd": {
        "address": [lab.target.etcd()], "rootPath": lab.target.root_path(),
    } });
    let (status, answer) = lab.cdc.rest(&path, Some(&etcd)).await?;
    ensure!(status == 202, "{status}: {answer}");
    // It is not left at "the key is set".
    let told = |answer: &Value| answer["text"].to_string().contains("does not take the key");
    let shown = poll(&lab, &path, told).await?;
    say(&shown.to_string());
    for word in ["ttMsgEnabled: true", "milvus.yaml", "embedded"] {
        ensure!(
            shown["hint"].to_string().contains(word),
            "{word} in {shown}"
        );
    }
    // A person's hand: the file, in one go, since the target reads it at any moment. No restart.
    let yaml = lab.target.dir().join("configs/milvus.yaml");
    let text = std::fs::read_to_string(&yaml)?;
    ensure!(text.contains("ttMsgEnabled: false"), "{text}");
    let new = yaml.with_extension("new");
    std::fs::write(
        &new,
        text.replace("ttMsgEnabled: false", "ttMsgEnabled: true"),
    )?;
    std::fs::rename(&new, &yaml)?;
    let pid = lab.target.pid();
    let end = poll(&lab, &path, |answer| answer["state"] == "promoted").await?;
    say(&end.to_string());
    ensure!(
        pid.is_some() && lab.target.pid() == pid,
        "it was started again"
    );
    let there = nothing_is_lost(&lab, &written, &streams).await?;
    a_milvus_like_any_other(&lab, &there, random).await?;
    over_for_good(&mut lab).await?;
    clear(lab).await
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
