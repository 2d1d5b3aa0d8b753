//! Whether rows from before the queue's history can be read: the source's own Milvus, as a client sees it.

use super::{Check, Patient, label, names, within};
use crate::catalog::{ObjectState, View};
use crate::snapshot::{Initial, SourceRows};

/// What is not set in the configuration.
const HINT: &str = "set sourceConfig.milvus.uri (and its login) to the source's own Milvus";

pub(super) async fn look(
    view: Option<&View>,
    rows: Option<&dyn SourceRows>,
    tasks: &[Patient],
) -> Vec<Check> {
    let Some(rows) = rows else {
        let copies = |task: &&Patient| task.spec.snapshot.initial != Initial::Incremental;
        let without = tasks.iter().filter(copies).map(|task| {
            let text =
                "it is to copy rows, and this server does not know where the source's Milvus is";
            Check::problem(names::ROWS, text, HINT).about(task.spec.id.to_string())
        });
        return without.collect();
    };
    let Some(view) = view else {
        return vec![Check::skipped(names::ROWS, "the metadata is not known")];
    };
    let mut there = view.collections.values();
    let named = there.find_map(|c| {
        let is = c.state == ObjectState::Created;
        let database = view.database_name(c.db).filter(|_| is)?;
        Some((c, database))
    });
    // Without a collection: whether it answers at all.
    let (database, name) = match named {
        Some((collection, database)) => (database, collection.name.as_str()),
        None => ("default", "_"),
    };
    let answer = match within(names::ROWS, rows.describe(database, name)).await {
        Ok(answer) => answer,
        Err(late) => return vec![late],
    };
    let check = match (answer, named) {
        (Err(error), _) => Check::of(names::ROWS, &error.problem()),
        (Ok(Some(id)), Some((collection, _))) if id == collection.id => {
            let text = format!(
                "the source's Milvus answers, of {} too",
                label(view, collection)
            );
            Check::ok(names::ROWS, text)
        }
        (Ok(_), None) => Check::ok(names::ROWS, "the source's Milvus answers"),
        (Ok(found), Some((collection, _))) => {
            let found = found.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let text = format!(
                "{} has id {} in the source's metadata, and {found} at sourceConfig.milvus.uri: that is another Milvus",
                label(view, collection),
                collection.id
            );
            Check::problem(names::ROWS, text, HINT)
        }
    };
    vec![check]
}
