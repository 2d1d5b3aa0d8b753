//! What a job does to the keys, worked out before anything is written: etcd takes no key twice in one transaction, and
//! knows no "only upwards".

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::TaskId;
use cdc_core::store::{Change, Progress, StoreError};
use cdc_core::tso::Tso;
use etcd_client::GetOptions;
use serde::{Deserialize, Serialize};

use super::keys::Keys;
use super::link::{self, Link};
use super::read::{Changes, corrupt, json};
use crate::store::{DELETED, Desired, EVENTS_KEPT, Event, Logged, StoredTask, TaskWrite, Write};

/// A task as it is stored here.
#[derive(Serialize, Deserialize)]
pub(super) struct TaskRecord {
    pub(super) spec: String,
    pub(super) desired: Desired,
    pub(super) created: u64,
    pub(super) updated: u64,
}

/// An event as it is stored here.
#[derive(Serialize, Deserialize)]
pub(super) struct EventRecord {
    task: TaskId,
    #[serde(flatten)]
    event: Event,
}

impl EventRecord {
    pub(super) fn logged(self, seq: u64) -> Logged {
        Logged {
            seq,
            task: self.task,
            event: self.event,
        }
    }
}

/// What the writer knows of channels, floors and the count of events, which only grow: it need not read them before each write.
/// Holds for as long as nobody else writes.
pub(super) type Cache = HashMap<String, Option<String>>;

pub(super) struct Plan<'a> {
    pub(super) link: &'a Link,
    pub(super) keys: &'a Keys,
    pub(super) cache: &'a mut Cache,
    pub(super) changes: Changes,
    /// A second try, after one whose answer was lost: what it was to write may be there.
    pub(super) again: bool,
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
            .call(|client| {
                let (key, mut kv) = (key.to_owned(), link::kv(&client));
                async move { kv.get(key, None).await }
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
            .call(|client| {
                let (prefix, mut kv) = (prefix.to_owned(), link::kv(&client));
                let options = GetOptions::new().with_prefix().with_keys_only();
                async move { kv.get(prefix, Some(options)).await }
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

    /// Everything of a task but the task.
    async fn forget(&mut self, task: &TaskId) -> Result<(), StoreError> {
        self.delete_below(&self.keys.quarantine(task)).await?;
        self.delete_below(&self.keys.progress(task)).await
    }

    async fn task(&mut self, write: &TaskWrite) -> Result<(), StoreError> {
        match write {
            TaskWrite::Create(task) => {
                let key = self.keys.task(&task.id);
                let there = self.get(&key).await?;
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
                match there {
                    None => self.put_json(key, &record),
                    Some(there)
                        if self.again
                            && there == serde_json::to_string(&record).map_err(corrupt)? =>
                    {
                        Ok(())
                    }
                    Some(_) => Err(corrupt(format!("task {} is there already", task.id))),
                }
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
                let prefix = self.keys.events(task);
                for key in self.below(&prefix).await? {
                    let seq = key.get(prefix.len()..).unwrap_or_default();
                    self.delete(self.keys.in_history(seq));
                    self.delete(key);
                }
                for key in self.below(&self.keys.deletions()).await? {
                    let of = self.keys.parse_deletion(&key);
                    if of.is_some_and(|(_, of)| of == *task) {
                        self.delete(key);
                    }
                }
                self.forget(task).await
            }
            TaskWrite::Event { task, event } => self.event(task, event).await,
        }
    }

    async fn event(&mut self, task: &TaskId, event: &Event) -> Result<(), StoreError> {
        let last = self.get_cached(&self.keys.last_event()).await?;
        let last = last.map_or(Ok(0), |n| n.parse::<u64>().map_err(corrupt))?;
        let next = last + 1;
        self.put(self.keys.last_event(), next.to_string());
        let seq = format!("{next:020}");
        let record = EventRecord {
            task: task.clone(),
            event: event.clone(),
        };
        self.put_json(self.keys.in_history(&seq), &record)?;
        self.put_json(self.keys.event(task, &seq), &record)?;

        let prefix = self.keys.events(task);
        for key in too_many(self.below(&prefix).await?) {
            let old = key.get(prefix.len()..).unwrap_or_default();
            self.forget_event(task, old);
        }
        if event.kind == DELETED {
            self.put(self.keys.deletion(task, &seq), String::new());
            for key in too_many(self.below(&self.keys.deletions()).await?) {
                match self.keys.parse_deletion(&key) {
                    Some((old, task)) => self.forget_event(&task, old),
                    None => self.delete(key),
                }
            }
        }
        Ok(())
    }

    fn forget_event(&mut self, task: &TaskId, seq: &str) {
        self.delete(self.keys.in_history(seq));
        self.delete(self.keys.event(task, seq));
        self.delete(self.keys.deletion(task, seq));
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
            Change::PutQuarantined { task, key, record } => {
                self.put_json(self.keys.quarantined_one(task, key), record)
            }
            Change::DeleteQuarantined { task, key } => {
                self.delete(self.keys.quarantined_one(task, key));
                Ok(())
            }
            Change::PutMessagePart {
                task,
                message,
                part,
                bytes,
            } => {
                let key = self.keys.message_part(task, message, *part);
                self.put(key, STANDARD.encode(bytes));
                Ok(())
            }
            Change::DeleteMessage { task, message } => {
                self.delete_below(&self.keys.message(task, message)).await
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
            Change::ForgetTask { task } => self.forget(task).await,
        }
    }
}

/// The oldest of what is more than is kept.
fn too_many(keys: Vec<String>) -> impl Iterator<Item = String> {
    let more = keys.len().saturating_sub(EVENTS_KEPT as usize);
    keys.into_iter().take(more)
}
