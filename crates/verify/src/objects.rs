//! Everything of a server that is not a row, as text that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use milvus::proto::common::{KeyValuePair, LoadState};
use milvus::proto::milvus::DescribeCollectionResponse;
use milvus::proto::schema::{DataType, FieldSchema};

use crate::client::{Client, META};
use crate::report::{Counts, Difference, Kind, Line, Verdict};
use crate::select::Selection;

/// Kind and name to a description.
pub(crate) type Described = BTreeMap<(&'static str, String), String>;

/// How alike two servers' objects can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Likeness {
    /// A standby: everything is as on the source.
    #[default]
    Standby,
    /// A Milvus of its own: field ids and the number of shards are its own, it makes no keys, and the partitions of a
    /// partition key are as many as it likes.
    Plain,
    /// milvus-lite, which keeps of a collection no more than its fields, its partitions and its indexes, and has load states
    /// of its own.
    Lite,
}

/// One server's objects.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub(crate) described: Described,
    /// By database and name on the source.
    pub collections: BTreeMap<(String, String), Collection>,
}

/// What the rows' comparison has to know of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    pub db: String,
    pub name: String,
    pub partitions: Vec<String>,
    /// Those that are loaded.
    pub loaded: BTreeSet<String>,
    /// The server itself chooses the partition of a row by this key, and a query may not name one.
    pub partition_key: bool,
    pub primary: String,
    pub string_key: bool,
    /// Of the rows, `$meta` included.
    pub fields: Vec<String>,
    pub vector: String,
    pub binary: bool,
    /// Its vectors have an index, without which nothing can be loaded.
    pub indexed: bool,
    /// Bytes of a row, roughly.
    pub width: usize,
}

impl Collection {
    pub fn key(&self) -> (String, String) {
        (self.db.clone(), self.name.clone())
    }

    /// Every partition.
    pub fn is_loaded(&self) -> bool {
        self.partitions.iter().all(|p| self.loaded.contains(p))
    }

    /// Rows of both can be set against each other.
    pub(crate) fn fits(&self, other: &Collection) -> bool {
        let of = |c: &Collection| (c.primary.clone(), c.string_key, c.partition_key);
        of(self) == of(other) && self.fields == other.fields
    }
}

impl Objects {
    /// Reads what `selection` chooses.
    ///
    /// # Errors
    /// The server cannot be read, or something vanished between two calls.
    pub async fn read(client: &Client, selection: &Selection, likeness: Likeness) -> Result<Self> {
        let mut all = Self::default();
        for db in client.databases().await? {
            if !selection.has_database(&db) {
                continue;
            }
            all.read_database(client, &db, &db).await?;
            for name in client.collections(&db).await? {
                if selection.has(&db, &name) {
                    let own = (db.clone(), name);
                    all.read_collection(client, &own, &own, likeness).await?;
                }
            }
        }
        Ok(all)
    }

    /// Reads the database that is at `at` on this server, and is called `own`.
    pub(crate) async fn read_database(
        &mut self,
        client: &Client,
        at: &str,
        own: &str,
    ) -> Result<()> {
        self.described
            .insert(("database", own.to_owned()), String::new());
        let properties = carried(client.database_properties(at).await?);
        if !properties.is_empty() {
            self.described
                .insert(("database properties", own.to_owned()), pairs(&properties));
        }
        Ok(())
    }

