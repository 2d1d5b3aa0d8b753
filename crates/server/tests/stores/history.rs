//! The history of all tasks: one order for all of them, which outlives deletions, restarts and owners.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::ids::TaskId;
use milvus_cdc::store::open::StoreConfig;
use milvus_cdc::store::{
    Backend, DELETED, Desired, EVENTS_KEPT, Event, Logged, StoredTask, TaskStore, TaskWrite,
};

use crate::place::{Place, take};

fn event(task: &str, at: u64) -> TaskWrite {
    let (task, kind) = (TaskId::new(task), "k".to_owned());
    let text = format!("text {at}");
    TaskWrite::Event {
        task,
        event: Event { at, kind, text },
    }
}

fn create(task: &str) -> TaskWrite {
    TaskWrite::Create(StoredTask {
        id: TaskId::new(task),
        spec: "{}".to_owned(),
        desired: Desired::Running,
        created: 1,
        updated: 1,
    })
}

/// As the tasks write it: all of a task goes, one event stays.
fn deletion(task: &str, at: u64) -> Vec<TaskWrite> {
    let kind = DELETED.to_owned();
    vec![
        TaskWrite::Delete(TaskId::new(task)),
        TaskWrite::Event {
            task: TaskId::new(task),
            event: Event {
                at,
                kind,
                text: String::new(),
            },
        },
    ]
}

async fn all(store: &dyn TaskStore) -> Vec<Logged> {
    store.history(None, 0, 10_000).await.unwrap()
}

fn shown(history: &[Logged]) -> Vec<(&str, u64)> {
    let shown = history.iter().map(|l| (l.task.as_str(), l.event.at));
    shown.collect()
}

pub(crate) async fn of_one_task_and_of_all_in_their_order(place: &mut Place) {
    let store = place.owned().await.0;
    let (a, b) = ("a/%1", "b");
    assert_eq!(all(store.as_ref()).await, []);
    let writes = vec![create(a), event(a, 1), create(b), event(b, 2), event(a, 3)];
    store.write_tasks(writes).await.unwrap();
    store.write_tasks(vec![event(b, 4)]).await.unwrap();
    store.write_tasks(vec![event(a, 5)]).await.unwrap();

    let whole = all(store.as_ref()).await;
    assert_eq!(shown(&whole), [(a, 1), (b, 2), (a, 3), (b, 4), (a, 5)]);
    assert_eq!(whole[3].event.text, "text 4");
    assert!(whole[0].seq > 0);
    assert!(whole.windows(2).all(|w| w[0].seq < w[1].seq), "{whole:?}");

    // Page by page, of all and of one.
    for of in [None, Some(TaskId::new(a)), Some(TaskId::new("nobody"))] {
        let wanted: Vec<Logged> = whole
            .iter()
            .filter(|l| of.as_ref().is_none_or(|of| l.task == *of))
            .cloned()
            .collect();
        let mut read: Vec<Logged> = Vec::new();
        loop {
            let after = read.last().map_or(0, |l| l.seq);
            let page = store.history(of.as_ref(), after, 2).await.unwrap();
            assert!(page.len() <= 2);
            if page.is_empty() {
                break;
            }
            read.extend(page);
        }
        assert_eq!(read, wanted, "{of:?}");
    }
    let last = whole[4].seq;
    for after in [last, last + 1, u64::MAX] {
        assert_eq!(store.history(None, after, 10).await.unwrap(), []);
    }
    assert_eq!(store.history(None, last - 1, 10).await.unwrap(), whole[4..]);

    // Of one task the last are kept; those of the others are not touched.
    let many = (10..10 + EVENTS_KEPT as u64).map(|at| event(a, at));
    store.write_tasks(many.collect()).await.unwrap();
    let kept = store.history(Some(&TaskId::new(a)), 0, 10_000).await;
    let kept = kept.unwrap();
    assert_eq!(kept.len(), EVENTS_KEPT as usize);
    assert_eq!((kept[0].event.at, kept[0].seq > last), (10, true));
    let whole = all(store.as_ref()).await;
    assert_eq!(shown(&whole[..2]), [(b, 2), (b, 4)]);
    assert_eq!(whole[2..], kept);
}

pub(crate) async fn a_place_is_never_used_again(place: &mut Place) {
    let root = place.root();
    let backend = place.open(&root).await;
    let term = take(&backend, "first", Duration::from_secs(3600)).await;
    let store = backend.of_term(&term);
    let writes = vec![create("a"), event("a", 1), event("a", 2)];
    store.write_tasks(writes).await.unwrap();
    let mut last = all(store.as_ref()).await[1].seq;

    store.write_tasks(deletion("a", 3)).await.unwrap();
    let left = all(store.as_ref()).await;
    assert_eq!(shown(&left), [("a", 3)]);
    assert!(left[0].seq > last);
    last = left[0].seq;

    // Nothing at all is left of this one, and then another one owns the store.
    let delete = TaskWrite::Delete(TaskId::new("a"));
    store.write_tasks(vec![delete]).await.unwrap();
    assert_eq!(all(store.as_ref()).await, []);
    backend.release(&term).await.unwrap();
    backend.close(Duration::from_secs(10)).await;
    drop((store, backend));
    if let Some(server) = place.server.as_mut() {
        server.kill9().await.unwrap();
        server.restart().await.unwrap();
    }
    let backend = reopen(place, &root).await;
    let term = take(&backend, "second", Duration::from_secs(3600)).await;
    let store = backend.of_term(&term);
    store.write_tasks(vec![event("b", 4)]).await.unwrap();
    let left = all(store.as_ref()).await;
    assert_eq!(shown(&left), [("b", 4)]);
    assert!(left[0].seq > last, "{} again, after {last}", left[0].seq);
}

