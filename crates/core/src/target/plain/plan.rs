//! From messages in the order of the log to calls, as few as will do. Pure.
//!
//! Messages of one collection are gathered as long as it does not matter to any key that all deletes among them come
//! first and all inserts behind them: a delete that follows an insert of one of its keys begins anew.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use cdc_keys::quoted;

use super::columns::{head, merged, taken};
use super::message::{Key, Keys, Message, Work, keys_in};
use super::{Place, Table};
use crate::ids::CollectionId;

/// Keys of one delete; all versions take that many in an expression.
const KEYS: usize = 10_000;
/// Bytes of the keys of one delete.
const KEY_BYTES: usize = 1 << 20;
/// Bytes of messages that become one insert. A larger message goes alone.
const INSERT_BYTES: usize = 4 << 20;

/// One call.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Step {
    Delete {
        at: Place,
        expr: String,
        /// Messages that are done with it.
        done: Vec<i64>,
    },
    Insert {
        at: Place,
        columns: Vec<Bytes>,
        rows: u64,
        /// Messages whose rows it adds.
        of: Vec<i64>,
        /// Those of them that were never tried.
        fresh: Vec<i64>,
    },
}

impl Step {
    pub(crate) fn call(&self) -> &'static str {
        match self {
            Step::Delete { .. } => "Delete",
            Step::Insert { .. } => "Insert",
        }
    }

    pub(crate) fn inserted(&self) -> &[i64] {
        match self {
            Step::Delete { .. } => &[],
            Step::Insert { of, .. } => of,
        }
    }

    pub(crate) fn done(&self) -> &[i64] {
        match self {
            Step::Delete { done, .. } => done,
            Step::Insert { of, .. } => of,
        }
    }

    pub(crate) fn fresh(&self) -> &[i64] {
        match self {
            Step::Delete { .. } => &[],
            Step::Insert { fresh, .. } => fresh,
        }
    }
}

/// For a trace.
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Delete { at, expr, done } => write!(f, "delete {at:?} {expr} {done:?}"),
            Step::Insert { at, rows, of, .. } => write!(f, "insert {at:?} {rows} rows {of:?}"),
        }
    }
}

/// An insert that is gathered.
struct Insert {
    id: i64,
    columns: Vec<Bytes>,
    rows: u64,
    bytes: usize,
    fresh: bool,
}

/// What is gathered: the deletes, then the inserts.
struct Gathered {
    collection: CollectionId,
    table: Arc<Table>,
    deletes: BTreeMap<Place, (Vec<Keys>, Vec<i64>)>,
    inserts: BTreeMap<Place, Vec<Insert>>,
    /// Keys of the inserts, once a delete has asked for them.
    inserted: Option<HashSet<Key>>,
}

impl Gathered {
    fn new(collection: CollectionId, table: Arc<Table>) -> Self {
        Self {
            collection,
            table,
            deletes: BTreeMap::new(),
            inserts: BTreeMap::new(),
            inserted: None,
        }
    }

    /// Whether one of these keys is among the inserts.
    fn has(&mut self, keys: &Keys) -> Result<bool, String> {
        if self.inserts.is_empty() {
            return Ok(false);
        }
        let inserted = match &mut self.inserted {
            Some(inserted) => inserted,
            none => {
                let mut all = HashSet::new();
                for insert in self.inserts.values().flatten() {
                    all.extend(keys_of(&insert.columns, &self.table)?.each());
                }
                none.insert(all)
            }
        };
        Ok(keys.each().any(|key| inserted.contains(&key)))
    }

    fn delete(&mut self, at: Place, keys: Keys, done: Option<i64>) {
        let (all, of) = self.deletes.entry(at).or_default();
        all.push(keys);
        of.extend(done);
    }

    fn insert(&mut self, at: Place, insert: Insert) -> Result<(), String> {
        if let Some(inserted) = &mut self.inserted {
            inserted.extend(keys_of(&insert.columns, &self.table)?.each());
        }
        self.inserts.entry(at).or_default().push(insert);
        Ok(())
    }

