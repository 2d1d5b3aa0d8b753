//! What plain mode asks of a server: Insert and Delete, a schema that takes the source's keys, and servers that give no
//! ids.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use milvus::proto::common::MsgBase;
use milvus::proto::milvus as rpc;
use milvus::proto::schema::CollectionSchema;
use prost::Message;

use super::call::answer_call;
use super::once::call_once;
use super::{GrpcTarget, replicate, user_schema};
use crate::catalog::Collection;
use crate::ids::PChannel;
use crate::target::plain::{Place, RowCalls};
use crate::target::{Target, TargetError};
use crate::tso::Tso;

/// `milvus.InsertRequest` whose columns are bytes already; same layout.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Insert {
    #[prost(message, optional, tag = "1")]
    base: Option<MsgBase>,
    #[prost(string, tag = "2")]
    db_name: String,
    #[prost(string, tag = "3")]
    collection_name: String,
    #[prost(string, tag = "4")]
    partition_name: String,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    fields_data: Vec<Bytes>,
    #[prost(uint32, tag = "7")]
    num_rows: u32,
}

const INSERT: &str = "/milvus.proto.milvus.MilvusService/Insert";
const DELETE: &str = "/milvus.proto.milvus.MilvusService/Delete";

#[async_trait]
impl RowCalls for GrpcTarget {
    async fn insert(
        &self,
        at: &Place,
        columns: Vec<Bytes>,
        rows: u64,
        within: Duration,
    ) -> Result<(), TargetError> {
        let request = Insert {
            base: None,
            db_name: at.database.clone(),
            collection_name: at.collection.clone(),
            partition_name: at.partition.clone(),
            fields_data: columns,
            num_rows: u32::try_from(rows).unwrap_or(u32::MAX),
        };
        let answer: rpc::MutationResult =
            call_once(self, "Insert", INSERT, request, within).await?;
        self.check("Insert", answer.status)?;
        if answer.insert_cnt < 0 || answer.insert_cnt as u64 != rows {
            return Err(TargetError::Unknown {
                uri: self.uri.clone(),
                call: "Insert",
                cause: format!("{} of {rows} rows were inserted", answer.insert_cnt),
            });
        }
        Ok(())
    }

    async fn delete(&self, at: &Place, expr: &str, within: Duration) -> Result<(), TargetError> {
        let request = rpc::DeleteRequest {
            db_name: at.database.clone(),
            collection_name: at.collection.clone(),
            partition_name: at.partition.clone(),
            expr: expr.to_owned(),
            ..Default::default()
        };
        let answer: rpc::MutationResult =
            call_once(self, "Delete", DELETE, request, within).await?;
        self.check("Delete", answer.status)
    }
}

impl GrpcTarget {
    /// ReplicateMessage to a channel without a name: what a server says of that tells what it is.
    pub(super) async fn probe_replicate(&self) -> Result<(), TargetError> {
        let nowhere = PChannel::new("");
        replicate::send(self, &nowhere, Vec::new(), Tso::ZERO, Tso::ZERO).await
    }

    /// A standby takes no Insert: what it refuses replicated messages for tells that it is none.
    pub(super) async fn probe_plain(&self) -> Result<(), TargetError> {
        match self.probe_replicate().await {
            Ok(()) | Err(TargetError::Refused { code: 1100, .. }) => {
                Err(TargetError::Configuration {
                    uri: self.uri.clone(),
                    cause: "it is a standby, and takes replicated messages only".into(),
                    hint: "create the task with mode replicate, or set common.ttMsgEnabled to true in the target's milvus.yaml and restart it".into(),
                })
            }
            // 1900: a Milvus of its own. 10, or an error without a code: it has no such call any more, or never had.
            Err(TargetError::Refused { .. }) => self.databases().await.map(drop),
            Err(other) => Err(other),
        }
    }

    /// Whether it has rows, flushed or not.
    pub(super) async fn counts_rows(
        &self,
        database: &str,
        name: &str,
    ) -> Result<bool, TargetError> {
        self.flush(database, &[name.to_owned()]).await?;
        let request = rpc::GetCollectionStatisticsRequest {
            db_name: database.into(),
            collection_name: name.into(),
            ..Default::default()
        };
        let answer = answer_call!(
            self,
            "GetCollectionStatistics",
            get_collection_statistics,
            request
        );
        let rows = answer.stats.iter().find(|s| s.key == "row_count");
        Ok(rows.is_none_or(|s| s.value != "0"))
    }
}

/// The schema as it is created where the keys that the source made are to be kept: with `autoID` the target would make
/// its own, and refuse those it is given.
pub(super) fn plain_schema(source: &Collection) -> CollectionSchema {
    let mut schema = user_schema(source);
    for field in &mut schema.fields {
        field.auto_id = false;
    }
    schema
}

/// An id, or, from a server that gives none (milvus-lite), one that stands for the name.
pub(super) fn id_or_hash(id: i64, names: &[&str]) -> i64 {
    if id != 0 {
        return id;
    }
    // FNV-1a: it is stored, and has to be the same for ever.
    let bytes = names.iter().flat_map(|n| n.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 2) as i64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_ids_has_one_for_each_name() {
        assert_eq!(id_or_hash(7, &["a"]), 7);
        let (a, b) = (id_or_hash(0, &["d", "a"]), id_or_hash(0, &["d", "b"]));
        assert!(a > 0 && b > 0 && a != b);
        assert_eq!(a, 3_661_893_077_647_599_699);
    }
}
