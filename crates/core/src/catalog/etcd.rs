//! The catalog on a source's etcd.

pub(crate) mod client;
mod probe;
mod run;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::probe::{SourceInfo, probe, roots};

use self::client::Link;
use super::assemble::Assembler;
use super::keys::MetaKey;
use super::{Catalog, CatalogError, CatalogHealth, Collection, View, decode};
use crate::ids::{CollectionId, DbId};
use crate::secret::Secret;
use crate::tls::ClientTls;
use crate::tso::Tso;

/// Where a source keeps its metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdConfig {
    /// `host:port`, or a URL with `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// The source's `etcd.rootPath`.
    pub root_path: String,
    /// The source's `etcd.metaSubPath`.
    pub meta_sub_path: String,
    /// The source's `etcd.kvSubPath`.
    pub kv_sub_path: String,
    /// Empty: no login.
    pub username: String,
    pub password: Secret,
    /// For the endpoints with `https://`: all have it, or none.
    pub tls: ClientTls,
    pub connect_timeout: Duration,
    /// For one call; a list may take several.
    pub request_timeout: Duration,
}

impl Default for EtcdConfig {
    /// What Milvus itself has as defaults, and 5 s for each timeout.
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            root_path: "by-dev".to_owned(),
            meta_sub_path: "meta".to_owned(),
            kv_sub_path: "kv".to_owned(),
            username: String::new(),
            password: Secret::default(),
            tls: ClientTls::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
        }
    }
}

impl EtcdConfig {
    /// `{rootPath}/{metaSubPath}/`
    pub fn meta_prefix(&self) -> String {
        prefix(&self.root_path, &self.meta_sub_path)
    }

    fn tso_key(&self) -> String {
        prefix(&self.root_path, &self.kv_sub_path) + "gid/timestamp"
    }

    /// The endpoints as they may be shown: without what someone wrote before an `@`.
    pub fn shown_endpoints(&self) -> String {
        let shown = self
            .endpoints
            .iter()
            .map(|endpoint| match endpoint.rsplit_once('@') {
                Some((_, host)) => host,
                None => endpoint.as_str(),
            });
        shown.collect::<Vec<_>>().join(",")
    }
}

fn prefix(root: &str, sub: &str) -> String {
    let parts = [root.trim_matches('/'), sub.trim_matches('/')];
    parts
        .iter()
        .filter(|part| !part.is_empty())
        .fold(String::new(), |all, part| all + part + "/")
}

/// What the background task and the callers share.
struct Shared {
    link: Link,
    view: watch::Sender<Arc<View>>,
    health: Mutex<CatalogHealth>,
}

