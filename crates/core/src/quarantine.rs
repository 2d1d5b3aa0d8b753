//! Messages that could not be carried, as they are kept for people: what the store holds of each, and how much of it.
//!
//! A record is one message that one collection stopped at. A message that cannot be told to be of a collection stops
//! several: each has its record, the bytes are kept once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::ids::{CollectionId, PChannel};
use crate::position::Position;

/// Bytes kept of one message; what is larger is named, not kept. Milvus' own limit of a message is a few MB.
pub const MESSAGE_BYTES: u64 = 8 << 20;
/// Bytes kept of all messages of one task.
pub const TASK_BYTES: u64 = 16 << 20;
/// Records kept of one task.
pub const RECORDS: usize = 100;
/// Bytes in one part as it is stored: in base64 it fits into one transaction of etcd.
pub const PART: usize = 256 << 10;

/// What became of a message. Moments are unix milliseconds; `by` is who said so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Its collection does not go past it.
    Waiting,
    /// Tried again; what comes of it is `waiting` or `carried`.
    Retried { by: String, at: u64 },
    /// Its collection went on without it.
    Dropped { by: String, at: u64 },
    /// Its collection went past it: it was taken in the end.
    Carried { at: u64 },
    /// Its collection is gone.
    Gone { at: u64 },
}

impl State {
    /// Whether its collection may still be at it.
    pub fn is_open(&self) -> bool {
        matches!(self, State::Waiting | State::Retried { .. })
    }
}

/// Whether the bytes of a message are in the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// All of them.
    Whole,
    /// None, and why.
    Not(String),
}

/// A message that a collection stopped at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    pub collection: CollectionId,
    pub database: String,
    pub name: String,
    /// The source's physical channel.
    pub channel: PChannel,
    pub position: Position,
    /// The name of its type, if it could be read.
    pub kind: Option<String>,
    /// Bytes; `None` if it could not be read again.
    pub size: Option<u64>,
    pub problem: Problem,
    /// When it was found first, in unix milliseconds.
    pub since: u64,
    pub kept: Kept,
    pub state: State,
}

impl Record {
    pub fn key(&self) -> String {
        key(self.collection, &self.channel, self.position)
    }

    pub fn message(&self) -> String {
        message(&self.channel, self.position)
    }
}

/// The name of a record: always the same for the same collection and message.
pub fn key(collection: CollectionId, channel: &PChannel, position: Position) -> String {
    format!("{collection}-{}", message(channel, position))
}

/// The name of a message: 16 hexadecimal digits, always the same for the same channel and position. FNV-1a: a task has a
/// hundred of them, and nobody chooses positions to make two alike.
pub fn message(channel: &PChannel, position: Position) -> String {
    let text = format!("{channel}\0{}\0{position}", position.kind());
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// What has to be done before one more record is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Room {
    /// Records that go to make room.
    pub forget: Vec<String>,
    /// Why its bytes are not kept.
    pub no_bytes: Option<String>,
}

/// Finds room for a record of a message of this size. `None`: there is none, for all records are of collections that
/// wait.
///
/// Records that are settled go first, those whose bytes are kept last; of these the oldest first.
pub fn room(records: &BTreeMap<String, Record>, key: &str, size: u64) -> Option<Room> {
    let mut others: Vec<(&String, &Record)> = records.iter().filter(|(k, _)| *k != key).collect();
    let over = (others.len() + 1).saturating_sub(RECORDS);
    others.sort_by_key(|(_, r)| (r.kept == Kept::Whole, r.since));
    let settled = others.iter().filter(|(_, r)| !r.state.is_open());
    let forget: Vec<String> = settled.take(over).map(|(k, _)| (*k).clone()).collect();
    if forget.len() < over {
        return None;
    }
    let staying = others.iter().filter(|(k, _)| !forget.contains(*k));
    let whole: BTreeMap<String, u64> = staying
        .filter(|(_, r)| r.kept == Kept::Whole)
        .map(|(_, r)| (r.message(), r.size.unwrap_or_default()))
        .collect();
    let own = key.rsplit_once('-').map_or(key, |(_, message)| message);
    let used: u64 = whole.values().sum();
    let no_bytes = if size > MESSAGE_BYTES {
        Some(format!(
            "it has {size} bytes, and {MESSAGE_BYTES} are kept of a message"
        ))
    } else if !whole.contains_key(own) && used + size > TASK_BYTES {
        Some(format!(
            "{used} bytes of other messages of this task are kept, of at most {TASK_BYTES}"
        ))
    } else {
        None
    };
    Some(Room { forget, no_bytes })
}

