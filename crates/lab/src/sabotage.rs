//! Spoils one thing on a target, so that a comparison that finds nothing wrong is known to look.
//!
//! Only while milvus-cdc does not write to that target: the messages here end in a time tick.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use milvus::proto::common::{ConsistencyLevel, MsgBase, MsgType};
use milvus::proto::milvus::DescribeCollectionResponse;
use milvus::proto::msg::{DeleteRequest, InsertDataVersion, InsertRequest, TimeTickMsg};
use milvus::proto::schema::{CollectionSchema, DataType, IDs, LongArray, StringArray, i_ds};
use prost::Message;

use crate::client::{Client, Key, META, Query, Row, Value, key_expr, to_columns};

/// What to spoil.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Delete one row.
    Lose,
    /// Write one row a second time.
    Double,
    /// Change one field of one row.
    Change,
    /// Write a row that the source has not.
    Extra,
    /// Drop one index.
    Index,
}

/// Longer than our own clock can be ahead of the target's last tick.
const SETTLE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// A row of the target and where it lives.
struct Victim {
    db: String,
    described: DescribeCollectionResponse,
    schema: CollectionSchema,
    partition: (String, i64),
    key: Key,
    row: Row,
}

/// Spoils one thing and waits until a reader of the target sees it; its name as the comparison will say it.
///
/// # Errors
/// There is no loaded collection with a row and an index, or the target refuses.
pub async fn sabotage(target: &Client, what: Sabotage) -> Result<String> {
    tokio::time::sleep(SETTLE).await;
    spoil(target, what, 0, |_, _| true).await
}

/// The same in a collection that `is_it` is true of, by database and name, at a row that `pick` chooses. Not before the
/// last tick of whoever wrote there is two seconds old. Of a collection with a partition key a row can only be deleted.
///
/// # Errors
/// As [`sabotage`].
pub async fn spoil(
    target: &Client,
    what: Sabotage,
    pick: usize,
    is_it: impl Fn(&str, &str) -> bool,
) -> Result<String> {
    let mut victim = find(target, what == Sabotage::Lose, pick, is_it).await?;
    match what {
        Sabotage::Extra => {
            let primary = victim.schema.fields.iter().find(|f| f.is_primary_key);
            let primary = primary.context("no primary key")?.name.clone();
            let mut row = victim.row.clone();
            let ts = target.alloc_timestamp().await?;
            victim.key = match victim.key {
                Key::Int(_) => Key::Int(i64::try_from(ts)?),
                Key::Str(_) => Key::Str(format!("extra \"{ts}\"")),
            };
            let value = match &victim.key {
                Key::Int(key) => Value::Int(*key),
                Key::Str(key) => Value::Str(key.clone()),
            };
            row.insert(primary, value);
            victim.write(target, false, Some(&row)).await?;
            victim.until(target, |rows, _| !rows.is_empty()).await?;
            Ok(victim.name())
        }
        Sabotage::Index => drop_index(target, &victim).await,
        Sabotage::Lose => {
            victim.write(target, true, None).await?;
            victim.until(target, |rows, _| rows.is_empty()).await?;
            Ok(victim.name())
        }
        Sabotage::Double => {
            let before = victim.count(target).await?;
            victim.write(target, false, Some(&victim.row)).await?;
            victim.until(target, |_, count| count > before).await?;
            Ok(format!("rows {}", victim.place()))
        }
        Sabotage::Change => {
            let mut row = victim.row.clone();
            let (name, value) = row
                .iter_mut()
                .find(|(n, _)| *n == "vec")
                .context("a row without a vector")?;
            let name = name.clone();
            match value {
                Value::FloatVector(v) => v.iter_mut().take(1).for_each(|b| *b = 0.25f32.to_bits()),
                Value::BinaryVector(v) => v.iter_mut().take(1).for_each(|b| *b = !*b),
                other => bail!("{other:?} is no vector"),
            }
            victim.write(target, true, Some(&row)).await?;
            victim
                .until(target, |rows, _| {
                    rows.first().is_some_and(|r| r.get(&name) == row.get(&name))
                })
                .await?;
            Ok(format!("{} field {name}", victim.name()))
        }
    }
}

