//! The rules by which a source of version 2.3.5 works, as far as its queue and its metadata show it: what the corelib
//! relies on, and by which the simulation's model of a source (`crates/sim/src/source.rs`) is made.
//!
//! A source is watched ([`record`]) while things are done to it ([`course`]); each rule is a predicate over what was
//! seen ([`check`]). The same courses run on the model (the test `source_rules`) and on a real 2.3.5 (`source_rules` of
//! the end-to-end tests); where the two differ the real one is right. A rule of which nothing was seen is not kept, and
//! [`spoil`] breaks each in a trace, so that it is known to be able to fail.

pub mod acts;
pub mod course;
mod names;
mod objects;
mod queue;
pub mod record;
mod requests;
mod spoilt;
pub mod trace;

pub use acts::{Act, Answer, Name, Origin, Write};
pub use record::Recorder;
pub use spoilt::spoil;
pub use trace::Trace;

/// What was not as a rule says.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

pub type Outcome<T = ()> = Result<T, Broken>;

fn ensure(is: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if is { Ok(()) } else { Err(Broken(otherwise())) }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $check:path,)*) => {
        /// A rule of a source of version 2.3.5.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            pub const ALL: &[Rule] = &[$(Rule::$name),*];
        }

        /// How often a rule was seen to be kept.
        ///
        /// # Errors
        /// It was broken; the text says by what.
        pub fn check(rule: Rule, trace: &Trace) -> Outcome<usize> {
            match rule {
                $(Rule::$name => $check(rule, trace),)*
            }
        }
    };
}

rules! {
    /// Ticks of a channel never go back. (The same one may come again.)
    TicksRise = queue::ticks_rise,
    /// Behind a tick no message has a time at or below it.
    TickBounds = queue::tick_bounds,
    /// Between two ticks requests stand in any order of their times.
    AnyOrder = queue::any_order,
    /// A data channel carries creations and drops of collections, drops of partitions, inserts, deletes and ticks. Of
    /// all else nothing is seen there: partitions that are made, names, aliases, indexes, loads, databases.
    OnlyThese = queue::only_these,
    /// No two messages with rows have one id on a channel, but those that are the same one, written twice.
    OneIdOneMessage = queue::one_id_one_message,
    /// A channel that no collection lives on gets no ticks, but for some in the first seconds after the last of them.
    /// (It goes on having them where a creation came to nothing: see [`trace::Trace::ghosts`].)
    UnusedSilent = queue::unused_silent,
    /// What the metadata says of the times that were given out is above all that was seen by then.
    BoundAboveAll = queue::bound_above_all,

    /// All rows of one time are of one request: of one collection, and none of a message have another.
    OneTimeOneRequest = requests::one_time_one_request,
    /// A request that began when another one had been answered has the larger time.
    TimesFollowAnswers = requests::times_follow_answers,
    /// What is answered stands in the queue, row by row: also a delete of keys that are not there.
    AnsweredIsWritten = requests::answered_is_written,
    /// A row stands in the shard that its key's hash names, on the channel of that shard.
    InTheirShard = requests::in_their_shard,
    /// The pieces of an insert, as many as its size asks for, stand in each shard in the order of its rows.
    PiecesInOrder = requests::pieces_in_order,
    /// An upsert is, in each shard, its inserts and then one delete of the same keys, all of one time and partition.
    UpsertIsTwo = requests::upsert_is_two,
    /// The base of a message with rows has their time; that of an insert that is half an upsert has none.
    BaseTime = requests::base_time,
    /// A delete names its partition by its id, or -1 where the client named none.
    DeletePartition = requests::delete_partition,

    /// A collection's creation stands on each of its channels, at the start position that its entry has, with the
    /// entry's time; nothing of the collection stands before it.
    CreationIsFirst = objects::creation_is_first,
    /// The shards of a collection have channels of their own.
    ShardsApart = objects::shards_apart,
    /// An entry that says Created is complete: fields, a partition, a start position for each channel.
    CreatedIsComplete = objects::created_is_complete,
    /// Who reads a row finds the collection's entry, and in it its partition.
    EntryBeforeRows = objects::entry_before_rows,
    /// Who reads the drop of a collection or a partition finds its entry in state Dropping, or gone.
    EntryBeforeDrop = objects::entry_before_drop,
    /// A drop stands once on each of the collection's channels, with one time, and a tick at or above it follows.
    DropOnEachShard = objects::drop_on_each_shard,
    /// No row of a collection or a partition has a time above that of its drop. (It may stand behind it.)
    NothingAboveDrop = objects::nothing_above_drop,
    /// The entry of what was dropped stays in state Dropping for a while. (What takes it away comes after 20 minutes.)
    DroppedStays = objects::dropped_stays,
    /// A collection or a partition that is made has an id that none before it had; of collections a larger one.
    IdsRise = objects::ids_rise,
    /// What an entry says of its channels, start positions, time and partitions never changes.
    EntryKeepsItself = objects::entry_keeps_itself,
    /// States go from Creating to Created to Dropping only, and a linearizable read is never behind the watch.
    StatesGoOn = objects::states_go_on,
    /// The watch may be late, but comes to show what a linearizable read does.
    WatchCatchesUp = objects::watch_catches_up,
    /// An act that is answered is seen in the metadata.
    EntryShows = objects::entry_shows,

    /// In one database no two living collections have one name, nor has one the name of an alias of a living one.
    NamesAreOnce = names::names_are_once,
    /// A name that a living collection or an alias of one has is not given to another; one of what was dropped is.
    TakenIsRefused = names::as_it_says,
    /// A collection that has an alias stays in its database.
    AliasBinds = names::as_it_says,
    /// A database is dropped only without a living collection; those that were dropped do not count.
    DatabaseKeptWhileUsed = names::as_it_says,
    /// What has no index is not loaded.
    LoadNeedsIndex = names::as_it_says,
    /// An index or a partition is not dropped while its collection is loaded.
    LoadedIsKept = names::as_it_says,
}

/// What a run of a course has shown of the rules: each with how often it was seen, or what broke it.
pub fn judge(trace: &Trace) -> Vec<(Rule, Outcome<usize>)> {
    let seen = |rule: Rule| match check(rule, trace) {
        Ok(0) => (rule, Err(Broken("nothing of it was seen".to_owned()))),
        other => (rule, other),
    };
    Rule::ALL.iter().copied().map(seen).collect()
}

/// The rules whose break in a trace is not noticed: there must be none.
pub fn unnoticed(trace: &Trace) -> Vec<Rule> {
    let all = Rule::ALL.iter().copied();
    let unnoticed = all.filter(|rule| {
        let mut spoilt = trace.clone();
        !spoil(*rule, &mut spoilt) || !matches!(check(*rule, &spoilt), Err(_) | Ok(0))
    });
    unnoticed.collect()
}
