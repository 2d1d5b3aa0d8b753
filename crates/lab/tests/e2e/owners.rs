//! Two servers on one store: one runs the tasks, the other one takes over when it is gone, and nothing is lost or doubled.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdc_lab::cdc::Cdc;
use cdc_lab::servers::stores::{StoreKind, StoreServer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::kills::{some_rounds, write};
use crate::lab::{Kind, Lab};
use crate::plain::Plain;

tests![Alone:
    etcd_a_killed_owner_is_replaced,
    etcd_a_frozen_owner_is_replaced_and_steps_back,
    postgres_a_frozen_owner_is_replaced_and_steps_back,
    mariadb_a_killed_owner_is_replaced,
];

/// From the end of the owner to the other one running its tasks.
const TAKEOVER: Duration = Duration::from_secs(15);
const FROZEN: Duration = Duration::from_secs(60);

async fn etcd_a_killed_owner_is_replaced(random: &mut StdRng) -> Result<()> {
    a_killed_owner(StoreKind::Etcd, random).await
}

async fn mariadb_a_killed_owner_is_replaced(random: &mut StdRng) -> Result<()> {
    a_killed_owner(StoreKind::Mariadb, random).await
}

async fn etcd_a_frozen_owner_is_replaced_and_steps_back(random: &mut StdRng) -> Result<()> {
    a_frozen_owner(StoreKind::Etcd, random).await
}

async fn postgres_a_frozen_owner_is_replaced_and_steps_back(random: &mut StdRng) -> Result<()> {
    a_frozen_owner(StoreKind::Postgres, random).await
}

/// `lab.cdc` owns the store, `second` waits.
struct Two {
    lab: Lab,
    second: Cdc,
    _store: StoreServer,
}

impl Two {
    async fn start(kind: StoreKind, random: &mut StdRng) -> Result<Self> {
        let store = StoreServer::start(kind).await?;
        let yaml = store.yaml("cdc");
        let mut lab = Lab::start(Kind::NoTask, random.random()).await?;
        lab.stop_cdc().await?;
        lab.cdc = Cdc::start_on(&lab.source, lab.dir().join("first"), &yaml, &lab.progress).await?;
        lab.task = lab.cdc.create_cluster_task(&lab.proxy.uri()).await?;
        let second = Cdc::start_on(&lab.source, lab.dir().join("second"), &yaml, &lab.progress);
        let second = second.await?;
        let two = Self {
            lab,
            second,
            _store: store,
        };
        waits_for(&two.second, &two.lab.cdc).await?;
        let (waiting, owner, task) = (&two.second, two.lab.cdc.address(), &two.lab.task);
        let got = waiting.request("get", json!({ "task_id": task })).await?;
        let named = got["owner"].as_str().unwrap_or_default();
        ensure!(named.contains(&owner), "{owner} is not named: {got}");
        let pause = json!({"request_type": "pause", "request_data": {"task_id": task}});
        let refused = waiting.post(&pause.to_string()).await?;
        ensure!(
            refused.status == 503 && refused.body.contains(&owner),
            "{}: {}",
            refused.status,
            refused.body
        );
        Ok(two)
    }

    async fn end(mut self) -> Result<()> {
        self.second.kill9().await?;
        self.lab.end().await
    }
}

/// `waiting` says that `owner` runs the tasks.
async fn waits_for(waiting: &Cdc, owner: &Cdc) -> Result<()> {
    let end = Instant::now() + TAKEOVER;
    loop {
        let reply = waiting.get("/readyz").await?;
        if reply.status == 503 && reply.body.contains(&owner.address()) {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("it does not wait: {}: {}", reply.status, reply.body);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How long it took until `next` has the tasks.
async fn taken_over(next: &Cdc) -> Result<Duration> {
    let begun = Instant::now();
    while next.get("/readyz").await?.status != 200 {
        ensure!(begun.elapsed() < TAKEOVER * 4, "never taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    say(&format!("taken over after {took:?}"));
    ensure!(took <= TAKEOVER, "taken over after {took:?}");
    Ok(took)
}

/// Rows acknowledged by the target, as this server counts them.
async fn rows(cdc: &Cdc, task: &str) -> Result<u64> {
    let got = cdc.request("get", json!({ "task_id": task })).await?;
    let rows = &got["task"]["counters"]["rows_out"];
    Ok(rows.as_u64().unwrap_or(0))
}

/// It carries rows, not only says so.
async fn carries(cdc: &Cdc, task: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while rows(cdc, task).await? == 0 {
        ensure!(Instant::now() < end, "no row was carried");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn collections(lab: &Lab) -> Result<Vec<Plain>> {
    let mut all = Vec::new();
    for shards in 1..=3 {
        all.push(Plain::create(&lab.from, &format!("owned{shards}"), shards).await?);
    }
    Ok(all)
}

async fn a_killed_owner(kind: StoreKind, random: &mut StdRng) -> Result<()> {
    let mut two = Two::start(kind, random).await?;
    let from = two.lab.from.clone();
    let mut collections = collections(&two.lab).await?;
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let kill = async {
        some_rounds(&rounds, random).await?;
        carries(&two.lab.cdc, &two.lab.task).await?;
        some_rounds(&rounds, random).await?;
        two.lab.cdc.kill9().await?;
        taken_over(&two.second).await?;
        carries(&two.second, &two.lab.task).await?;
        some_rounds(&rounds, random).await?;
        // Back again, it waits for the other one, and gets the store at once when that one ends well.
        two.lab.cdc.restart(&two.lab.progress).await?;
        waits_for(&two.lab.cdc, &two.second).await?;
        some_rounds(&rounds, random).await?;
        let exit = two.second.sigterm(Duration::from_secs(5)).await?;
        ensure!(exit.code == Some(0) && !exit.forced, "{exit:?}");
        let took = taken_over(&two.lab.cdc).await?;
        ensure!(took < Duration::from_secs(5), "after a clean end: {took:?}");
        carries(&two.lab.cdc, &two.lab.task).await?;
        some_rounds(&rounds, random).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let write = write(&from, &mut collections, &mut of_rows, &rounds, &enough);
    tokio::try_join!(write, kill)?;
    let keys = collections.iter().map(|c| c.keys.len()).sum();
    two.lab.equal_rows(keys).await?;
    two.end().await
}

async fn a_frozen_owner(kind: StoreKind, random: &mut StdRng) -> Result<()> {
    let two = Two::start(kind, random).await?;
    let from = two.lab.from.clone();
    let mut collections = collections(&two.lab).await?;
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let freeze = async {
        some_rounds(&rounds, random).await?;
        carries(&two.lab.cdc, &two.lab.task).await?;
        some_rounds(&rounds, random).await?;
        let frozen = Instant::now();
        two.lab.cdc.freeze();
        taken_over(&two.second).await?;
        carries(&two.second, &two.lab.task).await?;
        tokio::time::sleep(FROZEN.saturating_sub(frozen.elapsed())).await;
        two.lab.cdc.thaw();
        waits_for(&two.lab.cdc, &two.second).await?;
        let log = std::fs::read_to_string(two.lab.cdc.log())?;
        let lost = log.lines().find(|line| line.contains("lost the ownership"));
        say(lost.context("it does not say that it lost the ownership")?);
        some_rounds(&rounds, random).await?;
        some_rounds(&rounds, random).await?;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let write = write(&from, &mut collections, &mut of_rows, &rounds, &enough);
    tokio::try_join!(write, freeze)?;
    let keys = collections.iter().map(|c| c.keys.len()).sum();
    two.lab.equal_rows(keys).await?;
    let got: Value = two.lab.cdc.request("list", json!({})).await?;
    ensure!(got["owner"].as_str().is_some(), "{got}");
    two.end().await
}
