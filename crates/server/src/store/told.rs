//! The store as the tasks at work have it: what they keep of a message that cannot be carried is in the history, too.

use std::collections::BTreeMap;

use async_trait::async_trait;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::quarantine::{Record, State};
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;

use super::{Event, SharedTaskStore, TaskWrite};
use crate::tasks::unix_ms;

/// The kind of such an event.
pub const QUARANTINED: &str = "quarantined";

pub struct Told(pub SharedTaskStore);

#[async_trait]
impl ProgressStore for Told {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        self.0.load(task).await
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        self.0.floors(target).await
    }

    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        self.0.message(task, message).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let found: Vec<TaskWrite> = changes.iter().filter_map(event).collect();
        self.0.commit(changes).await?;
        if found.is_empty() {
            return Ok(());
        }
        // It is kept, whatever becomes of the line about it.
        if let Err(error) = self.0.write_tasks(found).await {
            tracing::warn!(%error, "a message that cannot be carried is not in the history");
        }
        Ok(())
    }
}

fn event(change: &Change) -> Option<TaskWrite> {
    let Change::PutQuarantined { task, key, record } = change else {
        return None;
    };
    if record.state != State::Waiting {
        return None;
    }
    Some(TaskWrite::Event {
        task: task.clone(),
        event: Event {
            at: unix_ms(),
            kind: QUARANTINED.to_owned(),
            text: text(key, record),
        },
    })
}

fn text(key: &str, record: &Record) -> String {
    let Record {
        database,
        name,
        position,
        channel,
        problem,
        ..
    } = record;
    format!(
        "{database}.{name} waits at {key}, message {position} of {channel}: {}",
        problem.message
    )
}
