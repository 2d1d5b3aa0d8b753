//! What a replication task is asked to do, and what it says of itself: the corelib's side of the control plane.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::ids::{CollectionId, PChannel, TargetKey, TaskId};
use crate::position::Position;
use crate::secret::Secret;
use crate::tso::Tso;

/// How to reach a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetSpec {
    /// `http://host:port` or `https://host:port`, normalised: lower case, port always given, no path.
    pub uri: String,
    /// `user:password` or an API key; empty if the target asks for none.
    pub token: Secret,
    pub connect_timeout: Duration,
    /// Deadline of one ReplicateMessage call.
    pub call_timeout: Duration,
}

impl TargetSpec {
    pub fn key(&self) -> TargetKey {
        TargetKey::new(self.uri.as_str())
    }
}

/// Which collections a task carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// Every collection of every database, now and later, and the databases themselves.
    All,
    /// These, by database and name; a name that does not exist yet is waited for.
    Collections(Vec<(String, String)>),
}

impl Selection {
    pub fn contains(&self, database: &str, name: &str) -> bool {
        match self {
            Selection::All => true,
            Selection::Collections(list) => list.iter().any(|(d, n)| d == database && n == name),
        }
    }

    /// Whether some collection could belong to both.
    pub fn overlaps(&self, other: &Selection) -> bool {
        match (self, other) {
            (Selection::All, _) | (_, Selection::All) => true,
            (Selection::Collections(a), Selection::Collections(b)) => {
                a.iter().any(|x| b.contains(x))
            }
        }
    }
}

/// Where a collection's stream begins when a task first meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartPoint {
    /// At the message that created it: everything, if the queue still holds it.
    #[default]
    Created,
    /// At the first message the queue holds.
    Earliest,
    /// Behind the last message the queue holds at that moment.
    Now,
}

/// What to do with a collection that is already on the target, not empty, when a task first meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// Wait in the state `Conflict` until a person chooses.
    #[default]
    Ask,
    /// Go on into it: what is replayed replaces the rows of the same keys.
    Adopt,
    /// Drop it on the target and create it anew.
    Recreate,
}

/// A position that was given in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GivenPosition {
    pub position: Position,
    /// Source timestamp up to which everything is done already; zero if that is not known.
    pub applied: Tso,
}

/// A person's answer for one collection that waits for one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Answer to `Conflict`.
    Conflict(OnConflict),
    /// Answer to `PositionLost`.
    Start(StartPoint),
    /// Answer to `PositionLost`: at these messages.
    At(BTreeMap<PChannel, GivenPosition>),
    /// Answer to `Quarantined`: leave out the message that cannot be carried and go on behind it.
    Skip,
}

/// A replication task.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskSpec {
    pub id: TaskId,
    pub target: TargetSpec,
    pub selection: Selection,
    /// Where collections begin that are there when the task is created; later ones begin at their creation.
    pub start: StartPoint,
    /// The same for single collections, by database and name.
    pub starts: BTreeMap<(String, String), StartPoint>,
    /// Positions given with the request, by source collection and physical channel; they win over `start`.
    pub positions: BTreeMap<CollectionId, BTreeMap<PChannel, GivenPosition>>,
    /// When the task was created, as a timestamp of the source.
    pub created: Tso,
    pub on_conflict: OnConflict,
    /// Bytes of messages this task may hold in memory, batches in flight included.
    pub memory_budget: usize,
}

impl TaskSpec {
    /// Where a collection begins that was there when the task was created.
    pub fn start_of(&self, database: &str, name: &str) -> StartPoint {
        let key = (database.to_owned(), name.to_owned());
        self.starts.get(&key).copied().unwrap_or(self.start)
    }
}

/// Where one collection of a task stands.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "state", rename_all_fields = "snake_case")]
pub enum CollectionState {
    /// Seen on the source, not yet on the target.
    Waiting {
        why: String,
    },
    /// Its rows flow. `raised`: it is catching up, and reads of the target at a source tick may not show it at that
    /// tick.
    Streaming {
        lag_seconds: f64,
        raised: bool,
    },
    /// Cannot go on at the moment; tried again by itself.
    Failing {
        problem: Problem,
        attempt: u32,
        since: SystemTime,
    },
    /// Waits for a person: something of that name is on the target.
    Conflict {
        problem: Problem,
        choices: Vec<String>,
    },
    /// Waits for a person: the queue no longer holds where it would go on.
    PositionLost {
        channel: PChannel,
        wanted: String,
        first: Option<String>,
        last: Option<String>,
        choices: Vec<String>,
    },
    /// Waits for a person: one of its messages cannot be carried.
    Quarantined {
        problem: Problem,
        channel: PChannel,
        position: String,
    },
    Dropped,
}

/// One collection of a task, as shown to people.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CollectionStatus {
    pub source_id: CollectionId,
    pub database: String,
    pub name: String,
    #[serde(flatten)]
    pub state: CollectionState,
    /// Rows acknowledged by the target since this process started.
    pub rows: u64,
    /// Per source physical channel.
    pub positions: BTreeMap<PChannel, ChannelPosition>,
    pub last_error: Option<LastError>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ChannelPosition {
    pub position: Position,
    /// Source timestamp up to which everything is applied.
    pub applied: Tso,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LastError {
    pub at: SystemTime,
    pub problem: Problem,
}

/// Counters of a task since this process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counters {
    pub messages_in: u64,
    pub bytes_in: u64,
    pub messages_out: u64,
    pub rows_out: u64,
    pub bytes_out: u64,
    pub in_flight_bytes: u64,
}

/// A task, as shown to people.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TaskStatus {
    pub collections: Vec<CollectionStatus>,
    /// Errors of the task as a whole (source or target not reachable), while they last.
    pub problems: Vec<Problem>,
    /// Seconds of source time between now and the oldest thing that is not applied yet; `None` before the first message.
    pub lag_seconds: Option<f64>,
    /// Seconds since the stored checkpoint last moved.
    pub checkpoint_age_seconds: Option<f64>,
    pub counters: Counters,
    /// Errors since this process started, by class.
    pub errors: BTreeMap<String, u64>,
}
