//! Columns of an answer, cut to some of their rows. Pure.

use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::vector_field::Data as Vectors;
use milvus::proto::schema::{FieldData, ScalarField, VectorField};
use prost::Message as _;

/// The rows of a column at these places, each of which it has.
///
/// # Errors
/// It has not all of them, or is of a type that cannot be cut.
pub(crate) fn pick(column: &FieldData, rows: &[usize]) -> Result<FieldData, String> {
    let name = &column.field_name;
    if !column.valid_data.is_empty() {
        return Err(format!(
            "{name}: fields that may be null are not copied by this version"
        ));
    }
    let field = match &column.field {
        Some(Field::Scalars(scalars)) if scalars.valid_data.is_empty() => {
            Field::Scalars(ScalarField {
                data: Some(pick_scalars(scalars, rows).ok_or_else(|| unknown(name))??),
                ..Default::default()
            })
        }
        Some(Field::Vectors(vectors)) if vectors.valid_data.is_empty() => {
            Field::Vectors(VectorField {
                dim: vectors.dim,
                data: Some(pick_vectors(name, vectors, rows)?),
                ..Default::default()
            })
        }
        Some(Field::Scalars(_) | Field::Vectors(_)) => {
            return Err(format!(
                "{name}: fields that may be null are not copied by this version"
            ));
        }
        _ => return Err(unknown(name)),
    };
    Ok(FieldData {
        field: Some(field),
        ..head(column)
    })
}

/// Bytes that columns take on their way.
pub(crate) fn bytes_of(columns: &[FieldData]) -> usize {
    columns.iter().map(FieldData::encoded_len).sum()
}

fn head(column: &FieldData) -> FieldData {
    FieldData {
        r#type: column.r#type,
        field_name: column.field_name.clone(),
        field_id: column.field_id,
        is_dynamic: column.is_dynamic,
        ..Default::default()
    }
}

fn unknown(name: &str) -> String {
    format!("{name}: values of a type that cannot be copied by this version")
}

fn at<T: Clone>(values: &[T], width: usize, rows: &[usize]) -> Result<Vec<T>, String> {
    let mut picked = Vec::new();
    for row in rows {
        let from = row.checked_mul(width);
        let range = from.and_then(|from| Some(from..from.checked_add(width)?));
        let values = range.and_then(|range| values.get(range));
        picked.extend_from_slice(values.ok_or("an answer's columns have different lengths")?);
    }
    Ok(picked)
}

fn pick_scalars(from: &ScalarField, rows: &[usize]) -> Option<Result<Data, String>> {
    macro_rules! of {
        ($kind:ident, $values:expr) => {{
            let values = $values;
            let mut picked = values.clone();
            at(&values.data, 1, rows).map(|data| {
                picked.data = data;
                Data::$kind(picked)
            })
        }};
    }
    Some(match from.data.as_ref()? {
        Data::BoolData(v) => of!(BoolData, v),
        Data::IntData(v) => of!(IntData, v),
        Data::LongData(v) => of!(LongData, v),
        Data::FloatData(v) => of!(FloatData, v),
        Data::DoubleData(v) => of!(DoubleData, v),
        Data::StringData(v) => of!(StringData, v),
        Data::BytesData(v) => of!(BytesData, v),
        Data::ArrayData(v) => of!(ArrayData, v),
        Data::JsonData(v) => of!(JsonData, v),
        _ => return None,
    })
}

fn pick_vectors(name: &str, from: &VectorField, rows: &[usize]) -> Result<Vectors, String> {
    let dim = usize::try_from(from.dim).unwrap_or_default();
    Ok(match from.data.as_ref().ok_or_else(|| unknown(name))? {
        Vectors::FloatVector(v) => {
            let data = at(&v.data, dim, rows)?;
            Vectors::FloatVector(milvus::proto::schema::FloatArray { data })
        }
        Vectors::BinaryVector(v) => Vectors::BinaryVector(at(v, dim / 8, rows)?),
        Vectors::Float16Vector(v) => Vectors::Float16Vector(at(v, 2 * dim, rows)?),
        Vectors::Bfloat16Vector(v) => Vectors::Bfloat16Vector(at(v, 2 * dim, rows)?),
        Vectors::Int8Vector(v) => Vectors::Int8Vector(at(v, dim, rows)?),
        Vectors::SparseFloatVector(v) => {
            Vectors::SparseFloatVector(milvus::proto::schema::SparseFloatArray {
                contents: at(&v.contents, 1, rows)?,
                dim: v.dim,
            })
        }
        _ => return Err(unknown(name)),
    })
}

#[cfg(test)]
mod tests {
    use milvus::proto::schema::{FloatArray, LongArray, StringArray};
    use proptest::prelude::*;

    use super::*;

    fn scalars(name: &str, data: Data) -> FieldData {
        FieldData {
            field_name: name.to_owned(),
            field: Some(Field::Scalars(ScalarField {
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn vectors(name: &str, dim: i64, data: Vectors) -> FieldData {
        FieldData {
            field_name: name.to_owned(),
            field: Some(Field::Vectors(VectorField {
                dim,
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    type Row = (i64, String, [f32; 3], [u8; 2], Vec<u8>);

    fn columns(rows: &[&Row]) -> Vec<FieldData> {
        let keys = rows.iter().map(|r| r.0).collect();
        let texts = rows.iter().map(|r| r.1.clone()).collect();
        let contents = rows.iter().map(|r| r.4.clone()).collect();
        vec![
            scalars("pk", Data::LongData(LongArray { data: keys })),
            scalars("t", Data::StringData(StringArray { data: texts })),
            vectors(
                "f",
                3,
                Vectors::FloatVector(FloatArray {
                    data: rows.iter().flat_map(|r| r.2).collect(),
                }),
            ),
            vectors(
                "b",
                16,
                Vectors::BinaryVector(rows.iter().flat_map(|r| r.3).collect()),
            ),
            vectors(
                "h",
                1,
                Vectors::Float16Vector(rows.iter().flat_map(|r| r.3).collect()),
            ),
            vectors(
                "i",
                2,
                Vectors::Int8Vector(rows.iter().flat_map(|r| r.3).collect()),
            ),
            vectors(
                "s",
                0,
                Vectors::SparseFloatVector(milvus::proto::schema::SparseFloatArray {
                    contents,
                    dim: 9,
                }),
            ),
        ]
    }

    proptest! {
        /// What is picked is what a column of these rows alone would be.
        #[test]
        fn picked_rows_are_those_rows(
            rows in prop::collection::vec(
                (any::<i64>(), ".{0,4}", prop::array::uniform3(-9f32..9.), any::<[u8; 2]>(), prop::collection::vec(any::<u8>(), 0..4)), 1..8),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let places: Vec<usize> = picks.iter().map(|p| p.index(rows.len())).collect();
            let all: Vec<&Row> = rows.iter().collect();
            let some: Vec<&Row> = places.iter().map(|p| &rows[*p]).collect();
            for (column, wanted) in columns(&all).iter().zip(columns(&some)) {
                prop_assert_eq!(pick(column, &places).unwrap(), wanted);
            }
        }
    }

    #[test]
    fn what_is_not_there_is_an_error_and_no_panic() {
        let row: Row = (1, String::new(), [0.; 3], [0; 2], vec![]);
        for column in columns(&[&row]) {
            assert!(pick(&column, &[1]).is_err(), "{column:?}");
        }
        let mut maybe = columns(&[&row]).remove(0);
        maybe.valid_data = vec![false];
        assert!(pick(&maybe, &[0]).unwrap_err().contains("null"));
        assert!(pick(&FieldData::default(), &[0]).is_err());
    }
}
