//! A row as 128 bits.

use ring::digest::{Context, SHA256};

use crate::client::{Row, Value};

/// The first half of a SHA-256 over a row's canonical bytes. Two different rows of one key have the same with a
/// probability of 2⁻¹²⁸, and nobody can make such rows on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowHash([u8; 16]);

impl RowHash {
    /// Of every field by name, in the order of the names, whatever order they were sent in. Floats and vectors count by
    /// their bits: NaN is equal to a NaN of the same bits, and −0.0 is not 0.0. JSON and dynamic fields count by their
    /// bytes.
    pub fn of(row: &Row) -> Self {
        let mut context = Context::new(&SHA256);
        let mut bytes = Vec::new();
        for (name, value) in row {
            bytes.clear();
            put_bytes(&mut bytes, name.as_bytes());
            put(&mut bytes, value);
            context.update(&bytes);
        }
        let mut half = [0; 16];
        for (to, from) in half.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(half)
    }
}

/// A kind, and a value with its length where that differs: no two rows have the same bytes.
fn put(to: &mut Vec<u8>, value: &Value) {
    let mut tagged = |tag: u8, bytes: &[u8]| {
        to.push(tag);
        to.extend_from_slice(bytes);
    };
    match value {
        Value::Null => tagged(0, &[]),
        Value::Bool(b) => tagged(1, &[u8::from(*b)]),
        Value::Int(i) => tagged(2, &i.to_le_bytes()),
        Value::Float(b) => tagged(3, &b.to_le_bytes()),
        Value::Double(b) => tagged(4, &b.to_le_bytes()),
        Value::Str(s) => put_tagged(to, 5, s.as_bytes()),
        Value::Json(j) => put_tagged(to, 6, j),
        Value::Array(all) => {
            to.push(7);
            put_length(to, all.len());
            for value in all {
                put(to, value);
            }
        }
        Value::FloatVector(v) => {
            to.push(8);
            put_length(to, v.len());
            v.iter()
                .for_each(|b| to.extend_from_slice(&b.to_le_bytes()));
        }
        Value::BinaryVector(v) => put_tagged(to, 9, v),
        Value::Float16Vector(v) => put_tagged(to, 10, v),
        Value::BFloat16Vector(v) => put_tagged(to, 11, v),
        Value::Int8Vector(v) => put_tagged(to, 12, v),
        Value::SparseVector(v) => {
            to.push(13);
            put_length(to, v.len());
            for (index, bits) in v {
                to.extend_from_slice(&index.to_le_bytes());
                to.extend_from_slice(&bits.to_le_bytes());
            }
        }
    }
}

fn put_tagged(to: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    to.push(tag);
    put_bytes(to, bytes);
}

fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    put_length(to, bytes.len());
    to.extend_from_slice(bytes);
}

