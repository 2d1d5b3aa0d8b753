//! The target Milvus: the calls a replicating writer makes, and what their failures mean.
//!
//! [`Target`] is the seam. Every call has a deadline of its own; a lost reply is [`TargetError::Unknown`], never a
//! success and never a refusal.

pub mod claims;
#[cfg(any(test, feature = "testkit"))]
pub mod contract;
pub mod fence;
pub(crate) mod flow;
pub mod grpc;
pub mod hub;
#[cfg(any(test, feature = "testkit"))]
pub mod memory;
pub mod plain;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use milvus::proto::schema::CollectionSchema;

use crate::catalog::Collection;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel, PartitionId, VChannel};
use crate::route::encode::Entry;
use crate::select::Name;
use crate::task::{Mode, TargetSpec};
use crate::tso::Tso;

/// `ErrAliasCollectionNameConfilct` of `pkg/util/merr`.
const NAME_OR_ALIAS: i32 = 1601;

#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TargetError {
    #[error("target {uri}: {cause}")]
    Configuration {
        uri: String,
        cause: String,
        hint: String,
    },
    /// The call did not get out: nothing was done.
    #[error("target {uri}: {call}: {cause}")]
    Unreachable {
        uri: String,
        call: &'static str,
        cause: String,
    },
    /// The call may or may not have been carried out.
    #[error("target {uri}: {call}: no answer: {cause}")]
    Unknown {
        uri: String,
        call: &'static str,
        cause: String,
    },
    /// Some of it is done, and the rest was not begun in its time: to be called again at once.
    #[error("target {uri}: {call}: not all of it within {within:?}")]
    Unfinished {
        uri: String,
        call: &'static str,
        within: Duration,
    },
    /// The target answered, with an error.
    #[error("target {uri}: {call}: {reason} (code {code})")]
    Refused {
        uri: String,
        call: &'static str,
        code: i32,
        reason: String,
    },
}

impl TargetError {
    /// The one place that says what an answer of the target means. Codes: `pkg/util/merr`; texts where old servers
    /// have only the untyped 65535 and 3.x gives the same text another code.
    pub fn class(&self) -> ErrorClass {
        match self {
            TargetError::Configuration { .. } => ErrorClass::Configuration,
            TargetError::Unreachable { .. }
            | TargetError::Unknown { .. }
            | TargetError::Unfinished { .. } => ErrorClass::Transient,
            TargetError::Refused {
                code, reason, call, ..
            } => {
                if reason.contains("not supported in streaming mode") {
                    return ErrorClass::Configuration;
                }
                if *call == "CreateCollection" && reason.contains("not support") {
                    return ErrorClass::Data;
                }
                if reason.contains("with different parameters")
                    || reason.contains("duplicate collection")
                {
                    return ErrorClass::Conflict;
                }
                match code {
                    10 | 1400 | 1401 | 1900 => ErrorClass::Configuration,
                    1100 | 1101 | 1102 | 1901 | 1902 | 105 | 108 => ErrorClass::Data,
                    _ => ErrorClass::Transient,
                }
            }
        }
    }