/// The metadata of a source, kept up to date by a background task that ends when this is dropped.
pub struct EtcdCatalog {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl EtcdCatalog {
    /// Starts to read the source's etcd. Does not wait for it, and does not fail if it is down: until the first list is
    /// through the view has revision 0, and [`Catalog::health`] says why it takes so long. Has to be called within a
    /// tokio runtime.
    pub fn connect(config: EtcdConfig) -> Self {
        let shared = Arc::new(Shared {
            link: Link::new(config),
            view: watch::Sender::new(Arc::new(View::default())),
            health: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let task = run::run(shared.clone());
        let cancelled = stop.clone();
        tokio::spawn(async move { cancelled.run_until_cancelled_owned(task).await });
        Self {
            shared,
            _stop: stop.drop_guard(),
        }
    }
}

/// How often a collection that moves between databases is looked for again.
const MOVES: usize = 3;

impl EtcdCatalog {
    /// Everything of one collection in one transaction. `None` if its own key is neither below `db` nor a legacy one.
    async fn read_at(
        &self,
        db: Option<DbId>,
        id: CollectionId,
    ) -> Result<Option<Collection>, CatalogError> {
        let link = &self.shared.link;
        let meta = link.config.meta_prefix();
        let single = |key: MetaKey| TxnOp::get(format!("{meta}{key}"), None);
        let below = |kind: &str| {
            TxnOp::get(
                format!("{meta}{kind}/{id}/"),
                Some(GetOptions::new().with_prefix()),
            )
        };
        let mut ops = vec![
            single(MetaKey::LegacyCollection(id)),
            single(MetaKey::CollectionLoad(id)),
            below("root-coord/partitions"),
            below("root-coord/fields"),
            below("root-coord/functions"),
            below("root-coord/struct-array-fields"),
            below("field-index"),
            below("querycoord-partition-loadinfo"),
        ];
        ops.extend(db.map(|db| single(MetaKey::Collection { db, id })));
        let answer = link
            .call(|mut kv| {
                let read = Txn::new().and_then(ops.clone());
                async move { kv.txn(read).await }
            })
            .await?;
        let mut assembler = Assembler::default();
        for response in answer.op_responses() {
            let TxnOpResponse::Get(get) = response else {
                continue;
            };
            for kv in get.kvs() {
                let key = String::from_utf8_lossy(kv.key());
                if let Some(key) = key.strip_prefix(&meta) {
                    assembler.apply(key, Some(kv.value()), kv.mod_revision());
                }
            }
        }
        let revision = answer.header().map_or(1, |header| header.revision());
        let view = assembler.commit(revision);
        let found = view.and_then(|view| view.collections.get(&id).cloned());
        // A partition that cannot be read is not one that is gone: its rows must not be left out.
        let of_it = |key: &str| found.is_none() || key.starts_with("root-coord/partitions/");
        if let Some((key, cause)) = assembler.undecodable().iter().find(|(key, _)| of_it(key)) {
            return Err(CatalogError::Undecodable {
                key: key.clone(),
                cause: cause.clone(),
            });
        }
        Ok(found.map(Arc::unwrap_or_clone))
    }

    /// The databases below which the collection has a key. Where it has moved away from, that holds a tombstone, which
    /// is a value like others (2.3.5 to 2.6.15).
    async fn find_databases(&self, id: CollectionId) -> Result<Vec<DbId>, CatalogError> {
        let meta = self.shared.link.config.meta_prefix();
        let mut found = Vec::new();
        let options = GetOptions::new().with_keys_only();
        let all = format!("{meta}root-coord/database/collection-info/");
        self.shared
            .link
            .pages(&all, options, 0, |kv| {
                let key = String::from_utf8_lossy(kv.key());
                if let Some(MetaKey::Collection { db, id: of }) =
                    key.strip_prefix(&meta).and_then(MetaKey::parse)
                    && of == id
                {
                    found.push(db);
                }
            })
            .await?;
        Ok(found)
    }
}

#[async_trait]
impl Catalog for EtcdCatalog {
    fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.subscribe()
    }

    fn health(&self) -> CatalogHealth {
        self.shared.health.lock().clone()
    }

    async fn read_collection(&self, id: CollectionId) -> Result<Option<Collection>, CatalogError> {
        let known = self
            .shared
            .view
            .borrow()
            .collections
            .get(&id)
            .map(|collection| collection.db);
        // A collection without any key of its own in the view is looked for in all databases.
        let mut found = self.read_at(known, id).await?;
        for _ in 0..MOVES {
            if found.is_some() {
                break;
            }
            let databases = self.find_databases(id).await?;
            if databases.is_empty() {
                break;
            }
            for db in databases {
                found = self.read_at(Some(db), id).await?;
                if found.is_some() {
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn written_at(&self, db: DbId, id: CollectionId) -> Result<Option<i64>, CatalogError> {
        let link = &self.shared.link;
        let meta = link.config.meta_prefix();
        let keys = [
            MetaKey::LegacyCollection(id),
            MetaKey::Collection { db, id },
        ];
        let ops = keys.map(|key| TxnOp::get(format!("{meta}{key}"), None));
        let answer = link
            .call(|mut kv| {
                let read = Txn::new().and_then(ops.to_vec());
                async move { kv.txn(read).await }
            })
            .await?;
        let mut written = None;
        for response in answer.op_responses() {
            if let TxnOpResponse::Get(get) = response {
                let last = get.kvs().iter().map(|kv| kv.mod_revision()).max();
                written = written.max(last);
            }
        }
        Ok(written)
    }

    async fn tso_bound(&self) -> Result<Tso, CatalogError> {
        let link = &self.shared.link;
        let key = link.config.tso_key();
        let answer = link.get(key.as_bytes(), GetOptions::new()).await?;
        let Some(kv) = answer.kvs().first() else {
            return Err(CatalogError::NoMilvus {
                endpoints: link.config.shown_endpoints(),
                prefix: key,
            });
        };
        decode::tso_bound(kv.value()).map_err(|cause| CatalogError::Undecodable { key, cause })
    }
}
