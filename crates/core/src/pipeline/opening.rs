//! From a collection of the source to one that can be read: where its reading begins, then its place on the target.
//!
//! In this order, so that nothing is made on the target for a collection that cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::TaskContext;
use super::copying::unreadable;
use super::objects::{Objects, Obstacle, Opened, Route};
use crate::catalog::{Collection, ObjectState};
use crate::decode::{Event, decode};
use crate::ids::{CollectionId, PChannel};
use crate::position::Position;
use crate::snapshot::{Initial, Snapshot};
use crate::source::{LogReader, SourceError, Start};
use crate::store::{CollectionObject, ObjectPhase, Progress};
use crate::task::{GivenPosition, OnConflict, StartPoint};
use crate::tso::Tso;

/// How long a channel in use may be without a tick.
const TICKS_WITHIN: Duration = Duration::from_secs(10);

/// The bound of what the source has given out is up to 3 s ahead of it (2.3.5, `tso.go`), and its ticks have to come there.
const BOUND_WITHIN: Duration = Duration::from_secs(30);

/// What a person has answered for a collection, as it is kept until it is carried out.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) on_conflict: Option<OnConflict>,
    /// Channels on which its reading begins anew.
    pub(super) reset: BTreeMap<PChannel, Reset>,
    /// Up to this source timestamp an earlier stretch of it may have been sent.
    pub(super) sent: Tso,
    /// Messages to leave out. Kept as long as the collection is.
    pub(super) skipped: Vec<(PChannel, Position)>,
    /// The rows it has are copied first, into a new collection.
    pub(super) snapshot: bool,
    /// It was loaded on the source to be copied, and is to be released.
    pub(super) release: bool,
    /// The task was asked to carry it no longer: what the target holds of it may be another's since.
    pub(super) apart: bool,
}

/// Where reading begins anew.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(super) enum Reset {
    Start(StartPoint),
    At(GivenPosition),
}

impl Answer {
    /// Something is dropped on the target first.
    pub(super) fn takes_down(&self) -> bool {
        self.snapshot || self.on_conflict == Some(OnConflict::Recreate)
    }

    /// What is left to keep once it is carried out.
    pub(super) fn done(&self) -> Self {
        Self {
            skipped: self.skipped.clone(),
            ..Self::default()
        }
    }
}

pub(super) struct Opening {
    pub(super) source: Arc<Collection>,
    pub(super) database: String,
    pub(super) answer: Answer,
    /// It may take the time that a new name on the target needs.
    pub(super) may_rename: bool,
}

/// A collection that can be read.
pub(super) struct Ready {
    pub(super) route: Arc<Route>,
    /// Met for the first time: to be stored together with `records`, not before.
    pub(super) fresh: Option<CollectionObject>,
    /// Where its reading begins, on the channels where it does.
    pub(super) records: Vec<(PChannel, Progress)>,
    /// The rows it had are to be copied first; of use with `fresh` only.
    pub(super) snapshot: Option<Snapshot>,
}

/// It cannot be read.
pub(super) enum Stop {
    /// On these channels the queue no longer holds where it would begin.
    Lost(Vec<SourceError>),
    Unread(SourceError),
    Target(Obstacle),
}