    /// Reads the collection that is at `at` on this server, and is called `own`.
    pub(crate) async fn read_collection(
        &mut self,
        client: &Client,
        (db, name): &(String, String),
        own: &(String, String),
        likeness: Likeness,
    ) -> Result<()> {
        let described = client.describe(db, name).await?;
        let full = format!("{}.{}", own.0, own.1);
        self.described
            .insert(("collection", full.clone()), describe(&described, likeness));
        if likeness != Likeness::Lite {
            let properties = pairs(&carried(described.properties.clone()));
            self.described
                .insert(("properties", full.clone()), properties);
            let mut aliases = described.aliases.clone();
            aliases.sort();
            if !aliases.is_empty() {
                self.described
                    .insert(("aliases", full.clone()), aliases.join(", "));
            }
        }
        let schema = described.schema.unwrap_or_default();
        let partition_key = schema.fields.iter().any(|f| f.is_partition_key);
        let own_partitions = partition_key && likeness != Likeness::Standby;

        let mut partitions: Vec<String> = client
            .partitions(db, name)
            .await?
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        partitions.sort();
        let whole = client.load_state(db, name, &[]).await?;
        // One without an index is always loaded there.
        if likeness != Likeness::Lite {
            self.described
                .insert(("load state", full.clone()), format!("{whole:?}"));
        }
        let mut loaded = BTreeSet::new();
        for p in &partitions {
            if own_partitions {
                if whole == LoadState::Loaded {
                    loaded.insert(p.clone());
                }
                continue;
            }
            self.described
                .insert(("partition", format!("{full}/{p}")), String::new());
            let state = client.load_state(db, name, std::slice::from_ref(p)).await?;
            if state == LoadState::Loaded {
                loaded.insert(p.clone());
            }
            if likeness != Likeness::Lite {
                self.described
                    .insert(("load state", format!("{full}/{p}")), format!("{state:?}"));
            }
        }
        if whole != LoadState::Loaded && loaded.len() == partitions.len() {
            loaded.clear();
        }

        let mut c = Collection {
            db: db.clone(),
            name: name.clone(),
            partitions,
            loaded,
            partition_key,
            primary: String::new(),
            string_key: false,
            fields: schema.fields.iter().map(|f| f.name.clone()).collect(),
            vector: String::new(),
            binary: false,
            indexed: false,
            width: schema.fields.iter().map(width).sum(),
        };
        if schema.enable_dynamic_field {
            c.fields.push(META.to_owned());
            c.width += TEXT;
        }
        c.fields.sort();
        for f in &schema.fields {
            if f.is_primary_key {
                c.primary.clone_from(&f.name);
                c.string_key = f.data_type() == DataType::VarChar;
            }
            if is_vector(f.data_type()) {
                c.vector.clone_from(&f.name);
                c.binary = f.data_type() == DataType::BinaryVector;
            }
        }
        for index in client.indexes(db, name).await? {
            c.indexed |= index.field_name == c.vector;
            let text = match likeness {
                Likeness::Lite => String::new(),
                _ => format!("{} {}", index.index_name, pairs(&index.params)),
            };
            self.described
                .insert(("index", format!("{full} {}", index.field_name)), text);
        }
        self.collections.insert(own.clone(), c);
        Ok(())
    }
}

fn is_vector(kind: DataType) -> bool {
    use DataType::{
        BFloat16Vector, BinaryVector, Float16Vector, FloatVector, Int8Vector, SparseFloatVector,
    };
    matches!(
        kind,
        BinaryVector
            | FloatVector
            | Float16Vector
            | BFloat16Vector
            | SparseFloatVector
            | Int8Vector
    )
}

/// What a text, a JSON, an array or a sparse vector is taken to have, in bytes. Where they have more, an answer may
/// become too large, and its range is halved.
const TEXT: usize = 512;

/// Bytes of a value, roughly, with what it costs to hold it.
fn width(f: &FieldSchema) -> usize {
    let dim = f
        .type_params
        .iter()
        .find(|p| p.key == "dim")
        .and_then(|p| p.value.parse::<usize>().ok())
        .unwrap_or(TEXT)
        .min(1 << 20);
    64 + match f.data_type() {
        DataType::FloatVector => 4 * dim,
        DataType::Float16Vector | DataType::BFloat16Vector => 2 * dim,
        DataType::Int8Vector => dim,
        DataType::BinaryVector => dim / 8,
        DataType::VarChar | DataType::Json | DataType::Array | DataType::SparseFloatVector => TEXT,
        _ => 8,
    }
}

fn describe(c: &DescribeCollectionResponse, likeness: Likeness) -> String {
    let schema = c.schema.clone().unwrap_or_default();
    let mut fields: Vec<String> = schema.fields.iter().map(|f| field(f, likeness)).collect();
    if likeness == Likeness::Lite {
        fields.sort();
        let dynamic = schema.enable_dynamic_field;
        return format!("dynamic {dynamic} fields [{}]", fields.join("; "));
    }
    let shards = match likeness {
        Likeness::Standby => c.shards_num.to_string(),
        _ => "any".to_owned(),
    };
    format!(
        "{:?} dynamic {} shards {} consistency {} fields [{}]",
        schema.description,
        schema.enable_dynamic_field,
        shards,
        c.consistency_level,
        fields.join("; ")
    )
}

fn field(f: &FieldSchema, likeness: Likeness) -> String {
    let standby = likeness == Likeness::Standby;
    let mut text = format!("{} {:?}", f.name, f.data_type());
    if standby {
        text = format!("{} {text}", f.field_id);
    }
    if f.data_type() == DataType::Array {
        text += &format!(" of {:?}", f.element_type());
    }
    for (flag, name) in [
        (f.is_primary_key, "primary"),
        (f.auto_id && standby, "auto id"),
        (f.is_partition_key, "partition key"),
        (f.is_dynamic, "dynamic"),
    ] {
        if flag {
            text = text + " " + name;
        }
    }
    if likeness == Likeness::Lite {
        return text;
    }
    format!("{text} {} {:?}", pairs(&f.type_params), f.description)
}

