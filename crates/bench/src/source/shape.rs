//! What rows look like, and columns full of them.

use milvus::proto::common::KeyValuePair;
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::{
    DataType, FieldData, FieldSchema, FloatArray, JsonArray, LongArray, ScalarField, StringArray,
    VectorField, vector_field,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A key, a vector, and perhaps text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub dim: usize,
    /// Bytes of the VarChar, and of the JSON, of each row; 0: the collection has neither.
    pub text: usize,
}

const KEY: i64 = 100;
const VECTOR: i64 = 101;
const TEXT: i64 = 102;
const JSON: i64 = 103;

fn pair(key: &str, value: impl ToString) -> KeyValuePair {
    KeyValuePair {
        key: key.to_owned(),
        value: value.to_string(),
    }
}

impl Shape {
    /// As a 2.3.5 stores them: the system fields too.
    pub fn fields(&self) -> Vec<FieldSchema> {
        let field = |field_id, name: &str, data_type: DataType| FieldSchema {
            field_id,
            name: name.to_owned(),
            data_type: data_type as i32,
            ..Default::default()
        };
        let mut fields = vec![
            field(0, "RowID", DataType::Int64),
            field(1, "Timestamp", DataType::Int64),
            FieldSchema {
                is_primary_key: true,
                ..field(KEY, "id", DataType::Int64)
            },
            FieldSchema {
                type_params: vec![pair("dim", self.dim)],
                ..field(VECTOR, "vector", DataType::FloatVector)
            },
        ];
        if self.text > 0 {
            fields.push(FieldSchema {
                type_params: vec![pair("max_length", 65535)],
                ..field(TEXT, "text", DataType::VarChar)
            });
            fields.push(field(JSON, "json", DataType::Json));
        }
        fields
    }
}

/// Numbers and text to cut columns from: long enough that a compressor finds little that comes again.
pub struct Pool {
    floats: Vec<f32>,
    text: String,
    random: StdRng,
}

/// 16 MB of vectors, 4 MB of text.
const FLOATS: usize = 4 << 20;
const TEXT_BYTES: usize = 4 << 20;
const WORDS: [&str; 12] = [
    "milvus", "vector", "channel", "tick", "segment", "shard", "replica", "index", "query", "node",
    "proxy", "flush",
];

impl Pool {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let floats = (0..FLOATS)
            .map(|_| random.random_range(-1.0..1.0))
            .collect();
        let mut text = String::with_capacity(TEXT_BYTES + 32);
        while text.len() < TEXT_BYTES {
            text += WORDS[random.random_range(0..WORDS.len())];
            text += &format!(" {} ", random.random_range(0..10_000));
        }
        Self {
            floats,
            text,
            random,
        }
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            let from = self.random.random_range(0..self.floats.len() / 2);
            let take = (n - out.len()).min(self.floats.len() - from);
            out.extend_from_slice(&self.floats[from..from + take]);
        }
        out
    }

    /// ASCII.
    fn text(&mut self, n: usize) -> &str {
        let n = n.min(TEXT_BYTES / 2);
        let from = self.random.random_range(0..TEXT_BYTES - n);
        &self.text[from..from + n]
    }

    /// The columns of these rows, the key last, as a proxy puts one that it made itself.
    pub fn columns(&mut self, shape: Shape, keys: &[i64]) -> Vec<FieldData> {
        let scalar = |id, name: &str, data_type: DataType, data| FieldData {
            r#type: data_type as i32,
            field_name: name.to_owned(),
            field_id: id,
            field: Some(Field::Scalars(ScalarField {
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        };
        let data = self.floats(shape.dim * keys.len());
        let mut columns = vec![FieldData {
            r#type: DataType::FloatVector as i32,
            field_name: "vector".to_owned(),
            field_id: VECTOR,
            field: Some(Field::Vectors(VectorField {
                dim: shape.dim as i64,
                data: Some(vector_field::Data::FloatVector(FloatArray { data })),
                ..Default::default()
            })),
            ..Default::default()
        }];
        if shape.text > 0 {
            let text = keys
                .iter()
                .map(|_| self.text(shape.text).to_owned())
                .collect();
            let json = keys.iter().map(|key| {
                let note = self.text(shape.text.saturating_sub(30));
                format!("{{\"k\":{key},\"note\":\"{note}\"}}").into_bytes()
            });
            let json = json.collect();
            let text = Data::StringData(StringArray { data: text });
            columns.push(scalar(TEXT, "text", DataType::VarChar, text));
            let json = Data::JsonData(JsonArray { data: json });
            columns.push(scalar(JSON, "json", DataType::Json, json));
        }
        let keys = Data::LongData(LongArray {
            data: keys.to_vec(),
        });
        columns.push(scalar(KEY, "id", DataType::Int64, keys));
        columns
    }
}
