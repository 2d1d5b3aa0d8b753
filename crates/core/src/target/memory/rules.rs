//! The rules by which a 2.3.5 standby works, each by its name.
//!
//! [`super::MemoryTarget`] keeps them; what breaks one that must not be broken is a violation with the rule's name.
//! They were seen on a real server; a test that runs each on both is not there yet.

/// A rule of a standby of version 2.3.5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Rows and deletes count once a tick at or above their time is written to their channel.
    TickShows,
    /// A message whose id was seen on its channel since the last tick that counted is dropped.
    RepeatDropped,
    /// On recovery the target drops each message whose id it has met anywhere in what it reads again: an id that comes
    /// again behind a tick costs one of the two.
    RepeatLostOnRecovery,
    /// A message at or below the last tick is taken, and its rows go missing.
    StaleVanishes,
    /// A tick at or below the last one says nothing.
    StaleTickIgnored,
    /// A delete kills the copies of its keys with a smaller time, in whatever order the two are written, and spares
    /// those of its own time.
    DeleteKillsOlder,
    /// A call with an invalid entry writes nothing at all.
    InvalidWritesNothing,
    /// A call whose answer is lost may have written its first messages only: they are produced one by one.
    PartlyWritten,
    /// A call may be carried out until its deadline, whether its sender waits for it or is dead.
    LateCall,
    /// A message for a shard that is not its collection's is taken, and kills the target.
    UnknownShardKills,
    /// An insert for a collection that is not there, or whose request ends more than two seconds ahead of the target's
    /// clock, gets no segment: the call fails.
    SegmentByClock,
    /// A collection is not to be found before the target's clock has passed its creation time.
    CreatedByClock,
    /// A load is done once a tick has come to each of the collection's channels.
    LoadNeedsTicks,
    /// A segment that grows is not named by GetPersistentSegmentInfo before it is sealed. ([`crate::target::Target::holds_rows`]
    /// seals first: it says yes for rows that are not flushed.)
    GrowingUnnamed,
    /// The rows of a collection or partition are gone from a shard with its drop message.
    DropHides,
}
