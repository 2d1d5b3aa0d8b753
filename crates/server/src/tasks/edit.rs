//! A change of what a task is asked to do.

use cdc_core::error::{ErrorClass, Problem};

use super::{STOP_DEADLINE, Task, TaskError, Tasks, encode, event, making, promote, unix_ms};
use crate::request::Edited;
use crate::store::{Desired, TaskWrite};

impl Tasks {
    /// Gives a task another login, other certificates or more collections. One that runs is stopped, drained as by a
    /// pause, stored and started again: nothing is lost or doubled by it. `by`: who wants it.
    pub async fn edit(&self, id: &str, edited: Edited, by: &str) -> Result<(), TaskError> {
        let inner = &self.inner;
        let before = self.unchanged(id, &edited)?;
        if edited.changed.is_empty() {
            return Ok(());
        }
        self.check_places(&before, &edited).await?;
        making::check_others(&inner.tasks.read(), &edited.spec)?;
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
        making::check_others(&inner.tasks.read(), &edited.spec)?;
        let at = unix_ms();
        let after = Task {
            spec: edited.spec,
            given: edited.given,
            updated: at,
            ..before.clone()
        };
        let id = &after.spec.id;
        let stored = encode(&after)?;
        inner.replication.stop(id, STOP_DEADLINE).await;
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
        let started = match now.desired {
            Desired::Running => inner
                .replication
                .start(now.spec)
                .map_err(TaskError::Refused),
            _ => Ok(()),
        };
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
