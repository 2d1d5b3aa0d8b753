//! Several tasks, and tasks that are paused, deleted and created again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, ensure};
use cdc_lab::client::Client;
use milvus::proto::common::ConsistencyLevel;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::kills::{some_rounds, write};
use crate::lab::{DB, Lab, PATIENCE, until};
use crate::plain::Plain;

tests![Test:
    pausing_or_deleting_one_never_blinds_another,
    deleted_and_created_again_over_what_is_there,
    rows_that_are_not_flushed_are_seen_by_the_next_task,
    an_empty_one_on_channels_without_ticks_is_gone_on_with,
    each_is_after_a_restart_as_a_person_left_it,
    edited_while_rows_are_written,
];

/// A task for these collections of the default database, which need not be there yet.
pub(crate) fn some(lab: &Lab, names: &[&str]) -> Value {
    let infos: Vec<Value> = names.iter().map(|n| json!({ "name": n })).collect();
    json!({
        "milvus_connect_param": { "uri": lab.proxy.uri() },
        "db_collections": { DB: infos },
    })
}

pub(crate) async fn count(client: &Client, name: &str) -> Result<u64> {
    client
        .count(DB, name, &[], ConsistencyLevel::Eventually)
        .await
}

async fn pausing_or_deleting_one_never_blinds_another(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    let from = lab.from.clone();
    let mut a = Plain::create(&from, "a", 2).await?;
    let mut b = Plain::create(&from, "b", 2).await?;
    let one = lab.cdc.create(some(lab, &["a"])).await?;
    let later = ["b", "later1", "later2", "later3", "later4"];
    let two = lab.cdc.create(some(lab, &later)).await?;
    for c in [&mut a, &mut b] {
        c.round(&from, random).await?;
    }
    lab.equal().await?;

    lab.cdc.pause(&one).await?;
    b.round(&from, random).await?;
    // Its name was in the task before it was there.
    let mut new = Plain::create(&from, "later1", 1).await?;
    new.round(&from, random).await?;
    lab.equal().await?;
    a.round(&from, random).await?;
    lab.cdc.resume(&one).await?;
    lab.equal().await?;

    // The other way round.
    lab.cdc.pause(&two).await?;
    a.round(&from, random).await?;
    lab.equal().await?;
    b.round(&from, random).await?;
    let mut new = Plain::create(&from, "later2", 2).await?;
    new.round(&from, random).await?;
    lab.cdc.resume(&two).await?;
    lab.equal().await?;

    lab.cdc.pause(&one).await?;
    lab.cdc.delete(&one).await?;
    b.round(&from, random).await?;
    let mut new = Plain::create(&from, "later3", 3).await?;
    new.round(&from, random).await?;
    lab.equal().await?;

    // Deleted while it runs.
    let mut again = some(lab, &["a"]);
    again["on_conflict"] = json!("adopt");
    let one = lab.cdc.create(again).await?;
    lab.wait_state(&one, "a", "Streaming").await?;
    a.round(&from, random).await?;
    lab.equal().await?;
    lab.cdc.delete(&one).await?;
    b.round(&from, random).await?;
    let mut new = Plain::create(&from, "later4", 1).await?;
    new.round(&from, random).await?;
    lab.equal().await?;
    lab.cdc.delete(&two).await
}

async fn deleted_and_created_again_over_what_is_there(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    let from = lab.from.clone();
    let task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
    let mut first = Plain::create(&from, "first", 2).await?;
    first.round(&from, random).await?;
    let mut second = Plain::bare(&from, DB, "second", 4).await?;
    second.index(&from).await?;
    from.create_partition(DB, "second", "p").await?;
    second.insert(&from, "p", 30, random).await?;
    second.load(&from).await?;
    lab.equal().await?;
    lab.cdc.delete(&task).await?;

    for answer in ["adopt", "recreate"] {
        say(&format!("a new task, on_conflict {answer}"));
        first.round(&from, random).await?;
        let mut more = Plain::create(&from, &format!("before_{answer}"), 1).await?;
        more.round(&from, random).await?;
        let task = lab
            .cdc
            .create(json!({
                "milvus_connect_param": { "uri": lab.proxy.uri() },
                "collection_infos": [{ "name": "*" }],
                "on_conflict": answer,
            }))
            .await?;
        for name in ["first", "second", more.name()] {
            lab.wait_state(&task, name, "Streaming").await?;
        }
        more.round(&from, random).await?;
        second.round(&from, random).await?;
        lab.equal().await?;
        lab.cdc.delete(&task).await?;
    }

    // Without an answer it asks, and both answers are there afterwards too.
    for answer in ["adopt", "recreate"] {
        say(&format!("answered with {answer}"));
        let task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
        first.round(&from, random).await?;
        let names = ["first", "second", "before_adopt", "before_recreate"];
        for name in names {
            lab.wait_state(&task, name, "Conflict").await?;
        }
        let answers: Vec<Value> = names
            .iter()
            .map(|n| json!({ "db": DB, "name": n, "on_conflict": answer }))
            .collect();
        lab.cdc.answer(&task, Value::Array(answers)).await?;
        for name in names {
            lab.wait_state(&task, name, "Streaming").await?;
        }
        lab.equal().await?;
        lab.cdc.delete(&task).await?;
    }
    Ok(())
}

