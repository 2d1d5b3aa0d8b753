//! The store's handle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use etcd_client::{Compare, CompareOp, Error, PutOptions, Txn, TxnOp};
use tokio::sync::{mpsc, oneshot};

use super::keys::{Keys, name};
use super::link::{EtcdServer, EtcdStoreError, Link};
use super::plan::{EventRecord, TaskRecord};
use super::read;
use super::writer::{Job, Writer};
use crate::store::owner::{Claim, Taken, Term, boot_time};
use crate::store::{
    Backend, Event, Logged, SharedTaskStore, StoredTask, TaskStore, TaskWrite, Unreadable, Write,
};

/// Of the layout of the keys.
const VERSION: i64 = 1;
/// Jobs that may wait for the writer; whoever comes then waits with its job in hand.
const QUEUE: usize = 256;

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct EtcdStore {
    link: Arc<Link>,
    keys: Keys,
    jobs: mpsc::Sender<Job>,
    /// The owner's epoch that goes with every write; 0 writes nothing.
    epoch: i64,
}

impl EtcdStore {
    /// The handle reads; for writing take the ownership first.
    ///
    /// # Errors
    /// The etcd cannot be reached, refuses, or holds a store of a newer version.
    pub async fn connect(server: EtcdServer) -> Result<Self, EtcdStoreError> {
        let keys = Keys::new(&server.root_path);
        let link = Arc::new(Link::new(server));
        let version = keys.version();
        let found = link
            .first_call(|mut client| {
                let version = version.clone();
                async move { client.get(version, None).await }
            })
            .await?;
        let found = found.kvs().first().map(|kv| kv.value().to_owned());
        if let Some(found) = found {
            let found = String::from_utf8_lossy(&found).into_owned();
            if found.parse::<i64>().is_ok_and(|v| v > VERSION) || found.parse::<i64>().is_err() {
                return Err(EtcdStoreError::Newer {
                    endpoints: link.shown(),
                    found,
                    known: VERSION,
                });
            }
        }
        let (jobs, waiting) = mpsc::channel(QUEUE);
        // Ends when the last clone is gone.
        tokio::spawn(Writer::new(link.clone(), keys.clone()).run(waiting));
        Ok(Self {
            link,
            keys,
            jobs,
            epoch: 0,
        })
    }

    async fn run(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let (done, result) = oneshot::channel();
        let gone = || StoreError::Unavailable("the store is closed".to_owned());
        let job = Job {
            writes,
            epoch: self.epoch,
            done,
        };
        self.jobs.send(job).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    async fn below(&self, prefix: &str) -> Result<BTreeMap<String, String>, StoreError> {
        read::below(&self.link, &self.keys, prefix).await
    }

    async fn owner(&self) -> Result<Option<(String, i64)>, StoreError> {
        let key = self.keys.owner();
        let answer = self
            .link
            .call(|mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        Ok(answer.kvs().first().map(|kv| {
            let name = String::from_utf8_lossy(kv.value()).into_owned();
            (name, kv.create_revision())
        }))
    }
}

#[async_trait]
impl ProgressStore for EtcdStore {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        let prefix = self.keys.progress(task);
        let mut progress = read::progress(&prefix, &self.below(&prefix).await?)?;
        let prefix = self.keys.quarantined(task);
        progress.quarantine = read::quarantine(&prefix, &self.below(&prefix).await?)?;
        Ok(progress)
    }

    /// Part by part: no answer of etcd is larger than one.
    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        let prefix = self.keys.message(task, message);
        read::parts(&self.link, &self.keys, &prefix).await
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        let prefix = self.keys.floors(target);
        read::floors(&prefix, &self.below(&prefix).await?)
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.run(changes.into_iter().map(Write::Progress).collect())
            .await
    }
}

