//! The same questions to a source, asked again where it refuses them for a moment.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use milvus::proto::schema::FieldData;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::ids::CollectionId;
use crate::snapshot::{Of, Part, RowsError, SourceRows};
use crate::tso::Tso;

/// A question that comes to no answer, or is refused for a moment, is asked again for so long: what was begun has to be
/// copied again otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Patient(pub(super) Arc<dyn SourceRows>);

async fn again<T, W>(ask: impl Fn() -> W) -> Result<T, RowsError>
where
    W: Future<Output = Result<T, RowsError>>,
{
    let (mut backoff, end) = (Backoff::new(), Instant::now() + PATIENCE);
    loop {
        match ask().await {
            Err(error) if error.may_pass() && Instant::now() < end => backoff.wait().await,
            answer => return answer,
        }
    }
}

#[async_trait]
impl SourceRows for Patient {
    async fn describe(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<CollectionId>, RowsError> {
        again(|| self.0.describe(database, name)).await
    }

    async fn is_loaded(
        &self,
        database: &str,
        name: &str,
        partitions: &[String],
    ) -> Result<bool, RowsError> {
        again(|| self.0.is_loaded(database, name, partitions)).await
    }

    async fn load(&self, database: &str, name: &str) -> Result<(), RowsError> {
        again(|| self.0.load(database, name)).await
    }

    async fn release(&self, database: &str, name: &str) -> Result<(), RowsError> {
        again(|| self.0.release(database, name)).await
    }

    async fn count(&self, of: &Of, part: &Part, at: Tso) -> Result<u64, RowsError> {
        again(|| self.0.count(of, part, at)).await
    }

    async fn read(&self, of: &Of, part: &Part, at: Tso) -> Result<Vec<FieldData>, RowsError> {
        again(|| self.0.read(of, part, at)).await
    }
}
