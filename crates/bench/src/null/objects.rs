//! What there is on the target: databases, collections, partitions, indexes, by name. Pure.

use std::collections::BTreeMap;

use milvus::proto::common::KeyValuePair;
use milvus::proto::schema::CollectionSchema;

/// As many as a Milvus has by default (`rootCoord.dmlChannelNum`).
const CHANNELS: usize = 16;
pub(super) const DEFAULT_DB: &str = "default";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) field: String,
    pub(super) params: Vec<KeyValuePair>,
    pub(super) id: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Collection {
    pub(super) id: i64,
    pub(super) schema: CollectionSchema,
    pub(super) vchannels: Vec<String>,
    pub(super) pchannels: Vec<String>,
    pub(super) consistency_level: i32,
    pub(super) properties: Vec<KeyValuePair>,
    pub(super) created: u64,
    /// Name and id, in the order of their making.
    pub(super) partitions: Vec<(String, i64)>,
    pub(super) indexes: Vec<Index>,
    pub(super) loaded: bool,
}

/// A collection that is to be made.
#[derive(Clone, Debug, Default)]
pub(super) struct New {
    pub(super) schema: CollectionSchema,
    pub(super) shards: i32,
    pub(super) consistency_level: i32,
    pub(super) properties: Vec<KeyValuePair>,
    /// With a partition key; 0: Milvus' default.
    pub(super) partitions: i64,
    pub(super) created: u64,
}

/// What is asked for is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing;

#[derive(Debug)]
pub(super) struct Objects {
    prefix: String,
    databases: BTreeMap<String, BTreeMap<String, Collection>>,
    next_id: i64,
    next_channel: usize,
}

