//! Rows and the columns they travel in. Floats are kept as bits: equal means equal to the last bit.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use cdc_keys::Key;
use milvus::proto::schema::{
    FieldData, ScalarField, SparseFloatArray, field_data, scalar_field, vector_field,
};

/// The field of a collection's dynamic values.
pub const META: &str = "$meta";

/// One row: field name to value.
pub type Row = BTreeMap<String, Value>;

/// A value of one field.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Bool(bool),
    /// Int8 to Int64.
    Int(i64),
    /// Bits.
    Float(u32),
    /// Bits.
    Double(u64),
    Str(String),
    Json(Vec<u8>),
    Array(Vec<Value>),
    /// Bits.
    FloatVector(Vec<u32>),
    /// Eight dimensions a byte.
    BinaryVector(Vec<u8>),
    /// Two bytes a dimension, as they are sent: bits.
    Float16Vector(Vec<u8>),
    /// As [`Value::Float16Vector`].
    BFloat16Vector(Vec<u8>),
    /// A byte a dimension.
    Int8Vector(Vec<u8>),
    /// Index and bits, by index.
    SparseVector(Vec<(u32, u32)>),
    /// A nullable field without a value (2.5 and later).
    Null,
}

impl Value {
    /// JSON as it is written here, whatever spaces, escapes and order it came with.
    pub(crate) fn rewrite_json(&mut self) {
        if let Value::Json(text) = self
            && let Ok(value) = serde_json::from_slice::<serde_json::Value>(text)
        {
            *text = value.to_string().into_bytes();
        }
    }

    pub fn float(f: f32) -> Self {
        Value::Float(f.to_bits())
    }

    pub fn double(f: f64) -> Self {
        Value::Double(f.to_bits())
    }

    /// As a primary key.
    pub fn key(&self) -> Option<Key> {
        match self {
            Value::Int(i) => Some(Key::Int(*i)),
            Value::Str(s) => Some(Key::Str(s.clone())),
            _ => None,
        }
    }
}

impl From<Key> for Value {
    fn from(key: Key) -> Self {
        match key {
            Key::Int(i) => Value::Int(i),
            Key::Str(s) => Value::Str(s),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(b) => b.fmt(f),
            Value::Int(i) => i.fmt(f),
            Value::Float(b) => f32::from_bits(*b).fmt(f),
            Value::Double(b) => f64::from_bits(*b).fmt(f),
            Value::Str(s) => s.fmt(f),
            Value::Json(j) => f.write_str(&String::from_utf8_lossy(j)),
            Value::Array(a) => a.fmt(f),
            Value::FloatVector(v) => f
                .debug_list()
                .entries(v.iter().map(|b| f32::from_bits(*b)))
                .finish(),
            Value::BinaryVector(v)
            | Value::Float16Vector(v)
            | Value::BFloat16Vector(v)
            | Value::Int8Vector(v) => write!(f, "bits {v:02x?}"),
            Value::SparseVector(v) => f
                .debug_map()
                .entries(v.iter().map(|(i, b)| (i, f32::from_bits(*b))))
                .finish(),
            Value::Null => f.write_str("null"),
        }
    }
}

/// The rows of an answer's columns.
///
/// # Errors
/// Columns of different lengths, or of a type that is not known here.
pub fn from_columns(columns: Vec<FieldData>) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for (n, column) in columns.into_iter().enumerate() {
        let name = if column.is_dynamic && column.field_name.is_empty() {
            META.to_owned()
        } else {
            column.field_name.clone()
        };
        let values = values(column).with_context(|| format!("the column {name}"))?;
        if n == 0 {
            rows.resize_with(values.len(), Row::new);
        } else if values.len() != rows.len() {
            bail!(
                "the column {name} has {} values where others have {}",
                values.len(),
                rows.len()
            );
        }
        for (row, value) in rows.iter_mut().zip(values) {
            row.insert(name.clone(), value);
        }
    }
    Ok(rows)
}

fn values(column: FieldData) -> Result<Vec<Value>> {
    let legacy = column.valid_data;
    let (valid, mut values) = match column.field {
        None => (Vec::new(), Vec::new()),
        Some(field_data::Field::Scalars(s)) => (s.valid_data.clone(), scalar_values(s)?),
        Some(field_data::Field::Vectors(v)) => {
            let valid = v.valid_data.clone();
            (valid, vector_values(v.dim, v.data)?)
        }
        Some(_) => bail!("a kind of field that cannot be compared"),
    };
    let valid = if valid.is_empty() { legacy } else { valid };
    if valid.is_empty() {
        return Ok(values);
    }
    // Dense answers have a place for every row; compact ones only for those with a value.
    let present = valid.iter().filter(|v| **v).count();
    if values.len() == present && present < valid.len() {
        let mut compact = values.into_iter();
        return Ok(valid
            .iter()
            .map(|v| match v {
                true => compact.next().unwrap_or(Value::Null),
                false => Value::Null,
            })
            .collect());
    }
    if values.len() != valid.len() {
        bail!("{} values for {} rows", values.len(), valid.len());
    }
    for (value, valid) in values.iter_mut().zip(&valid) {
        if !valid {
            *value = Value::Null;
        }
    }
    Ok(values)
}

