//! The tasks of a Go server are taken over: what it has sent, and has not noted any more, is neither lost nor doubled.
//!
//! What that server would leave is written in its own form (zilliztech/milvus-cdc at 3a4af3b: server/store/meta_key.go,
//! server/model/meta/task.go) into a real etcd; its rows are on the target by a server of ours, whose store is thrown
//! away.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_lab::cdc::{Cdc, Said, command};
use cdc_lab::servers::stores::{StoreKind, StoreServer};
use etcd_client::Client;
use milvus::proto::msg::MsgPosition;
use prost::Message;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::lab::{Lab, until};
use crate::plain::Plain;

tests![Test: what_was_sent_behind_its_places_is_neither_lost_nor_doubled];

const ROOT: &str = "cdc-by-dev";
const TASK: &str = "6623ae52d35842a5a2c9d89b16ed7aa1";
const COMMAND: Duration = Duration::from_secs(120);

async fn what_was_sent_behind_its_places_is_neither_lost_nor_doubled(
    lab: &mut Lab,
    random: &mut StdRng,
) -> Result<()> {
    let from = lab.from.clone();
    let store = StoreServer::start(StoreKind::Etcd).await?;
    let task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
    let mut all = Vec::new();
    for shards in 1..=3 {
        let mut c = Plain::create(&from, &format!("taken{shards}"), shards).await?;
        for _ in 0..5 {
            c.round(&from, random).await?;
        }
        all.push(c);
    }
    lab.equal().await?;
    // What it notes; and then it sends on, until it is killed.
    let places = places(lab, &task).await?;
    for c in &mut all {
        for _ in 0..5 {
            c.round(&from, random).await?;
        }
    }
    lab.equal().await?;
    lab.cdc.kill9().await?;
    leave(&store, &lab.proxy.uri(), &places).await?;
    // Nobody reads, and a collection comes.
    for c in &mut all {
        c.round(&from, random).await?;
    }
    let mut new = Plain::create(&from, "new", 2).await?;
    new.round(&from, random).await?;

    // The Go server's own store, and its own root path.
    let dir = lab.dir().join("taken");
    lab.cdc = Cdc::start_on(&lab.source, dir, &store.yaml(ROOT), &lab.progress).await?;
    let list = lab.cdc.request("list", json!({})).await?;
    ensure!(list["tasks"] == json!([]), "it has tasks: {list}");
    lab.stop_cdc().await?;
    let dry = import(&lab.cdc, &[]).await?;
    ensure!(
        dry.code == Some(0) && dry.stdout.contains("1 would be taken"),
        "{dry:?}"
    );
    let applied = import(&lab.cdc, &["--apply"]).await?;
    ensure!(
        applied.code == Some(0) && applied.stdout.contains("1 taken"),
        "{applied:?}"
    );
    let again = import(&lab.cdc, &["--apply"]).await?;
    ensure!(
        again.code == Some(0) && again.stdout.contains("1 here already"),
        "{again:?}"
    );

    lab.cdc.restart(&lab.progress).await?;
    for c in all.iter().chain([&new]) {
        lab.wait_state(TASK, c.name(), "Streaming").await?;
    }
    for c in all.iter_mut().chain([&mut new]) {
        c.round(&from, random).await?;
    }
    let keys = all.iter().chain([&new]).map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await?;
    // And it goes on like any other task.
    lab.kill().await?;
    for c in all.iter_mut().chain([&mut new]) {
        c.round(&from, random).await?;
    }
    let keys = all.iter().chain([&new]).map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await?;
    // Its store ends with this test.
    lab.stop_cdc().await?;
    lab.cdc = Cdc::start(&lab.source, lab.dir().join("empty"), &lab.progress).await?;
    Ok(())
}

async fn import(cdc: &Cdc, more: &[&str]) -> Result<Said> {
    let config = cdc.config_path().display().to_string();
    let mut args = vec!["import-go", "--config", &config];
    args.extend(more);
    let said = command(&args, COMMAND).await?;
    say(&format!("{}{}", said.stdout, said.stderr));
    Ok(said)
}

/// By collection: its name, and its place by channel.
type Places = BTreeMap<i64, (String, BTreeMap<String, MsgPosition>)>;

/// Where each collection is on each of its channels, when all of them are past the rows that are there.
async fn places(lab: &Lab, task: &str) -> Result<Places> {
    let mut found = Places::new();
    until("every collection has a place", async || {
        found = read_places(lab, task).await?;
        Ok(found.len() == 3)
    })
    .await?;
    Ok(found)
}

async fn read_places(lab: &Lab, task: &str) -> Result<Places> {
    let status = lab.cdc.task(task).await?;
    let mut found = Places::new();
    for c in status.collections() {
        let id = c["collection_id"].as_i64().context("an id")?;
        let name = c["name"].as_str().unwrap_or_default().to_owned();
        let mut places = BTreeMap::new();
        for p in c["positions"].as_array().into_iter().flatten() {
            let text = p["msg_id"].as_str().context("a place")?;
            let place = MsgPosition::decode(STANDARD.decode(text)?.as_slice())?;
            places.insert(place.channel_name.clone(), place);
        }
        if !places.is_empty() {
            found.insert(id, (name, places));
        }
    }
    Ok(found)
}

/// What a Go server leaves: a task for the database `default`, and a place of each collection on each of its channels.
async fn leave(store: &StoreServer, target: &str, places: &Places) -> Result<()> {
    let mut etcd = Client::connect([store.url()], None).await?;
    let task = json!({
        "TaskID": TASK,
        "MilvusConnectParam": {
            "host": "", "port": 0, "enable_tls": false, "uri": target, "dial_config": {}, "channel_num": 0,
            "ignore_partition": false, "connect_timeout": 10,
        },
        "KafkaConnectParam": { "address": "", "topic": "", "enable_sasl": false, "sasl": {} },
        "WriterCacheConfig": { "period": 0, "size": 0 },
        "CollectionInfos": [{ "name": "*", "positions": null, "use_start_position": false }],
        "DBCollections": null,
        "NameMapping": null,
        "RPCRequestChannelInfo": { "name": "", "position": "" },
        "ExtraInfo": { "enable_user_role": false },
        "ExcludeCollections": null,
        "DisableAutoStart": false,
        "State": 1,
        "Reason": "",
    });
    etcd.put(format!("{ROOT}/task_info/{TASK}"), task.to_string(), None)
        .await?;
    for (id, (name, places)) in places {
        let mut positions = serde_json::Map::new();
        for (channel, place) in places {
            // Of what was sent last: raised above the source's tick where other streams go to the same channel.
            let time = (place.timestamp >> 18) + 150;
            let info: Value = json!({
                "StartTime": 0, "Time": time, "Dropped": false,
                "DataPair": { "key": channel, "data": STANDARD.encode(&place.msg_id) },
            });
            positions.insert(channel.clone(), info);
        }
        let value = json!({
            "TaskID": TASK, "CollectionID": id, "CollectionName": name, "Positions": positions, "OpPositions": positions,
            "TargetPositions": {},
        });
        let key = format!("{ROOT}/task_position/{TASK}/{id}");
        etcd.put(key, value.to_string(), None).await?;
    }
    Ok(())
}
