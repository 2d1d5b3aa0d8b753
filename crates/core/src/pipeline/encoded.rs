//! What is planned to what a lane sends, once its target times are known.

use super::TaskContext;
use super::objects::PartitionRoute;
use super::stretch::{Act, Place, Planned};
use crate::decode::{RowsKind, keys};
use crate::error::{ErrorClass, Problem};
use crate::lane::{Lane, Outgoing, Poison};
use crate::route::encode::{self, Entry};
use crate::route::tsmap::TsMap;
use crate::tso::Tso;

/// Encodes and pushes. An insert in doubt goes with a delete of its keys at the same time: that kills an earlier copy
/// and spares the insert.
pub(super) fn send(ctx: &TaskContext, lane: &Lane, planned: Planned, map: &TsMap) {
    let Planned {
        route,
        shard,
        origin,
        act,
        ticket,
        ticked,
        ..
    } = planned;
    let to = &route.shards[shard].to;
    let partition = match &act {
        Act::Rows {
            place: Place::Known(partition),
            ..
        } => Some(partition.target),
        _ => None,
    };
    let push = |bytes: Entry, ts: Tso, rows: u64, is_insert: bool, ticket, ticked| {
        lane.push(Outgoing {
            stream: route.stream.clone(),
            bytes,
            ts,
            rows,
            is_insert,
            partition,
            origin: Some(origin.clone()),
            ticket,
            ticked,
        });
    };
    match act {
        Act::Rows {
            rows,
            place,
            in_doubt,
        } => {
            let Place::Known(partition) = place else {
                // Never sent before it is resolved; kept in flight if it were, so that nothing passes it.
                route.stream.fail(Problem::new(
                    ErrorClass::Bug,
                    format!("rows of {}.{} without a partition", to.database, to.name),
                    "please report it",
                ));
                push(Entry::default(), Tso::ZERO, 0, false, Some(ticket), ticked);
                return;
            };
            let ts = Tso(rows
                .timestamps
                .iter()
                .map(|ts| map.get(*ts))
                .max()
                .unwrap_or_default());
            let count = rows.timestamps.len() as u64;
            let PartitionRoute { target, name } = &partition;
            if in_doubt && rows.kind == RowsKind::Insert {
                let Some(found) = keys::primary_keys(&rows.body, route.primary_key) else {
                    let poison = Poison {
                        channel: origin.0.clone(),
                        position: origin.1,
                        payload: None,
                    };
                    let problem = Problem::new(
                        ErrorClass::Data,
                        format!(
                            "an insert of {}.{} has no key column {}",
                            to.database, to.name, route.primary_key
                        ),
                        "resume the task with skip for this collection to leave the message out",
                    );
                    route.stream.fail_at(poison, problem);
                    // Kept in flight: the checkpoint must not pass it.
                    push(Entry::default(), ts, 0, false, Some(ticket), ticked);
                    return;
                };
                let delete = encode::delete_of(
                    found,
                    &rows.timestamps,
                    to,
                    *target,
                    name,
                    map,
                    ctx.hub.message_id(),
                );
                let insert = encode::rows(&rows, to, *target, name, map, ctx.hub.message_id());
                // Both before any tick: they have one time, and a tick is never between messages of one stretch's time.
                push(delete.into(), ts, 0, false, None, None);
                push(insert, ts, count, true, Some(ticket), ticked);
                return;
            }
            let bytes = encode::rows(&rows, to, *target, name, map, ctx.hub.message_id());
            push(
                bytes,
                ts,
                count,
                rows.kind == RowsKind::Insert,
                Some(ticket),
                ticked,
            );
        }
        Act::DropCollection { ts } => {
            let ts = map.get(ts.0);
            push(
                encode::drop_collection(to, ts, ctx.hub.message_id()).into(),
                Tso(ts),
                0,
                false,
                Some(ticket),
                ticked,
            );
        }
        Act::DropPartition {
            partition: PartitionRoute { target, name },
            ts,
        } => {
            let ts = map.get(ts.0);
            let bytes = encode::drop_partition(to, target, &name, ts, ctx.hub.message_id());
            push(bytes.into(), Tso(ts), 0, false, Some(ticket), ticked);
        }
    }
}
