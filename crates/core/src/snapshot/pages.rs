//! All rows of a piece, in pages. No row twice, none left out; see [`super::SourceRows`] for what an answer may leave out.

use std::collections::HashMap;

use cdc_keys::{Key, Range};
use milvus::proto::schema::FieldData;

use super::rows::{Of, Part, RowsError, SourceRows, keys};
use crate::tso::Tso;

/// A range whose keys move while it is read is divided so often at most, where no row of it is missing by what was
/// counted first.
const UNSTEADY: u32 = 4;

/// Some rows.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) columns: Vec<FieldData>,
    /// Of the rows, each once: `keys[i]` is in row `rows[i]` of the columns.
    pub(crate) keys: Vec<Key>,
    pub(crate) rows: Vec<usize>,
    /// Copies of these keys beyond the first.
    pub(crate) doubled: u64,
}

/// Goes over the rows of a piece.
pub(crate) struct Pages<'a> {
    source: &'a dyn SourceRows,
    of: &'a Of,
    partition: Option<String>,
    at: Tso,
    /// The next one is the last; with how often it was divided.
    ahead: Vec<(Range, u32)>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(
        source: &'a dyn SourceRows,
        of: &'a Of,
        partition: Option<String>,
        range: Range,
        at: Tso,
    ) -> Self {
        Self {
            source,
            of,
            partition,
            at,
            ahead: vec![(range, 0)],
        }
    }

    fn part(&self, range: &Range) -> Part {
        Part {
            partition: self.partition.clone(),
            range: range.clone(),
        }
    }

    /// The next rows, about `bound` of them at most; `None` behind the last.
    pub(crate) async fn next(&mut self, bound: u64) -> Result<Option<Page>, RowsError> {
        while let Some((range, depth)) = self.ahead.pop() {
            let part = self.part(&range);
            let before = self.source.count(self.of, &part, self.at).await?;
            if before == 0 {
                continue;
            }
            if before > bound.max(1) && self.halve(&range, depth) {
                continue;
            }
            let columns = match self.source.read(self.of, &part, self.at).await {
                Err(RowsError::TooLarge { .. }) if self.halve(&range, depth) => continue,
                columns => columns?,
            };
            let found =
                keys(&columns, &self.of.primary).ok_or_else(|| RowsError::Configuration {
                    address: format!("{}.{}", self.of.database, self.of.name),
                    cause: format!("an answer has no keys in {}", self.of.primary),
                    hint: "please report it with the source's version".to_owned(),
                })?;
            let mut once: HashMap<Key, usize> = HashMap::with_capacity(found.len());
            for (row, key) in found.into_iter().enumerate() {
                once.insert(key, row);
            }
            let rows = once.len() as u64;
            // A copy of a key hides others from the answer, and may hide another key.
            let after = match rows == before {
                true => rows,
                false => self.source.count(self.of, &part, self.at).await?,
            };
            let moved = rows >= before && depth >= UNSTEADY;
            if rows < before.max(after) && !moved {
                let mut sorted: Vec<Key> = once.keys().cloned().collect();
                sorted.sort_unstable();
                if let Some(parts) = range.divide(&sorted) {
                    let parts = parts.into_iter().rev();
                    self.ahead.extend(parts.map(|part| (part, depth + 1)));
                    continue;
                }
                // Nothing is shown of what is counted: it was deleted in between, or is on its way.
                if sorted.is_empty() && after > 0 && self.halve(&range, depth + 1) {
                    continue;
                }
            }
            if once.is_empty() {
                continue;
            }
            let (keys, rows): (Vec<Key>, Vec<usize>) = once.into_iter().unzip();
            return Ok(Some(Page {
                doubled: before.min(after).saturating_sub(keys.len() as u64),
                columns,
                keys,
                rows,
            }));
        }
        Ok(None)
    }

    fn halve(&mut self, range: &Range, depth: u32) -> bool {
        let Some((low, high)) = range.split() else {
            return false;
        };
        self.ahead.extend([(high, depth), (low, depth)]);
        true
    }
}
