//! The corelib's engine as what carries the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::catalog::etcd::{EtcdCatalog, EtcdConfig, probe};
use cdc_core::catalog::{Catalog, CatalogError, ObjectState};
use cdc_core::doctor::{Check, Patient, Setup, examine};
use cdc_core::engine::{Engine, Parts};
use cdc_core::error::{ErrorClass, Problem, ProblemCode};
use cdc_core::ids::{PChannel, TaskId};
use cdc_core::promote::{self, TriedOut};
use cdc_core::repair::{Repair, Repaired};
use cdc_core::select::Name;
use cdc_core::snapshot::grpc::GrpcRows;
use cdc_core::snapshot::{RowsError, SourceRows};
use cdc_core::source::reach::{Held, Reach};
use cdc_core::source::{LogSource, QueueConfig, SourceError, open_source};
use cdc_core::store::SharedStore;
use cdc_core::target::fence::{FencedConnector, Permit};
use cdc_core::target::grpc::GrpcConnector;
use cdc_core::target::grpc::plain::PlainTarget;
use cdc_core::task::{Choice, TargetSpec, TaskSpec, TaskStatus, Verdict};
use cdc_core::tso::Tso;
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::RwLock;

use crate::config::{Config, Queue, TIMEOUT, kafka};
use crate::runtime::Replication;

/// Collections of the source that are asked for at the same time, and until all of them have to be known.
const LOOKS_AT_ONCE: usize = 16;
const LOOK_WITHIN: Duration = Duration::from_secs(15);
/// How long the source's metadata is waited for, where it was not read yet.
const VIEW_WITHIN: Duration = Duration::from_secs(5);

/// The engine, while this server owns the tasks, and what is needed to look at its source.
pub struct EngineReplication {
    /// One for each term: its store and its permit are of that term, and nothing of it outlives that.
    engine: RwLock<Option<Engine>>,
    catalog: Arc<EtcdCatalog>,
    replicate_channel: String,
    etcd: EtcdConfig,
    source: Arc<dyn LogSource>,
    rows: Option<Arc<dyn SourceRows>>,
    reach: Reach,
}

impl EngineReplication {
    /// Does not wait for the source: what is not there yet is waited for by the tasks.
    ///
    /// # Errors
    /// The queue's settings cannot work.
    pub async fn new(config: &Config) -> Result<Self, SourceError> {
        let etcd = etcd_config(config);
        let source = open_source(queue_config(config)?).await?;
        Ok(Self {
            engine: RwLock::new(None),
            catalog: Arc::new(EtcdCatalog::connect(etcd.clone())),
            replicate_channel: config.source.replicate_channel.clone(),
            etcd,
            reach: Reach::new(source.clone()),
            source,
            rows: rows(config),
        })
    }

    /// From now on tasks run: with this store, and for as long as `permit` says so.
    pub fn begin(&self, store: SharedStore, permit: Arc<dyn Permit>) {
        let connector = FencedConnector {
            inner: Arc::new(GrpcConnector),
            permit,
        };
        let engine = Engine::new(Parts {
            catalog: self.catalog.clone(),
            source: self.source.clone(),
            rows: self.rows.clone(),
            store,
            connector: Arc::new(connector),
            replicate_channel: self.replicate_channel.clone(),
        });
        *self.engine.write() = Some(engine);
    }

    /// Stops every task; none can be started any more.
    pub async fn end(&self, deadline: Duration) {
        let engine = self.engine.write().take();
        if let Some(engine) = engine {
            engine.stop_all(deadline).await;
        }
    }

    fn engine(&self) -> Result<Engine, Problem> {
        self.engine.read().clone().ok_or_else(|| {
            Problem::new(
                ErrorClass::Transient,
                "this server does not own the store and runs no tasks",
                "see /readyz for who does",
            )
        })
    }
}

/// The source's own Milvus, where rows from before the queue's history are read.
pub fn rows(config: &Config) -> Option<Arc<dyn SourceRows>> {
    let at = config.source.milvus.clone()?;
    Some(Arc::new(GrpcRows::new(at)))
}

