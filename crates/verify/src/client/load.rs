//! What changes a server, for those who ask to load.

use anyhow::Result;
use milvus::proto::common::MsgBase;
use milvus::proto::milvus as pb;

use super::{Client, call};

impl Client {
    /// Asks to load a collection and returns at once.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn load(&self, base: Option<MsgBase>, db: &str, collection: &str) -> Result<()> {
        let request = pb::LoadCollectionRequest {
            base,
            db_name: db.to_owned(),
            collection_name: collection.to_owned(),
            replica_number: 1,
            ..Default::default()
        };
        call!(self, load_collection, request, format!("{db}.{collection}")).map(drop)
    }

    /// Asks for a flush and returns at once.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn flush(
        &self,
        base: Option<MsgBase>,
        db: &str,
        collections: &[String],
    ) -> Result<pb::FlushResponse> {
        let request = pb::FlushRequest {
            base,
            db_name: db.to_owned(),
            collection_names: collections.to_vec(),
        };
        call!(self, flush, request, format!("{db} {collections:?}"))
    }
}
