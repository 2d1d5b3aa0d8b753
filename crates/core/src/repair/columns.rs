//! The columns of rows that come from outside, against the schema they are written under. Pure.
//!
//! A standby takes whatever columns a replicated insert has, and its nodes fail on what does not fit. So nothing is sent
//! that is not each field once, of its own type, with a value for every row.

use std::collections::BTreeSet;

use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::vector_field::Data as Vectors;
use milvus::proto::schema::{
    ArrayArray, BoolArray, CollectionSchema, DataType, DoubleArray, FieldData, FieldSchema,
    FloatArray, IntArray, JsonArray, LongArray, ScalarField, StringArray,
};

use super::Keys;
use crate::snapshot::pick;

/// Fields of the user, and `$meta`; not those of the system.
fn fields(schema: &CollectionSchema) -> impl Iterator<Item = &FieldSchema> {
    schema.fields.iter().filter(|f| f.field_id >= 100)
}

/// The columns as an insert has them, with the ids of the schema's fields.
///
/// # Errors
/// Names the field, what it has and what it should.
pub(crate) fn fit(
    schema: &CollectionSchema,
    columns: &[FieldData],
    rows: usize,
) -> Result<Vec<FieldData>, String> {
    let known: BTreeSet<&str> = fields(schema).map(|f| f.name.as_str()).collect();
    if let Some(other) = columns
        .iter()
        .find(|c| !known.contains(c.field_name.as_str()))
    {
        let known: Vec<&str> = known.into_iter().collect();
        return Err(format!(
            "{:?} is no field of the collection; its fields are {}",
            other.field_name,
            known.join(", ")
        ));
    }
    fields(schema)
        .map(|field| {
            let mut of_it = columns.iter().filter(|c| c.field_name == field.name);
            let (column, more) = (of_it.next(), of_it.count());
            let column = column
                .filter(|_| more == 0)
                .ok_or_else(|| format!("{}: one column of it expected", field.name))?;
            let at = |why: String| format!("{}: {why}", field.name);
            let column = whole(field, column, rows).map_err(at)?;
            let found = values(field, &column).map_err(at)?;
            if found != rows {
                return Err(at(format!("{found} values for {rows} rows")));
            }
            Ok(FieldData {
                r#type: field.data_type,
                field_id: field.field_id,
                is_dynamic: field.is_dynamic,
                ..column
            })
        })
        .collect()
}

/// A column with a value for each row, as a message of the log has it, also where there is none: what stands there is of
/// its field's type.
fn whole(field: &FieldSchema, column: &FieldData, rows: usize) -> Result<FieldData, String> {
    let scalars = match &column.field {
        Some(Field::Scalars(scalars)) => scalars,
        _ if column.valid_data.is_empty() => return Ok(column.clone()),
        _ => return Err("vectors that may be null are not copied by this version".to_owned()),
    };
    let valid = match column.valid_data.len() {
        0 => &scalars.valid_data,
        _ => &column.valid_data,
    };
    if valid.is_empty() {
        return Ok(column.clone());
    }
    if valid.len() != rows {
        return Err(format!("{} are null or not, of {rows} rows", valid.len()));
    }
    if !field.nullable && valid.contains(&false) {
        return Err("a value expected for every row".to_owned());
    }
    let every: Vec<usize> = (0..rows).collect();
    let mut whole = pick(column, &every)?;
    if let Some(Field::Scalars(scalars)) = &mut whole.field
        && scalars.data.is_none()
    {
        scalars.data = blank(field.data_type(), field.element_type(), rows);
    }
    if !field.nullable {
        whole.valid_data.clear();
    }
    Ok(whole)
}

