//! What is written into collections, and what is read from them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use milvus::proto::common::{MsgType, SegmentState};
use milvus::proto::milvus::{self as pb, MutationResult, ReplicateMessageRequest};
use milvus::proto::schema::{CollectionSchema, IDs, i_ds};

use super::{Client, Key, Row, call, to_columns};

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
        let base = self.base(MsgType::Flush);
        self.reader.flush(base, db, collections).await
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
                    self.name()
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
