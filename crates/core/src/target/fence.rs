//! A target that is written to only by whoever owns the tasks at that moment.
//!
//! Where several servers share one store, a process that was stopped for a while (SIGSTOP, a frozen machine) must not
//! go on sending where another one took over. The store refuses its writes; this refuses its calls: right before each
//! call that changes a target, the [`Permit`] is asked whether the call can still end in time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Loaded, Target, TargetCollection, TargetConnector, TargetError, TargetIndex, carried_out_within,
};
use crate::catalog::Collection;
use crate::ids::{CollectionId, PChannel, PartitionId};
use crate::route::encode::Entry;
use crate::select::Name;
use crate::task::{Mode, TargetSpec};
use crate::tso::Tso;

/// Whether this process may still change a target.
pub trait Permit: Send + Sync {
    /// Whether a call that begins now and takes up to `longest` ends while nobody else may have begun.
    ///
    /// # Errors
    /// Why it may not, for people.
    fn check(&self, longest: Duration) -> Result<(), String>;
}

/// The permit of a process that shares its tasks with nobody.
pub struct Always;

impl Permit for Always {
    fn check(&self, _: Duration) -> Result<(), String> {
        Ok(())
    }
}

/// Connects to targets that ask `permit` before every call that changes something.
pub struct FencedConnector {
    pub inner: Arc<dyn TargetConnector>,
    pub permit: Arc<dyn Permit>,
}

#[async_trait]
impl TargetConnector for FencedConnector {
    async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError> {
        Ok(Arc::new(Fenced {
            inner: self.inner.connect(spec).await?,
            permit: self.permit.clone(),
            uri: spec.uri.clone(),
            longest: carried_out_within(spec.call_timeout),
        }))
    }
}

struct Fenced {
    inner: Arc<dyn Target>,
    permit: Arc<dyn Permit>,
    uri: String,
    longest: Duration,
}

impl Fenced {
    /// Nothing went out: that is what `Unreachable` means to everybody.
    fn permit(&self, call: &'static str) -> Result<(), TargetError> {
        self.permit
            .check(self.longest)
            .map_err(|cause| TargetError::Unreachable {
                uri: self.uri.clone(),
                call,
                cause,
            })
    }
}

#[async_trait]
impl Target for Fenced {
    fn mode(&self) -> Mode {
        self.inner.mode()
    }

    async fn probe(&self) -> Result<(), TargetError> {
        self.inner.probe().await
    }

    async fn replicate(
        &self,
        channel: &PChannel,
        msgs: Vec<Entry>,
        begin: Tso,
        end: Tso,
    ) -> Result<(), TargetError> {
        self.permit("ReplicateMessage")?;
        self.inner.replicate(channel, msgs, begin, end).await
    }

    async fn now(&self) -> Result<Tso, TargetError> {
        self.inner.now().await
    }

    async fn databases(&self) -> Result<Vec<String>, TargetError> {
        self.inner.databases().await
    }

    async fn create_database(&self, name: &str) -> Result<(), TargetError> {
        self.permit("CreateDatabase")?;
        self.inner.create_database(name).await
    }

    async fn drop_database(&self, name: &str) -> Result<(), TargetError> {
        self.permit("DropDatabase")?;
        self.inner.drop_database(name).await
    }

    async fn describe_database(&self, name: &str) -> Result<Vec<(String, String)>, TargetError> {
        self.inner.describe_database(name).await
    }

    async fn alter_database(
        &self,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        self.permit("AlterDatabase")?;
        self.inner.alter_database(name, set, gone).await
    }

    async fn collections(&self, database: &str) -> Result<Vec<String>, TargetError> {
        self.inner.collections(database).await
    }

    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, TargetError> {
        self.inner.describe(database, name).await
    }

    async fn create_collection(
        &self,
        database: &str,
        source: &Collection,
        ts: Tso,
    ) -> Result<(), TargetError> {
        self.permit("CreateCollection")?;
        self.inner.create_collection(database, source, ts).await
    }

    async fn drop_collection(
        &self,
        database: &str,
        name: &str,
        ts: Tso,
    ) -> Result<(), TargetError> {
        self.permit("DropCollection")?;
        self.inner.drop_collection(database, name, ts).await
    }

    async fn rename_collection(
        &self,
        database: &str,
        name: &str,
        to: &Name,
    ) -> Result<(), TargetError> {
        self.permit("RenameCollection")?;
        self.inner.rename_collection(database, name, to).await
    }

    async fn alter_collection(
        &self,
        database: &str,
        name: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        self.permit("AlterCollection")?;
        self.inner.alter_collection(database, name, set, gone).await
    }

    async fn alias(
        &self,
        database: &str,
        alias: &str,
    ) -> Result<Option<CollectionId>, TargetError> {
        self.inner.alias(database, alias).await
    }

