//! Where stores are: a folder, or a server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use cdc_core::ids::{PChannel, TargetKey, TaskId};
use cdc_core::store::{Change, ProgressStore, StoreError, TaskProgress};
use cdc_core::tso::Tso;
use cdc_lab::servers::stores::{StoreKind, StoreServer};
use milvus_cdc::config::Config;
use milvus_cdc::store::open::StoreConfig;
use milvus_cdc::store::owner::{Claim, Taken, Term};
use milvus_cdc::store::{Backend, SharedTaskStore};
use parking_lot::Mutex;
use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    Mysql,
    Etcd,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Sqlite => "sqlite",
            Kind::Postgres => "postgres",
            Kind::Mysql => "mysql",
            Kind::Etcd => "etcd",
        }
    }
}

pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) server: Option<StoreServer>,
    dir: TempDir,
}

static PLACES: Mutex<BTreeMap<Kind, Place>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A test that panics does not put it back: the next one gets a fresh one.
pub(crate) async fn get(kind: Kind) -> Result<Place> {
    let there = PLACES.lock().remove(&kind);
    if let Some(place) = there {
        return Ok(place);
    }
    let server = match kind {
        Kind::Sqlite => None,
        Kind::Postgres => Some(StoreKind::Postgres),
        Kind::Mysql => Some(StoreKind::Mariadb),
        Kind::Etcd => Some(StoreKind::Etcd),
    };
    Ok(Place {
        kind,
        server: match server {
            Some(server) => Some(StoreServer::start(server).await?),
            None => None,
        },
        dir: tempfile::tempdir()?,
    })
}

pub(crate) fn put_back(place: Place) {
    PLACES.lock().insert(place.kind, place);
}

pub(crate) fn end_all() {
    PLACES.lock().clear();
}

impl Place {
    /// The name of a store that is not there yet.
    pub(crate) fn root(&self) -> String {
        format!("t{}", NEXT.fetch_add(1, Ordering::SeqCst))
    }

    /// Opens the store of this name as the program does, from its configuration.
    pub(crate) async fn open(&self, root: &str) -> Arc<dyn Backend> {
        self.store(root).open().await.unwrap()
    }

    pub(crate) fn store(&self, root: &str) -> StoreConfig {
        let store = match &self.server {
            Some(server) => server.yaml(root),
            None => {
                let path = self.dir.path().join(root).join("s.db");
                format!(
                    "metaStoreConfig: {{sqlite: {{path: {}}}}}\n",
                    path.display()
                )
            }
        };
        parse(&store).unwrap()
    }

    /// A new store, owned by `owner` for the length of the test.
    pub(crate) async fn owned(&self) -> Handle {
        let backend = self.open(&self.root()).await;
        let term = take(&backend, "owner", Duration::from_secs(3600)).await;
        Handle(backend.of_term(&term))
    }

    /// Everything the store has written.
    pub(crate) fn files(&self) -> PathBuf {
        match &self.server {
            Some(server) => server.data(),
            None => self.dir.path().to_owned(),
        }
    }
}

/// The store of this `metaStoreConfig`.
pub(crate) fn parse(store: &str) -> Result<StoreConfig, String> {
    // Whichever this was built with; nothing reads it here.
    let queue = match cfg!(feature = "natsmq") {
        true => "natsmq: {address: 'nats://h:1'}",
        false => "rocksmq: {path: /none}",
    };
    let text = format!("{store}sourceConfig: {{{queue}}}\n");
    Config::parse(&text, "test", &|_| None)
        .map(|config| config.store)
        .map_err(|error| error.to_string())
}

pub(crate) fn claim(name: &str, lease: Duration) -> Claim {
    Claim {
        name: name.to_owned(),
        lease,
    }
}

/// Takes a store that nobody owns.
pub(crate) async fn take(backend: &Arc<dyn Backend>, name: &str, lease: Duration) -> Term {
    match backend.take(&claim(name, lease)).await.unwrap() {
        Taken::Ours(term) => term,
        Taken::Theirs(owner) => panic!("{owner} has it"),
    }
}

/// What the contract suite takes.
pub(crate) struct Handle(pub(crate) SharedTaskStore);

#[async_trait]
impl ProgressStore for Handle {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        self.0.load(task).await
    }
    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        self.0.floors(target).await
    }
    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        self.0.message(task, message).await
    }
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.0.commit(changes).await
    }
}
