//! Rows and the columns they travel in. Floats are kept as bits: equal means equal to the last bit.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use milvus::proto::schema::{
    ArrayArray, BoolArray, CollectionSchema, DataType, DoubleArray, FieldData, FieldSchema,
    FloatArray, IntArray, JsonArray, LongArray, ScalarField, StringArray, VectorField, field_data,
    scalar_field, vector_field,
};

/// The field of a collection's dynamic values.
pub const META: &str = "$meta";

/// One row: field name to value.
pub type Row = BTreeMap<String, Value>;

/// A primary key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Int(i64),
    Str(String),
}

impl Key {
    /// As it is written in an expression.
    pub fn literal(&self) -> String {
        match self {
            Key::Int(i) => i.to_string(),
            Key::Str(s) => serde_json::Value::from(s.as_str()).to_string(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.literal())
    }
}

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
}

impl Value {
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
            Value::BinaryVector(v) => write!(f, "bits {v:02x?}"),
        }
    }
}

/// The columns of rows as an Insert wants them: every field of the schema except an auto id key; `$meta` where the
/// collection is dynamic.
///
/// # Errors
/// A row lacks a field or has a value of another type.
pub fn to_columns(schema: &CollectionSchema, rows: &[Row]) -> Result<Vec<FieldData>> {
    let mut columns = Vec::with_capacity(schema.fields.len() + 1);
    for field in schema.fields.iter().filter(|f| !f.auto_id) {
        columns.push(column(field, rows)?);
    }
    if schema.enable_dynamic_field {
        let meta = FieldSchema {
            name: META.to_owned(),
            data_type: DataType::Json.into(),
            is_dynamic: true,
            ..Default::default()
        };
        columns.push(column(&meta, rows)?);
    }
    Ok(columns)
}

fn column(field: &FieldSchema, rows: &[Row]) -> Result<FieldData> {
    let values: Vec<&Value> = rows
        .iter()
        .map(|row| {
            row.get(&field.name)
                .with_context(|| format!("a row without {}", field.name))
        })
        .collect::<Result<_>>()?;
    let kind = field.data_type();
    let data = match kind {
        DataType::FloatVector => {
            let mut all = Vec::new();
            for v in &values {
                let Value::FloatVector(v) = v else {
                    bail!("{}: {v:?} is no float vector", field.name)
                };
                all.extend(v.iter().map(|b| f32::from_bits(*b)));
            }
            let dim = all.len() / values.len().max(1);
            vectors(
                dim,
                vector_field::Data::FloatVector(FloatArray { data: all }),
            )
        }
        DataType::BinaryVector => {
            let mut all = Vec::new();
            for v in &values {
                let Value::BinaryVector(v) = v else {
                    bail!("{}: {v:?} is no binary vector", field.name)
                };
                all.extend_from_slice(v);
            }
            let dim = 8 * all.len() / values.len().max(1);
            vectors(dim, vector_field::Data::BinaryVector(all))
        }
        _ => field_data::Field::Scalars(
            scalars(kind, field.element_type(), &values).with_context(|| field.name.clone())?,
        ),
    };
    Ok(FieldData {
        r#type: kind.into(),
        field_name: field.name.clone(),
        field_id: field.field_id,
        is_dynamic: field.is_dynamic,
        field: Some(data),
        ..Default::default()
    })
}

fn vectors(dim: usize, data: vector_field::Data) -> field_data::Field {
    field_data::Field::Vectors(VectorField {
        dim: i64::try_from(dim).unwrap_or(i64::MAX),
        data: Some(data),
        ..Default::default()
    })
}

