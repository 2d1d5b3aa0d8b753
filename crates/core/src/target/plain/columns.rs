//! Columns as an Insert call takes them, from those of messages of the log. Pure.
//!
//! Columns of several messages become one without being decoded: in protobuf, bytes of one message behind those of
//! another are the merge of both, and to merge is to append for everything repeated. It is not for what a vector of
//! bytes has; these columns are decoded.

use bytes::{BufMut, Bytes, BytesMut};
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::vector_field::Data as Vectors;
use milvus::proto::schema::{DataType, FieldData};
use prost::Message as _;

use crate::decode::wire::{Fields, Value};

/// What has to be alike for columns to become one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head<'a> {
    name: &'a str,
    kind: i32,
    dynamic: bool,
    /// It says which of its values are null.
    nullable: bool,
}

/// FieldData: 1 type, 2 field_name, 3 scalars, 4 vectors, 5 field_id, 6 is_dynamic, 7 valid_data.
pub(super) fn head(column: &[u8]) -> Result<Head<'_>, String> {
    let mut head = Head {
        name: "",
        kind: 0,
        dynamic: false,
        nullable: false,
    };
    for field in Fields::of(column) {
        let field = field.map_err(|e| format!("a column: {e}"))?;
        match field.number {
            1 => head.kind = field.varint() as i32,
            2 => head.name = field.text(),
            6 => head.dynamic = field.varint() != 0,
            7 => head.nullable = true,
            _ => {}
        }
    }
    Ok(head)
}

impl Head<'_> {
    fn is_of_bytes(&self) -> bool {
        [
            DataType::BinaryVector,
            DataType::Float16Vector,
            DataType::BFloat16Vector,
            DataType::Int8Vector,
        ]
        .iter()
        .any(|kind| *kind as i32 == self.kind)
    }
}

/// The columns of several messages as those of one; all have the same ones, in the same order.
pub(super) fn merged(messages: &[&[Bytes]]) -> Result<Vec<Bytes>, String> {
    let Some((first, others)) = messages.split_first() else {
        return Ok(Vec::new());
    };
    let column = |(at, column): (usize, &Bytes)| {
        if others.is_empty() {
            return Ok(column.clone());
        }
        let parts = messages.iter().filter_map(|m| m.get(at));
        if head(column)?.is_of_bytes() {
            return vectors_of_bytes(parts);
        }
        let size = parts.clone().map(Bytes::len).sum();
        let mut all = BytesMut::with_capacity(size);
        parts.for_each(|part| all.put_slice(part));
        Ok(all.freeze())
    };
    first.iter().enumerate().map(column).collect()
}

fn vectors_of_bytes<'a>(parts: impl Iterator<Item = &'a Bytes>) -> Result<Bytes, String> {
    let mut all: Option<FieldData> = None;
    for part in parts {
        let part = FieldData::decode(part.clone()).map_err(|e| e.to_string())?;
        let Some(all) = &mut all else {
            all = Some(part);
            continue;
        };
        all.valid_data.extend_from_slice(&part.valid_data);
        let (Some(Field::Vectors(to)), Some(Field::Vectors(from))) = (&mut all.field, part.field)
        else {
            return Err(format!("column {} has no vectors", part.field_name));
        };
        match (&mut to.data, from.data) {
            (Some(Vectors::BinaryVector(to)), Some(Vectors::BinaryVector(from)))
            | (Some(Vectors::Float16Vector(to)), Some(Vectors::Float16Vector(from)))
            | (Some(Vectors::Bfloat16Vector(to)), Some(Vectors::Bfloat16Vector(from)))
            | (Some(Vectors::Int8Vector(to)), Some(Vectors::Int8Vector(from))) => to.extend(from),
            _ => return Err(format!("column {} has other vectors", part.field_name)),
        }
    }
    Ok(all.unwrap_or_default().encode_to_vec().into())
}

/// The columns that the call takes. A message of the log has a value for each row, also for those that are null; the
/// call takes those that are not (Milvus 2.5 and later).
pub(super) fn taken(
    columns: Vec<Bytes>,
    leave_out: impl Fn(&str) -> bool,
) -> Result<Vec<Bytes>, String> {
    let mut taken = Vec::with_capacity(columns.len());
    for column in columns {
        let head = head(&column)?;
        // The two columns that every segment has of its own are no fields to a client.
        let system = matches!(head.name, "RowID" | "Timestamp");
        if system || leave_out(head.name) {
            continue;
        }
        taken.push(if head.nullable && has_null(&column) {
            compact(&column)?
        } else {
            column
        });
    }
    Ok(taken)
}

fn has_null(column: &[u8]) -> bool {
    let valid = Fields::of(column).flatten().filter(|f| f.number == 7);
    valid.into_iter().any(|f| match f.value {
        Value::Bytes(packed) => packed.contains(&0),
        _ => f.varint() == 0,
    })
}

