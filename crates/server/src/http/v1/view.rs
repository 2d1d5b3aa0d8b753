//! From the tasks to what `/api/v1` answers.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cdc_core::decode::header::Header;
use cdc_core::error::Problem;
use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::quarantine::{Kept, Record, State};
use cdc_core::select::{self, Rule};
use cdc_core::snapshot::Initial;
use cdc_core::source::reach::Held;
use cdc_core::store::TaskProgress;
use cdc_core::task::{
    CollectionStatus, Mode, OnConflict, Pattern, Selection, StartPoint, TaskSpec, TaskStatus,
};
use cdc_core::tso::Tso;
use serde_json::json;

use super::body;
use super::shape::{
    Check, Collection, Counters, Event, Headroom, MessageHeader, Position, Progress,
    QuarantineState, Quarantined, QueueReach, Report, Ruled, Selected, Step, Target, Task,
    TaskState, Trouble, Verdict,
};
use crate::doctor;
use crate::http::show;
use crate::request::encode_position;
use crate::states;
use crate::store::{Desired, Logged, Unreadable};
use crate::tasks;

pub(super) fn task(task: &tasks::Task, progress: Option<Progress>) -> Task {
    let spec = &task.spec;
    let (state, reason, paused) = match &task.desired {
        Desired::Running => (TaskState::Running, None, None),
        Desired::Paused { by, since, reason } => {
            (TaskState::Paused, Some(reason), Some((by, since)))
        }
        Desired::Promoting { .. } => (TaskState::Promoting, None, None),
        Desired::Promoted { reason, .. } => (TaskState::Promoted, Some(reason), None),
    };
    Task {
        id: spec.id.to_string(),
        state,
        reason: reason.cloned(),
        paused_by: paused.map(|(by, _)| by.clone()),
        paused_at: paused.map(|(_, since)| *since),
        target: Some(Target {
            uri: spec.target.uri.clone(),
            connect_timeout: spec.target.connect_timeout.as_secs(),
        }),
        collections: selected(spec),
        mapping: spec
            .mapping
            .0
            .iter()
            .map(|rule| body::NewMapping {
                from: rule.from().to_string(),
                to: rule.to().to_owned(),
            })
            .collect(),
        skip_operations: spec.skip.iter().map(|o| (*o).into()).collect(),
        start: Some(start(spec.start)),
        initial: Some(match spec.snapshot.initial {
            Initial::Incremental => body::Initial::Incremental,
            Initial::Snapshot => body::Initial::Snapshot,
            Initial::Auto => body::Initial::Auto,
        }),
        on_conflict: Some(match spec.on_conflict {
            OnConflict::Ask => body::OnConflict::Ask,
            OnConflict::Adopt => body::OnConflict::Adopt,
            OnConflict::Recreate => body::OnConflict::Recreate,
        }),
        mode: Some(match spec.target.mode {
            Mode::Replicate => body::Mode::Replicate,
            Mode::Plain => body::Mode::Plain,
        }),
        created_at: Some(task.created),
        updated_at: Some(task.updated),
        progress,
    }
}

pub(super) fn unreadable(task: &Unreadable) -> Task {
    Task {
        id: task.id.to_string(),
        state: TaskState::Unreadable,
        reason: Some(task.cause.clone()),
        paused_by: None,
        paused_at: None,
        target: None,
        collections: Vec::new(),
        mapping: Vec::new(),
        skip_operations: Vec::new(),
        start: None,
        initial: None,
        on_conflict: None,
        mode: None,
        created_at: None,
        updated_at: None,
        progress: None,
    }
}

fn start(start: StartPoint) -> body::Start {
    match start {
        StartPoint::Created => body::Start::Created,
        StartPoint::Earliest => body::Start::Earliest,
        StartPoint::Now => body::Start::Now,
    }
}

fn selected(spec: &TaskSpec) -> Vec<Step> {
    let one = |pattern: &Pattern| {
        let name = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
        let (database, name) = (name(&pattern.database), name(&pattern.name));
        let own = spec.starts.get(&(database.clone(), name.clone()));
        Step::Named(Selected {
            start: own.map(|s| start(*s)),
            database,
            name,
        })
    };
    let texts =
        |patterns: &[select::Pattern]| Some(patterns.iter().map(|p| p.to_string()).collect());
    let rule = |rule: &Rule| {
        Step::Rule(match rule {
            Rule::Include(patterns) => Ruled {
                include: texts(patterns),
                exclude: None,
            },
            Rule::Exclude(patterns) => Ruled {
                include: None,
                exclude: texts(patterns),
            },
        })
    };
    match &spec.selection {
        Selection::All => vec![one(&Pattern {
            database: None,
            name: None,
        })],
        Selection::Collections(list) => list.iter().map(one).collect(),
        Selection::Rules(rules) => rules.0.iter().map(rule).collect(),
    }
}

