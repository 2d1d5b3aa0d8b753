//! From the place at which another replicator stopped to one at which a task goes on.
//!
//! Milvus' own readers, and the Go server, go on at the first message above the last tick they have done, or at that
//! tick if no message above it was read before it (`pkg/mq/msgstream`). Which tick that was the Go server does not say:
//! it keeps a time in milliseconds, and that of what it *sent*, which it raises above the source's ticks where several
//! streams share a target channel. So the tick is looked up in the queue: the first one at or behind the message. It is
//! the last one that was done, or an earlier one, never a later one. What was sent above it is not known either; a
//! collection that is adopted has everything up to now in doubt.

use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::Collection;
use crate::decode::{Event, decode};
use crate::ids::PChannel;
use crate::position::Position;
use crate::source::{LogSource, SourceError, Start};
use crate::task::GivenPosition;
use crate::tso::Tso;

/// A channel in use has a tick every 200 ms.
const A_TICK_WITHIN: Duration = Duration::from_secs(10);
const BATCH: usize = 4 << 20;

/// What another replicator has kept of one collection on one channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// Where it would go on reading.
    pub position: Position,
    /// Nothing above the end of this millisecond was done; `None` if nothing is known of it.
    pub not_after: Option<u64>,
}

/// Where `collection` goes on, checked against what the queue holds.
///
/// # Errors
/// The queue does not hold it any more, or cannot be asked.
pub async fn goes_on(
    source: &dyn LogSource,
    collection: &Collection,
    channel: &PChannel,
    left: Left,
) -> Result<GivenPosition, SourceError> {
    let position = left.position;
    let begins = collection.start_positions.get(channel);
    let at_creation = begins
        .and_then(|bytes| Position::from_bytes(source.kind(), bytes).ok())
        .is_some_and(|begin| begin == position);
    let tick = first_tick(source, channel, position).await?;
    let applied = match left.not_after {
        // Nothing of the collection lies before, and all of it may lie below the first tick.
        _ if at_creation => Tso::ZERO,
        None => Tso::ZERO,
        // It stood before this tick, wherever that was.
        Some(millis) if tick.millis() > millis => Tso(Tso::from_millis(millis).0.saturating_sub(1)),
        Some(_) => tick,
    };
    Ok(GivenPosition { position, applied })
}

/// The first tick at or behind a message, which has to be there.
async fn first_tick(
    source: &dyn LogSource,
    channel: &PChannel,
    position: Position,
) -> Result<Tso, SourceError> {
    let mut reader = source.open(channel, Start::At(position)).await?;
    let deadline = Instant::now() + A_TICK_WITHIN;
    loop {
        let batch = tokio::time::timeout_at(deadline, reader.next(BATCH)).await;
        let batch = batch.map_err(|_| SourceError::Unreachable {
            address: channel.to_string(),
            cause: format!("no tick behind {position} at the moment; is the source up?"),
        })??;
        for message in batch {
            if let Ok(Event::Tick(tick)) = decode(&message.payload) {
                return Ok(tick);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{LoadState, ObjectState};
    use crate::ids::{CollectionId, DbId};
    use crate::route::encode;
    use crate::source::memory::MemoryLog;

    fn channel() -> PChannel {
        PChannel::new("by-dev-rootcoord-dml_0")
    }

    fn created_at(position: Position) -> Collection {
        Collection {
            id: CollectionId(1),
            db: DbId(1),
            name: "c".to_owned(),
            state: ObjectState::Created,
            schema: Default::default(),
            create_ts: Tso::from_millis(1_000),
            shards: Vec::new(),
            start_positions: [(channel(), position.to_bytes())].into(),
            consistency_level: 0,
            properties: Vec::new(),
            partitions: Default::default(),
            indexes: Default::default(),
            load: LoadState::Released,
        }
    }

    /// Two messages that are no ticks, the ticks of 2000 and 2200 ms, a third message, the tick of 2400 ms.
    fn queue() -> (MemoryLog, Vec<Position>) {
        let queue = MemoryLog::new();
        let tick = |millis| encode::tick(Tso(Tso::from_millis(millis).0 + 7), 1);
        let other = b"\x0a\x02\x08\x64".to_vec();
        let positions = vec![
            queue.append(&channel(), other.clone()),
            queue.append(&channel(), other.clone()),
            queue.append(&channel(), tick(2_000)),
            queue.append(&channel(), tick(2_200)),
            queue.append(&channel(), other),
            queue.append(&channel(), tick(2_400)),
        ];
        (queue, positions)
    }

    async fn applied(queue: &MemoryLog, at: Position, not_after: Option<u64>) -> Tso {
        let (_, all) = self::queue();
        let left = Left {
            position: at,
            not_after,
        };
        let found = goes_on(queue, &created_at(all[0]), &channel(), left).await;
        let found = found.unwrap();
        assert_eq!(found.position, at);
        found.applied
    }

    #[tokio::test]
    async fn the_tick_is_the_first_one_at_or_behind_the_message() {
        let (queue, at) = queue();
        let tick = |millis| Tso(Tso::from_millis(millis).0 + 7);
        assert_eq!(applied(&queue, at[2], Some(2_000)).await, tick(2_000));
        assert_eq!(applied(&queue, at[1], Some(2_000)).await, tick(2_000));
        // The time is that of what was sent: up to a few ticks of another stream later.
        assert_eq!(applied(&queue, at[1], Some(2_900)).await, tick(2_000));
        assert_eq!(applied(&queue, at[4], Some(2_400)).await, tick(2_400));
    }

    #[tokio::test]
    async fn what_begins_at_its_creation_or_says_no_time_has_nothing_done() {
        let (queue, at) = queue();
        assert_eq!(applied(&queue, at[0], Some(9_000)).await, Tso::ZERO);
        assert_eq!(applied(&queue, at[1], None).await, Tso::ZERO);
    }

    #[tokio::test]
    async fn nothing_above_the_time_it_says_is_taken_for_done() {
        let (queue, at) = queue();
        let found = applied(&queue, at[1], Some(1_500)).await;
        assert_eq!(found, Tso(Tso::from_millis(1_500).0 - 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_place_and_a_silent_channel_are_errors() {
        let (queue, at) = queue();
        queue.purge_to(&channel(), at[2]);
        let left = |position| Left {
            position,
            not_after: Some(2_000),
        };
        let lost = goes_on(&queue, &created_at(at[0]), &channel(), left(at[1])).await;
        assert!(
            matches!(lost, Err(SourceError::PositionLost { .. })),
            "{lost:?}"
        );
        let silent = MemoryLog::new();
        let only = silent.append(&channel(), b"\x0a\x02\x08\x64".to_vec());
        let waits = goes_on(&silent, &created_at(at[0]), &channel(), left(only)).await;
        assert!(
            matches!(waits, Err(SourceError::Unreachable { .. })),
            "{waits:?}"
        );
    }
}
