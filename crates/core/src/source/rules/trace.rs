//! What was seen of a source.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use milvus::proto::msg::{CreateCollectionRequest, DeleteRequest, InsertRequest};
use milvus::proto::schema::IDs;
use milvus::proto::schema::i_ds::IdField;
use prost::Message as _;

use super::acts::Done;
use super::{Broken, Outcome};
use crate::catalog::{Collection, ObjectState, View};
use crate::decode::header::header;
use crate::decode::{Event, RowsKind, decode, keys, msg_type};
use crate::ids::{CollectionId, FieldId, PChannel, PartitionId, VChannel};
use crate::position::Position;
use crate::source::RawMessage;
use crate::tso::Tso;

/// The key of every collection that is made here: the first field of its user.
pub(super) const KEY: FieldId = FieldId(100);

/// A message as it stands in the queue.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    pub position: Position,
    /// `MsgBase.msgID`.
    pub id: i64,
    /// `MsgBase.timestamp`.
    pub base: Tso,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    Tick,
    Rows(Rows),
    Create(CollectionId),
    /// `entry`: what a linearizable read said of it when this message had been read, `None` if there was nothing.
    DropCollection {
        collection: CollectionId,
        entry: Option<ObjectState>,
    },
    DropPartition {
        collection: CollectionId,
        partition: PartitionId,
        entry: Option<ObjectState>,
    },
    Other(i32),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    pub kind: RowsKind,
    pub collection: CollectionId,
    pub partition: PartitionId,
    pub vchannel: VChannel,
    /// One a row.
    pub times: Vec<Tso>,
    pub keys: Vec<i64>,
    /// What it says of their number.
    pub count: u64,
}

impl Rows {
    pub fn ts(&self) -> Tso {
        self.times.first().copied().unwrap_or_default()
    }
}

impl Message {
    /// The first time of its rows; of all others the base's.
    pub fn ts(&self) -> Tso {
        match &self.what {
            What::Rows(rows) => rows.times.iter().copied().min().unwrap_or_default(),
            _ => self.base,
        }
    }

    pub fn rows(&self) -> Option<&Rows> {
        match &self.what {
            What::Rows(rows) => Some(rows),
            _ => None,
        }
    }

    pub fn tick(&self) -> Option<Tso> {
        (self.what == What::Tick).then_some(self.base)
    }

    /// The collection that it makes or drops, or whose rows or partition it is about.
    pub fn collection(&self) -> Option<CollectionId> {
        match &self.what {
            What::Tick | What::Other(_) => None,
            What::Rows(rows) => Some(rows.collection),
            What::Create(collection)
            | What::DropCollection { collection, .. }
            | What::DropPartition { collection, .. } => Some(*collection),
        }
    }

    /// Reads it as the corelib does, and what that leaves out.
    pub(super) fn read(raw: &RawMessage) -> Outcome<Self> {
        let unreadable = |e: &dyn std::fmt::Display| Broken(format!("{}: {e}", raw.position));
        let head = header(&raw.payload);
        let what = match decode(&raw.payload).map_err(|e| unreadable(&e))? {
            Event::Tick(_) => What::Tick,
            Event::DropCollection { collection, .. } => What::DropCollection {
                collection,
                entry: None,
            },
            Event::DropPartition {
                collection,
                partition,
                ..
            } => What::DropPartition {
                collection,
                partition,
                entry: None,
            },
            Event::Other(msg_type::CREATE_COLLECTION) => {
                let message = CreateCollectionRequest::decode(raw.payload.clone());
                let message = message.map_err(|e| unreadable(&e))?;
                What::Create(CollectionId(message.collection_id))
            }
            Event::Other(other) => What::Other(other),
            Event::Rows(rows) => {
                let (of_rows, count) = keys_of(&raw.payload, &rows).map_err(|e| unreadable(&e))?;
                What::Rows(Rows {
                    kind: rows.kind,
                    collection: rows.collection,
                    partition: rows.partition,
                    vchannel: rows.vchannel,
                    times: rows.timestamps.into_iter().map(Tso).collect(),
                    keys: of_rows,
                    count,
                })
            }
        };
        Ok(Self {
            position: raw.position,
            id: head.msg_id.unwrap_or_default(),
            base: Tso(head.timestamp.unwrap_or_default()),
            what,
        })
    }
}

fn keys_of(payload: &Bytes, rows: &crate::decode::Rows) -> Result<(Vec<i64>, u64), String> {
    let (ids, count): (Option<IDs>, u64) = match rows.kind {
        RowsKind::Insert => {
            let message = InsertRequest::decode(payload.clone()).map_err(|e| e.to_string())?;
            (keys::primary_keys(&rows.body, KEY), message.num_rows)
        }
        RowsKind::Delete => {
            let message = DeleteRequest::decode(payload.clone()).map_err(|e| e.to_string())?;
            (message.primary_keys, message.num_rows.unsigned_abs())
        }
    };
    match ids.and_then(|ids| ids.id_field) {
        Some(IdField::IntId(keys)) => Ok((keys.data, count)),
        other => Err(format!("its keys are {other:?}")),
    }
}

/// What a linearizable read said of a collection right behind a view that had shown it anew.
#[derive(Clone, PartialEq, Debug)]
pub struct Read {
    /// The view's place among all that were seen.
    pub view: usize,
    pub id: CollectionId,
    pub found: Option<Collection>,
}