/// Where the configuration says the source's metadata is.
pub fn etcd_config(config: &Config) -> EtcdConfig {
    let from = &config.source.etcd;
    let (username, password) = from.login.clone().unwrap_or_default();
    EtcdConfig {
        endpoints: from.endpoints.clone(),
        root_path: from.root_path.clone(),
        meta_sub_path: from.meta_sub_path.clone(),
        username,
        password,
        tls: from.tls.clone(),
        connect_timeout: TIMEOUT,
        request_timeout: TIMEOUT,
        kv_sub_path: from.kv_sub_path.clone(),
    }
}

/// Where the configuration says the source's queue is.
///
/// # Errors
/// Its settings cannot work.
pub fn queue_config(config: &Config) -> Result<QueueConfig, SourceError> {
    Ok(match config.source.queue.clone() {
        Queue::Natsmq { address } => QueueConfig::Natsmq {
            address,
            connect_timeout: TIMEOUT,
        },
        Queue::Rocksmq { path } => QueueConfig::Rocksmq {
            path,
            secondary_dir: None,
        },
        Queue::Pulsar(config) => QueueConfig::Pulsar(config),
        Queue::Kafka(mut kafka) => {
            kafka.prefetch = kafka::prefetch(config.memory_budget);
            QueueConfig::Kafka(kafka)
        }
    })
}

#[async_trait]
impl Replication for EngineReplication {
    async fn check_target(&self, target: &TargetSpec) -> Result<(), Problem> {
        self.engine()?.check_target(target).await
    }

    async fn check_source(&self) -> Result<(), Problem> {
        let slow = || {
            Problem::new(
                ErrorClass::Transient,
                "the source did not answer within 15 s",
                "check sourceConfig",
            )
        };
        let look = async {
            probe(&self.etcd).await.map_err(|e| catalog_problem(&e))?;
            self.source.ping().await.map_err(|e| e.problem())
        };
        tokio::time::timeout(Duration::from_secs(15), look)
            .await
            .map_err(|_| slow())?
    }

    async fn collections(&self) -> Result<Vec<Name>, Problem> {
        let mut views = self.catalog.subscribe();
        let read = views.wait_for(|view| view.revision > 0);
        let view = match tokio::time::timeout(VIEW_WITHIN, read).await {
            Ok(Ok(view)) => view.clone(),
            _ => {
                return Err(Problem::new(
                    ErrorClass::Transient,
                    "the source's metadata is not read yet",
                    "see GET /api/v1/doctor; try again",
                ));
            }
        };
        let living = view.collections.values();
        let living = living.filter(|c| c.state == ObjectState::Created);
        let named = living.filter_map(|c| {
            let database = view.database_name(c.db)?;
            Some(Name::new(database, c.name.as_str()))
        });
        Ok(named.collect())
    }

    async fn on_target(
        &self,
        target: &TargetSpec,
        names: &BTreeSet<Name>,
    ) -> Result<BTreeMap<Name, bool>, Problem> {
        self.engine()?.on_target(target, names).await
    }

    async fn not_loaded(&self, names: &BTreeSet<Name>) -> Result<BTreeSet<Name>, Problem> {
        let Some(rows) = &self.rows else {
            return Err(Problem::new(
                ErrorClass::Configuration,
                "rows are to be copied, and this server does not know where the source's Milvus is",
                "set sourceConfig.milvus.uri (and its login)",
            ));
        };
        let look = stream::iter(names.clone())
            .map(|name| async move {
                let is_loaded = rows.is_loaded(&name.database, &name.name, &[]).await?;
                Ok::<_, RowsError>((!is_loaded).then_some(name))
            })
            .buffer_unordered(LOOKS_AT_ONCE);
        let look = look.try_collect::<Vec<Option<Name>>>();
        let found = tokio::time::timeout(LOOK_WITHIN, look).await;
        let late = Problem::new(
            ErrorClass::Transient,
            format!(
                "the source's Milvus has not said of {} collections within {} s whether they are loaded",
                names.len(),
                LOOK_WITHIN.as_secs()
            ),
            "is it up? see GET /api/v1/doctor",
        );
        let found = found.map_err(|_| late)?.map_err(|e| e.problem())?;
        Ok(found.into_iter().flatten().collect())
    }

