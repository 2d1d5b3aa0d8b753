//! Writes of the store whose answer was lost: they may have been carried out, or may be yet.
//!
//! Who was told of an error asks again, so a task must not be there twice, once of each asking; and a deleted task must
//! not be started again, for it would begin with nothing that it knew.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::backoff::Backoff;
use cdc_core::ids::TaskId;
use cdc_core::store::StoreError;

use super::{Inner, Task, deletion};
use crate::store::Desired;

/// A write that was not answered in time is carried out within this, or never.
const SETTLED: Duration = Duration::from_secs(10);

/// What was written.
pub(super) enum Doubt {
    Created(Box<Task>),
    Deleted,
}

/// What is known of a write that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// It was carried out.
    Done,
    /// It was refused.
    NotDone,
    /// It may be either; a later look will tell.
    Unknown,
}

impl Inner {
    /// After a write that failed with `error`: whether it was carried out all the same. What is not known is looked at
    /// again later, and put in order then.
    pub(super) async fn found(
        self: &Arc<Self>,
        id: &TaskId,
        doubt: Doubt,
        error: &StoreError,
    ) -> Found {
        if !matches!(error, StoreError::Unavailable(_)) {
            return Found::NotDone;
        }
        let there = self.is_stored(id).await;
        let done = match doubt {
            Doubt::Created(_) => Ok(true),
            Doubt::Deleted => Ok(false),
        };
        if there == done {
            return Found::Done;
        }
        self.doubts.lock().insert(id.clone(), doubt);
        let inner = Arc::downgrade(self);
        // Ends with the tasks, or when the store has told.
        tokio::spawn(async move {
            tokio::time::sleep(SETTLED).await;
            let mut backoff = Backoff::new();
            while let Some(inner) = inner.upgrade() {
                if inner.clear_doubts().await.is_ok() {
                    return;
                }
                drop(inner);
                backoff.wait().await;
            }
        });
        Found::Unknown
    }

    async fn is_stored(&self, id: &TaskId) -> Result<bool, StoreError> {
        let all = self.store.tasks().await?;
        Ok(all.iter().any(|row| match row {
            Ok(task) => task.id == *id,
            Err(task) => task.id == *id,
        }))
    }

    fn some_doubt(&self) -> Option<TaskId> {
        self.doubts.lock().keys().next().cloned()
    }

    /// Makes memory and what runs agree with the store about all that is in doubt.
    async fn clear_doubts(&self) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        while let Some(id) = self.some_doubt() {
            let there = self.is_stored(&id).await?;
            let doubt = self.doubts.lock().remove(&id);
            let Some(doubt) = doubt else { continue };
            match doubt {
                Doubt::Created(task) if there => {
                    // Whoever asked was told of an error, and may have asked for another one since.
                    if matches!(self.check_room(&task.spec), Ok(None))
                        && self.replication.start(task.spec.clone()).is_ok()
                    {
                        tracing::warn!(task = %id, "the store had kept a task whose creation it did not answer; it runs");
                        self.tasks.write().insert(id, *task);
                    } else if let Err(error) = self.write(deletion(&id)).await {
                        self.doubts.lock().insert(id, Doubt::Created(task));
                        return Err(error);
                    }
                }
                Doubt::Created(_) => {}
                Doubt::Deleted if there => {
                    let task = self.tasks.read().get(&id).cloned();
                    if let Some(task) = task
                        && task.desired == Desired::Running
                        && self.replication.status(&id).is_none()
                        && let Err(problem) = self.replication.start(task.spec)
                    {
                        tracing::error!(task = %id, %problem, "a task that was not deleted could not be started again");
                    }
                }
                Doubt::Deleted => {
                    self.tasks.write().remove(&id);
                    tracing::info!(task = %id, "task deleted");
                }
            }
        }
        Ok(())
    }
}
