//! The source: its etcd, its metadata, its queue, and whether the two belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{AT_ONCE, Check, answers_to, label, names, some, spoken, within};
use crate::catalog::etcd::{EtcdCatalog, EtcdConfig, probe, roots};
use crate::catalog::{Catalog, CatalogError, ObjectState, View};
use crate::decode::{Event, decode};
use crate::ids::PChannel;
use crate::source::{Bounds, LogSource, SourceError, Start};
use crate::tso::Tso;

/// How long the first message of a channel may take. One that the queue holds comes at once.
const ONE_MESSAGE: Duration = Duration::from_secs(3);
/// A source writes ticks every 200 ms; one that has written none for this long is down, or it is not this queue.
const SILENT: Duration = Duration::from_secs(60);

/// etcd and the catalog in it.
pub(super) async fn metadata(config: &EtcdConfig) -> (Vec<Check>, Option<Arc<View>>) {
    let mut checks = Vec::new();
    let etcd_ok = || Check::ok(names::ETCD, format!("{} answers", config.shown_endpoints()));
    let below = config.meta_prefix();
    match within(names::ETCD, probe(config)).await {
        Err(late) => {
            checks.push(late);
            checks.push(Check::skipped(names::METADATA, "etcd does not answer"));
            return (checks, None);
        }
        Ok(Err(error @ (CatalogError::Unreachable { .. } | CatalogError::Login { .. }))) => {
            checks.push(Check::of(names::ETCD, &error.problem()));
            checks.push(Check::skipped(names::METADATA, "etcd cannot be read"));
            return (checks, None);
        }
        Ok(Err(error)) => {
            checks.push(etcd_ok());
            let mut found = Check::of(names::METADATA, &error.problem());
            if matches!(error, CatalogError::NoMilvus { .. }) {
                let instead = instead(config).await;
                found.text = format!("{}; {instead}", found.text);
            }
            checks.push(found);
            return (checks, None);
        }
        Ok(Ok(info)) => {
            checks.push(etcd_ok());
            if info.version.is_empty() {
                checks.push(Check::warning(
                    names::METADATA,
                    format!(
                        "there is a Milvus below {below}, but none of its servers is registered"
                    ),
                    "start the source; what it wrote can be read while it is down",
                ));
            } else {
                checks.push(Check::ok(
                    names::METADATA,
                    format!("Milvus {} below {below}", info.version),
                ));
            }
        }
    }
    let catalog = EtcdCatalog::connect(config.clone());
    let mut views = catalog.subscribe();
    let list = async {
        views
            .wait_for(|view| view.revision > 0)
            .await
            .map(|view| view.clone())
    };
    let view = match within(names::METADATA, list).await {
        Ok(Ok(view)) => view,
        Ok(Err(_)) => return (checks, None),
        Err(late) => {
            checks.push(match catalog.health().error {
                Some(error) => Check::of(names::METADATA, &error.problem()),
                None => late,
            });
            return (checks, None);
        }
    };
    let living = living(&view).count();
    checks.push(Check::ok(
        names::METADATA,
        format!(
            "{living} collection(s) in {} database(s)",
            view.databases.len()
        ),
    ));
    let undecodable: Vec<String> = catalog.health().undecodable.into_keys().collect();
    if !undecodable.is_empty() {
        checks.push(Check::problem(
            names::METADATA,
            format!(
                "{} object(s) cannot be read and are left out: {}",
                undecodable.len(),
                some(&undecodable)
            ),
            "please report it with the source's version",
        ));
    }
    match within(names::METADATA, catalog.tso_bound()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => checks.push(Check::problem(
            names::METADATA,
            format!("the source's time cannot be read: {error}"),
            "check sourceConfig.etcd.kvSubPath (kv by default), and that this etcd user may read below rootPath",
        )),
        Err(late) => checks.push(late),
    }
    (checks, Some(view))
}

/// What is in this etcd instead of the Milvus that was looked for.
async fn instead(config: &EtcdConfig) -> String {
    match within(names::METADATA, roots(config)).await {
        Ok(Ok(found)) if found.is_empty() => "no other Milvus is in this etcd".to_owned(),
        Ok(Ok(found)) => {
            let found: Vec<String> = found
                .into_iter()
                .map(|(root, meta)| format!("rootPath {root:?} with metaSubPath {meta:?}"))
                .collect();
            format!("found instead: {}", some(&found))
        }
        Ok(Err(error)) => format!("what else is there cannot be listed: {error}"),
        Err(_) => "what else is there could not be listed in time".to_owned(),
    }
}

pub(super) async fn queue(source: Result<&Arc<dyn LogSource>, &SourceError>) -> Vec<Check> {
    let source = match source {
        Ok(source) => source,
        Err(error) => return vec![Check::of(names::QUEUE, &error.problem())],
    };
    vec![match within(names::QUEUE, source.ping()).await {
        Ok(Ok(())) => Check::ok(names::QUEUE, format!("the {} queue answers", source.kind())),
        Ok(Err(error)) => Check::of(names::QUEUE, &error.problem()),
        Err(late) => late,
    }]
}

/// The collections that are not dropped.
pub(super) fn living(view: &View) -> impl Iterator<Item = &Arc<crate::catalog::Collection>> {
    view.collections
        .values()
        .filter(|c| c.state == ObjectState::Created)
}

