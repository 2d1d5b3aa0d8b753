//! The contract suite of [`ProgressStore`](super::ProgressStore): every backend runs it, the in-memory twin included,
//! which is also the model the random part compares with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::memory::MemoryStore;
use super::{
    Change, CollectionObject, Held, HeldProperties, ObjectPhase, PartitionObject, Progress,
    SharedStore, TaskProgress,
};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, IndexId, PChannel, PartitionId, TargetKey, TaskId, VChannel};
use crate::position::Position;
use crate::quarantine::{Kept, MESSAGE_BYTES, PART, Record, State};
use crate::tso::Tso;

/// Runs every check, each on an empty store that `fresh` makes. Panics at the first broken promise.
pub async fn suite<S: super::ProgressStore + 'static>(fresh: impl AsyncFn() -> std::sync::Arc<S>) {
    an_unknown_task_has_nothing(fresh().await).await;
    all_kinds_come_back(fresh().await).await;
    sent_never_shrinks_by_itself(fresh().await).await;
    floors_never_fall_and_outlive_tasks(fresh().await).await;
    tasks_do_not_mix(fresh().await).await;
    messages_come_back_byte_by_byte(fresh().await).await;
    concurrent_commits_all_arrive(fresh().await).await;
    for _ in 0..5 {
        let seed = rand::rng().random();
        random_commits_match_the_model(fresh().await, seed).await;
    }
}

/// A progress for tests: position `n`, applied and sent as given.
pub fn progress(n: u64, applied: u64, sent: u64) -> Progress {
    Progress {
        position: Position::Natsmq(n),
        after: n.is_multiple_of(2),
        applied: Tso(applied),
        sent: Tso(sent),
    }
}

fn collection(source: i64, name: &str, phase: ObjectPhase) -> CollectionObject {
    CollectionObject {
        source: CollectionId(source),
        database: "default".to_owned(),
        name: name.to_owned(),
        from: None,
        renamed: None,
        renaming: None,
        in_between: false,
        created: Tso(source as u64),
        phase,
        target: (phase != ObjectPhase::Creating).then_some(CollectionId(source + 1000)),
        target_vchannels: vec![
            VChannel::new(format!("ch_{source}v0")),
            VChannel::new(format!("ch_{source}v1")),
        ],
        dropped_shards: if phase == ObjectPhase::Dropping {
            vec![1]
        } else {
            vec![]
        },
        properties: match phase {
            ObjectPhase::Live => Box::new(held(source)),
            _ => Box::default(),
        },
    }
}

fn held(n: i64) -> HeldProperties {
    let keys = ["collection.ttl.seconds", "mmap.enabled"];
    let held = |calling| Held {
        keys: keys.map(str::to_owned).into(),
        calling,
    };
    HeldProperties {
        own: held(n % 2 == 0),
        indexes: [(IndexId(n), held(n % 2 == 1))].into(),
    }
}

fn partition(source: i64, of: i64, name: &str) -> PartitionObject {
    PartitionObject {
        source: PartitionId(source),
        collection: CollectionId(of),
        name: name.to_owned(),
        phase: ObjectPhase::Live,
        target: Some(PartitionId(source + 1000)),
        dropped_shards: vec![0],
    }
}

fn quarantined(collection: i64, state: State) -> Record {
    Record {
        collection: CollectionId(collection),
        database: "default".to_owned(),
        name: "it's \"quoted\" — ü".to_owned(),
        channel: PChannel::new("ch"),
        position: Position::Pulsar {
            ledger: u64::MAX,
            entry: 2,
            batch: -1,
        },
        kind: Some("Insert".to_owned()),
        size: Some(12),
        problem: Problem::new(ErrorClass::Data, "cannot be read", "say skip"),
        since: 1_700_000_000_000,
        kept: Kept::Not("why".to_owned()),
        state,
    }
}

async fn an_unknown_task_has_nothing(store: SharedStore) {
    assert_eq!(
        store.load(&TaskId::new("nobody")).await.unwrap(),
        TaskProgress::default()
    );
    assert!(
        store
            .floors(&TargetKey::new("http://nowhere:1"))
            .await
            .unwrap()
            .is_empty()
    );
    let nothing = store.message(&TaskId::new("nobody"), "m").await.unwrap();
    assert!(nothing.is_empty());
    store.commit(vec![]).await.unwrap();
}

