//! Properties of databases, collections and indexes.
//!
//! What is set and what goes are two calls: servers that know of both refuse them in one (`cannot provide both DeleteKeys
//! and ExtraParams`).

use milvus::proto::common::MsgType;
use milvus::proto::milvus as rpc;

use super::call::{answer_call, status_call};
use super::{GrpcTarget, pairs};
use crate::target::TargetError;
use crate::tso::Tso;

/// The calls that a change needs: what is set, and what goes.
fn calls<'a>(
    set: &'a [(String, String)],
    gone: &'a [String],
) -> impl Iterator<Item = (&'a [(String, String)], &'a [String])> {
    [(set, &gone[..0]), (&set[..0], gone)]
        .into_iter()
        .filter(|(set, gone)| !set.is_empty() || !gone.is_empty())
}

impl GrpcTarget {
    pub(super) async fn properties_of_database(
        &self,
        name: &str,
    ) -> Result<Vec<(String, String)>, TargetError> {
        let request = rpc::DescribeDatabaseRequest {
            db_name: name.into(),
            ..Default::default()
        };
        let answer = answer_call!(self, "DescribeDatabase", describe_database, request);
        let pairs = answer.properties.into_iter();
        Ok(pairs.map(|p| (p.key, p.value)).collect())
    }

    pub(super) async fn change_database(
        &self,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        for (set, gone) in calls(set, gone) {
            let request = rpc::AlterDatabaseRequest {
                base: self.base(MsgType::AlterDatabase, Tso::ZERO),
                db_name: name.into(),
                properties: pairs(set),
                delete_keys: gone.to_vec(),
                ..Default::default()
            };
            status_call!(self, "AlterDatabase", alter_database, request)?;
        }
        Ok(())
    }

    pub(super) async fn change_collection(
        &self,
        database: &str,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        for (set, gone) in calls(set, gone) {
            let request = rpc::AlterCollectionRequest {
                base: self.base(MsgType::AlterCollection, Tso::ZERO),
                db_name: database.into(),
                collection_name: name.into(),
                properties: pairs(set),
                delete_keys: gone.to_vec(),
                ..Default::default()
            };
            status_call!(self, "AlterCollection", alter_collection, request)?;
        }
        Ok(())
    }

    pub(super) async fn change_index(
        &self,
        (database, name, index): (&str, &str, &str),
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        for (set, gone) in calls(set, gone) {
            let request = rpc::AlterIndexRequest {
                base: self.base(MsgType::AlterIndex, Tso::ZERO),
                db_name: database.into(),
                collection_name: name.into(),
                index_name: index.into(),
                extra_params: pairs(set),
                delete_keys: gone.to_vec(),
            };
            status_call!(self, "AlterIndex", alter_index, request)?;
        }
        Ok(())
    }
}
