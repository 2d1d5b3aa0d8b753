//! Loads on the source what is not loaded, for those who asked for it; a replicator carries it to the target.

use std::time::Duration;

use anyhow::Result;
use milvus::proto::common::LoadState;
use tokio::time::Instant;

use crate::Options;
use crate::client::Client;
use crate::names::read_both;
use crate::objects::{Collection, Objects};
use crate::report::Report;

const PAUSE: Duration = Duration::from_millis(300);

/// Loads, waits up to `patience` for both sides, and reads the objects again. What has no index is left as it is.
///
/// # Errors
/// The servers cannot be read again.
pub(crate) async fn load(
    source: &Client,
    target: &Client,
    (wanted, found): (Objects, Objects),
    options: &Options,
    patience: Duration,
    report: &mut Report,
) -> Result<(Objects, Objects)> {
    let end = Instant::now() + patience;
    let mut loaded = Vec::new();
    for (own, c) in &wanted.collections {
        let Some(on_target) = found.collections.get(own) else {
            continue;
        };
        if c.is_loaded() || !c.indexed {
            continue;
        }
        let full = format!("{}.{}", c.db, c.name);
        match source.load(None, &c.db, &c.name).await {
            Ok(()) => {
                loaded.push((c, on_target));
                let line = format!("{full}: loaded on the source for this comparison");
                report.remarks.push(line);
            }
            Err(e) => report.remarks.push(format!("{full}: {e:#}")),
        }
    }
    if loaded.is_empty() {
        return Ok((wanted, found));
    }
    for (c, _) in &loaded {
        if !wait(source, c, end).await {
            continue;
        }
        // A 2.3.5 that loads a collection whose channel another one shares may leave out its unflushed rows; its data
        // node has them, and a flush brings them back. One that is refused is no reason not to compare.
        if let Err(e) = source
            .flush(None, &c.db, std::slice::from_ref(&c.name))
            .await
        {
            report.remarks.push(format!("{}.{}: {e:#}", c.db, c.name));
        }
    }
    for (_, c) in &loaded {
        wait(target, c, end).await;
    }
    read_both(source, target, options).await
}

/// Whether it was loaded in time. What is not is said with the rows that are not compared.
async fn wait(client: &Client, c: &Collection, end: Instant) -> bool {
    loop {
        match client.load_state(&c.db, &c.name, &c.partitions).await {
            Ok(LoadState::Loaded) => return true,
            _ if Instant::now() >= end => return false,
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}
