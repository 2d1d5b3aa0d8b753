//! How long milvus-cdc takes from its start to the first row that the target has acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::cdc::Cdc;

const POLL: Duration = Duration::from_millis(20);

/// A start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Start {
    /// To the first row, or to the end of the server.
    pub(super) lasted: Duration,
    /// It ended before its first row.
    pub(super) cut_short: bool,
}

/// The times of starts.
#[derive(Debug, Default)]
pub(super) struct Starts {
    took: Arc<Mutex<Vec<Start>>>,
    watching: Option<(Instant, JoinHandle<()>)>,
}

impl Starts {
    /// A server was started at `begun`; it is asked until it has applied a row.
    pub(super) fn begun(&mut self, cdc: &Cdc, task: &str, begun: Instant) {
        self.ended();
        let (cdc, task, took) = (cdc.asking(), task.to_owned(), Arc::clone(&self.took));
        let watching = tokio::spawn(async move {
            loop {
                if cdc.task(&task).await.is_ok_and(|status| status.rows() > 0) {
                    took.lock().push(Start {
                        lasted: begun.elapsed(),
                        cut_short: false,
                    });
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        });
        self.watching = Some((begun, watching));
    }

    /// The server is gone, or nothing is written any more.
    pub(super) fn ended(&mut self) {
        if let Some((begun, watching)) = self.watching.take()
            && !watching.is_finished()
        {
            watching.abort();
            self.took.lock().push(Start {
                lasted: begun.elapsed(),
                cut_short: true,
            });
        }
    }

    /// All of them, the shortest first.
    pub(super) fn took(&self) -> Vec<Start> {
        let mut took = self.took.lock().clone();
        took.sort_unstable();
        took
    }
}

/// The median time to the first row. One that ended before it took longer than it lasted, nobody knows how much; leaving
/// those out would make the others look better than they are. So this is the median of Kaplan and Meier, which takes
/// from each of them what it does say. `None` if half of them had no row.
///
/// `starts`: the shortest first.
pub(super) fn median(starts: &[Start]) -> Option<Duration> {
    let mut without_a_row = 1.0;
    for (n, start) in starts.iter().enumerate() {
        if start.cut_short {
            continue;
        }
        without_a_row *= 1.0 - 1.0 / (starts.len() - n) as f64;
        if without_a_row <= 0.5 {
            return Some(start.lasted);
        }
    }
    None
}

impl Drop for Starts {
    fn drop(&mut self) {
        self.ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(of: &[(u64, bool)]) -> Vec<Start> {
        let start = |(ms, cut_short): &(u64, bool)| Start {
            lasted: Duration::from_millis(*ms),
            cut_short: *cut_short,
        };
        of.iter().map(start).collect()
    }

    #[test]
    fn what_was_cut_short_counts_as_longer_than_it_lasted() {
        let median = |of: &[(u64, bool)]| median(&starts(of)).map(|d| d.as_millis());
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[(10, false), (20, false), (900, false)]), Some(20));
        // Two that say nothing of what is slow, and two that do.
        let early = [(1, true), (2, true), (10, false), (20, false), (900, false)];
        assert_eq!(median(&early), Some(20));
        let late = [
            (10, false),
            (20, false),
            (900, false),
            (5_000, true),
            (5_000, true),
        ];
        assert_eq!(median(&late), Some(900));
        assert_eq!(median(&[(10, false), (20, true), (30, true)]), None);
    }

    #[tokio::test]
    async fn a_start_that_ends_before_its_first_row_is_one_that_was_cut_short() {
        let mut all = Starts::default();
        all.watching = Some((Instant::now(), tokio::spawn(std::future::pending())));
        all.ended();
        all.ended();
        assert!(matches!(
            all.took()[..],
            [Start {
                cut_short: true,
                ..
            }]
        ));
    }
}
