//! What a task is made of, whether there is room for it, and what is stored of all of them.

use std::collections::BTreeMap;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::TaskId;
use cdc_core::select::{Name, mapping, overlap};
use cdc_core::store::StoreError;
use cdc_core::task::{TargetSpec, TaskSpec};
use cdc_core::tso::Tso;

use super::{Task, TaskError, TaskLimits, decode, encode, event};
use crate::request::CreateTask;
use crate::store::{Desired, TaskStore, TaskWrite, Unreadable};

/// A new task that runs. `now`: unix milliseconds.
pub(crate) fn task(request: CreateTask, id: TaskId, now: u64, limits: &TaskLimits) -> Task {
    let spec = TaskSpec {
        id,
        target: TargetSpec {
            uri: request.uri,
            token: request.token,
            tls: request.tls,
            connect_timeout: request.connect_timeout,
            call_timeout: limits.call_timeout,
            mode: request.mode.unwrap_or_default(),
        },
        selection: request.selection,
        mapping: request.mapping,
        skip: request.skip,
        start: request.start,
        starts: request.starts,
        added: Default::default(),
        positions: request.positions,
        on_conflict: request.on_conflict,
        snapshot: request.snapshot,
        created: Tso::from_millis(now),
        memory_budget: limits.memory_budget,
        durable_every: limits.durable_every,
    };
    Task {
        spec,
        given: request.given,
        desired: Desired::Running,
        created: now,
        updated: now,
    }
}

/// What makes it. `text`: for its history.
pub(crate) fn creation(task: &Task, text: String) -> Result<Vec<TaskWrite>, StoreError> {
    Ok(vec![
        TaskWrite::Create(encode(task)?),
        event(&task.spec.id, "created", text),
    ])
}

/// What is stored of the tasks.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    pub(crate) unreadable: BTreeMap<TaskId, Unreadable>,
}

pub(crate) async fn read(store: &dyn TaskStore, limits: &TaskLimits) -> Result<Read, StoreError> {
    let mut read = Read::default();
    for row in store.tasks().await? {
        let task = row.and_then(|stored| {
            let id = stored.id.clone();
            decode(stored, limits).map_err(|cause| Unreadable { id, cause })
        });
        match task {
            Ok(task) => drop(read.tasks.insert(task.spec.id.clone(), task)),
            Err(task) => drop(read.unreadable.insert(task.id.clone(), task)),
        }
    }
    Ok(read)
}

/// Whether there is room for this task; the id of one that is the same already.
pub(crate) fn check_room(
    tasks: &BTreeMap<TaskId, Task>,
    unreadable: &BTreeMap<TaskId, Unreadable>,
    limits: &TaskLimits,
    spec: &TaskSpec,
    present: &[Name],
) -> Result<Option<TaskId>, TaskError> {
    if unreadable.contains_key(&spec.id) {
        let message = format!("task {} exists and cannot be read", spec.id);
        return Err(conflict(message, "delete it first, or leave out task_id"));
    }
    if let Some(there) = tasks.get(&spec.id) {
        let asked = TaskSpec {
            created: there.spec.created,
            ..spec.clone()
        };
        if there.spec == asked {
            return Ok(Some(spec.id.clone()));
        }
        let message = format!("task {} exists and asks for something else", spec.id);
        return Err(conflict(message, "delete it first, or leave out task_id"));
    }
    check_names(spec, present)?;
    check_others(tasks, spec, present)?;
    let count = tasks.len() + unreadable.len();
    if count >= limits.max_task_num {
        let message = format!("there are {count} tasks, which is maxTaskNum");
        return Err(conflict(
            message,
            "delete a task, or raise maxTaskNum and restart",
        ));
    }
    Ok(None)
}

fn conflict(message: String, hint: &str) -> TaskError {
    TaskError::Conflict(Problem::new(ErrorClass::Conflict, message, hint))
}

/// Whether the collections of the source that are there can have the names on the target that they are to have.
pub(super) fn check_names(spec: &TaskSpec, present: &[Name]) -> Result<(), TaskError> {
    let rules = spec.selection.rules();
    if let Some((a, b, to)) = overlap::clash(&rules, &spec.mapping, present) {
        let message = format!("{a} and {b} both would be {to} on the target");
        let hint = "give one of them another name with mapping, or exclude it";
        return Err(conflict(message, hint));
    }
    let carried = present
        .iter()
        .filter(|n| rules.contains(&n.database, &n.name));
    for from in carried {
        let to = spec.target_of(&from.database, &from.name);
        if let Err(why) = mapping::check(&to) {
            let message = format!("{from} would be {to} on the target: {why}");
            let hint = "give it another name with mapping, or exclude it";
            return Err(TaskError::Refused(Problem::new(
                ErrorClass::Configuration,
                message,
                hint,
            )));
        }
    }
    Ok(())
}

/// What both tasks could write on one target.
pub(super) fn in_common(a: &TaskSpec, b: &TaskSpec, present: &[Name]) -> Option<overlap::Overlap> {
    let (rules, others) = (a.selection.rules(), b.selection.rules());
    let writes = |rules, spec: &TaskSpec| (rules, spec.mapping.clone());
    let (a, b) = (writes(&rules, a), writes(&others, b));
    overlap::overlap(
        overlap::Writes {
            rules: a.0,
            mapping: &a.1,
        },
        overlap::Writes {
            rules: b.0,
            mapping: &b.1,
        },
        present,
    )
}

/// Whether no other task writes any of its collections on its target, and none is being promoted there. `present`: the
/// source's collections, where they are known.
pub(super) fn check_others(
    tasks: &BTreeMap<TaskId, Task>,
    spec: &TaskSpec,
    present: &[Name],
) -> Result<(), TaskError> {
    let there = |t: &&Task| t.spec.id != spec.id && t.spec.target.uri == spec.target.uri;
    let promoting = |t: &&Task| matches!(t.desired, Desired::Promoting { .. });
    if let Some(other) = tasks.values().filter(there).find(promoting) {
        let message = format!(
            "{} is being promoted (task {})",
            spec.target.uri, other.spec.id
        );
        return Err(conflict(
            message,
            "it is nobody's standby any more; choose another target",
        ));
    }
    // Of one that is promoted nothing but its history is left.
    let same = |t: &Task| {
        let counts = there(&t) && !matches!(t.desired, Desired::Promoted { .. });
        let common = counts
            .then(|| in_common(&t.spec, spec, present))
            .flatten()?;
        Some((t.spec.id.clone(), common))
    };
    if let Some((other, common)) = tasks.values().find_map(same) {
        let message = format!(
            "task {other} carries some of these collections to {} already: task {} would write {common} as well",
            spec.target.uri, spec.id
        );
        return Err(conflict(
            message,
            "delete that task first, or choose other collections, other names (mapping), or another target",
        ));
    }
    Ok(())
}
