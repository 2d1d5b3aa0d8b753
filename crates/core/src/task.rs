//! What a replication task is asked to do, and what it says of itself: the corelib's side of the control plane.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::catalog::Collection;
use crate::error::Problem;
use crate::ids::{CollectionId, PChannel, TargetKey, TaskId};
use crate::position::Position;
use crate::secret::Secret;
use crate::select::{self, Glob, Mapping, Name, Operation, Rule, Rules, Skipped};
use crate::snapshot::{Initial, SnapshotSpec};
use crate::tls::ClientTls;
use crate::tso::Tso;

/// How a target is written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As a standby (`common.ttMsgEnabled: false`, 2.3 to 2.5): by replicated messages, which keep the source's times.
    #[default]
    Replicate,
    /// As any client would: by Insert and Delete. The target is a Milvus of its own, of any version from 2.3 on, and may
    /// be written to by others.
    Plain,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Replicate => "replicate",
            Mode::Plain => "plain",
        })
    }
}

/// How to reach a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetSpec {
    /// `http://host:port` or `https://host:port`, normalised: lower case, port always given, no path.
    pub uri: String,
    /// `user:password` or an API key; empty if the target asks for none.
    pub token: Secret,
    /// Of use with `https` only.
    pub tls: ClientTls,
    pub connect_timeout: Duration,
    /// Deadline of one ReplicateMessage call; in plain mode, of all the calls that one of a lane becomes.
    pub call_timeout: Duration,
    pub mode: Mode,
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
    /// What one of these matches; what does not exist yet is waited for.
    Collections(Vec<Pattern>),
    /// What these say, in their order.
    Rules(Rules),
}

/// Collections by database and name; `None` is any.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pattern {
    pub database: Option<String>,
    pub name: Option<String>,
}

impl Pattern {
    /// One collection.
    pub fn exact(database: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            database: Some(database.into()),
            name: Some(name.into()),
        }
    }

    /// Every collection of one database.
    pub fn database(database: impl Into<String>) -> Self {
        Self {
            database: Some(database.into()),
            name: None,
        }
    }

    fn matches(&self, database: &str, name: &str) -> bool {
        self.database.as_deref().is_none_or(|d| d == database)
            && self.name.as_deref().is_none_or(|n| n == name)
    }
}

impl Selection {
    pub fn contains(&self, database: &str, name: &str) -> bool {
        match self {
            Selection::All => true,
            Selection::Collections(list) => list.iter().any(|p| p.matches(database, name)),
            Selection::Rules(rules) => rules.contains(database, name),
        }
    }

    /// The same as rules.
    pub fn rules(&self) -> Rules {
        let part = |part: &Option<String>| match part {
            // A name of an older version that is none matches nothing, as it did.
            Some(name) => Glob::new(name),
            None => Ok(Glob::any()),
        };
        let pattern = |p: &Pattern| {
            Some(select::Pattern::of(
                part(&p.database).ok()?,
                part(&p.name).ok()?,
            ))
        };
        match self {
            Selection::All => select::overlap::everything(),
            Selection::Collections(list) => {
                let patterns: Vec<_> = list.iter().filter_map(pattern).collect();
                Rules(vec![Rule::Include(patterns)])
            }
            Selection::Rules(rules) => rules.clone(),
        }
    }

    /// Whether all of this database belongs to the task, so that the database itself does.
    pub fn whole_database(&self, database: &str) -> bool {
        match self {
            Selection::All => true,
            Selection::Collections(list) => list
                .iter()
                .any(|p| p.name.is_none() && p.database.as_deref().is_none_or(|d| d == database)),
            Selection::Rules(rules) => rules.whole_database(database),
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

/// A person's answer for one collection that waits for one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Answer to `Conflict`.
    Conflict(OnConflict),
    /// Answer to `PositionLost`.
    Start(StartPoint),
    /// Answer to `PositionLost`: copy the rows that the source has into a new collection, and go on from there.
    Snapshot,
    /// Answer to `PositionLost`: at these messages.
    At(BTreeMap<PChannel, GivenPosition>),
    /// Answer to `Quarantined`: leave out the message that cannot be carried and go on behind it.
    Skip,
}

/// What a person says of one message that could not be carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Its collection goes on at it, at once.
    Retry,
    /// Its collection goes on without it.
    Drop,
}

/// A start position that a person gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GivenPosition {
    /// The message at which reading begins.
    pub position: Position,
    /// Messages of the collection up to this source timestamp are done already; zero if nothing is known.
    pub applied: Tso,
}

