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
use crate::select::Name;
use crate::store::Progress;
use crate::task::{
    ChannelPosition, CollectionState, CollectionStatus, Counters, LastError, Mode, TaskStatus,
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
    places: BTreeMap<PChannel, Progress>,
    /// It has no place yet, and everything from here on is wanted.
    nothing_since: Option<Tso>,
    /// On the source.
    created: Tso,
    last_error: Option<LastError>,
    /// Its name there, if it is another one.
    target: Option<Name>,
    note: Option<String>,
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
    /// What keeps properties of databases from being as on the source.
    databases: Vec<Problem>,
}

/// Seconds of source time between `now` and `applied`.
fn lag(now: SystemTime, applied: Tso) -> f64 {
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    now.saturating_sub(applied.millis()) as f64 / 1000.0
}

/// The worst of what is known.
fn worst(lags: impl IntoIterator<Item = f64>) -> Option<f64> {
    lags.into_iter().reduce(f64::max)
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
        let before = std::mem::replace(&mut self.durable, problems.clone());
        self.count_new(&before, &problems);
    }

    pub(crate) fn databases(&mut self, problems: Vec<Problem>) {
        let before = std::mem::replace(&mut self.databases, problems.clone());
        self.count_new(&before, &problems);
    }

    fn count_new(&mut self, before: &[Problem], now: &[Problem]) {
        for problem in now.iter().filter(|problem| !before.contains(problem)) {
            *self.errors.entry(problem.class.to_string()).or_default() += 1;
            tracing::warn!(class = %problem.class, "{problem}");
        }
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

    /// Takes down all collections but those of which this is true.
    pub(crate) fn keep(&mut self, of: impl Fn(CollectionId) -> bool) {
        self.lines.retain(|id, _| of(*id));
    }

    /// A collection that is gone on the source and on the target.
    pub(crate) fn remove(&mut self, id: CollectionId) {
        self.lines.remove(&id);
    }

    /// Where a collection goes on, on the channels on which nobody reads it now. `nothing_since`: it has no place yet,
    /// and everything from this source timestamp on is wanted.
    pub(crate) fn places(
        &mut self,
        id: CollectionId,
        places: BTreeMap<PChannel, Progress>,
        nothing_since: Option<Tso>,
    ) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.places = places;
            line.nothing_since = nothing_since;
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
            places: BTreeMap::new(),
            nothing_since: None,
            created: source.create_ts,
            last_error: None,
            target: None,
            note: None,
        });
        // A name may be a new one, also in another database.
        if line.name != name {
            line.name = name.to_owned();
        }
        if line.database != database {
            line.database = database.to_owned();
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

    pub(crate) fn target(&mut self, id: CollectionId, target: Option<Name>) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.target = target;
        }
    }

    /// What has to be known of a collection beside its state.
    pub(crate) fn note(&mut self, id: CollectionId, note: &str) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.note = Some(note.to_owned());
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

    /// How far a collection is on each of its channels: by its own reader there, by where it goes on if nobody reads it,
    /// else by the channel's main reader.
    fn positions(&self, id: CollectionId, line: &Line) -> BTreeMap<PChannel, ChannelPosition> {
        let mut positions = BTreeMap::new();
        let shards = line.route.iter().flat_map(|r| &r.shards);
        let channels = shards.map(|s| &s.source).chain(line.places.keys());
        for channel in channels {
            let read = |one| self.channels.get(&(channel.clone(), one)).map(|(p, _)| p);
            let place = line.places.get(channel);
            let Some(progress) = read(Some(id)).or(place).or_else(|| read(None)) else {
                continue;
            };
            let durable = || {
                let ctx = self.ctx.as_ref()?;
                // What such a target has answered it keeps.
                if ctx.hub.mode == Mode::Plain {
                    return Some(progress.applied);
                }
                let point = ctx.durable.lock().of(channel, id)?;
                Some(point.applied)
            };
            let position = ChannelPosition {
                position: progress.position,
                applied: progress.applied,
                durable: durable(),
            };
            positions.insert(channel.clone(), position);
        }
        positions
    }

    /// `now`: what lags are measured against.
    pub(crate) fn status(&self, now: SystemTime) -> TaskStatus {
        let mut collections = Vec::new();
        let mut lags: Vec<f64> = Vec::new();
        let mut unflushed: Vec<f64> = Vec::new();
        for (id, line) in &self.lines {
            let positions = self.positions(*id, line);
            // Of what is not read at all yet it is as old as the collection.
            let from = |ts: Tso| lag(now, ts.max(line.created));
            let read = positions.values().map(|p| from(p.applied));
            // What the target has taken, and does not show before its next tick, nobody there can read.
            let shards = line.route.iter().flat_map(|r| &r.shards);
            let hidden = shards.filter_map(|s| s.lane.hidden()).map(from);
            let pending = line.nothing_since.map(|ts| lag(now, ts));
            let own = worst(read.chain(hidden).chain(pending));
            if !matches!(line.state, CollectionState::Dropped) {
                lags.extend(own);
                let durable = positions.values().filter_map(|p| p.durable).min();
                unflushed.extend(durable.map(from));
            }
            // Ticks go on without it from that moment, before the conductor has taken it off.
            let route = line.route.as_ref();
            let failed = route.is_some_and(|r| r.stream.failed());
            let state = match &line.state {
                CollectionState::Streaming { raised, .. } => CollectionState::Streaming {
                    // One that has nothing to read any more is through.
                    lag_seconds: own.unwrap_or_default(),
                    raised: *raised || failed,
                },
                other => other.clone(),
            };
            collections.push(CollectionStatus {
                source_id: *id,
                database: line.database.clone(),
                name: line.name.clone(),
                state,
                lag_seconds: own,
                rows: line.rows
                    + line
                        .route
                        .as_ref()
                        .map_or(0, |r| r.stream.rows.load(Ordering::Relaxed)),
                positions,
                last_error: line.last_error.clone(),
                target: line.target.clone(),
                note: line.note.clone(),
            });
        }
        let mut problems: Vec<Problem> = self
            .problem
            .iter()
            .chain(&self.source)
            .chain(&self.durable)
            .chain(&self.databases)
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
        let lag_seconds = worst(lags);
        TaskStatus {
            collections,
            problems,
            lag_seconds,
            // What is not applied is not flushed either.
            durable_lag_seconds: worst(unflushed)
                .map(|seconds| seconds.max(lag_seconds.unwrap_or_default())),
            checkpoint_age_seconds: self.checkpoint.map(|at| at.elapsed().as_secs_f64()),
            counters: self.ctx.as_ref().map_or(Counters::default(), |ctx| {
                ctx.meter.counters(ctx.budget.used())
            }),
            errors: self.errors.clone(),
        }
    }
}