async fn drop_index(target: &Client, victim: &Victim) -> Result<String> {
    let (db, name) = (&victim.db, &victim.schema.name);
    let replicator = target.clone().replicating(target.alloc_timestamp().await?);
    let index = target
        .indexes(db, name)
        .await?
        .pop()
        .context("the collection has no index")?;
    replicator.release(db, name).await?;
    replicator
        .drop_index(db, name, &index.field_name, &index.index_name)
        .await?;
    Ok(format!("index {db}.{name} {}", index.field_name))
}

async fn find(
    target: &Client,
    with_key: bool,
    pick: usize,
    is_it: impl Fn(&str, &str) -> bool,
) -> Result<Victim> {
    for db in target.databases().await? {
        for name in target.collections(&db).await? {
            if !is_it(&db, &name) {
                continue;
            }
            let described = target.describe(&db, &name).await?;
            let schema = described.schema.clone().unwrap_or_default();
            let partition_key = schema.fields.iter().any(|f| f.is_partition_key);
            if partition_key && !with_key || target.indexes(&db, &name).await?.is_empty() {
                continue;
            }
            let Some(primary) = schema.fields.iter().find(|f| f.is_primary_key) else {
                continue;
            };
            let expr = if primary.data_type() == DataType::VarChar {
                format!("{} >= \"\"", primary.name)
            } else {
                format!("{} >= {}", primary.name, i64::MIN + 1)
            };
            let mut output: Vec<String> = schema.fields.iter().map(|f| f.name.clone()).collect();
            if schema.enable_dynamic_field {
                output.push(META.to_owned());
            }
            let mut all = match partition_key {
                // None can be named.
                true => vec![(String::new(), -1)],
                false => target.partitions(&db, &name).await?,
            };
            let first = pick % all.len().max(1);
            all.rotate_left(first);
            for partition in all {
                let partitions = names(&partition.0);
                let consistency = ConsistencyLevel::Eventually;
                let query = Query {
                    db: &db,
                    collection: &name,
                    partitions: &partitions,
                    expr: &expr,
                    output: &output,
                    consistency,
                };
                let Ok(rows) = target.query(&query).await else {
                    continue;
                };
                let place = pick % rows.len().max(1);
                let Some(row) = rows.into_iter().nth(place) else {
                    continue;
                };
                let Some(key) = row.get(&primary.name).and_then(Value::key) else {
                    continue;
                };
                return Ok(Victim {
                    db,
                    described,
                    schema,
                    partition,
                    key,
                    row,
                });
            }
        }
    }
    bail!("no collection of the target is loaded, indexed and has a row in a partition of its own")
}

fn names(partition: &str) -> Vec<String> {
    match partition {
        "" => Vec::new(),
        partition => vec![partition.to_owned()],
    }
}

impl Victim {
    fn place(&self) -> String {
        let full = format!("{}.{}", self.db, self.schema.name);
        match self.partition.0.as_str() {
            "" => full,
            partition => format!("{full}/{partition}"),
        }
    }

    fn name(&self) -> String {
        format!("row {} {}", self.place(), self.key)
    }

    async fn count(&self, target: &Client) -> Result<u64> {
        let partitions = names(&self.partition.0);
        target
            .count(
                &self.db,
                &self.schema.name,
                &partitions,
                ConsistencyLevel::Eventually,
            )
            .await
    }

