use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::catalog::{Collection, Database, LoadState, ObjectState, Shard};
use crate::ids::{CollectionId, DbId, PChannel, TaskId, VChannel};
use crate::position::Position;
use crate::route::encode;
use crate::secret::Secret;
use crate::source::memory::MemoryLog;
use crate::store::Progress;
use crate::task::{OnConflict, Selection, StartPoint};
use crate::tls::ClientTls;
use crate::tso::Tso;

const REPLICATE: &str = "src-replicate-msg";

fn now() -> Tso {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Tso::from_millis(now.as_millis() as u64)
}

fn ago(seconds: u64) -> Tso {
    Tso::from_millis(now().millis() - seconds * 1000)
}

fn channel(n: usize) -> PChannel {
    PChannel::new(format!("src-rootcoord-dml_{n}"))
}

/// One collection `default.c` on the channels 0 and 1, which begins at their messages `start`.
fn view(start: u64) -> View {
    let shard = |n: usize| Shard {
        vchannel: VChannel::new(format!("{}_7v{n}", channel(n))),
        pchannel: channel(n),
    };
    let collection = Collection {
        id: CollectionId(7),
        db: DbId(1),
        name: "c".to_owned(),
        state: ObjectState::Created,
        schema: Default::default(),
        create_ts: ago(7200),
        shards: vec![shard(0), shard(1)],
        start_positions: HashMap::from([0, 1].map(|n| (channel(n), start.to_le_bytes().to_vec()))),
        consistency_level: 0,
        properties: Vec::new(),
        partitions: BTreeMap::new(),
        indexes: BTreeMap::new(),
        load: LoadState::Released,
    };
    let database = Database {
        id: DbId(1),
        name: "default".to_owned(),
        properties: Vec::new(),
    };
    View {
        revision: 1,
        databases: BTreeMap::from([(DbId(1), Arc::new(database))]),
        collections: BTreeMap::from([(CollectionId(7), Arc::new(collection))]),
        aliases: BTreeMap::new(),
    }
}

/// A tick each minute, the last one now.
fn ticking(queue: &MemoryLog, channel: &PChannel, minutes: u64) {
    for minute in (0..minutes).rev() {
        queue.append(channel, encode::tick(ago(minute * 60), minute as i64));
    }
}

fn task(position: u64, applied: Tso) -> Patient {
    let target = TargetSpec {
        uri: "http://t:1".to_owned(),
        token: Secret::new("root:hush-hush"),
        tls: ClientTls::default(),
        connect_timeout: Duration::from_secs(1),
        call_timeout: Duration::from_secs(1),
        mode: crate::task::Mode::Replicate,
    };
    let progress = Progress {
        position: Position::Natsmq(position),
        after: true,
        applied,
        sent: applied,
    };
    Patient {
        spec: TaskSpec {
            id: TaskId::new("t"),
            target,
            selection: Selection::All,
            mapping: Default::default(),
            skip: Default::default(),
            start: StartPoint::Created,
            starts: BTreeMap::new(),
            added: Default::default(),
            positions: BTreeMap::new(),
            on_conflict: OnConflict::Ask,
            created: now(),
            memory_budget: 0,
            snapshot: Default::default(),
            durable_every: Duration::from_secs(300),
        },
        progress: TaskProgress {
            channels: BTreeMap::from([(channel(0), progress)]),
            ..Default::default()
        },
    }
}

fn one<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let mut found = checks.iter().filter(|c| c.check == name);
    let check = found.next().unwrap();
    assert!(found.next().is_none(), "{checks:?}");
    check
}

#[tokio::test]
async fn a_queue_of_another_milvus_is_told_by_its_channels() {
    let (queue, view) = (MemoryLog::new(), view(1));
    queue.create_channel(&PChannel::new(REPLICATE));
    ticking(&queue, &channel(0), 3);
    let checks = source::channels(Some(&view), Some(&queue), REPLICATE).await;
    let check = one(&checks, names::CHANNELS);
    assert_eq!(check.verdict, Verdict::Problem);
    for part in ["1 are not in the queue", "src-rootcoord-dml_1", "default.c"] {
        assert!(check.text.contains(part), "{check:?}");
    }
    assert!(check.hint.contains("one and the same Milvus"), "{check:?}");

    ticking(&queue, &channel(1), 3);
    let checks = source::channels(Some(&view), Some(&queue), REPLICATE).await;
    assert_eq!(one(&checks, names::CHANNELS).verdict, Verdict::Ok);
    assert_eq!(one(&checks, names::ALIVE).verdict, Verdict::Ok);

    let checks = source::channels(Some(&view), Some(&queue), "by-dev-replicate-msg").await;
    let warned = |c: &&Check| c.verdict == Verdict::Warning && c.hint.contains("replicateChan");
    assert_eq!(checks.iter().filter(warned).count(), 1, "{checks:?}");
}