/// Whether the queue is that of the Milvus in etcd: every channel the catalog names is there, and the source writes.
pub(super) async fn channels(
    view: Option<&View>,
    queue: Option<&dyn LogSource>,
    replicate_channel: &str,
) -> Vec<Check> {
    let (view, queue) = match (view, queue) {
        (Some(view), Some(queue)) => (view, queue),
        (None, _) => return vec![Check::skipped(names::CHANNELS, "no metadata")],
        (_, None) => return vec![Check::skipped(names::CHANNELS, "no queue")],
    };
    let mut of: BTreeMap<PChannel, String> = BTreeMap::new();
    for collection in living(view) {
        for shard in &collection.shards {
            of.entry(shard.pchannel.clone())
                .or_insert_with(|| label(view, collection));
        }
    }
    let asked = within(
        names::CHANNELS,
        bounds(queue, of.keys().cloned().collect::<BTreeSet<_>>()),
    );
    let replicate = PChannel::new(replicate_channel);
    let (asked, replicated) =
        tokio::join!(asked, within(names::CHANNELS, queue.bounds(&replicate)));
    let mut checks = Vec::new();
    match asked {
        Err(late) => checks.push(late),
        Ok(_) if of.is_empty() => checks.push(Check::ok(
            names::CHANNELS,
            "there is no collection yet, so there is no channel to look for",
        )),
        Ok(found) => {
            checks.push(there(&of, &found));
            let held = found
                .into_iter()
                .filter_map(|(channel, held)| Some((channel, held.ok()??)))
                .collect();
            if let Some(check) = alive(queue, held).await {
                checks.push(check);
            }
        }
    }
    match replicated {
        Ok(Err(SourceError::NoSuchChannel { .. })) => checks.push(Check::warning(
            names::CHANNELS,
            format!("{replicate_channel} is not in the queue: flushes of the source are not seen"),
            "set sourceConfig.replicateChan to {common.chanNamePrefix.cluster}-replicate-msg of the source",
        )),
        Ok(Err(error)) => checks.push(Check::of(names::CHANNELS, &error.problem())),
        Ok(Ok(_)) => {}
        Err(late) => checks.push(late),
    }
    checks
}

fn there(
    of: &BTreeMap<PChannel, String>,
    found: &BTreeMap<PChannel, Result<Option<Bounds>, SourceError>>,
) -> Check {
    let named = |channel: &PChannel| match of.get(channel) {
        Some(collection) => format!("{channel} ({collection})"),
        None => channel.to_string(),
    };
    let missing: Vec<String> = found
        .iter()
        .filter(|(_, held)| matches!(held, Err(SourceError::NoSuchChannel { .. })))
        .map(|(channel, _)| named(channel))
        .collect();
    if !missing.is_empty() {
        return Check::problem(
            names::CHANNELS,
            format!(
                "of {} channel(s) that the metadata names {} are not in the queue: {}",
                found.len(),
                missing.len(),
                some(&missing)
            ),
            "sourceConfig.etcd (address, rootPath) and the queue have to be those of one and the same Milvus",
        );
    }
    let failed = found
        .iter()
        .find_map(|(channel, held)| Some((channel, held.as_ref().err()?)));
    match failed {
        Some((channel, error)) => {
            let check = Check::of(names::CHANNELS, &error.problem());
            Check {
                text: format!("{}: {}", named(channel), check.text),
                ..check
            }
        }
        None => Check::ok(
            names::CHANNELS,
            format!(
                "all {} that the metadata names are in the queue",
                found.len()
            ),
        ),
    }
}

/// What each channel holds.
pub(super) async fn bounds(
    queue: &dyn LogSource,
    channels: impl IntoIterator<Item = PChannel>,
) -> BTreeMap<PChannel, Result<Option<Bounds>, SourceError>> {
    let questions = channels.into_iter().map(|channel| async move {
        let held = queue.bounds(&channel).await;
        (channel, held)
    });
    answers_to(questions).await.into_iter().collect()
}

/// How old the newest message is. Every used channel gets ticks: the youngest of a few tells.
async fn alive(queue: &dyn LogSource, held: Vec<(PChannel, Bounds)>) -> Option<Check> {
    let few = held.into_iter().take(AT_ONCE);
    let ages = answers_to(few.map(|(channel, held)| async move {
        let last = time_at(queue, &channel, Start::At(held.last)).await?;
        Some(age(last))
    }));
    let ages = ages.await.into_iter().flatten();
    let youngest = ages.min_by(f64::total_cmp)?;
    Some(if youngest > SILENT.as_secs_f64() {
        Check::warning(
            names::ALIVE,
            format!(
                "the newest message in the queue is {} old: the source does not write",
                spoken(youngest)
            ),
            "if the source runs, sourceConfig names another queue than it writes to, or the clocks differ",
        )
    } else {
        Check::ok(
            names::ALIVE,
            format!("the newest message is {} old", spoken(youngest.max(0.0))),
        )
    })
}

/// Seconds between a source timestamp and now, by this machine's clock.
pub(super) fn age(ts: Tso) -> f64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |now| now.as_secs_f64());
    now - ts.millis() as f64 / 1000.0
}

/// The source time of the first message with one at or behind `start`; `None` if it cannot be told in time.
pub(super) async fn time_at(
    queue: &dyn LogSource,
    channel: &PChannel,
    start: Start,
) -> Option<Tso> {
    let read = async {
        let mut reader = queue.open(channel, start).await.ok()?;
        loop {
            for message in reader.next(1).await.ok()? {
                let ts = match decode(&message.payload) {
                    Ok(Event::Tick(ts)) => Some(ts),
                    Ok(Event::Rows(rows)) => Some(rows.max_ts()),
                    Ok(Event::DropCollection { ts, .. } | Event::DropPartition { ts, .. }) => {
                        Some(ts)
                    }
                    Ok(Event::Other(_)) | Err(_) => None,
                };
                if ts.is_some() {
                    return ts;
                }
            }
        }
    };
    tokio::time::timeout(ONE_MESSAGE, read).await.ok().flatten()
}
