//! From single keys to [`View`]s: an event changes one entry, and only the collections that were touched are built anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use milvus::proto::schema::{
    CollectionSchema, FieldSchema, FunctionSchema, StructArrayFieldSchema,
};

use super::decode::{self, Entry, decode};
use super::keys::{DEFAULT_DB, MetaKey};
use super::proto::{CollectionInfo, CollectionLoadInfo, DatabaseInfo, FieldIndex, PartitionInfo};
use super::{Alias, Collection, Database, LoadState, ObjectState, Partition, Shard, View};
use crate::ids::{CollectionId, DbId, PChannel, PartitionId, VChannel};
use crate::tso::Tso;

/// Everything known of one collection id.
#[derive(Default)]
struct Parts {
    /// By database, with the revision of the last write: a rename into another database is a put under one key and a
    /// removal of the other.
    infos: BTreeMap<DbId, (i64, Box<CollectionInfo>)>,
    legacy: Option<Box<CollectionInfo>>,
    partitions: BTreeMap<PartitionId, PartitionInfo>,
    fields: BTreeMap<i64, FieldSchema>,
    functions: BTreeMap<i64, FunctionSchema>,
    struct_fields: BTreeMap<i64, StructArrayFieldSchema>,
    indexes: BTreeMap<i64, FieldIndex>,
    load: Option<CollectionLoadInfo>,
    loaded_partitions: BTreeSet<PartitionId>,
    /// Undecodable keys without which the collection would come out wrong.
    broken: BTreeSet<MetaKey>,
}

impl Parts {
    fn is_empty(&self) -> bool {
        self.infos.is_empty()
            && self.legacy.is_none()
            && self.partitions.is_empty()
            && self.fields.is_empty()
            && self.functions.is_empty()
            && self.struct_fields.is_empty()
            && self.indexes.is_empty()
            && self.load.is_none()
            && self.loaded_partitions.is_empty()
            && self.broken.is_empty()
    }
}

/// Keeps the decoded entries and the view they make.
#[derive(Default)]
pub struct Assembler {
    databases: BTreeMap<DbId, DatabaseInfo>,
    collections: HashMap<CollectionId, Parts>,
    aliases: BTreeMap<MetaKey, i64>,
    undecodable: BTreeMap<String, String>,
    touched: BTreeSet<CollectionId>,
    databases_touched: bool,
    aliases_touched: bool,
    view: Arc<View>,
}

impl Assembler {
    /// An assembler for a fresh list. What comes out equal to `previous` keeps its `Arc`.
    pub fn after(previous: Arc<View>) -> Self {
        Self {
            touched: previous.collections.keys().copied().collect(),
            databases_touched: true,
            aliases_touched: true,
            view: previous,
            ..Self::default()
        }
    }