    fn change(&self, spec: TaskSpec) -> Result<(), Problem> {
        self.engine()?.change(spec)
    }

    fn start(&self, spec: TaskSpec) -> Result<(), Problem> {
        self.engine()?.start(spec)
    }

    async fn stop(&self, task: &TaskId, deadline: Duration) {
        if let Ok(engine) = self.engine() {
            engine.stop(task, deadline).await;
        }
    }

    async fn stop_all(&self, deadline: Duration) {
        if let Ok(engine) = self.engine() {
            engine.stop_all(deadline).await;
        }
    }

    fn status(&self, task: &TaskId) -> Option<TaskStatus> {
        self.engine().ok()?.status(task)
    }

    async fn choose(
        &self,
        task: &TaskId,
        database: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem> {
        self.engine()?.choose(task, database, name, choice).await
    }

    async fn judge(
        &self,
        task: &TaskId,
        key: &str,
        verdict: Verdict,
        by: &str,
    ) -> Result<(), Problem> {
        self.engine()?.judge(task, key, verdict, by).await
    }

    async fn repair(&self, spec: &TaskSpec, wanted: &Repair) -> Result<Repaired, Problem> {
        self.engine()?.repair(spec, wanted).await
    }

    async fn target_time(&self, target: &TargetSpec) -> Result<Tso, Problem> {
        let target = PlainTarget::connect(target).await;
        let target = target.map_err(|e| e.problem())?;
        target.now().await.map_err(|e| e.problem())
    }

    async fn is_standby(&self, target: &TargetSpec) -> Result<bool, Problem> {
        let target = PlainTarget::connect(target).await;
        let target = target.map_err(|e| e.problem())?;
        target.is_standby().await.map_err(|e| e.problem())
    }

    async fn check_switch(&self, etcd: &EtcdConfig) -> Result<(), Problem> {
        promote::check_switch(etcd).await
    }

    async fn switch_on(&self, etcd: &EtcdConfig) -> Result<(), Problem> {
        promote::switch_on(etcd).await
    }

    async fn try_out(
        &self,
        target: &TargetSpec,
        collections: &[(String, String)],
    ) -> Result<TriedOut, Problem> {
        let target = PlainTarget::connect(target).await;
        promote::try_out(&target.map_err(|e| e.problem())?, collections).await
    }

    async fn reach(&self, channels: &BTreeSet<PChannel>) -> BTreeMap<PChannel, Held> {
        self.reach.of(channels).await
    }

    async fn examine(&self, tasks: Vec<Patient>, targets: Vec<TargetSpec>) -> Vec<Check> {
        let setup = Setup {
            etcd: self.etcd.clone(),
            source: Ok(self.source.clone()),
            rows: self.rows.clone(),
            replicate_channel: self.replicate_channel.clone(),
            tasks,
            targets,
        };
        examine(&setup).await
    }
}

/// A refused login is told apart from other errors of the configuration.
fn catalog_problem(error: &CatalogError) -> Problem {
    match error {
        CatalogError::Login { .. } => error.problem().with_code(ProblemCode::Login),
        _ => error.problem(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_told_apart() {
        let (endpoints, cause) = ("http://h:1".to_owned(), "c".to_owned());
        let refused = CatalogError::Login {
            endpoints: endpoints.clone(),
            cause: cause.clone(),
        };
        assert_eq!(catalog_problem(&refused).code, Some(ProblemCode::Login));
        let away = CatalogError::Unreachable { endpoints, cause };
        assert_eq!(catalog_problem(&away).code, None);
    }
}
