//! What a 2.3.5 standby does, one scenario for each [`Rule`]: sent through [`Target`] as it is, to the in-memory twin and
//! to a real server. Where the two differ the real one is right.
//!
//! Times are fresh ones of the target's own oracle, message ids are never used twice but where a scenario says so, and
//! every scenario has a collection of its own, on channels that no other one writes to.

mod calls;
mod messages;
mod objects;
mod restarts;
mod rows;
mod scene;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use super::memory::rules::Rule;
use super::{Target, TargetError};
use crate::ids::PChannel;
use crate::tso::Tso;

/// What was not as the rule says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl From<TargetError> for Broken {
    fn from(error: TargetError) -> Self {
        Self(error.to_string())
    }
}

pub type Outcome<T = ()> = Result<T, Broken>;

/// What a reader sees of a collection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// `count(*)`: every copy.
    pub count: usize,
    /// Keys with their versions, one of each key, sorted.
    pub rows: Vec<(i64, i64)>,
}

/// A standby with what scenarios need beside [`Target`].
#[async_trait]
pub trait Standby: Send + Sync {
    fn target(&self) -> Arc<dyn Target>;

    /// What a reader sees at once, without waiting for a tick. The collection is loaded, in the database `default`.
    async fn read(&self, name: &str) -> Outcome<Seen>;

    /// Whether GetPersistentSegmentInfo names a segment of the collection, in the database `default`.
    async fn names_segments(&self, name: &str) -> Outcome<bool>;

    /// Makes one call with `first` and `rest` of which only `first` is written; its error.
    async fn cut_short(
        &self,
        channel: &PChannel,
        first: Vec<Bytes>,
        rest: Vec<Bytes>,
        end: Tso,
    ) -> Outcome<TargetError>;

    /// Makes a call and is dead before it arrives. Returns then, and says for how long it may be carried out.
    async fn send_and_die(
        &self,
        channel: &PChannel,
        msgs: Vec<Bytes>,
        end: Tso,
    ) -> Outcome<Duration>;

    /// SIGKILL, and a new start on the same data. Of scenarios that run at once all wait for the same one.
    async fn restart(&self) -> Outcome;

    /// Waits until the server has ended by itself; whether it has.
    async fn dies(&self) -> bool;
}

/// Where a rule can be tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// On a standby that others use as well.
    Nothing,
    /// On a standby that nobody else uses at that time: a load without ticks keeps all others waiting.
    Quiet,
    /// [`Standby::cut_short`].
    CutShort,
    /// [`Standby::restart`].
    Restart,
    /// A server of its own, which does not survive it.
    Death,
}

pub fn needs(rule: Rule) -> Needs {
    match rule {
        Rule::LoadNeedsTicks => Needs::Quiet,
        Rule::PartlyWritten => Needs::CutShort,
        Rule::RepeatLostOnRecovery | Rule::FlushedStays | Rule::NodesTellRestarts => Needs::Restart,
        Rule::UnknownShardKills => Needs::Death,
        _ => Needs::Nothing,
    }
}

/// Runs the scenario of a rule.
///
/// # Errors
/// The standby does not keep the rule; the text says what was seen instead.
pub async fn scenario(rule: Rule, standby: &dyn Standby) -> Outcome {
    match rule {
        Rule::TickShows => rows::tick_shows(standby).await,
        Rule::RepeatDropped => rows::repeat_dropped(standby).await,
        Rule::StaleTaken => rows::stale_taken(standby).await,
        Rule::StaleTickIgnored => rows::stale_tick_ignored(standby).await,
        Rule::DeleteKillsOlder => rows::delete_kills_older(standby).await,
        Rule::DeleteKillsInPlace => rows::delete_kills_in_place(standby).await,
        Rule::CopiesCount => rows::copies_count(standby).await,
        Rule::EmptyRefused => calls::empty_refused(standby).await,
        Rule::TooLargeRefused => calls::too_large_refused(standby).await,
        Rule::InvalidWritesNothing => calls::invalid_writes_nothing(standby).await,
        Rule::PartlyWritten => calls::partly_written(standby).await,
        Rule::LateCall => calls::late_call(standby).await,
        Rule::UnknownShardKills => calls::unknown_shard_kills(standby).await,
        Rule::UnknownPlaceLost => calls::unknown_place_lost(standby).await,
        Rule::SegmentByClock => calls::segment_by_clock(standby).await,
        Rule::CreatedByClock => objects::created_by_clock(standby).await,
        Rule::LoadNeedsTicks => objects::load_needs_ticks(standby).await,
        Rule::GrowingUnnamed => objects::growing_unnamed(standby).await,
        Rule::DropMessageHidesNothing => objects::drop_message_hides_nothing(standby).await,
        Rule::AgainIsFine => objects::again_is_fine(standby).await,
        Rule::UsedIsKept => objects::used_is_kept(standby).await,
        Rule::NameAgainIsNew => objects::name_again_is_new(standby).await,
        Rule::RenamedIsTheSame => objects::renamed_is_the_same(standby).await,
        Rule::KeyedPartitions => objects::keyed_partitions(standby).await,
        Rule::RepeatLostOnRecovery => restarts::repeat_lost_on_recovery(standby).await,
        Rule::FlushedStays => restarts::flushed_stays(standby).await,
        Rule::NodesTellRestarts => restarts::nodes_tell_restarts(standby).await,
    }
}
