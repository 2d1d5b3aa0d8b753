//! A walk over the fields of one protobuf message without building it.

use bytes::Bytes;

/// A message that is not protobuf, or ends in the middle of a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("ends in the middle of a field")]
    Truncated,
    #[error("a varint of more than ten bytes")]
    Varint,
    #[error("wire type {0}, which protobuf has not")]
    WireType(u8),
    #[error("a field number of 0")]
    FieldZero,
}

/// The value of one field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

/// One field as it stands in the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field<'a> {
    pub number: u32,
    pub value: Value<'a>,
    /// The field with its key, as it can be copied into another message.
    pub raw: &'a [u8],
}

impl<'a> Field<'a> {
    pub fn varint(&self) -> u64 {
        match self.value {
            Value::Varint(v) => v,
            _ => 0,
        }
    }

    pub fn bytes(&self) -> &'a [u8] {
        match self.value {
            Value::Bytes(b) => b,
            _ => &[],
        }
    }

    /// A text field; not UTF-8 counts as empty.
    pub fn text(&self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }
}

/// Iterates over the fields of `message`; ends after the first error.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let start = self.rest;
        let key = varint(&mut self.rest)?;
        let number = u32::try_from(key >> 3).map_err(|_| WireError::Varint)?;
        if number == 0 {
            return Err(WireError::FieldZero);
        }
        let value = match (key & 7) as u8 {
            0 => Value::Varint(varint(&mut self.rest)?),
            1 => Value::Fixed64(
                take(&mut self.rest, 8)?
                    .try_into()
                    .map_err(|_| WireError::Truncated)?,
            ),
            2 => {
                let len =
                    usize::try_from(varint(&mut self.rest)?).map_err(|_| WireError::Truncated)?;
                Value::Bytes(take(&mut self.rest, len)?)
            }
            5 => Value::Fixed32(
                take(&mut self.rest, 4)?
                    .try_into()
                    .map_err(|_| WireError::Truncated)?,
            ),
            other => return Err(WireError::WireType(other)),
        };
        Ok(Field {
            number,
            value,
            raw: &start[..start.len() - self.rest.len()],
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Adds the numbers of a repeated integer field, packed or not, to `into`.
pub fn numbers(field: &Field<'_>, into: &mut Vec<u64>) -> Result<(), WireError> {
    match field.value {
        Value::Varint(v) => into.push(v),
        Value::Bytes(mut packed) => {
            while !packed.is_empty() {
                into.push(varint(&mut packed)?);
            }
        }
        Value::Fixed32(_) | Value::Fixed64(_) => {}
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0u64;
    for (i, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i as u32);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err(if rest.len() < 10 {
        WireError::Truncated
    } else {
        WireError::Varint
    })
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], WireError> {
    let (head, tail) = rest.split_at_checked(len).ok_or(WireError::Truncated)?;
    *rest = tail;
    Ok(head)
}

/// `part`, which lies inside `whole`, as a slice that shares its memory.
pub fn share(whole: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() {
        Bytes::new()
    } else {
        whole.slice_ref(part)
    }
}
