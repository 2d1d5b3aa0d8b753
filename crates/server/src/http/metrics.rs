//! `GET /cdc/metrics`: Prometheus' text form, made from the tasks' own counters at every scrape.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use cdc_core::ids::{PChannel, TaskId};
use cdc_core::store::Need;
use cdc_core::task::{CollectionState, Counters};
use cdc_core::tso::Tso;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Api, answer_error, show};
use crate::states;
use crate::store::Desired;
use crate::tasks::unix_ms;

type Labels = Vec<(&'static str, String)>;
type Float = Gauge<f64, AtomicU64>;

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry(&api).await) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => answer_error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be written",
        ),
    }
}

async fn registry(api: &Api) -> Registry {
    let mut registry = Registry::with_prefix("milvus_cdc");
    let running = Family::<Labels, Gauge>::default();
    let collections = Family::<Labels, Gauge>::default();
    let lag = Family::<Labels, Float>::default();
    let age = Family::<Labels, Float>::default();
    let durable = Family::<Labels, Float>::default();
    let kept = Family::<Labels, Float>::default();
    let left = Family::<Labels, Float>::default();
    let in_flight = Family::<Labels, Gauge>::default();
    let errors = Family::<Labels, Counter>::default();
    let copied = Family::<Labels, Gauge>::default();
    let unreadable = Gauge::<i64>::default();
    type Pick = fn(&Counters) -> u64;
    let counters: [(&str, &str, Pick, Family<Labels, Counter>); 6] = [
        (
            "messages_in",
            "Messages read from the source",
            |c| c.messages_in,
            Family::default(),
        ),
        (
            "bytes_in",
            "Bytes read from the source",
            |c| c.bytes_in,
            Family::default(),
        ),
        (
            "rows_in",
            "Rows of the task's collections read from the source",
            |c| c.rows_in,
            Family::default(),
        ),
        (
            "messages_out",
            "Messages acknowledged by the target",
            |c| c.messages_out,
            Family::default(),
        ),
        (
            "rows_out",
            "Rows acknowledged by the target",
            |c| c.rows_out,
            Family::default(),
        ),
        (
            "bytes_out",
            "Bytes acknowledged by the target",
            |c| c.bytes_out,
            Family::default(),
        ),
    ];
    let mut needs: BTreeMap<TaskId, BTreeMap<PChannel, Need>> = BTreeMap::new();
    for task in api.tasks.list() {
        let label = vec![("task_id", task.spec.id.to_string())];
        running
            .get_or_create(&label)
            .set(i64::from(task.desired == Desired::Running));
        let mut states: BTreeMap<&str, i64> = BTreeMap::new();
        let mut count = |state| *states.entry(state).or_default() += 1;
        match api.tasks.status(&task.spec.id) {
            Some(status) => {
                for (.., pick, family) in &counters {
                    family.get_or_create(&label).inc_by(pick(&status.counters));
                }
                in_flight
                    .get_or_create(&label)
                    .set(i64::try_from(status.counters.in_flight_bytes).unwrap_or(i64::MAX));
                let stored = api.tasks.progress(&task.spec.id).await.ok();
                let stored_lag = || show::lag(&status, stored.as_ref()?);
                if let Some(seconds) = status.lag_seconds.or_else(stored_lag) {
                    lag.get_or_create(&label).set(seconds);
                }
                if let Some(stored) = stored {
                    needs.insert(task.spec.id.clone(), stored.needs());
                }
                if let Some(seconds) = status.durable_lag_seconds {
                    durable.get_or_create(&label).set(seconds);
                }
                if let Some(seconds) = status.checkpoint_age_seconds {
                    age.get_or_create(&label).set(seconds);
                }
                for (class, n) in &status.errors {
                    let mut label = label.clone();
                    label.push(("class", class.clone()));
                    errors.get_or_create(&label).inc_by(*n);
                }
                for c in &status.collections {
                    count(states::name(&c.state));
                    let CollectionState::Snapshotting {
                        rows_copied,
                        rows_total,
                        ..
                    } = c.state
                    else {
                        continue;
                    };
                    let rows = [
                        ("copied", rows_copied),
                        ("left", rows_total.saturating_sub(rows_copied)),
                    ];
                    for (rows, n) in rows {
                        let mut label = label.clone();
                        label.push(("collection", format!("{}.{}", c.database, c.name)));
                        label.push(("rows", rows.to_owned()));
                        let n = i64::try_from(n).unwrap_or(i64::MAX);
                        copied.get_or_create(&label).set(n);
                    }
                }
            }
            // A paused task falls behind, which is what its lag is for. A store that does not answer costs these
            // lines, not the scrape.
            None => {
                if let Ok(progress) = api.tasks.progress(&task.spec.id).await {
                    show::stored_states(&progress).for_each(count);
                    if let Some(seconds) = show::stored_lag(&progress) {
                        lag.get_or_create(&label).set(seconds);
                    }
                    needs.insert(task.spec.id.clone(), progress.needs());
                }
            }
        }
        for (state, n) in states {
            let mut label = label.clone();
            label.push(("state", state.to_owned()));
            collections.get_or_create(&label).set(n);
        }
    }
    let channels = needs.values().flat_map(BTreeMap::keys).cloned().collect();
    let held = api.tasks.reach(&channels).await;
    let now = Tso::from_millis(unix_ms());
    for (task, channel, need) in needs.iter().flat_map(|(task, needs)| {
        needs
            .iter()
            .map(move |(channel, need)| (task, channel, need))
    }) {
        let Some(held) = held.get(channel) else {
            continue;
        };
        let places = [("applied", Some(need.applied)), ("durable", need.durable)];
        for (position, ts) in places {
            let Some(room) = ts.map(|ts| held.headroom(ts, now)) else {
                continue;
            };
            let label = vec![
                ("task_id", task.to_string()),
                ("channel", channel.to_string()),
                ("position", position.to_owned()),
            ];
            if let Some(seconds) = room.kept {
                kept.get_or_create(&label).set(seconds);
            }
            if let Some(seconds) = room.left {
                left.get_or_create(&label).set(seconds);
            }
        }
    }
    unreadable.set(i64::try_from(api.tasks.unreadable().len()).unwrap_or(i64::MAX));
    for (name, help, _, family) in counters {
        registry.register(name, help, family);
    }
    registry.register(
        "task_running",
        "1 if the task shall run, 0 if it is paused",
        running,
    );
    registry.register(
        "tasks_unreadable",
        "Stored tasks that cannot be read",
        unreadable,
    );
    registry.register("collections", "Collections by state", collections);
    registry.register("lag_seconds", "Source time not applied yet", lag);
    registry.register(
        "durable_lag_seconds",
        "Source time that the target has not flushed yet",
        durable,
    );
    registry.register(
        "checkpoint_age_seconds",
        "Since the stored checkpoint last moved",
        age,
    );
    registry.register(
        "queue_kept_seconds",
        "Source time that the queue still holds before what is needed",
        kept,
    );
    registry.register(
        "queue_left_seconds",
        "Until what is needed is older than the queue keeps its messages, if it says how long that is",
        left,
    );
    registry.register("in_flight_bytes", "Bytes held in memory", in_flight);
    registry.register("errors", "Errors by class", errors);
    registry.register(
        "snapshot_rows",
        "Rows of collections that are copied now: copied, and left",
        copied,
    );
    registry
}
