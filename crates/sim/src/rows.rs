//! The source's rows as a client reads them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use cdc_core::catalog::ObjectState;
use cdc_core::ids::CollectionId;
use cdc_core::snapshot::memory::Table;
use cdc_core::snapshot::{Of, Part, RowsError, SourceRows};
use cdc_core::tso::Tso;
use milvus::proto::schema::{
    DataType, FieldData, LongArray, ScalarField, StringArray, field_data::Field, scalar_field::Data,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

use crate::source::Source;

fn column(field_id: i64, name: &str, kind: DataType, data: Data) -> FieldData {
    FieldData {
        field_id,
        r#type: kind.into(),
        field_name: name.to_owned(),
        field: Some(Field::Scalars(ScalarField {
            data: Some(data),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn row(key: i64, version: i64) -> Vec<FieldData> {
    let long = |n| Data::LongData(LongArray { data: vec![n] });
    let text = Data::StringData(StringArray {
        data: vec![String::new()],
    });
    vec![
        column(100, "pk", DataType::Int64, long(key)),
        column(101, "version", DataType::Int64, long(version)),
        column(102, "payload", DataType::VarChar, text),
    ]
}

/// What is asked for, until the source's next step.
struct Asked {
    database: String,
    name: String,
    /// Rows as of this time or later; `None` where no rows are asked for.
    at: Option<Tso>,
    answer: oneshot::Sender<Option<Table>>,
}

/// Shows a source's rows, all of it loaded, as its query nodes do: each question as of some time between the one it names
/// and now, and the next one perhaps as of an earlier one.
pub struct ShownRows {
    asked: Mutex<Vec<Asked>>,
    rng: Mutex<StdRng>,
    /// Answers of more rows are too large, if this is not 0.
    pub most: AtomicU64,
    down: AtomicBool,
    /// Rows that were shown.
    pub shown: AtomicU64,
}

impl ShownRows {
    pub fn new(seed: u64) -> Self {
        Self {
            asked: Mutex::default(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            most: AtomicU64::new(0),
            down: AtomicBool::new(false),
            shown: AtomicU64::new(0),
        }
    }

    /// From now on no call is answered, or again.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }

    /// Answers what was asked for since the last step.
    pub(crate) fn answer(&self, source: &Source) {
        for asked in std::mem::take(&mut *self.asked.lock()) {
            let table = source.named(&asked.database, &asked.name).map(|id| {
                let rows = asked.at.map(|at| {
                    let late = source.now().0.saturating_sub(at.0);
                    let at = Tso(at.0 + self.rng.lock().random_range(0..=late));
                    table(source, id, at)
                });
                Table {
                    id: id.0,
                    loaded: true,
                    rows: rows.unwrap_or_default(),
                }
            });
            let _ = asked.answer.send(table);
        }
    }

    async fn ask(
        &self,
        database: &str,
        name: &str,
        at: Option<Tso>,
    ) -> Result<Option<Table>, RowsError> {
        let (answer, answered) = oneshot::channel();
        self.asked.lock().push(Asked {
            database: database.to_owned(),
            name: name.to_owned(),
            at,
            answer,
        });
        let table = answered.await;
        if table.is_err() || self.down.load(Ordering::Acquire) {
            return Err(RowsError::Unavailable {
                address: "memory".to_owned(),
                call: "any",
                cause: "down".to_owned(),
            });
        }
        Ok(table.unwrap_or_default())
    }

    async fn table(&self, database: &str, name: &str, at: Option<Tso>) -> Result<Table, RowsError> {
        let table = self.ask(database, name, at).await?;
        table.ok_or_else(|| RowsError::Refused {
            address: "memory".to_owned(),
            call: "any",
            code: 100,
            reason: "no such collection".to_owned(),
        })
    }
}

#[async_trait]
impl SourceRows for ShownRows {
    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<CollectionId>, RowsError> {
        let table = self.ask(database, name, None).await?;
        Ok(table.map(|table| CollectionId(table.id)))
    }

    async fn is_loaded(&self, database: &str, name: &str, _: &[String]) -> Result<bool, RowsError> {
        Ok(self.table(database, name, None).await?.loaded)
    }

    async fn load(&self, database: &str, name: &str) -> Result<(), RowsError> {
        self.table(database, name, None).await.map(drop)
    }

    async fn release(&self, database: &str, name: &str) -> Result<(), RowsError> {
        self.table(database, name, None).await.map(drop)
    }

    async fn count(&self, of: &Of, part: &Part, at: Tso) -> Result<u64, RowsError> {
        let table = self.table(&of.database, &of.name, Some(at)).await?;
        table.count(of, part)
    }

    async fn read(&self, of: &Of, part: &Part, at: Tso) -> Result<Vec<FieldData>, RowsError> {
        let table = self.table(&of.database, &of.name, Some(at)).await?;
        let rows = table.count(of, part)?;
        let read = table.read(of, part, self.most.load(Ordering::Relaxed))?;
        self.shown.fetch_add(rows, Ordering::Relaxed);
        Ok(read)
    }
}

/// By partition, what a collection had at a time; of partitions that are gone by now, nothing.
fn table(source: &Source, id: CollectionId, at: Tso) -> BTreeMap<String, Vec<Vec<FieldData>>> {
    let mut by_partition: BTreeMap<String, Vec<Vec<FieldData>>> = BTreeMap::new();
    let (Some(live), Some(history)) = (source.live.get(&id), source.history.get(&id)) else {
        return by_partition;
    };
    for (key, version) in history.rows(at) {
        let partition = source.places.get(&version);
        let partition = partition.and_then(|id| live.catalog.partitions.get(id));
        if let Some(partition) = partition.filter(|p| p.state == ObjectState::Created) {
            let rows = by_partition.entry(partition.name.clone()).or_default();
            rows.push(row(key, version));
        }
    }
    by_partition
}