fn scalars(kind: DataType, element: DataType, values: &[&Value]) -> Result<ScalarField> {
    use scalar_field::Data;
    macro_rules! all {
        ($pattern:pat => $value:expr) => {
            values
                .iter()
                .map(|v| match v {
                    $pattern => Ok($value),
                    other => bail!("{other:?} is no {kind:?}"),
                })
                .collect::<Result<Vec<_>>>()?
        };
    }
    let data = match kind {
        DataType::Bool => Data::BoolData(BoolArray {
            data: all!(Value::Bool(b) => *b),
        }),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Data::IntData(IntArray {
            data: all!(Value::Int(i) => i32::try_from(*i)?),
        }),
        DataType::Int64 => Data::LongData(LongArray {
            data: all!(Value::Int(i) => *i),
        }),
        DataType::Float => Data::FloatData(FloatArray {
            data: all!(Value::Float(b) => f32::from_bits(*b)),
        }),
        DataType::Double => Data::DoubleData(DoubleArray {
            data: all!(Value::Double(b) => f64::from_bits(*b)),
        }),
        DataType::VarChar => Data::StringData(StringArray {
            data: all!(Value::Str(s) => s.clone()),
        }),
        DataType::Json => Data::JsonData(JsonArray {
            data: all!(Value::Json(j) => j.clone()),
        }),
        DataType::Array => {
            let data = all!(Value::Array(a) => scalars(element, DataType::None, &a.iter().collect::<Vec<_>>())?);
            Data::ArrayData(ArrayArray {
                data,
                element_type: element.into(),
            })
        }
        other => bail!("no rows with {other:?} here"),
    };
    Ok(ScalarField {
        data: Some(data),
        ..Default::default()
    })
}

/// The rows of an answer's columns.
///
/// # Errors
/// Columns of different lengths, or of a type that 2.3.5 does not have.
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
    match column.field {
        None => Ok(Vec::new()),
        Some(field_data::Field::Scalars(s)) => scalar_values(s),
        Some(field_data::Field::Vectors(v)) => {
            let dim = usize::try_from(v.dim)?;
            match v.data {
                Some(vector_field::Data::FloatVector(a)) if dim > 0 => Ok(a
                    .data
                    .chunks(dim)
                    .map(|c| Value::FloatVector(c.iter().map(|f| f.to_bits()).collect()))
                    .collect()),
                Some(vector_field::Data::BinaryVector(b)) if dim >= 8 => Ok(b
                    .chunks(dim / 8)
                    .map(|c| Value::BinaryVector(c.to_vec()))
                    .collect()),
                None => Ok(Vec::new()),
                Some(_) => bail!("a kind of vector unknown to 2.3.5, or of no dimension"),
            }
        }
        Some(_) => bail!("a kind of field unknown to 2.3.5"),
    }
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
        Some(other) => bail!("a kind of scalar unknown to 2.3.5: {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_their_columns() {
        let f = |name: &str, kind: DataType| FieldSchema {
            name: name.into(),
            data_type: kind.into(),
            ..Default::default()
        };
        let mut tags = f("tags", DataType::Array);
        tags.element_type = DataType::VarChar.into();
        let schema = CollectionSchema {
            name: "c".into(),
            enable_dynamic_field: true,
            fields: vec![
                f("pk", DataType::VarChar),
                f("i8", DataType::Int8),
                f("d", DataType::Double),
                tags,
                f("v", DataType::FloatVector),
            ],
            ..Default::default()
        };
        let row = |n: i64| -> Row {
            [
                ("pk", Value::Str(format!("k\"{n}"))),
                ("i8", Value::Int(-n)),
                ("d", Value::double(-0.0)),
                (
                    "tags",
                    Value::Array((0..n).map(|i| Value::Str(i.to_string())).collect()),
                ),
                (
                    "v",
                    Value::FloatVector(vec![1.5f32.to_bits(), (n as f32).to_bits()]),
                ),
                (META, Value::Json(b"{\"x\":1}".to_vec())),
            ]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v))
            .collect()
        };
        let rows = vec![row(1), row(2), row(3)];
        assert_eq!(
            from_columns(to_columns(&schema, &rows).unwrap()).unwrap(),
            rows
        );
        let mut short = rows.clone();
        short[1].remove("d");
        assert!(to_columns(&schema, &short).is_err());
    }

    #[test]
    fn a_key_with_quotes_is_escaped() {
        assert_eq!(Key::Str("a\"\\\n".into()).literal(), r#""a\"\\\n""#);
    }
}
