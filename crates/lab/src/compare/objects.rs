//! Everything of a server that is not a row, as text that can be compared.

use std::collections::BTreeMap;

use anyhow::Result;
use milvus::proto::common::{KeyValuePair, LoadState};
use milvus::proto::milvus::DescribeCollectionResponse;
use milvus::proto::schema::{DataType, FieldSchema};

use super::Described;
use crate::client::{Client, META};

/// One server's objects.
pub(super) struct Objects {
    pub(super) described: Described,
    pub(super) collections: BTreeMap<(String, String), Collection>,
}

/// What the rows' comparison has to know of a collection.
#[derive(Debug, Clone)]
pub(super) struct Collection {
    pub(super) db: String,
    pub(super) name: String,
    pub(super) partitions: Vec<String>,
    /// The server itself chooses the partition of a row by this key, and a query may not name one.
    pub(super) partition_key: bool,
    pub(super) primary: String,
    pub(super) string_key: bool,
    pub(super) fields: Vec<String>,
    pub(super) vector: String,
    pub(super) binary: bool,
    pub(super) indexed: bool,
    /// Every partition.
    pub(super) loaded: bool,
}

impl Collection {
    pub(super) fn key(&self) -> (String, String) {
        (self.db.clone(), self.name.clone())
    }
}

impl Objects {
    pub(super) async fn read(client: &Client) -> Result<Self> {
        let mut all = Self {
            described: BTreeMap::new(),
            collections: BTreeMap::new(),
        };
        for db in client.databases().await? {
            all.described
                .insert(("database", db.clone()), String::new());
            for name in client.collections(&db).await? {
                all.read_collection(client, &db, &name).await?;
            }
        }
        Ok(all)
    }

    async fn read_collection(&mut self, client: &Client, db: &str, name: &str) -> Result<()> {
        let described = client.describe(db, name).await?;
        let full = format!("{db}.{name}");
        self.described
            .insert(("collection", full.clone()), describe(&described));

        let mut partitions: Vec<String> = client
            .partitions(db, name)
            .await?
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        partitions.sort();
        let whole = client.load_state(db, name, &[]).await?;
        self.described
            .insert(("load state", full.clone()), format!("{whole:?}"));
        let mut loaded = whole == LoadState::Loaded;
        for p in &partitions {
            self.described
                .insert(("partition", format!("{full}/{p}")), String::new());
            let state = client.load_state(db, name, std::slice::from_ref(p)).await?;
            loaded &= state == LoadState::Loaded;
            self.described
                .insert(("load state", format!("{full}/{p}")), format!("{state:?}"));
        }

        let schema = described.schema.unwrap_or_default();
        let mut c = Collection {
            db: db.to_owned(),
            name: name.to_owned(),
            partitions,
            partition_key: schema.fields.iter().any(|f| f.is_partition_key),
            primary: String::new(),
            string_key: false,
            fields: schema.fields.iter().map(|f| f.name.clone()).collect(),
            vector: String::new(),
            binary: false,
            indexed: false,
            loaded,
        };
        if schema.enable_dynamic_field {
            c.fields.push(META.to_owned());
        }
        for f in &schema.fields {
            if f.is_primary_key {
                c.primary.clone_from(&f.name);
                c.string_key = f.data_type() == DataType::VarChar;
            }
            if matches!(
                f.data_type(),
                DataType::FloatVector | DataType::BinaryVector
            ) {
                c.vector.clone_from(&f.name);
                c.binary = f.data_type() == DataType::BinaryVector;
            }
        }
        for index in client.indexes(db, name).await? {
            c.indexed |= index.field_name == c.vector;
            let text = format!("{} {}", index.index_name, pairs(&index.params));
            self.described
                .insert(("index", format!("{full} {}", index.field_name)), text);
        }
        self.collections.insert(c.key(), c);
        Ok(())
    }
}

fn describe(c: &DescribeCollectionResponse) -> String {
    let schema = c.schema.clone().unwrap_or_default();
    let fields: Vec<String> = schema.fields.iter().map(field).collect();
    format!(
        "{:?} dynamic {} shards {} consistency {} properties {} aliases {:?} fields [{}]",
        schema.description,
        schema.enable_dynamic_field,
        c.shards_num,
        c.consistency_level,
        pairs(&c.properties),
        c.aliases,
        fields.join("; ")
    )
}

fn field(f: &FieldSchema) -> String {
    let mut text = format!("{} {} {:?}", f.field_id, f.name, f.data_type());
    if f.data_type() == DataType::Array {
        text += &format!(" of {:?}", f.element_type());
    }
    for (flag, name) in [
        (f.is_primary_key, "primary"),
        (f.auto_id, "auto id"),
        (f.is_partition_key, "partition key"),
        (f.is_dynamic, "dynamic"),
    ] {
        if flag {
            text = text + " " + name;
        }
    }
    format!("{text} {} {:?}", pairs(&f.type_params), f.description)
}

fn pairs(of: &[KeyValuePair]) -> String {
    let mut all: Vec<String> = of
        .iter()
        .map(|p| format!("{}={}", p.key, p.value))
        .collect();
    all.sort();
    format!("{{{}}}", all.join(", "))
}
