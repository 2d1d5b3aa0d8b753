//! What happens in one run: chosen by a seed beforehand, so that parts of it can be left out.

use std::num::NonZeroU64;
use std::time::Duration;

use cdc_core::snapshot::Initial;
use cdc_core::target::memory::Weather;
use cdc_core::task::Mode;
use cdc_core::tso::Tso;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::gate::{DiskWeather, Kind};
use crate::world::Setup;

/// Names of collections: few, so that one comes again.
pub const NAMES: usize = 5;
/// Source time at the begin of each run.
pub(crate) const EPOCH: u64 = 1_750_000_000_000;

/// Collections and partitions are named by a number that is taken modulo those there are: what is left out of a plan
/// does not make the rest of it wrong.
#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    Insert {
        of: usize,
        part: usize,
        rows: usize,
    },
    Upsert {
        of: usize,
        part: usize,
        rows: usize,
    },
    Delete {
        of: usize,
        rows: usize,
    },
    Create {
        name: usize,
        db: usize,
        shards: usize,
    },
    Drop {
        of: usize,
    },
    /// Dropped, and made again at once.
    Again {
        of: usize,
        shards: usize,
    },
    CreatePartition {
        of: usize,
        name: usize,
    },
    DropPartition {
        of: usize,
        part: usize,
    },
    PartitionAgain {
        of: usize,
        part: usize,
    },
    CreateDatabase,
    DropDatabase {
        db: usize,
    },
    Index {
        of: usize,
    },
    Load {
        of: usize,
    },
    /// In its database, or in another one.
    Rename {
        of: usize,
        name: usize,
        db: usize,
    },
    /// Two swap their names.
    Swap {
        of: usize,
        with: usize,
    },
    /// Made, or moved.
    Alias {
        of: usize,
        name: usize,
    },
    DropAlias {
        name: usize,
    },
    /// The entries of dropped collections go from the source's etcd.
    Garbage {
        spare: usize,
    },
    /// The watch of etcd shows nothing for so many ms, then all at once.
    Blind {
        ms: u64,
    },
    /// Nothing is written to a source channel for so many ms.
    Slow {
        channel: usize,
        ms: u64,
    },
    QueueDown {
        calls: usize,
    },
    EtcdDown {
        ms: u64,
    },
    /// The next calls to the target are carried out, their answers lost.
    LoseReplies {
        n: usize,
    },
    /// The next calls to the target are carried out late, their answers lost.
    Late {
        n: usize,
        ms: u64,
    },
    TargetAway {
        n: usize,
    },
    TargetHangs {
        ms: u64,
    },
    /// `kill -9` at the `after`-th call of a kind from here, before it is made or behind it; then `down` ms of nothing.
    Crash {
        kind: Kind,
        after: u32,
        behind: bool,
        down: u64,
    },
    /// The queue lets go of all that is in a source channel by now, read or not.
    Purge {
        channel: usize,
    },
    /// The source does not answer those who read its rows.
    RowsDown {
        ms: u64,
    },
    /// A person lets all be copied whose place in the queue is lost.
    CopyLost,
    /// The target's nodes end and read their log again, or, if it `loses`, come back with what they had flushed alone.
    Restart {
        loses: bool,
    },
    /// Nothing.
    Rest,
    /// Ended in good order, and started again.
    Stop {
        down: u64,
    },
}