async fn all_kinds_come_back(store: SharedStore) {
    let task = TaskId::new("a");
    let (ch, other) = (
        PChannel::new("by-dev-rootcoord-dml_0"),
        PChannel::new("by-dev-rootcoord-dml_1"),
    );
    let positions = [
        Position::Natsmq(u64::MAX),
        Position::Rocksmq(i64::MAX),
        Position::Pulsar {
            ledger: 1,
            entry: 2,
            batch: -1,
        },
    ];
    let full = Progress {
        position: positions[0],
        after: true,
        applied: Tso(1),
        sent: Tso::MAX,
    };
    let detached = Progress {
        position: positions[2],
        after: false,
        applied: Tso(5),
        sent: Tso(6),
    };
    let object = collection(7, "it's \"quoted\" — ü", ObjectPhase::Dropping);
    store
        .commit(vec![
            Change::PutChannel {
                task: task.clone(),
                channel: ch.clone(),
                progress: full,
                clean: false,
            },
            Change::PutDetached {
                task: task.clone(),
                channel: other.clone(),
                collection: CollectionId(7),
                progress: detached,
            },
            Change::PutReplicate {
                task: task.clone(),
                position: positions[1],
            },
            Change::PutCollection {
                task: task.clone(),
                object: object.clone(),
            },
            Change::PutPartition {
                task: task.clone(),
                object: partition(9, 7, "p"),
            },
            Change::PutNote {
                task: task.clone(),
                collection: CollectionId(7),
                note: "{\"k\":1}".to_owned(),
            },
            Change::PutQuarantined {
                task: task.clone(),
                key: "7-k".to_owned(),
                record: quarantined(7, State::Waiting),
            },
        ])
        .await
        .unwrap();
    let loaded = store.load(&task).await.unwrap();
    assert_eq!(loaded.channels[&ch], full);
    assert_eq!(loaded.detached[&(other.clone(), CollectionId(7))], detached);
    assert_eq!(loaded.replicate, Some(positions[1]));
    assert_eq!(loaded.collections[&CollectionId(7)], object);
    assert_eq!(loaded.partitions[&PartitionId(9)], partition(9, 7, "p"));
    assert_eq!(loaded.notes[&CollectionId(7)], "{\"k\":1}");
    let record = &loaded.quarantine["7-k"];
    assert_eq!(*record, quarantined(7, State::Waiting));

    store
        .commit(vec![
            Change::DeleteChannel {
                task: task.clone(),
                channel: ch,
            },
            Change::DeleteDetached {
                task: task.clone(),
                channel: other,
                collection: CollectionId(7),
            },
            Change::DeleteCollection {
                task: task.clone(),
                source: CollectionId(7),
            },
            Change::DeletePartition {
                task: task.clone(),
                source: PartitionId(9),
            },
            Change::PutNote {
                task: task.clone(),
                collection: CollectionId(7),
                note: String::new(),
            },
            Change::DeleteQuarantined {
                task: task.clone(),
                key: "7-k".to_owned(),
            },
        ])
        .await
        .unwrap();
    let left = TaskProgress {
        replicate: Some(positions[1]),
        ..TaskProgress::default()
    };
    assert_eq!(store.load(&task).await.unwrap(), left);
}

async fn sent_never_shrinks_by_itself(store: SharedStore) {
    let task = TaskId::new("a");
    let ch = PChannel::new("ch");
    let put = |p, clean| Change::PutChannel {
        task: task.clone(),
        channel: ch.clone(),
        progress: p,
        clean,
    };
    let raise = |sent| Change::RaiseSent {
        task: task.clone(),
        channel: ch.clone(),
        sent: Tso(sent),
    };
    let sent = async || {
        store
            .load(&task)
            .await
            .unwrap()
            .channels
            .get(&ch)
            .map(|p| (p.applied.0, p.sent.0))
    };

    store.commit(vec![raise(50)]).await.unwrap();
    assert_eq!(sent().await, None, "there is no progress to raise");
    store
        .commit(vec![put(progress(1, 10, 20), false)])
        .await
        .unwrap();
    assert_eq!(sent().await, Some((10, 20)));
    store.commit(vec![raise(9)]).await.unwrap();
    assert_eq!(sent().await, Some((10, 20)));
    store.commit(vec![raise(100)]).await.unwrap();
    assert_eq!(sent().await, Some((10, 100)));
    // 9 and 100 differ in their number of digits: a comparison as text would go wrong here.
    store
        .commit(vec![put(progress(2, 30, 30), false)])
        .await
        .unwrap();
    assert_eq!(sent().await, Some((30, 100)));
    store
        .commit(vec![put(progress(3, 40, 40), true)])
        .await
        .unwrap();
    assert_eq!(
        sent().await,
        Some((40, 40)),
        "a clean stop leaves nothing in doubt"
    );
}