/// Without the values of rows that are null.
fn compact(column: &[u8]) -> Result<Bytes, String> {
    let mut data = FieldData::decode(column).map_err(|e| e.to_string())?;
    let valid = data.valid_data.clone();
    let Some(Field::Scalars(scalars)) = &mut data.field else {
        return Err(format!("column {} has null vectors", data.field_name));
    };
    fn keep<T>(values: &mut Vec<T>, valid: &[bool]) {
        // Compact already, as a client may have sent it.
        if values.len() != valid.len() {
            return;
        }
        let mut valid = valid.iter();
        values.retain(|_| valid.next().copied().unwrap_or(true));
    }
    match &mut scalars.data {
        Some(Data::BoolData(v)) => keep(&mut v.data, &valid),
        Some(Data::IntData(v)) => keep(&mut v.data, &valid),
        Some(Data::LongData(v)) => keep(&mut v.data, &valid),
        Some(Data::FloatData(v)) => keep(&mut v.data, &valid),
        Some(Data::DoubleData(v)) => keep(&mut v.data, &valid),
        Some(Data::StringData(v)) => keep(&mut v.data, &valid),
        Some(Data::BytesData(v)) => keep(&mut v.data, &valid),
        Some(Data::ArrayData(v)) => keep(&mut v.data, &valid),
        Some(Data::JsonData(v)) => keep(&mut v.data, &valid),
        None => {}
        Some(_) => {
            let name = &data.field_name;
            return Err(format!(
                "column {name} has null values of a type that is not known"
            ));
        }
    }
    Ok(data.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use milvus::proto::schema::{FloatArray, LongArray, ScalarField, StringArray, VectorField};
    use proptest::prelude::*;

    use super::*;

    fn longs(name: &str, data: &[i64]) -> FieldData {
        FieldData {
            r#type: DataType::Int64.into(),
            field_name: name.to_owned(),
            field_id: 100,
            field: Some(Field::Scalars(ScalarField {
                data: Some(Data::LongData(LongArray {
                    data: data.to_vec(),
                })),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn vectors(kind: DataType, dim: i64, data: Vectors) -> FieldData {
        FieldData {
            r#type: kind.into(),
            field_name: "vec".to_owned(),
            field_id: 101,
            field: Some(Field::Vectors(VectorField {
                dim,
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn bytes(columns: &[FieldData]) -> Vec<Bytes> {
        columns.iter().map(|c| c.encode_to_vec().into()).collect()
    }

    fn read(columns: &[Bytes]) -> Vec<FieldData> {
        let read = columns.iter().map(|c| FieldData::decode(c.clone()));
        read.collect::<Result<_, _>>().unwrap()
    }

    proptest! {
        /// Whatever rows there are: merged columns read as the columns of all rows.
        #[test]
        fn merged_columns_are_those_of_all_rows(
            rows in prop::collection::vec(prop::collection::vec(
                (any::<i64>(), ".{0,4}", any::<[f32; 3]>(), any::<[u8; 2]>()), 1..5), 1..5),
        ) {
            let columns = |rows: &[(i64, String, [f32; 3], [u8; 2])]| {
                let floats = rows.iter().flat_map(|r| r.2).collect();
                let binary = rows.iter().flat_map(|r| r.3).collect();
                let texts = rows.iter().map(|r| r.1.clone()).collect();
                let keys: Vec<i64> = rows.iter().map(|r| r.0).collect();
                vec![
                    longs("pk", &keys),
                    FieldData {
                        r#type: DataType::VarChar.into(),
                        field_name: "text".to_owned(),
                        field_id: 102,
                        field: Some(Field::Scalars(ScalarField {
                            data: Some(Data::StringData(StringArray { data: texts })),
                            ..Default::default()
                        })),
                        ..Default::default()
                    },
                    vectors(DataType::FloatVector, 3, Vectors::FloatVector(FloatArray { data: floats })),
                    vectors(DataType::BinaryVector, 16, Vectors::BinaryVector(binary)),
                ]
            };
            let parts: Vec<Vec<Bytes>> = rows.iter().map(|r| bytes(&columns(r))).collect();
            let parts: Vec<&[Bytes]> = parts.iter().map(Vec::as_slice).collect();
            let all: Vec<_> = rows.concat();
            let merged = read(&merged(&parts).unwrap());
            // NaN is not equal to itself: what is compared is what is sent.
            prop_assert_eq!(bytes(&merged), bytes(&columns(&all)));
        }
    }

    #[test]
    fn null_values_and_what_the_target_computes_are_left_out() {
        let mut nullable = longs("n", &[1, 0, 3]);
        nullable.valid_data = vec![true, false, true];
        let mut whole = longs("w", &[1, 2]);
        whole.valid_data = vec![true, true];
        let columns = bytes(&[
            longs("RowID", &[9]),
            nullable.clone(),
            longs("bm25", &[1]),
            whole.clone(),
        ]);
        let taken = taken(columns, |name| name == "bm25").unwrap();
        let mut compacted = longs("n", &[1, 3]);
        compacted.valid_data = nullable.valid_data;
        assert_eq!(read(&taken), [compacted, whole]);
    }
}