/// A replication task.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskSpec {
    pub id: TaskId,
    pub target: TargetSpec,
    pub selection: Selection,
    /// Their names on the target.
    pub mapping: Mapping,
    /// What happens to them on the source and is not carried.
    pub skip: Skipped,
    /// Where collections begin that are there when the task is created; later ones begin at their creation.
    pub start: StartPoint,
    /// The same for some of them, by database and name; `*` in either place is any. See [`TaskSpec::start_of`].
    pub starts: BTreeMap<(String, String), StartPoint>,
    /// Which of `starts` came later than the task, and when: they are for collections that were there by then.
    pub added: BTreeMap<(String, String), Tso>,
    /// Whether their rows are copied before their messages are carried, and how.
    pub snapshot: SnapshotSpec,
    /// Start positions given with the request, by source collection and source physical channel; they win over a start.
    /// Collections share channels: a position of one never moves another.
    pub positions: BTreeMap<CollectionId, BTreeMap<PChannel, GivenPosition>>,
    pub on_conflict: OnConflict,
    /// When the task was created, by this machine's clock.
    pub created: Tso,
    /// Bytes of messages this task may hold in memory, batches in flight included.
    pub memory_budget: usize,
    /// How often the durable checkpoint is moved, for which collections with new rows are flushed on the target.
    pub durable_every: Duration,
}

impl TaskSpec {
    /// The name on the target of a collection of the source.
    pub fn target_of(&self, database: &str, name: &str) -> Name {
        self.mapping.apply(database, name)
    }

    pub fn skips(&self, operation: Operation) -> bool {
        self.skip.contains(&operation)
    }

    /// Whether a collection is to be copied when it is first met. Where positions are given for it, it goes on from these;
    /// one that came later than the task begins at its creation.
    pub fn initial_of(&self, database: &str, collection: &Collection) -> Initial {
        if self.positions.contains_key(&collection.id) {
            return Initial::Incremental;
        }
        match self.snapshot.initial {
            Initial::Snapshot
                if collection.create_ts > self.given(database, &collection.name).1 =>
            {
                Initial::Auto
            }
            initial => initial,
        }
    }

    /// Where a collection begins that was created at `create_ts`: by its own start, that of its database, that of its
    /// name, the task's, if it was there when that was given; else at its creation, for all of it is wanted.
    pub fn start_of(&self, database: &str, name: &str, create_ts: Tso) -> StartPoint {
        match self.given(database, name) {
            (start, since) if create_ts <= since => start,
            _ => StartPoint::Created,
        }
    }