    /// Whether the target may have carried the call out.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, TargetError::Unknown { .. })
    }

    /// The messages of a call may be what the target refused, rather than the moment: it says so, or gives no reason
    /// (65535 is what servers of 2.3 to 2.5 have for every error without a code of its own).
    pub fn is_about_messages(&self) -> bool {
        self.class() == ErrorClass::Data || matches!(self, TargetError::Refused { code: 65535, .. })
    }

    /// The target cannot make such a collection.
    fn is_of_a_schema(&self) -> bool {
        matches!(
            self,
            TargetError::Refused {
                call: "CreateCollection",
                ..
            }
        )
    }

    /// What the call was about does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, TargetError::Refused { code, reason, .. }
            if matches!(code, 100 | 800 | 200 | 700)
                || reason.contains("not found") || reason.contains("can't find collection")
                || reason.contains("index not exist") || reason.contains("not exist"))
    }

    /// No data node of the target reads one of the collection's channels. A node begins with a channel once that has had
    /// a tick behind the creation (seen on 2.3.5), and on a standby only we send ticks: to wait for it would be in vain
    /// where the collection is not carried yet.
    pub fn is_unwatched(&self) -> bool {
        matches!(self, TargetError::Refused { reason, .. } if reason.contains("channel not found"))
    }

    /// The name is that of a collection where an alias was meant, or the other way round (1601, `pkg/util/merr`).
    pub fn is_alias(&self) -> bool {
        matches!(
            self,
            TargetError::Refused {
                code: NAME_OR_ALIAS,
                ..
            }
        )
    }

    /// The target has no such call, or takes nothing away with it: a request with keys that go, which a server before 2.5
    /// does not know, asks it for nothing (`internal/rootcoord/alter_collection_task.go`, seen on 2.3.5).
    pub fn is_unable(&self) -> bool {
        matches!(self, TargetError::Refused { code, reason, .. }
            if *code == 10 || reason.contains("properties is empty"))
    }

    /// The collection has to be released for this first.
    pub fn is_loaded(&self) -> bool {
        matches!(self, TargetError::Refused { code: 104, .. })
    }

    pub fn already_exists(&self) -> bool {
        matches!(self, TargetError::Refused { reason, .. } if reason.contains("already exist"))
    }

    pub fn problem(&self) -> Problem {
        let hint = match self {
            TargetError::Configuration { hint, .. } => hint.clone(),
            TargetError::Unreachable { .. }
            | TargetError::Unknown { .. }
            | TargetError::Unfinished { .. } => {
                "check that the target is up and its address is right; tried again by itself"
                    .to_owned()
            }
            TargetError::Refused { .. } => match self.class() {
                ErrorClass::Transient => {
                    "tried again by itself; see the target's log if it lasts".to_owned()
                }
                ErrorClass::Configuration => {
                    "the target cannot be written to in this way; see the README's table".to_owned()
                }
                ErrorClass::Data if self.is_of_a_schema() => {
                    "leave the collection out of the task, or choose a target that has the type"
                        .to_owned()
                }
                _ => String::new(),
            },
        };
        Problem::new(self.class(), self.to_string(), hint)
    }
}

/// A collection as the target describes it.
#[derive(Clone, PartialEq, Debug)]
pub struct TargetCollection {
    pub id: CollectionId,
    pub name: String,
    /// In shard order. Empty in plain mode, until [`TargetCollection::with_channels`].
    pub vchannels: Vec<VChannel>,
    pub pchannels: Vec<PChannel>,
    /// User fields only.
    pub schema: CollectionSchema,
    pub properties: Vec<(String, String)>,
    /// Its id stands for its name: the server has none (milvus-lite).
    pub by_name: bool,
}