#[async_trait]
impl TaskStore for EtcdStore {
    async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
        self.run(writes.into_iter().map(Write::Task).collect())
            .await
    }

    async fn tasks(&self) -> Result<Vec<Result<StoredTask, Unreadable>>, StoreError> {
        let prefix = self.keys.tasks();
        let found = self.below(&prefix).await?;
        let mut all: Vec<_> = found
            .iter()
            .map(|(key, value)| {
                let id = TaskId::new(name(key.get(prefix.len()..).unwrap_or("")));
                match serde_json::from_str::<TaskRecord>(value) {
                    Ok(record) => Ok(StoredTask {
                        id,
                        spec: record.spec,
                        desired: record.desired,
                        created: record.created,
                        updated: record.updated,
                    }),
                    Err(e) => Err(Unreadable {
                        id,
                        cause: format!("its stored form is unreadable at column {}", e.column()),
                    }),
                }
            })
            .collect();
        all.sort_by_key(|task| task.as_ref().map_or(0, |task| task.created));
        Ok(all)
    }

    async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError> {
        let found = self.below(&self.keys.events(task)).await?;
        found
            .values()
            .rev()
            .take(limit as usize)
            .map(|value| Ok(read::json::<EventRecord>(value)?.logged(0).event))
            .collect()
    }

    async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        let prefix = match of {
            Some(task) => self.keys.events(task),
            None => self.keys.history(),
        };
        read::page(&self.link, &self.keys, &prefix, after, limit)
            .await?
            .iter()
            .map(|(key, value)| {
                let seq = key.get(prefix.len()..).unwrap_or_default();
                let seq = seq.parse().map_err(read::corrupt)?;
                Ok(read::json::<EventRecord>(value)?.logged(seq))
            })
            .collect()
    }

    async fn close(&self, deadline: Duration) {
        let (done, written) = oneshot::channel();
        let last = Job {
            writes: Vec::new(),
            epoch: self.epoch,
            done,
        };
        let flush = async {
            if self.jobs.send(last).await.is_ok() {
                let _ = written.await;
            }
        };
        let _ = tokio::time::timeout(deadline, flush).await;
    }
}

#[async_trait]
impl Backend for EtcdStore {
    async fn take(&self, claim: &Claim) -> Result<Taken, StoreError> {
        if let Some((name, _)) = self.owner().await? {
            return Ok(Taken::Theirs(name));
        }
        let begun = boot_time();
        let seconds = claim.lease.as_millis().div_ceil(1000).max(1) as i64;
        let lease = self
            .link
            .call(|mut client| async move { client.lease_grant(seconds, None).await })
            .await?;
        let key = self.keys.owner();
        let held = PutOptions::new().with_lease(lease.id());
        let txn = Txn::new()
            .when(vec![Compare::create_revision(
                key.as_str(),
                CompareOp::Equal,
                0,
            )])
            .and_then(vec![
                TxnOp::put(key.as_str(), claim.name.as_str(), Some(held)),
                // Whatever the owner before has under way is void.
                TxnOp::put(self.keys.seq(), "", None),
                TxnOp::put(self.keys.version(), VERSION.to_string(), None),
            ]);
        let answer = self.link.txn(txn).await?;
        if !answer.succeeded() {
            let id = lease.id();
            let revoked = self
                .link
                .call(|mut client| async move { client.lease_revoke(id).await });
            // It would run out by itself.
            let _ = revoked.await;
            let owner = self.owner().await?;
            return Ok(Taken::Theirs(owner.map_or(String::new(), |(name, _)| name)));
        }
        let epoch = answer.header().map_or(0, |header| header.revision());
        Ok(Taken::Ours(Term {
            epoch,
            lease: lease.id(),
            name: claim.name.clone(),
            length: claim.lease,
            begun,
        }))
    }

    async fn renew(&self, term: &Term) -> Result<bool, StoreError> {
        let id = term.lease;
        let kept = self
            .link
            .call(|mut client| async move {
                match client.lease_keep_alive(id).await {
                    Ok(_) => Ok(true),
                    Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .await?;
        let owner = self.owner().await?;
        Ok(kept && owner.is_some_and(|(_, epoch)| epoch == term.epoch))
    }

    async fn release(&self, term: &Term) -> Result<(), StoreError> {
        let id = term.lease;
        self.link
            .call(|mut client| async move { client.lease_revoke(id).await })
            .await
            .map(drop)
    }

    fn of_term(&self, term: &Term) -> SharedTaskStore {
        Arc::new(Self {
            epoch: term.epoch,
            ..self.clone()
        })
    }
}