/// What stands in a message where all values are null.
fn blank(kind: DataType, element: DataType, rows: usize) -> Option<Data> {
    Some(match kind {
        DataType::Bool => Data::BoolData(BoolArray {
            data: vec![false; rows],
        }),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Data::IntData(IntArray {
            data: vec![0; rows],
        }),
        DataType::Int64 => Data::LongData(LongArray {
            data: vec![0; rows],
        }),
        DataType::Float => Data::FloatData(FloatArray {
            data: vec![0.; rows],
        }),
        DataType::Double => Data::DoubleData(DoubleArray {
            data: vec![0.; rows],
        }),
        DataType::VarChar => Data::StringData(StringArray {
            data: vec![String::new(); rows],
        }),
        DataType::Json => Data::JsonData(JsonArray {
            data: vec![Vec::new(); rows],
        }),
        DataType::Array => Data::ArrayData(ArrayArray {
            data: vec![ScalarField::default(); rows],
            element_type: element.into(),
        }),
        _ => return None,
    })
}

/// How many values of its field's type a column has.
fn values(field: &FieldSchema, column: &FieldData) -> Result<usize, String> {
    let kind = field.data_type();
    match &column.field {
        Some(Field::Scalars(scalars)) if column.valid_data.is_empty() => {
            scalar_values(kind, field.element_type(), scalars)
        }
        Some(Field::Scalars(_)) => {
            // What stands in the place of a null is not a value.
            let valid = column.valid_data.iter().enumerate();
            let shown: Vec<usize> = valid.filter(|(_, is)| **is).map(|(row, _)| row).collect();
            let mut bare = column.clone();
            bare.valid_data.clear();
            if let Some(Field::Scalars(shown)) = &pick(&bare, &shown)?.field {
                scalar_values(kind, field.element_type(), shown)?;
            }
            Ok(column.valid_data.len())
        }
        Some(Field::Vectors(vectors)) => {
            let dim = field.type_params.iter().find(|p| p.key == "dim");
            let dim = dim.and_then(|p| p.value.parse::<usize>().ok());
            let of = |length: usize, width: Option<usize>| match width {
                Some(width) if width > 0 && length.is_multiple_of(width) => Ok(length / width),
                _ => Err(format!("{length} are no vectors of {dim:?} dimensions")),
            };
            if !vectors.valid_data.is_empty() {
                return Err("vectors that may be null are not copied by this version".to_owned());
            }
            match (kind, vectors.data.as_ref()) {
                (DataType::FloatVector, Some(Vectors::FloatVector(v))) => of(v.data.len(), dim),
                (DataType::BinaryVector, Some(Vectors::BinaryVector(v))) => {
                    of(v.len(), dim.map(|d| d / 8))
                }
                (DataType::Float16Vector, Some(Vectors::Float16Vector(v)))
                | (DataType::BFloat16Vector, Some(Vectors::Bfloat16Vector(v))) => {
                    of(v.len(), dim.map(|d| 2 * d))
                }
                (DataType::SparseFloatVector, Some(Vectors::SparseFloatVector(v))) => {
                    match v.contents.iter().find(|row| !row.len().is_multiple_of(8)) {
                        None => Ok(v.contents.len()),
                        Some(row) => Err(format!("{} bytes are no sparse vector", row.len())),
                    }
                }
                (kind, _) => Err(format!("values of {kind:?} expected")),
            }
        }
        _ => Err(format!("values of {kind:?} expected")),
    }
}

fn scalar_values(kind: DataType, element: DataType, of: &ScalarField) -> Result<usize, String> {
    let within =
        |data: &[i32], low: i32, high: i32| match data.iter().find(|v| !(low..=high).contains(v)) {
            None => Ok(data.len()),
            Some(v) => Err(format!("{v} is no {kind:?}: {low} to {high} expected")),
        };
    match (kind, of.data.as_ref()) {
        (DataType::Bool, Some(Data::BoolData(a))) => Ok(a.data.len()),
        (DataType::Int8, Some(Data::IntData(a))) => within(&a.data, i8::MIN.into(), i8::MAX.into()),
        (DataType::Int16, Some(Data::IntData(a))) => {
            within(&a.data, i16::MIN.into(), i16::MAX.into())
        }
        (DataType::Int32, Some(Data::IntData(a))) => Ok(a.data.len()),
        (DataType::Int64, Some(Data::LongData(a))) => Ok(a.data.len()),
        (DataType::Float, Some(Data::FloatData(a))) => Ok(a.data.len()),
        (DataType::Double, Some(Data::DoubleData(a))) => Ok(a.data.len()),
        (DataType::VarChar, Some(Data::StringData(a))) => Ok(a.data.len()),
        (DataType::Json, Some(Data::JsonData(a))) => {
            let is_json =
                |j: &&Vec<u8>| serde_json::from_slice::<serde::de::IgnoredAny>(j).is_err();
            match a.data.iter().find(is_json) {
                None => Ok(a.data.len()),
                Some(bytes) => Err(format!("{} bytes are no JSON", bytes.len())),
            }
        }
        (DataType::Array, Some(Data::ArrayData(a))) => {
            for row in &a.data {
                // One without elements has no kind.
                let is_empty = row.data.is_none();
                if !is_empty {
                    scalar_values(element, DataType::None, row)?;
                }
            }
            Ok(a.data.len())
        }
        (kind, _) => Err(format!("values of {kind:?} expected")),
    }
}

