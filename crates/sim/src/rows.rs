//! The source's rows as a client reads them.

use std::collections::BTreeMap;

use cdc_core::snapshot::memory::{MemoryRows, Table};
use milvus::proto::schema::{
    DataType, FieldData, LongArray, ScalarField, StringArray, field_data::Field, scalar_field::Data,
};

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

/// Shows what the source holds by now, all of it loaded.
pub(crate) fn show(source: &Source, rows: &MemoryRows) {
    let mut all = BTreeMap::new();
    for (id, live) in &source.live {
        let database = source.database_of(*id);
        let mut by_partition: BTreeMap<String, Vec<Vec<FieldData>>> = BTreeMap::new();
        for (key, (version, partition)) in &live.rows {
            let partition = live.catalog.partitions.get(partition);
            let name = partition.map(|p| p.name.clone()).unwrap_or_default();
            by_partition
                .entry(name)
                .or_default()
                .push(row(*key, *version));
        }
        let table = Table {
            id: id.0,
            loaded: true,
            rows: by_partition,
        };
        all.insert((database, live.catalog.name.clone()), table);
    }
    rows.set(all);
}
