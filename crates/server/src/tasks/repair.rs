//! Rows of a paused task's collections are copied to its target anew.

use cdc_core::error::{ErrorClass, Problem};
use cdc_core::repair::{Repair, Repaired};

use super::{TaskError, Tasks, event, promote};
use crate::store::Desired;

impl Tasks {
    /// Copies rows anew, or deletes them: [`cdc_core::repair`]. Only while a person's pause lasts, which nobody ends
    /// meanwhile. `by`: who wants it.
    ///
    /// # Errors
    /// The task is not paused, what is asked for does not fit, or the target does not take it.
    pub async fn repair(&self, id: &str, wanted: Repair, by: &str) -> Result<Repaired, TaskError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let task = self.get(id)?;
        if let Some(refusal) = promote::refusal(&task) {
            return Err(refusal);
        }
        let id = &task.spec.id;
        let paused = matches!(task.desired, Desired::Paused { .. });
        if !paused || inner.replication.status(id).is_some() {
            return Err(TaskError::Conflict(Problem::new(
                ErrorClass::Conflict,
                format!("task {id} runs, and a repair takes its place in no order then"),
                "pause it first, then read the rows, then repair; `milvus-cdc verify --repair` does all three",
            )));
        }
        let done = inner.replication.repair(&task.spec, &wanted).await;
        let done = done.map_err(|problem| match problem.class {
            ErrorClass::Conflict => TaskError::Conflict(problem),
            _ => TaskError::Refused(problem),
        })?;
        let text = format!(
            "{by}: {}.{}: {} row(s) copied anew, {} deleted on the target",
            done.database, done.name, done.replaced, done.deleted
        );
        // It is done, whatever becomes of the line about it.
        if let Err(error) = inner.write(vec![event(id, "repaired", text)]).await {
            tracing::warn!(task = %id, %error, "a repair is not in the history");
        }
        Ok(done)
    }
}
