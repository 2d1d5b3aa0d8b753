//! How long milvus-cdc takes from its start to the first row that the target has acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::cdc::Cdc;

const POLL: Duration = Duration::from_millis(20);

/// Times of starts; a start that is killed before its first row has none.
#[derive(Debug, Default)]
pub(super) struct Starts {
    took: Arc<Mutex<Vec<Duration>>>,
    watching: Option<JoinHandle<()>>,
}

impl Starts {
    /// A server was started at `begun`; it is asked until it has applied a row.
    pub(super) fn begun(&mut self, cdc: &Cdc, task: &str, begun: Instant) {
        self.ended();
        let (cdc, task, took) = (cdc.asking(), task.to_owned(), Arc::clone(&self.took));
        self.watching = Some(tokio::spawn(async move {
            loop {
                if cdc.task(&task).await.is_ok_and(|status| status.rows() > 0) {
                    took.lock().push(begun.elapsed());
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        }));
    }

    /// The server is gone, or nothing is written any more.
    pub(super) fn ended(&mut self) {
        if let Some(watching) = self.watching.take() {
            watching.abort();
        }
    }

    /// All times, smallest first.
    pub(super) fn took(&self) -> Vec<Duration> {
        let mut took = self.took.lock().clone();
        took.sort_unstable();
        took
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        self.ended();
    }
}
