//! The SQLite store: the contract every store keeps, and what is its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cdc_core::ids::{PChannel, TaskId};
use cdc_core::position::Position;
use cdc_core::store::contract;
use cdc_core::store::memory::MemoryStore;
use cdc_core::store::{Change, ProgressStore};
use milvus_cdc::store::{Desired, Event, OpenError, SqliteStore, StoredTask, TaskStore, TaskWrite};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let n = AtomicUsize::new(0);
    contract::suite(async || {
        let path = dir
            .path()
            .join(format!("{}/deep/s.db", n.fetch_add(1, Ordering::SeqCst)));
        Arc::new(SqliteStore::open(&path).await.unwrap())
    })
    .await;
}

/// Waits until the last writer let go of the file.
async fn reopen(path: &std::path::Path) -> SqliteStore {
    for _ in 0..200 {
        match SqliteStore::open(path).await {
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other.unwrap(),
        }
    }
    panic!("still in use");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_there_after_every_reopen() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let model = MemoryStore::default();
    for _ in 0..5 {
        let store = reopen(&path).await;
        contract::assert_same(&store, &model).await;
        for _ in 0..20 {
            let bundle: Vec<Change> = (0..rng.random_range(1..6))
                .map(|_| contract::random_change(&mut rng))
                .collect();
            store.commit(bundle.clone()).await.unwrap();
            model.commit(bundle).await.unwrap();
        }
        // A copy of the files at this instant is what a kill would leave.
        let copy = tempfile::tempdir().unwrap();
        for file in ["s.db", "s.db-wal"] {
            std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        }
        let killed = SqliteStore::open(&copy.path().join("s.db")).await.unwrap();
        contract::assert_same(&killed, &model).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failing_job_fails_alone_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("s.db")).await.unwrap();
    let event = |task: &str| TaskWrite::Event {
        task: TaskId::new(task),
        event: Event {
            at: 1,
            kind: "k".to_owned(),
            text: "t".to_owned(),
        },
    };
    let bad = vec![
        event("bad"),
        TaskWrite::SetDesired {
            task: TaskId::new("none"),
            desired: Desired::Running,
            at: 1,
        },
    ];
    let good = Change::PutChannel {
        task: TaskId::new("good"),
        channel: PChannel::new("ch"),
        progress: contract::progress(1, 2, 3),
        clean: false,
    };
    // Queued at once, so that they share a transaction.
    let (failed, fine) = tokio::join!(store.write_tasks(bad), store.commit(vec![good]));
    assert!(failed.is_err());
    fine.unwrap();
    assert!(
        store
            .events(&TaskId::new("bad"), 10)
            .await
            .unwrap()
            .is_empty(),
        "half a job was written"
    );
    assert_eq!(
        store
            .load(&TaskId::new("good"))
            .await
            .unwrap()
            .channels
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_bounded_and_a_deleted_task_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("s.db")).await.unwrap();
    let task = TaskId::new("t");
    let stored = StoredTask {
        id: task.clone(),
        spec: "{}".to_owned(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    };
    store
        .write_tasks(vec![TaskWrite::Create(stored)])
        .await
        .unwrap();
    let events = (0..250).map(|at| TaskWrite::Event {
        task: task.clone(),
        event: Event {
            at,
            kind: "k".to_owned(),
            text: String::new(),
        },
    });
    store.write_tasks(events.collect()).await.unwrap();
    let kept = store.events(&task, 1000).await.unwrap();
    assert_eq!((kept.len(), kept[0].at, kept[199].at), (200, 249, 50));
    store
        .write_tasks(vec![TaskWrite::Delete(task.clone())])
        .await
        .unwrap();
    assert!(
        store.events(&task, 1000).await.unwrap().is_empty()
            && store.tasks().await.unwrap().is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "these are my notes, no database").unwrap();
    let error = SqliteStore::open(&text).await.err().unwrap().to_string();
    assert!(
        error.contains("notes.txt") && error.contains("no store of milvus-cdc"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_to_string(&text).unwrap(),
        "these are my notes, no database"
    );

    let other = dir.path().join("other.db");
    let sql = "CREATE TABLE mine (x INTEGER)";
    run_sql(&other, sql).await;
    let error = SqliteStore::open(&other).await.err().unwrap();
    assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
    let error = SqliteStore::open(dir.path())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("directory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_version_before_is_brought_up_with_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let task = TaskId::new("t");
    let put = Change::PutReplicate {
        task: task.clone(),
        position: Position::Natsmq(7),
    };
    store.commit(vec![put]).await.unwrap();
    store.close(Duration::from_secs(5)).await;
    drop(store);
    drop(reopen(&path).await);
    // As version 1 left it.
    let before = "DROP TABLE quarantine; DROP TABLE messages; PRAGMA user_version = 1";
    run_sql(&path, before).await;
    let store = reopen(&path).await;
    let part = Change::PutMessagePart {
        task: task.clone(),
        message: "m".to_owned(),
        part: 0,
        bytes: bytes::Bytes::from_static(b"x"),
    };
    store.commit(vec![part]).await.unwrap();
    assert_eq!(store.message(&task, "m").await.unwrap(), b"x");
    let stored = store.load(&task).await.unwrap();
    assert_eq!(stored.replicate, Some(Position::Natsmq(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_version_is_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    drop(SqliteStore::open(&path).await.unwrap());
    drop(reopen(&path).await);
    run_sql(&path, "PRAGMA user_version = 99").await;
    for _ in 0..200 {
        match SqliteStore::open(&path).await.err() {
            Some(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Some(error) => {
                let error = error.to_string();
                assert!(
                    error.contains("99") && error.contains("up to 2") && error.contains("s.db"),
                    "{error}"
                );
                return;
            }
            None => panic!("a newer store was opened"),
        }
    }
    panic!("still in use");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_for_its_owner_alone_and_for_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let _store = SqliteStore::open(&path).await.unwrap();
    for file in ["s.db", "s.db-wal"] {
        let mode = std::fs::metadata(dir.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert!(matches!(
        SqliteStore::open(&path).await.err(),
        Some(OpenError::InUse { .. })
    ));
}

/// Names, modes and contents of all files of a directory.
fn everything(dir: &std::path::Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            (name, mode, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

async fn refused_and_untouched(dir: &std::path::Path, file: &str) -> OpenError {
    let path = dir.join(file);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = everything(dir);
    let error = SqliteStore::open(&path).await.err().unwrap();
    // Compared by name and mode first: the contents would fill the screen.
    let short = |all: &[(String, u32, Vec<u8>)]| -> Vec<_> {
        all.iter().map(|(n, m, _)| (n.clone(), *m)).collect()
    };
    let after = everything(dir);
    assert_eq!(short(&before), short(&after));
    assert!(before == after, "a file was changed");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_file_is_not_touched_in_the_least() {
    for sql in [
        "CREATE TABLE mine (x INTEGER)",
        "PRAGMA journal_mode = WAL; CREATE TABLE mine (x INTEGER)",
        "PRAGMA application_id = 77",
        "PRAGMA user_version = 3",
    ] {
        let dir = tempfile::tempdir().unwrap();
        run_sql(&dir.path().join("s.db"), sql).await;
        let error = refused_and_untouched(dir.path(), "s.db").await;
        assert!(matches!(error, OpenError::NotOurs { .. }), "{sql}: {error}");
    }
    for content in ["notes", "SQLite format 3\0 and then notes"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s.db"), content).unwrap();
        let error = refused_and_untouched(dir.path(), "s.db").await;
        assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_database_that_is_being_written_is_not_touched() {
    use sqlx::Connection;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut owner = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    // All of it is in the WAL so far; the file itself looks blank.
    let sql = "PRAGMA journal_mode = WAL; CREATE TABLE mine (x INTEGER)";
    sqlx::raw_sql(sql).execute(&mut owner).await.unwrap();
    let error = refused_and_untouched(dir.path(), "s.db").await;
    assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
    owner.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_store_is_not_touched_and_an_empty_file_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mark = "PRAGMA application_id = 1296254019; PRAGMA user_version = 99; CREATE TABLE future (x INTEGER)";
    run_sql(&dir.path().join("s.db"), mark).await;
    let error = refused_and_untouched(dir.path(), "s.db").await;
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.db"), "").unwrap();
    run_sql(
        &dir.path().join("b.db"),
        "CREATE TABLE t (x INTEGER); DROP TABLE t",
    )
    .await;
    for file in ["a.db", "b.db"] {
        SqliteStore::open(&dir.path().join(file)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_is_in_the_file_itself_from_the_first_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let _open = SqliteStore::open(&path).await.unwrap();
    // What a kill right after the first start leaves.
    let copy = tempfile::tempdir().unwrap();
    for file in ["s.db", "s.db-wal"] {
        std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
    }
    SqliteStore::open(&copy.path().join("s.db")).await.unwrap();
    assert_eq!(&std::fs::read(&path).unwrap()[68..72], b"MCDC");
}

async fn run_sql(path: &std::path::Path, sql: &'static str) {
    use sqlx::Connection;
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
