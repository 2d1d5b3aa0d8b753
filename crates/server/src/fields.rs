//! Strict reading of JSON-like objects: what is wrong is said with the path of the field, its value and what is
//! allowed there, and all of it at once. The configuration file and the HTTP requests are read with this.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Everything that was found wrong so far.
#[derive(Default)]
pub struct Errors(RefCell<Vec<String>>);

impl Errors {
    pub fn add(&self, error: impl Into<String>) {
        self.0.borrow_mut().push(error.into());
    }

    /// `Err` with all errors, if there is one.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let errors = self.0.take();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }
}

/// One object. Fields that nobody asked for are reported by [`Fields::finish`].
pub struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    known: RefCell<Vec<&'static str>>,
    errors: &'a Errors,
}

impl<'a> Fields<'a> {
    pub fn root(map: &'a Map<String, Value>, errors: &'a Errors) -> Self {
        Self {
            path: String::new(),
            map,
            known: RefCell::default(),
            errors,
        }
    }

    /// An object that is an element of a list at `path`.
    pub fn element(path: String, map: &'a Map<String, Value>, errors: &'a Errors) -> Self {
        Self {
            path,
            map,
            known: RefCell::default(),
            errors,
        }
    }

    /// The full path of a field of this object.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The value, null counting as absent.
    pub fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    /// Says that a field is wrong.
    pub fn wrong(&self, key: &str, what: impl Display) {
        self.errors.add(format!("{}: {what}", self.path(key)));
    }

    fn wrong_type(&self, key: &str, value: &Value, expected: &str) {
        self.wrong(
            key,
            format_args!("{expected} expected, not {}", show(value)),
        );
    }

    pub fn string(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Value::String(s) => Some(s.clone()),
            other => {
                self.wrong_type(key, other, "a string");
                None
            }
        }
    }

    /// Like [`Fields::string`], but the value is never shown.
    pub fn secret(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Value::String(s) => Some(s.clone()),
            _ => {
                self.wrong(key, "a string expected (put it in quotes)");
                None
            }
        }
    }

    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(b) => Some(*b),
            other => {
                self.wrong_type(key, other, "true or false");
                None
            }
        }
    }

    pub fn integer(&self, key: &'static str, allowed: RangeInclusive<u64>) -> Option<u64> {
        let value = self.get(key)?;
        match value.as_u64() {
            Some(n) if allowed.contains(&n) => Some(n),
            _ => {
                let expected = format!(
                    "a whole number from {} to {}",
                    allowed.start(),
                    allowed.end()
                );
                self.wrong_type(key, value, &expected);
                None
            }
        }
    }

    pub fn choice<T: Copy>(&self, key: &'static str, allowed: &[(&'static str, T)]) -> Option<T> {
        let value = self.get(key)?;
        let found = value
            .as_str()
            .and_then(|s| allowed.iter().find(|(name, _)| *name == s));
        if found.is_none() {
            let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
            self.wrong_type(key, value, &format!("one of {}", names.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    pub fn object(&self, key: &'static str) -> Option<Fields<'a>> {
        match self.get(key)? {
            Value::Object(map) => Some(Fields::element(self.path(key), map, self.errors)),
            other => {
                self.wrong_type(key, other, "an object");
                None
            }
        }
    }

    /// Like [`Fields::object`], but a value of another type is never shown: it may hold a secret.
    pub fn secret_object(&self, key: &'static str) -> Option<Fields<'a>> {
        match self.get(key)? {
            Value::Object(map) => Some(Fields::element(self.path(key), map, self.errors)),
            _ => {
                self.wrong(key, "an object expected");
                None
            }
        }
    }

    pub fn list(&self, key: &'static str) -> Option<&'a [Value]> {
        match self.get(key)? {
            Value::Array(list) => Some(list),
            other => {
                self.wrong_type(key, other, "a list");
                None
            }
        }
    }

    /// The elements of a list of objects.
    pub fn objects(&self, key: &'static str) -> Option<Vec<Fields<'a>>> {
        let list = self.list(key)?;
        Some(objects_of(&self.path(key), list, self.errors))
    }

    /// Fields that are known but mean nothing here; gives back the paths of those that are there.
    pub fn accept(&self, keys: &[&'static str]) -> Vec<String> {
        keys.iter()
            .filter(|key| self.get(key).is_some())
            .map(|key| self.path(key))
            .collect()
    }

    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.map.iter()
    }

    pub fn errors(&self) -> &'a Errors {
        self.errors
    }

    /// Reports every field nobody asked for.
    pub fn finish(self) {
        let known = self.known.borrow();
        for key in self.map.keys().filter(|key| !known.contains(&key.as_str())) {
            let mut allowed = known.clone();
            allowed.sort_unstable();
            allowed.dedup();
            self.wrong(
                &clip(key),
                format_args!("unknown field; allowed here: {}", allowed.join(", ")),
            );
        }
    }
}

/// The objects of a list found at `path`.
pub fn objects_of<'a>(path: &str, list: &'a [Value], errors: &'a Errors) -> Vec<Fields<'a>> {
    let mut found = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let at = format!("{path}[{i}]");
        match value {
            Value::Object(map) => found.push(Fields::element(at, map, errors)),
            other => errors.add(format!("{at}: an object expected, not {}", show(other))),
        }
    }
    found
}

/// A value in an error. Objects and lists are not shown: they may hold a secret.
fn show(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => clip(&other.to_string()),
    }
}

/// At most 80 characters of a text that came from outside.
pub fn clip(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
