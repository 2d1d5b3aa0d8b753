//! The in-memory twin of the store: the contract in its plainest form. Clones share their content, so that a test can
//! "kill" whoever used one and go on with the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Change, Progress, ProgressStore, StoreError, TaskProgress};
use crate::ids::{PChannel, TargetKey, TaskId};
use crate::tso::Tso;

/// A [`ProgressStore`] in memory.
#[derive(Clone, Default)]
pub struct MemoryStore {
    content: Arc<Mutex<Content>>,
    failing: Arc<AtomicUsize>,
}

#[derive(Clone, Default)]
struct Content {
    tasks: BTreeMap<TaskId, TaskProgress>,
    messages: BTreeMap<(TaskId, String), BTreeMap<u32, Bytes>>,
    floors: BTreeMap<TargetKey, BTreeMap<PChannel, Tso>>,
}

impl MemoryStore {
    /// The next `n` commits fail with [`StoreError::Unavailable`] and change nothing.
    pub fn fail_next(&self, n: usize) {
        self.failing.store(n, Ordering::SeqCst);
    }

    /// A copy of all that is stored now: what a crash at this instant would leave.
    pub fn snapshot(&self) -> MemoryStore {
        MemoryStore {
            content: Arc::new(Mutex::new(self.content.lock().clone())),
            failing: Arc::default(),
        }
    }
}

#[async_trait]
impl ProgressStore for MemoryStore {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        Ok(self
            .content
            .lock()
            .tasks
            .get(task)
            .cloned()
            .unwrap_or_default())
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        Ok(self
            .content
            .lock()
            .floors
            .get(target)
            .cloned()
            .unwrap_or_default())
    }

    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        let content = self.content.lock();
        let parts = content.messages.get(&(task.clone(), message.to_owned()));
        Ok(parts
            .map(|parts| parts.values().flatten().copied().collect())
            .unwrap_or_default())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let failing = self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if failing.is_ok() {
            return Err(StoreError::Unavailable("made to fail by a test".to_owned()));
        }
        let mut content = self.content.lock();
        for change in changes {
            content.apply(change);
        }
        Ok(())
    }
}

impl Content {
    fn task(&mut self, task: TaskId) -> &mut TaskProgress {
        self.tasks.entry(task).or_default()
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::PutChannel {
                task,
                channel,
                progress,
                clean,
            } => {
                let channels = &mut self.task(task).channels;
                let before = channels.get(&channel).map_or(Tso::ZERO, |p| p.sent);
                let sent = if clean {
                    progress.sent
                } else {
                    progress.sent.max(before)
                };
                channels.insert(channel, Progress { sent, ..progress });
            }
            Change::RaiseSent {
                task,
                channel,
                sent,
            } => {
                if let Some(progress) = self.task(task).channels.get_mut(&channel) {
                    progress.sent = progress.sent.max(sent);
                }
            }
            Change::DeleteChannel { task, channel } => {
                self.task(task).channels.remove(&channel);
            }
            Change::PutDetached {
                task,
                channel,
                collection,
                progress,
            } => {
                self.task(task)
                    .detached
                    .insert((channel, collection), progress);
            }
            Change::DeleteDetached {
                task,
                channel,
                collection,
            } => {
                self.task(task).detached.remove(&(channel, collection));
            }
            Change::PutReplicate { task, position } => self.task(task).replicate = Some(position),
            Change::PutCollection { task, object } => {
                self.task(task).collections.insert(object.source, object);
            }
            Change::DeleteCollection { task, source } => {
                self.task(task).collections.remove(&source);
            }
            Change::PutPartition { task, object } => {
                self.task(task).partitions.insert(object.source, object);
            }
            Change::DeletePartition { task, source } => {
                self.task(task).partitions.remove(&source);
            }
            Change::PutNote {
                task,
                collection,
                note,
            } if note.is_empty() => {
                self.task(task).notes.remove(&collection);
            }
            Change::PutNote {
                task,
                collection,
                note,
            } => {
                self.task(task).notes.insert(collection, note);
            }
            Change::PutQuarantined { task, key, record } => {
                self.task(task).quarantine.insert(key, record);
            }
            Change::DeleteQuarantined { task, key } => {
                self.task(task).quarantine.remove(&key);
            }
            Change::PutMessagePart {
                task,
                message,
                part,
                bytes,
            } => {
                let parts = self.messages.entry((task, message)).or_default();
                parts.insert(part, bytes);
            }
            Change::DeleteMessage { task, message } => {
                self.messages.remove(&(task, message));
            }
            Change::RaiseFloor {
                target,
                channel,
                floor,
            } => {
                let stored = self
                    .floors
                    .entry(target)
                    .or_default()
                    .entry(channel)
                    .or_default();
                *stored = floor.max(*stored);
            }
            Change::ForgetTask { task } => {
                self.messages.retain(|(of, _), _| *of != task);
                self.tasks.remove(&task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract;

    fn run<F: Future<Output = ()>>(test: F) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn the_memory_twin_keeps_the_contract() {
        run(contract::suite(async || Arc::new(MemoryStore::default())));
    }

    #[test]
    fn a_failing_commit_changes_nothing_and_the_next_one_works() {
        run(async {
            let store = MemoryStore::default();
            let task = TaskId::new("t");
            let change = Change::PutReplicate {
                task: task.clone(),
                position: crate::position::Position::Natsmq(7),
            };
            store.fail_next(1);
            assert!(store.commit(vec![change.clone()]).await.is_err());
            assert_eq!(store.load(&task).await.unwrap().replicate, None);
            let killed = store.snapshot();
            store.commit(vec![change]).await.unwrap();
            assert!(store.load(&task).await.unwrap().replicate.is_some());
            assert_eq!(killed.load(&task).await.unwrap(), TaskProgress::default());
        });
    }
}