impl Act {
    /// It counts among the operations on objects.
    pub fn is_ddl(&self) -> bool {
        matches!(
            self,
            Act::Create { .. }
                | Act::Drop { .. }
                | Act::Again { .. }
                | Act::CreatePartition { .. }
                | Act::DropPartition { .. }
                | Act::PartitionAgain { .. }
                | Act::CreateDatabase
                | Act::DropDatabase { .. }
                | Act::Index { .. }
                | Act::Load { .. }
                | Act::Rename { .. }
                | Act::Swap { .. }
                | Act::Alias { .. }
                | Act::DropAlias { .. }
        )
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    pub seed: u64,
    pub setup: Setup,
    pub weather: Weather,
    pub disk: DiskWeather,
    pub latency: Duration,
    /// Plain: what a reader sees on the way is not judged, only the end.
    pub mode: Mode,
    /// Each after so many ms.
    pub acts: Vec<(u64, Act)>,
    /// What the source had before the task, if the task begins with it.
    pub copies: Option<Copies>,
    /// How often the target is asked to flush, where it restarts.
    pub durable_every: Option<Duration>,
}

/// A source that is older than its task, whose queue does not hold all of it any more.
#[derive(Clone, PartialEq, Debug)]
pub struct Copies {
    pub initial: Initial,
    /// Before the task.
    pub acts: Vec<(u64, Act)>,
    /// Of each channel, whether the queue has let go of what was in it then.
    pub purged: Vec<bool>,
    pub rows_per_second: Option<NonZeroU64>,
    /// The source shows no more rows than that at a time, if not 0.
    pub most: u64,
}

impl Plan {
    pub fn of(seed: u64, mode: Mode) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15);
        let rng = &mut rng;
        let setup = Setup {
            source_channels: rng.random_range(1..=4),
            target_channels: rng.random_range(1..=3),
            epoch: Tso::from_millis(EPOCH),
            ahead: if rng.random_bool(0.5) {
                0
            } else {
                rng.random_range(-2000..=2000)
            },
            retries: retries(seed),
        };
        let stormy = rng.random_bool(0.7);
        let some = |rng: &mut StdRng, most: f64| {
            if stormy {
                rng.random_range(0.0..most)
            } else {
                0.0
            }
        };
        let weather = Weather {
            lost: some(rng, 0.04),
            late: some(rng, 0.02),
            late_by: Duration::from_millis(rng.random_range(1..1000)),
            unreachable: some(rng, 0.04),
            partly: some(rng, 0.03),
            outlives: rng.random_range(0.0..1.0),
        };
        let disk = if rng.random_bool(0.5) {
            DiskWeather {
                fails: some(rng, 0.05),
                lost: some(rng, 0.05),
            }
        } else {
            DiskWeather::default()
        };
        let latency = Duration::from_millis(*pick(rng, &[1, 4, 4, 10, 60]));
        let mut acts = Vec::new();
        let collections = rng.random_range(2..=4);
        for name in 0..collections {
            let shards = rng.random_range(1..=3);
            acts.push((
                20,
                Act::Create {
                    name,
                    db: 0,
                    shards,
                },
            ));
        }
        for _ in 0..rng.random_range(70..100) {
            let gap = if rng.random_bool(0.3) {
                0
            } else {
                rng.random_range(0..12) * 20
            };
            acts.push((gap, act(rng)));
        }
        // What makes a run count.
        for act in [
            Act::LoseReplies { n: 1 },
            Act::Crash {
                kind: Kind::Replicate,
                after: rng.random_range(1..6),
                behind: true,
                down: 60,
            },
        ] {
            let at = rng.random_range(acts.len() / 3..acts.len());
            acts.insert(at, (20, act));
        }
        for act in names(seed) {
            let at = rng.random_range(acts.len() / 4..acts.len());
            acts.insert(at, (20, act));
        }
        let copies = copies(seed, &setup);
        for act in copies.iter().flat_map(|_| lost(seed)) {
            let at = rng.random_range(0..acts.len());
            acts.insert(at, (20, act));
        }
        let restarts = seed >= RESTARTS && mode == Mode::Replicate;
        for act in restarts.then(|| restarts_of(seed)).into_iter().flatten() {
            let at = rng.random_range(0..=acts.len());
            acts.insert(at, act);
        }
        Self {
            seed,
            setup,
            weather,
            disk,
            mode,
            latency,
            acts,
            copies,
            durable_every: restarts.then(|| Duration::from_millis(1000 + seed % 3000)),
        }
    }
}

fn pick<'a, T>(rng: &mut StdRng, of: &'a [T]) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

fn act(rng: &mut StdRng) -> Act {
    let (of, part, rows) = (
        rng.random_range(0..8),
        rng.random_range(0..3),
        rng.random_range(2..16),
    );
    let (db, name, shards) = (
        rng.random_range(0..4),
        rng.random_range(0..NAMES),
        rng.random_range(1..=3),
    );
    match rng.random_range(0..100) {
        0..26 => Act::Insert { of, part, rows },
        26..44 => Act::Upsert { of, part, rows },
        44..56 => Act::Delete { of, rows },
        56..60 => Act::Create { name, db, shards },
        60..62 => Act::Drop { of },
        62..66 => Act::Again { of, shards },
        66..69 => Act::CreatePartition { of, name: part },
        69..71 => Act::DropPartition { of, part },
        71..74 => Act::PartitionAgain { of, part },
        74 => Act::CreateDatabase,
        75 => Act::DropDatabase { db },
        76 => Act::Index { of },
        77..79 => Act::Load { of },
        79 => Act::Garbage { spare: part },
        80..82 => Act::Blind {
            ms: rng.random_range(20..3000),
        },
        82..84 => Act::Slow {
            channel: part,
            ms: rng.random_range(20..4000),
        },
        84 => Act::QueueDown {
            calls: rng.random_range(1..10),
        },
        85 => Act::EtcdDown {
            ms: rng.random_range(20..1500),
        },
        86..88 => Act::LoseReplies {
            n: rng.random_range(1..3),
        },
        88..90 => Act::Late {
            n: rng.random_range(1..3),
            ms: rng.random_range(1..1000),
        },
        90 => Act::TargetAway {
            n: rng.random_range(1..8),
        },
        91 => Act::TargetHangs {
            ms: rng.random_range(20..1800),
        },
        92..97 => Act::Crash {
            kind: *pick(
                rng,
                &[
                    Kind::Replicate,
                    Kind::Replicate,
                    Kind::Store,
                    Kind::Ddl,
                    Kind::Any,
                ],
            ),
            after: rng.random_range(1..12),
            behind: rng.random(),
            down: if rng.random_bool(0.5) {
                0
            } else {
                rng.random_range(0..20) * 20
            },
        },
        97 => Act::Insert { of, part, rows: 30 },
        _ => Act::Stop {
            down: rng.random_range(0..20) * 20,
        },
    }
}

