//! Databases, collections, partitions, indexes, load states.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use milvus::proto::common::{LoadState, MsgType};
use milvus::proto::milvus as pb;
use milvus::proto::schema::CollectionSchema;
use prost::Message;

use super::{Client, CollectionOptions, call, pairs};

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

    /// `to`: database and name.
    pub async fn rename_collection(
        &self,
        db: &str,
        collection: &str,
        (to_db, to): (&str, &str),
    ) -> Result<()> {
        let request = pb::RenameCollectionRequest {
            base: self.base(MsgType::RenameCollection),
            db_name: db.to_owned(),
            old_name: collection.to_owned(),
            new_name: to.to_owned(),
            new_db_name: to_db.to_owned(),
        };
        let what = format!("{db}.{collection} to {to_db}.{to}");
        call!(self, rename_collection, request, what).map(drop)
    }

    pub async fn alter_collection(
        &self,
        db: &str,
        collection: &str,
        properties: &[(&str, &str)],
    ) -> Result<()> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let properties: Vec<_> = properties.iter().map(own).collect();
        let request = pb::AlterCollectionRequest {
            base: self.base(MsgType::AlterCollection),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            properties: pairs(&properties),
            ..Default::default()
        };
        call!(
            self,
            alter_collection,
            request,
            format!("{db}.{collection}")
        )
        .map(drop)
    }

    // --- aliases

    pub async fn create_alias(&self, db: &str, alias: &str, collection: &str) -> Result<()> {
        let request = pb::CreateAliasRequest {
            base: self.base(MsgType::CreateAlias),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            alias: alias.to_owned(),
        };
        call!(self, create_alias, request, format!("{db}.{alias}")).map(drop)
    }

    pub async fn alter_alias(&self, db: &str, alias: &str, collection: &str) -> Result<()> {
        let request = pb::AlterAliasRequest {
            base: self.base(MsgType::AlterAlias),
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            alias: alias.to_owned(),
        };
        call!(self, alter_alias, request, format!("{db}.{alias}")).map(drop)
    }

    pub async fn drop_alias(&self, db: &str, alias: &str) -> Result<()> {
        let request = pb::DropAliasRequest {
            base: self.base(MsgType::DropAlias),
            db_name: db.to_owned(),
            alias: alias.to_owned(),
        };
        call!(self, drop_alias, request, format!("{db}.{alias}")).map(drop)
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

    // --- load state

    pub async fn load(&self, db: &str, collection: &str) -> Result<()> {
        let base = self.base(MsgType::LoadCollection);
        self.reader.load(base, db, collection).await
    }

    /// As [`Self::load`], behind a release if need be: of a collection that is loaded in part and has another index
    /// since, a 2.3.5 loads the rest only then.
    pub async fn load_rest(&self, db: &str, collection: &str) -> Result<()> {
        match self.load(db, collection).await {
            Err(e) if is_of_another_index(&e) => {
                self.release(db, collection).await?;
                self.load(db, collection).await
            }
            other => other,
        }
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
                    self.name()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Whether a load is refused because the collection is loaded in part, with other indexes than it has now.
fn is_of_another_index(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("can't change the index for loaded collection")
}
