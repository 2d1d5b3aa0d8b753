//! What is written into collections, and what is read from them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use milvus::proto::common::{ConsistencyLevel, MsgType, SegmentState};
use milvus::proto::milvus::{self as pb, MutationResult, ReplicateMessageRequest};
use milvus::proto::schema::{CollectionSchema, IDs, i_ds};

use super::{Client, Key, Query, Row, Value, accept, call, from_columns, to_columns};

impl Client {
    // --- rows

    /// Inserts rows given as columns; the answer has the keys and the timestamp.
    pub async fn insert(
        &self,
        db: &str,
        schema: &CollectionSchema,
        partition: &str,
        rows: &[Row],
    ) -> Result<MutationResult> {
        let request = pb::InsertRequest {
            base: self.base(MsgType::Insert),
            db_name: db.to_owned(),
            collection_name: schema.name.clone(),
            partition_name: partition.to_owned(),
            fields_data: to_columns(schema, rows)?,
            num_rows: u32::try_from(rows.len())?,
            ..Default::default()
        };
        call!(
            self,
            insert,
            request,
            format!("{db}.{}/{partition} {} rows", schema.name, rows.len())
        )
    }

    pub async fn upsert(
        &self,
        db: &str,
        schema: &CollectionSchema,
        partition: &str,
        rows: &[Row],
    ) -> Result<MutationResult> {
        let request = pb::UpsertRequest {
            base: self.base(MsgType::Upsert),
            db_name: db.to_owned(),
            collection_name: schema.name.clone(),
            partition_name: partition.to_owned(),
            fields_data: to_columns(schema, rows)?,
            num_rows: u32::try_from(rows.len())?,
            ..Default::default()
        };
        call!(
            self,
            upsert,
            request,
            format!("{db}.{}/{partition} {} rows", schema.name, rows.len())
        )
    }

    pub async fn delete(
        &self,
        db: &str,
        collection: &str,
        partition: &str,
        expr: &str,
    ) -> Result<MutationResult> {
        let request = pb::DeleteRequest {
            base: self.base(MsgType::Delete),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_name: partition.to_owned(),
            expr: expr.to_owned(),
            ..Default::default()
        };
        call!(
            self,
            delete,
            request,
            format!("{db}.{collection}/{partition}")
        )
    }

    /// Asks for a flush and returns at once.
    pub async fn flush(&self, db: &str, collections: &[String]) -> Result<pb::FlushResponse> {
        let request = pb::FlushRequest {
            base: self.base(MsgType::Flush),
            db_name: db.to_owned(),
            collection_names: collections.to_vec(),
        };
        call!(self, flush, request, format!("{db} {collections:?}"))
    }

    /// Asks for a flush and waits for its end.
    ///
    /// # Errors
    /// It has not ended within `deadline`.
    pub async fn flush_and_wait(
        &self,
        db: &str,
        collection: &str,
        deadline: Duration,
    ) -> Result<()> {
        let flush = self.flush(db, &[collection.to_owned()]).await?;
        let end = Instant::now() + deadline;
        loop {
            let request = pb::GetFlushStateRequest {
                segment_i_ds: flush
                    .coll_seg_i_ds
                    .get(collection)
                    .map(|a| a.data.clone())
                    .unwrap_or_default(),
                flush_ts: flush
                    .coll_flush_ts
                    .get(collection)
                    .copied()
                    .unwrap_or_default(),
                db_name: db.to_owned(),
                collection_name: collection.to_owned(),
            };
            if call!(self, get_flush_state, request, format!("{db}.{collection}"))?.flushed {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "{}: the flush of {db}.{collection} has not ended after {deadline:?}",
                    self.name
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// State and rows of each segment that is in the storage or on its way there.
    pub async fn persistent_segments(
        &self,
        db: &str,
        collection: &str,
    ) -> Result<Vec<(SegmentState, i64)>> {
        let request = pb::GetPersistentSegmentInfoRequest {
            base: self.base(MsgType::Undefined),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        let answer = call!(
            self,
            get_persistent_segment_info,
            request,
            format!("{db}.{collection}")
        )?;
        let infos = answer.infos.iter();
        Ok(infos.map(|i| (i.state(), i.num_rows)).collect())
    }

    /// The rows an expression selects.
    pub async fn query(&self, q: &Query<'_>) -> Result<Vec<Row>> {
        from_columns(self.query_raw(q).await?.fields_data)
    }

    async fn query_raw(&self, q: &Query<'_>) -> Result<pb::QueryResults> {
        let request = pb::QueryRequest {
            base: self.base(MsgType::Retrieve),
            db_name: q.db.to_owned(),
            collection_name: q.collection.to_owned(),
            partition_names: q.partitions.to_vec(),
            expr: q.expr.to_owned(),
            output_fields: q.output.to_vec(),
            consistency_level: q.consistency.into(),
            ..Default::default()
        };
        call!(
            self,
            query,
            request,
            format!("{}.{} {:?}", q.db, q.collection, q.partitions)
        )
    }

    /// `count(*)`: every physical copy of a row counts.
    pub async fn count(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
        consistency: ConsistencyLevel,
    ) -> Result<u64> {
        self.count_where(db, collection, partitions, "", consistency)
            .await
    }

    /// `count(*)` of the rows an expression selects.
    pub async fn count_where(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
        expr: &str,
        consistency: ConsistencyLevel,
    ) -> Result<u64> {
        let output = ["count(*)".to_owned()];
        let rows = self
            .query(&Query {
                db,
                collection,
                partitions,
                expr,
                output: &output,
                consistency,
            })
            .await?;
        match rows.first().and_then(|r| r.get("count(*)")) {
            Some(Value::Int(n)) => Ok(u64::try_from(*n)?),
            other => bail!(
                "{}: count(*) of {db}.{collection} answered {other:?}",
                self.name
            ),
        }
    }

    // --- replication

    /// Messages for one physical channel of a standby; answers the position.
    pub async fn replicate(
        &self,
        channel: &str,
        end_ts: u64,
        msgs: Vec<Vec<u8>>,
    ) -> Result<String> {
        #[allow(deprecated)] // deprecated with 2.6, which this laboratory does not run
        let answer = {
            let request = ReplicateMessageRequest {
                base: self.base(MsgType::Undefined),
                channel_name: channel.to_owned(),
                begin_ts: end_ts,
                end_ts,
                msgs,
                ..Default::default()
            };
            call!(self, replicate_message, request, channel)?
        };
        Ok(answer.position)
    }
}

/// The keys of a mutation's answer.
pub fn keys(ids: Option<IDs>) -> Vec<Key> {
    match ids.and_then(|i| i.id_field) {
        Some(i_ds::IdField::IntId(a)) => a.data.into_iter().map(Key::Int).collect(),
        Some(i_ds::IdField::StrId(a)) => a.data.into_iter().map(Key::Str).collect(),
        _ => Vec::new(),
    }
}

/// `field in [...]`, strings escaped as Milvus reads them.
pub fn key_expr(field: &str, keys: &[Key]) -> String {
    let list: Vec<String> = keys.iter().map(Key::literal).collect();
    format!("{field} in [{}]", list.join(","))
}
