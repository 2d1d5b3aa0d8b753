//! The rules by which a 2.3.5 standby works, each by its name.
//!
//! [`super::MemoryTarget`] keeps them; what breaks one that must not be broken is a violation with the rule's name.
//! Each has a scenario in [`crate::target::contract`], which runs on the model and on a real 2.3.5.

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule of a standby of version 2.3.5.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            pub const ALL: &[Rule] = &[$(Rule::$name),*];
        }
    };
}

rules! {
    /// Rows and deletes count once a tick at or above their time is written to their channel; of a message with several
    /// times, at or above the last of them.
    TickShows,
    /// Of the inserts and deletes that one tick shows, those whose id another message before them has are dropped.
    RepeatDropped,
    /// On recovery the target drops each message whose id it has met anywhere in what it reads again: an id that comes
    /// again behind a tick costs one of the two.
    RepeatLostOnRecovery,
    /// A message at or below the last tick is taken, and the next one shows it: who read at the last tick did not see it.
    /// (Seen as well, now and then: its rows and others of their segment are missing later, until a reload.)
    StaleTaken,
    /// A tick at or below the last one says nothing.
    StaleTickIgnored,
    /// A delete kills the copies of its keys with a smaller time, in whatever order the two are written, and spares
    /// those of its own time.
    DeleteKillsOlder,
    /// A delete kills in its own shard, and there in its partition or, with partition -1, in all.
    DeleteKillsInPlace,
    /// Two inserts of one key are two copies: `count(*)` counts both. (What a query shows then is not defined.)
    CopiesCount,
    /// A call without a channel's name (1100) or without entries (65535) is refused.
    EmptyRefused,
    /// A call of more than 64 MiB is refused.
    TooLargeRefused,
    /// A call with an invalid entry writes nothing at all.
    InvalidWritesNothing,
    /// A call whose answer is lost may have written its first messages only: they are produced one by one.
    PartlyWritten,
    /// A call may be carried out until its deadline, whether its sender waits for it or is dead.
    LateCall,
    /// A message for a shard that is not its collection's, with a name as another server's shards have, is taken, and
    /// kills the target some seconds later. (One that differs in its number alone was survived.)
    UnknownShardKills,
    /// A message to a channel that there is not, or for a partition that there is not, is taken, and nobody ever sees
    /// its rows.
    UnknownPlaceLost,
    /// An insert for a collection that never was there, or whose request ends more than two seconds ahead of the target's
    /// clock, gets no segment: the call fails.
    SegmentByClock,
    /// A collection is to be found at once, whatever its creation time is; it can have another partition once the
    /// target's clock has passed that.
    CreatedByClock,
    /// A load is done once a tick has come to each of the collection's channels, since it was created. (One that waits
    /// keeps the loads of others waiting.)
    LoadNeedsTicks,
    /// A segment that grows is not named by GetPersistentSegmentInfo before it is sealed. ([`crate::target::Target::holds_rows`]
    /// seals first: it says yes for rows that are not flushed.)
    GrowingUnnamed,
    /// The drop message of a collection or partition takes no rows from those who read: the call that drops does.
    DropMessageHidesNothing,
    /// What is there can be created once more; a collection of that name and with another form or other partitions is
    /// refused, and one without a creation time. What is not there can be dropped.
    AgainIsFine,
    /// A partition or an index is not dropped while it is loaded, a database not while it holds a collection; a
    /// collection without an index is not loaded. A partition that is made in a loaded collection is loaded.
    UsedIsKept,
    /// A collection that is dropped and made again under its name is another one, with other channels and none of the
    /// rows; so is a partition.
    NameAgainIsNew,
    /// A collection that is given another name is the same one, with its id, its channels and its rows; so it is in
    /// another database, where it has no alias. Its aliases stay its own.
    RenamedIsTheSame,
    /// A collection with a partition key has the partitions `_default_0`, `_default_1`, …
    KeyedPartitions,
    /// What is flushed is what a flush has sealed and a tick has passed; it outlives a restart.
    FlushedStays,
    /// The nodes are others after a restart, and the same before.
    NodesTellRestarts,
}
