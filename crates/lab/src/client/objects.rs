//! Databases, collections, partitions, indexes, load states.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use milvus::proto::common::{LoadState, MsgType};
use milvus::proto::milvus::{self as pb, DescribeCollectionResponse, IndexDescription};
use milvus::proto::schema::CollectionSchema;
use prost::Message;

use super::{Client, CollectionOptions, Refused, accept, call, pairs};

impl Client {
    // --- databases

    pub async fn create_database(&self, db: &str) -> Result<()> {
        let request = pb::CreateDatabaseRequest {
            base: self.base(MsgType::CreateDatabase),
            db_name: db.to_owned(),
            ..Default::default()
        };
        call!(self, create_database, request, db).map(drop)
    }

    pub async fn drop_database(&self, db: &str) -> Result<()> {
        let request = pb::DropDatabaseRequest {
            base: self.base(MsgType::DropDatabase),
            db_name: db.to_owned(),
        };
        call!(self, drop_database, request, db).map(drop)
    }

    pub async fn databases(&self) -> Result<Vec<String>> {
        let request = pb::ListDatabasesRequest {
            base: self.base(MsgType::ListDatabases),
        };
        Ok(call!(self, list_databases, request, "")?.db_names)
    }

    // --- collections

    pub async fn create_collection(
        &self,
        db: &str,
        schema: &CollectionSchema,
        options: &CollectionOptions,
    ) -> Result<()> {
        let request = pb::CreateCollectionRequest {
            base: self.base(MsgType::CreateCollection),
            db_name: db.to_owned(),
            collection_name: schema.name.clone(),
            schema: schema.encode_to_vec(),
            shards_num: options.shards,
            consistency_level: options.consistency.into(),
            properties: pairs(&options.properties),
            num_partitions: options.partitions,
        };
        call!(
            self,
            create_collection,
            request,
            format!("{db}.{}", schema.name)
        )
        .map(drop)
    }

    pub async fn drop_collection(&self, db: &str, collection: &str) -> Result<()> {
        let request = pb::DropCollectionRequest {
            base: self.base(MsgType::DropCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
        };
        call!(self, drop_collection, request, format!("{db}.{collection}")).map(drop)
    }

    pub async fn collections(&self, db: &str) -> Result<Vec<String>> {
        let request = pb::ShowCollectionsRequest {
            base: self.base(MsgType::ShowCollections),
            db_name: db.to_owned(),
            ..Default::default()
        };
        Ok(call!(self, show_collections, request, db)?.collection_names)
    }

    pub async fn describe(&self, db: &str, collection: &str) -> Result<DescribeCollectionResponse> {
        let request = pb::DescribeCollectionRequest {
            base: self.base(MsgType::DescribeCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        call!(
            self,
            describe_collection,
            request,
            format!("{db}.{collection}")
        )
    }

    // --- partitions

    pub async fn create_partition(
        &self,
        db: &str,
        collection: &str,
        partition: &str,
    ) -> Result<()> {
        let request = pb::CreatePartitionRequest {
            base: self.base(MsgType::CreatePartition),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_name: partition.to_owned(),
        };
        call!(
            self,
            create_partition,
            request,
            format!("{db}.{collection}/{partition}")
        )
        .map(drop)
    }

    pub async fn drop_partition(&self, db: &str, collection: &str, partition: &str) -> Result<()> {
        let request = pb::DropPartitionRequest {
            base: self.base(MsgType::DropPartition),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_name: partition.to_owned(),
        };
        call!(
            self,
            drop_partition,
            request,
            format!("{db}.{collection}/{partition}")
        )
        .map(drop)
    }

    /// Names with ids.
    pub async fn partitions(&self, db: &str, collection: &str) -> Result<Vec<(String, i64)>> {
        let request = pb::ShowPartitionsRequest {
            base: self.base(MsgType::ShowPartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            ..Default::default()
        };
        let answer = call!(self, show_partitions, request, format!("{db}.{collection}"))?;
        Ok(answer
            .partition_names
            .into_iter()
            .zip(answer.partition_i_ds)
            .collect())
    }

    // --- indexes

    pub async fn create_index(
        &self,
        db: &str,
        collection: &str,
        field: &str,
        name: &str,
        params: &[(String, String)],
    ) -> Result<()> {
        let request = pb::CreateIndexRequest {
            base: self.base(MsgType::CreateIndex),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            field_name: field.to_owned(),
            index_name: name.to_owned(),
            extra_params: pairs(params),
        };
        call!(
            self,
            create_index,
            request,
            format!("{db}.{collection} {field}")
        )
        .map(drop)
    }

    pub async fn drop_index(
        &self,
        db: &str,
        collection: &str,
        field: &str,
        name: &str,
    ) -> Result<()> {
        let request = pb::DropIndexRequest {
            base: self.base(MsgType::DropIndex),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            field_name: field.to_owned(),
            index_name: name.to_owned(),
        };
        call!(
            self,
            drop_index,
            request,
            format!("{db}.{collection} {field}")
        )
        .map(drop)
    }

    /// All indexes; none is not an error.
    pub async fn indexes(&self, db: &str, collection: &str) -> Result<Vec<IndexDescription>> {
        let request = pb::DescribeIndexRequest {
            base: self.base(MsgType::DescribeIndex),
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

    // --- load state

    pub async fn load(&self, db: &str, collection: &str) -> Result<()> {
        let request = pb::LoadCollectionRequest {
            base: self.base(MsgType::LoadCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            replica_number: 1,
            ..Default::default()
        };
        call!(self, load_collection, request, format!("{db}.{collection}")).map(drop)
    }

    pub async fn release(&self, db: &str, collection: &str) -> Result<()> {
        let request = pb::ReleaseCollectionRequest {
            base: self.base(MsgType::ReleaseCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
        };
        call!(
            self,
            release_collection,
            request,
            format!("{db}.{collection}")
        )
        .map(drop)
    }

    pub async fn load_partitions(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<()> {
        let request = pb::LoadPartitionsRequest {
            base: self.base(MsgType::LoadPartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
            replica_number: 1,
            ..Default::default()
        };
        call!(
            self,
            load_partitions,
            request,
            format!("{db}.{collection} {partitions:?}")
        )
        .map(drop)
    }

    pub async fn release_partitions(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<()> {
        let request = pb::ReleasePartitionsRequest {
            base: self.base(MsgType::ReleasePartitions),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
        };
        call!(
            self,
            release_partitions,
            request,
            format!("{db}.{collection} {partitions:?}")
        )
        .map(drop)
    }

    /// Of the collection, or of the partitions if any are given.
    pub async fn load_state(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
    ) -> Result<LoadState> {
        let request = pb::GetLoadStateRequest {
            base: self.base(MsgType::Undefined),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            partition_names: partitions.to_vec(),
        };
        let answer = call!(
            self,
            get_load_state,
            request,
            format!("{db}.{collection} {partitions:?}")
        )?;
        Ok(LoadState::try_from(answer.state).unwrap_or(LoadState::NotExist))
    }

    /// Waits until it is loaded.
    ///
    /// # Errors
    /// It is not within `deadline`.
    pub async fn wait_loaded(
        &self,
        db: &str,
        collection: &str,
        partitions: &[String],
        deadline: Duration,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let state = self.load_state(db, collection, partitions).await?;
            if state == LoadState::Loaded {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "{}: {db}.{collection} {partitions:?} is {state:?} after {deadline:?}",
                    self.name
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