/// The file's lock ends with the last task that has it.
async fn reopen(place: &Place, root: &str) -> Arc<dyn Backend> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match place.store(root).open().await {
            Ok(backend) => return backend,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn of_deleted_tasks_the_last_deletions_stay(place: &mut Place) {
    let store = place.owned().await.0;
    let kept = EVENTS_KEPT as u64;
    store
        .write_tasks(vec![create("stays"), event("stays", 1)])
        .await
        .unwrap();
    // The first one is made twice.
    for n in 0..kept + 5 {
        let name = format!("t{}", n.max(1));
        let mut writes = vec![create(&name), event(&name, 1000 + n)];
        writes.extend(deletion(&name, 2000 + n));
        store.write_tasks(writes).await.unwrap();
    }
    let whole = all(store.as_ref()).await;
    let wanted: Vec<(String, u64)> = std::iter::once(("stays".to_owned(), 1))
        .chain((5..kept + 5).map(|n| (format!("t{n}"), 2000 + n)))
        .collect();
    let wanted: Vec<(&str, u64)> = wanted.iter().map(|(t, at)| (t.as_str(), *at)).collect();
    assert_eq!(shown(&whole), wanted);
    for (task, left) in [("t4", 0), ("t5", 1), ("stays", 1)] {
        let of = TaskId::new(task);
        let history = store.history(Some(&of), 0, 10).await.unwrap();
        assert_eq!(history.len(), left, "{task}");
        assert_eq!(store.events(&of, 10).await.unwrap().len(), left, "{task}");
    }
    // One that is made anew and deleted again takes its deletion before along, and no other one goes.
    let last = format!("t{}", kept + 4);
    store
        .write_tasks(vec![create(&last), event(&last, 1)])
        .await
        .unwrap();
    store.write_tasks(deletion(&last, 9999)).await.unwrap();
    let whole = all(store.as_ref()).await;
    assert_eq!(whole.len(), kept as usize + 1);
    assert_eq!(shown(&whole[kept as usize..]), [(last.as_str(), 9999)]);
}

/// A write that is in etcd's journal holds although it is not written out yet.
pub(crate) async fn a_page_sees_what_is_in_the_journal(place: &mut Place) {
    let root = place.root();
    let StoreConfig::Etcd(etcd) = place.store(&root) else {
        panic!("no etcd");
    };
    let backend = place.open(&root).await;
    let term = take(&backend, "owner", Duration::from_secs(3600)).await;
    let store = backend.of_term(&term);
    let events = (1..=5).map(|at| event("a", at)).collect();
    store.write_tasks(events).await.unwrap();
    let prefix = format!("{}/milvus-cdc/", etcd.root_path);
    let added = r#"{"task":"b","at":6,"kind":"k","text":""}"#;
    let mut journal = serde_json::Map::new();
    for (key, value) in [
        ("history/00000000000000000001", None),
        ("events/a/00000000000000000001", None),
        ("history/00000000000000000006", Some(added)),
        ("events/b/00000000000000000006", Some(added)),
    ] {
        journal.insert(format!("{prefix}{key}"), value.into());
    }
    let mut client = etcd_client::Client::connect(&etcd.endpoints, None)
        .await
        .unwrap();
    let chunk = serde_json::Value::Object(journal).to_string();
    let begun = format!("{prefix}journal/000000");
    client.put(begun, chunk, None).await.unwrap();
    let page = async |of: Option<&str>, after, limit| {
        let of = of.map(TaskId::new);
        let page = backend.history(of.as_ref(), after, limit).await.unwrap();
        page.iter().map(|l| (l.seq, l.event.at)).collect::<Vec<_>>()
    };
    // Without its last key it is nothing.
    assert_eq!(page(None, 0, 2).await, [(1, 1), (2, 2)]);
    let commit = format!("{prefix}journal/commit");
    client.put(commit, "1", None).await.unwrap();
    assert_eq!(page(None, 0, 2).await, [(2, 2), (3, 3)]);
    assert_eq!(page(None, 4, 10).await, [(5, 5), (6, 6)]);
    assert_eq!(page(Some("a"), 0, 1).await, [(2, 2)]);
    assert_eq!(page(Some("b"), 0, 10).await, [(6, 6)]);
}
