//! Primary keys of rows, as conditions on them are written, and how to go over all of them: for those who read a Milvus
//! row by row.

mod ranges;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use ranges::{Range, Step, Walk};

/// A primary key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Key {
    Int(i64),
    Str(String),
}

impl Key {
    /// As it is written in an expression.
    pub fn literal(&self) -> String {
        match self {
            Key::Int(i) => i.to_string(),
            Key::Str(s) => quoted(s),
        }
    }
}

/// For people: control characters are escaped.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Int(i) => write!(f, "{i}"),
            Key::Str(s) => write!(f, "{}", serde_json::Value::from(s.as_str())),
        }
    }
}

/// A string as 2.3.5 and milvus-lite read it in an expression. Control characters stay as they are, for milvus-lite does
/// not read `\u001f`; seen with each of them on both.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// `field in [...]`, strings escaped as Milvus reads them.
pub fn key_expr(field: &str, keys: &[Key]) -> String {
    let list: Vec<String> = keys.iter().map(Key::literal).collect();
    format!("{field} in [{}]", list.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_quotes_is_escaped() {
        assert_eq!(Key::Str("a\"\\\n".into()).literal(), r#""a\"\\\n""#);
    }
}
