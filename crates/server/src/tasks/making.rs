//! What a task is made of, whether there is room for it, and what is stored of all of them.

use std::collections::BTreeMap;

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::ids::TaskId;
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
        start: request.start,
        starts: request.starts,
        added: Default::default(),
        positions: request.positions,
        on_conflict: request.on_conflict,
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
    check_others(tasks, spec)?;
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

/// Whether no other task carries any of its collections to its target, and none is being promoted there.
pub(super) fn check_others(
    tasks: &BTreeMap<TaskId, Task>,
    spec: &TaskSpec,
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
    let same = |t: &&Task| {
        there(t)
            && !matches!(t.desired, Desired::Promoted { .. })
            && t.spec.selection.overlaps(&spec.selection)
    };
    if let Some(other) = tasks.values().find(same) {
        let message = format!(
            "task {} carries some of these collections to {} already",
            other.spec.id, spec.target.uri
        );
        return Err(conflict(
            message,
            "delete that task first, or choose other collections or another target",
        ));
    }
    Ok(())
}
