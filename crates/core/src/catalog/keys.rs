//! The keys of a source's metadata, below `{rootPath}/{metaSubPath}/` (`internal/metastore/kv/rootcoord`,
//! `internal/metastore/kv/datacoord`, `internal/metastore/kv/querycoord`).

use std::fmt;

use crate::ids::{CollectionId, DbId, FieldId, IndexId, PartitionId};

/// The database of what was written before databases existed.
pub const DEFAULT_DB: DbId = DbId(1);

/// Prefixes of every key in [`MetaKey`]. Each ends in `/`: `…/collection-info/1` would match database 10 as well.
pub const PREFIXES: &[&str] = &[
    "root-coord/database/",
    "root-coord/collection/",
    "root-coord/aliases/",
    "root-coord/collection-alias/",
    "root-coord/partitions/",
    "root-coord/fields/",
    "root-coord/functions/",
    "root-coord/struct-array-fields/",
    "field-index/",
    "querycoord-collection-loadinfo/",
    "querycoord-partition-loadinfo/",
];

/// First key of the one range that spans all of [`PREFIXES`]; see [`RANGE_END`].
pub const RANGE_START: &str = "field-index/";

/// End (exclusive) of the range that spans all of [`PREFIXES`]. It leaves out what changes all the time
/// (`datacoord-meta/`, `session/`) and the historical copies (`snapshots/`), so that one watch, and with it one order of
/// events over all prefixes, is affordable.
pub const RANGE_END: &str = "root-coord0";

/// A key the catalog reads. Everything else below the prefix (credentials, replicas, …) is not parsed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MetaKey {
    Database(DbId),
    Collection {
        db: DbId,
        id: CollectionId,
    },
    /// Written before 2.3; belongs to [`DEFAULT_DB`].
    LegacyCollection(CollectionId),
    Partition {
        collection: CollectionId,
        partition: PartitionId,
    },
    Field {
        collection: CollectionId,
        field: FieldId,
    },
    /// Since 2.5.
    Function {
        collection: CollectionId,
        function: i64,
    },
    /// Since 2.6.
    StructArrayField {
        collection: CollectionId,
        field: FieldId,
    },
    Alias {
        db: DbId,
        name: String,
    },
    /// Written before 2.3; belongs to [`DEFAULT_DB`].
    LegacyAlias(String),
    /// Written before 2.1; the value is a whole collection.
    AncientAlias(String),
    FieldIndex {
        collection: CollectionId,
        index: IndexId,
    },
    CollectionLoad(CollectionId),
    PartitionLoad {
        collection: CollectionId,
        partition: PartitionId,
    },
}

