//! A target asked as any client would ask it, rather than written to as a standby: for the doctor, and for the day it
//! becomes a Milvus of its own.

use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::milvus as rpc;
use milvus::proto::schema::{
    CollectionSchema, DataType, FieldData, FieldSchema, FloatArray, LongArray, ScalarField,
    VectorField, field_data, scalar_field, vector_field,
};
use prost::Message;

use super::GrpcTarget;
use crate::target::{Loaded, Target, TargetCollection, TargetError};
use crate::task::{Mode, TargetSpec};
use crate::tso::Tso;

/// As whom we are logged in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Account {
    /// No login was given, and the target asks for none.
    Anybody,
    /// An API key: whose cannot be told.
    ApiKey,
    User {
        name: String,
        roles: Vec<String>,
    },
}

/// A connection to a target. Every call has a deadline of 20 s.
pub struct PlainTarget {
    target: GrpcTarget,
    /// The user of a token of the form `user:password`.
    user: Option<String>,
}

impl PlainTarget {
    /// Connects, logs in, and looks at the version.
    ///
    /// # Errors
    /// It cannot be reached, refuses the login, or is of a version that cannot be a standby.
    pub async fn connect(spec: &TargetSpec) -> Result<Self, TargetError> {
        let user = spec.token.expose().split_once(':');
        Ok(Self {
            target: GrpcTarget::connect(spec).await?,
            user: user.map(|(name, _)| name.to_owned()),
        })
    }

    /// As which it is connected.
    pub fn mode(&self) -> Mode {
        self.target.mode()
    }

    pub fn uri(&self) -> &str {
        &self.target.uri
    }

    pub async fn version(&self) -> Result<String, TargetError> {
        self.target.version().await
    }

    /// A fresh timestamp of the target's oracle.
    pub async fn now(&self) -> Result<Tso, TargetError> {
        self.target.now().await
    }

    pub async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, TargetError> {
        self.target.describe(database, name).await
    }

    /// Whether it takes replicated messages: `common.ttMsgEnabled` is false, as the proxy that answers sees it. Asks as
    /// [`Target::probe`] does; code 1900 is a normal server's answer (2.3.5).
    pub async fn is_standby(&self) -> Result<bool, TargetError> {
        match self.target.probe_replicate().await {
            Ok(()) | Err(TargetError::Refused { code: 1100, .. }) => Ok(true),
            // 10: it has no such call (2.6 and later, milvus-lite).
            Err(TargetError::Refused {
                code: 1900 | 10, ..
            }) => Ok(false),
            Err(TargetError::Refused { reason, .. }) if reason.contains("invalid channel name") => {
                Ok(true)
            }
            Err(other) => Err(other),
        }
    }

    /// As whom we are logged in, with the roles. Everybody may ask that of themselves (2.3.5, `PrivilegeInterceptor`).
    pub async fn account(&self) -> Result<Account, TargetError> {
        const CALL: &str = "SelectUser";
        let name = match (&self.user, &self.target.authorization) {
            (_, None) => return Ok(Account::Anybody),
            (None, Some(_)) => return Ok(Account::ApiKey),
            (Some(name), Some(_)) => name.clone(),
        };
        let request = rpc::SelectUserRequest {
            user: Some(rpc::UserEntity { name: name.clone() }),
            include_role_info: true,
            ..Default::default()
        };
        let mut client = self.target.client();
        let answer = self
            .target
            .call(CALL, client.select_user(self.target.request(request)))
            .await?;
        self.target.check(CALL, answer.status)?;
        let roles = answer
            .results
            .into_iter()
            .flat_map(|result| result.roles)
            .map(|role| role.name)
            .collect();
        Ok(Account::User { name, roles })
    }
}

/// The calls of an ordinary client, without `replicateInfo`.
impl PlainTarget {
    /// Whether all that was asked to be loaded of a collection is.
    pub async fn loaded(&self, database: &str, name: &str) -> Result<Loaded, TargetError> {
        self.target.loaded(database, name, &[]).await
    }

