//! Columns of an answer, cut to some of their rows. Pure.

use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::vector_field::Data as Vectors;
use milvus::proto::schema::{FieldData, ScalarField, VectorField};
use prost::Message as _;

/// The rows of a column at these places, each of which it has. Scalars that may be null come out with a value for each
/// row, as the log has them, whatever stands where there is none.
///
/// # Errors
/// It has not all of them, or is of a type that cannot be cut.
pub(crate) fn pick(column: &FieldData, rows: &[usize]) -> Result<FieldData, String> {
    let name = &column.field_name;
    let (field, valid) = match &column.field {
        Some(Field::Scalars(scalars)) => {
            // The newer protos have it in here.
            let valid = match column.valid_data.as_slice() {
                [] => scalars.valid_data.as_slice(),
                valid => valid,
            };
            let places = places(valid, count(scalars), rows);
            let data = match (&scalars.data, valid.contains(&true)) {
                // Of values that are all null some servers send none.
                (None, false) if !valid.is_empty() => None,
                _ => Some(pick_scalars(scalars, &places).ok_or_else(|| unknown(name))??),
            };
            let valid = if valid.is_empty() {
                Vec::new()
            } else {
                at(valid, 1, &every(rows))?
            };
            let scalars = ScalarField {
                data,
                ..Default::default()
            };
            (Field::Scalars(scalars), valid)
        }
        Some(Field::Vectors(vectors))
            if vectors.valid_data.is_empty() && column.valid_data.is_empty() =>
        {
            let vectors = VectorField {
                dim: vectors.dim,
                data: Some(pick_vectors(name, vectors, &every(rows))?),
                ..Default::default()
            };
            (Field::Vectors(vectors), Vec::new())
        }
        Some(Field::Vectors(_)) => {
            return Err(format!(
                "{name}: vectors that may be null are not copied by this version"
            ));
        }
        _ => return Err(unknown(name)),
    };
    Ok(FieldData {
        field: Some(field),
        valid_data: valid,
        ..head(column)
    })
}

fn every(rows: &[usize]) -> Vec<Option<usize>> {
    rows.iter().copied().map(Some).collect()
}

/// Where the values of these rows stand in a column of `values` values; `None`: nowhere, for it is null. An answer may
/// have a value for each row, or only for those that are not null.
fn places(valid: &[bool], values: usize, rows: &[usize]) -> Vec<Option<usize>> {
    if valid.len() == values {
        return every(rows);
    }
    let mut before = 0;
    let compact: Vec<Option<usize>> = valid
        .iter()
        .map(|is| {
            before += usize::from(*is);
            is.then(|| before - 1)
        })
        .collect();
    // One behind the end is not there, which is said.
    let place = |row: &usize| compact.get(*row).copied().unwrap_or(Some(*row));
    rows.iter().map(place).collect()
}

fn count(of: &ScalarField) -> usize {
    match &of.data {
        Some(Data::BoolData(v)) => v.data.len(),
        Some(Data::IntData(v)) => v.data.len(),
        Some(Data::LongData(v)) => v.data.len(),
        Some(Data::FloatData(v)) => v.data.len(),
        Some(Data::DoubleData(v)) => v.data.len(),
        Some(Data::StringData(v)) => v.data.len(),
        Some(Data::BytesData(v)) => v.data.len(),
        Some(Data::ArrayData(v)) => v.data.len(),
        Some(Data::JsonData(v)) => v.data.len(),
        _ => 0,
    }
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

fn at<T: Clone + Default>(
    values: &[T],
    width: usize,
    rows: &[Option<usize>],
) -> Result<Vec<T>, String> {
    let mut picked = Vec::new();
    for row in rows {
        let Some(row) = row else {
            picked.resize(picked.len() + width, T::default());
            continue;
        };
        let from = row.checked_mul(width);
        let range = from.and_then(|from| Some(from..from.checked_add(width)?));
        let values = range.and_then(|range| values.get(range));
        picked.extend_from_slice(values.ok_or("an answer's columns have different lengths")?);
    }
    Ok(picked)
}

fn pick_scalars(from: &ScalarField, rows: &[Option<usize>]) -> Option<Result<Data, String>> {
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

fn pick_vectors(name: &str, from: &VectorField, rows: &[Option<usize>]) -> Result<Vectors, String> {
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
    fn nulls_are_kept_whether_or_not_something_stands_in_their_place() {
        let longs = |data: &[i64]| scalars("n", Data::LongData(LongArray { data: data.into() }));
        let valid = vec![false, true, false, true];
        let [mut dense, mut compact] = [longs(&[0, 5, 0, 7]), longs(&[5, 7])];
        dense.valid_data.clone_from(&valid);
        compact.valid_data.clone_from(&valid);
        // As the newest protos have it.
        let mut inner = longs(&[5, 7]);
        if let Some(Field::Scalars(scalars)) = &mut inner.field {
            scalars.valid_data = valid;
        }
        let mut wanted = longs(&[7, 0, 5]);
        wanted.valid_data = vec![true, false, true];
        for column in [dense, compact, inner] {
            assert_eq!(pick(&column, &[3, 2, 1]).unwrap(), wanted);
        }
        // None at all, without a type.
        let mut none = longs(&[]);
        none.field = Some(Field::Scalars(ScalarField::default()));
        none.valid_data = vec![false; 3];
        assert_eq!(pick(&none, &[0, 2]).unwrap().valid_data, [false, false]);
    }

    #[test]
    fn what_is_not_there_is_an_error_and_no_panic() {
        let row: Row = (1, String::new(), [0.; 3], [0; 2], vec![]);
        for column in columns(&[&row]) {
            assert!(pick(&column, &[1]).is_err(), "{column:?}");
        }
        let mut maybe = columns(&[&row]).remove(2);
        maybe.valid_data = vec![false];
        assert!(pick(&maybe, &[0]).unwrap_err().contains("null"));
        let mut maybe = columns(&[&row]).remove(0);
        maybe.valid_data = vec![true];
        assert!(pick(&maybe, &[1]).is_err());
        maybe.valid_data = vec![true, true];
        assert!(pick(&maybe, &[1]).is_err(), "one value for two rows");
        assert!(pick(&FieldData::default(), &[0]).is_err());
    }
}
