//! Writes of the store whose answer was lost: they may have been carried out, or may be yet.
//!
//! Who was told of an error asks again, so a task must not be there twice, once of each asking; and a deleted task must
//! not be started again, for it would begin with nothing that it knew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::backoff::Backoff;
use cdc_core::ids::TaskId;
use cdc_core::store::StoreError;

use super::stored::encode;
use super::{Inner, STOP_DEADLINE, Task, deletion};
use crate::store::Desired;
use tokio::time::Instant;

/// A write that was not answered in time is carried out within this, or never.
const SETTLED: Duration = Duration::from_secs(10);

/// What was written.
pub(super) enum Doubt {
    Created(Box<Task>),
    Deleted,
}

/// Since when.
pub(super) type Doubts = BTreeMap<TaskId, (Doubt, Instant)>;

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
        let done = match (&doubt, self.stored(id).await) {
            (Doubt::Created(task), Ok(Some(there))) => {
                encode(task).is_ok_and(|ours| ours.spec == there)
            }
            (Doubt::Deleted, Ok(None)) => true,
            _ => false,
        };
        if done {
            return Found::Done;
        }
        let since = Instant::now();
        self.doubts.lock().insert(id.clone(), (doubt, since));
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

    /// # Errors
    /// It is in doubt whether the task is there at all: whatever was done to it now could be done to nothing.
    pub(super) fn certain(&self, id: &TaskId) -> Result<(), StoreError> {
        match self.doubts.lock().contains_key(id) {
            false => Ok(()),
            true => Err(StoreError::Unavailable(format!(
                "it has not said yet whether task {id} is deleted; that is known within half a minute of its answering again"
            ))),
        }
    }

    /// What is stored as this task; empty if it cannot be read.
    async fn stored(&self, id: &TaskId) -> Result<Option<String>, StoreError> {
        let all = self.store.tasks().await?;
        Ok(all.into_iter().find_map(|row| match row {
            Ok(task) if task.id == *id => Some(task.spec),
            Err(task) if task.id == *id => Some(String::new()),
            _ => None,
        }))
    }

    /// One that is old enough to be settled.
    fn some_doubt(&self) -> Option<TaskId> {
        let doubts = self.doubts.lock();
        let old = |(_, since): &&(Doubt, Instant)| since.elapsed() >= SETTLED;
        doubts
            .iter()
            .find(|(_, doubt)| old(doubt))
            .map(|(id, _)| id.clone())
    }

    /// Makes memory and what runs agree with the store about all that is in doubt.
    async fn clear_doubts(&self) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        while let Some(id) = self.some_doubt() {
            let there = self.stored(&id).await?.is_some();
            let doubt = self.doubts.lock().remove(&id);
            let Some((doubt, since)) = doubt else {
                continue;
            };
            match doubt {
                // Asked for again under the same id, and answered.
                Doubt::Created(_) if self.tasks.read().contains_key(&id) => {}
                Doubt::Created(task) if there => {
                    // Whoever asked was told of an error, and may have asked for another one since.
                    if matches!(self.check_room(&task.spec, &[]), Ok(None))
                        && self.replication.start(task.spec.clone()).is_ok()
                    {
                        tracing::warn!(task = %id, "the store had kept a task whose creation it did not answer; it runs");
                        self.tasks.write().insert(id, *task);
                    } else if let Err(error) = self.write(deletion(&id)).await {
                        self.doubts.lock().insert(id, (Doubt::Created(task), since));
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
                    self.replication.stop(&id, STOP_DEADLINE).await;
                    self.tasks.write().remove(&id);
                    tracing::info!(task = %id, "task deleted");
                }
            }
        }
        Ok(())
    }
}
