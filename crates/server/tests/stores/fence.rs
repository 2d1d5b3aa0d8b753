//! Who may write to a store that several servers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cdc_core::ids::{CollectionId, PChannel, TargetKey, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, contract};
use cdc_core::tso::Tso;
use milvus_cdc::store::owner::{Ended, Lease, Taken, Term, keep};
use milvus_cdc::store::{Backend, StoredTask, TaskWrite};
use rand::Rng;

use crate::place::{Place, claim, take};

const LONG: Duration = Duration::from_secs(3600);

/// A commit of several kinds that all say `n`.
fn commit(n: u64) -> Vec<Change> {
    let (task, channel) = (TaskId::new("t"), PChannel::new("ch"));
    vec![
        Change::PutChannel {
            task: task.clone(),
            channel: channel.clone(),
            progress: contract::progress(n, n, n),
            clean: true,
        },
        Change::RaiseFloor {
            target: TargetKey::new("http://a:1"),
            channel,
            floor: Tso(n),
        },
        Change::PutNote {
            task,
            collection: CollectionId(1),
            note: n.to_string(),
        },
    ]
}

/// What [`commit`] left; panics unless it was left whole.
async fn committed(store: &dyn ProgressStore) -> u64 {
    let progress = store.load(&TaskId::new("t")).await.unwrap();
    let n = progress.channels.values().next().map_or(0, |p| p.applied.0);
    let note = progress.notes.get(&CollectionId(1));
    assert_eq!(note.map_or("0", String::as_str), n.to_string());
    n
}

async fn floor(store: &dyn ProgressStore) -> u64 {
    let floors = store.floors(&TargetKey::new("http://a:1")).await.unwrap();
    floors.values().next().map_or(0, |floor| floor.0)
}

