//! Looking at a store that another process owns, as the doctor does.

use std::time::Duration;

use cdc_core::ids::{TargetKey, TaskId};
use milvus_cdc::store::open::StoreConfig;
use milvus_cdc::store::{Desired, StoredTask, TaskWrite};

use crate::place::{Kind, Place, take};

/// It reads what the owner wrote, makes nothing, writes nothing, and takes nothing from the owner.
pub(crate) async fn a_look_changes_nothing(place: &mut Place) {
    let root = place.root();
    let config = place.store(&root);
    // An etcd has no tables that could be missing.
    if place.kind != Kind::Etcd {
        // Twice: the first one has made nothing.
        for _ in 0..2 {
            assert!(config.look(None).await.unwrap().is_none());
        }
    }
    if let StoreConfig::Sqlite(path) = &config {
        assert!(!path.parent().unwrap().exists());
    }
    let backend = place.open(&root).await;
    let term = take(&backend, "owner", Duration::from_secs(3600)).await;
    let owner = backend.of_term(&term);
    let task = StoredTask {
        id: TaskId::new("a"),
        spec: "{}".to_owned(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    };
    let create = vec![TaskWrite::Create(task.clone())];
    owner.write_tasks(create).await.unwrap();

    let look = config.look(None).await.unwrap().unwrap();
    assert!(look.tasks().await.unwrap() == [Ok(task.clone())]);
    look.load(&task.id).await.unwrap();
    look.floors(&TargetKey::new("http://t:1")).await.unwrap();
    let delete = vec![TaskWrite::Delete(task.id.clone())];
    assert!(look.write_tasks(delete.clone()).await.is_err());
    assert!(look.tasks().await.unwrap() == [Ok(task)]);
    // The owner still is it.
    assert!(backend.renew(&term).await.unwrap());
    owner.write_tasks(delete).await.unwrap();
    assert!(look.tasks().await.unwrap().is_empty());
}
