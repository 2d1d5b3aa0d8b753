//! A store that does not answer, and may have written all the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use milvus_cdc::store::{Event, Logged, SqliteStore, StoredTask, TaskStore, TaskWrite, Unreadable};
use parking_lot::Mutex;
use serde_json::json;

use crate::server::{Server, access, open, start_on, wanted};

#[derive(Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    /// Writes and does not say so.
    Silent,
    /// Does not write.
    Away,
    /// Writes, and answers to nothing.
    Cut,
    /// Does not write, and answers to nothing.
    Gone,
}

#[derive(Clone)]
struct Moody {
    inner: SqliteStore,
    mood: Arc<Mutex<Mood>>,
}

fn away<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("no answer".to_owned()))
}

#[async_trait]
impl ProgressStore for Moody {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        self.inner.load(task).await
    }
    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        self.inner.floors(target).await
    }
    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        self.inner.message(task, message).await
    }
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.inner.commit(changes).await
    }
}

#[async_trait]
impl TaskStore for Moody {
    async fn write_tasks(&self, writes: Vec<TaskWrite>) -> Result<(), StoreError> {
        let mood = *self.mood.lock();
        if !matches!(mood, Mood::Away | Mood::Gone) {
            self.inner.write_tasks(writes).await?;
        }
        if mood == Mood::Well { Ok(()) } else { away() }
    }
    async fn tasks(&self) -> Result<Vec<Result<StoredTask, Unreadable>>, StoreError> {
        if matches!(*self.mood.lock(), Mood::Cut | Mood::Gone) {
            return away();
        }
        self.inner.tasks().await
    }
    async fn events(&self, task: &TaskId, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.inner.events(task, limit).await
    }
    async fn history(
        &self,
        of: Option<&TaskId>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Logged>, StoreError> {
        self.inner.history(of, after, limit).await
    }
    async fn close(&self, deadline: Duration) {
        self.inner.close(deadline).await;
    }
}

async fn start(dir: &std::path::Path) -> (Server, Arc<Mutex<Mood>>) {
    let store = open(&dir.join("s.db")).await;
    let mood = Arc::new(Mutex::default());
    let kept = Moody {
        inner: store.clone(),
        mood: mood.clone(),
    };
    (start_on(kept, store, true, access()).await, mood)
}

async fn stored(server: &Server) -> usize {
    server.store.tasks().await.unwrap().len()
}

async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_without_an_answer_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mood) = start(dir.path()).await;
    *mood.lock() = Mood::Silent;
    let id = server.create(wanted("a")).await;
    assert_eq!(stored(&server).await, 1);
    assert_eq!(server.fake.running.lock().len(), 1);
    server.granted("delete", json!({"task_id": id})).await;
    assert_eq!(stored(&server).await, 0);
    assert!(server.fake.running.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_written_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mood) = start(dir.path()).await;
    *mood.lock() = Mood::Away;
    server.refused("create", wanted("a"), 500).await;
    assert!(server.fake.running.lock().is_empty());
    *mood.lock() = Mood::Well;
    let id = server.create(wanted("a")).await;
    *mood.lock() = Mood::Away;
    server.refused("delete", json!({"task_id": id}), 500).await;
    *mood.lock() = Mood::Well;
    until("the task that is still there runs again", async || {
        server.fake.running.lock().len() == 1
    })
    .await;
    assert_eq!(stored(&server).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_asked_for_again_under_its_id_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mood) = start(dir.path()).await;
    let mut with_id = wanted("a");
    with_id["task_id"] = json!("t1");
    // Nothing was written, and nobody can say so.
    *mood.lock() = Mood::Gone;
    server.refused("create", with_id.clone(), 500).await;
    *mood.lock() = Mood::Well;
    assert_eq!(server.create(with_id).await, "t1");
    // When a later doubt is settled, the first would have been, too.
    *mood.lock() = Mood::Cut;
    server.refused("create", wanted("b"), 500).await;
    *mood.lock() = Mood::Well;
    until("the task that was kept runs", async || {
        server.fake.running.lock().len() == 2
    })
    .await;
    assert_eq!(stored(&server).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_may_be_deleted_is_not_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mood) = start(dir.path()).await;
    let id = server.create(wanted("a")).await;
    *mood.lock() = Mood::Cut;
    let asked = json!({"task_id": id});
    server.refused("delete", asked.clone(), 500).await;
    *mood.lock() = Mood::Well;
    let message = server.refused("resume", asked.clone(), 500).await;
    assert!(message.contains("is deleted"), "{message}");
    assert!(server.fake.running.lock().is_empty());
    until("it is gone", async || {
        server.ask("get", asked.clone()).await.0 == 404
    })
    .await;
    assert!(server.fake.running.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_task_is_left_of_two_askings() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mood) = start(dir.path()).await;
    *mood.lock() = Mood::Cut;
    server.refused("create", wanted("a"), 500).await;
    server.refused("create", wanted("b"), 500).await;
    *mood.lock() = Mood::Well;
    assert_eq!(stored(&server).await, 2, "nobody knows of them");
    let id = server.create(wanted("a")).await;
    until(
        "the first of two alike goes, the other one runs",
        async || stored(&server).await == 2 && server.fake.running.lock().len() == 2,
    )
    .await;
    let running: Vec<String> = server
        .tasks
        .list()
        .iter()
        .map(|task| task.spec.id.to_string())
        .collect();
    assert!(running.contains(&id), "{running:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_holds_if_the_store_has_it_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mood) = start(dir.path()).await;
    let id = server.create(wanted("a")).await;
    let path = format!("/tasks/{id}");
    let timeout = |seconds| json!({"target": {"connect_timeout": seconds}});
    *mood.lock() = Mood::Silent;
    let (status, answer) = server.rest("PATCH", &path, timeout(20)).await;
    assert_eq!(status, 200, "{answer}");
    let runs = || server.spec(&id).target.connect_timeout;
    assert_eq!(runs(), Duration::from_secs(20));
    *mood.lock() = Mood::Away;
    let (status, answer) = server.rest("PATCH", &path, timeout(21)).await;
    assert!(status >= 500, "{answer}");
    assert_eq!(runs(), Duration::from_secs(20), "it goes on as it was");
    *mood.lock() = Mood::Well;
    let (status, answer) = server.rest("PATCH", &path, timeout(22)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(runs(), Duration::from_secs(22));
}
