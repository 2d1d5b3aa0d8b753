//! What a standby holds of one collection, and what of it a reader sees.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::flushed::Flushes;
use super::rules::Rule;
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
    /// The last time in its message.
    pub(super) end: Tso,
}

pub(super) struct Kill {
    /// In the order of writing, over all keys.
    pub(super) number: usize,
    /// `None`: in all partitions.
    pub(super) partition: Option<PartitionId>,
    pub(super) vchannel: VChannel,
    pub(super) ts: Tso,
    /// The last time in its message.
    pub(super) end: Tso,
}

/// Rows and deletes of one message, by their numbers.
#[derive(Clone, Default)]
pub(super) struct Numbers {
    pub(super) copies: Range<usize>,
    pub(super) kills: Range<usize>,
}

pub(super) struct Content {
    /// The rule that is not kept, if there is one.
    pub(super) broken: Option<Rule>,
    pub(super) database: String,
    pub(super) source: Collection,
    pub(super) create_ts: Tso,
    pub(super) vchannels: Vec<VChannel>,
    /// Theirs.
    pub(super) pchannels: Vec<PChannel>,
    pub(super) partitions: BTreeMap<String, TargetPartition>,
    pub(super) indexes: Vec<TargetIndex>,
    pub(super) loaded: bool,
    /// Channels without a tick since it was created: a load needs it ([`Rule::LoadNeedsTicks`]).
    pub(super) unticked: BTreeSet<PChannel>,
    /// Dropped by RPC.
    pub(super) dropped: bool,
    pub(super) copies: BTreeMap<Key, Vec<Copy>>,
    pub(super) kills: BTreeMap<Key, Vec<Kill>>,
    /// Partition ids of all times, so that one that was dropped is told from one that never was.
    pub(super) partition_ids: Vec<PartitionId>,
    /// Rows and deletes that were written so far.
    pub(super) inserts: usize,
    pub(super) deletes: usize,
    pub(super) flushes: Flushes,
}

/// Those that a collection is made with.
pub(super) fn first_partitions(source: &Collection) -> Vec<String> {
    match source.has_partition_key() {
        true => (0..source.partitions.len())
            .map(|i| format!("_default_{i}"))
            .collect(),
        false => vec!["_default".to_owned()],
    }
}

impl Content {
    pub(super) fn new(
        database: &str,
        source: &Collection,
        create_ts: Tso,
        vchannels: Vec<VChannel>,
    ) -> Self {
        Self {
            broken: None,
            database: database.to_owned(),
            source: source.clone(),
            create_ts,
            pchannels: vchannels.iter().map(|v| v.pchannel()).collect(),
            unticked: vchannels.iter().map(|v| v.pchannel()).collect(),
            vchannels,
            partitions: BTreeMap::new(),
            indexes: Vec::new(),
            loaded: false,
            dropped: false,
            copies: BTreeMap::new(),
            kills: BTreeMap::new(),
            partition_ids: Vec::new(),
            inserts: 0,
            deletes: 0,
            flushes: Flushes::default(),
        }
    }

    pub(super) fn add_partition(&mut self, name: &str, id: PartitionId) {
        self.partition_ids.push(id);
        // Of a collection that is loaded as a whole new ones are loaded at once.
        let loaded = self.loaded;
        self.partitions
            .insert(name.to_owned(), TargetPartition { id, loaded });
    }

    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    /// Whether it has the partitions that it was made with, and no others.
    pub(super) fn has_first_partitions(&self) -> bool {
        let names = first_partitions(&self.source);
        names.len() == self.partitions.len()
            && names.iter().all(|name| self.partitions.contains_key(name))
    }

    /// [`Rule::CreatedByClock`].
    pub(super) fn takes_partitions_at(&self, clock: Tso) -> bool {
        self.create_ts <= clock || !self.keeps(Rule::CreatedByClock)
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

    /// Forgets what a message brought.
    pub(super) fn forget(&mut self, numbers: &Numbers) {
        self.copies.retain(|_, of_key| {
            of_key.retain(|c| !numbers.copies.contains(&c.number));
            !of_key.is_empty()
        });
        for of_key in self.kills.values_mut() {
            of_key.retain(|k| !numbers.kills.contains(&k.number));
        }
    }

    /// [`Rule::DeleteKillsOlder`], [`Rule::DeleteKillsInPlace`].
    fn kills(&self, kill: &Kill, copy: &Copy) -> bool {
        let older = match self.keeps(Rule::DeleteKillsOlder) {
            true => kill.ts > copy.ts,
            false => kill.ts >= copy.ts,
        };
        let here =
            kill.vchannel == copy.vchannel && kill.partition.is_none_or(|p| p == copy.partition);
        older && (here || !self.keeps(Rule::DeleteKillsInPlace))
    }

    fn partition_name(&self, id: PartitionId) -> Option<&String> {
        let mut all = self.partitions.iter();
        all.find(|(_, p)| p.id == id).map(|(name, _)| name)
    }

    /// The copies of a key that a reader sees whose channels have had these ticks ([`Rule::TickShows`]): not later than
    /// the tick, and without a later delete that is not later than the tick either.
    pub(super) fn seen<'a>(
        &'a self,
        key: &'a Key,
        tick: &'a impl Fn(&VChannel) -> Tso,
    ) -> impl Iterator<Item = (Row, &'a Copy)> {
        let killed = move |copy: &Copy| {
            self.kills.get(key).is_some_and(|kills| {
                let mut kills = kills.iter();
                kills.any(|kill| self.kills(kill, copy) && kill.end <= tick(&kill.vchannel))
            })
        };
        let copies = self.copies.get(key).into_iter().flatten();
        copies
            .filter(move |copy| {
                let tick = tick(&copy.vchannel);
                copy.end <= tick && !killed(copy)
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