    async fn put_alias(
        &self,
        database: &str,
        alias: &str,
        name: &str,
        moved: bool,
    ) -> Result<(), TargetError> {
        self.permit("AlterAlias")?;
        self.inner.put_alias(database, alias, name, moved).await
    }

    async fn drop_alias(&self, database: &str, alias: &str) -> Result<(), TargetError> {
        self.permit("DropAlias")?;
        self.inner.drop_alias(database, alias).await
    }

    async fn holds_rows(&self, database: &str, name: &str) -> Result<bool, TargetError> {
        self.inner.holds_rows(database, name).await
    }

    async fn partitions(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Vec<(String, PartitionId)>, TargetError> {
        self.inner.partitions(database, name).await
    }

    async fn create_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        ts: Tso,
    ) -> Result<(), TargetError> {
        self.permit("CreatePartition")?;
        self.inner
            .create_partition(database, name, partition, ts)
            .await
    }

    async fn drop_partition(
        &self,
        database: &str,
        name: &str,
        partition: &str,
        ts: Tso,
    ) -> Result<(), TargetError> {
        self.permit("DropPartition")?;
        self.inner
            .drop_partition(database, name, partition, ts)
            .await
    }

    async fn indexes(&self, database: &str, name: &str) -> Result<Vec<TargetIndex>, TargetError> {
        self.inner.indexes(database, name).await
    }

    async fn create_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError> {
        self.permit("CreateIndex")?;
        self.inner.create_index(database, name, index).await
    }

    async fn drop_index(
        &self,
        database: &str,
        name: &str,
        index: &TargetIndex,
    ) -> Result<(), TargetError> {
        self.permit("DropIndex")?;
        self.inner.drop_index(database, name, index).await
    }

    async fn alter_index(
        &self,
        database: &str,
        name: &str,
        index: &str,
        set: &[(String, String)],
        gone: &[String],
    ) -> Result<(), TargetError> {
        self.permit("AlterIndex")?;
        self.inner
            .alter_index(database, name, index, set, gone)
            .await
    }

    async fn loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<Loaded, TargetError> {
        self.inner.loaded(database, name, partitions).await
    }

    async fn load(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
        replicas: i32,
    ) -> Result<(), TargetError> {
        self.permit("LoadCollection")?;
        self.inner.load(database, name, partitions, replicas).await
    }

    async fn release(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<(), TargetError> {
        self.permit("ReleaseCollection")?;
        self.inner.release(database, name, partitions).await
    }

    async fn flush(&self, database: &str, names: &[String]) -> Result<(), TargetError> {
        self.permit("Flush")?;
        self.inner.flush(database, names).await
    }

    async fn is_flushed(
        &self,
        database: &str,
        name: &str,
        up_to: Tso,
    ) -> Result<bool, TargetError> {
        self.inner.is_flushed(database, name, up_to).await
    }

    async fn nodes(&self) -> Result<Option<BTreeSet<String>>, TargetError> {
        self.inner.nodes().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::secret::Secret;
    use crate::target::memory::MemoryTarget;

    /// What is left, in milliseconds.
    struct Left(AtomicU64);

    impl Permit for Left {
        fn check(&self, longest: Duration) -> Result<(), String> {
            let left = Duration::from_millis(self.0.load(Ordering::SeqCst));
            match left > longest {
                true => Ok(()),
                false => Err("not sent".to_owned()),
            }
        }
    }

    #[test]
    fn a_call_that_cannot_end_in_time_is_not_begun() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let left = Arc::new(Left(AtomicU64::new(2301)));
            let fenced = FencedConnector {
                inner: Arc::new(MemoryTarget::new(1, Tso::from_millis(1000), 1)),
                permit: left.clone(),
            };
            let spec = TargetSpec {
                uri: "http://memory:19530".to_owned(),
                token: Secret::default(),
                connect_timeout: Duration::from_secs(1),
                call_timeout: Duration::from_secs(1),
                tls: Default::default(),
                mode: Mode::Replicate,
            };
            let target = fenced.connect(&spec).await.unwrap();
            target.create_database("a").await.unwrap();
            left.0.store(2300, Ordering::SeqCst);
            let channel = PChannel::new("ch");
            for refused in [
                target.create_database("b").await,
                target.drop_database("a").await,
                target.replicate(&channel, vec![], Tso(1), Tso(1)).await,
                target.flush("a", &[]).await,
            ] {
                let error = refused.unwrap_err();
                assert!(matches!(error, TargetError::Unreachable { .. }), "{error}");
                assert!(!error.outcome_unknown());
            }
            // Reading goes on.
            let databases = target.databases().await.unwrap();
            assert!(databases.contains(&"a".to_owned()) && !databases.contains(&"b".to_owned()));
        });
    }
}