impl TargetCollection {
    /// In plain mode, with channels that stand for so many shards.
    #[must_use]
    pub(crate) fn with_channels(mut self, mode: Mode, shards: usize) -> Self {
        if mode == Mode::Plain {
            (self.vchannels, self.pchannels) = plain::channels(self.id, shards).into_iter().unzip();
        }
        self
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct TargetIndex {
    pub name: String,
    pub field: String,
    pub params: Vec<(String, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loaded {
    No,
    Loading,
    Yes,
}

/// A ReplicateMessage that has not left within this never does: there is no connection, and nothing was done.
pub const DISPATCH: Duration = Duration::from_secs(1);
/// After the deadline of a call whose answer was not seen, this long still counts as "it may be carried out".
pub(crate) const LATE: Duration = Duration::from_millis(300);

/// Counted from its begin, a ReplicateMessage with this deadline can be carried out for so long.
pub fn carried_out_within(call_timeout: Duration) -> Duration {
    DISPATCH + call_timeout + LATE
}

#[async_trait]
pub trait TargetConnector: Send + Sync {
    /// Connects and logs in.
    async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError>;
}

/// Names are resolved by the target in the database given. DDL carries `replicateInfo` with the source's timestamp.
#[async_trait]
pub trait Target: Send + Sync {
    /// How it is written to. Plain: `replicate` calls Insert and Delete for what it is given, on the channels of
    /// [`plain::channels`]; a collection has no channels of its own.
    fn mode(&self) -> Mode;
    /// Whether the target takes what is written to it in this mode. Writes nothing.
    async fn probe(&self) -> Result<(), TargetError>;
    /// Appends messages to one channel, in their order; not atomic once it writes, but a call with an invalid entry
    /// writes nothing. Leaves within [`DISPATCH`] or never, so that with a deadline of `call_timeout` it can be carried
    /// out until [`carried_out_within`] and not after.
    async fn replicate(
        &self,
        channel: &PChannel,
        msgs: Vec<Entry>,
        begin: Tso,
        end: Tso,
    ) -> Result<(), TargetError>;
    /// A fresh timestamp of the target's oracle.
    async fn now(&self) -> Result<Tso, TargetError>;

    async fn databases(&self) -> Result<Vec<String>, TargetError>;
    async fn create_database(&self, name: &str) -> Result<(), TargetError>;
    async fn drop_database(&self, name: &str) -> Result<(), TargetError>;
    /// Its properties.
    async fn describe_database(&self, name: &str) -> Result<Vec<(String, String)>, TargetError>;
    /// Sets these properties, and takes away those of these keys; leaves the others.
    async fn alter_database(
        &self,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError>;

    async fn collections(&self, database: &str) -> Result<Vec<String>, TargetError>;
    /// The collection of that name. An alias is no name: if there is one it is refused ([`TargetError::is_alias`]).
    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, TargetError>;
    /// `ts`: creation time on the target.
    async fn create_collection(
        &self,
        database: &str,
        source: &Collection,
        ts: Tso,
    ) -> Result<(), TargetError>;
    async fn drop_collection(&self, database: &str, name: &str, ts: Tso)
    -> Result<(), TargetError>;
    /// Gives it another name, maybe in another database, which has to be there. It stays the same collection; where ids
    /// stand for names (milvus-lite) it has another one.
    async fn rename_collection(
        &self,
        database: &str,
        name: &str,
        to: &Name,
    ) -> Result<(), TargetError>;
    /// Sets these properties, and takes away those of these keys; leaves the others.
    async fn alter_collection(
        &self,
        database: &str,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError>;

    /// Which collection an alias stands for; `None` if there is none. A collection of that name is refused (1601).
    async fn alias(&self, database: &str, alias: &str)
    -> Result<Option<CollectionId>, TargetError>;
    /// Lets it stand for a collection; `moved`: it stands for another one now, otherwise there is none.
    async fn put_alias(
        &self,
        database: &str,
        alias: &str,
        name: &str,
        moved: bool,
    ) -> Result<(), TargetError>;
    /// One that is not there is well, too.
    async fn drop_alias(&self, database: &str, alias: &str) -> Result<(), TargetError>;
    /// Whether any segment of it may hold rows. Errs on the side of yes: one whose rows are all deleted counts, and one
    /// that rows are just written to, which may be sealed for this.
    async fn holds_rows(&self, database: &str, name: &str) -> Result<bool, TargetError>;

    async fn partitions(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Vec<(String, PartitionId)>, TargetError>;
    async fn create_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        ts: Tso,
    ) -> Result<(), TargetError>;
    async fn drop_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        ts: Tso,
    ) -> Result<(), TargetError>;

    async fn indexes(&self, database: &str, name: &str) -> Result<Vec<TargetIndex>, TargetError>;
    async fn create_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError>;
    async fn drop_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError>;
    /// Sets these parameters of an index, and takes away those of these keys; leaves the others.
    async fn alter_index(
        &self,
        database: &str,
        name: &str,
        index: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError>;

    /// Whether all of these partitions are loaded; if none are named, what was asked to be loaded of the collection.
    async fn loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<Loaded, TargetError>;
    async fn load(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
        replicas: i32,
    ) -> Result<(), TargetError>;
    /// Releases the whole collection if `partitions` is empty.
    async fn release(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<(), TargetError>;
    async fn flush(&self, database: &str, names: &[String]) -> Result<(), TargetError>;
    /// Whether everything up to target timestamp `up_to`, which has to be written and shown by a tick, is flushed: the
    /// target's own restart begins behind it.
    async fn is_flushed(&self, database: &str, name: &str, up_to: Tso)
    -> Result<bool, TargetError>;
    /// The nodes that hold data, each with its id and the start of its process: others after every restart. `None` if
    /// the target does not tell, or not to this user.
    async fn nodes(&self) -> Result<Option<BTreeSet<String>>, TargetError>;
}