fn put_length(to: &mut Vec<u8>, length: usize) {
    to.extend_from_slice(&(length as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use milvus::proto::schema::{
        FieldData, LongArray, ScalarField, StringArray, field_data, scalar_field,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::client::{META, from_columns};

    fn row(of: &[(&str, Value)]) -> Row {
        of.iter()
            .map(|(n, v)| ((*n).to_owned(), v.clone()))
            .collect()
    }

    #[test]
    fn the_order_in_which_fields_come_says_nothing() {
        let scalars = |name: &str, data| FieldData {
            field_name: name.to_owned(),
            field: Some(field_data::Field::Scalars(ScalarField {
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        };
        let a = scalars(
            "a",
            scalar_field::Data::LongData(LongArray { data: vec![1] }),
        );
        let b = scalars(
            "b",
            scalar_field::Data::StringData(StringArray {
                data: vec!["x".to_owned()],
            }),
        );
        let one = from_columns(vec![a.clone(), b.clone()]).unwrap();
        let other = from_columns(vec![b, a]).unwrap();
        assert_eq!(RowHash::of(&one[0]), RowHash::of(&other[0]));
    }

    #[test]
    fn every_kind_and_every_bit_counts() {
        let quiet = f32::from_bits(0x7fc0_0000);
        let other_nan = f32::from_bits(0x7fc0_0001);
        let all = [
            Value::Null,
            Value::Bool(false),
            Value::Bool(true),
            Value::Int(0),
            Value::Int(1),
            Value::float(0.0),
            Value::float(-0.0),
            Value::float(quiet),
            Value::float(other_nan),
            Value::double(0.0),
            Value::double(-0.0),
            Value::double(f64::NAN),
            Value::Str(String::new()),
            Value::Str("1".to_owned()),
            Value::Json(Vec::new()),
            Value::Json(b"1".to_vec()),
            Value::Json(b"1 ".to_vec()),
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1), Value::Int(2)]),
            Value::Array(vec![Value::Int(2), Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![Value::Int(1)]), Value::Int(2)]),
            Value::FloatVector(vec![0.0f32.to_bits(), quiet.to_bits()]),
            Value::FloatVector(vec![(-0.0f32).to_bits(), quiet.to_bits()]),
            Value::FloatVector(vec![0.0f32.to_bits(), other_nan.to_bits()]),
            Value::BinaryVector(vec![1, 2]),
            Value::Float16Vector(vec![1, 2]),
            Value::Float16Vector(vec![2, 1]),
            Value::BFloat16Vector(vec![1, 2]),
            Value::Int8Vector(vec![1, 2]),
            Value::SparseVector(vec![(1, 2)]),
            Value::SparseVector(vec![(2, 1)]),
            Value::SparseVector(vec![(1, 2), (2, 1)]),
        ];
        let hashes: BTreeSet<RowHash> = all
            .iter()
            .map(|v| RowHash::of(&row(&[("f", v.clone())])))
            .collect();
        assert_eq!(hashes.len(), all.len());
        // The same bits are equal, NaN too.
        let nan = || row(&[("f", Value::float(quiet))]);
        assert_eq!(RowHash::of(&nan()), RowHash::of(&nan()));
    }

    #[test]
    fn a_dynamic_value_counts_and_is_not_a_field_of_its_name() {
        let meta = |json: &str| row(&[(META, Value::Json(json.as_bytes().to_vec()))]);
        assert_ne!(
            RowHash::of(&meta(r#"{"x":1}"#)),
            RowHash::of(&meta(r#"{"x":2}"#))
        );
        assert_ne!(
            RowHash::of(&meta("1")),
            RowHash::of(&row(&[("x", Value::Json(b"1".to_vec()))]))
        );
    }

    #[test]
    fn a_name_does_not_run_into_its_value() {
        let text = |s: &str| Value::Str(s.to_owned());
        assert_ne!(
            RowHash::of(&row(&[("a", text("b")), ("c", text("d"))])),
            RowHash::of(&row(&[("a", text("bc")), ("", text("d"))]))
        );
        assert_ne!(
            RowHash::of(&row(&[("a", text("x")), ("b", text(""))])),
            RowHash::of(&row(&[("a", text("")), ("b", text("x"))]))
        );
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u32>().prop_map(Value::Float),
            any::<u64>().prop_map(Value::Double),
            ".{0,4}".prop_map(Value::Str),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Value::Json),
            prop::collection::vec(any::<u32>(), 0..4).prop_map(Value::FloatVector),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Value::BinaryVector),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Value::Float16Vector),
            prop::collection::vec((any::<u32>(), any::<u32>()), 0..3).prop_map(Value::SparseVector),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            prop::collection::vec(inner, 0..4).prop_map(Value::Array)
        })
    }

    fn rows() -> impl Strategy<Value = Row> {
        prop::collection::btree_map("[ab]{0,2}", values(), 0..4)
    }

    proptest! {
        #[test]
        fn equal_rows_have_equal_hashes_and_others_do_not(a in rows(), b in rows()) {
            prop_assert_eq!(RowHash::of(&a) == RowHash::of(&b), a == b);
            prop_assert_eq!(RowHash::of(&a), RowHash::of(&a.clone()));
        }
    }
}