/// Nothing has flushed it, for it was never loaded: all its rows are in growing segments.
async fn rows_that_are_not_flushed_are_seen_by_the_next_task(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    let from = lab.from.clone();
    let task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
    let mut c = Plain::bare(&from, DB, "growing", 2).await?;
    c.index(&from).await?;
    lab.wait_state(&task, c.name(), "Streaming").await?;
    c.insert(&from, "", 40, random).await?;
    until("its rows are acknowledged", async || {
        let status = lab.cdc.task(&task).await?;
        let mut found = status.collections().iter();
        Ok(found.any(|it| it["name"] == c.name() && it["rows"].as_u64() >= Some(40)))
    })
    .await?;
    lab.cdc.delete(&task).await?;

    let task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
    lab.wait_state(&task, c.name(), "Conflict").await?;
    let answer = json!([{ "db": DB, "name": c.name(), "on_conflict": "adopt" }]);
    lab.cdc.answer(&task, answer).await?;
    lab.wait_state(&task, c.name(), "Streaming").await?;
    c.load(&from).await?;
    c.round(&from, random).await?;
    lab.equal_rows(c.keys.len()).await?;
    lab.cdc.delete(&task).await
}

/// What a kill between a creation and its answer leaves behind, too. The target watches a new channel only once that has
/// had a tick, and only we send ticks: it must not be asked for what it can say only then.
async fn an_empty_one_on_channels_without_ticks_is_gone_on_with(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    let from = lab.from.clone();
    let replicator = lab.to.clone().replicating(lab.to.alloc_timestamp().await?);
    Plain::bare(&replicator, DB, "there", 2).await?;
    let mut there = Plain::create(&from, "there", 2).await?;
    let task = lab.cdc.create(some(lab, &["there"])).await?;
    lab.wait_state(&task, "there", "Streaming").await?;
    there.round(&from, random).await?;
    lab.equal_rows(there.keys.len()).await?;
    lab.cdc.delete(&task).await
}

async fn each_is_after_a_restart_as_a_person_left_it(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    let from = lab.from.clone();
    let mut still = Plain::create(&from, "still", 2).await?;
    let mut moving = Plain::create(&from, "moving", 2).await?;
    let paused = lab.cdc.create(some(lab, &["still"])).await?;
    let running = lab.cdc.create(some(lab, &["moving"])).await?;
    for c in [&mut still, &mut moving] {
        c.round(&from, random).await?;
    }
    lab.equal().await?;
    lab.cdc.pause(&paused).await?;
    let before = count(&lab.to, "still").await?;
    for kill in [true, false] {
        still.insert(&from, "", 10, random).await?;
        if kill {
            lab.kill().await?;
        } else {
            lab.stop_cdc().await?;
            lab.cdc.restart(&lab.progress).await?;
        }
        lab.cdc
            .wait(&running, "it runs again", PATIENCE, |s| {
                s.state() == "Running"
            })
            .await?;
        moving.insert(&from, "", 10, random).await?;
        let wanted = moving.keys.len() as u64;
        until("the running task goes on", async || {
            Ok(count(&lab.to, "moving").await? == wanted)
        })
        .await?;
        let task = lab.cdc.task(&paused).await?;
        ensure!(task.state() == "Paused", "it is {}", task.state());
        let now = count(&lab.to, "still").await?;
        ensure!(
            now == before,
            "a paused task wrote: {before} rows, then {now}"
        );
    }
    lab.cdc.resume(&paused).await?;
    lab.equal().await.map(drop)
}

/// Collections are added, and the way to the target changes, while rows are written to all of them.
async fn edited_while_rows_are_written(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut all = Vec::new();
    for (name, shards) in [("first", 2), ("second", 3), ("third", 1)] {
        let mut c = Plain::create(&from, name, shards).await?;
        c.round(&from, random).await?;
        all.push(c);
    }
    let task = lab.cdc.create(some(lab, &["first"])).await?;
    lab.wait_state(&task, "first", "Streaming").await?;
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let edits = async {
        let mut named = vec![json!({ "name": "first" })];
        for (i, name) in ["second", "third"].into_iter().enumerate() {
            some_rounds(&rounds, random).await?;
            let timeout = json!({ "target": { "connect_timeout": 11 + i } });
            let edited = lab.cdc.edit(&task, &timeout).await?;
            ensure!(
                edited["target"]["connect_timeout"] == json!(11 + i),
                "{edited}"
            );
            some_rounds(&rounds, random).await?;
            named.push(json!({ "name": name }));
            let edited = lab
                .cdc
                .edit(&task, &json!({ "collections": named }))
                .await?;
            ensure!(edited["state"] == "running", "{edited}");
            lab.wait_state(&task, name, "Streaming").await?;
        }
        some_rounds(&rounds, random).await?;
        lab.cdc.kill9().await?;
        lab.cdc.restart(&lab.progress).await?;
        some_rounds(&rounds, random).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let write = write(&from, &mut all, &mut of_rows, &rounds, &enough);
    tokio::try_join!(write, edits)?;
    let keys = all.iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await
}