#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Each channel from its first message on, those that never had one as well.
    pub channels: BTreeMap<PChannel, Vec<Message>>,
    /// As the watch showed them.
    pub views: Vec<Arc<View>>,
    pub reads: Vec<Read>,
    /// Of each channel the first rows of each partition, with what a linearizable read said when they had been read.
    pub first_rows: Vec<(PChannel, Rows, Option<Collection>)>,
    /// Times of messages, each with the upper bound that was asked for when it had been read.
    pub bounds: Vec<(Tso, Tso)>,
    pub acts: Vec<Done>,
    /// At the end, when all was quiet: what linearizable reads said, and whether the watch showed the same.
    pub last: BTreeMap<CollectionId, (Option<Collection>, bool)>,
}

impl Trace {
    pub fn messages(&self) -> impl Iterator<Item = (&PChannel, &Message)> {
        self.channels
            .iter()
            .flat_map(|(channel, all)| all.iter().map(move |m| (channel, m)))
    }

    /// Messages with rows, channel by channel.
    pub fn rows(&self) -> impl Iterator<Item = (&PChannel, &Message, &Rows)> {
        self.messages()
            .filter_map(|(channel, m)| Some((channel, m, m.rows()?)))
    }

    /// Collections by what was last seen of them.
    pub fn collections(&self) -> BTreeMap<CollectionId, Collection> {
        let of_views = self.views.iter().flat_map(|view| view.collections.values());
        let of_reads = self.reads.iter().filter_map(|read| read.found.as_ref());
        let at_last = self.last.values().filter_map(|(found, _)| found.as_ref());
        let mut all: BTreeMap<CollectionId, Collection> = BTreeMap::new();
        let seen = of_views.map(AsRef::as_ref).chain(of_reads).chain(at_last);
        for collection in seen.filter(|c| !c.shards.is_empty()) {
            all.insert(collection.id, collection.clone());
        }
        all
    }

    /// Every state in which a collection was seen, in no order of time.
    pub fn states(&self) -> impl Iterator<Item = &Collection> {
        let of_views = self.views.iter().flat_map(|view| view.collections.values());
        let of_reads = self.reads.iter().filter_map(|read| read.found.as_ref());
        let at_last = self.last.values().filter_map(|(found, _)| found.as_ref());
        of_views.map(AsRef::as_ref).chain(of_reads).chain(at_last)
    }

    /// Creations that came to nothing. A 2.3.5 writes one, and has its channels in use from then on, before it looks
    /// whether there is a collection of that name (`internal/rootcoord/create_collection_task.go`, `Execute`): one of the same form is then
    /// answered as if it had been made.
    pub fn ghosts(&self) -> impl Iterator<Item = (&PChannel, CollectionId)> {
        let known = self.collections();
        self.messages()
            .filter_map(move |(channel, m)| match m.what {
                What::Create(id) if !known.contains_key(&id) => Some((channel, id)),
                _ => None,
            })
    }

    /// Rows that name one collection and a partition of another one: seen on a 2.3.5 where a name came to another
    /// collection while rows were written to a partition under it.
    pub fn of_another(&self) -> impl Iterator<Item = &Rows> {
        let known = self.collections();
        let owner: BTreeMap<PartitionId, CollectionId> = known
            .values()
            .flat_map(|c| c.partitions.keys().map(|p| (*p, c.id)))
            .collect();
        self.first_rows.iter().filter_map(move |(_, rows, _)| {
            let owner = owner.get(&rows.partition);
            owner
                .is_some_and(|id| *id != rows.collection)
                .then_some(rows)
        })
    }

    /// What no rule is about, each with how often it was seen: for people.
    pub fn notes(&self) -> Vec<(&'static str, usize)> {
        let drops = |all: &[Message]| {
            let all = all.iter().enumerate();
            let drops = all.filter_map(|(at, m)| match m.what {
                What::DropCollection { collection, .. } => Some((at, collection)),
                _ => None,
            });
            drops.collect::<Vec<_>>()
        };
        let [mut equal, mut early, mut below, mut behind] = [0; 4];
        for all in self.channels.values() {
            let ticks: Vec<Tso> = all.iter().filter_map(Message::tick).collect();
            equal += ticks.windows(2).filter(|t| t[0] == t[1]).count();
            let first = all.iter().position(|m| m.what != What::Tick);
            early += first.unwrap_or_default();
            for (at, message) in all.iter().enumerate() {
                if matches!(message.what, What::Create(_)) {
                    let next = all[at..].iter().find_map(Message::tick);
                    below += usize::from(next.is_some_and(|tick| tick < message.base));
                }
            }
            for (at, collection) in drops(all) {
                let rest = all[at..].iter().filter(|m| m.rows().is_some());
                behind += rest.filter(|m| m.collection() == Some(collection)).count();
            }
        }
        let creating = self.states().filter(|c| c.state == ObjectState::Creating);
        let late = self.acts.iter().filter(|done| done.late);
        let refused = self.acts.iter().filter(|done| done.answer.is_err());
        vec![
            ("acts that were refused", refused.count()),
            ("ticks equal to the one before", equal),
            ("ticks before anything else of a channel", early),
            ("creations with a lower tick next", below),
            ("creations that came to nothing", self.ghosts().count()),
            ("rows of another one's partition", self.of_another().count()),
            ("rows behind the drop of their collection", behind),
            ("states Creating that were seen", creating.count()),
            ("answers that were ahead of the watch", late.count()),
        ]
    }
}
