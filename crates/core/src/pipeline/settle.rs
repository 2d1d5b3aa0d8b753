//! Moves the durable checkpoint: asks the target what it has flushed, makes it flush what it has not, and watches for its
//! restarts. Beside the readers; nothing waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::TaskContext;
use super::durable::{Durable, Nodes, Point};
use super::objects::Route;
use super::reader::{Reader, Scope};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::target::TargetError;
use crate::tso::Tso;

/// How often the target is asked whether it has restarted.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// Nodes that are others have to be so in as many looks in a row.
const OTHER_TIMES: u32 = 2;
/// Where nodes are only missing, a minute: a query node of 2.3.5 that has no ticks for long does not answer, and is left
/// out as if it were not there (seen: for minutes, under kills of ours so frequent that no tick was sent).
const FEWER_TIMES: u32 = 12;
/// A proxy answers from what it has kept for so long (`metricsCacheManager`, 5 s).
const NODES_KEPT: Duration = Duration::from_secs(6);
/// Collections asked for at the same time.
const AT_ONCE: usize = 4;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A lane shows what it has sent within this, or another time.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);
const FLUSHED_WITHIN: Duration = Duration::from_secs(60);
/// A target that has started has nodes for all its channels by then.
const WATCHED_WITHIN: Duration = Duration::from_secs(60);
/// After a start nothing is known to be flushed, and most is: data nodes flush by themselves within ten minutes
/// (`dataNode.segment.syncPeriod`). Until then what nothing came for is asked for, and not made to flush.
const GENTLE_FOR: Duration = Duration::from_secs(660);

/// A collection as a round finds it.
pub(super) struct Carried {
    pub(super) route: Arc<Route>,
    /// Rows acknowledged by now.
    pub(super) rows: u64,
    /// Target timestamp at or above everything acknowledged of it by now.
    up_to: Tso,
    way: Way,
}

/// How a collection is brought to where all of it is flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// It is: nothing came since an earlier round.
    Settled,
    /// In a later round: the target may not have a node for each of its channels yet, and answers for those that have
    /// one.
    Wait,
    /// Nothing came since the start: it may be.
    Ask,
    Flush,
}

impl Carried {
    /// `settled_at`: the rows it had when all of it was flushed. `age`: of the task's present beginning.
    pub(super) fn new(route: &Arc<Route>, settled_at: Option<u64>, age: Duration) -> Self {
        let rows = route.stream.rows.load(Ordering::Acquire);
        let lanes = route.shards.iter().map(|s| s.lane.max_acknowledged());
        Self {
            route: route.clone(),
            rows,
            up_to: lanes.max().unwrap_or_default(),
            way: match rows {
                _ if settled_at == Some(rows) => Way::Settled,
                0 if age < WATCHED_WITHIN => Way::Wait,
                0 if age < GENTLE_FOR => Way::Ask,
                _ => Way::Flush,
            },
        }
    }
}

/// Where a reader stood, and what it carried. The place is read before what is acknowledged.
pub(super) struct Stood {
    pub(super) reader: Arc<Reader>,
    pub(super) at: Point,
    pub(super) carried: Vec<CollectionId>,
}

pub(super) struct Round {
    pub(super) readers: Vec<Stood>,
    pub(super) collections: Vec<Carried>,
}

/// What came of a round.
pub(super) struct Settled {
    pub(super) round: Round,
    /// By the round's collections: everything of it up to then is flushed.
    pub(super) flushed: Vec<bool>,
    pub(super) problems: Vec<Problem>,
}

