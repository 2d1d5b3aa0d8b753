//! Bytes of one message of a data channel to what the pipeline has to know of it. Pure and total: any bytes give an
//! event or an error.
//!
//! The payload is one bare message of Milvus' `msg.proto`, whose field 1 is always a `MsgBase` with the message's type
//! (`pkg/mq/msgstream`). Of an insert only ids, names and timestamps are read; its columns stay slices of the payload.

pub mod header;
pub mod keys;
pub mod wire;

use bytes::Bytes;

use crate::ids::{CollectionId, PartitionId, VChannel};
use crate::tso::Tso;
use wire::{Fields, WireError};

/// Message types of `common.proto` that a data channel carries.
pub mod msg_type {
    pub const CREATE_COLLECTION: i32 = 100;
    pub const DROP_COLLECTION: i32 = 101;
    pub const CREATE_PARTITION: i32 = 200;
    pub const DROP_PARTITION: i32 = 201;
    pub const INSERT: i32 = 400;
    pub const DELETE: i32 = 401;
    pub const TIME_TICK: i32 = 1200;
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Nothing with a timestamp up to this one follows on the channel.
    Tick(Tso),
    Rows(Rows),
    DropCollection {
        collection: CollectionId,
        ts: Tso,
    },
    DropPartition {
        collection: CollectionId,
        partition: PartitionId,
        ts: Tso,
    },
    /// Of no concern: creations are taken from the catalog.
    Other(i32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowsKind {
    Insert,
    Delete,
}

/// An insert or a delete.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    pub kind: RowsKind,
    /// `MsgBase.msgID`: another for each message, the same in one that its producer wrote twice.
    pub id: i64,
    pub collection: CollectionId,
    /// -1 in a delete: all partitions.
    pub partition: PartitionId,
    pub vchannel: VChannel,
    /// One a row. `MsgBase.timestamp` is not used: it is 0 in the insert of an upsert.
    pub timestamps: Vec<u64>,
    /// The fields that are passed on unread: row ids, columns or keys, counts, version. In message order.
    pub body: Vec<Bytes>,
}

impl Rows {
    pub fn max_ts(&self) -> Tso {
        Tso(self.timestamps.iter().copied().max().unwrap_or_default())
    }
}

/// A message that cannot be carried. The collection is there if it could be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a message of Milvus: {cause}")]
pub struct DecodeError {
    pub collection: Option<CollectionId>,
    pub cause: String,
}

#[derive(Default)]
struct Head {
    msg_type: i32,
    id: i64,
    ts: u64,
}

fn head(base: &[u8]) -> Result<Head, WireError> {
    let mut head = Head::default();
    for field in Fields::of(base) {
        let field = field?;
        match field.number {
            1 => head.msg_type = field.varint() as i32,
            2 => head.id = field.varint() as i64,
            3 => head.ts = field.varint(),
            _ => {}
        }
    }
    Ok(head)
}

/// Reads one payload.
pub fn decode(payload: &Bytes) -> Result<Event, DecodeError> {
    let unreadable = |cause: String| DecodeError {
        collection: None,
        cause,
    };
    let base = match Fields::of(payload).next() {
        Some(Ok(field)) if field.number == 1 => field.bytes(),
        Some(Err(e)) => return Err(unreadable(e.to_string())),
        _ => return Err(unreadable("it does not begin with a MsgBase".to_owned())),
    };
    let head = head(base).map_err(|e| unreadable(e.to_string()))?;
    match head.msg_type {
        msg_type::TIME_TICK => Ok(Event::Tick(Tso(head.ts))),
        msg_type::INSERT => rows(payload, RowsKind::Insert, head.id).map(Event::Rows),
        msg_type::DELETE => rows(payload, RowsKind::Delete, head.id).map(Event::Rows),
        // DropCollectionRequest: 5 collectionID. DropPartitionRequest: 6 collectionID, 7 partitionID.
        msg_type::DROP_COLLECTION => {
            let [collection] = ids(payload, [5])?;
            Ok(Event::DropCollection {
                collection: CollectionId(collection),
                ts: Tso(head.ts),
            })
        }
        msg_type::DROP_PARTITION => {
            let [collection, partition] = ids(payload, [6, 7])?;
            let (collection, partition) = (CollectionId(collection), PartitionId(partition));
            Ok(Event::DropPartition {
                collection,
                partition,
                ts: Tso(head.ts),
            })
        }
        0 => Err(unreadable("its MsgBase has no message type".to_owned())),
        other => Ok(Event::Other(other)),
    }
}

fn ids<const N: usize>(payload: &[u8], numbers: [u32; N]) -> Result<[i64; N], DecodeError> {
    let mut ids = [0; N];
    for field in Fields::of(payload) {
        let field = field.map_err(|e| DecodeError {
            collection: None,
            cause: e.to_string(),
        })?;
        if let Some(i) = numbers.iter().position(|n| *n == field.number) {
            ids[i] = field.varint() as i64;
        }
    }
    Ok(ids)
}

/// InsertRequest and DeleteRequest share the fields 2 to 8; timestamps are 10 in both.
fn rows(payload: &Bytes, kind: RowsKind, id: i64) -> Result<Rows, DecodeError> {
    let mut collection = None;
    let mut partition = 0;
    let mut vchannel = "";
    let mut timestamps = Vec::new();
    let mut body = Vec::new();
    let mut walk = || -> Result<(), String> {
        for field in Fields::of(payload) {
            let field = field.map_err(|e| e.to_string())?;
            match field.number {
                1 | 3..=6 | 9 => {}
                2 => vchannel = field.text(),
                7 => collection = Some(CollectionId(field.varint() as i64)),
                8 => partition = field.varint() as i64,
                // In a delete 9 is the deprecated list of keys, still used where 12 is absent.
                10 => wire::numbers(&field, &mut timestamps).map_err(|e| e.to_string())?,
                12 if kind == RowsKind::Insert => {
                    return Err("row based, as written before Milvus 2.2".to_owned());
                }
                _ => body.push(wire::share(payload, field.raw)),
            }
        }
        if timestamps.is_empty() {
            return Err("it has no row timestamps".to_owned());
        }
        Ok(())
    };
    walk().map_err(|cause| DecodeError { collection, cause })?;
    if kind == RowsKind::Delete {
        // Field 9 (int64_primary_keys) is kept for deletes of old sources; an insert's 9 is the segment id.
        for field in Fields::of(payload).flatten().filter(|f| f.number == 9) {
            body.push(wire::share(payload, field.raw));
        }
    }
    let collection = collection.ok_or_else(|| DecodeError {
        collection: None,
        cause: "it names no collection".to_owned(),
    })?;
    let (partition, vchannel) = (PartitionId(partition), VChannel::new(vchannel));
    Ok(Rows {
        kind,
        id,
        collection,
        partition,
        vchannel,
        timestamps,
        body,
    })
}

#[cfg(test)]
mod tests;
