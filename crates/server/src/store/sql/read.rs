//! Rows to what they stand for.

use std::vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::{CollectionId, PChannel, PartitionId, TaskId};
use cdc_core::store::{Progress, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use serde::de::DeserializeOwned;

use super::connection::{Row, Value};
use super::dialect::{Dialect, Statement};
use crate::store::{Event, Logged, StoredTask, Unreadable};

/// The values of one row, taken one after the other.
struct Cells(vec::IntoIter<Value>);

impl Cells {
    fn of(row: Row) -> Self {
        Self(row.into_iter())
    }

    fn text(&mut self) -> Result<String, StoreError> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(corrupt("a text was expected")),
        }
    }

    fn number(&mut self) -> Result<i64, StoreError> {
        match self.0.next() {
            Some(Value::Int(number)) => Ok(number),
            _ => Err(corrupt("a number was expected")),
        }
    }

    fn tso(&mut self) -> Result<Tso, StoreError> {
        self.text()?.parse().map(Tso).map_err(corrupt)
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T, StoreError> {
        serde_json::from_str(&self.text()?).map_err(corrupt)
    }

    fn event(&mut self) -> Result<Event, StoreError> {
        Ok(Event {
            at: self.number()? as u64,
            kind: self.text()?,
            text: self.text()?,
        })
    }

    fn progress(&mut self) -> Result<Progress, StoreError> {
        Ok(Progress {
            position: self.json()?,
            after: self.number()? != 0,
            applied: self.tso()?,
            sent: self.tso()?,
        })
    }
}

fn corrupt(cause: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(cause.to_string())
}

/// What [`progress`] reads, in its order.
pub(super) fn progress_statements(d: &Dialect, task: &TaskId) -> Vec<Statement> {
    let of = [("task", Value::from(task.as_str()))];
    [
        (
            "channels",
            &["channel", "position", "after", "applied", "sent"][..],
        ),
        (
            "detached",
            &[
                "channel",
                "collection",
                "position",
                "after",
                "applied",
                "sent",
            ][..],
        ),
        ("replicate", &["position"][..]),
        ("collections", &["source", "object"][..]),
        ("partitions", &["source", "object"][..]),
        ("notes", &["collection", "note"][..]),
        ("quarantine", &["id", "record"][..]),
    ]
    .map(|(table, columns)| d.select(table, columns, &of, ""))
    .to_vec()
}

pub(super) fn progress(tables: Vec<Vec<Row>>) -> Result<TaskProgress, StoreError> {
    let mut all = TaskProgress::default();
    for (table, rows) in tables.into_iter().enumerate() {
        for mut row in rows.into_iter().map(Cells::of) {
            match table {
                0 => {
                    let channel = PChannel::new(row.text()?);
                    all.channels.insert(channel, row.progress()?);
                }
                1 => {
                    let key = (PChannel::new(row.text()?), CollectionId(row.number()?));
                    all.detached.insert(key, row.progress()?);
                }
                2 => all.replicate = Some(row.json()?),
                3 => {
                    let id = CollectionId(row.number()?);
                    all.collections.insert(id, row.json()?);
                }
                4 => {
                    let id = PartitionId(row.number()?);
                    all.partitions.insert(id, row.json()?);
                }
                5 => {
                    let id = CollectionId(row.number()?);
                    all.notes.insert(id, row.text()?);
                }
                _ => {
                    let id = row.text()?;
                    all.quarantine.insert(id, row.json()?);
                }
            }
        }
    }
    Ok(all)
}

/// What [`message`] reads, in its order.
pub(super) fn message_statement(d: &Dialect, task: &TaskId, message: &str) -> Statement {
    let of = [
        ("task", Value::from(task.as_str())),
        ("message", Value::from(message)),
    ];
    let in_order = format!(" ORDER BY {}", d.name("part"));
    d.select("messages", &["body"], &of, &in_order)
}

pub(super) fn message(parts: Vec<Row>) -> Result<Vec<u8>, StoreError> {
    let mut whole = Vec::new();
    for mut part in parts.into_iter().map(Cells::of) {
        let part = STANDARD.decode(part.text()?).map_err(corrupt)?;
        whole.extend(part);
    }
    Ok(whole)
}

pub(super) fn floor(row: Row) -> Result<(PChannel, Tso), StoreError> {
    let mut row = Cells::of(row);
    Ok((PChannel::new(row.text()?), row.tso()?))
}

pub(super) fn task(row: Row) -> Result<Result<StoredTask, Unreadable>, StoreError> {
    let mut row = Cells::of(row);
    let id = TaskId::new(row.text()?);
    let mut read = || {
        Ok(StoredTask {
            id: id.clone(),
            spec: row.text()?,
            desired: row.json()?,
            created: row.number()? as u64,
            updated: row.number()? as u64,
        })
    };
    Ok(read().map_err(|cause: StoreError| Unreadable {
        cause: cause.to_string(),
        id: id.clone(),
    }))
}

pub(super) fn logged(row: Row) -> Result<Logged, StoreError> {
    let mut row = Cells::of(row);
    Ok(Logged {
        seq: row.number()? as u64,
        task: TaskId::new(row.text()?),
        event: row.event()?,
    })
}

pub(super) fn event(row: Row) -> Result<Event, StoreError> {
    Cells::of(row).event()
}