pub(super) async fn settle(ctx: Arc<TaskContext>, round: Round) -> Settled {
    let asked: Vec<_> = round.collections.iter().map(|c| confirm(&ctx, c)).collect();
    let outcomes: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut problems = Vec::new();
    let mut flushed: Vec<bool> = Vec::with_capacity(outcomes.len());
    for (carried, outcome) in round.collections.iter().zip(outcomes) {
        let to = &carried.route.shards[0].to;
        flushed.push(match outcome {
            Ok(flushed) => flushed,
            Err(error) => {
                let problem = error.problem();
                let why = format!(
                    "{}.{} cannot be flushed: {}",
                    to.database, to.name, problem.message
                );
                problems.push(Problem::new(problem.class, why, problem.hint));
                false
            }
        });
    }
    // A target that restarted meanwhile may have moved on without some of it.
    if flushed.iter().any(|f| *f) {
        let asked = round.collections.iter().any(|c| c.way != Way::Settled);
        if !has_stayed(&ctx, asked).await {
            flushed.fill(false);
        }
    }
    problems.extend(out_of_reach(&ctx).await);
    Settled {
        round,
        flushed,
        problems,
    }
}

/// Whether the target's nodes still are those that the durable places were found with; also if it names none. Where they
/// could not be asked for then, they may be others by now. `wait`: behind what its proxies have kept of an earlier answer.
async fn has_stayed(ctx: &TaskContext, wait: bool) -> bool {
    let Some(nodes) = ctx.durable.lock().nodes.clone() else {
        return matches!(ctx.hub.target.nodes().await, Ok(None));
    };
    if wait {
        tokio::time::sleep(NODES_KEPT).await;
    }
    matches!(ctx.hub.target.nodes().await, Ok(Some(now)) if now == nodes)
}

