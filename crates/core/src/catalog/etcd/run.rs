//! The background task of the catalog: list at one revision, watch from the next one, and list again whenever the watch
//! ends for whatever reason.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream, Watcher};
use rand::Rng;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use super::super::assemble::Assembler;
use super::super::keys::{PREFIXES, RANGE_END, RANGE_START};
use super::{CatalogError, Shared};

/// A living etcd answers each request for progress at once. One that has said nothing for [`SILENCE`] is dead.
const ASK_EVERY: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_secs(9);
const BACK_OFF: Duration = Duration::from_millis(200);
const MAX_BACK_OFF: Duration = Duration::from_secs(10);
/// The events of at most 1,000 revisions come in one response.
const MAX_RESPONSE: usize = 512 << 20;

/// Why a watch ended.
enum End {
    /// What would have come next is compacted: a new list is all it takes.
    Compacted,
    Broken(CatalogError),
}

/// Never returns; cancelled by dropping the future.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut back_off = BACK_OFF;
    loop {
        let before = shared.view.borrow().clone();
        let mut assembler = Assembler::after(before);
        let end = match list(&shared, &mut assembler).await {
            Ok(revision) => {
                let started = Instant::now();
                let end = follow(&shared, &mut assembler, revision).await;
                // A watch that lasted proves that the next failure is a new one.
                if started.elapsed() > SILENCE {
                    back_off = BACK_OFF;
                }
                end
            }
            Err(error) => End::Broken(error),
        };
        match end {
            End::Compacted => tracing::info!(
                "source etcd compacted what the watch would have read; listing again"
            ),
            End::Broken(error) => {
                let news = shared.health.lock().error.replace(error.clone()) != Some(error.clone());
                if news {
                    tracing::warn!(%error, "source metadata cannot be followed; tried again");
                }
                shared.link.forget().await;
            }
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        sleep(back_off.mul_f64(jitter)).await;
        back_off = (back_off * 2).min(MAX_BACK_OFF);
    }
}

/// Lists every prefix at one revision, publishes, and returns the revision.
async fn list(shared: &Shared, assembler: &mut Assembler) -> Result<i64, CatalogError> {
    let meta = shared.link.config.meta_prefix();
    let mut revision = 0;
    for prefix in PREFIXES {
        let take = |kv: &etcd_client::KeyValue| {
            if let Some(key) = kv.key_str().ok().and_then(|key| key.strip_prefix(&meta)) {
                assembler.apply(key, Some(kv.value()), kv.mod_revision());
            }
        };
        revision = shared
            .link
            .pages(
                &format!("{meta}{prefix}"),
                GetOptions::new(),
                revision,
                take,
            )
            .await?;
    }
    publish(shared, assembler, revision);
    Ok(revision)
}

fn publish(shared: &Shared, assembler: &mut Assembler, revision: i64) {
    let view = assembler.commit(revision);
    let mut health = shared.health.lock();
    if health.undecodable != *assembler.undecodable() {
        for (key, cause) in assembler.undecodable() {
            if !health.undecodable.contains_key(key) {
                tracing::warn!(
                    key,
                    cause,
                    "source metadata cannot be decoded; that object is left out"
                );
            }
        }
        health.undecodable.clone_from(assembler.undecodable());
    }
    drop(health);
    if let Some(view) = view {
        shared.view.send_replace(view);
    }
}

/// Applies everything after `revision` until the watch ends.
async fn follow(shared: &Shared, assembler: &mut Assembler, revision: i64) -> End {
    let (mut watcher, mut stream) = match watch(shared, revision).await {
        Ok(watch) => watch,
        Err(error) => return End::Broken(error),
    };
    if shared.health.lock().error.take().is_some() {
        tracing::info!(revision, "source metadata is followed again");
    }
    let meta = shared.link.config.meta_prefix();
    let mut heard = Instant::now();
    let mut ask = interval(ASK_EVERY);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let silent = |heard: Instant| {
            shared.link.unreachable(format!(
                "the watch is silent for {} s",
                heard.elapsed().as_secs()
            ))
        };
        tokio::select! {
            message = timeout_at(heard + SILENCE, stream.message()) => match message {
                Err(_) => return End::Broken(silent(heard)),
                Ok(Err(error)) => return End::Broken(shared.link.explain(super::client::Failure::Etcd(error))),
                Ok(Ok(None)) => return End::Broken(shared.link.unreachable("the watch was closed")),
                Ok(Ok(Some(response))) => {
                    heard = Instant::now();
                    if let Some(end) = cancelled(shared, &response) {
                        return end;
                    }
                    take(shared, assembler, &meta, &response);
                }
            },
            _ = ask.tick() => {
                // A full queue of requests means that nothing is sent any more; the deadline above ends it.
                if let Ok(Err(_)) = timeout_at(heard + SILENCE, watcher.request_progress()).await {
                    return End::Broken(shared.link.unreachable("the watch was closed"));
                }
            }
        }
    }
}

/// One watch over one range, so that the events of all prefixes come in one order and those of one transaction in one
/// response. Without fragments for the same reason.
async fn watch(shared: &Shared, revision: i64) -> Result<(Watcher, WatchStream), CatalogError> {
    let link = &shared.link;
    let meta = link.config.meta_prefix();
    let options = WatchOptions::new()
        .with_range(format!("{meta}{RANGE_END}"))
        .with_start_revision(revision + 1)
        .with_progress_notify();
    let mut client = link
        .client()
        .await?
        .watch_client()
        .max_decoding_message_size(MAX_RESPONSE);
    let start = client.watch(format!("{meta}{RANGE_START}"), Some(options));
    link.in_time(link.config.request_timeout, start)
        .await
        .map_err(|failure| link.explain(failure))
}

fn cancelled(shared: &Shared, response: &WatchResponse) -> Option<End> {
    if !response.canceled() {
        return None;
    }
    if response.compact_revision() > 0 {
        return Some(End::Compacted);
    }
    let endpoints = shared.link.config.shown_endpoints();
    let cause = response.cancel_reason().to_owned();
    let refused = cause.contains("permission denied") || cause.contains("auth");
    Some(End::Broken(match refused {
        true => CatalogError::Login { endpoints, cause },
        false => CatalogError::Unreachable { endpoints, cause },
    }))
}

fn take(shared: &Shared, assembler: &mut Assembler, meta: &str, response: &WatchResponse) {
    let mut revision = 0;
    for event in response.events() {
        let Some(kv) = event.kv() else {
            continue;
        };
        revision = revision.max(kv.mod_revision());
        if let Some(key) = kv.key_str().ok().and_then(|key| key.strip_prefix(meta)) {
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            assembler.apply(key, value, kv.mod_revision());
        }
    }
    if revision > 0 {
        publish(shared, assembler, revision);
    }
}
