//! `kill -9`: every call of one generation of the engine passes its gate, and none has an effect or an answer once the
//! generation is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::catalog::{Catalog, CatalogError, CatalogHealth, Collection, View};
use cdc_core::ids::{CollectionId, DbId, PChannel, PartitionId, TargetKey, TaskId};
use cdc_core::position::QueueKind;
use cdc_core::route::encode::Entry;
use cdc_core::select::Name;
use cdc_core::source::{Bounds, LogReader, LogSource, RawMessage, SourceError, Start};
use cdc_core::store::{Change, ProgressStore, SharedStore, StoreError, TaskProgress};
use cdc_core::target::memory::RowGate;
use cdc_core::target::{
    Loaded, Target, TargetCollection, TargetConnector, TargetError, TargetIndex,
};
use cdc_core::task::{Mode, TargetSpec};
use cdc_core::tso::Tso;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::points;

/// Which calls count towards a kill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Store,
    Replicate,
    Ddl,
    Read,
    /// Inserts and deletes of a target in plain mode, several of which make a ReplicateMessage of its lane.
    Rows,
    /// Of any kind but `Rows`, which are within others.
    Any,
    /// Those that write this: see [`crate::points`], or the name of a call to the target.
    Point(&'static str),
}

/// How often commits go wrong. Probabilities of one commit.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct DiskWeather {
    /// Fails, and nothing is written.
    pub fails: f64,
    /// Is written, and its answer is lost.
    pub lost: f64,
}

/// Kills at the `after`-th call of a kind from now, before its effect or behind it.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    pub kind: Kind,
    pub after: u32,
    pub behind: bool,
}

pub struct Gate {
    dead: watch::Sender<bool>,
    trap: Mutex<Option<Trap>>,
    rng: Mutex<StdRng>,
    disk: Mutex<DiskWeather>,
    /// ReplicateMessage calls that are not answered yet.
    open: AtomicUsize,
    /// How many there were when it died.
    cut: AtomicUsize,
    /// Where it has written.
    passed: Mutex<BTreeSet<&'static str>>,
}

impl Gate {
    pub fn new(rng: StdRng) -> Arc<Self> {
        Arc::new(Self {
            dead: watch::Sender::new(false),
            trap: Mutex::default(),
            rng: Mutex::new(rng),
            disk: Mutex::default(),
            open: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            passed: Mutex::default(),
        })
    }

    pub fn kill(&self) {
        if !self.dead.send_replace(true) {
            self.cut.store(self.open.load(SeqCst), SeqCst);
        }
    }

    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// ReplicateMessage calls between their sending and their answer when it was killed.
    pub fn cut(&self) -> usize {
        self.cut.load(SeqCst)
    }

    /// Where it has written so far, by name.
    pub fn passed(&self) -> BTreeSet<&'static str> {
        self.passed.lock().clone()
    }

    pub fn set_disk(&self, weather: DiskWeather) {
        *self.disk.lock() = weather;
    }

    pub fn clear(&self) {
        *self.trap.lock() = None;
    }

    pub fn set(&self, trap: Trap) {
        *self.trap.lock() = Some(trap);
    }

    pub async fn died(&self) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    fn sprung(&self, kind: Kind, names: &[&'static str]) -> Option<Trap> {
        if kind != Kind::Read {
            self.passed.lock().extend(names);
        }
        let mut slot = self.trap.lock();
        let trap = slot.as_mut().filter(|t| match t.kind {
            Kind::Any => kind != Kind::Rows,
            Kind::Point(name) => names.contains(&name),
            wanted => wanted == kind,
        })?;
        trap.after = trap.after.saturating_sub(1);
        if trap.after > 0 {
            return None;
        }
        slot.take()
    }

    async fn pass<T>(&self, kind: Kind, call: impl Future<Output = T>) -> T {
        self.pass_by(kind, &[], call).await
    }

    async fn pass_by<T>(
        &self,
        kind: Kind,
        names: &[&'static str],
        call: impl Future<Output = T>,
    ) -> T {
        let trap = self.sprung(kind, names);
        if trap.is_some_and(|t| !t.behind) {
            self.kill();
        }
        let _counted = (kind == Kind::Replicate).then(|| Counted::new(&self.open));
        let answer = tokio::select! {
            biased;
            () = self.died() => pending().await,
            answer = call => answer,
        };
        if trap.is_some() {
            self.kill();
        }
        if *self.dead.borrow() {
            return pending().await;
        }
        answer
    }

    async fn disk(&self) {
        let wait = self.rng.lock().random_range(0..3000);
        tokio::time::sleep(Duration::from_micros(wait)).await;
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(of: &'a AtomicUsize) -> Self {
        of.fetch_add(1, SeqCst);
        Self(of)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Something that is used through a gate.
pub struct Gated<T: ?Sized> {
    pub gate: Arc<Gate>,
    pub inner: Arc<T>,
}

#[async_trait]
impl ProgressStore for Gated<dyn ProgressStore> {
    async fn load(&self, task: &TaskId) -> Result<TaskProgress, StoreError> {
        self.gate.pass(Kind::Read, self.inner.load(task)).await
    }

    async fn floors(&self, target: &TargetKey) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
        self.gate.pass(Kind::Read, self.inner.floors(target)).await
    }

    async fn message(&self, task: &TaskId, message: &str) -> Result<Vec<u8>, StoreError> {
        let read = self.inner.message(task, message);
        self.gate.pass(Kind::Read, read).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let names: Vec<&'static str> = changes.iter().map(points::of).collect();
        let write = async {
            self.gate.disk().await;
            let weather = *self.gate.disk.lock();
            let dice: f64 = self.gate.rng.lock().random();
            if dice < weather.fails {
                return Err(StoreError::Unavailable("made to fail".to_owned()));
            }
            let done = self.inner.commit(changes).await;
            self.gate.disk().await;
            if dice < weather.fails + weather.lost {
                return Err(StoreError::Unavailable("its answer is lost".to_owned()));
            }
            done
        };
        self.gate.pass_by(Kind::Store, &names, write).await
    }
}

#[async_trait]
impl LogSource for Gated<dyn LogSource> {
    fn kind(&self) -> QueueKind {
        self.inner.kind()
    }

    async fn ping(&self) -> Result<(), SourceError> {
        self.gate.pass(Kind::Read, self.inner.ping()).await
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        self.gate.pass(Kind::Read, self.inner.bounds(channel)).await
    }

    async fn retention(&self, channel: &PChannel) -> Result<Option<Duration>, SourceError> {
        self.gate
            .pass(Kind::Read, self.inner.retention(channel))
            .await
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        let inner = self.gate.pass(Kind::Read, self.inner.open(channel, start));
        Ok(Box::new(GatedReader {
            gate: self.gate.clone(),
            inner: inner.await?,
        }))
    }
}

struct GatedReader {
    gate: Arc<Gate>,
    inner: Box<dyn LogReader>,
}

#[async_trait]
impl LogReader for GatedReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        self.gate.pass(Kind::Read, self.inner.next(max_bytes)).await
    }
}

#[async_trait]
impl Catalog for Gated<dyn Catalog> {
    fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.inner.subscribe()
    }

    fn health(&self) -> CatalogHealth {
        self.inner.health()
    }

    async fn read_collection(&self, id: CollectionId) -> Result<Option<Collection>, CatalogError> {
        self.gate
            .pass(Kind::Read, self.inner.read_collection(id))
            .await
    }

    async fn written_at(&self, db: DbId, id: CollectionId) -> Result<Option<i64>, CatalogError> {
        self.gate
            .pass(Kind::Read, self.inner.written_at(db, id))
            .await
    }

    async fn tso_bound(&self) -> Result<Tso, CatalogError> {
        self.gate.pass(Kind::Read, self.inner.tso_bound()).await
    }
}