/// Whether everything of a collection is flushed, flushing it if need be.
async fn confirm(ctx: &TaskContext, carried: &Carried) -> Result<bool, TargetError> {
    match carried.way {
        Way::Settled => return Ok(true),
        Way::Wait => return Ok(false),
        Way::Ask | Way::Flush => {}
    }
    let target = &ctx.hub.target;
    let to = &carried.route.shards[0].to;
    // What no tick has shown its nodes have not read yet.
    let lanes = || carried.route.shards.iter().map(|s| &s.lane);
    let shown = || lanes().all(|lane| lane.acknowledged_tick() >= carried.up_to);
    let deadline = Instant::now() + SHOWN_WITHIN;
    while !shown() {
        if Instant::now() > deadline || carried.route.stream.failed() {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // One that was taken off may have another name by now: what is said of this one is not of it.
    let is_flushed = || async {
        let is = target
            .is_flushed(&to.database, &to.name, carried.up_to)
            .await?;
        Ok::<_, TargetError>(is && !carried.route.stream.released())
    };
    if carried.way == Way::Ask {
        return is_flushed().await;
    }
    // Also where it may be flushed already: a flush is taken only if each of the channels has a node, and only then the
    // checkpoints of all of them are asked.
    target
        .flush(&to.database, std::slice::from_ref(&to.name))
        .await?;
    let deadline = Instant::now() + FLUSHED_WITHIN;
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
        if is_flushed().await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether everything that was acknowledged of a collection by now is flushed, made to be so.
pub(super) async fn flush(ctx: &TaskContext, route: &Arc<Route>) -> Result<bool, TargetError> {
    let lanes = route.shards.iter().map(|s| s.lane.max_acknowledged());
    let carried = Carried {
        route: route.clone(),
        rows: 0,
        up_to: lanes.max().unwrap_or_default(),
        way: Way::Flush,
    };
    // One that has restarted since may have left rows out, and flushed what it has.
    Ok(confirm(ctx, &carried).await? && has_stayed(ctx, true).await)
}

/// Channels whose queue no longer holds what a restart of the target would need.
async fn out_of_reach(ctx: &TaskContext) -> Vec<Problem> {
    let needed = ctx.durable.lock().needed();
    let mut problems = Vec::new();
    for (channel, position) in needed {
        let Ok(Some(bounds)) = ctx.parts.source.bounds(&channel).await else {
            continue;
        };
        if bounds.first > position {
            let why = format!(
                "{channel}: the queue begins at {}, behind the durable checkpoint at {position}: if the target restarts now, what it has not flushed cannot be sent again",
                bounds.first
            );
            let hint = "raise the retention of the source's queue, or lower target.durableSeconds";
            problems.push(Problem::new(ErrorClass::Transient, why, hint));
        }
    }
    problems
}

/// What the watch makes of the nodes it is told.
#[derive(Default)]
struct Looks {
    /// Others than those the durable places were found with, and how often in a row.
    other: Option<Nodes>,
    times: u32,
}

impl Looks {
    /// One more look. Whether the target has restarted.
    fn look(&mut self, known: Option<&Nodes>, now: Nodes) -> bool {
        if known == Some(&now) {
            *self = Self::default();
            return false;
        }
        let fewer = known.is_some_and(|known| now.is_subset(known));
        if self.other.as_ref() == Some(&now) {
            self.times += 1;
        } else {
            (self.other, self.times) = (Some(now), 1);
        }
        self.times >= if fewer { FEWER_TIMES } else { OTHER_TIMES }
    }
}

/// Returns when the target has restarted, by its nodes.
pub(super) async fn watch(ctx: &TaskContext) {
    let mut looks = Looks::default();
    let mut every = tokio::time::interval(WATCH_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Ok(Some(now)) = ctx.hub.target.nodes().await else {
            continue;
        };
        let known = ctx.durable.lock().nodes.clone();
        if looks.look(known.as_ref(), now) {
            return;
        }
    }
}

/// Puts a round's outcome into the checkpoint. `carries`: the collections that this reader carries now, if it still is the
/// reader of its channel or collection.
pub(super) fn put(
    durable: &mut Durable,
    settled: &Settled,
    carries: impl Fn(&Reader) -> Option<BTreeSet<CollectionId>>,
) {
    let flushed = |c: &CollectionId| {
        let mut all = settled.round.collections.iter().zip(&settled.flushed);
        all.any(|(carried, flushed)| carried.route.source == *c && *flushed)
    };
    for stood in &settled.round.readers {
        let Some(now) = carries(&stood.reader) else {
            continue;
        };
        if !stood.carried.iter().all(flushed) {
            continue;
        }
        let channel: &PChannel = &stood.reader.channel;
        match &stood.reader.scope {
            // What was taken off meanwhile has its own place, and keeps it.
            Scope::Main => {
                let here = stood.carried.iter().copied();
                durable.settled(channel, stood.at, here.filter(|c| now.contains(c)));
            }
            Scope::One(route) => durable.settled_alone(channel, route.source, stood.at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_believed_at_the_second_look_and_missing_ones_after_a_minute() {
        let nodes = |of: &[&str]| -> Nodes { of.iter().map(|n| (*n).to_owned()).collect() };
        let known = nodes(&["d1", "q1"]);
        let looks_until = |now: &[&str]| {
            let mut looks = Looks::default();
            (1..100).find(|_| looks.look(Some(&known), nodes(now)))
        };
        assert_eq!(looks_until(&["d1", "q1"]), None);
        assert_eq!(looks_until(&["d1", "q2"]), Some(OTHER_TIMES));
        assert_eq!(looks_until(&["d1", "q1", "q2"]), Some(OTHER_TIMES));
        assert_eq!(looks_until(&["d1"]), Some(FEWER_TIMES));
        // Missing in between, and then another one in its place.
        let mut looks = Looks::default();
        let seen = [&["d1"][..], &["d1"], &["d1"], &["d1", "q2"], &["d1", "q2"]];
        let told = seen.map(|now| looks.look(Some(&known), nodes(now)));
        assert_eq!(told, [false, false, false, false, true]);
        // Back again: counted anew.
        let mut looks = Looks::default();
        for _ in 0..5 {
            assert!(!looks.look(Some(&known), nodes(&["d1", "q2"])));
            assert!(!looks.look(Some(&known), known.clone()));
        }
        // Never told before: the first answer may be of another process than what was sent to.
        let mut looks = Looks::default();
        assert!(!looks.look(None, known.clone()));
        assert!(looks.look(None, known));
    }
}
