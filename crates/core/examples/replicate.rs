//! Replicates everything from a natsmq source to a standby, with progress in memory only:
//! `replicate ETCD ROOT NATS TARGET`.
#![allow(clippy::unwrap_used, reason = "an example")]

use std::sync::Arc;
use std::time::Duration;

use cdc_core::catalog::etcd::{EtcdCatalog, EtcdConfig};
use cdc_core::engine::{Engine, Parts};
use cdc_core::ids::TaskId;
use cdc_core::secret::Secret;
use cdc_core::source::natsmq::{NatsmqConfig, NatsmqSource};
use cdc_core::store::memory::MemoryStore;
use cdc_core::target::grpc::GrpcConnector;
use cdc_core::task::{OnConflict, Selection, StartPoint, TargetSpec, TaskSpec};
use cdc_core::tls::ClientTls;

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_env_filter("info").init();
    let args: Vec<String> = std::env::args().collect();
    let catalog = EtcdCatalog::connect(EtcdConfig {
        endpoints: vec![args[1].clone()],
        root_path: args[2].clone(),
        ..Default::default()
    });
    let source = NatsmqSource::connect(NatsmqConfig {
        address: args[3].clone(),
        connect_timeout: Duration::from_secs(5),
    })
    .await
    .unwrap();
    let engine = Engine::new(Parts {
        rows: None,
        catalog: Arc::new(catalog),
        source: Arc::new(source),
        store: Arc::new(MemoryStore::default()),
        connector: Arc::new(GrpcConnector),
        replicate_channel: format!("{}-replicate-msg", args[2]),
    });
    let target = TargetSpec {
        uri: args[4].clone(),
        token: Secret::default(),
        tls: ClientTls::default(),
        connect_timeout: Duration::from_secs(5),
        call_timeout: Duration::from_secs(5),
        mode: cdc_core::task::Mode::Replicate,
    };
    engine.check_target(&target).await.unwrap();
    let id = TaskId::new("t");
    engine
        .start(TaskSpec {
            id: id.clone(),
            target,
            selection: Selection::All,
            mapping: Default::default(),
            skip: Default::default(),
            start: StartPoint::Created,
            starts: Default::default(),
            added: Default::default(),
            positions: Default::default(),
            created: cdc_core::tso::Tso::ZERO,
            on_conflict: OnConflict::Ask,
            memory_budget: 64 << 20,
            snapshot: Default::default(),
            durable_every: Duration::from_secs(300),
        })
        .unwrap();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let status = engine.status(&id).unwrap();
        println!("{}", serde_json::to_string(&status).unwrap());
    }
}
