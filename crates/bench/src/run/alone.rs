//! What the null target takes: the bound of every other figure. A generator sends to it what a writer would.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use milvus::proto::common::{MsgBase, MsgType};
use prost::Message;
use serde_json::{Value, json};
use tonic::codec::ProstCodec;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use super::servers::Target;
use super::{Setup, extend, judged, round};
use crate::proc;
use crate::scenario::Scenario;
use crate::source::shape::Pool;
use crate::source::writer::Load;
use crate::source::{Collection, messages, now_us, tso};

/// As the lanes of milvus-cdc.
const CALL: usize = 4 << 20;

#[derive(Clone, PartialEq, Message)]
struct Replicate {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
    #[prost(string, tag = "2")]
    channel_name: String,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    msgs: Vec<Bytes>,
}

type Answer = milvus::proto::milvus::ReplicateMessageResponse;

pub(super) async fn run(
    scenario: &Scenario,
    load: &Load,
    megabytes: u64,
    setup: &Setup,
    dir: &Path,
) -> Result<Value> {
    let target = Target::start(dir, setup, None).await?;
    // Made before the clock runs: the same few requests with fresh ids and times would be another benchmark.
    let mut pool = Pool::new(setup.seed);
    let keys: Vec<i64> = (0..load.rows as i64).collect();
    let mut next_id = 0;
    let mut senders = tokio::task::JoinSet::new();
    let each = megabytes * 1_000_000 / scenario.channels as u64;
    let begin = Instant::now();
    let before = proc::cpu(target.pid())?;
    for i in 0..scenario.channels {
        let collection = Collection::new(i, scenario.channels, tso(now_us()));
        let columns = pool.columns(load.shape, &keys);
        let (uri, keys) = (target.uri.clone(), keys.clone());
        next_id += 1_000_000_000;
        senders.spawn(async move {
            let channel = Endpoint::from_shared(uri)?
                .tcp_nodelay(true)
                .connect()
                .await?;
            let (mut sent, mut id) = (0, next_id);
            while sent < each {
                let mut msgs = Vec::new();
                let mut size = 0;
                while size == 0 || size < CALL && sent + (size as u64) < each {
                    id += 1;
                    let ts = tso(now_us());
                    let insert = messages::insert(&collection, &keys, columns.clone(), ts, ts, id);
                    size += insert.len();
                    msgs.push(insert);
                }
                sent += size as u64;
                send(&channel, &collection.pchannel, msgs).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender.context("a sender")??;
    }
    let long = begin.elapsed().as_secs_f64();
    let ledger = target.ledger().await?;
    let bytes = ledger["counts"]["bytes"].as_f64().unwrap_or_default();
    let messages = ledger["counts"]["inserts"].as_f64().unwrap_or_default();
    let cpu = (proc::cpu(target.pid())? - before).as_secs_f64();
    let mut figures = json!({
        "seconds": round(long),
        "mb": round(bytes / 1e6),
        "mb_per_second": round(bytes / 1e6 / long),
        "messages_per_second": round(messages / long),
        "calls": ledger["counts"]["calls"],
        "target_cpu_s_per_gb": round(cpu / (bytes / 1e9)),
        "target_cpu_percent": round(cpu / long * 100.0),
    });
    extend(&mut figures, judged(&ledger));
    Ok(figures)
}

async fn send(channel: &Channel, name: &str, msgs: Vec<Bytes>) -> Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.context("the target")?;
    let request = Replicate {
        base: Some(MsgBase {
            msg_type: MsgType::Replicate as i32,
            ..Default::default()
        }),
        channel_name: name.to_owned(),
        msgs,
    };
    let path = PathAndQuery::from_static("/milvus.proto.milvus.MilvusService/ReplicateMessage");
    let codec = ProstCodec::<Replicate, Answer>::default();
    let answer = grpc
        .unary(tonic::Request::new(request), path, codec)
        .await?
        .into_inner();
    let status = answer.status.unwrap_or_default();
    anyhow::ensure!(status.code == 0, "the target: {}", status.reason);
    Ok(())
}
