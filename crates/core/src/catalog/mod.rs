//! What exists on the source: databases, collections, partitions, indexes, load states and aliases, from its etcd.
//!
//! The catalog is *level triggered*: it hands out whole [`View`]s, each the state at one etcd revision, and never an
//! event that could be missed. Who needs changes compares two views by id. [`Catalog::read_collection`] is the
//! linearizable answer for one id, for the moment in which a message names a collection the view does not know yet.

pub mod assemble;
pub mod decode;
pub mod etcd;
pub mod keys;
#[cfg(feature = "testkit")]
pub mod memory;
pub mod properties;
pub mod proto;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use milvus::proto::schema::CollectionSchema;
use tokio::sync::watch;

use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, DbId, FieldId, IndexId, PChannel, PartitionId, VChannel};
use crate::tso::Tso;

/// Life of a collection or partition in the source's metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectState {
    Creating,
    Created,
    /// Dropped by a user; the entry lingers until the source's garbage collection is through with it.
    Dropping,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Database {
    pub id: DbId,
    pub name: String,
    pub properties: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Shard {
    pub vchannel: VChannel,
    pub pchannel: PChannel,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Collection {
    pub id: CollectionId,
    pub db: DbId,
    pub name: String,
    pub state: ObjectState,
    /// With all fields, sorted by numeric field id, system fields (0, 1) and `$meta` included. Empty fields mean that
    /// they have not been written yet.
    pub schema: CollectionSchema,
    /// The timestamp of the CreateCollection message.
    pub create_ts: Tso,
    /// In shard order.
    pub shards: Vec<Shard>,
    /// Per physical channel the message id of the CreateCollection message, as the queue's own bytes.
    pub start_positions: HashMap<PChannel, Vec<u8>>,
    /// 0 Strong, 1 Session, 2 Bounded, 3 Eventually, 4 Customized.
    pub consistency_level: i32,
    pub properties: Vec<(String, String)>,
    pub partitions: BTreeMap<PartitionId, Partition>,
    /// Without those marked as deleted.
    pub indexes: BTreeMap<IndexId, Index>,
    pub load: LoadState,
}

impl Collection {
    /// The primary key field, if the fields are there.
    pub fn primary_key(&self) -> Option<FieldId> {
        self.schema
            .fields
            .iter()
            .find(|f| f.is_primary_key)
            .map(|f| FieldId(f.field_id))
    }

    /// Whether values of a field choose the partition; its partitions then exist from creation and are never dropped.
    pub fn has_partition_key(&self) -> bool {
        self.schema.fields.iter().any(|f| f.is_partition_key)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Partition {
    pub id: PartitionId,
    pub name: String,
    pub state: ObjectState,
    pub create_ts: Tso,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Index {
    pub id: IndexId,
    pub field: FieldId,
    pub name: String,
    /// What the user sent; the expanded form if the source kept nothing else.
    pub params: Vec<(String, String)>,
    pub create_ts: Tso,
}

/// What is loaded for queries. Loading counts as loaded: it is what the user wants.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum LoadState {
    #[default]
    Released,
    Collection {
        replicas: i32,
    },
    Partitions {
        replicas: i32,
        partitions: Vec<PartitionId>,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub struct Alias {
    pub name: String,
    pub db: DbId,
    pub collection: CollectionId,
}

/// The source's metadata at one etcd revision.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct View {
    pub revision: i64,
    pub databases: BTreeMap<DbId, Arc<Database>>,
    /// Collections of every state; a key that is gone is not in here.
    pub collections: BTreeMap<CollectionId, Arc<Collection>>,
    /// By database and name.
    pub aliases: BTreeMap<(DbId, String), Arc<Alias>>,
}

impl View {
    pub fn database_name(&self, id: DbId) -> Option<&str> {
        self.databases.get(&id).map(|d| d.name.as_str())
    }

    /// The living collection of that name.
    pub fn find(&self, database: &str, name: &str) -> Option<&Arc<Collection>> {
        self.collections.values().find(|c| {
            c.state == ObjectState::Created
                && c.name == name
                && self.database_name(c.db) == Some(database)
        })
    }
}

#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("source etcd at {endpoints}: {cause}")]
    Unreachable { endpoints: String, cause: String },
    #[error("source etcd at {endpoints}: login refused: {cause}")]
    Login { endpoints: String, cause: String },
    /// No connection: one side's certificates do not suit the other.
    #[error("source etcd at {endpoints}: {cause}")]
    Tls {
        endpoints: String,
        cause: String,
        hint: String,
    },
    /// Nothing of a Milvus below the configured root.
    #[error("source etcd at {endpoints} has no Milvus below {prefix}")]
    NoMilvus { endpoints: String, prefix: String },
    /// A Milvus is alive below the root, but its metadata is not in this etcd (`metastore.type=tikv`).
    #[error(
        "the source's metadata is not in etcd at {endpoints} (below {prefix}): it seems to live in TiKV"
    )]
    Elsewhere { endpoints: String, prefix: String },
    #[error("the source is Milvus {version}, which this version cannot read")]
    Version { version: String },
    #[error("source etcd key {key}: {cause}")]
    Undecodable { key: String, cause: String },
}

impl CatalogError {
    pub fn problem(&self) -> Problem {
        let (class, hint) = match self {
            CatalogError::Unreachable { .. } => (
                ErrorClass::Transient,
                "check sourceConfig.etcd.address and that the source's etcd is up; tried again by itself",
            ),
            CatalogError::Login { .. } => (
                ErrorClass::Configuration,
                "check sourceConfig.etcd.username and password",
            ),
            CatalogError::Tls { hint, .. } => (ErrorClass::Configuration, hint.as_str()),
            CatalogError::NoMilvus { .. } => (
                ErrorClass::Configuration,
                "set sourceConfig.etcd.rootPath and metaSubPath to the source's etcd.rootPath and etcd.metaSubPath (by-dev and meta by default)",
            ),
            CatalogError::Elsewhere { .. } => (
                ErrorClass::Configuration,
                "only sources with metastore.type=etcd can be read",
            ),
            CatalogError::Version { .. } => (
                ErrorClass::Configuration,
                "sources of 2.3 to 2.5 can be read; from 2.6.16 on use Milvus' own replication",
            ),
            CatalogError::Undecodable { .. } => (
                ErrorClass::Data,
                "that object is left out, the others go on; please report it with the source's version",
            ),
        };
        Problem::new(class, self.to_string(), hint)
    }
}

/// How the catalog is doing: shown to people, and what tells "nothing changed" from "cannot know".
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CatalogHealth {
    /// The last error, while the connection is broken.
    pub error: Option<CatalogError>,
    /// Objects that could not be decoded and are missing from the view: key and cause.
    pub undecodable: BTreeMap<String, String>,
}

/// The source's metadata. One instance serves all tasks.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The newest view, and a way to wait for a newer one. The first value is the complete list.
    fn subscribe(&self) -> watch::Receiver<Arc<View>>;

    fn health(&self) -> CatalogHealth;

    /// Linearizable: what etcd says of this collection now. `None` if it has no entry.
    async fn read_collection(&self, id: CollectionId) -> Result<Option<Collection>, CatalogError>;

    /// Linearizable: when the entry of this collection in this database was last written, as etcd counts; `None` if there
    /// is none. A rename writes it (2.3.5, `kv_catalog.go`, `alterModifyCollection`), also one that is taken back.
    async fn written_at(&self, db: DbId, id: CollectionId) -> Result<Option<i64>, CatalogError>;

    /// An upper bound of every timestamp the source has given out so far.
    async fn tso_bound(&self) -> Result<Tso, CatalogError>;
}