async fn floors_never_fall_and_outlive_tasks(store: SharedStore) {
    let (target, other) = (
        TargetKey::new("http://a:19530"),
        TargetKey::new("http://b:19530"),
    );
    let ch = PChannel::new("ch");
    let raise = |floor| Change::RaiseFloor {
        target: target.clone(),
        channel: ch.clone(),
        floor: Tso(floor),
    };
    for (given, kept) in [
        (5, 5),
        (900, 900),
        (10, 900),
        (u64::MAX, u64::MAX),
        (1, u64::MAX),
    ] {
        store.commit(vec![raise(given)]).await.unwrap();
        assert_eq!(store.floors(&target).await.unwrap()[&ch], Tso(kept));
    }
    store
        .commit(vec![Change::ForgetTask {
            task: TaskId::new("a"),
        }])
        .await
        .unwrap();
    assert_eq!(store.floors(&target).await.unwrap()[&ch], Tso::MAX);
    assert!(store.floors(&other).await.unwrap().is_empty());
}

async fn tasks_do_not_mix(store: SharedStore) {
    let ch = PChannel::new("ch");
    let put = |task: &str, n| Change::PutChannel {
        task: TaskId::new(task),
        channel: ch.clone(),
        progress: progress(n, n, n),
        clean: false,
    };
    store.commit(vec![put("a", 1), put("b", 2)]).await.unwrap();
    store
        .commit(vec![Change::ForgetTask {
            task: TaskId::new("a"),
        }])
        .await
        .unwrap();
    assert_eq!(
        store.load(&TaskId::new("a")).await.unwrap(),
        TaskProgress::default()
    );
    assert_eq!(
        store.load(&TaskId::new("b")).await.unwrap().channels[&ch],
        progress(2, 2, 2)
    );
}

/// The largest message there may be, its parts put in any order and one of them twice.
async fn messages_come_back_byte_by_byte(store: SharedStore) {
    let (a, b) = (TaskId::new("a/1"), TaskId::new("b"));
    let whole: Vec<u8> = (0..MESSAGE_BYTES as usize - 5)
        .map(|n| (n * 31 % 251) as u8)
        .collect();
    let part = |task: &TaskId, message: &str, part: u32, bytes: &[u8]| Change::PutMessagePart {
        task: task.clone(),
        message: message.to_owned(),
        part,
        bytes: Bytes::copy_from_slice(bytes),
    };
    let parts: Vec<&[u8]> = whole.chunks(PART).collect();
    assert!(parts.len() > 10, "ten and two differ in their digits");
    store.commit(vec![part(&a, "m", 3, b"old")]).await.unwrap();
    for (n, bytes) in parts.iter().enumerate().rev() {
        store
            .commit(vec![part(&a, "m", n as u32, bytes)])
            .await
            .unwrap();
    }
    store
        .commit(vec![part(&a, "m2", 0, b"2"), part(&b, "m", 0, b"b")])
        .await
        .unwrap();
    assert!(store.message(&a, "m").await.unwrap() == whole);
    assert_eq!(store.load(&a).await.unwrap(), TaskProgress::default());
    let delete = Change::DeleteMessage {
        task: a.clone(),
        message: "m".to_owned(),
    };
    store.commit(vec![delete]).await.unwrap();
    assert!(store.message(&a, "m").await.unwrap().is_empty());
    assert_eq!(store.message(&a, "m2").await.unwrap(), b"2");
    let record = Change::PutQuarantined {
        task: a.clone(),
        key: "k".to_owned(),
        record: quarantined(1, State::Waiting),
    };
    store.commit(vec![record]).await.unwrap();
    store
        .commit(vec![Change::ForgetTask { task: a.clone() }])
        .await
        .unwrap();
    assert!(store.message(&a, "m2").await.unwrap().is_empty());
    assert_eq!(store.load(&a).await.unwrap(), TaskProgress::default());
    assert_eq!(store.message(&b, "m").await.unwrap(), b"b");
}

async fn concurrent_commits_all_arrive(store: SharedStore) {
    let commits = (0..200u64).map(|i| {
        let store = store.clone();
        async move {
            let task = TaskId::new(format!("t{}", i % 7));
            let channel = PChannel::new(format!("ch{i}"));
            let floor = Change::RaiseFloor {
                target: TargetKey::new("http://a:1"),
                channel: PChannel::new("one"),
                floor: Tso(i),
            };
            let put = Change::PutChannel {
                task,
                channel,
                progress: progress(i, i, i),
                clean: false,
            };
            store.commit(vec![put, floor]).await
        }
    });
    for result in futures::future::join_all(commits).await {
        result.unwrap();
    }
    let mut channels = 0;
    for t in 0..7 {
        channels += store
            .load(&TaskId::new(format!("t{t}")))
            .await
            .unwrap()
            .channels
            .len();
    }
    assert_eq!(channels, 200);
    assert_eq!(
        store.floors(&TargetKey::new("http://a:1")).await.unwrap()[&PChannel::new("one")],
        Tso(199)
    );
}

