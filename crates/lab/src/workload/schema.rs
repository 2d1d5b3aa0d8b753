//! Collections of every shape 2.3.5 knows, and rows for them.

use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, json};

use crate::client::{CollectionOptions, Key, META, Row, Value};

/// The dimension of every vector.
const DIM: usize = 16;
/// Elements an Array may have.
const ARRAY_CAPACITY: usize = 6;

const SCALARS: [DataType; 10] = [
    DataType::Bool,
    DataType::Int8,
    DataType::Int16,
    DataType::Int32,
    DataType::Int64,
    DataType::Float,
    DataType::Double,
    DataType::VarChar,
    DataType::Json,
    DataType::Array,
];

/// A collection as the workload made it.
#[derive(Debug, Clone)]
pub struct Shape {
    pub schema: CollectionSchema,
    pub shards: i32,
    pub consistency: ConsistencyLevel,
    pub properties: Vec<(String, String)>,
    /// Of a collection with a partition key.
    pub key_partitions: i64,
}

impl Shape {
    /// A shape by number: the first few cover every type, both keys, auto id, partition key and dynamic field; those
    /// after them are mixed at random.
    pub fn numbered(n: usize, name: &str, random: &mut StdRng) -> Self {
        let string_key = matches!(n % 6, 1 | 4);
        let auto_id = matches!(n % 6, 2 | 4);
        let partition_key = matches!(n % 6, 3 | 5);
        let binary = matches!(n % 6, 1 | 5);
        let everything = n < 2;

        let mut fields = Vec::new();
        let mut pk = if string_key {
            varchar("pk", 128)
        } else {
            field("pk", DataType::Int64)
        };
        pk.is_primary_key = true;
        pk.auto_id = auto_id;
        fields.push(pk);
        if partition_key {
            let mut tenant = if random.random() {
                varchar("tenant", 64)
            } else {
                field("tenant", DataType::Int64)
            };
            tenant.is_partition_key = true;
            fields.push(tenant);
        }
        for kind in SCALARS {
            if everything || random.random_bool(0.5) {
                fields.push(scalar(kind, random));
            }
        }
        if everything {
            for (n, element) in [
                DataType::Bool,
                DataType::Int8,
                DataType::Int64,
                DataType::Double,
                DataType::VarChar,
            ]
            .into_iter()
            .enumerate()
            {
                fields.push(array(&format!("list_{n}"), element));
            }
        }
        let mut vector = field(
            "vec",
            if binary {
                DataType::BinaryVector
            } else {
                DataType::FloatVector
            },
        );
        vector.type_params = vec![pair("dim", &DIM.to_string())];
        fields.push(vector);

        let consistency = [
            ConsistencyLevel::Strong,
            ConsistencyLevel::Session,
            ConsistencyLevel::Bounded,
            ConsistencyLevel::Eventually,
        ];
        let mut properties = Vec::new();
        if n.is_multiple_of(2) {
            properties.push((
                "collection.ttl.seconds".to_owned(),
                random.random_range(1_000_000..9_000_000).to_string(),
            ));
        }
        Self {
            schema: CollectionSchema {
                name: name.to_owned(),
                description: format!("number {n} of the workload"),
                fields,
                enable_dynamic_field: n.is_multiple_of(2) || random.random(),
                ..Default::default()
            },
            shards: if n < 4 {
                n as i32 + 1
            } else {
                random.random_range(1..=4)
            },
            consistency: consistency[n % consistency.len()],
            properties,
            key_partitions: if partition_key {
                random.random_range(2..=6)
            } else {
                0
            },
        }
    }

    pub fn options(&self) -> CollectionOptions {
        CollectionOptions {
            shards: self.shards,
            consistency: self.consistency,
            properties: self.properties.clone(),
            partitions: self.key_partitions,
        }
    }

    fn primary(&self) -> Option<&FieldSchema> {
        self.schema.fields.iter().find(|f| f.is_primary_key)
    }

    pub fn auto_id(&self) -> bool {
        self.primary().is_some_and(|f| f.auto_id)
    }

    pub fn string_key(&self) -> bool {
        self.primary()
            .is_some_and(|f| f.data_type() == DataType::VarChar)
    }

    /// A fresh key: `n` differs from all before.
    pub fn key(&self, n: u64, random: &mut StdRng) -> Key {
        if self.string_key() {
            let odd = ["", "\"", "\\", " ü", "中", "'", "\n", "😀"];
            return Key::Str(format!(
                "{n}{}",
                odd.choose(random).copied().unwrap_or_default()
            ));
        }
        // Negative ones too.
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        Key::Int(if n % 7 == 0 { -n } else { n })
    }

    /// A row with this key; `None` if the server makes the keys.
    pub fn row(&self, key: Option<Key>, random: &mut StdRng) -> Row {
        let mut row = Row::new();
        for f in self.schema.fields.iter().filter(|f| !f.auto_id) {
            row.insert(f.name.clone(), value(f, random));
        }
        if let (Some(key), Some(f)) = (key, self.primary()) {
            row.insert(f.name.clone(), key.into());
        }
        if self.schema.enable_dynamic_field {
            let mut meta = Map::new();
            for name in ["color", "größe", "n"] {
                if random.random_bool(0.4) {
                    meta.insert(name.to_owned(), json!(random.random_range(0..100)));
                }
            }
            row.insert(
                META.to_owned(),
                Value::Json(serde_json::Value::Object(meta).to_string().into_bytes()),
            );
        }
        row
    }

