//! What is there: objects, load states, rows.

use anyhow::{Result, bail};
use milvus::proto::common::{ConsistencyLevel, KeyValuePair, LoadState, MsgBase, MsgType};
use milvus::proto::milvus::{self as pb, DescribeCollectionResponse, IndexDescription};

use super::{Client, NoAnswer, Refused, Row, Value, call, from_columns};

/// What a query asks for.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    pub db: &'a str,
    pub collection: &'a str,
    /// Empty: all.
    pub partitions: &'a [String],
    pub expr: &'a str,
    pub output: &'a [String],
    pub consistency: ConsistencyLevel,
}

fn base(kind: MsgType) -> Option<MsgBase> {
    Some(MsgBase::new(kind))
}

impl Client {
    /// The server's version, `v2.3.5`.
    pub async fn version(&self) -> Result<String> {
        Ok(call!(self, get_version, pb::GetVersionRequest {}, "")?.version)
    }

    /// A fresh timestamp of the server's oracle.
    pub async fn timestamp(&self) -> Result<u64> {
        let request = pb::AllocTimestampRequest {
            base: base(MsgType::RequestTso),
        };
        Ok(call!(self, alloc_timestamp, request, "")?.timestamp)
    }

    pub async fn databases(&self) -> Result<Vec<String>> {
        let request = pb::ListDatabasesRequest {
            base: base(MsgType::ListDatabases),
        };
        Ok(call!(self, list_databases, request, "")?.db_names)
    }

    /// Empty where the server has no such call (2.3, and the first 2.4).
    pub async fn database_properties(&self, db: &str) -> Result<Vec<KeyValuePair>> {
        let request = pb::DescribeDatabaseRequest {
            base: base(MsgType::DescribeDatabase),
            db_name: db.to_owned(),
        };
        match call!(self, describe_database, request, db) {
            Ok(found) => Ok(found.properties),
            Err(error) => match error.downcast_ref::<NoAnswer>() {
                Some(no) if no.code == tonic::Code::Unimplemented => Ok(Vec::new()),
                _ => Err(error),
            },
        }
    }

    pub async fn collections(&self, db: &str) -> Result<Vec<String>> {
        let request = pb::ShowCollectionsRequest {
            base: base(MsgType::ShowCollections),
            db_name: db.to_owned(),
            ..Default::default()
        };
        Ok(call!(self, show_collections, request, db)?.collection_names)
    }

    pub async fn describe(&self, db: &str, collection: &str) -> Result<DescribeCollectionResponse> {
        let request = pb::DescribeCollectionRequest {
            base: base(MsgType::DescribeCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        let what = format!("{db}.{collection}");
        call!(self, describe_collection, request, what)
    }

    /// Names with ids.
    pub async fn partitions(&self, db: &str, collection: &str) -> Result<Vec<(String, i64)>> {
        let request = pb::ShowPartitionsRequest {
            base: base(MsgType::ShowPartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        let answer = call!(self, show_partitions, request, format!("{db}.{collection}"))?;
        // milvus-lite gives no ids.
        let ids = answer.partition_i_ds.into_iter();
        let ids = ids.chain(std::iter::repeat(0));
        Ok(answer.partition_names.into_iter().zip(ids).collect())
    }

    /// All indexes; none is not an error.
    pub async fn indexes(&self, db: &str, collection: &str) -> Result<Vec<IndexDescription>> {
        let request = pb::DescribeIndexRequest {
            base: base(MsgType::DescribeIndex),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        match call!(self, describe_index, request, format!("{db}.{collection}")) {
            Ok(answer) => Ok(answer.index_descriptions),
            // 700: IndexNotFound; 25 is its old number.
            Err(e)
                if e.downcast_ref::<Refused>()
                    .is_some_and(|r| r.code == 700 || r.code == 25) =>
            {
                Ok(Vec::new())
            }
            Err(e) => Err(e),
        }
    }

    /// Of the collection, or of the partitions if any are given.
    pub async fn load_state(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<LoadState> {
        let request = pb::GetLoadStateRequest {
            base: base(MsgType::Undefined),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
        };
        let what = format!("{db}.{collection} {partitions:?}");
        let answer = call!(self, get_load_state, request, what)?;
        Ok(LoadState::try_from(answer.state).unwrap_or(LoadState::NotExist))
    }

    /// The rows an expression selects.
    pub async fn query(&self, q: &Query<'_>) -> Result<Vec<Row>> {
        let request = pb::QueryRequest {
            base: base(MsgType::Retrieve),
            db_name: q.db.to_owned(),
            collection_name: q.collection.to_owned(),
            partition_names: q.partitions.to_vec(),
            expr: q.expr.to_owned(),
            output_fields: q.output.to_vec(),
            consistency_level: q.consistency.into(),
            ..Default::default()
        };
        let what = format!("{}.{} {:?}", q.db, q.collection, q.partitions);
        from_columns(call!(self, query, request, what)?.fields_data)
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
}