/// The integers or strings of a field.
pub(crate) fn column(columns: &[FieldData], name: &str) -> Option<Keys> {
    let of = columns.iter().find(|c| c.field_name == name)?;
    let Some(Field::Scalars(scalars)) = &of.field else {
        return None;
    };
    match scalars.data.as_ref()? {
        Data::LongData(a) => Some(Keys::Int(a.data.clone())),
        Data::StringData(a) => Some(Keys::Str(a.data.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use milvus::proto::common::KeyValuePair;
    use milvus::proto::schema::VectorField;

    use super::*;

    fn field(id: i64, name: &str, kind: DataType) -> FieldSchema {
        FieldSchema {
            field_id: id,
            name: name.to_owned(),
            data_type: kind.into(),
            type_params: vec![KeyValuePair {
                key: "dim".to_owned(),
                value: "2".to_owned(),
            }],
            element_type: DataType::VarChar.into(),
            is_dynamic: name == "$meta",
            ..Default::default()
        }
    }

    fn schema() -> CollectionSchema {
        CollectionSchema {
            fields: vec![
                field(0, "RowID", DataType::Int64),
                field(100, "pk", DataType::Int64),
                field(101, "small", DataType::Int8),
                field(102, "tags", DataType::Array),
                field(103, "v", DataType::FloatVector),
                field(104, "$meta", DataType::Json),
            ],
            ..Default::default()
        }
    }

    fn scalars(data: Data) -> Field {
        Field::Scalars(ScalarField {
            data: Some(data),
            ..Default::default()
        })
    }

    fn of(name: &str, field: Field) -> FieldData {
        FieldData {
            field_name: name.to_owned(),
            field: Some(field),
            ..Default::default()
        }
    }

    fn floats(data: Vec<f32>) -> Field {
        Field::Vectors(VectorField {
            dim: 2,
            data: Some(Vectors::FloatVector(FloatArray { data })),
            ..Default::default()
        })
    }

    /// Two rows that fit.
    fn good() -> Vec<FieldData> {
        let tags = ScalarField {
            data: Some(Data::StringData(StringArray {
                data: vec!["a".to_owned()],
            })),
            ..Default::default()
        };
        vec![
            of("v", floats(vec![1., 2., 3., 4.])),
            of(
                "$meta",
                scalars(Data::JsonData(JsonArray {
                    data: vec![b"{}".to_vec(), b"{\"a\":1}".to_vec()],
                })),
            ),
            of(
                "small",
                scalars(Data::IntData(IntArray {
                    data: vec![-128, 127],
                })),
            ),
            of(
                "pk",
                scalars(Data::LongData(LongArray { data: vec![7, 9] })),
            ),
            of(
                "tags",
                scalars(Data::ArrayData(ArrayArray {
                    data: vec![tags, ScalarField::default()],
                    element_type: DataType::VarChar.into(),
                })),
            ),
        ]
    }

    #[test]
    fn columns_that_fit_get_the_fields_ids_in_the_schemas_order() {
        let fitted = fit(&schema(), &good(), 2).unwrap();
        let ids: Vec<i64> = fitted.iter().map(|c| c.field_id).collect();
        assert_eq!(ids, [100, 101, 102, 103, 104]);
        assert!(fitted[4].is_dynamic && !fitted[0].is_dynamic);
        assert_eq!(column(&fitted, "pk"), Some(Keys::Int(vec![7, 9])));
        assert_eq!(column(&fitted, "v"), None);
    }

    #[test]
    fn values_that_may_be_null_have_one_for_each_row() {
        let mut schema = schema();
        for field in &mut schema.fields {
            field.nullable = matches!(field.name.as_str(), "small" | "$meta" | "tags");
        }
        let fitted = |columns: &[FieldData]| fit(&schema, columns, 2);
        let with = |place: usize, field: Option<Field>, valid: &[bool]| {
            let mut all = good();
            all[place].valid_data = valid.to_vec();
            if field.is_some() {
                all[place].field = field;
            }
            all
        };
        // Nothing is null.
        assert_eq!(fitted(&good()).unwrap()[1].valid_data, [] as [bool; 0]);
        // Only the value that is there, and none at all.
        let json = |data: Vec<Vec<u8>>| Some(scalars(Data::JsonData(JsonArray { data })));
        let some = fitted(&with(1, json(vec![b"{}".to_vec()]), &[false, true])).unwrap();
        let both = vec![Vec::new(), b"{}".to_vec()];
        assert_eq!(
            (some[4].field.clone(), some[4].valid_data.clone()),
            (json(both), vec![false, true])
        );
        let none = Some(Field::Scalars(ScalarField::default()));
        let none = fitted(&with(2, none, &[false, false])).unwrap();
        let zeros = scalars(Data::IntData(IntArray { data: vec![0, 0] }));
        assert_eq!(
            (none[1].field.clone(), none[1].valid_data.clone()),
            (Some(zeros), vec![false, false])
        );
        // What is there is looked at.
        let bad = fitted(&with(
            1,
            json(vec![b"{".to_vec(), Vec::new()]),
            &[true, false],
        ));
        assert_eq!(bad.unwrap_err(), "$meta: 1 bytes are no JSON");
        let few = fitted(&with(2, None, &[true])).unwrap_err();
        assert_eq!(few, "small: 1 are null or not, of 2 rows");
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_field() {
        let with = |name: &str, field: Field| {
            let mut all = good();
            all.retain(|c| c.field_name != name);
            all.push(of(name, field));
            all
        };
        let longs = |data: Vec<i64>| scalars(Data::LongData(LongArray { data }));
        let ints = |data: Vec<i32>| scalars(Data::IntData(IntArray { data }));
        let mut twice = good();
        twice.push(of("pk", longs(vec![7, 9])));
        let mut maybe = good();
        maybe[0].valid_data = vec![true, false];
        let mut absent = good();
        absent[2].valid_data = vec![true, false];
        let json = JsonArray {
            data: vec![b"{".to_vec(); 2],
        };
        let inner = ScalarField {
            data: Some(Data::LongData(LongArray { data: vec![1] })),
            ..Default::default()
        };
        let array = ArrayArray {
            data: vec![inner; 2],
            element_type: DataType::VarChar.into(),
        };
        for (columns, words) in [
            (good()[1..].to_vec(), "v: one column of it expected"),
            (twice, "pk: one column of it expected"),
            (with("pk", longs(vec![7])), "pk: 1 values for 2 rows"),
            (with("pk", ints(vec![7, 9])), "pk: values of Int64 expected"),
            (
                with("small", ints(vec![1, 128])),
                "small: 128 is no Int8: -128 to 127 expected",
            ),
            (
                with("v", floats(vec![1., 2., 3.])),
                "v: 3 are no vectors of Some(2) dimensions",
            ),
            (with("v", longs(vec![1, 2])), "v: values of FloatVector"),
            (
                with("$meta", scalars(Data::JsonData(json))),
                "$meta: 1 bytes are no JSON",
            ),
            (
                with("tags", scalars(Data::ArrayData(array))),
                "tags: values of VarChar expected",
            ),
            (
                with("more", longs(vec![1, 2])),
                "\"more\" is no field of the collection; its fields are $meta, pk, small, tags, v",
            ),
            (maybe, "v: vectors that may be null"),
            (absent, "small: a value expected for every row"),
        ] {
            let why = fit(&schema(), &columns, 2).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
