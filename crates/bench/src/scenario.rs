//! What is measured: names, and what they mean.

use crate::source::shape::Shape;
use crate::source::writer::{Kind, Load};

/// How a scenario goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// The queue is full before the program starts: how much it takes to carry `megabytes`.
    Backlog {
        load: Load,
        megabytes: u64,
        tasks: Tasks,
        /// What the target takes; `None`: as fast as it can.
        target_mb_per_second: Option<f64>,
        /// The run ends after so many seconds, wherever it is. `None`: with the backlog.
        seconds: Option<u64>,
    },
    /// The rows come at the load's pace: how late they are, and what it costs.
    Live { load: Load, seconds: u64 },
    /// Only ticks: what it costs to be there. Then the program is started anew: how long to the first row.
    Idle { seconds: u64, paused: bool },
    /// No program: a generator that sends to the target what a writer would.
    TargetAlone { load: Load, megabytes: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tasks {
    /// One for all collections.
    One,
    /// One for each collection.
    OfEach,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub collections: usize,
    /// In use on the source; collections are on them in turn.
    pub channels: usize,
    pub way: Way,
}

const D768: Shape = Shape { dim: 768, text: 0 };
const D128: Shape = Shape { dim: 128, text: 0 };
const TEXTS: Shape = Shape {
    dim: 128,
    text: 1000,
};

const fn load(kind: Kind, shape: Shape, rows: usize, per_second: f64) -> Load {
    Load {
        kind,
        shape,
        rows,
        per_second,
    }
}

const fn backlog(load: Load, megabytes: u64) -> Way {
    Way::Backlog {
        load,
        megabytes,
        tasks: Tasks::One,
        target_mb_per_second: None,
        seconds: None,
    }
}

const fn of(
    name: &'static str,
    about: &'static str,
    collections: usize,
    channels: usize,
    way: Way,
) -> Scenario {
    Scenario {
        name,
        about,
        collections,
        channels,
        way,
    }
}

const ROWS_1000: Load = load(Kind::Insert, D768, 1000, 10.0);
const ROWS_10: Load = load(Kind::Insert, D768, 10, 1000.0);
const ROWS_1: Load = load(Kind::Insert, D768, 1, 2000.0);

/// All of them. The sizes are those of a whole run; `--megabytes` and `--seconds` take others.
pub const ALL: &[Scenario] = &[
    of(
        "target-alone",
        "what the null target takes: inserts of 1,000 rows of 768 dimensions, sent to it without milvus-cdc",
        16,
        16,
        Way::TargetAlone {
            load: ROWS_1000,
            megabytes: 2000,
        },
    ),
    of(
        "target-alone-10",
        "the same with inserts of 10 rows, up to 4 MiB a call",
        16,
        16,
        Way::TargetAlone {
            load: ROWS_10,
            megabytes: 1000,
        },
    ),
    of(
        "insert-1000",
        "inserts of 1,000 rows of 768 dimensions, 16 collections on 16 channels",
        16,
        16,
        backlog(ROWS_1000, 2000),
    ),
    of(
        "insert-10",
        "inserts of 10 rows of 768 dimensions",
        16,
        16,
        backlog(ROWS_10, 1000),
    ),
    of(
        "insert-1",
        "inserts of one row of 768 dimensions",
        16,
        16,
        backlog(ROWS_1, 300),
    ),
    of(
        "delete",
        "deletes of 10 keys",
        16,
        16,
        backlog(load(Kind::Delete, D768, 10, 2000.0), 30),
    ),
    of(
        "upsert",
        "upserts of 10 rows of 768 dimensions",
        16,
        16,
        backlog(load(Kind::Upsert, D768, 10, 1000.0), 500),
    ),
    of(
        "dim-128",
        "inserts of 1,000 rows of 128 dimensions",
        16,
        16,
        backlog(load(Kind::Insert, D128, 1000, 40.0), 1000),
    ),
    of(
        "text",
        "inserts of 100 rows with 1,000 bytes of VarChar and of JSON each, and 128 dimensions",
        16,
        16,
        backlog(load(Kind::Insert, TEXTS, 100, 100.0), 1000),
    ),
    of(
        "one-channel",
        "inserts of 1,000 rows of 768 dimensions, one collection on one channel",
        1,
        1,
        backlog(ROWS_1000, 2000),
    ),
    of(
        "one-channel-1",
        "inserts of one row, one collection on one channel",
        1,
        1,
        backlog(ROWS_1, 150),
    ),
    of(
        "ten-tasks",
        "ten collections on one channel, a task for each: the channel is read ten times",
        10,
        1,
        Way::Backlog {
            load: ROWS_1000,
            megabytes: 1000,
            tasks: Tasks::OfEach,
            target_mb_per_second: None,
            seconds: None,
        },
    ),
    of(
        "one-task-of-ten",
        "the same ten collections in one task",
        10,
        1,
        backlog(ROWS_1000, 1000),
    ),
    of(
        "slow-target",
        "a backlog of inserts of 1,000 rows, and a target that takes 1 MB/s: memory",
        16,
        16,
        Way::Backlog {
            load: ROWS_1000,
            megabytes: 2000,
            tasks: Tasks::One,
            target_mb_per_second: Some(1.0),
            seconds: Some(120),
        },
    ),
    of(
        "live-10",
        "100 inserts of 10 rows of 768 dimensions a second: how late they are",
        16,
        16,
        Way::Live {
            load: load(Kind::Insert, D768, 10, 100.0),
            seconds: 30,
        },
    ),
    of(
        "live-1",
        "500 inserts of one row a second: how late they are",
        16,
        16,
        Way::Live {
            load: load(Kind::Insert, D768, 1, 500.0),
            seconds: 30,
        },
    ),
    of("idle-1", "one idle collection", 1, 1, IDLE),
    of(
        "idle-100",
        "100 idle collections on 16 channels",
        100,
        16,
        IDLE,
    ),
    of(
        "idle-1000",
        "1,000 idle collections on 16 channels",
        1000,
        16,
        IDLE,
    ),
    of(
        "paused",
        "a paused task with 16 collections on 16 channels with ticks",
        16,
        16,
        Way::Idle {
            seconds: 30,
            paused: true,
        },
    ),
];

const IDLE: Way = Way::Idle {
    seconds: 30,
    paused: false,
};

/// The scenario of this name.
pub fn find(name: &str) -> Option<Scenario> {
    ALL.iter().find(|s| s.name == name).copied()
}

impl Scenario {
    /// With another size.
    #[must_use]
    pub fn sized(mut self, mb: Option<u64>, s: Option<u64>) -> Self {
        match &mut self.way {
            Way::Backlog {
                megabytes, seconds, ..
            } => {
                *megabytes = mb.unwrap_or(*megabytes);
                *seconds = s.or(*seconds);
            }
            Way::TargetAlone { megabytes, .. } => *megabytes = mb.unwrap_or(*megabytes),
            Way::Live { seconds, .. } | Way::Idle { seconds, .. } => {
                *seconds = s.unwrap_or(*seconds);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for (i, scenario) in ALL.iter().enumerate() {
            assert_eq!(ALL.iter().position(|s| s.name == scenario.name), Some(i));
            assert_eq!(find(scenario.name), Some(*scenario));
            assert!(scenario.channels <= crate::source::CHANNELS);
        }
        assert_eq!(find("nothing"), None);
    }
}
