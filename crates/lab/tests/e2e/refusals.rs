//! What cannot work says why and what to do about it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::{Addresses, Cdc};
use cdc_lab::client::Client;
use cdc_lab::servers::{Milvus, Mq, Spec, free_port};
use milvus::proto::common::ConsistencyLevel;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, PATIENCE, folder, progress, until};
use crate::plain::Plain;

tests![Alone:
    targets_that_cannot_be,
    nothing_there_at_the_start,
    a_source_that_is_away_for_a_while,
    a_position_that_is_lost,
];

fn task(uri: &str, token: &str) -> Value {
    json!({
        "milvus_connect_param": { "uri": uri, "token": token, "connect_timeout": 3 },
        "collection_infos": [{ "name": "*" }],
    })
}

/// What is asked for cannot work.
const WRONG: u16 = 400;
/// Who asks may not.
const LOCKED: u16 = 401;
/// Something is not there at the moment.
const AWAY: u16 = 503;

/// `create` is refused with this status and a message with all these words.
async fn refused(cdc: &Cdc, data: Value, status: u16, words: &[&str]) -> Result<()> {
    let body = json!({ "request_type": "create", "request_data": data }).to_string();
    until("the stored tasks are recovered", async || {
        Ok(cdc.get("/readyz").await?.status == 200)
    })
    .await?;
    let reply = cdc.post(&body).await?;
    say(&format!("{}: {}", reply.status, reply.body));
    ensure!(
        reply.status == status,
        "{status} expected: {}: {}",
        reply.status,
        reply.body
    );
    for word in words {
        ensure!(
            reply.body.contains(word),
            "{word:?} is not in {}",
            reply.body
        );
    }
    let list = cdc.request("list", json!({})).await?;
    ensure!(list["tasks"] == json!([]), "nothing was made: {list}");
    Ok(())
}

