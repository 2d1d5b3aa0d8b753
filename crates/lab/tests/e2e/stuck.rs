//! One of ten collections of a physical channel cannot go on for minutes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_lab::compare::{Options, compare};
use milvus::proto::common::{MsgBase, MsgType};
use milvus::proto::msg::{InsertDataVersion, InsertRequest};
use prost::Message;
use rand::rngs::StdRng;
use serde_json::json;

use crate::harness::{say, tests};
use crate::lab::{CROWDED, DB, Lab, PATIENCE};
use crate::plain::Plain;

tests![Test: one_of_ten_collections_of_a_channel];

/// Between two rounds: this is about time, not about load.
const PAUSE: Duration = Duration::from_millis(500);
/// What the comparison waits for a collection that cannot come.
const SHORT: Duration = Duration::from_secs(25);

/// Five minutes with `CDC_E2E_STUCK_SECONDS=300`.
fn stuck_for() -> Duration {
    let seconds = std::env::var("CDC_E2E_STUCK_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(45);
    Duration::from_secs(seconds)
}

async fn one_of_ten_collections_of_a_channel(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut all = Vec::new();
    for n in 0..10 {
        let c = Plain::create(&from, &format!("crowd{n}"), CROWDED as i32).await?;
        all.push(c);
    }
    rounds(lab, &mut all, random, Duration::from_secs(3)).await?;
    lab.equal().await?;

    let name = all[3].name().to_owned();
    let published = poison(lab, &name).await?;
    let third = stuck_for() / 3;
    for n in 0..3 {
        rounds(lab, &mut all, random, third).await?;
        others_are_equal(lab, &name).await?;
        if n < 2 {
            say("kill -9");
            lab.kill().await?;
        }
    }
    let task = lab.cdc.task(&lab.task).await?;
    ensure!(
        task.states_of(DB, &name).last() == Some(&"Quarantined"),
        "{name} waits for a person: {:?}",
        task.collection(DB, &name)
    );
    leave_out(lab, &name, &published).await?;
    lab.wait_state(&lab.task, &name, "Streaming").await?;
    rounds(lab, &mut all, random, Duration::from_secs(3)).await?;
    let keys = all.iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await
}

/// The message is kept as it was published, through kills; tried again it is as bad as before; then it is left out.
async fn leave_out(lab: &Lab, name: &str, published: &[Vec<u8>]) -> Result<()> {
    let path = format!("/api/v1/tasks/{}/quarantine", lab.task);
    let (_, list) = lab.cdc.rest(&path, None).await?;
    let [record] = list["items"].as_array().map_or(&[][..], Vec::as_slice) else {
        bail!("one message is kept: {list}");
    };
    ensure!(
        record["name"] == *name && record["state"] == "waiting" && record["kind"] == "Insert",
        "{record}"
    );
    let key = record["key"].as_str().context("it has a key")?;
    let one = format!("{path}/{key}");
    let (_, whole) = lab.cdc.rest(&one, None).await?;
    say(&format!("kept: {whole}"));
    let bytes = whole["bytes"].as_str().context("its bytes are kept")?;
    let bytes = STANDARD.decode(bytes)?;
    ensure!(published.contains(&bytes), "these are other bytes: {whole}");
    let shard = whole["header"]["shard"].as_str().unwrap_or_default();
    ensure!(shard.ends_with("v9"), "{whole}");

    let (status, judged) = lab
        .cdc
        .rest(&format!("{one}/retry"), Some(&json!({})))
        .await?;
    ensure!(status == 200, "{judged}");
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, again) = lab.cdc.rest(&one, None).await?;
        if again["state"] == "waiting" {
            break;
        }
        ensure!(
            again["state"] == "retried" && Instant::now() < end,
            "{again}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.wait_state(&lab.task, name, "Quarantined").await?;
    let (status, judged) = lab
        .cdc
        .rest(&format!("{one}/drop"), Some(&json!({})))
        .await?;
    ensure!(
        status == 200 && judged["state"] == "dropped" && judged["by"] == "http",
        "{judged}"
    );
    let (_, left) = lab.cdc.rest(&one, None).await?;
    ensure!(left["bytes"] == whole["bytes"], "its bytes stay: {left}");
    let (_, events) = lab
        .cdc
        .rest(&format!("/api/v1/tasks/{}/events", lab.task), None)
        .await?;
    for kind in ["quarantined", "retried", "dropped"] {
        let items = events["items"].as_array();
        let there = items.is_some_and(|items| items.iter().any(|e| e["kind"] == *kind));
        ensure!(there, "{kind} is not in the history: {events}");
    }
    Ok(())
}

/// Rows for all of them until `time` is over.
async fn rounds(lab: &Lab, all: &mut [Plain], random: &mut StdRng, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for c in &mut *all {
            c.round(&lab.from, random).await?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Everything is equal but the rows of `stuck`, which are not.
async fn others_are_equal(lab: &Lab, stuck: &str) -> Result<()> {
    let options = Options {
        patience: SHORT,
        rows: true,
        ..Options::default()
    };
    let report = compare(&lab.from, &lab.to, options).await?;
    let place = format!(" {DB}.{stuck}/");
    let others: Vec<String> = report
        .differences
        .iter()
        .filter(|d| !d.object.contains(&place))
        .map(ToString::to_string)
        .collect();
    ensure!(
        others.is_empty(),
        "the others differ while {stuck} is stuck:\n{}",
        others.join("\n")
    );
    ensure!(!report.is_equal(), "{stuck} is not stuck");
    Ok(())
}

/// Puts a message into the source's queue that Milvus passes over and milvus-cdc cannot carry: rows of the collection
/// for a shard that it does not have. What was published, one of which it is stuck at.
async fn poison(lab: &Lab, name: &str) -> Result<Vec<Vec<u8>>> {
    let mut published = Vec::new();
    let described = lab.from.describe(DB, name).await?;
    let channel = described
        .physical_channel_names
        .first()
        .context("a collection has a channel")?;
    let partition = lab.from.partitions(DB, name).await?;
    let partition = partition.first().context("a collection has a partition")?;
    let queue = async_nats::jetstream::new(async_nats::connect(lab.source.nats()).await?);
    let end = Instant::now() + PATIENCE;
    loop {
        // Above all ticks so far and below the next one, or it would be too late to be read at all: once more then.
        let ts = lab.from.alloc_timestamp().await?;
        let base = MsgBase {
            msg_id: i64::try_from(ts)?,
            timestamp: ts,
            source_id: 1,
            ..MsgBase::new(MsgType::Insert)
        };
        let message = InsertRequest {
            base: Some(base),
            shard_name: format!("{channel}_{}v9", described.collection_id),
            db_name: DB.to_owned(),
            collection_name: name.to_owned(),
            partition_name: partition.0.clone(),
            collection_id: described.collection_id,
            partition_id: partition.1,
            timestamps: vec![ts],
            row_i_ds: vec![i64::try_from(ts)?],
            num_rows: 1,
            version: InsertDataVersion::ColumnBased.into(),
            ..Default::default()
        };
        let payload = message.encode_to_vec();
        published.push(payload.clone());
        queue
            .publish(channel.clone(), payload.into())
            .await?
            .await?;
        let held = lab
            .cdc
            .wait(&lab.task, "it is stuck", Duration::from_secs(5), |s| {
                s.states_of(DB, name).last() == Some(&"Quarantined")
            })
            .await;
        match held {
            Ok(status) => {
                let c = status.collection(DB, name).context("it is there")?;
                say(&format!("stuck: {c}"));
                ensure!(
                    c["detail"]["channel"] == json!(channel) && c["detail"]["position"].is_string(),
                    "where it is stuck is told: {c}"
                );
                return Ok(published);
            }
            Err(e) if Instant::now() >= end => return Err(e),
            Err(_) => {}
        }
    }
}
