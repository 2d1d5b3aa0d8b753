//! The store of a server that may become the owner, lose that, and become it again: what is read is read at any time,
//! what is written is written within the present term.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use parking_lot::RwLock;

use super::owner::Term;
use super::{
    Backend, Event, Logged, SharedTaskStore, StoredTask, TaskStore, TaskWrite, Unreadable,
};

/// Cheap to clone.
#[derive(Clone)]
pub struct Switch {
    backend: Arc<dyn Backend>,
    term: Arc<RwLock<Option<(Term, SharedTaskStore)>>>,
    closed: Arc<AtomicBool>,
}

impl Switch {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            term: Arc::default(),
            closed: Arc::default(),
        }
    }

    /// From now on writes belong to this term.
    pub fn begin(&self, term: &Term, store: SharedTaskStore) {
        *self.term.write() = Some((term.clone(), store));
    }

    /// From now on nothing is written.
    pub fn end(&self) {
        *self.term.write() = None;
    }

    /// Whether it was closed: this server takes no store any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn writing(&self) -> Result<SharedTaskStore, StoreError> {
        match self.term.read().as_ref() {
            Some((_, store)) => Ok(store.clone()),
            None => Err(StoreError::NotOwner(
                "another milvus-cdc owns it".to_owned(),
            )),
        }
    }
}

#[async_trait]
impl ProgressStore for Switch {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        self.backend.load(task).await
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        self.backend.floors(target).await
    }

    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        self.backend.message(task, message).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.writing()?.commit(changes).await
    }
}

#[async_trait]
impl TaskStore for Switch {
    async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
        self.writing()?.write_tasks(writes).await
    }

    async fn tasks(&self) -> Result<Vec<Result<StoredTask, Unreadable>>, StoreError> {
        self.backend.tasks().await
    }

    async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.backend.events(task, limit).await
    }

    async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        self.backend.history(of, after, limit).await
    }

    /// Ends the term as well, so that another server can take over at once.
    async fn close(&self, deadline: Duration) {
        self.closed.store(true, Ordering::SeqCst);
        let term = self.term.write().take();
        let end = async {
            let Some((term, _)) = term else {
                return;
            };
            if let Err(error) = self.backend.release(&term).await {
                tracing::warn!(%error, "the ownership of the store was not given back; it will run out");
            }
        };
        let _ = tokio::time::timeout(deadline, end).await;
        self.backend.close(deadline).await;
    }
}