    /// Takes in one key as it is at `revision` (of its last write); `None` is a deleted key. `key` is what follows
    /// `{rootPath}/{metaSubPath}/`; keys of no interest are ignored.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: i64) {
        let Some(meta) = MetaKey::parse(key) else {
            return;
        };
        let decoded = match value {
            None => Ok(None),
            Some(value) => decode(&meta, value),
        };
        let entry = match decoded {
            Ok(entry) => {
                self.undecodable.remove(key);
                self.mark(&meta, false);
                entry
            }
            Err(cause) => {
                self.undecodable.insert(key.to_owned(), cause);
                self.mark(&meta, true);
                // What was known before stays: an index or a load state that cannot be read is not one that is gone.
                return;
            }
        };
        self.put(meta, entry, revision);
    }

    fn mark(&mut self, key: &MetaKey, broken: bool) {
        // A broken index, load state or partition is left out alone; a collection without one of its fields is another
        // collection.
        let vital = matches!(
            key,
            MetaKey::Collection { .. }
                | MetaKey::LegacyCollection(_)
                | MetaKey::Field { .. }
                | MetaKey::Function { .. }
                | MetaKey::StructArrayField { .. }
        );
        let Some(id) = key.collection().filter(|_| vital) else {
            return;
        };
        if broken {
            self.collections
                .entry(id)
                .or_default()
                .broken
                .insert(key.clone());
        } else if let Some(parts) = self.collections.get_mut(&id) {
            parts.broken.remove(key);
        }
    }

    fn put(&mut self, key: MetaKey, entry: Option<Entry>, revision: i64) {
        match &key {
            MetaKey::Database(id) => {
                self.databases_touched = true;
                match entry {
                    Some(Entry::Database(info)) => self.databases.insert(*id, info),
                    _ => self.databases.remove(id),
                };
                return;
            }
            MetaKey::Alias { .. } | MetaKey::LegacyAlias(_) | MetaKey::AncientAlias(_) => {
                self.aliases_touched = true;
                match entry {
                    Some(Entry::Alias(Some(collection))) => self.aliases.insert(key, collection),
                    _ => self.aliases.remove(&key),
                };
                return;
            }
            _ => {}
        }
        let Some(id) = key.collection() else {
            return;
        };
        self.touched.insert(id);
        let parts = self.collections.entry(id).or_default();
        match (key, entry) {
            (MetaKey::Collection { db, .. }, Some(Entry::Collection(info))) => {
                parts.infos.insert(db, (revision, info));
            }
            (MetaKey::Collection { db, .. }, _) => {
                parts.infos.remove(&db);
            }
            (MetaKey::LegacyCollection(_), Some(Entry::Collection(info))) => {
                parts.legacy = Some(info)
            }
            (MetaKey::LegacyCollection(_), _) => parts.legacy = None,
            (MetaKey::Partition { partition, .. }, Some(Entry::Partition(info))) => {
                parts.partitions.insert(partition, info);
            }
            (MetaKey::Partition { partition, .. }, _) => {
                parts.partitions.remove(&partition);
            }
            (MetaKey::Field { field, .. }, Some(Entry::Field(schema))) => {
                parts.fields.insert(field.0, *schema);
            }
            (MetaKey::Field { field, .. }, _) => {
                parts.fields.remove(&field.0);
            }
            (MetaKey::Function { function, .. }, Some(Entry::Function(schema))) => {
                parts.functions.insert(function, schema);
            }
            (MetaKey::Function { function, .. }, _) => {
                parts.functions.remove(&function);
            }
            (MetaKey::StructArrayField { field, .. }, Some(Entry::StructArrayField(schema))) => {
                parts.struct_fields.insert(field.0, schema);
            }
            (MetaKey::StructArrayField { field, .. }, _) => {
                parts.struct_fields.remove(&field.0);
            }
            (MetaKey::FieldIndex { index, .. }, Some(Entry::FieldIndex(info))) => {
                parts.indexes.insert(index.0, info);
            }
            (MetaKey::FieldIndex { index, .. }, _) => {
                parts.indexes.remove(&index.0);
            }
            (MetaKey::CollectionLoad(_), Some(Entry::CollectionLoad(info))) => {
                parts.load = Some(info)
            }
            (MetaKey::CollectionLoad(_), _) => parts.load = None,
            (MetaKey::PartitionLoad { partition, .. }, Some(_)) => {
                parts.loaded_partitions.insert(partition);
            }
            (MetaKey::PartitionLoad { partition, .. }, None) => {
                parts.loaded_partitions.remove(&partition);
            }
            _ => {}
        }
        if self.collections.get(&id).is_some_and(Parts::is_empty) {
            self.collections.remove(&id);
        }
    }

    /// Makes the view at `revision` of what was applied; `None` if it is the one there was.
    ///
    /// A collection that was known and whose newest metadata cannot be decoded stays as it was last known: an absent
    /// one would read as dropped.
    pub fn commit(&mut self, revision: i64) -> Option<Arc<View>> {
        let touched = std::mem::take(&mut self.touched);
        let mut fresh: Vec<(CollectionId, Option<Arc<Collection>>)> = Vec::new();
        for id in touched {
            let old = self.view.collections.get(&id);
            let parts = self.collections.get(&id);
            if parts.is_some_and(|parts| !parts.broken.is_empty()) {
                continue;
            }
            let new = parts.and_then(|parts| collection(id, parts));
            match (old, new) {
                (Some(old), Some(new)) if **old == new => {}
                (None, None) => {}
                (_, new) => fresh.push((id, new.map(Arc::new))),
            }
        }
        let databases = std::mem::take(&mut self.databases_touched).then(|| self.build_databases());
        let aliases = std::mem::take(&mut self.aliases_touched).then(|| self.build_aliases());
        let first = self.view.revision == 0;
        let same = fresh.is_empty()
            && databases
                .as_ref()
                .is_none_or(|new| *new == self.view.databases)
            && aliases.as_ref().is_none_or(|new| *new == self.view.aliases);
        if same && !first {
            return None;
        }
        let mut view = View::clone(&self.view);
        view.revision = revision;
        if let Some(databases) = databases {
            view.databases = databases;
        }
        if let Some(aliases) = aliases {
            view.aliases = aliases;
        }
        for (id, new) in fresh {
            match new {
                Some(new) => view.collections.insert(id, new),
                None => view.collections.remove(&id),
            };
        }
        self.view = Arc::new(view);
        Some(self.view.clone())
    }

    /// The last committed view; its revision is 0 before the first.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Keys whose values could not be decoded, with the cause.
    pub fn undecodable(&self) -> &BTreeMap<String, String> {
        &self.undecodable
    }

    fn build_databases(&self) -> BTreeMap<DbId, Arc<Database>> {
        let alive = self
            .databases
            .iter()
            .filter(|(_, info)| decode::database_is_alive(info.state));
        let mut databases: BTreeMap<DbId, Arc<Database>> = alive
            .map(|(id, info)| {
                let new = Database {
                    id: *id,
                    name: info.name.clone(),
                    properties: decode::pairs(&info.properties),
                };
                let old = self
                    .view
                    .databases
                    .get(id)
                    .filter(|old| ***old == new)
                    .cloned();
                (*id, old.unwrap_or_else(|| Arc::new(new)))
            })
            .collect();
        // As with collections: what cannot be decoded any more is not gone.
        for (id, old) in &self.view.databases {
            if self
                .undecodable
                .contains_key(&MetaKey::Database(*id).to_string())
            {
                databases.entry(*id).or_insert_with(|| old.clone());
            }
        }
        databases
    }

    fn build_aliases(&self) -> BTreeMap<(DbId, String), Arc<Alias>> {
        let mut aliases = BTreeMap::new();
        // The keys sort from the newest layout to the oldest: the first one says what holds.
        for (key, collection) in &self.aliases {
            let (db, name) = match key {
                MetaKey::Alias { db, name } => (real(*db), name),
                MetaKey::LegacyAlias(name) | MetaKey::AncientAlias(name) => (DEFAULT_DB, name),
                _ => continue,
            };
            aliases.entry((db, name.clone())).or_insert_with(|| {
                let new = Alias {
                    name: name.clone(),
                    db,
                    collection: CollectionId(*collection),
                };
                let old = self
                    .view
                    .aliases
                    .get(&(db, name.clone()))
                    .filter(|old| ***old == new)
                    .cloned();
                old.unwrap_or_else(|| Arc::new(new))
            });
        }
        aliases
    }
}