    /// The start that counts for a collection, and when it was given.
    fn given(&self, database: &str, name: &str) -> (StartPoint, Tso) {
        let given = [(database, name), (database, "*"), ("*", name)]
            .into_iter()
            .find_map(|(d, n)| {
                let key = (d.to_owned(), n.to_owned());
                let since = self.added.get(&key).copied().unwrap_or(self.created);
                Some((*self.starts.get(&key)?, since))
            });
        given.unwrap_or((self.start, self.created))
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
    /// The rows it had before are copied; its messages are carried when they are there.
    Snapshotting {
        rows_copied: u64,
        /// When the copy began.
        rows_total: u64,
        rows_per_second: f64,
        /// `None` while nothing is known.
        eta_seconds: Option<f64>,
        /// How long the source's queue keeps messages, if it says so: a copy that takes longer begins anew.
        queue_keeps_seconds: Option<f64>,
        /// Keys that the source holds more than once, beyond the first copy of each: they arrive once.
        doubled_keys: u64,
        /// What it is at.
        step: String,
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
    /// Seconds of source time between now and the oldest thing of it that is not applied, in every state; `None` where
    /// nothing is known of it, or nothing is left to carry.
    #[serde(skip)]
    pub lag_seconds: Option<f64>,
    /// Rows acknowledged by the target since this process started.
    pub rows: u64,
    /// Per source physical channel.
    pub positions: BTreeMap<PChannel, ChannelPosition>,
    pub last_error: Option<LastError>,
    /// Its name on the target, where it is another one.
    #[serde(skip)]
    pub target: Option<Name>,
    /// What has to be known of it beside its state.
    #[serde(skip)]
    pub note: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ChannelPosition {
    pub position: Position,
    /// Source timestamp up to which everything is applied.
    pub applied: Tso,
    /// Source timestamp up to which the target has flushed everything: a restart of the target goes back to here.
    pub durable: Option<Tso>,
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
    /// Of the task's collections, read and to be carried.
    pub rows_in: u64,
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
    /// Seconds of source time between now and the oldest thing that is not applied yet, of any collection in any state;
    /// `None` while nothing is known.
    pub lag_seconds: Option<f64>,
    /// Seconds of source time between now and the oldest thing that the target has not flushed.
    pub durable_lag_seconds: Option<f64>,
    /// Seconds since the stored checkpoint last moved.
    pub checkpoint_age_seconds: Option<f64>,
    pub counters: Counters,
    /// Errors since this process started, by class.
    pub errors: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 3] = ["a", "b", "elsewhere"];

    fn part() -> impl Strategy<Value = Option<String>> {
        prop_oneof![
            Just(None),
            Just(Some("a".to_owned())),
            Just(Some("b".to_owned()))
        ]
    }

    fn selection() -> impl Strategy<Value = Selection> {
        let pattern = (part(), part()).prop_map(|(database, name)| Pattern { database, name });
        prop_oneof![
            1 => Just(Selection::All),
            8 => proptest::collection::vec(pattern, 0..4).prop_map(Selection::Collections),
        ]
    }

    fn all_collections() -> impl Iterator<Item = (&'static str, &'static str)> {
        NAMES.into_iter().flat_map(|d| NAMES.map(|n| (d, n)))
    }

    proptest! {
        #[test]
        fn a_selection_and_its_rules_are_one(a in selection()) {
            let rules = a.rules();
            for (d, n) in all_collections() {
                prop_assert_eq!(a.contains(d, n), rules.contains(d, n));
            }
            for database in NAMES {
                prop_assert_eq!(a.whole_database(database), rules.whole_database(database));
            }
        }

        #[test]
        fn a_whole_database_holds_every_name(a in selection()) {
            for database in NAMES {
                // "elsewhere" is in no pattern: only a pattern for any name holds it.
                prop_assert_eq!(a.whole_database(database), a.contains(database, "elsewhere"));
            }
        }
    }

    #[test]
    fn the_most_exact_start_wins() {
        let at = |d: &str, n: &str, s| ((d.to_owned(), n.to_owned()), s);
        let spec = TaskSpec {
            id: TaskId::new("t"),
            target: TargetSpec {
                uri: String::new(),
                token: Secret::default(),
                tls: ClientTls::default(),
                connect_timeout: Duration::ZERO,
                call_timeout: Duration::ZERO,
                mode: Mode::Replicate,
            },
            selection: Selection::All,
            mapping: Mapping::default(),
            skip: Skipped::default(),
            start: StartPoint::Earliest,
            starts: BTreeMap::from([
                at("db", "c", StartPoint::Created),
                at("db", "*", StartPoint::Now),
                at("*", "x", StartPoint::Now),
            ]),
            added: BTreeMap::from([(("*".to_owned(), "x".to_owned()), Tso(20))]),
            snapshot: SnapshotSpec::default(),
            positions: BTreeMap::new(),
            on_conflict: OnConflict::Ask,
            created: Tso(10),
            memory_budget: 0,
            durable_every: Duration::from_secs(300),
        };
        for (database, name, create_ts, start) in [
            ("db", "c", 5, StartPoint::Created),
            ("db", "other", 10, StartPoint::Now),
            ("db", "other", 11, StartPoint::Created),
            ("db", "x", 5, StartPoint::Now),
            ("other", "x", 20, StartPoint::Now),
            ("other", "x", 21, StartPoint::Created),
            ("other", "c", 10, StartPoint::Earliest),
            ("other", "c", 11, StartPoint::Created),
        ] {
            assert_eq!(
                spec.start_of(database, name, Tso(create_ts)),
                start,
                "{database}.{name} of {create_ts}"
            );
        }
    }
}
