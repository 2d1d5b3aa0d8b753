//! What a task says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::TaskContext;
use super::objects::Route;
use super::reader::{Reader, Scope};
use crate::catalog::{CatalogError, CatalogHealth, Collection};
use crate::error::Problem;
use crate::ids::{CollectionId, PChannel};
use crate::store::Progress;
use crate::task::{
    ChannelPosition, CollectionState, CollectionStatus, Counters, LastError, TaskStatus,
};
use crate::tso::Tso;

struct Line {
    database: String,
    name: String,
    state: CollectionState,
    route: Option<Arc<Route>>,
    /// Rows of earlier streams.
    rows: u64,
    /// Where it goes on, on the channels on which nobody reads it now.
    places: Vec<(PChannel, Progress)>,
    /// On the source.
    created: Tso,
    last_error: Option<LastError>,
}

/// Kept by the conductor, read by whoever asks.
#[derive(Default)]
pub(crate) struct Board {
    ctx: Option<Arc<TaskContext>>,
    lines: BTreeMap<CollectionId, Line>,
    channels: BTreeMap<(PChannel, Option<CollectionId>), (Progress, Option<Problem>)>,
    problem: Option<Problem>,
    /// Of the source's metadata, while they last.
    source: Vec<Problem>,
    errors: BTreeMap<String, u64>,
    checkpoint: Option<Instant>,
    /// What keeps the durable checkpoint from moving, as of the last round.
    durable: Vec<Problem>,
}

/// Seconds of source time between now and `applied`.
fn lag(applied: Tso) -> f64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    now.saturating_sub(applied.millis()) as f64 / 1000.0
}

impl Board {
    pub(crate) fn attach(&mut self, ctx: Arc<TaskContext>) {
        self.ctx = Some(ctx);
    }

    pub(crate) fn task_problem(&mut self, problem: Option<Problem>) {
        if let Some(problem) = &problem
            && self.problem.as_ref() != Some(problem)
        {
            *self.errors.entry(problem.class.to_string()).or_default() += 1;
            tracing::warn!(class = %problem.class, "{problem}");
        }
        self.problem = problem;
    }

    pub(crate) fn durable(&mut self, problems: Vec<Problem>) {
        for problem in &problems {
            if !self.durable.contains(problem) {
                *self.errors.entry(problem.class.to_string()).or_default() += 1;
                tracing::warn!(class = %problem.class, "{problem}");
            }
        }
        self.durable = problems;
    }

    pub(crate) fn checkpoint_moved(&mut self) {
        self.checkpoint = Some(Instant::now());
    }

    /// What the source's metadata says of itself: not reachable, or objects that cannot be read.
    pub(crate) fn source(&mut self, health: &CatalogHealth) {
        let mut problems: Vec<Problem> = health.error.iter().map(|e| e.problem()).collect();
        problems.extend(health.undecodable.iter().map(|(key, cause)| {
            CatalogError::Undecodable {
                key: key.clone(),
                cause: cause.clone(),
            }
            .problem()
        }));
        self.source = problems;
    }

    /// A collection that is gone on the source and on the target.
    pub(crate) fn remove(&mut self, id: CollectionId) {
        self.lines.remove(&id);
    }