fn vector_values(dim: i64, data: Option<vector_field::Data>) -> Result<Vec<Value>> {
    use vector_field::Data;
    let dim = usize::try_from(dim)?;
    let chunks = |bytes: Vec<u8>, width: usize, make: fn(Vec<u8>) -> Value| {
        if width == 0 || !bytes.len().is_multiple_of(width) {
            bail!("{} bytes of vectors of {dim} dimensions", bytes.len());
        }
        Ok(bytes.chunks(width).map(|c| make(c.to_vec())).collect())
    };
    match data {
        None => Ok(Vec::new()),
        Some(Data::FloatVector(a)) if dim > 0 && a.data.len().is_multiple_of(dim) => Ok(a
            .data
            .chunks(dim)
            .map(|c| Value::FloatVector(c.iter().map(|f| f.to_bits()).collect()))
            .collect()),
        Some(Data::BinaryVector(b)) => chunks(b, dim / 8, Value::BinaryVector),
        Some(Data::Float16Vector(b)) => chunks(b, 2 * dim, Value::Float16Vector),
        Some(Data::Bfloat16Vector(b)) => chunks(b, 2 * dim, Value::BFloat16Vector),
        Some(Data::Int8Vector(b)) => chunks(b, dim, Value::Int8Vector),
        Some(Data::SparseFloatVector(SparseFloatArray { contents, .. })) => {
            contents.iter().map(|c| sparse(c)).collect()
        }
        Some(_) => bail!("a kind of vector that cannot be compared, or of no dimension"),
    }
}

/// Pairs of index and value, little endian; their order says nothing.
fn sparse(bytes: &[u8]) -> Result<Value> {
    let (pairs, []) = bytes.as_chunks::<8>() else {
        bail!("a sparse vector of {} bytes", bytes.len());
    };
    let mut pairs: Vec<(u32, u32)> = pairs
        .iter()
        .map(|[a, b, c, d, e, f, g, h]| {
            (
                u32::from_le_bytes([*a, *b, *c, *d]),
                u32::from_le_bytes([*e, *f, *g, *h]),
            )
        })
        .collect();
    pairs.sort_unstable();
    Ok(Value::SparseVector(pairs))
}

fn scalar_values(field: ScalarField) -> Result<Vec<Value>> {
    use scalar_field::Data;
    Ok(match field.data {
        None => Vec::new(),
        Some(Data::BoolData(a)) => a.data.into_iter().map(Value::Bool).collect(),
        Some(Data::IntData(a)) => a.data.into_iter().map(|i| Value::Int(i.into())).collect(),
        Some(Data::LongData(a)) => a.data.into_iter().map(Value::Int).collect(),
        Some(Data::FloatData(a)) => a.data.into_iter().map(Value::float).collect(),
        Some(Data::DoubleData(a)) => a.data.into_iter().map(Value::double).collect(),
        Some(Data::StringData(a)) => a.data.into_iter().map(Value::Str).collect(),
        Some(Data::JsonData(a)) => a.data.into_iter().map(Value::Json).collect(),
        Some(Data::ArrayData(a)) => a
            .data
            .into_iter()
            .map(|s| scalar_values(s).map(Value::Array))
            .collect::<Result<_>>()?,
        Some(other) => {
            // Not the values themselves.
            let _ = other;
            bail!("a kind of scalar that cannot be compared")
        }
    })
}

#[cfg(test)]
mod tests {
    use milvus::proto::schema::VectorField;

    use super::*;

    fn vectors(dim: i64, data: vector_field::Data) -> FieldData {
        FieldData {
            field_name: "v".to_owned(),
            field: Some(field_data::Field::Vectors(VectorField {
                dim,
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn read(column: FieldData) -> Result<Vec<Value>> {
        let rows = from_columns(vec![column])?;
        Ok(rows.into_iter().filter_map(|mut r| r.remove("v")).collect())
    }

    #[test]
    fn vectors_of_later_versions_are_read() {
        use vector_field::Data;
        let half = read(vectors(2, Data::Float16Vector((0..8).collect()))).unwrap();
        let wanted = [vec![0, 1, 2, 3], vec![4, 5, 6, 7]].map(Value::Float16Vector);
        assert_eq!(half, wanted);
        let bytes = read(vectors(4, Data::Int8Vector((0..8).collect()))).unwrap();
        assert_eq!(
            bytes,
            [vec![0, 1, 2, 3], vec![4, 5, 6, 7]].map(Value::Int8Vector)
        );
        assert!(read(vectors(3, Data::Bfloat16Vector((0..8).collect()))).is_err());
        assert!(read(vectors(0, Data::Int8Vector((0..8).collect()))).is_err());
    }

    #[test]
    fn the_order_of_a_sparse_vectors_pairs_says_nothing() {
        let pair = |i: u32, f: f32| [i.to_le_bytes(), f.to_le_bytes()].concat();
        let of = |contents: Vec<u8>| {
            read(vectors(
                9,
                vector_field::Data::SparseFloatVector(SparseFloatArray {
                    contents: vec![contents],
                    dim: 9,
                }),
            ))
        };
        let (a, b) = (pair(3, 0.5), pair(8, -0.0));
        let one = of([a.clone(), b.clone()].concat()).unwrap();
        assert_eq!(one, of([b, a].concat()).unwrap());
        assert_ne!(one, of([pair(3, 0.5), pair(8, 0.0)].concat()).unwrap());
        assert!(of(vec![0; 7]).is_err());
    }

    #[test]
    fn a_row_without_a_value_is_null_in_dense_and_compact_answers() {
        let longs = |data: Vec<i64>, valid: Vec<bool>| FieldData {
            field_name: "v".to_owned(),
            valid_data: valid,
            field: Some(field_data::Field::Scalars(ScalarField {
                data: Some(scalar_field::Data::LongData(
                    milvus::proto::schema::LongArray { data },
                )),
                ..Default::default()
            })),
            ..Default::default()
        };
        let wanted = [Value::Int(7), Value::Null, Value::Int(9)];
        let valid = vec![true, false, true];
        assert_eq!(read(longs(vec![7, 0, 9], valid.clone())).unwrap(), wanted);
        assert_eq!(read(longs(vec![7, 9], valid.clone())).unwrap(), wanted);
        assert!(read(longs(vec![7], valid)).is_err());
    }
}