    /// Waits until what a reader sees of this key and of the count is as wanted.
    async fn until(&self, target: &Client, wanted: impl Fn(&[Row], u64) -> bool) -> Result<()> {
        let primary = self
            .schema
            .fields
            .iter()
            .find(|f| f.is_primary_key)
            .context("no primary key")?;
        let expr = key_expr(&primary.name, std::slice::from_ref(&self.key));
        let output: Vec<String> = self.schema.fields.iter().map(|f| f.name.clone()).collect();
        let consistency = ConsistencyLevel::Eventually;
        let (db, collection) = (self.db.as_str(), self.schema.name.as_str());
        let query = Query {
            db,
            collection,
            partitions: &[],
            expr: &expr,
            output: &output,
            consistency,
        };
        let end = Instant::now() + PATIENCE;
        while !wanted(&target.query(&query).await?, self.count(target).await?) {
            if Instant::now() >= end {
                bail!(
                    "the target does not show what was spoilt of {} after {PATIENCE:?}",
                    self.name()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// A Delete of the key on every shard, and an Insert of a row on the first one, at one new time, closed by ticks.
    async fn write(&self, target: &Client, delete: bool, insert: Option<&Row>) -> Result<()> {
        let ts = target.alloc_timestamp().await?;
        // Behind everything a replicator may have used: those count up from a time stamp or from a small number.
        let mut id = i64::try_from(ts)?;
        let mut base = |kind: MsgType| {
            id += 1;
            Some(MsgBase {
                msg_id: id,
                timestamp: ts,
                source_id: 1,
                ..MsgBase::new(kind)
            })
        };
        let d = &self.described;
        for (shard, (vchannel, pchannel)) in d
            .virtual_channel_names
            .iter()
            .zip(&d.physical_channel_names)
            .enumerate()
        {
            let mut msgs = Vec::new();
            if delete {
                msgs.push(
                    self.delete(base(MsgType::Delete), vchannel, ts)
                        .encode_to_vec(),
                );
            }
            if let Some(row) = insert
                && shard == 0
            {
                msgs.push(
                    self.insert(base(MsgType::Insert), vchannel, ts, row)?
                        .encode_to_vec(),
                );
            }
            msgs.push(
                TimeTickMsg {
                    base: base(MsgType::TimeTick),
                }
                .encode_to_vec(),
            );
            target.replicate(pchannel, ts, msgs).await?;
        }
        Ok(())
    }

    fn delete(&self, base: Option<MsgBase>, vchannel: &str, ts: u64) -> DeleteRequest {
        let id_field = match &self.key {
            Key::Int(i) => i_ds::IdField::IntId(LongArray { data: vec![*i] }),
            Key::Str(s) => i_ds::IdField::StrId(StringArray {
                data: vec![s.clone()],
            }),
        };
        DeleteRequest {
            base,
            shard_name: vchannel.to_owned(),
            db_name: self.db.clone(),
            collection_name: self.schema.name.clone(),
            collection_id: self.described.collection_id,
            partition_id: -1,
            timestamps: vec![ts],
            num_rows: 1,
            primary_keys: Some(IDs {
                id_field: Some(id_field),
            }),
            ..Default::default()
        }
    }

    fn insert(
        &self,
        base: Option<MsgBase>,
        vchannel: &str,
        ts: u64,
        row: &Row,
    ) -> Result<InsertRequest> {
        // A replicated row brings its key, auto id or not.
        let mut schema = self.schema.clone();
        schema.fields.iter_mut().for_each(|f| f.auto_id = false);
        let mut columns = to_columns(&schema, std::slice::from_ref(row))?;
        let last = schema
            .fields
            .iter()
            .map(|f| f.field_id)
            .max()
            .unwrap_or_default();
        for column in columns.iter_mut().filter(|c| c.is_dynamic) {
            // DescribeCollection hides it; it follows the others.
            column.field_id = last + 1;
        }
        Ok(InsertRequest {
            base,
            shard_name: vchannel.to_owned(),
            db_name: self.db.clone(),
            collection_name: self.schema.name.clone(),
            partition_name: self.partition.0.clone(),
            collection_id: self.described.collection_id,
            partition_id: self.partition.1,
            timestamps: vec![ts],
            row_i_ds: vec![i64::try_from(ts)?],
            fields_data: columns,
            num_rows: 1,
            version: InsertDataVersion::ColumnBased.into(),
            ..Default::default()
        })
    }
}
