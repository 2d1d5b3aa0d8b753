//! The tasks as the doctor looks at them.

use cdc_core::doctor::{Check, Patient};
use cdc_core::store::StoreError;
use cdc_core::task::TargetSpec;

use super::{Task, TaskLimits, Tasks, decode};
use crate::store::{Desired, TaskStore, Unreadable};

/// What is to be looked at, and what of the store cannot be read.
type Found = (Vec<Patient>, Vec<Check>);

impl Tasks {
    /// Every task but those that are promoted.
    pub async fn patients(&self) -> Result<Found, StoreError> {
        let unreadable = self.unreadable().iter().map(unreadable).collect();
        Ok((
            with_progress(self.inner.store.as_ref(), self.list()).await?,
            unreadable,
        ))
    }

    /// Looks at the source, at what these tasks need of it, at their targets and at some more.
    pub async fn examine(&self, tasks: Vec<Patient>, targets: Vec<TargetSpec>) -> Vec<Check> {
        self.inner.replication.examine(tasks, targets).await
    }
}

/// The tasks in a store that nobody has recovered.
pub async fn stored_patients(
    store: &dyn TaskStore,
    limits: &TaskLimits,
) -> Result<Found, StoreError> {
    let (mut tasks, mut checks) = (Vec::new(), Vec::new());
    for row in store.tasks().await? {
        let task = row.and_then(|stored| {
            let id = stored.id.clone();
            decode(stored, limits).map_err(|cause| Unreadable { id, cause })
        });
        match task {
            Ok(task) => tasks.push(task),
            Err(bad) => checks.push(unreadable(&bad)),
        }
    }
    Ok((with_progress(store, tasks).await?, checks))
}

async fn with_progress(
    store: &dyn TaskStore,
    tasks: Vec<Task>,
) -> Result<Vec<Patient>, StoreError> {
    let mut patients = Vec::new();
    for task in tasks {
        // The target of one that is promoted is nobody's standby.
        if !matches!(task.desired, Desired::Promoted { .. }) {
            let progress = store.load(&task.spec.id).await?;
            patients.push(Patient {
                spec: task.spec,
                progress,
            });
        }
    }
    Ok(patients)
}

fn unreadable(task: &Unreadable) -> Check {
    Check::problem(
        "store",
        format!("a stored task cannot be read: {}", task.cause),
        "delete the task and create it again, or go back to the version that wrote it",
    )
    .about(task.id.to_string())
}