impl MetaKey {
    /// Reads a key from which `{rootPath}/{metaSubPath}/` is cut off. `None` for every key of another kind.
    pub fn parse(key: &str) -> Option<Self> {
        if let Some(rest) = key.strip_prefix("root-coord/") {
            let (kind, rest) = rest.split_once('/')?;
            return match kind {
                "database" => Self::parse_database(rest),
                "collection" => Some(MetaKey::LegacyCollection(CollectionId(number(rest)?))),
                "aliases" => Some(MetaKey::LegacyAlias(name(rest)?)),
                "collection-alias" => Some(MetaKey::AncientAlias(name(rest)?)),
                "partitions" => two(rest).map(|(c, p)| MetaKey::Partition {
                    collection: CollectionId(c),
                    partition: PartitionId(p),
                }),
                "fields" => two(rest).map(|(c, f)| MetaKey::Field {
                    collection: CollectionId(c),
                    field: FieldId(f),
                }),
                "functions" => two(rest).map(|(c, f)| MetaKey::Function {
                    collection: CollectionId(c),
                    function: f,
                }),
                "struct-array-fields" => two(rest).map(|(c, f)| MetaKey::StructArrayField {
                    collection: CollectionId(c),
                    field: FieldId(f),
                }),
                _ => None,
            };
        }
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "field-index" => two(rest).map(|(c, i)| MetaKey::FieldIndex {
                collection: CollectionId(c),
                index: IndexId(i),
            }),
            "querycoord-collection-loadinfo" => {
                Some(MetaKey::CollectionLoad(CollectionId(number(rest)?)))
            }
            "querycoord-partition-loadinfo" => two(rest).map(|(c, p)| MetaKey::PartitionLoad {
                collection: CollectionId(c),
                partition: PartitionId(p),
            }),
            _ => None,
        }
    }

    fn parse_database(rest: &str) -> Option<Self> {
        let (kind, rest) = rest.split_once('/')?;
        match kind {
            "db-info" => Some(MetaKey::Database(DbId(number(rest)?))),
            "collection-info" => two(rest).map(|(db, c)| MetaKey::Collection {
                db: DbId(db),
                id: CollectionId(c),
            }),
            "aliases" => {
                let (db, alias) = rest.split_once('/')?;
                Some(MetaKey::Alias {
                    db: DbId(number(db)?),
                    name: name(alias)?,
                })
            }
            _ => None,
        }
    }

    /// The collection this key is a part of.
    pub fn collection(&self) -> Option<CollectionId> {
        match *self {
            MetaKey::Collection { id, .. }
            | MetaKey::LegacyCollection(id)
            | MetaKey::CollectionLoad(id) => Some(id),
            MetaKey::Partition { collection, .. }
            | MetaKey::Field { collection, .. }
            | MetaKey::Function { collection, .. }
            | MetaKey::StructArrayField { collection, .. }
            | MetaKey::FieldIndex { collection, .. }
            | MetaKey::PartitionLoad { collection, .. } => Some(collection),
            MetaKey::Database(_)
            | MetaKey::Alias { .. }
            | MetaKey::LegacyAlias(_)
            | MetaKey::AncientAlias(_) => None,
        }
    }
}

impl fmt::Display for MetaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaKey::Database(db) => write!(f, "root-coord/database/db-info/{db}"),
            MetaKey::Collection { db, id } => {
                write!(f, "root-coord/database/collection-info/{db}/{id}")
            }
            MetaKey::LegacyCollection(id) => write!(f, "root-coord/collection/{id}"),
            MetaKey::Partition {
                collection,
                partition,
            } => {
                write!(f, "root-coord/partitions/{collection}/{partition}")
            }
            MetaKey::Field { collection, field } => {
                write!(f, "root-coord/fields/{collection}/{field}")
            }
            MetaKey::Function {
                collection,
                function,
            } => write!(f, "root-coord/functions/{collection}/{function}"),
            MetaKey::StructArrayField { collection, field } => {
                write!(f, "root-coord/struct-array-fields/{collection}/{field}")
            }
            MetaKey::Alias { db, name } => write!(f, "root-coord/database/aliases/{db}/{name}"),
            MetaKey::LegacyAlias(name) => write!(f, "root-coord/aliases/{name}"),
            MetaKey::AncientAlias(name) => write!(f, "root-coord/collection-alias/{name}"),
            MetaKey::FieldIndex { collection, index } => {
                write!(f, "field-index/{collection}/{index}")
            }
            MetaKey::CollectionLoad(id) => write!(f, "querycoord-collection-loadinfo/{id}"),
            MetaKey::PartitionLoad {
                collection,
                partition,
            } => {
                write!(f, "querycoord-partition-loadinfo/{collection}/{partition}")
            }
        }
    }
}

/// A decimal id without padding or sign, as Milvus writes it.
fn number(text: &str) -> Option<i64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

fn two(text: &str) -> Option<(i64, i64)> {
    let (first, second) = text.split_once('/')?;
    Some((number(first)?, number(second)?))
}

fn name(text: &str) -> Option<String> {
    (!text.is_empty() && !text.contains('/')).then(|| text.to_owned())
}