/// Courses of smaller seeds are as they were before names changed: some of them are kept for what they found.
const NAMES_CHANGE: u64 = 1_000_000;

/// What happens to names: nothing in half of the courses.
fn names(seed: u64) -> Vec<Act> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5851_f42d_4c95_7f2d);
    if seed < NAMES_CHANGE || rng.random() {
        return Vec::new();
    }
    let one = |rng: &mut StdRng| {
        let (of, name) = (rng.random_range(0..8), rng.random_range(0..NAMES));
        match rng.random_range(0..10) {
            0..4 => Act::Rename {
                of,
                name,
                db: rng.random_range(0..4),
            },
            4..6 => Act::Swap { of, with: name },
            6..9 => Act::Alias { of, name },
            _ => Act::DropAlias { name },
        }
    };
    let count = rng.random_range(1..10);
    (0..count).map(|_| one(&mut rng)).collect()
}

/// Courses of smaller seeds are as they were before there were copies.
const COPIES: u64 = 100_000_000;

/// What was before the task, in courses that begin with it.
fn copies(seed: u64, setup: &Setup) -> Option<Copies> {
    let rng = &mut StdRng::seed_from_u64(seed ^ 0x2545_f491_4f6c_dd1d);
    if seed < COPIES || seed >= RESTARTS && rng.random_bool(0.6) {
        return None;
    }
    let mut acts = Vec::new();
    for name in 0..rng.random_range(1..=3) {
        let shards = rng.random_range(1..=3);
        let db = 0;
        acts.push((20, Act::Create { name, db, shards }));
    }
    for _ in 0..rng.random_range(5..40) {
        let (of, part) = (rng.random_range(0..8), rng.random_range(0..3));
        let rows = rng.random_range(2..24);
        let act = match rng.random_range(0..20) {
            0..9 => Act::Insert { of, part, rows },
            9..12 => Act::Upsert { of, part, rows },
            12..14 => Act::Delete { of, rows },
            14..17 => Act::CreatePartition { of, name: part },
            17 => Act::PartitionAgain { of, part },
            18 => Act::Index { of },
            _ => Act::Load { of },
        };
        acts.push((*pick(rng, &[0, 20, 60]), act));
    }
    let all = rng.random_bool(0.7);
    let purged = (0..setup.source_channels).map(|_| all || rng.random());
    Some(Copies {
        purged: purged.collect(),
        initial: *pick(rng, &[Initial::Snapshot, Initial::Snapshot, Initial::Auto]),
        acts,
        rows_per_second: *pick(
            rng,
            &[None, None, NonZeroU64::new(20), NonZeroU64::new(100)],
        ),
        most: *pick(rng, &[0, 4, 16]),
    })
}

/// What makes a copy necessary once more, or stops one; nothing in a third of the courses.
fn lost(seed: u64) -> Vec<Act> {
    let rng = &mut StdRng::seed_from_u64(seed ^ 0x6c62_272e_07bb_0142);
    if rng.random_bool(0.33) {
        return Vec::new();
    }
    let one = |rng: &mut StdRng| match rng.random_range(0..8) {
        0..3 => Act::Purge {
            channel: rng.random_range(0..4),
        },
        3 => Act::RowsDown {
            ms: rng.random_range(20..2000),
        },
        _ => Act::CopyLost,
    };
    let count = rng.random_range(1..8);
    (0..count).map(|_| one(rng)).collect()
}

/// Courses of smaller seeds are as they were before the target restarted.
const RESTARTS: u64 = 200_000_000;

/// Restarts of the target, and time in which they may be seen.
fn restarts_of(seed: u64) -> Vec<(u64, Act)> {
    let rng = &mut StdRng::seed_from_u64(seed ^ 0x1f83_d9ab_fb41_bd6b);
    let mut acts = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let loses = rng.random_bool(0.7);
        acts.push((20, Act::Restart { loses }));
    }
    for _ in 0..rng.random_range(0..4) {
        acts.push((rng.random_range(0..400) * 20, Act::Rest));
    }
    acts
}

/// How many messages come twice: none in most courses. By the seed itself, so that nothing else of a plan depends on it.
fn retries(seed: u64) -> f64 {
    if seed % 3 == 2 { 0.05 } else { 0.0 }
}
