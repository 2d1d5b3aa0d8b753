//! What a standby holds of one collection, and what of it a reader sees.

use std::collections::{BTreeMap, BTreeSet};

use super::flushed::Flushes;
use super::{Key, Row};
use crate::catalog::Collection;
use crate::ids::{PChannel, PartitionId, VChannel};
use crate::target::TargetIndex;
use crate::tso::Tso;

pub(super) struct TargetPartition {
    pub(super) id: PartitionId,
    pub(super) loaded: bool,
}

/// One physical row.
pub(super) struct Copy {
    /// In the order of writing, over all keys.
    pub(super) number: usize,
    pub(super) version: i64,
    pub(super) partition: PartitionId,
    pub(super) vchannel: VChannel,
    pub(super) ts: Tso,
}

pub(super) struct Kill {
    /// In the order of writing, over all keys.
    pub(super) number: usize,
    /// `None`: in all partitions.
    pub(super) partition: Option<PartitionId>,
    pub(super) vchannel: VChannel,
    pub(super) ts: Tso,
}

pub(super) struct Content {
    pub(super) database: String,
    pub(super) source: Collection,
    pub(super) create_ts: Tso,
    pub(super) vchannels: Vec<VChannel>,
    /// Theirs.
    pub(super) pchannels: Vec<PChannel>,
    pub(super) partitions: BTreeMap<String, TargetPartition>,
    pub(super) indexes: Vec<TargetIndex>,
    pub(super) loaded: bool,
    /// Channels whose next tick a load under way needs.
    pub(super) loading: BTreeSet<PChannel>,
    /// Dropped by RPC.
    pub(super) dropped: bool,
    pub(super) copies: BTreeMap<Key, Vec<Copy>>,
    pub(super) kills: BTreeMap<Key, Vec<Kill>>,
    /// Partition ids of all times, so that one that was dropped is told from one that never was.
    pub(super) partition_ids: Vec<PartitionId>,
    /// Channels that have read the drop of a partition or of the collection (`None`).
    pub(super) drops: Vec<(VChannel, Option<PartitionId>)>,
    /// Rows and deletes that were written so far.
    pub(super) inserts: usize,
    pub(super) deletes: usize,
    pub(super) flushes: Flushes,
}

impl Content {
    pub(super) fn new(
        database: &str,
        source: &Collection,
        create_ts: Tso,
        vchannels: Vec<VChannel>,
    ) -> Self {
        Self {
            database: database.to_owned(),
            source: source.clone(),
            create_ts,
            pchannels: vchannels.iter().map(|v| v.pchannel()).collect(),
            vchannels,
            partitions: BTreeMap::new(),
            indexes: Vec::new(),
            loaded: false,
            loading: BTreeSet::new(),
            dropped: false,
            copies: BTreeMap::new(),
            kills: BTreeMap::new(),
            partition_ids: Vec::new(),
            drops: Vec::new(),
            inserts: 0,
            deletes: 0,
            flushes: Flushes::default(),
        }
    }

    pub(super) fn add_partition(&mut self, name: &str, id: PartitionId) {
        self.partition_ids.push(id);
        self.partitions
            .insert(name.to_owned(), TargetPartition { id, loaded: false });
    }

    pub(super) fn holds_rows(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Rows and deletes so far.
    pub(super) fn written(&self) -> (usize, usize) {
        (self.inserts, self.deletes)
    }

    /// Whether rows and deletes up to `up_to` are among the first that were written.
    pub(super) fn all_below(&self, copies: usize, kills: usize, up_to: Tso) -> bool {
        let mut inserts = self.copies.values().flatten();
        let mut deletes = self.kills.values().flatten();
        inserts.all(|c| c.number < copies || c.ts > up_to)
            && deletes.all(|k| k.number < kills || k.ts > up_to)
    }

    /// Forgets all rows and deletes but the first that were written.
    pub(super) fn keep(&mut self, copies: usize, kills: usize) {
        self.copies.retain(|_, of_key| {
            of_key.retain(|c| c.number < copies);
            !of_key.is_empty()
        });
        for of_key in self.kills.values_mut() {
            of_key.retain(|k| k.number < kills);
        }
        self.inserts = self.inserts.min(copies);
        self.deletes = self.deletes.min(kills);
    }

    fn is_dropped(&self, copy: &Copy) -> bool {
        self.drops.iter().any(|(vchannel, partition)| {
            *vchannel == copy.vchannel && partition.is_none_or(|p| p == copy.partition)
        })
    }

    fn partition_name(&self, id: PartitionId) -> Option<&String> {
        let mut all = self.partitions.iter();
        all.find(|(_, p)| p.id == id).map(|(name, _)| name)
    }

    /// The copies of a key that a reader sees whose channels have had these ticks: not later than the tick, and without
    /// a later delete that is not later than the tick either.
    pub(super) fn seen<'a>(
        &'a self,
        key: &'a Key,
        tick: &'a impl Fn(&VChannel) -> Tso,
    ) -> impl Iterator<Item = (Row, &'a Copy)> {
        let killed = move |copy: &Copy| {
            self.kills.get(key).is_some_and(|kills| {
                kills.iter().any(|kill| {
                    kill.vchannel == copy.vchannel
                        && kill.ts > copy.ts
                        && kill.partition.is_none_or(|p| p == copy.partition)
                        && kill.ts <= tick(&kill.vchannel)
                })
            })
        };
        let copies = self.copies.get(key).into_iter().flatten();
        copies
            .filter(move |copy| {
                copy.ts <= tick(&copy.vchannel) && !self.is_dropped(copy) && !killed(copy)
            })
            .filter_map(|copy| {
                let row = Row {
                    partition: self.partition_name(copy.partition)?.clone(),
                    key: key.clone(),
                    version: copy.version,
                };
                Some((row, copy))
            })
    }

    pub(super) fn rows(&self, tick: impl Fn(&PChannel) -> Tso) -> Vec<Row> {
        let ticks: BTreeMap<&VChannel, Tso> = self
            .vchannels
            .iter()
            .map(|v| (v, tick(&v.pchannel())))
            .collect();
        let tick = |v: &VChannel| ticks.get(v).copied().unwrap_or_default();
        let keys = self.copies.keys();
        let mut rows: Vec<Row> = keys
            .flat_map(|key| self.seen(key, &tick).map(|(row, _)| row))
            .collect();
        rows.sort();
        rows
    }

    pub(super) fn history(&self, key: &Key) -> Vec<String> {
        let copies = self.copies.get(key).into_iter().flatten();
        let mut lines: Vec<_> = copies
            .map(|c| (c.ts, format!("insert at {}, version {}", c.ts, c.version)))
            .collect();
        let kills = self.kills.get(key).into_iter().flatten();
        lines.extend(kills.map(|k| (k.ts, format!("delete at {}", k.ts))));
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}
