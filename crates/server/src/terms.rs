//! From waiting for the store to owning it, and back.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::store::StoreError;

use crate::engine_adapter::EngineReplication;
use crate::store::Backend;
use crate::store::owner::{self, Claim, Ended, Lease, Taken, Term};
use crate::store::seal::Sealed;
use crate::store::switch::Switch;
use crate::store::told::Told;
use crate::tasks::Tasks;

/// How often the store is asked whether it is free.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// How long the tasks get to end when another server has them already: nothing of theirs is sent or written any more.
const STEP_DOWN: Duration = Duration::from_millis(500);

/// What one server does with a store that others may share.
pub(crate) struct Terms {
    pub(crate) backend: Arc<Sealed>,
    pub(crate) switch: Switch,
    pub(crate) replication: Arc<EngineReplication>,
    pub(crate) tasks: Tasks,
    pub(crate) claim: Claim,
}

impl Terms {
    /// Waits for the store, runs its tasks for as long as it is ours, and waits again.
    ///
    /// # Errors
    /// What is stored cannot be read. Whatever goes away by itself is waited for.
    pub(crate) async fn run(&self) -> Result<(), StoreError> {
        loop {
            let term = self.wait().await;
            tracing::info!(owner = %term.name, epoch = term.epoch, "this server owns the store and runs its tasks");
            self.serve(&term).await?;
        }
    }

    async fn wait(&self) -> Term {
        let mut said = String::new();
        let mut say = |line: String| {
            if said != line {
                tracing::info!("{line}");
                said = line;
            }
        };
        loop {
            if self.switch.is_closed() {
                return std::future::pending().await;
            }
            match tokio::time::timeout(ASK_DEADLINE, self.backend.take(&self.claim)).await {
                Ok(Ok(Taken::Ours(term))) => return term,
                Ok(Ok(Taken::Theirs(name))) => {
                    say(format!("waiting: {name} owns the store and runs its tasks"));
                    // First the tasks: who asks is not told that there are none.
                    if let Err(error) = self.tasks.refresh().await {
                        tracing::debug!(%error, "the tasks shown may be old");
                    }
                    self.tasks.wait_for(&name);
                }
                Ok(Err(error)) => say(format!("waiting for the store: {error}")),
                Err(_) => say("waiting for the store: no answer".to_owned()),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn serve(&self, term: &Term) -> Result<(), StoreError> {
        let lease = Arc::new(Lease::new(term));
        let store = self.backend.of_term(term);
        self.switch.begin(term, store.clone());
        self.replication.begin(Arc::new(Told(store)), lease.clone());
        let backend: Arc<dyn Backend> = self.backend.clone();
        let ended = tokio::select! {
            ended = owner::keep(&backend, term, &lease) => Ok(ended),
            broken = self.recover(term) => broken.map(|()| Ended::Taken),
        };
        lease.end();
        if self.switch.is_closed() {
            // Given back by ourselves: the server is stopping.
            return std::future::pending().await;
        }
        self.switch.end();
        match &ended {
            Ok(Ended::Taken) => {
                tracing::error!(
                    "this server lost the ownership of the store: another one has taken over; its tasks end here"
                );
            }
            Ok(Ended::Expired(cause)) => {
                tracing::error!(%cause, "this server lost the ownership of the store: it could not be renewed in time; its tasks end here");
            }
            Err(error) => tracing::error!(%error, "the stored tasks cannot be recovered"),
        }
        self.tasks.wait_for("another milvus-cdc");
        self.replication.end(STEP_DOWN).await;
        ended.map(drop)
    }

    /// Returns only if that is of no use.
    async fn recover(&self, term: &Term) -> Result<(), StoreError> {
        loop {
            let recovered = async {
                let sealed = self.backend.seal_what_is_plain(term).await?;
                if sealed > 0 {
                    tracing::info!(
                        tasks = sealed,
                        "stored secrets that were not encrypted are encrypted now"
                    );
                }
                self.tasks.recover().await
            };
            match recovered.await {
                Ok(()) => {
                    tracing::info!(tasks = self.tasks.list().len(), "tasks recovered");
                    return std::future::pending().await;
                }
                Err(StoreError::NotOwner(_)) => return Ok(()),
                Err(error @ StoreError::Corrupt(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the stored tasks cannot be recovered at the moment");
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
