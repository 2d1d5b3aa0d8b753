//! Rows as an Insert wants them.

use anyhow::{Context, Result, bail};
use milvus::proto::schema::{
    ArrayArray, BoolArray, CollectionSchema, DataType, DoubleArray, FieldData, FieldSchema,
    FloatArray, IntArray, JsonArray, LongArray, ScalarField, SparseFloatArray, StringArray,
    VectorField, field_data, scalar_field, vector_field,
};

use super::{META, Row, Value};

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
    // As an Insert has it: whether there is a value in each row, and those that are there.
    let valid: Vec<bool> = values.iter().map(|v| **v != Value::Null).collect();
    let nulls = valid.contains(&false);
    let values: Vec<&Value> = values.into_iter().filter(|v| **v != Value::Null).collect();
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
        DataType::BinaryVector | DataType::Float16Vector | DataType::BFloat16Vector => {
            let mut all = Vec::new();
            for v in &values {
                match (kind, v) {
                    (DataType::BinaryVector, Value::BinaryVector(v))
                    | (DataType::Float16Vector, Value::Float16Vector(v))
                    | (DataType::BFloat16Vector, Value::BFloat16Vector(v)) => {
                        all.extend_from_slice(v);
                    }
                    _ => bail!("{}: {v:?} is no {kind:?}", field.name),
                }
            }
            let width = all.len() / values.len().max(1);
            match kind {
                DataType::BinaryVector => vectors(8 * width, vector_field::Data::BinaryVector(all)),
                DataType::Float16Vector => {
                    vectors(width / 2, vector_field::Data::Float16Vector(all))
                }
                _ => vectors(width / 2, vector_field::Data::Bfloat16Vector(all)),
            }
        }
        DataType::SparseFloatVector => {
            let mut contents = Vec::new();
            let mut dim = 0;
            for v in &values {
                let Value::SparseVector(pairs) = v else {
                    bail!("{}: {v:?} is no {kind:?}", field.name)
                };
                let last = pairs.last().map_or(0, |(index, _)| i64::from(*index) + 1);
                dim = last.max(dim);
                let bytes = pairs
                    .iter()
                    .flat_map(|(index, bits)| [index.to_le_bytes(), bits.to_le_bytes()].concat());
                contents.push(bytes.collect());
            }
            let data = SparseFloatArray { contents, dim };
            let dim = usize::try_from(dim)?;
            vectors(dim, vector_field::Data::SparseFloatVector(data))
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
        valid_data: if nulls { valid } else { Vec::new() },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::from_columns;

    #[test]
    fn vectors_of_later_versions_survive_their_columns() {
        let f = |name: &str, kind: DataType| FieldSchema {
            name: name.into(),
            data_type: kind.into(),
            ..Default::default()
        };
        let schema = CollectionSchema {
            fields: vec![
                f("half", DataType::Float16Vector),
                f("brain", DataType::BFloat16Vector),
                f("sparse", DataType::SparseFloatVector),
            ],
            ..Default::default()
        };
        let row = |n: u8| -> Row {
            [
                ("half", Value::Float16Vector(vec![n, 1, 2, 3])),
                ("brain", Value::BFloat16Vector(vec![n, 4, 5, 6])),
                (
                    "sparse",
                    Value::SparseVector(vec![(u32::from(n), 1), (70, 2)]),
                ),
            ]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v))
            .collect()
        };
        let rows = vec![row(1), row(2)];
        let columns = to_columns(&schema, &rows).unwrap();
        assert_eq!(from_columns(columns).unwrap(), rows);
    }

    #[test]
    fn rows_without_a_value_survive_their_columns() {
        let n = FieldSchema {
            name: "n".into(),
            data_type: DataType::Int64.into(),
            nullable: true,
            ..Default::default()
        };
        let schema = CollectionSchema {
            fields: vec![n],
            ..Default::default()
        };
        for values in [vec![Some(1), None, Some(3)], vec![None, None]] {
            let rows: Vec<Row> = values
                .into_iter()
                .map(|n| Row::from([("n".to_owned(), n.map_or(Value::Null, Value::Int))]))
                .collect();
            let columns = to_columns(&schema, &rows).unwrap();
            assert_eq!(from_columns(columns).unwrap(), rows);
        }
    }

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
}