#[tokio::test]
async fn a_source_that_does_not_write_is_a_warning() {
    let (queue, view) = (MemoryLog::new(), view(1));
    queue.create_channel(&PChannel::new(REPLICATE));
    for n in [0, 1] {
        queue.append(&channel(n), encode::tick(ago(300), 1));
    }
    let checks = source::channels(Some(&view), Some(&queue), REPLICATE).await;
    let check = one(&checks, names::ALIVE);
    assert_eq!(check.verdict, Verdict::Warning, "{check:?}");
    assert!(check.text.contains("5 min"), "{check:?}");
}

#[tokio::test]
async fn positions_that_have_expired_are_named() {
    let (queue, view) = (MemoryLog::new(), view(1));
    for n in [0, 1] {
        ticking(&queue, &channel(n), 60);
    }
    let tasks = [task(30, ago(30 * 60))];
    let checks = positions::all(None, Some(&queue), &tasks).await;
    let check = one(&checks, names::POSITIONS);
    assert_eq!((check.verdict, check.subject.as_str()), (Verdict::Ok, "t"));
    for part in ["30 min behind", "29 min before"] {
        assert!(check.text.contains(part), "{check:?}");
    }
    // Little is left before the task.
    queue.purge_to(&channel(0), Position::Natsmq(27));
    let checks = positions::all(None, Some(&queue), &tasks).await;
    assert_eq!(one(&checks, names::POSITIONS).verdict, Verdict::Warning);
    // All behind it is there still, whatever became of the message it goes on behind.
    queue.purge_to(&channel(0), Position::Natsmq(30));
    let checks = positions::all(None, Some(&queue), &tasks).await;
    assert_ne!(one(&checks, names::POSITIONS).verdict, Verdict::Problem);
    queue.purge_to(&channel(0), Position::Natsmq(31));
    let checks = positions::all(None, Some(&queue), &tasks).await;
    let check = one(&checks, names::POSITIONS);
    assert_eq!(check.verdict, Verdict::Problem);
    for part in ["expired", "src-rootcoord-dml_0"] {
        assert!(check.text.contains(part), "{check:?}");
    }
    // A collection the task has not met yet begins at its creation, which is gone, too.
    let checks = positions::all(Some(&view), Some(&queue), &tasks).await;
    assert!(one(&checks, names::POSITIONS).text.contains("default.c"));
    // Nobody needs it.
    let checks = positions::all(Some(&view), Some(&queue), &[]).await;
    let check = one(&checks, names::POSITIONS);
    assert_eq!(check.verdict, Verdict::Warning, "{check:?}");
    assert!(check.text.contains("default.c"), "{check:?}");
}

#[tokio::test]
async fn what_cannot_be_looked_at_says_so() {
    let checks = source::channels(None, None, REPLICATE).await;
    assert_eq!(one(&checks, names::CHANNELS).verdict, Verdict::Skipped);
    let checks = positions::all(None, None, &[]).await;
    assert_eq!(one(&checks, names::POSITIONS).verdict, Verdict::Skipped);
}

#[test]
fn a_target_of_two_tasks_is_looked_at_once() {
    let further = TargetSpec {
        uri: "http://other:1".to_owned(),
        ..task(1, now()).spec.target
    };
    let setup = Setup {
        etcd: EtcdConfig::default(),
        source: Ok(Arc::new(MemoryLog::new())),
        rows: None,
        replicate_channel: REPLICATE.to_owned(),
        tasks: vec![task(1, now()), task(2, now())],
        targets: vec![further, task(1, now()).spec.target],
    };
    let uris: Vec<&str> = targets(&setup).iter().map(|t| t.uri.as_str()).collect();
    assert_eq!(uris, ["http://t:1", "http://other:1"]);
}

#[tokio::test]
async fn the_milvus_that_rows_are_read_from_is_that_of_the_metadata() {
    use crate::snapshot::Initial;
    use crate::snapshot::memory::{MemoryRows, Table};

    let view = view(1);
    let rows = MemoryRows::default();
    let table = |id| Table {
        id,
        ..Table::default()
    };
    let one = async |rows: &MemoryRows| {
        let checks = super::rows::look(Some(&view), Some(rows), &[]).await;
        let [check] = checks.as_slice() else {
            panic!("{checks:?}")
        };
        check.clone()
    };
    rows.put("default", "c", table(7));
    assert_eq!(one(&rows).await.verdict, Verdict::Ok);
    rows.put("default", "c", table(8));
    let other = one(&rows).await;
    assert_eq!(other.verdict, Verdict::Problem);
    assert!(other.text.contains("another Milvus"), "{other:?}");
    rows.set_down(true);
    let down = one(&rows).await;
    assert!(down.text.contains("down"), "{down:?}");
    // Nobody copies: nothing to say.
    let mut patient = task(1, now());
    let tasks = std::slice::from_ref(&patient);
    assert!(super::rows::look(Some(&view), None, tasks).await.is_empty());
    patient.spec.snapshot.initial = Initial::Auto;
    let checks = super::rows::look(Some(&view), None, &[patient]).await;
    assert_eq!(checks[0].verdict, Verdict::Problem);
    assert_eq!(checks[0].subject, "t");
}
