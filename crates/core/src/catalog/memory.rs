//! The catalog's twin in memory, for tests.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Alias, Catalog, CatalogError, CatalogHealth, Collection, Database, ObjectState, View};
use crate::ids::{CollectionId, DbId};
use crate::tso::Tso;

/// A [`Catalog`] that holds what it is told. Every setter publishes a view of the next revision.
pub struct MemoryCatalog {
    view: watch::Sender<Arc<View>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What [`Catalog::read_collection`] answers, which may be ahead of the view.
    now: HashMap<CollectionId, Collection>,
    /// How often the entry itself was written: what it is called, where it is, its state and its properties.
    written: HashMap<CollectionId, i64>,
    read_errors: HashMap<CollectionId, CatalogError>,
    error: Option<CatalogError>,
    health: CatalogHealth,
    tso: Tso,
}

impl Inner {
    fn write(&mut self, collection: Collection) {
        let is = |c: &Collection| (c.db, c.name.clone(), c.state, c.properties.clone());
        let id = collection.id;
        let before = self.now.get(&id).map(is);
        if before != Some(is(&collection)) {
            *self.written.entry(id).or_default() += 1;
        }
        self.now.insert(id, collection);
    }
}

impl Default for MemoryCatalog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryCatalog {
    /// With the database `default` (1) and nothing else, at revision 1.
    pub fn new() -> Self {
        let default = Database {
            id: DbId(1),
            name: "default".to_owned(),
            properties: Vec::new(),
        };
        let view = View {
            revision: 1,
            databases: [(default.id, Arc::new(default))].into(),
            ..View::default()
        };
        Self {
            view: watch::Sender::new(Arc::new(view)),
            inner: Mutex::default(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| {
            let mut next = View::clone(view);
            change(&mut next);
            next.revision += 1;
            *view = Arc::new(next);
        });
    }

    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    pub fn put_database(&self, database: Database) {
        self.change(|view| {
            view.databases.insert(database.id, Arc::new(database));
        });
    }

    pub fn remove_database(&self, id: DbId) {
        self.change(|view| {
            view.databases.remove(&id);
        });
    }

    pub fn put_alias(&self, alias: Alias) {
        self.change(|view| {
            view.aliases
                .insert((alias.db, alias.name.clone()), Arc::new(alias));
        });
    }

    pub fn remove_alias(&self, db: DbId, name: &str) {
        self.change(|view| {
            view.aliases.remove(&(db, name.to_owned()));
        });
    }

    /// Puts or replaces a collection, for the view and for linearizable reads.
    pub fn put_collection(&self, collection: Collection) {
        self.inner.lock().write(collection.clone());
        self.change(|view| {
            view.collections.insert(collection.id, Arc::new(collection));
        });
    }

    /// Only linearizable reads see it; the view does not (yet), as when a watch lags behind.
    pub fn put_collection_unseen(&self, collection: Collection) {
        self.inner.lock().write(collection);
    }

    /// Changes a collection in place. `false` if there is none of that id.
    pub fn update_collection(
        &self,
        id: CollectionId,
        change: impl FnOnce(&mut Collection),
    ) -> bool {
        let Some(mut collection) = self.inner.lock().now.get(&id).cloned() else {
            return false;
        };
        change(&mut collection);
        self.put_collection(collection);
        true
    }

    /// What a drop on the source does at once: the entry stays, in state Dropping. `false` if there is none of that id.
    pub fn drop_collection(&self, id: CollectionId) -> bool {
        self.update_collection(id, |collection| collection.state = ObjectState::Dropping)
    }

    /// What the source's garbage collection does much later: the entry goes.
    pub fn remove_collection(&self, id: CollectionId) {
        self.inner.lock().now.remove(&id);
        self.change(|view| {
            view.collections.remove(&id);
        });
    }

    /// Only linearizable reads know; the view shows it still, as when a watch lags behind.
    pub fn remove_collection_unseen(&self, id: CollectionId) {
        self.inner.lock().now.remove(&id);
    }

    /// The view shows of this collection what linearizable reads see.
    pub fn show_collection(&self, id: CollectionId) {
        let now = self.inner.lock().now.get(&id).cloned();
        match now {
            Some(collection) => self.put_collection(collection),
            None => self.remove_collection(id),
        }
    }

    /// Lets [`Catalog::read_collection`] of this id fail, until `None` is set.
    pub fn fail_read(&self, id: CollectionId, error: Option<CatalogError>) {
        let errors = &mut self.inner.lock().read_errors;
        match error {
            Some(error) => errors.insert(id, error),
            None => errors.remove(&id),
        };
    }

    /// Lets every read fail and the health say so, as while etcd is down, until `None` is set.
    pub fn fail(&self, error: Option<CatalogError>) {
        let mut inner = self.inner.lock();
        inner.health.error.clone_from(&error);
        inner.error = error;
    }

    /// Names an object as undecodable in the health.
    pub fn put_undecodable(&self, key: impl Into<String>, cause: impl Into<String>) {
        self.inner
            .lock()
            .health
            .undecodable
            .insert(key.into(), cause.into());
    }

    pub fn set_tso(&self, tso: Tso) {
        self.inner.lock().tso = tso;
    }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    fn health(&self) -> CatalogHealth {
        self.inner.lock().health.clone()
    }

    async fn read_collection(&self, id: CollectionId) -> Result<Option<Collection>, CatalogError> {
        let inner = self.inner.lock();
        match inner.error.as_ref().or_else(|| inner.read_errors.get(&id)) {
            Some(error) => Err(error.clone()),
            None => Ok(inner.now.get(&id).cloned()),
        }
    }

    async fn written_at(&self, db: DbId, id: CollectionId) -> Result<Option<i64>, CatalogError> {
        let inner = self.inner.lock();
        match &inner.error {
            Some(error) => Err(error.clone()),
            None => {
                let there = inner.now.get(&id).is_some_and(|c| c.db == db);
                Ok(inner.written.get(&id).copied().filter(|_| there))
            }
        }
    }

    async fn tso_bound(&self) -> Result<Tso, CatalogError> {
        let inner = self.inner.lock();
        match &inner.error {
            Some(error) => Err(error.clone()),
            None => Ok(inner.tso),
        }
    }
}