async fn targets_that_cannot_be(_: &mut StdRng) -> Result<()> {
    let (dir, progress) = (folder()?, progress());
    let locked = Spec::standby("target", dir.join("target"))
        .set("common.security.authorizationEnabled", "true");
    let (mut source, mut target) = tokio::try_join!(
        Milvus::start(
            Spec::source("source", Mq::Natsmq, dir.join("source")),
            &progress
        ),
        Milvus::start(locked, &progress),
    )?;
    let mut cdc = Cdc::start(&source, dir.join("cdc"), &progress).await?;

    // A normal server, here the source itself, is no standby, and it is not written to as anything else.
    let words = ["standby", "common.ttMsgEnabled", "false"];
    let mut replicate = task(&source.uri(), "");
    replicate["mode"] = json!("replicate");
    refused(&cdc, replicate, WRONG, &words).await?;
    let from = Client::connect("source", &source.uri()).await?;
    Plain::create(&from, "there", 1).await?;
    let itself = ["is the source itself"];
    until("the source is refused as its own target", async || {
        let refused = refused(&cdc, task(&source.uri(), ""), WRONG, &itself).await;
        // Before its metadata is read it is not known.
        if refused.is_err() {
            let list = cdc.request("list", json!({})).await?;
            for task in list["tasks"].as_array().into_iter().flatten() {
                cdc.delete(task["task_id"].as_str().context("no id")?)
                    .await?;
            }
        }
        Ok(refused.is_ok())
    })
    .await?;
    let mut plain = task(&target.uri(), "root:Milvus");
    plain["mode"] = json!("plain");
    refused(&cdc, plain, WRONG, &["it is a standby", "mode replicate"]).await?;
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    refused(&cdc, task(&nobody, ""), AWAY, &[&nobody["http://".len()..]]).await?;
    let nowhere = "http://no-such-host.invalid:19530";
    refused(&cdc, task(nowhere, ""), AWAY, &["no-such-host.invalid"]).await?;
    for token in ["root:wrong", "nobody:Milvus", ""] {
        refused(
            &cdc,
            task(&target.uri(), token),
            LOCKED,
            &["milvus_connect_param.token"],
        )
        .await?;
    }
    let made = cdc.create(task(&target.uri(), "root:Milvus")).await?;
    cdc.wait(&made, "it runs", PATIENCE, |s| s.state() == "Running")
        .await?;
    let shown = cdc.task(&made).await?.task.to_string();
    ensure!(
        !shown.contains("root:Milvus"),
        "the token is shown: {shown}"
    );

    cdc.kill9().await?;
    tokio::try_join!(source.kill9(), target.kill9())?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Neither etcd nor the queue: the server starts, is live, and tells which of them does not answer.
async fn nothing_there_at_the_start(_: &mut StdRng) -> Result<()> {
    let (dir, progress) = (folder()?, progress());
    let mut target = Milvus::start(Spec::standby("target", dir.join("target")), &progress).await?;
    for mq in [Mq::Natsmq, Mq::Rocksmq, Mq::Pulsar, Mq::Kafka] {
        let (etcd, nats) = (free_port()?, free_port()?);
        let source = Addresses {
            rows: None,
            mq,
            etcd: format!("http://127.0.0.1:{etcd}"),
            nats: format!("nats://127.0.0.1:{nats}"),
            rocksmq: dir.join("no-such-folder"),
            pulsar: format!("pulsar://127.0.0.1:{nats}"),
            kafka: format!("127.0.0.1:{nats}"),
            root_path: "source".to_owned(),
            replicate_channel: "source-replicate-msg".to_owned(),
        };
        let folder = dir.join(format!("cdc-{mq:?}"));
        let mut cdc = Cdc::start_at(&source, folder, &progress).await?;
        let words = ["etcd", &format!("127.0.0.1:{etcd}")];
        refused(&cdc, task(&target.uri(), ""), AWAY, &words).await?;
        cdc.kill9().await?;
    }
    // etcd is there (the target's own, of another root path), the queue is not.
    for mq in [Mq::Natsmq, Mq::Rocksmq, Mq::Pulsar, Mq::Kafka] {
        let nats = free_port()?;
        let source = Addresses {
            rows: None,
            mq,
            nats: format!("nats://127.0.0.1:{nats}"),
            rocksmq: dir.join("no-such-folder"),
            pulsar: format!("pulsar://127.0.0.1:{nats}"),
            kafka: format!("127.0.0.1:{nats}"),
            ..Addresses::of(&target)
        };
        let folder = dir.join(format!("cdc-queue-{mq:?}"));
        let mut cdc = Cdc::start_at(&source, folder, &progress).await?;
        let word = match mq {
            Mq::Natsmq | Mq::Kafka | Mq::Pulsar => format!("127.0.0.1:{nats}"),
            Mq::Rocksmq => "no-such-folder".to_owned(),
        };
        refused(&cdc, task(&target.uri(), ""), AWAY, &[&word]).await?;
        cdc.kill9().await?;
    }
    target.kill9().await?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// A task that is there already says what it misses, and goes on when the source is back.
async fn a_source_that_is_away_for_a_while(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::Natsmq, random.random()).await?;
    let mut c = Plain::create(&lab.from, "away", 2).await?;
    c.round(&lab.from, random).await?;
    lab.equal().await?;
    lab.from.flush_and_wait(DB, c.name(), PATIENCE).await?;
    lab.cdc.kill9().await?;
    lab.source.stop().await?;
    lab.cdc.restart(&lab.progress).await?;
    let etcd = lab.source.etcd()["http://".len()..].to_owned();
    lab.cdc
        .wait(&lab.task, "it names the etcd", PATIENCE, |s| {
            s.state() == "Running" && s.task["problems"].to_string().contains(&etcd)
        })
        .await?;
    lab.source.restart(&lab.progress).await?;
    until("the source loads it again", async || {
        Ok(c.load(&lab.from).await.is_ok())
    })
    .await?;
    c.round(&lab.from, random).await?;
    lab.equal_rows(c.keys.len()).await?;
    lab.end().await
}

/// The queue forgets messages that a paused task has not read.
async fn a_position_that_is_lost(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::Natsmq, random.random()).await?;
    let from = lab.from.clone();
    let mut lost = Plain::create(&from, "lost", 1).await?;
    let mut other = Plain::create(&from, "other", 1).await?;
    for c in [&mut lost, &mut other] {
        c.insert(&from, "", 20, random).await?;
    }
    lab.equal_rows(40).await?;
    lab.cdc.pause(&lab.task).await?;
    lost.insert(&from, "", 30, random).await?;
    let channel = from.describe(DB, "lost").await?.physical_channel_names;
    let channel = channel.first().context("a collection has a channel")?;
    let elsewhere = from.describe(DB, "other").await?.physical_channel_names;
    ensure!(!elsewhere.contains(channel), "both are on {channel}");
    let queue = async_nats::jetstream::new(async_nats::connect(lab.source.nats()).await?);
    let mut stream = queue.get_stream(channel.as_str()).await?;
    let last = stream.info().await?.state.last_sequence;
    stream.purge().sequence(last + 1).await?;
    for c in [&mut lost, &mut other] {
        c.insert(&from, "", 10, random).await?;
    }

    lab.cdc.resume(&lab.task).await?;
    lab.wait_state(&lab.task, "lost", "PositionLost").await?;
    lab.wait_state(&lab.task, "other", "Streaming").await?;
    let status = lab.cdc.task(&lab.task).await?;
    let c = status.collection(DB, "lost").context("it is there")?;
    say(&c.to_string());
    let detail = &c["detail"];
    let text = detail.to_string();
    ensure!(detail["channel"] == json!(channel), "the channel: {text}");
    for key in ["wanted", "first", "last"] {
        ensure!(detail[key].is_string(), "the range: {text}");
    }
    for choice in ["earliest", "now", "positions"] {
        ensure!(text.contains(choice), "the choices: {text}");
    }
    wait_count(&lab, "other", 30).await?;
    // It waits for a person, also over a restart.
    lab.kill().await?;
    lab.wait_state(&lab.task, "lost", "PositionLost").await?;
    lab.cdc
        .answer(
            &lab.task,
            json!([{ "db": DB, "name": "lost", "start": "earliest" }]),
        )
        .await?;
    lab.wait_state(&lab.task, "lost", "Streaming").await?;
    wait_count(&lab, "lost", 30).await?;
    // What it has is the first 20 and the last 10.
    lost.insert(&from, "", 5, random).await?;
    wait_count(&lab, "lost", 35).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    wait_count(&lab, "lost", 35).await?;
    lab.tidy().await?;
    lab.end().await
}

async fn wait_count(lab: &Lab, name: &str, wanted: u64) -> Result<()> {
    let mut last = 0;
    let there = until("the rows", async || {
        last = lab
            .to
            .count(DB, name, &[], ConsistencyLevel::Eventually)
            .await?;
        Ok(last == wanted)
    })
    .await;
    ensure!(there.is_ok(), "{name}: {last} rows instead of {wanted}");
    Ok(())
}