pub(super) fn progress(
    status: Option<&TaskStatus>,
    stored: &TaskProgress,
    collections: &[Collection],
    held: &BTreeMap<PChannel, Held>,
) -> Progress {
    let mut by_state: BTreeMap<&'static str, u64> = BTreeMap::new();
    for collection in collections {
        *by_state.entry(collection.state).or_default() += 1;
    }
    Progress {
        lag_seconds: status.map_or_else(|| show::stored_lag(stored), |s| show::lag(s, stored)),
        durable_lag_seconds: status.and_then(|s| s.durable_lag_seconds),
        checkpoint_age_seconds: status.and_then(|s| s.checkpoint_age_seconds),
        queue: queue(stored, held),
        collections: by_state,
        problems: status
            .iter()
            .flat_map(|s| &s.problems)
            .map(|p| trouble(p, None))
            .collect(),
        counters: status.map(|s| Counters {
            messages_in: s.counters.messages_in,
            bytes_in: s.counters.bytes_in,
            rows_in: s.counters.rows_in,
            messages_out: s.counters.messages_out,
            rows_out: s.counters.rows_out,
            bytes_out: s.counters.bytes_out,
            in_flight_bytes: s.counters.in_flight_bytes,
        }),
        errors: status.map(|s| s.errors.clone()).unwrap_or_default(),
    }
}

fn queue(stored: &TaskProgress, held: &BTreeMap<PChannel, Held>) -> Vec<QueueReach> {
    let now = Tso::from_millis(tasks::unix_ms());
    let needs = stored.needs().into_iter();
    let known = needs.filter_map(|(channel, need)| Some((held.get(&channel)?, channel, need)));
    known
        .map(|(held, channel, need)| {
            let headroom = |ts| {
                let room = held.headroom(ts, now);
                Headroom {
                    kept_seconds: room.kept,
                    left_seconds: room.left,
                }
            };
            QueueReach {
                channel: channel.to_string(),
                first_at: held.first.map(Tso::millis),
                retention_seconds: held.retention.map(|r| r.as_secs_f64()),
                applied: headroom(need.applied),
                durable: need.durable.map(headroom),
            }
        })
        .collect()
}

fn trouble(problem: &Problem, at: Option<SystemTime>) -> Trouble {
    Trouble {
        class: problem.class.to_string(),
        message: problem.message.clone(),
        hint: problem.hint.clone(),
        at: at.map(|at| {
            at.duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as u64)
        }),
    }
}

/// Every collection of a task, ordered by id: those it carries, and those of which only something is stored.
pub(super) fn collections(
    task: &tasks::Task,
    status: Option<&TaskStatus>,
    stored: &TaskProgress,
) -> Vec<Collection> {
    let shown = status.map_or(&[][..], |s| &s.collections);
    let mut all: BTreeMap<CollectionId, Collection> = shown
        .iter()
        .map(|c| (c.source_id, collection(c, stored)))
        .collect();
    let runs = task.desired == Desired::Running;
    for id in show::stored_ids(stored) {
        if all.contains_key(&id) {
            continue;
        }
        let Some(found) = show::stored_collection(id, stored, runs) else {
            continue;
        };
        let text = |key: &str| found[key].as_str().map(str::to_owned);
        let one = Collection {
            id: id.to_string(),
            database: text("db"),
            name: text("name"),
            target: text("target"),
            note: None,
            state: show::stored_state(id, stored, runs),
            detail: found["detail"].clone(),
            answers: None,
            rows: None,
            lag_seconds: None,
            last_error: None,
            positions: detached(id, stored),
        };
        all.insert(id, one);
    }
    all.into_values().collect()
}

