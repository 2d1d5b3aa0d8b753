//! Secrets in what a store writes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::ids::TaskId;
use cdc_core::secret::Secret;
use milvus_cdc::store::seal::{SealError, SealKey, Sealed};
use milvus_cdc::store::{Backend, Desired, StoredTask, TaskStore, TaskWrite};

use crate::place::{Kind, Place, take};

fn key(byte: u8) -> SealKey {
    let text = format!("{byte:02x}").repeat(32);
    SealKey::parse(&Secret::new(text)).unwrap()
}

/// A secret that is nowhere but where it was put.
fn planted() -> String {
    format!("planted{:016x}", rand::random::<u64>())
}

fn task(id: &str, secret: &str) -> StoredTask {
    StoredTask {
        id: TaskId::new(id),
        spec: format!("{{\"token\":\"root:{secret}\"}}"),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    }
}

async fn sealed(place: &Place, root: &str, key: Option<SealKey>) -> Result<Arc<Sealed>, SealError> {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    // The writer of a SQLite file lets go of it a moment after the last handle is gone.
    let backend = loop {
        match place.store(root).open().await {
            Ok(backend) => break backend,
            Err(error) if place.kind == Kind::Sqlite && std::time::Instant::now() < end => {
                assert!(error.to_string().contains("in use"), "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    Sealed::open(backend, key).await.map(Arc::new)
}

fn as_backend(sealed: &Arc<Sealed>) -> Arc<dyn Backend> {
    sealed.clone()
}

/// Whether any file below `dir` has these bytes.
fn holds(dir: &Path, secret: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, secret);
        }
        // A socket or a file that is gone by now holds nothing.
        std::fs::read(&path).is_ok_and(|bytes| {
            bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes())
        })
    })
}

pub(crate) async fn a_dump_has_no_planted_secret(place: &mut Place) {
    let (plain, hidden) = (planted(), planted());
    let (root_plain, root_hidden) = (place.root(), place.root());
    for (root, secret, key) in [
        (&root_plain, &plain, None),
        (&root_hidden, &hidden, Some(key(1))),
    ] {
        let store = sealed(place, root, key).await.unwrap();
        let term = take(&as_backend(&store), "a", Duration::from_secs(60)).await;
        let create = vec![TaskWrite::Create(task("t", secret))];
        store.of_term(&term).write_tasks(create).await.unwrap();
        let back = store.tasks().await.unwrap().remove(0).ok().unwrap();
        assert!(back == task("t", secret), "it is not what was stored");
        store.release(&term).await.unwrap();
        store.close(Duration::from_secs(5)).await;
    }
    if let Some(server) = place.server.as_mut() {
        server.stop().await.unwrap();
    }
    let files = place.files();
    assert!(holds(&files, &plain), "this test could not find a secret");
    assert!(!holds(&files, &hidden), "a secret is in the store's files");
    if let Some(server) = place.server.as_mut() {
        server.restart().await.unwrap();
    }
    // With a key what was stored without one is sealed as soon as the store is owned.
    let store = sealed(place, &root_plain, Some(key(2))).await.unwrap();
    let term = take(&as_backend(&store), "a", Duration::from_secs(60)).await;
    assert_eq!(store.seal_what_is_plain(&term).await.unwrap(), 1);
    assert_eq!(store.seal_what_is_plain(&term).await.unwrap(), 0);
    let back = store.tasks().await.unwrap().remove(0).ok().unwrap();
    assert!(back == task("t", &plain));
    store.release(&term).await.unwrap();
    store.close(Duration::from_secs(5)).await;
    drop(store);
    let refused = sealed(place, &root_plain, None).await.err().unwrap();
    assert_eq!(refused, SealError::NoKey("t".to_owned()));
}

pub(crate) async fn another_key_or_none_is_refused(place: &mut Place) {
    let root = place.root();
    let secret = planted();
    {
        let store = sealed(place, &root, Some(key(1))).await.unwrap();
        let term = take(&as_backend(&store), "a", Duration::from_secs(60)).await;
        let create = vec![TaskWrite::Create(task("t", &secret))];
        store.of_term(&term).write_tasks(create).await.unwrap();
        store.release(&term).await.unwrap();
        store.close(Duration::from_secs(5)).await;
    }
    for (key, wanted) in [
        (Some(key(2)), SealError::WrongKey("t".to_owned())),
        (None, SealError::NoKey("t".to_owned())),
    ] {
        let error = sealed(place, &root, key).await.err().unwrap();
        assert_eq!(error, wanted);
        let said = error.to_string();
        assert!(said.contains("metaStoreConfig.secretKey"), "{said}");
        assert!(!said.contains(&secret), "{said}");
    }
    let store = sealed(place, &root, Some(key(1))).await.unwrap();
    let back = store.tasks().await.unwrap().remove(0).ok().unwrap();
    assert!(back == task("t", &secret));
}
