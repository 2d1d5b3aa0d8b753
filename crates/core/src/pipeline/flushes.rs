//! Carries flush requests from the source's replicate-msg channel.
//!
//! That channel holds the requests of several operations; all but flush are taken from the catalog, because a failed
//! write to it is only logged by the source and some operations are not on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milvus::proto::common::MsgType;
use milvus::proto::milvus::FlushRequest;
use prost::Message;
use tokio::time::Instant;

use super::TaskContext;
use super::objects::Objects;
use crate::backoff::Backoff;
use crate::decode::wire::Fields;
use crate::ids::PChannel;
use crate::position::Position;
use crate::select::{Name, Operation};
use crate::source::{SourceError, Start};
use crate::store::Change;
use crate::tso::Tso;

/// A flush waits this long for the rows before it; then it is done all the same.
const ROWS_FIRST: Duration = Duration::from_secs(30);

pub(crate) async fn run(ctx: Arc<TaskContext>, objects: Arc<Objects>, stored: Option<Position>) {
    let channel = PChannel::new(ctx.parts.replicate_channel.as_str());
    let mut at = stored;
    let mut backoff = Backoff::new();
    loop {
        let end = tokio::select! {
            end = read(&ctx, &objects, &channel, &mut at, &mut backoff) => end,
            () = ctx.drain.cancelled() => return,
        };
        if let Err(SourceError::PositionLost { .. }) = end {
            // What is lost are requests to flush: the rows are carried by the lanes.
            tracing::warn!(%channel, "flush requests were lost to the queue's retention; going on with the first that is there");
            at = None;
        }
        tokio::select! {
            () = backoff.wait() => {}
            () = ctx.drain.cancelled() => return,
        }
    }
}

async fn read(
    ctx: &TaskContext,
    objects: &Objects,
    channel: &PChannel,
    at: &mut Option<Position>,
    backoff: &mut Backoff,
) -> Result<(), SourceError> {
    let start = at.map_or(Start::Latest, Start::After);
    let mut log = ctx.parts.source.open(channel, start).await?;
    loop {
        for message in log.next(1 << 20).await? {
            *backoff = Backoff::new();
            if let Some((request, ts)) = flush_request(&message.payload) {
                flush(ctx, objects, &request, ts).await;
            }
            *at = Some(message.position);
            let change = Change::PutReplicate {
                task: ctx.spec.id.clone(),
                position: message.position,
            };
            ctx.commit(vec![change]).await;
        }
    }
}

fn flush_request(payload: &Bytes) -> Option<(FlushRequest, Tso)> {
    let base = Fields::of(payload).flatten().find(|f| f.number == 1)?;
    let number = |n: u32| {
        Fields::of(base.bytes())
            .flatten()
            .find(|f| f.number == n)
            .map(|f| f.varint())
    };
    if number(1) != Some(MsgType::Flush as u64) {
        return None;
    }
    Some((
        FlushRequest::decode(payload.clone()).ok()?,
        Tso(number(3).unwrap_or_default()),
    ))
}

async fn flush(ctx: &TaskContext, objects: &Objects, request: &FlushRequest, ts: Tso) {
    let database = if request.db_name.is_empty() {
        "default"
    } else {
        &request.db_name
    };
    let wanted = ctx.wanted();
    if wanted.skips(Operation::Flush) {
        return;
    }
    let deadline = Instant::now() + ROWS_FIRST;
    let names: Vec<String> = request
        .collection_names
        .iter()
        .filter(|name| {
            let of = Name::new(database, name.as_str());
            wanted.selection.contains(database, name) || objects.live(&of).is_some()
        })
        .cloned()
        .collect();
    for name in &names {
        // The collection may be on its way; its rows up to the flush have to be.
        while Instant::now() < deadline && !objects.applied(database, name, ts) {
            tokio::select! {
                () = objects.moved.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
    // By the database that each is in on the target.
    let mut on_target: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in &names {
        let to = match objects.live(&Name::new(database, name.as_str())) {
            Some(object) => Name::new(object.database, object.name),
            None => wanted.target_of(database, name),
        };
        on_target.entry(to.database).or_default().push(to.name);
    }
    for (database, names) in on_target {
        if let Err(error) = ctx.hub.target.flush(&database, &names).await {
            tracing::warn!(database, ?names, "flush on the target: {error}");
        }
    }
}