fn collection(c: &CollectionStatus, stored: &TaskProgress) -> Collection {
    let detail = show::detail(&c.state);
    Collection {
        id: c.source_id.to_string(),
        database: Some(c.database.clone()),
        name: Some(c.name.clone()),
        target: c.target.as_ref().map(ToString::to_string),
        note: c.note.clone(),
        state: states::name(&c.state),
        detail: if detail.is_object() {
            detail
        } else {
            json!({})
        },
        answers: states::answers(&c.state),
        rows: Some(c.rows),
        lag_seconds: c.lag_seconds,
        last_error: c
            .last_error
            .as_ref()
            .map(|e| trouble(&e.problem, Some(e.at))),
        positions: if c.positions.is_empty() {
            detached(c.source_id, stored)
        } else {
            c.positions
                .iter()
                .map(|(channel, p)| Position {
                    durable_at: p.durable.map(Tso::millis),
                    ..position(Some(c.source_id), channel, &p.position, p.applied)
                })
                .collect()
        },
    }
}

fn detached(id: CollectionId, stored: &TaskProgress) -> Vec<Position> {
    let own = stored.detached.iter().filter(|((_, of), _)| *of == id);
    own.map(|((channel, _), p)| position(Some(id), channel, &p.position, p.applied))
        .collect()
}

/// The channels as stored, then the streams of single collections.
pub(super) fn positions(collections: Vec<Collection>, stored: &TaskProgress) -> Vec<Position> {
    let channels = stored.channels.iter();
    let shared = channels.map(|(channel, p)| position(None, channel, &p.position, p.applied));
    let own = collections.into_iter().flat_map(|c| c.positions);
    shared.chain(own).collect()
}

fn position(
    collection: Option<CollectionId>,
    channel: &PChannel,
    position: &cdc_core::position::Position,
    applied: Tso,
) -> Position {
    Position {
        collection_id: collection.map(|id| id.to_string()),
        channel: channel.to_string(),
        position: encode_position(channel, position, applied),
        applied: applied.to_string(),
        applied_at: applied.millis(),
        durable_at: None,
    }
}

pub(super) fn quarantined(record: &Record) -> Quarantined {
    let (state, by, at) = match &record.state {
        State::Waiting => (QuarantineState::Waiting, None, None),
        State::Retried { by, at } => (QuarantineState::Retried, Some(by), Some(*at)),
        State::Dropped { by, at } => (QuarantineState::Dropped, Some(by), Some(*at)),
        State::Carried { at } => (QuarantineState::Carried, None, Some(*at)),
        State::Gone { at } => (QuarantineState::Gone, None, Some(*at)),
    };
    Quarantined {
        key: record.key(),
        state,
        by: by.cloned(),
        at,
        collection_id: record.collection.to_string(),
        database: record.database.clone(),
        name: record.name.clone(),
        channel: record.channel.to_string(),
        position: record.position.to_string(),
        kind: record.kind.clone(),
        size: record.size,
        error: trouble(&record.problem, None),
        since: record.since,
        not_kept: match &record.kept {
            Kept::Whole => None,
            Kept::Not(why) => Some(why.clone()),
        },
    }
}

pub(super) fn header(head: Header) -> MessageHeader {
    let id = |n: Option<i64>| n.map(|n| n.to_string());
    MessageHeader {
        msg_type: head.msg_type,
        msg_id: id(head.msg_id),
        timestamp: head.timestamp.map(|n| n.to_string()),
        source_id: id(head.source_id),
        database: head.database,
        collection: head.collection,
        collection_id: id(head.collection_id),
        partition: head.partition,
        partition_id: id(head.partition_id),
        shard: head.shard,
        broken: head.broken,
    }
}

pub(super) fn event(logged: Logged) -> Event {
    Event {
        id: logged.seq,
        task_id: logged.task.to_string(),
        at: logged.event.at,
        kind: logged.event.kind,
        text: logged.event.text,
    }
}

pub(super) fn report(report: doctor::Report) -> Report {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let checks = report.checks.into_iter().map(|found| Check {
        check: found.check,
        subject: some(found.subject),
        verdict: match found.verdict {
            doctor::Verdict::Ok => Verdict::Ok,
            doctor::Verdict::Warning => Verdict::Warning,
            doctor::Verdict::Problem => Verdict::Problem,
            doctor::Verdict::Skipped => Verdict::Skipped,
        },
        text: found.text,
        hint: some(found.hint),
    });
    Report {
        ok: report.ok,
        checks: checks.collect(),
    }
}