pub(super) async fn open(
    ctx: Arc<TaskContext>,
    objects: Arc<Objects>,
    opening: Opening,
) -> Result<Ready, Stop> {
    let Opening {
        source,
        database,
        answer,
        may_rename,
    } = opening;
    let known = objects
        .get(source.id)
        .filter(|o| o.phase != ObjectPhase::Creating);
    if known.is_none() {
        // Asked again, for what was dropped in the meantime would bring back what was dropped with it, its database.
        let read = ctx.catalog().read_collection(source.id).await;
        let there = read
            .map_err(|e| Stop::Target(Obstacle::Failed(e.problem())))?
            .is_some_and(|c| c.state != ObjectState::Dropping);
        if !there {
            return Err(Stop::Target(Obstacle::Gone));
        }
    }
    let channels: BTreeSet<&PChannel> = match &known {
        Some(_) => answer.reset.keys().collect(),
        None => source.shards.iter().map(|s| &s.pchannel).collect(),
    };
    let mut records = Vec::new();
    let mut lost = Vec::new();
    let mut given = false;
    let wanted = ctx.wanted();
    let initial = match known {
        Some(_) => Initial::Incremental,
        None if answer.snapshot => Initial::Snapshot,
        None => wanted.initial_of(&database, &source),
    };
    let mut copied = initial == Initial::Snapshot;
    if !copied {
        for channel in &channels {
            let place = place(&ctx, &source, &database, &answer, channel);
            given |= matches!(place, Reset::At(_));
            match begin_at(&ctx, &source, &database, channel, place).await {
                Ok(progress) => records.push(((*channel).clone(), progress)),
                Err(error @ SourceError::PositionLost { .. }) => lost.push(error),
                Err(error) => return Err(Stop::Unread(error)),
            }
        }
        copied = !lost.is_empty() && initial == Initial::Auto && !given;
        if !lost.is_empty() && !copied {
            return Err(Stop::Lost(lost));
        }
    }
    if copied {
        if ctx.parts.rows.is_none() {
            return Err(Stop::Target(Obstacle::Failed(unreadable())));
        }
        // On all channels: what is copied is as of one moment.
        records = begin_copied(&ctx, &channels).await?;
    }
    let spec = if given {
        // Who says where to go on says what is there.
        OnConflict::Adopt
    } else {
        ctx.wanted().on_conflict
    };
    let Opened {
        route,
        adopted,
        fresh,
    } = objects
        .open(
            &source,
            &database,
            answer.on_conflict.unwrap_or(spec),
            may_rename,
        )
        .await
        .map_err(Stop::Target)?;
    let sent = answer.sent.max(adopted.unwrap_or_default());
    for (_, progress) in &mut records {
        progress.sent = progress.sent.max(sent);
    }
    let snapshot = copied.then(|| Snapshot {
        at: records
            .iter()
            .map(|(_, p)| p.applied)
            .max()
            .unwrap_or_default(),
        // Over what is there already.
        again: adopted.is_some(),
        adopted: adopted.is_some(),
        release: answer.release,
        ..Snapshot::default()
    });
    Ok(Ready {
        route,
        fresh,
        records,
        snapshot,
    })
}

fn place(
    ctx: &TaskContext,
    source: &Collection,
    database: &str,
    answer: &Answer,
    channel: &PChannel,
) -> Reset {
    let wanted = ctx.wanted();
    let given = |id: &CollectionId| wanted.positions.get(id)?.get(channel).copied();
    if let Some(reset) = answer.reset.get(channel) {
        *reset
    } else if let Some(given) = given(&source.id) {
        Reset::At(given)
    } else {
        let start = wanted.start_of(database, &source.name, source.create_ts);
        Reset::Start(start)
    }
}

/// Where a collection begins on a channel, checked against what the queue holds.
async fn begin_at(
    ctx: &TaskContext,
    source: &Collection,
    database: &str,
    channel: &PChannel,
    place: Reset,
) -> Result<Progress, SourceError> {
    let log = &ctx.parts.source;
    let at = |position, applied| Progress {
        position,
        after: false,
        applied,
        sent: applied,
    };
    let progress = match place {
        Reset::At(given) => at(given.position, given.applied),
        Reset::Start(StartPoint::Earliest) => {
            let Some(bounds) = log.bounds(channel).await? else {
                return Err(silent(channel));
            };
            at(bounds.first, Tso::ZERO)
        }
        Reset::Start(StartPoint::Now) => return begin_now(ctx, channel).await,
        Reset::Start(StartPoint::Created) => {
            let configuration = |cause: String| SourceError::Configuration {
                address: channel.to_string(),
                cause,
                hint: "check that sourceConfig names the queue of this source".to_owned(),
            };
            let bytes = source.start_positions.get(channel).ok_or_else(|| {
                configuration(format!("{database}.{} has no start position", source.name))
            })?;
            let position = Position::from_bytes(log.kind(), bytes)
                .map_err(|e| configuration(e.to_string()))?;
            at(position, Tso::ZERO)
        }
    };
    log.open(channel, Start::At(progress.position)).await?;
    Ok(progress)
}

