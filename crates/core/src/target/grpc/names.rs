//! Names of collections: described by them, given others, and aliases.

use milvus::proto::common::MsgType;
use milvus::proto::milvus as rpc;

use super::call::status_call;
use super::{GrpcTarget, rows};
use crate::ids::{CollectionId, PChannel, VChannel};
use crate::select::Name;
use crate::target::{NAME_OR_ALIAS, TargetCollection, TargetError};
use crate::tso::Tso;

/// What a name stands for.
pub(super) enum Named {
    Collection(Box<TargetCollection>),
    /// An alias, and whose.
    Alias(CollectionId),
}

impl GrpcTarget {
    pub(super) async fn named(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<Named>, TargetError> {
        let mut client = self.client();
        let request = rpc::DescribeCollectionRequest {
            db_name: database.into(),
            collection_name: name.into(),
            ..Default::default()
        };
        let mut answer = self
            .call(
                "DescribeCollection",
                client.describe_collection(self.request(request)),
            )
            .await?;
        match self.check("DescribeCollection", answer.status.take()) {
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        }
        // Of an alias a 2.3.5 says the alias for a name, and it is in the list; milvus-lite has the name, and no list.
        let own = Some(answer.collection_name.as_str()).filter(|own| !own.is_empty());
        let own = own.unwrap_or(name);
        let id = rows::id_or_hash(answer.collection_id, &[database, own]);
        if own != name || answer.aliases.iter().any(|alias| alias == name) {
            return Ok(Some(Named::Alias(CollectionId(id))));
        }
        let plain = self.writer.is_some();
        let channels = |names: Vec<String>| match plain {
            true => Vec::new(),
            false => names,
        };
        let (vchannels, pchannels) = (
            channels(answer.virtual_channel_names),
            channels(answer.physical_channel_names),
        );
        let properties = answer.properties.into_iter();
        let by_name = answer.collection_id == 0;
        Ok(Some(Named::Collection(Box::new(TargetCollection {
            id: CollectionId(if plain { id } else { answer.collection_id }),
            name: name.to_owned(),
            vchannels: vchannels.into_iter().map(VChannel::new).collect(),
            pchannels: pchannels.into_iter().map(PChannel::new).collect(),
            schema: answer.schema.unwrap_or_default(),
            properties: properties.map(|p| (p.key, p.value)).collect(),
            by_name,
        }))))
    }

    pub(super) fn name_or_alias(&self, reason: String) -> TargetError {
        TargetError::Refused {
            uri: self.uri.clone(),
            call: "DescribeCollection",
            code: NAME_OR_ALIAS,
            reason,
        }
    }

    /// The writer knows collections by name.
    pub(super) fn forget(&self, database: &str, name: &str) {
        if let Some(writer) = &self.writer {
            writer.forget(database, name);
        }
    }

    pub(super) async fn rename(
        &self,
        database: &str,
        name: &str,
        to: &Name,
    ) -> Result<(), TargetError> {
        let renamed = status_call!(
            self,
            "RenameCollection",
            rename_collection,
            rpc::RenameCollectionRequest {
                base: self.base(MsgType::RenameCollection, Tso::ZERO),
                db_name: database.into(),
                old_name: name.into(),
                new_name: to.name.clone(),
                // Without it a 2.3.5 moves it to `default`.
                new_db_name: to.database.clone(),
            }
        );
        if renamed.is_ok() {
            self.forget(database, name);
            self.forget(&to.database, &to.name);
        }
        renamed
    }

    pub(super) async fn set_alias(
        &self,
        database: &str,
        alias: &str,
        name: &str,
        moved: bool,
    ) -> Result<(), TargetError> {
        let (db_name, alias, collection_name) = (database.into(), alias.into(), name.into());
        if moved {
            let request = rpc::AlterAliasRequest {
                base: self.base(MsgType::AlterAlias, Tso::ZERO),
                db_name,
                alias,
                collection_name,
            };
            return status_call!(self, "AlterAlias", alter_alias, request);
        }
        let request = rpc::CreateAliasRequest {
            base: self.base(MsgType::CreateAlias, Tso::ZERO),
            db_name,
            alias,
            collection_name,
        };
        status_call!(self, "CreateAlias", create_alias, request)
    }

    pub(super) async fn unset_alias(&self, database: &str, alias: &str) -> Result<(), TargetError> {
        let request = rpc::DropAliasRequest {
            base: self.base(MsgType::DropAlias, Tso::ZERO),
            db_name: database.into(),
            alias: alias.into(),
        };
        match status_call!(self, "DropAlias", drop_alias, request) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}