#[async_trait]
impl TargetConnector for Gated<dyn TargetConnector> {
    async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError> {
        let inner = self.gate.pass(Kind::Read, self.inner.connect(spec)).await?;
        let gate = self.gate.clone();
        Ok(Arc::new(Gated { gate, inner }))
    }
}

macro_rules! through {
    ($(($kind:ident) $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Target for Gated<dyn Target> {
            fn mode(&self) -> Mode {
                self.inner.mode()
            }

            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, TargetError> {
                let call = self.inner.$name($($arg),*);
                self.gate.pass_by(Kind::$kind, &[stringify!($name)], call).await
            })*
        }
    };
}

through! {
    (Read) probe() -> ();
    (Replicate) replicate(channel: &PChannel, msgs: Vec<Entry>, begin: Tso, end: Tso) -> ();
    (Read) now() -> Tso;
    (Read) databases() -> Vec<String>;
    (Ddl) create_database(name: &str) -> ();
    (Ddl) drop_database(name: &str) -> ();
    (Read) describe_database(name: &str) -> Vec<(String, String)>;
    (Ddl) alter_database(name: &str, set: &[(String, String)], gone: &[String]) -> ();
    (Read) collections(database: &str) -> Vec<String>;
    (Read) describe(database: &str, name: &str) -> Option<TargetCollection>;
    (Ddl) create_collection(database: &str, source: &Collection, ts: Tso) -> ();
    (Ddl) drop_collection(database: &str, name: &str, ts: Tso) -> ();
    (Ddl) rename_collection(database: &str, name: &str, to: &Name) -> ();
    (Ddl) alter_collection(database: &str, name: &str, set: &[(String, String)], gone: &[String]) -> ();
    (Read) alias(database: &str, alias: &str) -> Option<CollectionId>;
    (Ddl) put_alias(database: &str, alias: &str, name: &str, moved: bool) -> ();
    (Ddl) drop_alias(database: &str, alias: &str) -> ();
    (Read) holds_rows(database: &str, name: &str) -> bool;
    (Read) partitions(database: &str, name: &str) -> Vec<(String, PartitionId)>;
    (Ddl) create_partition(database: &str, name: &str, partition: &str, ts: Tso) -> ();
    (Ddl) drop_partition(database: &str, name: &str, partition: &str, ts: Tso) -> ();
    (Read) indexes(database: &str, name: &str) -> Vec<TargetIndex>;
    (Ddl) create_index(database: &str, name: &str, index: &TargetIndex) -> ();
    (Ddl) drop_index(database: &str, name: &str, index: &TargetIndex) -> ();
    (Ddl) alter_index(database: &str, name: &str, index: &str, set: &[(String, String)], gone: &[String]) -> ();
    (Read) loaded(database: &str, name: &str, partitions: &[String]) -> Loaded;
    (Ddl) load(database: &str, name: &str, partitions: &[String], replicas: i32) -> ();
    (Ddl) release(database: &str, name: &str, partitions: &[String]) -> ();
    (Ddl) flush(database: &str, names: &[String]) -> ();
    (Read) is_flushed(database: &str, name: &str, up_to: Tso) -> bool;
    (Read) nodes() -> Option<BTreeSet<String>>;
}

#[async_trait]
impl RowGate for Gate {
    async fn pass_rows(
        &self,
        name: &'static str,
        call: BoxFuture<'_, Result<(), TargetError>>,
    ) -> Result<(), TargetError> {
        self.pass_by(Kind::Rows, &[name], call).await
    }
}

/// A store behind a gate.
pub fn store(gate: &Arc<Gate>, inner: SharedStore) -> SharedStore {
    Arc::new(Gated {
        gate: gate.clone(),
        inner,
    })
}
