//! Commits that are too large for one transaction of etcd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::store::{Change, ProgressStore, contract};
use milvus_cdc::store::Backend;
use rand::Rng;

use crate::cut::{Cut, Proxy};
use crate::place::{self, Place, take};
use crate::suite::commit_at_last;

const NOTES: i64 = 300;

/// One commit that says `n` in many places.
fn commit(n: u64) -> Vec<Change> {
    let task = TaskId::new("t");
    // One that is gone in every second commit.
    let mut all = vec![match n % 2 {
        0 => Change::PutChannel {
            task: task.clone(),
            channel: PChannel::new("even"),
            progress: contract::progress(n, n, n),
            clean: true,
        },
        _ => Change::DeleteChannel {
            task: task.clone(),
            channel: PChannel::new("even"),
        },
    }];
    all.extend((0..NOTES).map(|id| Change::PutNote {
        task: task.clone(),
        collection: CollectionId(id),
        note: format!("{n} \"{}\"", "x".repeat(4000)),
    }));
    all
}

/// What the last commit said; panics unless it is there whole.
async fn committed(store: &dyn ProgressStore) -> u64 {
    let progress = store.load(&TaskId::new("t")).await.unwrap();
    let said: BTreeSet<&str> = progress
        .notes
        .values()
        .map(|note| note.split(' ').next().unwrap())
        .collect();
    if said.is_empty() {
        assert!(progress.channels.is_empty());
        return 0;
    }
    assert_eq!(progress.notes.len(), NOTES as usize);
    assert_eq!(said.len(), 1, "half a commit: {said:?}");
    let n = said.first().unwrap().parse().unwrap();
    assert_eq!(progress.channels.len(), usize::from(n % 2 == 0), "at {n}");
    n
}

pub(crate) async fn a_commit_of_any_size(place: &mut Place) {
    let store = place.owned().await;
    for n in 1..=3 {
        store.commit(commit(n)).await.unwrap();
        assert_eq!(committed(&store).await, n);
    }
    let task = TaskId::new("t");
    let forget = vec![
        Change::ForgetTask { task: task.clone() },
        commit(4).remove(0),
    ];
    store.commit(forget).await.unwrap();
    let left = store.load(&task).await.unwrap();
    assert!(left.notes.is_empty() && left.channels.len() == 1);
}

/// The process ends at each request of a large commit to etcd, right before it and right after it; another one takes
/// over. What the journal is for: the one request that decides.
pub(crate) async fn a_commit_that_is_cut_at_each_of_its_requests(place: &mut Place) {
    for cut in [Cut::Before, Cut::After] {
        let mut found = Vec::new();
        loop {
            let way = Way::new(place).await;
            let term = take(&way.backend, "a", Duration::from_secs(60)).await;
            let store = way.backend.of_term(&term);
            store.commit(commit(1)).await.unwrap();
            way.proxy.cut_at(found.len(), cut, true);
            let outcome = tokio::select! {
                // A process that is killed waits for nothing.
                () = way.proxy.is_cut() => None,
                outcome = store.commit(commit(2)) => Some(outcome),
            };
            way.proxy.close();
            if !way.proxy.was_cut() {
                outcome.unwrap().unwrap();
                break;
            }
            assert!(found.len() < 100, "it has no end");

            // The next one, and what a bystander sees of it all the while.
            let bystander = place.open(&way.root).await;
            let seen = committed(bystander.as_ref()).await;
            bystander.release(&term).await.unwrap();
            let next = take(&bystander, "b", Duration::from_secs(60)).await;
            let store = bystander.of_term(&next);
            assert_eq!(committed(store.as_ref()).await, seen, "{found:?}");
            store.commit(note("n")).await.unwrap();
            assert_eq!(committed(store.as_ref()).await, seen, "{found:?}");
            store.commit(commit(3)).await.unwrap();
            assert_eq!(committed(bystander.as_ref()).await, 3);
            found.push(seen);
        }
        println!("{cut:?}: {found:?}");
        // Nothing of it up to the one request, all of it from there on; and there were several on either side.
        let nothing = found.iter().take_while(|seen| **seen == 1).count();
        assert!(found.iter().skip(nothing).all(|seen| *seen == 2));
        assert!(nothing >= 3 && found.len() - nothing >= 3, "{found:?}");
    }
}