/// Commits 60 random bundles of changes to the store and to the twin, and compares all they hold. The seed is printed.
pub async fn random_commits_match_the_model(store: SharedStore, seed: u64) {
    println!("random_commits_match_the_model: seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let model = MemoryStore::default();
    for _ in 0..60 {
        let bundle: Vec<Change> = (0..rng.random_range(1..8))
            .map(|_| random_change(&mut rng))
            .collect();
        store.commit(bundle.clone()).await.unwrap();
        super::ProgressStore::commit(&model, bundle).await.unwrap();
    }
    assert_same(store.as_ref(), &model).await;
}

/// Panics unless both stores hold the same for the tasks and targets of [`random_change`].
pub async fn assert_same(a: &dyn super::ProgressStore, b: &dyn super::ProgressStore) {
    for n in 0..3 {
        let task = TaskId::new(format!("task{n}"));
        assert_eq!(
            a.load(&task).await.unwrap(),
            b.load(&task).await.unwrap(),
            "{task}"
        );
        for m in 1..4 {
            let message = format!("m{m}");
            assert_eq!(
                a.message(&task, &message).await.unwrap(),
                b.message(&task, &message).await.unwrap(),
                "{task} {message}"
            );
        }
        let target = TargetKey::new(format!("http://target{n}:19530"));
        assert_eq!(
            a.floors(&target).await.unwrap(),
            b.floors(&target).await.unwrap(),
            "{target}"
        );
    }
}

/// A change of any kind over few tasks, channels and ids, so that changes meet each other.
pub fn random_change(rng: &mut StdRng) -> Change {
    let task = TaskId::new(format!("task{}", rng.random_range(0..3)));
    let channel = PChannel::new(format!("ch{}", rng.random_range(0..3)));
    let id = rng.random_range(1..4i64);
    let mut tso = || Tso(rng.random::<u64>() >> rng.random_range(0..64u32));
    let (applied, sent) = (tso(), tso());
    let p = Progress {
        position: Position::Rocksmq(id),
        after: id == 2,
        applied,
        sent,
    };
    let phases = [
        ObjectPhase::Creating,
        ObjectPhase::Live,
        ObjectPhase::Dropping,
        ObjectPhase::Dropped,
    ];
    match rng.random_range(0..32) {
        0..5 => Change::PutChannel {
            task,
            channel,
            progress: p,
            clean: rng.random(),
        },
        5..9 => Change::RaiseSent {
            task,
            channel,
            sent,
        },
        9 => Change::DeleteChannel { task, channel },
        10 | 11 => Change::PutDetached {
            task,
            channel,
            collection: CollectionId(id),
            progress: p,
        },
        12 => Change::DeleteDetached {
            task,
            channel,
            collection: CollectionId(id),
        },
        13 => Change::PutReplicate {
            task,
            position: p.position,
        },
        14 | 15 => Change::PutCollection {
            task,
            object: collection(id, "c", phases[rng.random_range(0..4)]),
        },
        16 => Change::DeleteCollection {
            task,
            source: CollectionId(id),
        },
        17 | 18 => Change::PutPartition {
            task,
            object: partition(id, id, "p"),
        },
        19 => Change::DeletePartition {
            task,
            source: PartitionId(id),
        },
        20 => Change::PutNote {
            task,
            collection: CollectionId(id),
            note: format!("note {applied}"),
        },
        21 => Change::PutNote {
            task,
            collection: CollectionId(id),
            note: String::new(),
        },
        22..25 => {
            let target = TargetKey::new(format!("http://target{}:19530", rng.random_range(0..3)));
            Change::RaiseFloor {
                target,
                channel,
                floor: applied,
            }
        }
        25 | 26 => Change::PutQuarantined {
            task,
            key: format!("{id}-k"),
            record: quarantined(
                id,
                State::Dropped {
                    by: "me".to_owned(),
                    at: applied.0 >> 1,
                },
            ),
        },
        27 => Change::DeleteQuarantined {
            task,
            key: format!("{id}-k"),
        },
        28 | 29 => Change::PutMessagePart {
            task,
            message: format!("m{id}"),
            part: (sent.0 % 12) as u32,
            bytes: applied.0.to_le_bytes().to_vec().into(),
        },
        30 => Change::DeleteMessage {
            task,
            message: format!("m{id}"),
        },
        _ => Change::ForgetTask { task },
    }
}
