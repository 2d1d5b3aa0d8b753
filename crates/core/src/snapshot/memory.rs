//! Rows of a source in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use cdc_keys::Key;
use milvus::proto::schema::FieldData;
use parking_lot::Mutex;

use super::columns::pick;
use super::rows::{Of, Part, RowsError, SourceRows, keys};
use crate::ids::CollectionId;
use crate::tso::Tso;

/// A collection: its rows by partition, one column a field, copies of a key as often as they are there.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub id: i64,
    pub loaded: bool,
    /// Rows of one each, by partition.
    pub rows: BTreeMap<String, Vec<Vec<FieldData>>>,
}

impl Table {
    fn found(&self, of: &Of, part: &Part) -> Result<Vec<(Key, &Vec<FieldData>)>, RowsError> {
        if !self.loaded {
            return Err(refused(101, "not loaded"));
        }
        let rows = self.rows.iter();
        let rows = rows.filter(|(name, _)| part.partition.as_ref().is_none_or(|p| p == *name));
        let keyed = rows.flat_map(|(_, rows)| rows).filter_map(|row| {
            let key = keys(row, &of.primary)?.into_iter().next()?;
            part.range.contains(&key).then_some((key, row))
        });
        Ok(keyed.collect())
    }

    /// As [`SourceRows::count`] says.
    pub fn count(&self, of: &Of, part: &Part) -> Result<u64, RowsError> {
        Ok(self.found(of, part)?.len() as u64)
    }

    /// As [`SourceRows::read`] says; an answer of more rows than `most` is too large, if that is not 0.
    pub fn read(&self, of: &Of, part: &Part, most: u64) -> Result<Vec<FieldData>, RowsError> {
        let rows = self.found(of, part)?;
        if most > 0 && rows.len() as u64 > most {
            return Err(RowsError::TooLarge {
                address: "memory".to_owned(),
                call: "Query",
                cause: format!("{} rows", rows.len()),
            });
        }
        let mut shown: Vec<&Vec<FieldData>> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut hides = false;
        for (key, row) in rows {
            if !seen.insert(key) {
                hides = true;
            } else if std::mem::take(&mut hides) {
                // Behind a copy.
            } else {
                shown.push(row);
            }
        }
        let column = |name: &String| {
            let of_row = |row: &Vec<FieldData>| row.iter().find(|c| c.field_name == *name).cloned();
            appended(shown.iter().map(|row| of_row(row).unwrap_or_default()))
        };
        Ok(of.fields.iter().filter_map(column).collect())
    }
}

/// The twin of [`super::grpc::GrpcRows`]: shows what it holds at the moment, whatever time is asked for. A key that is
/// there more than once is shown once, and hides the row behind it.
#[derive(Debug, Default)]
pub struct MemoryRows {
    tables: Mutex<BTreeMap<(String, String), Table>>,
    /// Answers larger than this are too large.
    pub most: AtomicU64,
    down: AtomicBool,
}

impl MemoryRows {
    pub fn put(&self, database: &str, name: &str, table: Table) {
        let key = (database.to_owned(), name.to_owned());
        self.tables.lock().insert(key, table);
    }

    pub fn with<T>(&self, database: &str, name: &str, change: impl FnOnce(&mut Table) -> T) -> T {
        let key = (database.to_owned(), name.to_owned());
        change(self.tables.lock().entry(key).or_default())
    }

    /// From now on no call is answered, or again.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }

    fn table(&self, database: &str, name: &str) -> Result<Table, RowsError> {
        if self.down.load(Ordering::Acquire) {
            return Err(RowsError::Unavailable {
                address: "memory".to_owned(),
                call: "any",
                cause: "down".to_owned(),
            });
        }
        let key = (database.to_owned(), name.to_owned());
        let found = self.tables.lock().get(&key).cloned();
        found.ok_or_else(|| refused(100, "no such collection"))
    }
}

/// A real source is waited for.
async fn asked(millis: u64) {
    tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
}

fn refused(code: i32, reason: &str) -> RowsError {
    RowsError::Refused {
        address: "memory".to_owned(),
        call: "any",
        code,
        reason: reason.to_owned(),
    }
}

#[async_trait]
impl SourceRows for MemoryRows {
    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<CollectionId>, RowsError> {
        asked(1).await;
        match self.table(database, name) {
            Ok(table) => Ok(Some(CollectionId(table.id))),
            Err(RowsError::Refused { code: 100, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn is_loaded(&self, database: &str, name: &str, _: &[String]) -> Result<bool, RowsError> {
        Ok(self.table(database, name)?.loaded)
    }

    async fn load(&self, database: &str, name: &str) -> Result<(), RowsError> {
        self.table(database, name)?;
        self.with(database, name, |table| table.loaded = true);
        Ok(())
    }

    async fn release(&self, database: &str, name: &str) -> Result<(), RowsError> {
        self.table(database, name)?;
        self.with(database, name, |table| table.loaded = false);
        Ok(())
    }

    async fn count(&self, of: &Of, part: &Part, _: Tso) -> Result<u64, RowsError> {
        let rows = self.table(&of.database, &of.name)?.count(of, part)?;
        // Not all take as long, so others come between.
        asked(1 + rows % 8).await;
        Ok(rows)
    }

    async fn read(&self, of: &Of, part: &Part, _: Tso) -> Result<Vec<FieldData>, RowsError> {
        asked(5).await;
        let table = self.table(&of.database, &of.name)?;
        table.read(of, part, self.most.load(Ordering::Relaxed))
    }
}

/// Columns of one row each as one.
fn appended(columns: impl Iterator<Item = FieldData>) -> Option<FieldData> {
    use prost::Message as _;
    // In protobuf bytes behind bytes are the merge of both, and of repeated values the two lists.
    let all: Vec<u8> = columns.flat_map(|column| column.encode_to_vec()).collect();
    let column = FieldData::decode(all.as_slice()).ok()?;
    pick(&column, &[]).is_ok().then_some(column)
}