/// The same where only the connection ends: the owner goes on, and its commit is there.
pub(crate) async fn a_commit_whose_connection_breaks_goes_on(place: &mut Place) {
    for cut in [Cut::Before, Cut::After] {
        let way = Way::new(place).await;
        let term = take(&way.backend, "a", Duration::from_secs(3600)).await;
        let store = way.backend.of_term(&term);
        store.commit(commit(1)).await.unwrap();
        for n in 0.. {
            assert!(n < 100, "it has no end");
            let this = n as u64 + 2;
            way.proxy.cut_at(n, cut, false);
            // On a busy machine the second try may take longer than a call may; whoever commits repeats it then.
            commit_at_last(store.as_ref(), &commit(this)).await;
            let was_cut = way.proxy.was_cut();
            way.proxy.cut_nothing();
            assert_eq!(committed(store.as_ref()).await, this, "{cut:?} {n}");
            if !was_cut {
                assert!(n > 6, "only {n} requests");
                break;
            }
        }
    }
}

/// A store whose owner reaches it only through the proxy.
struct Way {
    proxy: Proxy,
    root: String,
    backend: Arc<dyn Backend>,
}

impl Way {
    async fn new(place: &Place) -> Self {
        let server = place.server.as_ref().unwrap().url();
        let proxy = Proxy::start(server.replace("http://", "")).await;
        let root = place.root();
        let config = place::parse(&format!(
            "metaStoreConfig: {{storeType: etcd, rootPath: {root}, etcd: {{address: '{}'}}}}\n",
            proxy.url()
        ));
        let backend = config.unwrap().open().await.unwrap();
        Self {
            proxy,
            root,
            backend,
        }
    }
}

/// A small commit beside the large ones.
fn note(text: &str) -> Vec<Change> {
    vec![Change::PutNote {
        task: TaskId::new("other"),
        collection: CollectionId(1),
        note: text.to_owned(),
    }]
}

/// The process ends at any moment of a large commit; another server looks on, and takes over.
pub(crate) async fn a_large_commit_is_whole_or_not_at_all(place: &mut Place) {
    let root = place.root();
    let mut last = 0;
    let mut odd_ends = 0;
    for _ in 0..12 {
        let backend = place.open(&root).await;
        // A process of its own, as far as this can be one: everything in it ends with its runtime.
        let process = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (killed, term) = {
            let (send, receive) = tokio::sync::oneshot::channel();
            let store = place.store(&root);
            process.spawn(async move {
                let backend = store.open().await.unwrap();
                let term = take(&backend, "a", Duration::from_secs(60)).await;
                let writes = backend.of_term(&term);
                send.send(term).unwrap();
                for n in last + 1.. {
                    writes.commit(commit(n)).await.unwrap();
                }
            });
            (process, receive.await.unwrap())
        };
        // Some commits, and then any moment of the next one.
        let commits = last + rand::rng().random_range(0..3);
        let begun = Instant::now();
        let mut seen = last;
        while seen < commits {
            assert!(begun.elapsed() < Duration::from_secs(60), "no commits");
            let now = committed(backend.as_ref()).await;
            assert!(now >= seen, "{now} after {seen}");
            seen = now;
        }
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..400))).await;
        killed.shutdown_background();
        let at_the_end = committed(backend.as_ref()).await;
        backend.release(&term).await.unwrap();
        let next = take(&backend, "b", Duration::from_secs(60)).await;
        let store = backend.of_term(&next);
        let found = committed(store.as_ref()).await;
        assert!(found >= at_the_end);
        // The first write of the new owner brings what was begun to its end.
        store.commit(note("n")).await.unwrap();
        last = committed(store.as_ref()).await;
        assert!(last >= found);
        odd_ends += u64::from(last != at_the_end);
        backend.release(&next).await.unwrap();
    }
    println!("{last} large commits over 12 kills, {odd_ends} of them seen only after the kill");
    assert!(last > 0);
}
