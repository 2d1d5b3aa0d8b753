//! What came in ReplicateMessage, and what of it a standby would have lost. Pure.
//!
//! Reads the messages by itself, with none of milvus-cdc's code: it is a witness. The columns of an insert are skipped.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use milvus::proto::common::{MsgBase, MsgType};
use prost::Message;
use serde::Serialize;

use super::histogram::Histogram;

/// The physical part of a timestamp is above these bits (`pkg/util/tsoutil`).
const LOGICAL_BITS: u32 = 18;
/// The first violations are kept in words.
const WORDS: usize = 20;

/// Of InsertRequest and DeleteRequest what has to be known of both; of every other message the first field.
#[derive(Clone, PartialEq, Message)]
struct Read {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
    #[prost(string, tag = "2")]
    shard_name: String,
    #[prost(uint64, repeated, tag = "10")]
    timestamps: Vec<u64>,
}

/// Only the first field: of what has others in those places.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
}

/// One target channel.
#[derive(Default, Debug)]
struct Channel {
    last_tick: u64,
    /// Each id with the last tick before it.
    ids: HashMap<i64, u64>,
    counts: ChannelCounts,
}

#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize)]
pub struct ChannelCounts {
    pub messages: u64,
    pub ticks: u64,
    pub rows: u64,
}

/// All of one target since its start. Ids are kept for good: about 50 bytes a message.
#[derive(Default, Debug)]
pub struct Ledger {
    channels: BTreeMap<String, Channel>,
    counts: Counts,
    rows_late: Histogram,
    ticks_late: Histogram,
    words: Vec<String>,
}

#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// ReplicateMessage with at least one entry.
    pub calls: u64,
    pub inserts: u64,
    pub deletes: u64,
    pub ticks: u64,
    /// Drops and whatever else has a type that a standby takes.
    pub others: u64,
    pub rows_inserted: u64,
    pub rows_deleted: u64,
    /// Of inserts and deletes, as they came.
    pub bytes: u64,
    /// Messages that came again before a tick: a call whose answer was not seen, repeated. A standby drops them, and they
    /// are in no other count.
    pub resent: u64,
    pub violations: Violations,
}

/// What a standby would lose rows by, or hide them.
#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// Messages with a row at or below the last tick of their channel.
    pub rows_below_tick: u64,
    /// Ticks below the last one; an equal one says nothing new and is none.
    pub tick_back: u64,
    /// Message ids that the channel has seen before, with a tick in between.
    pub repeated_ids: u64,
    /// Of a channel that is not the one called.
    pub wrong_channel: u64,
    /// Entries that are no message, or have no type.
    pub unreadable: u64,
}

impl Violations {
    pub fn total(&self) -> u64 {
        self.rows_below_tick
            + self.tick_back
            + self.repeated_ids
            + self.wrong_channel
            + self.unreadable
    }
}

impl Ledger {
    /// One call, whose answer goes out at `now_us`: unix time in microseconds.
    pub fn call(&mut self, channel: &str, entries: &[Bytes], now_us: u64) {
        self.counts.calls += 1;
        if !self.channels.contains_key(channel) {
            self.channels.insert(channel.to_owned(), Channel::default());
        }
        for entry in entries {
            if let Err(what) = self.entry(channel, entry, now_us) {
                self.violation(channel, what);
            }
        }
    }

    /// Rows that came by ordinary calls: their times are the target's own, and no rule is for them.
    pub fn rows(&mut self, bytes: u64, inserted: u64, deleted: u64) {
        let counts = &mut self.counts;
        counts.calls += 1;
        counts.bytes += bytes;
        counts.rows_inserted += inserted;
        counts.rows_deleted += deleted;
        counts.inserts += u64::from(inserted > 0);
        counts.deletes += u64::from(deleted > 0);
    }

    fn violation(&mut self, channel: &str, what: String) {
        if self.words.len() < WORDS {
            self.words.push(format!("{channel}: {what}"));
        }
    }