/// Without what is a server's own matter: that it replicates, its keys for encryption, which of its nodes serve something,
/// and what it refuses to its clients for now.
fn carried(properties: Vec<KeyValuePair>) -> Vec<KeyValuePair> {
    const OWN: [&str; 3] = ["replicate.", "cipher.", "database.force.deny."];
    const GROUPS: &str = ".resource_groups";
    let own = |key: &str| OWN.iter().any(|start| key.starts_with(start)) || key.ends_with(GROUPS);
    let of = properties.into_iter();
    of.filter(|p| !own(&p.key)).collect()
}

fn pairs(of: &[KeyValuePair]) -> String {
    let mut all: Vec<String> = of
        .iter()
        .map(|p| format!("{}={}", p.key, p.value))
        .collect();
    all.sort();
    format!("{{{}}}", all.join(", "))
}

/// One line per kind of object; what is missing, extra or changed by name.
pub(crate) fn differences(wanted: &Described, found: &Described) -> (Vec<Line>, Vec<Difference>) {
    let mut all = Vec::new();
    let mut lines: BTreeMap<&'static str, Line> = BTreeMap::new();
    let mut line = |kind: &'static str, on_source: bool, wrong: Option<Kind>| {
        let line = lines.entry(kind).or_insert_with(|| Line {
            object: kind.to_owned(),
            source: 0,
            target: 0,
            counts: Counts::default(),
            verdict: Verdict::Equal,
        });
        line.source += u64::from(on_source);
        line.target += u64::from(wrong != Some(Kind::Missing));
        if let Some(wrong) = wrong {
            line.counts.add(wrong, 1);
            line.verdict = Verdict::Different;
        }
    };
    for ((kind, name), text) in wanted {
        let (wrong, detail) = match found.get(&(*kind, name.clone())) {
            Some(other) if other == text => {
                line(kind, true, None);
                continue;
            }
            None => (Kind::Missing, String::new()),
            Some(other) => (Kind::Changed, format!("source {text}, target {other}")),
        };
        line(kind, true, Some(wrong));
        let object = format!("{kind} {name}");
        all.push(Difference {
            object,
            kind: wrong,
            detail,
        });
    }
    for ((kind, name), text) in found {
        if !wanted.contains_key(&(*kind, name.clone())) {
            line(kind, false, Some(Kind::Extra));
            all.push(Difference {
                object: format!("{kind} {name}"),
                kind: Kind::Extra,
                detail: text.clone(),
            });
        }
    }
    (lines.into_values().collect(), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(all: &[(&'static str, &str, &str)]) -> Described {
        all.iter()
            .map(|(k, n, d)| ((*k, (*n).to_owned()), (*d).to_owned()))
            .collect()
    }

    #[test]
    fn objects_are_named_as_missing_extra_and_changed() {
        let source = described(&[
            ("database", "a", ""),
            ("index", "a.b vec", "FLAT"),
            ("index", "a.c vec", "FLAT"),
        ]);
        let target = described(&[
            ("database", "a", ""),
            ("index", "a.b vec", "HNSW"),
            ("index", "a.d vec", "FLAT"),
        ]);
        let (lines, differences) = differences(&source, &target);
        let found: Vec<_> = differences
            .iter()
            .map(|d| (d.kind, d.object.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (Kind::Changed, "index a.b vec"),
                (Kind::Missing, "index a.c vec"),
                (Kind::Extra, "index a.d vec")
            ]
        );
        assert_eq!(
            lines
                .iter()
                .map(|l| (l.verdict, l.source, l.target))
                .collect::<Vec<_>>(),
            [(Verdict::Equal, 1, 1), (Verdict::Different, 2, 2)]
        );
    }

    #[test]
    fn a_row_is_as_wide_as_its_fields() {
        let field = |kind: DataType, dim: &str| FieldSchema {
            data_type: kind.into(),
            type_params: vec![KeyValuePair {
                key: "dim".to_owned(),
                value: dim.to_owned(),
            }],
            ..Default::default()
        };
        assert_eq!(width(&field(DataType::FloatVector, "128")), 64 + 512);
        assert_eq!(width(&field(DataType::BinaryVector, "128")), 64 + 16);
        // What a server says is not trusted to be small.
        assert!(width(&field(DataType::FloatVector, "99999999999")) < 8 << 20);
    }
}
