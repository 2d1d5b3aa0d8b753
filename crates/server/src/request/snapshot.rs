//! What a creation says of the rows that were there before.

use std::num::NonZeroU64;

use cdc_core::snapshot::{Initial, SnapshotSpec};

use super::Limits;
use super::selection::Wanted;
use crate::fields::Fields;

const INITIAL: &[(&str, Initial)] = &[
    ("incremental", Initial::Incremental),
    ("snapshot", Initial::Snapshot),
    ("auto", Initial::Auto),
];
const FIELDS: [&str; 3] = ["load_for_snapshot", "rows_per_second", "bytes_per_second"];
/// More a second than anything does.
const MOST: u64 = 1 << 40;

/// Reads them. What is wrong goes to the errors of `data`.
pub(super) fn read(data: &Fields<'_>, limits: &Limits, wanted: &Wanted) -> SnapshotSpec {
    let initial = data.choice("initial", INITIAL).unwrap_or_default();
    let rate = |key| data.integer(key, 1..=MOST).and_then(NonZeroU64::new);
    let read = SnapshotSpec {
        initial,
        load: data.boolean("load_for_snapshot").unwrap_or_default(),
        rows_per_second: rate("rows_per_second"),
        bytes_per_second: rate("bytes_per_second"),
    };
    if initial != Initial::Incremental && !limits.rows {
        data.wrong(
            "initial",
            "incremental expected: this server does not know where the source's rows are read; set sourceConfig.milvus.uri in its configuration, and restart it",
        );
    }
    let begins = match initial {
        Initial::Incremental => None,
        Initial::Snapshot => Some("which begins at the moment of the copy"),
        Initial::Auto => Some("which begins at the creation, or at the moment of the copy"),
    };
    if let Some(begins) = begins
        && (data.get("start").is_some() || !wanted.starts.is_empty())
    {
        data.wrong(
            "start",
            format_args!("nothing expected here, nor with single collections, beside initial: snapshot or auto, {begins}"),
        );
    }
    // A lost position can be answered with a snapshot whatever a task began with: then these count as well.
    if initial == Initial::Incremental && !limits.rows {
        for key in FIELDS.into_iter().filter(|key| data.get(key).is_some()) {
            data.wrong(
                key,
                "it means nothing without sourceConfig.milvus.uri in the server's configuration: rows cannot be read",
            );
        }
    }
    read
}