fn is_refused(result: Result<(), StoreError>) -> String {
    match result {
        Err(StoreError::NotOwner(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

/// Asks until it has the store; how long that took.
async fn take_over(backend: &Arc<dyn Backend>, name: &str) -> (Term, Duration) {
    let begun = Instant::now();
    loop {
        if let Taken::Ours(term) = backend.take(&claim(name, LONG)).await.unwrap() {
            return (term, begun.elapsed());
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "never taken over"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn without_a_term_nothing_is_written(place: &mut Place) {
    let backend = place.open(&place.root()).await;
    is_refused(backend.commit(commit(1)).await);
    let task = StoredTask {
        id: TaskId::new("t"),
        spec: "{}".to_owned(),
        desired: milvus_cdc::store::Desired::Running,
        created: 1,
        updated: 1,
    };
    is_refused(backend.write_tasks(vec![TaskWrite::Create(task)]).await);
    assert_eq!(committed(backend.as_ref()).await, 0);
    assert!(backend.tasks().await.unwrap().is_empty());
}

pub(crate) async fn one_of_two_has_it(place: &mut Place) {
    let root = place.root();
    let (a, b) = (place.open(&root).await, place.open(&root).await);
    let (claim_a, claim_b) = (claim("a", LONG), claim("b", LONG));
    let both = tokio::join!(a.take(&claim_a), b.take(&claim_b));
    let (term, loser, name) = match (both.0.unwrap(), both.1.unwrap()) {
        (Taken::Ours(term), Taken::Theirs(_)) => (term, &b, "a"),
        (Taken::Theirs(_), Taken::Ours(term)) => (term, &a, "b"),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        loser.take(&claim("c", LONG)).await.unwrap(),
        Taken::Theirs(name.to_owned())
    );
    let winner = if name == "a" { &a } else { &b };
    winner.of_term(&term).commit(commit(1)).await.unwrap();
    winner.release(&term).await.unwrap();
    let refused = is_refused(winner.of_term(&term).commit(commit(2)).await);
    assert!(refused.contains("nobody"), "{refused}");
    // At once: the end was a clean one.
    let next = take(loser, "c", LONG).await;
    assert!(next.epoch > term.epoch);
    assert_eq!(committed(loser.as_ref()).await, 1);
}

pub(crate) async fn an_owner_that_lives_keeps_it(place: &mut Place) {
    const LEASE: Duration = Duration::from_secs(2);
    let root = place.root();
    let (a, b) = (place.open(&root).await, place.open(&root).await);
    let term = take(&a, "a", LEASE).await;
    let lease = Lease::new(&term);
    let wants = async {
        let end = Instant::now() + LEASE * 4;
        while Instant::now() < end {
            let taken = b.take(&claim("b", LEASE)).await.unwrap();
            assert_eq!(taken, Taken::Theirs("a".to_owned()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        ended = keep(&a, &term, &lease) => panic!("{ended:?}"),
        () = wants => {}
    }
    a.of_term(&term).commit(commit(5)).await.unwrap();
}

pub(crate) async fn a_silent_owner_is_replaced_after_its_lease(place: &mut Place) {
    const LEASE: Duration = Duration::from_secs(3);
    let root = place.root();
    let (a, b) = (place.open(&root).await, place.open(&root).await);
    let begun = Instant::now();
    let term = take(&a, "a", LEASE).await;
    let (_, waited) = take_over(&b, "b").await;
    assert!(begun.elapsed() >= LEASE, "taken after {waited:?}");
    assert!(waited < LEASE * 2, "taken after {waited:?}");
    assert!(!a.renew(&term).await.unwrap());
    let lease = Lease::new(&term);
    let ended = tokio::time::timeout(LEASE * 2, keep(&a, &term, &lease)).await;
    assert_eq!(ended.unwrap(), Ended::Taken);
}

pub(crate) async fn a_write_of_an_old_epoch_is_refused_whole(place: &mut Place) {
    let root = place.root();
    let (a, b) = (place.open(&root).await, place.open(&root).await);
    let old = take(&a, "a", Duration::from_secs(1)).await;
    let of_old = a.of_term(&old);
    of_old.commit(commit(1)).await.unwrap();
    let (new, _) = take_over(&b, "b").await;
    let refused = is_refused(of_old.commit(commit(2)).await);
    assert!(refused.contains('b'), "{refused}");
    assert_eq!(
        (committed(b.as_ref()).await, floor(b.as_ref()).await),
        (1, 1)
    );
    b.of_term(&new).commit(commit(3)).await.unwrap();
    is_refused(of_old.commit(commit(4)).await);
    assert_eq!(
        (committed(a.as_ref()).await, floor(a.as_ref()).await),
        (3, 3)
    );
    // The same process gets it back: what it began in its old term stays refused.
    b.release(&new).await.unwrap();
    let again = take(&a, "a", LONG).await;
    is_refused(of_old.commit(commit(5)).await);
    let both = tokio::join!(of_old.commit(commit(6)), async {
        a.of_term(&again).commit(commit(7)).await
    });
    is_refused(both.0);
    both.1.unwrap();
    assert_eq!(
        (committed(a.as_ref()).await, floor(a.as_ref()).await),
        (7, 7)
    );
}

/// The owner writes and writes, and does not know that it is silent.
pub(crate) async fn commits_and_a_takeover_at_once(place: &mut Place) {
    let root = place.root();
    let (a, b) = (place.open(&root).await, place.open(&root).await);
    let lease = Duration::from_millis(rand::rng().random_range(1000..2000));
    let term = take(&a, "a", lease).await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writing = tokio::spawn({
        let (store, acknowledged) = (a.of_term(&term), acknowledged.clone());
        async move {
            for n in 1.. {
                match store.commit(commit(n)).await {
                    Ok(()) => acknowledged.store(n, Ordering::SeqCst),
                    Err(StoreError::NotOwner(_)) => return n,
                    Err(StoreError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            0
        }
    });
    let (new, _) = take_over(&b, "b").await;
    let left = committed(b.as_ref()).await;
    let refused = writing.await.unwrap();
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    println!("{acknowledged} acknowledged, {left} found at the takeover, {refused} refused");
    assert!(acknowledged > 0 && acknowledged == left, "lost or late");
    assert_eq!(committed(b.as_ref()).await, left);
    assert_eq!(floor(b.as_ref()).await, left);
    b.of_term(&new).commit(commit(refused + 1)).await.unwrap();
}