/// Database 0 was written before databases had ids.
fn real(db: DbId) -> DbId {
    if db.0 == 0 { DEFAULT_DB } else { db }
}

/// The collection these parts make; `None` if its own key is not (or no longer) there.
fn collection(id: CollectionId, parts: &Parts) -> Option<Collection> {
    let newest = parts
        .infos
        .iter()
        .max_by_key(|(_, (revision, _))| *revision);
    let (db, info) = match newest {
        Some((db, (_, info))) => (real(*db), info),
        None => (DEFAULT_DB, parts.legacy.as_ref()?),
    };
    let schema = schema(info, parts)?;
    let partitions = partitions(info, parts);
    let mut state = decode::state(info.state).ok()?;
    let incomplete =
        !schema.fields.iter().any(|field| field.is_primary_key) || partitions.is_empty();
    if state == ObjectState::Created && incomplete {
        // From 2.6.5 on the collection's key may be written before those of its fields.
        state = ObjectState::Creating;
    }
    let positions = info.start_positions.iter();
    Some(Collection {
        id,
        db,
        name: schema.name.clone(),
        state,
        create_ts: Tso(info.create_time),
        shards: shards(info),
        start_positions: positions
            .map(|pair| (PChannel::new(pair.key.as_str()), pair.data.clone()))
            .collect(),
        consistency_level: info.consistency_level,
        properties: decode::pairs(&info.properties),
        load: load(parts, &partitions),
        partitions,
        indexes: parts
            .indexes
            .values()
            .filter_map(decode::index)
            .map(|index| (index.id, index))
            .collect(),
        schema,
    })
}