    pub fn without_binary_vectors(&mut self) {
        for field in &mut self.schema.fields {
            if field.data_type() == DataType::BinaryVector {
                field.set_data_type(DataType::FloatVector);
            }
        }
    }

    /// Parameters for an index on the vector field.
    pub fn vector_index(&self, random: &mut StdRng) -> Vec<(String, String)> {
        let binary = self
            .schema
            .fields
            .iter()
            .any(|f| f.data_type() == DataType::BinaryVector);
        let all: &[(&str, &str, &str)] = if binary {
            &[
                ("BIN_FLAT", "HAMMING", "{}"),
                ("BIN_IVF_FLAT", "JACCARD", r#"{"nlist":8}"#),
            ]
        } else {
            &[
                ("FLAT", "L2", "{}"),
                ("IVF_FLAT", "IP", r#"{"nlist":8}"#),
                ("HNSW", "COSINE", r#"{"M":8,"efConstruction":32}"#),
                ("IVF_SQ8", "L2", r#"{"nlist":16}"#),
            ]
        };
        let (kind, metric, params) = all.choose(random).copied().unwrap_or(("FLAT", "L2", "{}"));
        [
            ("index_type", kind),
            ("metric_type", metric),
            ("params", params),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec()
    }

    /// Scalar fields that can have an index.
    pub fn indexable(&self) -> Vec<&str> {
        use DataType::{Double, Float, Int8, Int16, Int32, Int64, VarChar};
        self.schema
            .fields
            .iter()
            .filter(|f| {
                !f.is_primary_key
                    && matches!(
                        f.data_type(),
                        Int8 | Int16 | Int32 | Int64 | Float | Double | VarChar
                    )
            })
            .map(|f| f.name.as_str())
            .collect()
    }
}

fn pair(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn field(name: &str, kind: DataType) -> FieldSchema {
    FieldSchema {
        name: name.to_owned(),
        data_type: kind.into(),
        ..Default::default()
    }
}

fn varchar(name: &str, length: usize) -> FieldSchema {
    FieldSchema {
        type_params: vec![pair("max_length", &length.to_string())],
        ..field(name, DataType::VarChar)
    }
}

fn array(name: &str, element: DataType) -> FieldSchema {
    let mut type_params = vec![pair("max_capacity", &ARRAY_CAPACITY.to_string())];
    if element == DataType::VarChar {
        type_params.push(pair("max_length", "64"));
    }
    FieldSchema {
        type_params,
        element_type: element.into(),
        ..field(name, DataType::Array)
    }
}

fn scalar(kind: DataType, random: &mut StdRng) -> FieldSchema {
    let name = format!("f_{}", kind.as_str_name().to_lowercase());
    match kind {
        DataType::VarChar => varchar(&name, 256),
        DataType::Array => {
            let elements = [
                DataType::Int32,
                DataType::Float,
                DataType::VarChar,
                DataType::Int16,
            ];
            array(
                &name,
                elements.choose(random).copied().unwrap_or(DataType::Int32),
            )
        }
        _ => field(&name, kind),
    }
}

fn value(f: &FieldSchema, random: &mut StdRng) -> Value {
    match f.data_type() {
        DataType::Array => {
            let element = FieldSchema {
                data_type: f.element_type,
                ..Default::default()
            };
            Value::Array(
                (0..random.random_range(0..=ARRAY_CAPACITY))
                    .map(|_| value(&element, random))
                    .collect(),
            )
        }
        DataType::FloatVector => Value::FloatVector(
            (0..DIM)
                .map(|_| random.random_range(-1f32..1.0).to_bits())
                .collect(),
        ),
        DataType::BinaryVector => {
            Value::BinaryVector((0..DIM / 8).map(|_| random.random()).collect())
        }
        DataType::Bool => Value::Bool(random.random()),
        DataType::Int8 => Value::Int(random.random::<i8>().into()),
        DataType::Int16 => Value::Int(random.random::<i16>().into()),
        DataType::Int32 => Value::Int(random.random::<i32>().into()),
        // Few distinct values, so that a partition key has groups.
        DataType::Int64 if f.is_partition_key => Value::Int(random.random_range(0..20)),
        DataType::Int64 => Value::Int(random.random()),
        DataType::Float => Value::float(
            *[0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, random.random()]
                .choose(random)
                .unwrap_or(&0.0),
        ),
        DataType::Double => Value::double(
            *[0.0, -0.0, f64::MAX, 1e-300, random.random()]
                .choose(random)
                .unwrap_or(&0.0),
        ),
        DataType::VarChar if f.is_partition_key => {
            Value::Str(format!("tenant-{}", random.random_range(0..20)))
        }
        DataType::Json => {
            let text = json!({ "n": random.random::<i32>(), "s": text(random), "a": [1, null, { "b": random.random::<bool>() }] });
            Value::Json(text.to_string().into_bytes())
        }
        _ => Value::Str(text(random)),
    }
}

fn text(random: &mut StdRng) -> String {
    let parts = ["a", "Milvus", "ä", "日本", "\"", "\\", " ", "\t", "0", "😀"];
    (0..random.random_range(0..6))
        .filter_map(|_| parts.choose(random))
        .copied()
        .collect()
}
