//! All rows of a piece, in pages. No row twice, none left out; see [`super::SourceRows`] for what an answer may leave out.

use std::collections::HashMap;

use cdc_keys::{Key, Range};
use milvus::proto::schema::FieldData;

use super::columns::bytes_of;
use super::rows::{Of, Part, RowsError, SourceRows, keys};
use crate::tso::Tso;

/// A range whose keys move while it is read is divided so often at most, where no row of it is missing by what was
/// counted first.
const UNSTEADY: u32 = 12;

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

impl Page {
    /// Bytes of one of its rows, about.
    pub(crate) fn row_bytes(&self) -> u64 {
        (bytes_of(&self.columns) as u64 / (self.rows.len() as u64).max(1)).max(1)
    }
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
            let found = keys(&columns, &self.of.primary)
                // Nothing at all: what was counted has gone since.
                .or_else(|| columns.is_empty().then(Vec::new));
            let found = found.ok_or_else(|| RowsError::Configuration {
                address: format!("{}.{}", self.of.database, self.of.name),
                cause: format!("an answer has no keys in {}", self.of.primary),
                hint: "please report it with the source's version".to_owned(),
            })?;
            let mut once: HashMap<Key, usize> = HashMap::with_capacity(found.len());
            for (row, key) in found.into_iter().enumerate() {
                once.insert(key, row);
            }
            let rows = once.len() as u64;
            // A copy of a key hides others from the answer, and may hide another key; rows that came meanwhile may make up
            // for it in number.
            let after = self.source.count(self.of, &part, self.at).await?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::Ordering;

    use milvus::proto::schema::field_data::Field;
    use milvus::proto::schema::scalar_field::Data;
    use milvus::proto::schema::{LongArray, ScalarField, StringArray};
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::memory::{MemoryRows, Table};

    fn column(name: &str, data: Data) -> FieldData {
        FieldData {
            field_name: name.to_owned(),
            field: Some(Field::Scalars(ScalarField {
                data: Some(data),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn row(key: &Key, value: i64) -> Vec<FieldData> {
        let key = match key {
            Key::Int(key) => Data::LongData(LongArray { data: vec![*key] }),
            Key::Str(key) => Data::StringData(StringArray {
                data: vec![key.clone()],
            }),
        };
        let value = Data::LongData(LongArray { data: vec![value] });
        vec![column("pk", key), column("v", value)]
    }

    fn source(rows: &[(Key, i64)]) -> MemoryRows {
        let source = MemoryRows::default();
        let rows = rows.iter().map(|(key, value)| row(key, *value)).collect();
        source.put(
            "d",
            "c",
            Table {
                id: 1,
                loaded: true,
                rows: BTreeMap::from([("p".to_owned(), rows)]),
            },
        );
        source
    }

    fn of(string: bool) -> Of {
        Of {
            database: "d".to_owned(),
            name: "c".to_owned(),
            primary: "pk".to_owned(),
            has_string_key: string,
            fields: vec!["pk".to_owned(), "v".to_owned()],
        }
    }

    /// All keys in the order in which they came, and how many copies were left out.
    async fn all(source: &MemoryRows, string: bool, bound: u64) -> (Vec<Key>, u64) {
        let of = of(string);
        let (mut keys, mut doubled) = (Vec::new(), 0);
        for range in Range::all(string) {
            let mut pages = Pages::new(source, &of, Some("p".to_owned()), range, Tso(1));
            while let Some(page) = pages.next(bound).await.unwrap() {
                let shown = super::super::rows::keys(&page.columns, "pk").unwrap();
                for (key, row) in page.keys.iter().zip(&page.rows) {
                    assert_eq!(shown[*row], *key);
                }
                doubled += page.doubled;
                keys.extend(page.keys);
            }
        }
        (keys, doubled)
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(work)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Each key once, whatever the bound, whatever is there twice and hides others.
        #[test]
        fn every_key_comes_once(
            keys in prop::collection::vec((-40i64..40, prop::bool::weighted(0.2)), 0..60),
            string in any::<bool>(),
            bound in 1u64..12,
            most in 0u64..9,
        ) {
            let key = |k: i64| match string {
                true => Key::Str(format!("k{k}")),
                false => Key::Int(k),
            };
            let mut rows = Vec::new();
            let mut once = std::collections::BTreeSet::new();
            let mut copies = 0;
            for (k, twice) in keys {
                if !once.insert(key(k)) {
                    continue;
                }
                rows.push((key(k), k));
                if twice {
                    rows.push((key(k), k));
                    copies += 1;
                }
            }
            let source = source(&rows);
            // What is too large comes in parts; one row is never too large.
            source.most.store(if most == 0 { 0 } else { most + 1 }, Ordering::Relaxed);
            let (found, doubled) = run(all(&source, string, bound));
            let distinct: std::collections::BTreeSet<Key> = found.iter().cloned().collect();
            prop_assert_eq!(found.len(), distinct.len());
            prop_assert_eq!(distinct, once);
            prop_assert_eq!(doubled, copies);
        }
    }

    /// Rows come and go while they are read: those that stay are all there, and it ends.
    #[test]
    fn what_stays_is_there_while_others_come_and_go() {
        let rows: Vec<(Key, i64)> = (0..200).map(|k| (Key::Int(k), k)).collect();
        let source = source(&rows);
        let of = of(false);
        let mut found = std::collections::BTreeSet::new();
        run(async {
            let range = Range::Int {
                low: 0,
                high: i64::MAX,
            };
            let mut pages = Pages::new(&source, &of, None, range, Tso(1));
            let work = async {
                while let Some(page) = pages.next(32).await.unwrap() {
                    found.extend(page.keys);
                }
            };
            let change = async {
                for n in 0i64.. {
                    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                    source.with("d", "c", |table| {
                        let rows = table.rows.get_mut("p").unwrap();
                        rows.push(row(&Key::Int(1_000 + n), n));
                        // Odd ones go.
                        let gone = Key::Int((2 * n + 1) % 200);
                        rows.retain(|r| super::super::rows::keys(r, "pk").unwrap()[0] != gone);
                    });
                }
            };
            tokio::select! {
                () = work => {}
                () = change => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(60)) => panic!("it does not end"),
            }
        });
        for even in (0..200).step_by(2) {
            assert!(found.contains(&Key::Int(even)), "{even}");
        }
    }
}
