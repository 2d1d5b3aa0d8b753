//! The primary keys of an insert's rows.

use bytes::Bytes;
use milvus::proto::schema::{
    FieldData, IDs, LongArray, StringArray, field_data::Field, i_ds::IdField, scalar_field::Data,
};
use prost::Message;

use super::wire::Fields;
use crate::ids::FieldId;

/// Field number of `fields_data` in InsertRequest.
const FIELDS_DATA: u32 = 13;

/// Reads the column `pk` out of an insert's body ([`super::Rows::body`]). `None` if it is not there or not a key column.
pub fn primary_keys(body: &[Bytes], pk: FieldId) -> Option<IDs> {
    for part in body {
        for field in Fields::of(part)
            .flatten()
            .filter(|f| f.number == FIELDS_DATA)
        {
            // FieldData: 5 field_id. Looked for first, so that no vector is decoded.
            let id = Fields::of(field.bytes())
                .flatten()
                .find(|f| f.number == 5)
                .map(|f| f.varint() as i64);
            if id != Some(pk.0) {
                continue;
            }
            let data = FieldData::decode(field.bytes()).ok()?;
            let Some(Field::Scalars(scalars)) = data.field else {
                return None;
            };
            let id_field = match scalars.data? {
                Data::LongData(longs) => IdField::IntId(LongArray { data: longs.data }),
                Data::StringData(strings) => IdField::StrId(StringArray { data: strings.data }),
                _ => return None,
            };
            return Some(IDs {
                id_field: Some(id_field),
            });
        }
    }
    None
}
