//! A change of what a task is asked to do.

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::store::ObjectPhase;

use super::{STOP_DEADLINE, Task, TaskError, Tasks, encode, event, making, promote, unix_ms};
use crate::request::Edited;
use crate::store::{Desired, TaskWrite};

impl Tasks {
    /// Gives a task another login, other certificates, other collections or names. One that runs goes on; only for another
    /// way to its target it is stopped, drained as by a pause, stored and started again. Nothing is lost or doubled by
    /// it. `by`: who wants it.
    pub async fn edit(&self, id: &str, edited: Edited, by: &str) -> Result<(), TaskError> {
        let inner = &self.inner;
        let before = self.unchanged(id, &edited)?;
        if edited.changed.is_empty() {
            return Ok(());
        }
        self.check_places(&before, &edited).await?;
        self.check_names(&before, &edited).await?;
        let present = inner.replication.collections().await.unwrap_or_default();
        making::check_names(&edited.spec, &present)?;
        making::check_others(&inner.tasks.read(), &edited.spec, &present)?;
        if edited.spec.target != before.spec.target {
            // The slow part, with nothing locked.
            inner
                .replication
                .check_target(&edited.spec.target)
                .await
                .map_err(TaskError::Refused)?;
        }

        let _changing = inner.changing.lock().await;
        let before = self.unchanged(id, &edited)?;
        making::check_others(&inner.tasks.read(), &edited.spec, &present)?;
        let at = unix_ms();
        let after = Task {
            spec: edited.spec,
            given: edited.given,
            updated: at,
            ..before.clone()
        };
        let id = &after.spec.id;
        let stored = encode(&after)?;
        // What else is edited a running task takes as it runs.
        let goes_on = after.spec.target == before.spec.target;
        if !goes_on {
            inner.replication.stop(id, STOP_DEADLINE).await;
        }
        let writes = vec![
            TaskWrite::SetSpec {
                task: id.clone(),
                spec: stored.spec,
            },
            TaskWrite::SetDesired {
                task: id.clone(),
                desired: after.desired.clone(),
                at,
            },
            event(id, "edited", format!("{by}: {}", edited.changed.join(", "))),
        ];
        let mut written = inner.write(writes).await;
        // One whose answer was lost may have been carried out.
        if written.is_err()
            && let Ok(read) = inner.read().await
            && read.tasks.get(id).is_some_and(|t| t.spec == after.spec)
        {
            written = Ok(());
        }
        let now = match written {
            Ok(()) => after,
            Err(_) => before,
        };
        inner.tasks.write().insert(now.spec.id.clone(), now.clone());
        let replication = &inner.replication;
        let started = match now.desired {
            Desired::Running if goes_on && replication.status(&now.spec.id).is_some() => {
                replication.change(now.spec)
            }
            Desired::Running => replication.start(now.spec),
            _ => Ok(()),
        };
        let started = started.map_err(TaskError::Refused);
        written?;
        tracing::info!(task = %edited.base.id, changed = %edited.changed.join(", "), "task edited");
        started
    }

    /// The task, if it still is the one that the change was made of.
    fn unchanged(&self, id: &str, edited: &Edited) -> Result<Task, TaskError> {
        let task = self.get(id)?;
        if let Some(refusal) = promote::refusal(&task) {
            return Err(refusal);
        }
        self.inner.certain(&task.spec.id)?;
        if task.spec != edited.base {
            return Err(conflict(
                format!("task {id} was changed by somebody else just now"),
                "look at it and try again",
            ));
        }
        Ok(task)
    }

    /// A collection that is carried keeps its name on the target.
    async fn check_names(&self, before: &Task, edited: &Edited) -> Result<(), TaskError> {
        let new = &edited.spec.mapping;
        if *new == before.spec.mapping {
            return Ok(());
        }
        let progress = self.progress(&before.spec.id).await?;
        let mut carried = progress.collections.values();
        let other = carried.find(|object| {
            let from = object.carried_name();
            let to = new.apply(&from.database, &from.name);
            object.phase != ObjectPhase::Dropped
                && !object.in_between
                && (to.database != object.database || to.name != object.name)
        });
        match other {
            Some(object) => Err(conflict(
                format!(
                    "mapping: {} is carried, or was, and is {}.{} on the target: its name there cannot be changed",
                    object.carried_name(),
                    object.database,
                    object.name
                ),
                "put a rule for this collection first that gives it the name it has; or make a new task",
            )),
            None => Ok(()),
        }
    }

    /// A place given for a collection that is carried already would mean nothing.
    async fn check_places(&self, before: &Task, edited: &Edited) -> Result<(), TaskError> {
        let new = &edited.spec.positions;
        if *new == before.spec.positions {
            return Ok(());
        }
        let progress = self.progress(&before.spec.id).await?;
        let met = new.iter().find(|(id, places)| {
            before.spec.positions.get(id) != Some(places) && progress.collections.contains_key(id)
        });
        match met {
            Some((id, _)) => Err(conflict(
                format!("collections: positions of {id}, which the task carries already"),
                "leave them out: they are for collections that are added",
            )),
            None => Ok(()),
        }
    }
}

fn conflict(message: String, hint: &str) -> TaskError {
    TaskError::Conflict(Problem::new(ErrorClass::Conflict, message, hint))
}