    /// `Err`: the violation in words. It is counted.
    fn entry(&mut self, name: &str, entry: &Bytes, now_us: u64) -> Result<(), String> {
        let counts = &mut self.counts;
        let Some(channel) = self.channels.get_mut(name) else {
            return Ok(());
        };
        let Some(base) = Head::decode(&mut &entry[..]).ok().and_then(|h| h.base) else {
            counts.violations.unreadable += 1;
            return Err("an entry that is no message".to_owned());
        };
        let mut wrong = None;
        match channel.ids.insert(base.msg_id, channel.last_tick) {
            None => {}
            // A tick itself says nothing new the second time.
            Some(before)
                if before == channel.last_tick || base.msg_type == MsgType::TimeTick as i32 =>
            {
                counts.resent += 1;
                return Ok(());
            }
            Some(_) => {
                counts.violations.repeated_ids += 1;
                wrong = Some(format!("message id {} again, behind a tick", base.msg_id));
            }
        }
        channel.counts.messages += 1;
        match MsgType::try_from(base.msg_type) {
            Ok(kind @ (MsgType::Insert | MsgType::Delete)) => {
                let Ok(read) = Read::decode(&mut &entry[..]) else {
                    counts.violations.unreadable += 1;
                    return Err("rows that cannot be read".to_owned());
                };
                let rows = read.timestamps.len() as u64;
                counts.bytes += entry.len() as u64;
                channel.counts.rows += rows;
                if kind == MsgType::Insert {
                    counts.inserts += 1;
                    counts.rows_inserted += rows;
                } else {
                    counts.deletes += 1;
                    counts.rows_deleted += rows;
                }
                let lowest = read.timestamps.iter().copied().min().unwrap_or_default();
                if lowest <= channel.last_tick {
                    counts.violations.rows_below_tick += 1;
                    wrong = Some(format!(
                        "a row at {lowest}, at or below the tick {}",
                        channel.last_tick
                    ));
                }
                // `{physical channel}_{collection}v{shard}`
                let pchannel = read.shard_name.rsplit_once('_').map(|(p, _)| p);
                if pchannel != Some(name) {
                    counts.violations.wrong_channel += 1;
                    wrong = Some(format!("rows of the shard {:?}", read.shard_name));
                }
                let last = read.timestamps.iter().copied().max().unwrap_or_default();
                self.rows_late.add(late(last, now_us), rows.max(1));
            }
            Ok(MsgType::TimeTick) => {
                counts.ticks += 1;
                channel.counts.ticks += 1;
                if base.timestamp < channel.last_tick {
                    counts.violations.tick_back += 1;
                    wrong = Some(format!(
                        "the tick {} behind {}",
                        base.timestamp, channel.last_tick
                    ));
                } else if base.timestamp > channel.last_tick {
                    channel.last_tick = base.timestamp;
                    self.ticks_late.add(late(base.timestamp, now_us), 1);
                }
            }
            Ok(MsgType::Undefined) | Err(_) => {
                counts.violations.unreadable += 1;
                wrong = Some(format!("a message of the type {}", base.msg_type));
            }
            Ok(_) => counts.others += 1,
        }
        wrong.map_or(Ok(()), Err)
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The first violations in words.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    pub fn channels(&self) -> impl Iterator<Item = (&String, &ChannelCounts)> {
        self.channels.iter().map(|(name, c)| (name, &c.counts))
    }

    /// From the timestamp of a message's rows to the answer.
    pub fn rows_late(&self) -> &Histogram {
        &self.rows_late
    }

    /// From a tick's timestamp to the answer: when rows up to it can be seen.
    pub fn ticks_late(&self) -> &Histogram {
        &self.ticks_late
    }

    /// Forgets the two histograms: what comes from now on counts.
    pub fn forget_late(&mut self) {
        self.rows_late = Histogram::default();
        self.ticks_late = Histogram::default();
    }
}

/// Microseconds from a timestamp to `now_us`; the generated source writes microseconds into the logical part.
fn late(ts: u64, now_us: u64) -> u64 {
    let logical = (ts & ((1 << LOGICAL_BITS) - 1)).min(999);
    now_us.saturating_sub((ts >> LOGICAL_BITS) * 1000 + logical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use milvus::proto::msg::{DeleteRequest, InsertRequest, TimeTickMsg};

    const CHANNEL: &str = "t-rootcoord-dml_3";

    fn base(kind: MsgType, id: i64, ts: u64) -> Option<MsgBase> {
        Some(MsgBase {
            msg_type: kind as i32,
            msg_id: id,
            timestamp: ts,
            ..Default::default()
        })
    }

    fn tick(id: i64, ts: u64) -> Bytes {
        let base = base(MsgType::TimeTick, id, ts);
        TimeTickMsg { base }.encode_to_vec().into()
    }

    fn insert(id: i64, timestamps: &[u64]) -> Bytes {
        InsertRequest {
            base: base(MsgType::Insert, id, 0),
            shard_name: format!("{CHANNEL}_77v0"),
            collection_id: 77,
            timestamps: timestamps.to_vec(),
            num_rows: timestamps.len() as u64,
            ..Default::default()
        }
        .encode_to_vec()
        .into()
    }

    fn delete(id: i64, timestamps: &[u64]) -> Bytes {
        DeleteRequest {
            base: base(MsgType::Delete, id, 0),
            shard_name: format!("{CHANNEL}_77v0"),
            collection_id: 77,
            timestamps: timestamps.to_vec(),
            num_rows: timestamps.len() as i64,
            ..Default::default()
        }
        .encode_to_vec()
        .into()
    }

    fn after(calls: &[&[Bytes]]) -> Ledger {
        let mut ledger = Ledger::default();
        for call in calls {
            ledger.call(CHANNEL, call, 0);
        }
        ledger
    }

    #[test]
    fn rows_ticks_and_bytes_are_counted() {
        let (rows, deleted) = (insert(1, &[11, 12, 12]), delete(2, &[13]));
        let bytes = (rows.len() + deleted.len()) as u64;
        let ledger = after(&[&[tick(0, 10), rows, deleted], &[tick(3, 13)]]);
        assert_eq!(
            *ledger.counts(),
            Counts {
                calls: 2,
                inserts: 1,
                deletes: 1,
                ticks: 2,
                rows_inserted: 3,
                rows_deleted: 1,
                bytes,
                ..Counts::default()
            }
        );
        assert!(ledger.words().is_empty());
        let counts = ChannelCounts {
            messages: 4,
            ticks: 2,
            rows: 4,
        };
        assert_eq!(
            ledger.channels().collect::<Vec<_>>(),
            [(&CHANNEL.to_owned(), &counts)]
        );
    }

    #[test]
    fn what_a_standby_would_lose_is_a_violation() {
        let violations = |calls: &[&[Bytes]]| {
            let ledger = after(calls);
            let violations = ledger.counts().violations.clone();
            assert_eq!(ledger.words().len() as u64, violations.total());
            violations
        };
        // One row of a message is enough, and the tick of the same call counts.
        let below = violations(&[&[tick(0, 10), insert(1, &[11, 10])]]);
        assert_eq!((below.rows_below_tick, below.total()), (1, 1));
        let back = violations(&[&[tick(0, 10)], &[tick(1, 9)], &[tick(2, 10)]]);
        assert_eq!((back.tick_back, back.total()), (1, 1));
        let again = violations(&[&[insert(1, &[5])], &[tick(2, 5)], &[delete(1, &[6])]]);
        assert_eq!((again.repeated_ids, again.total()), (1, 1));
        let unreadable = violations(&[&[Bytes::from_static(b"\xff"), Bytes::new()]]);
        assert_eq!((unreadable.unreadable, unreadable.total()), (2, 2));
        let mut elsewhere = Ledger::default();
        elsewhere.call("t-rootcoord-dml_4", &[insert(1, &[5])], 0);
        assert_eq!(elsewhere.counts().violations.wrong_channel, 1);
        // Another channel has ids and ticks of its own.
        elsewhere.call(CHANNEL, &[tick(1, 1), insert(2, &[2])], 0);
        assert_eq!(elsewhere.counts().violations.total(), 1);
    }

    #[test]
    fn a_call_that_is_repeated_before_a_tick_counts_once() {
        let call = [tick(1, 10), insert(2, &[11]), insert(3, &[12])];
        let ledger = after(&[&call, &call, &[tick(4, 12)]]);
        let counts = ledger.counts();
        assert_eq!((counts.inserts, counts.rows_inserted), (2, 2));
        assert_eq!((counts.resent, counts.violations.total()), (3, 0));
    }

    #[test]
    fn rows_are_late_from_their_own_time() {
        let mut ledger = Ledger::default();
        let ts = (1_000 << LOGICAL_BITS) + 250;
        ledger.call(CHANNEL, &[insert(1, &[ts]), tick(2, ts)], 1_002_250);
        let two_ms = |h: &Histogram| h.at(0.5).is_some_and(|ms| (ms - 2.0).abs() < 0.1);
        assert!(two_ms(ledger.rows_late()) && two_ms(ledger.ticks_late()));
        ledger.forget_late();
        assert_eq!(ledger.rows_late().total(), 0);
    }
}
