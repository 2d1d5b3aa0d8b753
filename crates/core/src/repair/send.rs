//! The messages of a repair, through the target's lanes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Plan;
use crate::engine::target_problem;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::lane::{Budget, Cell, Outgoing, StreamCtl, Ticket, Way};
use crate::route::encode;
use crate::target::hub::Hub;

/// Until everything has to be written and shown. Longer than a lane is silent after an earlier process was cut off.
const WITHIN: Duration = Duration::from_secs(20);
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Deletes and inserts of each channel at one new time, above F, what waits in its lane, and the target's own clock:
/// rows that somebody else has written there are older then. Returns when a tick has shown them.
pub(super) async fn send(hub: &Arc<Hub>, of: CollectionId, plan: &Plan) -> Result<(), Problem> {
    let now = hub.target.now().await.map_err(|e| target_problem(&e))?;
    let wake = Arc::new(Notify::new());
    let (cell, own, budget) = (
        Arc::new(Cell::default()),
        Arc::new(AtomicUsize::new(0)),
        Budget::new(usize::MAX),
    );
    let mut by_channel: BTreeMap<&PChannel, Vec<usize>> = BTreeMap::new();
    for (shard, (channel, _)) in plan.shards.iter().enumerate() {
        by_channel.entry(channel).or_default().push(shard);
    }
    let mut pushed = Vec::new();
    let mut shown = Vec::new();
    for (channel, shards) in by_channel {
        let lane = hub.lane(channel);
        let stream = StreamCtl::new(of, wake.clone(), Arc::default());
        let edge = lane.join(plan.time, false, now.max(hub.of_others(channel)));
        let map = lane.raise(edge, vec![plan.time.0], true);
        let ts = crate::tso::Tso(map.get(plan.time.0));
        let mut messages = Vec::new();
        for shard in shards {
            let to = &plan.shards[shard].1;
            let (within, name) = &plan.within;
            let times = vec![plan.time.0; plan.keys.len()];
            let ids = plan.keys.ids();
            let delete = encode::delete_of(ids, &times, to, *within, name, &map, hub.message_id());
            messages.push((delete, 0, false));
            for insert in plan.inserts.iter().filter(|i| i.shard == shard) {
                let rows = (0..insert.rows).map(|_| hub.message_id()).collect();
                let (partition, name) = &insert.partition;
                let columns = insert.columns.clone();
                let id = hub.message_id();
                let bytes = encode::insert_of(columns, rows, to, *partition, name, ts, id);
                messages.push((bytes, insert.rows as u64, true));
            }
        }
        let (ticked, done) = oneshot::channel();
        let mut ticked = Some(ticked);
        let last = messages.len().saturating_sub(1);
        for (i, (bytes, rows, is_insert)) in messages.into_iter().enumerate() {
            let ticket = Ticket::new(&cell, &own, &budget, bytes.len());
            lane.push(Outgoing {
                stream: stream.clone(),
                bytes: bytes.into(),
                ts,
                rows,
                is_insert,
                partition: None,
                origin: None,
                ticket: Some(ticket),
                // A lane keeps the order: with the last one all of them are acknowledged.
                ticked: if i == last { ticked.take() } else { None },
            });
        }
        lane.passed(edge, plan.time);
        shown.push(done);
        pushed.push(Way { lane, edge, stream });
    }
    wait(&pushed, &wake, shown).await
}

async fn wait(
    pushed: &[Way],
    wake: &Notify,
    shown: Vec<oneshot::Receiver<Ticket>>,
) -> Result<(), Problem> {
    let end = Instant::now() + WITHIN;
    let mut shown = std::pin::pin!(try_join_all(shown));
    loop {
        if let Some(problem) = pushed.iter().find_map(|p| p.stream.problem()) {
            return Err(problem);
        }
        tokio::select! {
            done = &mut shown => return done.map(drop).map_err(|_| {
                // Only a lane that is gone drops them.
                let hint = "ask again; it does no harm twice";
                Problem::new(ErrorClass::Transient, "the repair broke off", hint)
            }),
            () = wake.notified() => {}
            () = tokio::time::sleep_until(end) => {
                let why = pushed.iter().find_map(|p| p.lane.problem());
                let why = why.map_or_else(|| "no tick has shown it".to_owned(), |p| p.message);
                return Err(Problem::new(
                    ErrorClass::Transient,
                    format!("the target has not taken and shown the repair within {} s: {why}", WITHIN.as_secs()),
                    "ask again; it does no harm twice",
                ));
            }
        }
    }
}

/// Asks for it and does not wait until it is done: that takes a later tick.
pub(super) async fn flush(hub: &Hub, database: &str, name: &str) {
    let names = [name.to_owned()];
    let flush = hub.target.flush(database, &names);
    match tokio::time::timeout(FLUSH_WITHIN, flush).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(%database, %name, %error, "not flushed after a repair"),
        Err(_) => tracing::info!(%database, %name, "not flushed after a repair: no answer"),
    }
}