/// Behind the last message the queue holds now, at a tick that everything before has passed.
///
/// A tick is up to one interval older than its place in the queue, so messages before that place can be newer than the
/// tick behind them. The second tick from here is not older than this moment: what is up to it is left out, wherever it
/// stands, and an upsert's halves, which share a timestamp, are left out or carried together.
///
/// A channel whose ticks stand still, because the source has not written there what it has given a time, is not seen as
/// one: of an upsert in the middle of that one half may be carried. Who reads rows beside must not: [`begin_copied`].
async fn begin_now(ctx: &TaskContext, channel: &PChannel) -> Result<Progress, SourceError> {
    let (last, mut log) = behind_the_last(ctx, channel).await?;
    ticked(ctx, channel, (last, log.as_mut()), Tso::ZERO, TICKS_WITHIN).await
}

/// Where the messages of a collection begin whose rows are copied: behind the last ones that the queue holds now, at ticks
/// above all that the source had given out by then. So all that stands before is left out, and of each request all
/// or nothing is read, also where ticks stand still: what is left out is in the rows, which are read as of these ticks.
async fn begin_copied(
    ctx: &TaskContext,
    channels: &BTreeSet<&PChannel>,
) -> Result<Vec<(PChannel, Progress)>, Stop> {
    let mut logs = Vec::new();
    for channel in channels {
        let log = behind_the_last(ctx, channel).await.map_err(Stop::Unread)?;
        logs.push((*channel, log));
    }
    let bound = ctx.catalog().tso_bound().await;
    let bound = bound.map_err(|e| Stop::Target(Obstacle::Failed(e.problem())))?;
    let mut records = Vec::new();
    for (channel, (last, mut log)) in logs {
        let begin = ticked(ctx, channel, (last, log.as_mut()), bound, BOUND_WITHIN).await;
        records.push((channel.clone(), begin.map_err(Stop::Unread)?));
    }
    Ok(records)
}

async fn behind_the_last(
    ctx: &TaskContext,
    channel: &PChannel,
) -> Result<(Position, Box<dyn LogReader>), SourceError> {
    let source = &ctx.parts.source;
    let Some(bounds) = source.bounds(channel).await? else {
        return Err(silent(channel));
    };
    let log = source.open(channel, Start::After(bounds.last)).await?;
    Ok((bounds.last, log))
}

/// Reads on to the second tick, or to the first behind it that is at or above `bound`.
async fn ticked(
    ctx: &TaskContext,
    channel: &PChannel,
    (last, log): (Position, &mut dyn LogReader),
    bound: Tso,
    within: Duration,
) -> Result<Progress, SourceError> {
    let deadline = Instant::now() + within;
    let (mut ticks, mut newest) = (0, Tso::ZERO);
    loop {
        let batch = tokio::time::timeout_at(deadline, log.next(ctx.reserve())).await;
        let batch = batch.map_err(|_| match ticks {
            0 => silent(channel),
            _ => behind(channel),
        });
        for message in batch?? {
            match decode(&message.payload) {
                Ok(Event::Tick(tick)) if tick > newest => (ticks, newest) = (ticks + 1, tick),
                _ => continue,
            }
            if ticks >= 2 && newest >= bound {
                return Ok(Progress {
                    position: last,
                    after: true,
                    applied: newest,
                    sent: newest,
                });
            }
        }
    }
}

fn behind(channel: &PChannel) -> SourceError {
    SourceError::Unreachable {
        address: channel.to_string(),
        cause:
            "the channel's ticks stand behind what the source has given out; does it write there?"
                .to_owned(),
    }
}

fn silent(channel: &PChannel) -> SourceError {
    SourceError::Unreachable {
        address: channel.to_string(),
        cause: "the channel has no ticks at the moment; is the source up?".to_owned(),
    }
}