impl Objects {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            databases: [(DEFAULT_DB.to_owned(), BTreeMap::new())].into(),
            next_id: 100_000,
            next_channel: 0,
        }
    }

    fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    fn name(database: &str) -> &str {
        if database.is_empty() {
            DEFAULT_DB
        } else {
            database
        }
    }

    pub(super) fn databases(&self) -> Vec<String> {
        self.databases.keys().cloned().collect()
    }

    pub(super) fn create_database(&mut self, name: &str) {
        self.databases.entry(name.to_owned()).or_default();
    }

    pub(super) fn drop_database(&mut self, name: &str) {
        self.databases.remove(name);
    }

    pub(super) fn collections(&self, database: &str) -> Vec<(String, i64)> {
        let all = self.databases.get(Self::name(database));
        all.into_iter()
            .flatten()
            .map(|(name, c)| (name.clone(), c.id))
            .collect()
    }

    pub(super) fn get(&self, database: &str, name: &str) -> Result<&Collection, Missing> {
        let database = self.databases.get(Self::name(database)).ok_or(Missing)?;
        database.get(name).ok_or(Missing)
    }

    pub(super) fn get_mut(
        &mut self,
        database: &str,
        name: &str,
    ) -> Result<&mut Collection, Missing> {
        let database = self
            .databases
            .get_mut(Self::name(database))
            .ok_or(Missing)?;
        database.get_mut(name).ok_or(Missing)
    }

    /// Makes a collection, with its channels taken in turn as a Milvus does, and gives its fields their ids: from 100 on,
    /// in the order they come in. One that is there already stays as it is.
    pub(super) fn create(&mut self, database: &str, name: &str, new: New) -> Result<(), Missing> {
        let database = Self::name(database).to_owned();
        if !self.databases.contains_key(&database) {
            return Err(Missing);
        }
        if self.get(&database, name).is_ok() {
            return Ok(());
        }
        let mut schema = new.schema;
        for (i, field) in schema.fields.iter_mut().enumerate() {
            field.field_id = 100 + i as i64;
        }
        let id = self.id();
        let mut pchannels = Vec::new();
        for _ in 0..new.shards.max(1) {
            let channel = self.next_channel % CHANNELS;
            pchannels.push(format!("{}-rootcoord-dml_{channel}", self.prefix));
            self.next_channel += 1;
        }
        let shard = |(i, pchannel): (usize, &String)| format!("{pchannel}_{id}v{i}");
        let vchannels = pchannels.iter().enumerate().map(shard).collect();
        let has_key = schema.fields.iter().any(|f| f.is_partition_key);
        let names = if has_key {
            let n = if new.partitions > 0 {
                new.partitions
            } else {
                64
            };
            (0..n).map(|i| format!("_default_{i}")).collect()
        } else {
            vec!["_default".to_owned()]
        };
        let partitions = names.into_iter().map(|name| (name, self.id())).collect();
        let collection = Collection {
            id,
            schema,
            vchannels,
            pchannels,
            consistency_level: new.consistency_level,
            properties: new.properties,
            created: new.created,
            partitions,
            indexes: Vec::new(),
            loaded: false,
        };
        if let Some(all) = self.databases.get_mut(&database) {
            all.insert(name.to_owned(), collection);
        }
        Ok(())
    }

    pub(super) fn drop_collection(&mut self, database: &str, name: &str) {
        if let Some(all) = self.databases.get_mut(Self::name(database)) {
            all.remove(name);
        }
    }

    pub(super) fn create_partition(
        &mut self,
        database: &str,
        name: &str,
        partition: &str,
    ) -> Result<(), Missing> {
        let id = self.id();
        let partitions = &mut self.get_mut(database, name)?.partitions;
        if !partitions.iter().any(|(name, _)| name == partition) {
            partitions.push((partition.to_owned(), id));
        }
        Ok(())
    }

    pub(super) fn create_index(
        &mut self,
        database: &str,
        name: &str,
        field: &str,
        index: &str,
        params: Vec<KeyValuePair>,
    ) -> Result<(), Missing> {
        let id = self.id();
        let index = if index.is_empty() { field } else { index };
        let indexes = &mut self.get_mut(database, name)?.indexes;
        if !indexes.iter().any(|i| i.name == index) {
            indexes.push(Index {
                name: index.to_owned(),
                field: field.to_owned(),
                params,
                id,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(objects: &mut Objects, database: &str, name: &str, shards: i32) {
        let new = New {
            shards,
            ..New::default()
        };
        assert_eq!(objects.create(database, name, new), Ok(()));
    }

    #[test]
    fn a_shard_belongs_to_its_channel_and_names_its_collection() {
        let mut objects = Objects::new("t");
        create(&mut objects, "", "a", 2);
        create(&mut objects, "default", "b", 1);
        let (a, b) = (objects.get("", "a").unwrap(), objects.get("", "b").unwrap());
        assert_eq!(a.pchannels, ["t-rootcoord-dml_0", "t-rootcoord-dml_1"]);
        assert_eq!(b.pchannels, ["t-rootcoord-dml_2"]);
        assert_eq!(a.vchannels[1], format!("t-rootcoord-dml_1_{}v1", a.id));
        assert_ne!(a.id, b.id);
        let id = a.id;
        create(&mut objects, "", "a", 2);
        assert_eq!(objects.get("", "a").unwrap().id, id, "there already");
        objects.drop_collection("", "a");
        assert!(objects.get("", "a").is_err());
    }

    #[test]
    fn what_is_not_there_is_missing() {
        let mut objects = Objects::new("t");
        assert_eq!(objects.create("db", "a", New::default()), Err(Missing));
        objects.create_database("db");
        create(&mut objects, "db", "a", 1);
        assert_eq!(objects.collections("db").len(), 1);
        assert_eq!(objects.collections("").len(), 0);
        assert_eq!(objects.create_partition("db", "b", "p"), Err(Missing));
        assert_eq!(objects.create_partition("db", "a", "p"), Ok(()));
        assert_eq!(objects.create_partition("db", "a", "p"), Ok(()));
        assert_eq!(objects.get("db", "a").unwrap().partitions.len(), 2);
        objects.drop_database("db");
        assert_eq!(objects.databases(), ["default"]);
    }
}