/// Messages whose bytes nobody needs once `gone` are without theirs.
pub fn orphans(records: &BTreeMap<String, Record>, gone: &[String]) -> BTreeSet<String> {
    let of = |key: &String| records.get(key).filter(|r| r.kept == Kept::Whole);
    let mut left: BTreeSet<String> = gone.iter().filter_map(of).map(Record::message).collect();
    for (key, record) in records {
        if record.kept == Kept::Whole && !gone.contains(key) {
            left.remove(&record.message());
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorClass;

    fn record(collection: i64, position: u64, size: u64, state: State, kept: Kept) -> Record {
        Record {
            collection: CollectionId(collection),
            database: "default".to_owned(),
            name: "c".to_owned(),
            channel: PChannel::new("ch"),
            position: Position::Natsmq(position),
            kind: None,
            size: Some(size),
            problem: Problem::new(ErrorClass::Data, "bad", ""),
            since: position,
            kept,
            state,
        }
    }

    fn all(records: impl IntoIterator<Item = Record>) -> BTreeMap<String, Record> {
        records.into_iter().map(|r| (r.key(), r)).collect()
    }

    #[test]
    fn a_key_is_the_same_at_every_start_and_says_which_message_it_is_of() {
        let (a, b) = (PChannel::new("a"), PChannel::new("b"));
        let at = |n| Position::Natsmq(n);
        assert_eq!(key(CollectionId(7), &a, at(1)), "7-b8fdb87e6bc4cb2d");
        let messages = BTreeSet::from([
            message(&a, at(1)),
            message(&a, at(2)),
            message(&b, at(1)),
            message(&a, Position::Kafka(1)),
        ]);
        assert_eq!(messages.len(), 4);
    }

    #[test]
    fn what_is_settled_makes_room_and_what_waits_does_not() {
        let open = (0..RECORDS as u64).map(|n| record(1, n, 1, State::Waiting, Kept::Whole));
        let mut records = all(open);
        assert_eq!(room(&records, "1-x", 1), None);
        // One that is there already takes no room of its own.
        let there = records.keys().next().unwrap().clone();
        assert_eq!(room(&records, &there, 1).unwrap().forget.len(), 0);
        let mut settle = |n: u64, kept| {
            let by = "me".to_owned();
            let settled = record(1, n, 1, State::Dropped { by, at: 0 }, kept);
            let key = settled.key();
            records.insert(key.clone(), settled);
            key
        };
        settle(7, Kept::Whole);
        let without = settle(9, Kept::Not("why".to_owned()));
        assert_eq!(room(&records, "1-x", 1).unwrap().forget, [without]);
    }

    #[test]
    fn bytes_are_kept_up_to_both_limits_and_those_of_one_message_once() {
        let big = MESSAGE_BYTES;
        let records = all([
            record(1, 5, big, State::Waiting, Kept::Whole),
            record(2, 5, big, State::Waiting, Kept::Whole),
        ]);
        let no_bytes = |records: &_, of: &Record| {
            let size = of.size.unwrap();
            room(records, &of.key(), size).unwrap().no_bytes
        };
        let next = |position, size| record(3, position, size, State::Waiting, Kept::Whole);
        assert_eq!(no_bytes(&records, &next(6, big)), None);
        assert!(no_bytes(&records, &next(6, big + 1)).is_some());
        let mut full = records;
        full.extend(all([next(6, big)]));
        assert!(no_bytes(&full, &next(7, 1)).is_some());
        assert_eq!(no_bytes(&full, &next(5, big)), None);
    }

    #[test]
    fn bytes_go_with_the_last_record_that_needs_them() {
        let records = all([
            record(1, 5, 1, State::Waiting, Kept::Whole),
            record(2, 5, 1, State::Waiting, Kept::Whole),
            record(3, 6, 1, State::Waiting, Kept::Not("why".to_owned())),
        ]);
        let keys: Vec<String> = records.keys().cloned().collect();
        assert!(orphans(&records, &keys[..1]).is_empty());
        assert!(orphans(&records, &keys[2..]).is_empty());
        assert_eq!(orphans(&records, &keys).len(), 1);
    }

    proptest! {
        /// However records come, and whatever is settled in between, the bounds hold.
        #[test]
        fn the_bounds_hold(found in proptest::collection::vec((0i64..4, 0u64..150, any::<bool>()), 0..400)) {
            let mut records = BTreeMap::new();
            for (collection, position, settled) in found {
                // A message has one size.
                let size = position * 1_000_003 % (MESSAGE_BYTES + MESSAGE_BYTES / 2);
                let mut new = record(collection, position, size, State::Waiting, Kept::Whole);
                if let Some(room) = room(&records, &new.key(), size) {
                    for key in room.forget {
                        prop_assert!(!records.remove(&key).unwrap().state.is_open());
                    }
                    if let Some(why) = room.no_bytes {
                        new.kept = Kept::Not(why);
                    }
                    if settled {
                        new.state = State::Gone { at: 1 };
                    }
                    records.insert(new.key(), new);
                }
                prop_assert!(records.len() <= RECORDS);
                let kept: BTreeMap<String, u64> = records.values()
                    .filter(|r| r.kept == Kept::Whole)
                    .map(|r| (r.message(), r.size.unwrap()))
                    .collect();
                prop_assert!(kept.values().sum::<u64>() <= TASK_BYTES);
                prop_assert!(kept.values().all(|size| *size <= MESSAGE_BYTES));
            }
        }
    }
}