    /// `count(*)` with Strong consistency: waits for a tick of the target that is not older than the call.
    pub async fn strong_count(&self, database: &str, name: &str) -> Result<u64, TargetError> {
        const CALL: &str = "Query";
        let request = rpc::QueryRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            output_fields: vec!["count(*)".to_owned()],
            consistency_level: ConsistencyLevel::Strong as i32,
            ..Default::default()
        };
        let mut client = self.target.client();
        let answer = self
            .target
            .call(CALL, client.query(self.target.request(request)))
            .await?;
        self.target.check(CALL, answer.status)?;
        let count = answer.fields_data.into_iter().find_map(|field| {
            let Some(field_data::Field::Scalars(scalars)) = field.field else {
                return None;
            };
            match scalars.data {
                Some(scalar_field::Data::LongData(longs)) => longs.data.first().copied(),
                _ => None,
            }
        });
        count
            .and_then(|count| u64::try_from(count).ok())
            .ok_or_else(|| TargetError::Refused {
                uri: self.target.uri.clone(),
                call: CALL,
                code: 65535,
                reason: format!("{database}.{name}: the answer has no count"),
            })
    }

    /// Makes a collection of a key and a vector of two dimensions in the database `default`, with an index, and asks for
    /// it to be loaded.
    pub(crate) async fn create_scratch(
        &self,
        name: &str,
        description: &str,
    ) -> Result<(), TargetError> {
        let pair = |key: &str, value: &str| KeyValuePair {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let schema = CollectionSchema {
            name: name.to_owned(),
            description: description.to_owned(),
            fields: vec![
                FieldSchema {
                    name: "id".to_owned(),
                    is_primary_key: true,
                    data_type: DataType::Int64 as i32,
                    ..Default::default()
                },
                FieldSchema {
                    name: "v".to_owned(),
                    data_type: DataType::FloatVector as i32,
                    type_params: vec![pair("dim", "2")],
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let target = &self.target;
        let mut client = target.client();
        let create = rpc::CreateCollectionRequest {
            collection_name: name.to_owned(),
            schema: schema.encode_to_vec(),
            shards_num: 1,
            consistency_level: ConsistencyLevel::Strong as i32,
            ..Default::default()
        };
        let status = target
            .call(
                "CreateCollection",
                client.create_collection(target.request(create)),
            )
            .await?;
        target.check("CreateCollection", Some(status))?;
        let index = rpc::CreateIndexRequest {
            collection_name: name.to_owned(),
            field_name: "v".to_owned(),
            extra_params: vec![pair("index_type", "FLAT"), pair("metric_type", "L2")],
            ..Default::default()
        };
        let status = target
            .call("CreateIndex", client.create_index(target.request(index)))
            .await?;
        target.check("CreateIndex", Some(status))?;
        let load = rpc::LoadCollectionRequest {
            collection_name: name.to_owned(),
            replica_number: 1,
            ..Default::default()
        };
        let status = target
            .call(
                "LoadCollection",
                client.load_collection(target.request(load)),
            )
            .await?;
        target.check("LoadCollection", Some(status))
    }

    /// Inserts one row into a collection of [`PlainTarget::create_scratch`].
    pub(crate) async fn insert_into_scratch(&self, name: &str) -> Result<(), TargetError> {
        const CALL: &str = "Insert";
        let key = scalar_field::Data::LongData(LongArray { data: vec![1] });
        let vector = vector_field::Data::FloatVector(FloatArray {
            data: vec![0.0, 1.0],
        });
        let request = rpc::InsertRequest {
            collection_name: name.to_owned(),
            num_rows: 1,
            fields_data: vec![
                FieldData {
                    r#type: DataType::Int64 as i32,
                    field_name: "id".to_owned(),
                    field: Some(field_data::Field::Scalars(ScalarField {
                        data: Some(key),
                        ..Default::default()
                    })),
                    ..Default::default()
                },
                FieldData {
                    r#type: DataType::FloatVector as i32,
                    field_name: "v".to_owned(),
                    field: Some(field_data::Field::Vectors(VectorField {
                        dim: 2,
                        data: Some(vector),
                        ..Default::default()
                    })),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let mut client = self.target.client();
        let answer = self
            .target
            .call(CALL, client.insert(self.target.request(request)))
            .await?;
        self.target.check(CALL, answer.status)
    }

    pub(crate) async fn drop_collection(
        &self,
        database: &str,
        name: &str,
    ) -> Result<(), TargetError> {
        const CALL: &str = "DropCollection";
        let request = rpc::DropCollectionRequest {
            db_name: database.to_owned(),
            collection_name: name.to_owned(),
            ..Default::default()
        };
        let mut client = self.target.client();
        let status = self
            .target
            .call(CALL, client.drop_collection(self.target.request(request)))
            .await?;
        self.target.check(CALL, Some(status))
    }
}
