//! What a job does to the keys, worked out before anything is written: etcd takes no key twice in one transaction, and
//! knows no "only upwards".

use std::collections::{BTreeMap, HashMap};

use cdc_core::ids::TaskId;
use cdc_core::store::{Change, Progress, StoreError};
use cdc_core::tso::Tso;
use etcd_client::GetOptions;
use serde::{Deserialize, Serialize};

use super::keys::Keys;
use super::link::Link;
use super::read::{Changes, corrupt, json};
use crate::store::{Desired, EVENTS_KEPT, StoredTask, TaskWrite, Write};

/// A task as it is stored here.
#[derive(Serialize, Deserialize)]
pub(super) struct TaskRecord {
    pub(super) spec: String,
    pub(super) desired: Desired,
    pub(super) created: u64,
    pub(super) updated: u64,
}

/// What the writer knows of channels and floors, whose values only grow: it need not read them before each write.
/// Holds for as long as nobody else writes.
pub(super) type Cache = HashMap<String, Option<String>>;

pub(super) struct Plan<'a> {
    pub(super) link: &'a Link,
    pub(super) keys: &'a Keys,
    pub(super) cache: &'a mut Cache,
    pub(super) changes: Changes,
}

impl Plan<'_> {
    pub(super) async fn add(&mut self, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Progress(change) => self.progress(change).await,
            Write::Task(write) => self.task(write).await,
        }
    }

    fn put(&mut self, key: String, value: String) {
        self.changes.insert(key, Some(value));
    }

    fn put_json<T: Serialize>(&mut self, key: String, value: &T) -> Result<(), StoreError> {
        let value = serde_json::to_string(value).map_err(corrupt)?;
        self.put(key, value);
        Ok(())
    }

    fn delete(&mut self, key: String) {
        self.changes.insert(key, None);
    }

    /// The value as this plan leaves it.
    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        if let Some(value) = self.changes.get(key) {
            return Ok(value.clone());
        }
        let answer = self
            .link
            .call(|mut client| {
                let key = key.to_owned();
                async move { client.get(key, None).await }
            })
            .await?;
        match answer.kvs().first() {
            Some(kv) => Ok(Some(kv.value_str().map_err(corrupt)?.to_owned())),
            None => Ok(None),
        }
    }

    /// As `get`, for what only this writer changes and often.
    async fn get_cached(&mut self, key: &str) -> Result<Option<String>, StoreError> {
        if let Some(value) = self.changes.get(key).or_else(|| self.cache.get(key)) {
            return Ok(value.clone());
        }
        let value = self.get(key).await?;
        self.cache.insert(key.to_owned(), value.clone());
        Ok(value)
    }

    /// The keys below a prefix as this plan leaves them.
    async fn below(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let answer = self
            .link
            .call(|mut client| {
                let prefix = prefix.to_owned();
                let options = GetOptions::new().with_prefix().with_keys_only();
                async move { client.get(prefix, Some(options)).await }
            })
            .await?;
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        for kv in answer.kvs() {
            found.insert(kv.key_str().map_err(corrupt)?.to_owned(), true);
        }
        let later = self.changes.range(prefix.to_owned()..);
        for (key, value) in later.take_while(|(key, _)| key.starts_with(prefix)) {
            found.insert(key.clone(), value.is_some());
        }
        let there = found.into_iter().filter(|(_, there)| *there);
        Ok(there.map(|(key, _)| key).collect())
    }

    async fn delete_below(&mut self, prefix: &str) -> Result<(), StoreError> {
        for key in self.below(prefix).await? {
            self.delete(key);
        }
        Ok(())
    }

    async fn task(&mut self, write: &TaskWrite) -> Result<(), StoreError> {
        match write {
            TaskWrite::Create(task) => {
                let key = self.keys.task(&task.id);
                if self.get(&key).await?.is_some() {
                    return Err(corrupt(format!("task {} is there already", task.id)));
                }
                let StoredTask {
                    spec,
                    desired,
                    created,
                    updated,
                    ..
                } = task.clone();
                let record = TaskRecord {
                    spec,
                    desired,
                    created,
                    updated,
                };
                self.put_json(key, &record)
            }
            TaskWrite::SetDesired { task, desired, at } => {
                let (key, mut record) = self.record(task).await?;
                record.desired = desired.clone();
                record.updated = *at;
                self.put_json(key, &record)
            }
            TaskWrite::SetSpec { task, spec } => {
                let (key, mut record) = self.record(task).await?;
                record.spec = spec.clone();
                self.put_json(key, &record)
            }
            TaskWrite::Delete(task) => {
                self.delete(self.keys.task(task));
                self.delete_below(&self.keys.events(task)).await?;
                self.delete_below(&self.keys.progress(task)).await
            }
            TaskWrite::Event { task, event } => {
                let prefix = self.keys.events(task);
                let there = self.below(&prefix).await?;
                let last = there.last().and_then(|key| key.get(prefix.len()..));
                let next = last.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) + 1;
                let too_many = (there.len() + 1).saturating_sub(EVENTS_KEPT as usize);
                for old in there.into_iter().take(too_many) {
                    self.delete(old);
                }
                self.put_json(format!("{prefix}{next:020}"), event)
            }
        }
    }

    async fn record(&self, task: &TaskId) -> Result<(String, TaskRecord), StoreError> {
        let key = self.keys.task(task);
        match self.get(&key).await? {
            Some(record) => Ok((key, json(&record)?)),
            None => Err(corrupt(format!("no task {task}"))),
        }
    }

    async fn progress(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::PutChannel {
                task,
                channel,
                progress,
                clean,
            } => {
                let key = self.keys.channel(task, channel);
                let mut progress = *progress;
                if !clean && let Some(there) = self.get_cached(&key).await? {
                    let there: Progress = json(&there)?;
                    progress.sent = progress.sent.max(there.sent);
                }
                self.put_json(key, &progress)
            }
            Change::RaiseSent {
                task,
                channel,
                sent,
            } => {
                let key = self.keys.channel(task, channel);
                let Some(there) = self.get_cached(&key).await? else {
                    return Ok(());
                };
                let mut progress: Progress = json(&there)?;
                if *sent <= progress.sent {
                    return Ok(());
                }
                progress.sent = *sent;
                self.put_json(key, &progress)
            }
            Change::DeleteChannel { task, channel } => {
                self.delete(self.keys.channel(task, channel));
                Ok(())
            }
            Change::PutDetached {
                task,
                channel,
                collection,
                progress,
            } => self.put_json(self.keys.detached(task, channel, *collection), progress),
            Change::DeleteDetached {
                task,
                channel,
                collection,
            } => {
                self.delete(self.keys.detached(task, channel, *collection));
                Ok(())
            }
            Change::PutReplicate { task, position } => {
                self.put_json(self.keys.replicate(task), position)
            }
            Change::PutCollection { task, object } => {
                let key = self.keys.object(task, "collections", object.source.0);
                self.put_json(key, object)
            }
            Change::DeleteCollection { task, source } => {
                self.delete(self.keys.object(task, "collections", source.0));
                Ok(())
            }
            Change::PutPartition { task, object } => {
                let key = self.keys.object(task, "partitions", object.source.0);
                self.put_json(key, object)
            }
            Change::DeletePartition { task, source } => {
                self.delete(self.keys.object(task, "partitions", source.0));
                Ok(())
            }
            Change::PutNote {
                task,
                collection,
                note,
            } => {
                let key = self.keys.object(task, "notes", collection.0);
                match note.as_str() {
                    "" => self.delete(key),
                    note => self.put(key, note.to_owned()),
                }
                Ok(())
            }
            Change::RaiseFloor {
                target,
                channel,
                floor,
            } => {
                let key = self.keys.floor(target, channel);
                let there = match self.get_cached(&key).await? {
                    Some(there) => Tso(there.parse().map_err(corrupt)?),
                    None => Tso::ZERO,
                };
                // A floor of zero is a floor, too.
                self.put(key, floor.max(&there).0.to_string());
                Ok(())
            }
            Change::ForgetTask { task } => self.delete_below(&self.keys.progress(task)).await,
        }
    }
}