    fn into_steps(self, steps: &mut Vec<Step>) -> Result<(), String> {
        for (at, (keys, done)) in self.deletes {
            let from = steps.len();
            for expr in expressions(&keys, &self.table.primary) {
                let (at, done) = (at.clone(), Vec::new());
                steps.push(Step::Delete { at, expr, done });
            }
            // They are done with the last of its calls.
            match steps.get_mut(from..).and_then(<[Step]>::last_mut) {
                Some(Step::Delete { done: last, .. }) => *last = done,
                _ => {
                    // Of no keys at all.
                    let expr = String::new();
                    steps.push(Step::Delete { at, expr, done });
                }
            }
        }
        for (at, inserts) in self.inserts {
            for part in parts(inserts)? {
                let columns: Vec<&[Bytes]> = part.iter().map(|i| i.columns.as_slice()).collect();
                let leave_out = |name: &str| self.table.computed.contains(name);
                steps.push(Step::Insert {
                    at: at.clone(),
                    columns: taken(merged(&columns)?, leave_out)?,
                    rows: part.iter().map(|i| i.rows).sum(),
                    of: part.iter().map(|i| i.id).collect(),
                    fresh: part.iter().filter(|i| i.fresh).map(|i| i.id).collect(),
                });
            }
        }
        Ok(())
    }
}

fn keys_of(columns: &[Bytes], table: &Table) -> Result<Keys, String> {
    let none = || format!("an insert without its key column {}", table.primary);
    keys_in(columns, &table.primary).ok_or_else(none)
}

/// Inserts that go in one call each: those with the same columns, up to [`INSERT_BYTES`].
fn parts(inserts: Vec<Insert>) -> Result<Vec<Vec<Insert>>, String> {
    let mut parts: Vec<Vec<Insert>> = Vec::new();
    let mut size = 0;
    for insert in inserts {
        let alike = |last: &Vec<Insert>| -> Result<bool, String> {
            let Some(first) = last.first() else {
                return Ok(false);
            };
            if first.columns.len() != insert.columns.len() {
                return Ok(false);
            }
            for (a, b) in first.columns.iter().zip(&insert.columns) {
                if head(a)? != head(b)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match parts.last_mut() {
            Some(last) if size + insert.bytes <= INSERT_BYTES && alike(last)? => {
                size += insert.bytes;
                last.push(insert);
            }
            _ => {
                size = insert.bytes;
                parts.push(vec![insert]);
            }
        }
    }
    Ok(parts)
}

/// `primary in [...]`, as many as it takes.
fn expressions(keys: &[Keys], primary: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut list = String::new();
    let mut count = 0;
    let mut add = |literal: &str| {
        if count == KEYS || !list.is_empty() && list.len() + literal.len() > KEY_BYTES {
            all.push(format!("{primary} in [{list}]"));
            list.clear();
            count = 0;
        }
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(literal);
        count += 1;
    };
    for keys in keys {
        match keys {
            Keys::Int(keys) => keys.iter().for_each(|key| add(&key.to_string())),
            Keys::Str(keys) => keys.iter().for_each(|key| add(&quoted(key))),
        }
    }
    if count > 0 {
        all.push(format!("{primary} in [{list}]"));
    }
    all
}

/// The calls for these messages, in their order. `unknown`: rows of this message may be there already, or some of them.
///
/// # Errors
/// A message has not the columns it should have.
pub(crate) fn plan(
    messages: impl Iterator<Item = (Message, Arc<Table>)>,
    unknown: impl Fn(i64) -> bool,
) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut gathered: Option<Gathered> = None;
    for (message, table) in messages {
        let Message {
            id,
            collection,
            mut at,
            work,
        } = message;
        let same = gathered.take_if(|g| g.collection == collection);
        let mut now = match (same, gathered.take()) {
            (Some(same), _) => same,
            (None, other) => {
                if let Some(other) = other {
                    other.into_steps(&mut steps)?;
                }
                Gathered::new(collection, table)
            }
        };
        if now.table.has_partition_key {
            at.partition.clear();
        }
        let again = matches!(work, Work::Insert { .. }) && unknown(id);
        let deletes = match &work {
            Work::Delete(keys) => Some(keys.clone()),
            Work::Insert { columns, .. } if again => Some(keys_of(columns, &now.table)?),
            Work::Insert { .. } => None,
        };
        if let Some(keys) = deletes {
            if now.has(&keys)? {
                let (collection, table) = (now.collection, now.table.clone());
                now.into_steps(&mut steps)?;
                now = Gathered::new(collection, table);
            }
            now.delete(at.clone(), keys, (!again).then_some(id));
        }
        if let Work::Insert { columns, rows } = work {
            let bytes = columns.iter().map(Bytes::len).sum();
            let insert = Insert {
                id,
                columns,
                rows,
                bytes,
                fresh: !again,
            };
            now.insert(at, insert)?;
        }
        gathered = Some(now);
    }
    if let Some(last) = gathered {
        last.into_steps(&mut steps)?;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests;
