//! A collection of an Int64 key, a number and a vector, with the keys that it has.

use std::collections::BTreeSet;

use anyhow::Result;
use cdc_core::source::rules::Write;
use cdc_lab::client::{Client, CollectionOptions, Key, Row, Value, key_expr};
use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::lab::{DB, PATIENCE};

const DIM: usize = 8;

pub(crate) struct Plain {
    db: String,
    schema: CollectionSchema,
    pub(crate) keys: Vec<i64>,
    /// Of writes that were refused, of which nobody knows what came of them.
    pub(crate) doubted: BTreeSet<i64>,
    next: i64,
}

impl Plain {
    /// Creates it on `client` in the default database, indexed and loaded.
    pub(crate) async fn create(client: &Client, name: &str, shards: i32) -> Result<Self> {
        let c = Self::bare(client, DB, name, shards).await?;
        c.index(client).await?;
        c.load(client).await?;
        Ok(c)
    }

    /// Creates it without an index.
    pub(crate) async fn bare(client: &Client, db: &str, name: &str, shards: i32) -> Result<Self> {
        let known = Self {
            db: db.to_owned(),
            ..Self::known(name)
        };
        let options = CollectionOptions {
            shards,
            consistency: ConsistencyLevel::Bounded,
            properties: Vec::new(),
            partitions: 0,
        };
        client
            .create_collection(db, &known.schema, &options)
            .await?;
        Ok(known)
    }

    /// One that is there, in the default database.
    pub(crate) fn known(name: &str) -> Self {
        let mut pk = field("pk", DataType::Int64);
        pk.is_primary_key = true;
        let mut vector = field("vec", DataType::FloatVector);
        vector.type_params = vec![KeyValuePair {
            key: "dim".into(),
            value: DIM.to_string(),
        }];
        let schema = CollectionSchema {
            name: name.to_owned(),
            fields: vec![pk, field("a", DataType::Int64), vector],
            ..Default::default()
        };
        Self {
            db: DB.to_owned(),
            schema,
            keys: Vec::new(),
            doubted: BTreeSet::new(),
            next: 0,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.schema.name
    }

    /// It has another name by now.
    pub(crate) fn is_named(&mut self, db: &str, name: &str) {
        db.clone_into(&mut self.db);
        name.clone_into(&mut self.schema.name);
    }

    pub(crate) async fn index(&self, client: &Client) -> Result<()> {
        let params = [
            ("index_type", "FLAT"),
            ("metric_type", "L2"),
            ("params", "{}"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
        client
            .create_index(&self.db, self.name(), "vec", "by_vec", &params)
            .await
    }

    pub(crate) async fn load(&self, client: &Client) -> Result<()> {
        client.load(&self.db, self.name()).await?;
        client
            .wait_loaded(&self.db, self.name(), &[], PATIENCE)
            .await
    }

    /// New keys into `partition` (empty: the default one).
    pub(crate) async fn insert(
        &mut self,
        client: &Client,
        partition: &str,
        count: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let new: Vec<i64> = (self.next..).take(count).collect();
        self.next += new.len() as i64;
        let written = self.write(client, partition, &new, random).await;
        self.unless_known(written, &new)?;
        self.keys.extend(new);
        Ok(())
    }

    fn unless_known<T>(&mut self, answer: Result<T>, keys: &[i64]) -> Result<T> {
        if answer.is_err() {
            self.doubted.extend(keys);
        }
        answer
    }

    /// Rows with these keys, without a note of them.
    pub(crate) async fn write(
        &self,
        client: &Client,
        partition: &str,
        keys: &[i64],
        random: &mut StdRng,
    ) -> Result<()> {
        let rows: Vec<Row> = keys.iter().map(|k| row(*k, random)).collect();
        client
            .insert(&self.db, &self.schema, partition, &rows)
            .await
            .map(drop)
    }

    /// Rows with these keys, without a note of them; the source's timestamp of the insert.
    pub(crate) async fn timed_insert(
        &self,
        client: &Client,
        keys: &[i64],
        random: &mut StdRng,
    ) -> Result<u64> {
        let rows: Vec<Row> = keys.iter().map(|k| row(*k, random)).collect();
        let answer = client.insert(&self.db, &self.schema, "", &rows).await?;
        Ok(answer.timestamp)
    }

    /// One request, without a note of it; its time, if the source says it.
    pub(crate) async fn request(
        &self,
        client: &Client,
        partition: &str,
        write: Write,
        keys: &[i64],
        random: &mut StdRng,
    ) -> Result<u64> {
        let rows: Vec<Row> = keys.iter().map(|k| row(*k, random)).collect();
        let (db, schema) = (&self.db, &self.schema);
        let answer = match write {
            Write::Insert => client.insert(db, schema, partition, &rows).await?,
            Write::Upsert => client.upsert(db, schema, partition, &rows).await?,
            Write::Delete => {
                let keys: Vec<Key> = keys.iter().copied().map(Key::Int).collect();
                let expr = key_expr("pk", &keys);
                client.delete(db, self.name(), partition, &expr).await?
            }
        };
        Ok(answer.timestamp)
    }

    /// Other values for some of its keys, and `new` ones.
    pub(crate) async fn upsert(
        &mut self,
        client: &Client,
        count: usize,
        new: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let mut keys: Vec<i64> = self.keys.choose_multiple(random, count).copied().collect();
        let new: Vec<i64> = (self.next..).take(new).collect();
        self.next += new.len() as i64;
        keys.extend(&new);
        let rows: Vec<Row> = keys.iter().map(|k| row(*k, random)).collect();
        let written = client.upsert(&self.db, &self.schema, "", &rows).await;
        self.unless_known(written, &keys)?;
        self.keys.extend(new);
        Ok(())
    }

    pub(crate) async fn delete(
        &mut self,
        client: &Client,
        count: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let gone: Vec<i64> = self.keys.choose_multiple(random, count).copied().collect();
        let erased = self.erase(client, "", &gone).await;
        self.unless_known(erased, &gone)?;
        self.keys.retain(|k| !gone.contains(k));
        Ok(())
    }

    /// Deletes these keys in `partition` (empty: in all), without a note of it.
    pub(crate) async fn erase(&self, client: &Client, partition: &str, keys: &[i64]) -> Result<()> {
        let keys: Vec<Key> = keys.iter().copied().map(Key::Int).collect();
        client
            .delete(&self.db, self.name(), partition, &key_expr("pk", &keys))
            .await
            .map(drop)
    }

    /// One insert, one upsert, one delete.
    pub(crate) async fn round(&mut self, client: &Client, random: &mut StdRng) -> Result<()> {
        self.insert(client, "", 20, random).await?;
        self.upsert(client, 10, 0, random).await?;
        self.delete(client, 3, random).await
    }
}

fn field(name: &str, kind: DataType) -> FieldSchema {
    FieldSchema {
        name: name.to_owned(),
        data_type: kind.into(),
        ..Default::default()
    }
}

fn row(key: i64, random: &mut StdRng) -> Row {
    let vector = (0..DIM).map(|_| random.random::<f32>().to_bits()).collect();
    Row::from([
        ("pk".to_owned(), Value::Int(key)),
        (
            "a".to_owned(),
            Value::Int(random.random_range(0..1_000_000)),
        ),
        ("vec".to_owned(), Value::FloatVector(vector)),
    ])
}
