//! A lane's message to what has to be called. Pure and total.

use bytes::Bytes;
use milvus::proto::schema::field_data::Field;
use milvus::proto::schema::i_ds::IdField;
use milvus::proto::schema::scalar_field::Data;
use milvus::proto::schema::{FieldData, IDs};
use prost::Message as _;

use super::Place;
use crate::decode::keys::primary_keys;
use crate::decode::wire::{Fields, numbers, share};
use crate::decode::{Rows, RowsKind, msg_type};
use crate::ids::{CollectionId, FieldId};
use crate::route::encode::Entry;

/// Primary keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Keys {
    Int(Vec<i64>),
    Str(Vec<String>),
}

/// One of them.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(crate) enum Key {
    Int(i64),
    Str(String),
}

impl Keys {
    pub(crate) fn each(&self) -> Box<dyn Iterator<Item = Key> + '_> {
        match self {
            Self::Int(keys) => Box::new(keys.iter().copied().map(Key::Int)),
            Self::Str(keys) => Box::new(keys.iter().cloned().map(Key::Str)),
        }
    }

    /// Of a source message: the column `primary` of an insert, what a delete names. `None` if it has none.
    pub(crate) fn of_rows(rows: &Rows, primary: FieldId) -> Option<Self> {
        if rows.kind == RowsKind::Insert {
            return Self::of(primary_keys(&rows.body, primary)?);
        }
        let (mut keys, mut old_keys) = (None, Vec::new());
        for field in rows.body.iter().flat_map(|part| Fields::of(part)) {
            let field = field.ok()?;
            match field.number {
                9 => numbers(&field, &mut old_keys).ok()?,
                12 => keys = Some(Self::of(IDs::decode(field.bytes()).ok()?)?),
                _ => {}
            }
        }
        Some(keys.unwrap_or_else(|| Self::old(old_keys)))
    }

    /// Of the deprecated field, used where there is no other.
    fn old(keys: Vec<u64>) -> Self {
        Self::Int(keys.into_iter().map(|key| key as i64).collect())
    }

    fn of(ids: IDs) -> Option<Self> {
        Some(match ids.id_field? {
            IdField::IntId(keys) => Self::Int(keys.data),
            IdField::StrId(keys) => Self::Str(keys.data),
            IdField::UuidId(_) => return None,
        })
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Work {
    /// Columns as the message has them, each a FieldData.
    Insert {
        columns: Vec<Bytes>,
        rows: u64,
    },
    Delete(Keys),
}

/// An insert or delete.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Message {
    /// Never that of another message.
    pub(crate) id: i64,
    pub(crate) collection: CollectionId,
    pub(crate) at: Place,
    pub(crate) work: Work,
}

impl Message {
    /// `None`: nothing has to be called for it: ticks and drops, which the lane and whoever drops see to.
    ///
    /// # Errors
    /// It is none of those that a lane sends.
    pub(crate) fn read(entry: &Entry) -> Result<Option<Self>, String> {
        let mut fields = entry
            .parts()
            .iter()
            .flat_map(|part| Fields::of(part).map(move |field| (part, field)));
        let base = match fields.next() {
            Some((_, Ok(field))) if field.number == 1 => field.bytes(),
            _ => return Err("a message without a MsgBase".to_owned()),
        };
        let (mut kind, mut id) = (0, 0);
        for field in Fields::of(base) {
            let field = field.map_err(|e| e.to_string())?;
            match field.number {
                1 => kind = field.varint() as i32,
                2 => id = field.varint() as i64,
                _ => {}
            }
        }
        if kind != msg_type::INSERT && kind != msg_type::DELETE {
            return Ok(None);
        }
        let mut message = Self {
            id,
            collection: CollectionId(0),
            at: Place {
                database: String::new(),
                collection: String::new(),
                partition: String::new(),
            },
            work: Work::Delete(Keys::Int(Vec::new())),
        };
        let (mut columns, mut rows) = (Vec::new(), 0);
        let (mut keys, mut old_keys) = (None, Vec::new());
        let insert = kind == msg_type::INSERT;
        for (part, field) in fields {
            let field = field.map_err(|e| e.to_string())?;
            // InsertRequest and DeleteRequest share the fields up to 8.
            match (field.number, insert) {
                (3, _) => field.text().clone_into(&mut message.at.database),
                (4, _) => field.text().clone_into(&mut message.at.collection),
                (5, _) => field.text().clone_into(&mut message.at.partition),
                (7, _) => message.collection = CollectionId(field.varint() as i64),
                (12, true) => {
                    return Err("its rows are not in columns, as before Milvus 2.2".to_owned());
                }
                (13, true) => columns.push(share(part, field.bytes())),
                (14, true) => rows = field.varint(),
                // Deprecated, and used where 12 is absent.
                (9, false) => numbers(&field, &mut old_keys).map_err(|e| e.to_string())?,
                (12, false) => {
                    let ids = IDs::decode(field.bytes()).map_err(|e| e.to_string())?;
                    keys = Keys::of(ids);
                }
                _ => {}
            }
        }
        message.work = match insert {
            true => Work::Insert { columns, rows },
            false => Work::Delete(keys.unwrap_or_else(|| Keys::old(old_keys))),
        };
        Ok(Some(message))
    }
}

/// The keys in an insert's columns. `None`: none of them has this name, or it is no key.
pub(crate) fn keys_in(columns: &[Bytes], primary: &str) -> Option<Keys> {
    let named = |column: &&Bytes| {
        let name = Fields::of(column).flatten().find(|f| f.number == 2);
        name.is_some_and(|f| f.text() == primary)
    };
    let column = columns.iter().find(named)?;
    let Some(Field::Scalars(scalars)) = FieldData::decode(column.clone()).ok()?.field else {
        return None;
    };
    Some(match scalars.data? {
        Data::LongData(keys) => Keys::Int(keys.data),
        Data::StringData(keys) => Keys::Str(keys.data),
        _ => return None,
    })
}
