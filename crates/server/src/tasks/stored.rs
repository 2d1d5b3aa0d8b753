//! The form in which a task is stored.

use std::collections::BTreeMap;
use std::time::Duration;

use cdc_core::ids::{CollectionId, PChannel};
use cdc_core::secret::Secret;
use cdc_core::select::{Mapping, Skipped};
use cdc_core::snapshot::SnapshotSpec;
use cdc_core::store::StoreError;
use cdc_core::task::{
    GivenPosition, Mode, OnConflict, Selection, StartPoint, TargetSpec, TaskSpec,
};
use cdc_core::tls::ClientTls;
use cdc_core::tso::Tso;
use serde::{Deserialize, Serialize};

use super::{Task, TaskLimits};
use crate::request::Given;
use crate::store::StoredTask;

/// It holds the token; it has no `Debug`.
#[derive(Serialize, Deserialize)]
struct StoredSpec {
    uri: String,
    token: String,
    /// Paths; what is in the files is read when it is needed.
    #[serde(default)]
    tls: ClientTls,
    connect_timeout_s: u64,
    /// Older tasks have none: they write to standbys.
    #[serde(default)]
    mode: Mode,
    selection: Selection,
    #[serde(default, skip_serializing_if = "Mapping::is_empty")]
    mapping: Mapping,
    #[serde(default, skip_serializing_if = "Skipped::is_empty")]
    skip: Skipped,
    start: StartPoint,
    /// Database, name, start: a pair is no key of a JSON object.
    starts: Vec<(String, String, StartPoint)>,
    /// As `starts`.
    #[serde(default)]
    added: Vec<(String, String, Tso)>,
    on_conflict: OnConflict,
    #[serde(default)]
    snapshot: SnapshotSpec,
    positions: BTreeMap<CollectionId, BTreeMap<PChannel, GivenPosition>>,
    given: Given,
}

pub(super) fn encode(task: &Task) -> Result<StoredTask, StoreError> {
    let TaskSpec {
        id,
        target,
        selection,
        mapping,
        skip,
        start,
        starts,
        added,
        positions,
        on_conflict,
        snapshot,
        ..
    } = task.spec.clone();
    let spec = StoredSpec {
        uri: target.uri,
        token: target.token.expose().to_owned(),
        tls: target.tls,
        connect_timeout_s: target.connect_timeout.as_secs(),
        mode: target.mode,
        selection,
        mapping,
        skip,
        start,
        starts: starts
            .into_iter()
            .map(|((database, name), start)| (database, name, start))
            .collect(),
        added: added
            .into_iter()
            .map(|((database, name), at)| (database, name, at))
            .collect(),
        on_conflict,
        snapshot,
        positions,
        given: task.given.clone(),
    };
    let spec = serde_json::to_string(&spec).map_err(|e| StoreError::Corrupt(e.to_string()))?;
    Ok(StoredTask {
        id,
        spec,
        desired: task.desired.clone(),
        created: task.created,
        updated: task.updated,
    })
}

/// # Errors
/// What is stored cannot be read; the cause shows nothing of it, there is a token in it.
pub(super) fn decode(stored: StoredTask, limits: &TaskLimits) -> Result<Task, String> {
    let spec: StoredSpec = serde_json::from_str(&stored.spec)
        .map_err(|e| format!("its stored form is unreadable at column {}", e.column()))?;
    let spec_of_core = TaskSpec {
        id: stored.id,
        target: TargetSpec {
            uri: spec.uri,
            token: Secret::new(spec.token),
            tls: spec.tls,
            connect_timeout: Duration::from_secs(spec.connect_timeout_s),
            call_timeout: limits.call_timeout,
            mode: spec.mode,
        },
        selection: spec.selection,
        mapping: spec.mapping,
        skip: spec.skip,
        start: spec.start,
        starts: spec
            .starts
            .into_iter()
            .map(|(database, name, start)| ((database, name), start))
            .collect(),
        added: spec
            .added
            .into_iter()
            .map(|(database, name, at)| ((database, name), at))
            .collect(),
        positions: spec.positions,
        on_conflict: spec.on_conflict,
        snapshot: spec.snapshot,
        created: Tso::from_millis(stored.created),
        memory_budget: limits.memory_budget,
        durable_every: limits.durable_every,
    };
    Ok(Task {
        spec: spec_of_core,
        given: spec.given,
        desired: stored.desired,
        created: stored.created,
        updated: stored.updated,
    })
}
