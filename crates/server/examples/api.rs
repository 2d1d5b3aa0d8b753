//! The HTTP interface with nothing behind it: every task is taken, none carries anything. For trying the interface out,
//! and for `cargo xtask schemathesis`.
//!
//!     cargo run -p milvus-cdc --example api -- 127.0.0.1:8444 some-token-0123456789

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use cdc_core::catalog::etcd::EtcdConfig;
use cdc_core::doctor::{Check, Patient};
use cdc_core::error::Problem;
use cdc_core::ids::{CollectionId, PChannel, TaskId};
use cdc_core::position::{Position, QueueKind};
use cdc_core::promote::TriedOut;
use cdc_core::repair::{Repair, Repaired};
use cdc_core::secret::Secret;
use cdc_core::select::Name;
use cdc_core::source::reach::Held;
use cdc_core::task::{
    ChannelPosition, Choice, CollectionState, CollectionStatus, Counters, TargetSpec, TaskSpec,
    TaskStatus, Verdict,
};
use cdc_core::tso::Tso;
use milvus_cdc::config::access::{Access, ApiToken, Role};
use milvus_cdc::http::{Parts, router};
use milvus_cdc::listen;
use milvus_cdc::maintenance::LogLevel;
use milvus_cdc::request::Limits;
use milvus_cdc::runtime::Replication;
use milvus_cdc::store::SqliteStore;
use milvus_cdc::tasks::{TaskLimits, Tasks};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Tasks that run and carry one collection, which streams.
#[derive(Default)]
struct StandIn {
    running: Mutex<BTreeSet<TaskId>>,
}

#[async_trait]
impl Replication for StandIn {
    async fn check_target(&self, _: &TargetSpec) -> Result<(), Problem> {
        Ok(())
    }
    async fn check_source(&self) -> Result<(), Problem> {
        Ok(())
    }
    async fn collections(&self) -> Result<Vec<Name>, Problem> {
        Ok(Vec::new())
    }
    async fn on_target(
        &self,
        _: &TargetSpec,
        _: &BTreeSet<Name>,
    ) -> Result<BTreeMap<Name, bool>, Problem> {
        Ok(BTreeMap::new())
    }
    async fn not_loaded(&self, _: &BTreeSet<Name>) -> Result<BTreeSet<Name>, Problem> {
        Ok(BTreeSet::new())
    }
    fn change(&self, spec: TaskSpec) -> Result<(), Problem> {
        self.start(spec)
    }
    fn start(&self, spec: TaskSpec) -> Result<(), Problem> {
        self.running.lock().insert(spec.id);
        Ok(())
    }
    async fn stop(&self, task: &TaskId, _: Duration) {
        self.running.lock().remove(task);
    }
    async fn stop_all(&self, _: Duration) {
        self.running.lock().clear();
    }
    fn status(&self, task: &TaskId) -> Option<TaskStatus> {
        let here = ChannelPosition {
            position: Position::Natsmq(7),
            applied: Tso::from_millis(1_700_000_000_000),
            durable: Some(Tso::from_millis(1_699_999_000_000)),
        };
        let collection = CollectionStatus {
            source_id: CollectionId(445_811_557_825_249_939),
            database: "default".to_owned(),
            name: "a".to_owned(),
            state: CollectionState::Streaming {
                lag_seconds: 0.2,
                raised: false,
            },
            lag_seconds: Some(0.2),
            rows: 1,
            positions: BTreeMap::from([(PChannel::new("by-dev-rootcoord-dml_0"), here)]),
            last_error: None,
            target: None,
            note: None,
        };
        self.running.lock().contains(task).then(|| TaskStatus {
            collections: vec![collection],
            problems: Vec::new(),
            lag_seconds: Some(0.2),
            durable_lag_seconds: Some(100.0),
            checkpoint_age_seconds: Some(0.1),
            counters: Counters::default(),
            errors: BTreeMap::new(),
        })
    }
    async fn choose(&self, _: &TaskId, _: &str, _: &str, _: Choice) -> Result<(), Problem> {
        Ok(())
    }
    async fn judge(&self, _: &TaskId, _: &str, _: Verdict, _: &str) -> Result<(), Problem> {
        Ok(())
    }
    async fn repair(&self, _: &TaskSpec, wanted: &Repair) -> Result<Repaired, Problem> {
        Ok(Repaired {
            database: "default".to_owned(),
            name: "a".to_owned(),
            replaced: 0,
            deleted: wanted.keys.len(),
        })
    }
    async fn target_time(&self, _: &TargetSpec) -> Result<Tso, Problem> {
        Ok(Tso::from_millis(1_700_000_000_000))
    }
    async fn is_standby(&self, _: &TargetSpec) -> Result<bool, Problem> {
        Ok(false)
    }
    async fn check_switch(&self, _: &EtcdConfig) -> Result<(), Problem> {
        Ok(())
    }
    async fn switch_on(&self, _: &EtcdConfig) -> Result<(), Problem> {
        Ok(())
    }
    async fn try_out(&self, _: &TargetSpec, _: &[(String, String)]) -> Result<TriedOut, Problem> {
        Ok(TriedOut::default())
    }
    async fn reach(&self, channels: &BTreeSet<PChannel>) -> BTreeMap<PChannel, Held> {
        let held = Held {
            first: Some(Tso::from_millis(1_699_998_000_000)),
            retention: Some(Duration::from_secs(72 * 3600)),
        };
        channels.iter().map(|c| (c.clone(), held)).collect()
    }
    async fn examine(&self, _: Vec<Patient>, _: Vec<TargetSpec>) -> Vec<Check> {
        vec![Check::ok("all", "there is nothing behind this server")]
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let address = args.next().context("the address to listen on expected")?;
    let mut access = Access::default();
    if let Some(token) = args.next() {
        access.tokens.push(ApiToken {
            name: "example".to_owned(),
            token: Secret::new(token),
            role: Role::Full,
        });
    }
    let many = std::num::NonZeroU32::new(1_000_000).context("not zero")?;
    access.requests_per_second = many;
    access.burst = many;
    let folder = tempfile::tempdir()?;
    let limits = TaskLimits {
        max_task_num: 10_000,
        memory_budget: 1 << 20,
        durable_every: Duration::from_secs(300),
        call_timeout: Duration::from_secs(1),
        answer_deadline: Duration::from_millis(100),
    };
    let store = SqliteStore::open(&folder.path().join("store.db")).await?;
    let tasks = Tasks::new(store, Arc::new(StandIn::default()), limits);
    tasks.recover().await?;
    let stop = CancellationToken::new();
    let router = router(Parts {
        tasks,
        limits: Limits {
            max_name_length: 256,
            queue: QueueKind::Natsmq,
            replicate_channel: "by-dev-replicate-msg".to_owned(),
            rows: true,
        },
        warnings: access.warnings(&address),
        access: access.clone(),
        log_level: LogLevel::new(|_| Ok(())),
        stop: stop.clone(),
    });
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("http://{}", listener.local_addr()?);
    tokio::select! {
        () = listen::serve(listener, router, &access, None, stop) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
