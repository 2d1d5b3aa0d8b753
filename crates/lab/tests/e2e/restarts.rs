//! A target that is killed and comes back: what it had not flushed is sent again, once, and nobody has to do anything.

use anyhow::Result;
use cdc_lab::cdc::{Cdc, Status};
use futures::future::try_join_all;
use rand::Rng;
use rand::rngs::StdRng;

use crate::harness::{say, tests};
use crate::lab::{Kind, Lab, PATIENCE};
use crate::plain::Plain;

tests![Alone: killed_under_rows_where_collections_share_channels];

/// More than physical channels: a 2.3.5 that reads such channels again leaves rows out.
const COLLECTIONS: usize = 26;
const KILLS: usize = 2;

async fn killed_under_rows_where_collections_share_channels(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::NoTask, random.random()).await?;
    lab.stop_cdc().await?;
    let often = "target:\n  durableSeconds: 5\n";
    lab.cdc = Cdc::start_with(&lab.source, lab.dir().join("often"), often, &lab.progress).await?;
    let task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
    let from = lab.from.clone();
    let create = (0..COLLECTIONS).map(|n| {
        let from = from.clone();
        async move { Plain::create(&from, &format!("shared{n}"), 1).await }
    });
    let mut all = try_join_all(create).await?;
    for kill in 0..KILLS {
        for c in &mut all {
            c.round(&from, random).await?;
        }
        // Some of it is flushed, and known to be.
        flushed_within(&lab, &task, 60.0).await?;
        for c in &mut all {
            c.round(&from, random).await?;
        }
        say(&format!("kill {kill} of the target"));
        lab.target.kill9().await?;
        for c in &mut all {
            c.round(&from, random).await?;
        }
        lab.target.restart(&lab.progress).await?;
        for c in &mut all {
            c.round(&from, random).await?;
        }
        goes_back(&lab, &task, kill).await?;
        let keys = all.iter().map(|c| c.keys.len()).sum();
        lab.equal_rows(keys).await?;
    }
    // What is flushed is there, and stays there, also what it has forgotten to write down: nothing comes any more.
    flushed_within(&lab, &task, 60.0).await?;
    lab.target.kill9().await?;
    lab.target.restart(&lab.progress).await?;
    goes_back(&lab, &task, KILLS).await?;
    let keys = all.iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await?;
    lab.end().await
}

async fn goes_back(lab: &Lab, task: &str, kills: usize) -> Result<()> {
    let what = "it goes back for what the target may have lost";
    let more = |_: &Status| {
        let log = std::fs::read_to_string(lab.cdc.log()).unwrap_or_default();
        log.matches("the target has restarted").count() > kills
    };
    lab.cdc.wait(task, what, PATIENCE, more).await.map(drop)
}

/// Until everything that is older than this is flushed; the API says so.
async fn flushed_within(lab: &Lab, task: &str, seconds: f64) -> Result<()> {
    let what = "what it has sent is flushed";
    let is_flushed = |s: &Status| {
        let lag = s.task["durable_lag_seconds"].as_f64();
        lag.is_some_and(|lag| lag < seconds)
    };
    lab.cdc
        .wait(task, what, PATIENCE, is_flushed)
        .await
        .map(drop)
}