fn schema(info: &CollectionInfo, parts: &Parts) -> Option<CollectionSchema> {
    let mut schema = info.schema.clone()?;
    // Up to 2.1 everything was in the collection's own value; then it is only there.
    if schema.fields.is_empty() {
        schema.fields = parts.fields.values().cloned().collect();
    }
    if schema.functions.is_empty() {
        schema.functions = parts.functions.values().cloned().collect();
    }
    if schema.struct_array_fields.is_empty() {
        schema.struct_array_fields = parts.struct_fields.values().cloned().collect();
    }
    schema.fields.sort_by_key(|field| field.field_id);
    Some(schema)
}

fn partitions(info: &CollectionInfo, parts: &Parts) -> BTreeMap<PartitionId, Partition> {
    if !info.partition_ids.is_empty() {
        let named = info
            .partition_ids
            .iter()
            .zip(&info.partition_names)
            .enumerate();
        return named
            .map(|(i, (id, name))| {
                let created = info
                    .partition_created_timestamps
                    .get(i)
                    .copied()
                    .unwrap_or(info.create_time);
                let id = PartitionId(*id);
                (
                    id,
                    Partition {
                        id,
                        name: name.clone(),
                        state: ObjectState::Created,
                        create_ts: Tso(created),
                    },
                )
            })
            .collect();
    }
    let known = parts.partitions.iter();
    known
        .filter_map(|(id, info)| {
            let state = decode::state(info.state).ok()?;
            Some((
                *id,
                Partition {
                    id: *id,
                    name: info.name.clone(),
                    state,
                    create_ts: Tso(info.created_timestamp),
                },
            ))
        })
        .collect()
}

fn shards(info: &CollectionInfo) -> Vec<Shard> {
    let physical = info
        .physical_channel_names
        .iter()
        .map(Some)
        .chain(std::iter::repeat(None));
    let both = info.virtual_channel_names.iter().zip(physical);
    let mut shards: Vec<Shard> = both
        .map(|(name, physical)| {
            let vchannel = VChannel::new(name.as_str());
            let pchannel =
                physical.map_or_else(|| vchannel.pchannel(), |name| PChannel::new(name.as_str()));
            Shard { vchannel, pchannel }
        })
        .collect();
    shards.sort_by_key(|shard| shard.vchannel.shard());
    shards
}

fn load(parts: &Parts, partitions: &BTreeMap<PartitionId, Partition>) -> LoadState {
    let Some(info) = &parts.load else {
        return LoadState::Released;
    };
    let replicas = info.replica_number;
    let loaded = &parts.loaded_partitions;
    // The release of a partition of a loaded collection takes the partition's key away and leaves the collection's load
    // type as it is. A new partition gets its key before it is Created. Without any such key the collection counts.
    let mut created = partitions
        .values()
        .filter(|partition| partition.state == ObjectState::Created);
    let whole = info.load_type != 1
        && (loaded.is_empty() || created.all(|partition| loaded.contains(&partition.id)));
    if whole {
        LoadState::Collection { replicas }
    } else {
        LoadState::Partitions {
            replicas,
            partitions: loaded.iter().copied().collect(),
        }
    }
}