    /// Where a collection goes on, on the channels on which nobody reads it now.
    pub(crate) fn places(&mut self, id: CollectionId, places: Vec<(PChannel, Progress)>) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.places = places;
        }
    }

    /// `unequal`: what keeps its indexes or load state from being as on the source.
    pub(crate) fn collection(
        &mut self,
        id: CollectionId,
        database: &str,
        source: &Collection,
        route: Option<&Arc<Route>>,
        unequal: Option<&Problem>,
    ) {
        let name = source.name.as_str();
        let line = self.lines.entry(id).or_insert_with(|| Line {
            database: database.to_owned(),
            name: name.to_owned(),
            state: CollectionState::Waiting { why: String::new() },
            route: None,
            rows: 0,
            places: Vec::new(),
            created: source.create_ts,
            last_error: None,
        });
        if line.name != name {
            line.name = name.to_owned();
        }
        if let Some(problem) = unequal
            && line
                .last_error
                .as_ref()
                .is_none_or(|e| e.problem != *problem)
        {
            line.last_error = Some(LastError {
                at: SystemTime::now(),
                problem: problem.clone(),
            });
        }
        let same = match (&line.route, route) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if !same {
            line.rows += line
                .route
                .take()
                .map_or(0, |r| r.stream.rows.load(Ordering::Relaxed));
            line.route = route.cloned();
        }
    }

    pub(crate) fn set(&mut self, id: CollectionId, state: CollectionState) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.state = state;
        }
    }

    pub(crate) fn streaming(&mut self, id: CollectionId, raised: bool) {
        self.set(
            id,
            CollectionState::Streaming {
                lag_seconds: 0.0,
                raised,
            },
        );
    }

    pub(crate) fn error(&mut self, id: CollectionId, problem: Problem) {
        *self.errors.entry(problem.class.to_string()).or_default() += 1;
        if let Some(line) = self.lines.get_mut(&id) {
            if line
                .last_error
                .as_ref()
                .is_none_or(|last| last.problem != problem)
            {
                tracing::warn!(collection = %format!("{}.{}", line.database, line.name), class = %problem.class, "{problem}");
            }
            line.last_error = Some(LastError {
                at: SystemTime::now(),
                problem,
            });
        }
    }

    pub(crate) fn readers<'a>(&mut self, readers: impl Iterator<Item = &'a Arc<Reader>>) {
        self.channels.clear();
        for reader in readers {
            let one = match &reader.scope {
                Scope::Main => None,
                Scope::One(route) => Some(route.source),
            };
            let progress = reader.books.lock().progress();
            let problem = reader.problem.lock().clone();
            self.channels
                .insert((reader.channel.clone(), one), (progress, problem));
        }
    }

    pub(crate) fn status(&self) -> TaskStatus {
        let mut collections = Vec::new();
        let mut lag_seconds: Option<f64> = None;
        let mut durable_lag_seconds: Option<f64> = None;
        let durable = |channel: &PChannel, id| {
            let known = self.ctx.as_ref()?.durable.lock().of(channel, id)?;
            Some(known.applied)
        };
        for (id, line) in &self.lines {
            let mut positions = BTreeMap::new();
            let mut worst: Option<f64> = None;
            for shard in line.route.iter().flat_map(|r| &r.shards) {
                let key = |one| (shard.source.clone(), one);
                let Some((progress, _)) = self
                    .channels
                    .get(&key(Some(*id)))
                    .or_else(|| self.channels.get(&key(None)))
                else {
                    continue;
                };
                let position = ChannelPosition {
                    position: progress.position,
                    applied: progress.applied,
                    durable: durable(&shard.source, *id),
                };
                positions.insert(shard.source.clone(), position);
                // Of what is not read at all yet it is as old as the collection.
                let applied = progress.applied.max(line.created);
                worst = Some(worst.unwrap_or(0.0).max(lag(applied)));
            }
            // One that goes on later goes on from here.
            for (channel, progress) in &line.places {
                let position = ChannelPosition {
                    position: progress.position,
                    applied: progress.applied,
                    durable: durable(channel, *id),
                };
                positions.entry(channel.clone()).or_insert(position);
                let applied = progress.applied.max(line.created);
                worst = Some(worst.unwrap_or(0.0).max(lag(applied)));
            }
            if !matches!(line.state, CollectionState::Dropped) {
                let oldest = positions.values().filter_map(|p| p.durable).min();
                let unflushed = oldest.map(|ts| lag(ts.max(line.created)));
                durable_lag_seconds = durable_lag_seconds
                    .into_iter()
                    .chain(unflushed)
                    .reduce(f64::max);
                lag_seconds = lag_seconds.into_iter().chain(worst).reduce(f64::max);
            }
            // Ticks go on without it from that moment, before the conductor has taken it off.
            let route = line.route.as_ref();
            let failed = route.is_some_and(|r| r.stream.failed());
            let state = match &line.state {
                CollectionState::Streaming { raised, .. } => CollectionState::Streaming {
                    lag_seconds: worst.unwrap_or_default(),
                    raised: *raised || failed,
                },
                other => other.clone(),
            };
            collections.push(CollectionStatus {
                source_id: *id,
                database: line.database.clone(),
                name: line.name.clone(),
                state,
                rows: line.rows
                    + line
                        .route
                        .as_ref()
                        .map_or(0, |r| r.stream.rows.load(Ordering::Relaxed)),
                positions,
                last_error: line.last_error.clone(),
            });
        }
        let mut problems: Vec<Problem> = self
            .problem
            .iter()
            .chain(&self.source)
            .chain(&self.durable)
            .cloned()
            .collect();
        for (_, problem) in self.channels.values() {
            if let Some(problem) = problem
                && !problems.contains(problem)
            {
                problems.push(problem.clone());
            }
        }
        for line in self.lines.values() {
            for shard in line.route.iter().flat_map(|r| &r.shards) {
                if let Some(problem) = shard.lane.problem()
                    && !problems.contains(&problem)
                {
                    problems.push(problem);
                }
            }
        }
        TaskStatus {
            collections,
            problems,
            lag_seconds,
            durable_lag_seconds,
            checkpoint_age_seconds: self.checkpoint.map(|at| at.elapsed().as_secs_f64()),
            counters: self.ctx.as_ref().map_or(Counters::default(), |ctx| {
                ctx.meter.counters(ctx.budget.used())
            }),
            errors: self.errors.clone(),
        }
    }
}
