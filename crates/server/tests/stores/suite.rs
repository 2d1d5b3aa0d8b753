//! The contract that every store keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::ids::{PChannel, TaskId};
use cdc_core::store::memory::MemoryStore;
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress, contract};
use milvus_cdc::store::{Desired, Event, StoredTask, TaskWrite};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::place::{Place, take};

pub(crate) async fn contract(place: &mut Place) {
    let place = &*place;
    contract::suite(async || Arc::new(place.owned().await)).await;
}

fn task(id: &str, created: u64) -> StoredTask {
    StoredTask {
        id: TaskId::new(id),
        spec: "{\"name\": \"it's — ü\"}".to_owned(),
        desired: Desired::Running,
        created,
        updated: created,
    }
}

fn event(task: &TaskId, at: u64) -> TaskWrite {
    TaskWrite::Event {
        task: task.clone(),
        event: Event {
            at,
            kind: "k".to_owned(),
            text: format!("text {at}"),
        },
    }
}

pub(crate) async fn tasks_and_their_history(place: &mut Place) {
    let store = place.owned().await.0;
    let (a, b) = (task("a/%1", 20), task("b", 10));
    for task in [&a, &b] {
        let create = vec![TaskWrite::Create(task.clone()), event(&task.id, 0)];
        store.write_tasks(create).await.unwrap();
    }
    let ids = async || -> Vec<String> {
        let all = store.tasks().await.unwrap();
        all.into_iter()
            .map(|task| task.ok().unwrap().id.to_string())
            .collect()
    };
    assert_eq!(ids().await, ["b", "a/%1"], "by the time of their creation");
    let again = store.write_tasks(vec![TaskWrite::Create(b.clone())]).await;
    assert!(again.is_err(), "a task was created twice");

    let paused = Desired::Paused {
        by: "http".to_owned(),
        since: 5,
        reason: "why".to_owned(),
    };
    let writes = vec![
        TaskWrite::SetDesired {
            task: b.id.clone(),
            desired: paused.clone(),
            at: 77,
        },
        TaskWrite::SetSpec {
            task: b.id.clone(),
            spec: "{}".to_owned(),
        },
    ];
    store.write_tasks(writes).await.unwrap();
    let changed = store.tasks().await.unwrap().remove(0).ok().unwrap();
    let wanted = StoredTask {
        spec: "{}".to_owned(),
        desired: paused,
        updated: 77,
        ..b.clone()
    };
    assert!(changed == wanted);

    let events = (1..=250).map(|at| event(&a.id, at)).collect();
    store.write_tasks(events).await.unwrap();
    store.write_tasks(vec![event(&a.id, 251)]).await.unwrap();
    let kept = store.events(&a.id, 1000).await.unwrap();
    assert_eq!((kept.len(), kept[0].at, kept[199].at), (200, 251, 52));
    assert_eq!(kept[0].text, "text 251");
    assert_eq!(store.events(&a.id, 3).await.unwrap().len(), 3);

    let put = Change::PutChannel {
        task: a.id.clone(),
        channel: PChannel::new("ch"),
        progress: contract::progress(1, 2, 3),
        clean: false,
    };
    store.commit(vec![put]).await.unwrap();
    let delete = vec![TaskWrite::Delete(a.id.clone())];
    store.write_tasks(delete).await.unwrap();
    assert_eq!(ids().await, ["b"]);
    assert!(store.events(&a.id, 1000).await.unwrap().is_empty());
    assert_eq!(store.load(&a.id).await.unwrap(), TaskProgress::default());
    assert_eq!(store.events(&b.id, 10).await.unwrap().len(), 1);
}

pub(crate) async fn one_failing_job_fails_alone_and_whole(place: &mut Place) {
    let store = place.owned().await.0;
    let (bad, good) = (TaskId::new("bad"), TaskId::new("good"));
    let spoilt = vec![
        event(&bad, 1),
        TaskWrite::SetDesired {
            task: TaskId::new("none"),
            desired: Desired::Running,
            at: 1,
        },
    ];
    let put = Change::PutChannel {
        task: good.clone(),
        channel: PChannel::new("ch"),
        progress: contract::progress(1, 2, 3),
        clean: false,
    };
    // Queued at once, so that they share a transaction.
    let (failed, fine) = tokio::join!(store.write_tasks(spoilt), store.commit(vec![put]));
    assert!(failed.is_err());
    fine.unwrap();
    let events = store.events(&bad, 10).await.unwrap();
    assert!(events.is_empty(), "half a job was written");
    assert_eq!(store.load(&good).await.unwrap().channels.len(), 1);
}

pub(crate) async fn what_was_committed_outlives_a_kill_of_the_server(place: &mut Place) {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let store = place.owned().await;
    let model = MemoryStore::default();
    for _ in 0..3 {
        for _ in 0..20 {
            let bundle: Vec<Change> = (0..random.random_range(1..6))
                .map(|_| contract::random_change(&mut random))
                .collect();
            commit_at_last(&store, &bundle).await;
            model.commit(bundle).await.unwrap();
        }
        let server = place.server.as_mut().unwrap();
        server.kill9().await.unwrap();
        server.restart().await.unwrap();
        load_at_last(&store).await;
        contract::assert_same(&store, &model).await;
    }
}

/// A connection that the kill broke may be found broken first.
pub(crate) async fn commit_at_last(store: &dyn ProgressStore, bundle: &[Change]) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = store.commit(bundle.to_vec()).await {
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(Instant::now() < end, "{error}");
    }
}

async fn load_at_last(store: &dyn ProgressStore) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = store.load(&TaskId::new("any")).await {
        assert!(Instant::now() < end, "{error}");
    }
}

pub(crate) async fn a_store_that_was_away_goes_on(place: &mut Place) {
    let backend = place.open(&place.root()).await;
    let term = take(&backend, "owner", Duration::from_secs(60)).await;
    let store = backend.of_term(&term);
    let task = TaskId::new("t");
    let put = |n| {
        vec![Change::PutChannel {
            task: task.clone(),
            channel: PChannel::new("ch"),
            progress: contract::progress(n, n, n),
            clean: false,
        }]
    };
    store.commit(put(1)).await.unwrap();
    place.server.as_mut().unwrap().kill9().await.unwrap();
    let begun = Instant::now();
    let error = store.commit(put(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    place.server.as_mut().unwrap().restart().await.unwrap();
    commit_at_last(store.as_ref(), &put(3)).await;
    let channel = store.load(&task).await.unwrap().channels[&PChannel::new("ch")];
    assert_eq!(channel, contract::progress(3, 3, 3));
    assert!(backend.renew(&term).await.unwrap(), "the term went on");
}
