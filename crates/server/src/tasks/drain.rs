//! Before a promotion stops the tasks to its target: what the queue still holds is carried.

use std::time::Duration;

use cdc_core::error::ProblemCode;
use cdc_core::ids::TargetKey;
use cdc_core::target::carried_out_within;
use cdc_core::task::{CollectionState, CollectionStatus, TaskStatus};
use tokio::time::Instant;

use super::Inner;
use super::promote::{Job, LOOK_EVERY};

/// Nothing new was read for this long: the queue is read to its end, or gone.
const QUIET: Duration = Duration::from_secs(3);
/// A collection this close to the source is up to date, in seconds.
const CLOSE: f64 = 2.0;

impl Inner {
    /// Lets the running tasks carry what the queue still holds, if it can still be read.
    /// What is known to be left, for people; empty if nothing.
    pub(super) async fn drain(&self, job: &Job, key: &TargetKey, patience: Duration) -> String {
        let end = Instant::now() + patience;
        let mut last = Drained::default();
        let mut since = Instant::now();
        let mut close = None;
        // A call that is not answered, and then one more: the target may only be slow.
        let stalled = 4 * carried_out_within(self.limits.call_timeout) + QUIET;
        while Instant::now() < end {
            let statuses: Vec<_> = self
                .tasks_to(key)
                .iter()
                .filter_map(|task| self.replication.status(&task.spec.id))
                .collect();
            let now = Drained::of(&statuses);
            if now.counts() != last.counts() {
                since = Instant::now();
            }
            // A source that goes on writing is never read to its end: then it has to be close for as long. One that was
            // killed right now is close, too, and its queue may hold more.
            let is_close = now.all_begun && now.behind < CLOSE;
            close = is_close.then(|| close.unwrap_or_else(Instant::now));
            let caught_up = close.is_some_and(|since: Instant| since.elapsed() >= QUIET);
            // A source that is gone lags for ever; then nothing more is read. What has been read and not been taken by
            // the target, or is not read because a collection has not begun, is waited for: it would be lost.
            // So is a queue that fails over: while something is wrong it may come back.
            let quiet = if now.all_begun && now.well && now.in_flight == 0 {
                QUIET
            } else {
                stalled
            };
            if statuses.is_empty() || caught_up || since.elapsed() >= quiet {
                return now.left(caught_up);
            }
            job.show(
                "draining",
                format!(
                    "carrying what the queue still holds: {} row(s) so far, {:.0} s behind",
                    now.acknowledged, now.behind
                ),
                "",
            );
            last = now;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        last.left(false)
    }
}

/// How far the tasks to a target are.
#[derive(Default, Debug)]
struct Drained {
    read: u64,
    acknowledged: u64,
    /// Bytes read and not yet taken by the target.
    in_flight: u64,
    /// Seconds, of the collection that is the furthest behind.
    behind: f64,
    /// Whether no collection is still on its way to its first message.
    all_begun: bool,
    /// Whether no task says that something is wrong.
    well: bool,
}

impl Drained {
    fn left(&self, caught_up: bool) -> String {
        if caught_up || self.behind < CLOSE && self.all_begun {
            return String::new();
        }
        let begun = match self.all_begun {
            true => "",
            false => "; some collections had not begun",
        };
        format!(
            "; when the tasks were stopped the last tick of the source was {:.0} s old: what it wrote after that, if anything, is not on the target{begun}",
            self.behind
        )
    }

    fn of(statuses: &[TaskStatus]) -> Self {
        let collections = || statuses.iter().flat_map(|status| &status.collections);
        let lag = |c: &CollectionStatus| match c.state {
            CollectionState::Streaming { lag_seconds, .. } => Some(lag_seconds),
            _ => None,
        };
        // Before a task knows its source, it has no collections to show.
        let known = statuses.iter().all(|status| !status.collections.is_empty());
        Self {
            read: statuses.iter().map(|s| s.counters.messages_in).sum(),
            acknowledged: statuses.iter().map(|s| s.counters.rows_out).sum(),
            in_flight: statuses.iter().map(|s| s.counters.in_flight_bytes).sum(),
            behind: collections().filter_map(lag).fold(0.0, f64::max),
            well: statuses.iter().all(is_well),
            all_begun: known && collections().all(has_begun),
        }
    }

    fn counts(&self) -> (u64, u64) {
        (self.read, self.acknowledged)
    }
}

/// What its target cannot do keeps nothing back.
fn is_well(status: &TaskStatus) -> bool {
    let mut problems = status.problems.iter();
    problems.all(|problem| problem.code == Some(ProblemCode::Unable))
}

fn has_begun(collection: &CollectionStatus) -> bool {
    !matches!(
        collection.state,
        CollectionState::Waiting { .. } | CollectionState::Failing { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdc_core::error::{ErrorClass, Problem};
    use cdc_core::ids::CollectionId;
    use cdc_core::task::Counters;

    fn status(states: Vec<CollectionState>) -> TaskStatus {
        let collection = |state| CollectionStatus {
            source_id: CollectionId(1),
            database: "default".to_owned(),
            name: "a".to_owned(),
            state,
            lag_seconds: None,
            rows: 0,
            positions: Default::default(),
            last_error: None,
            target: None,
            note: None,
        };
        TaskStatus {
            collections: states.into_iter().map(collection).collect(),
            problems: Vec::new(),
            lag_seconds: None,
            durable_lag_seconds: None,
            checkpoint_age_seconds: None,
            counters: Counters::default(),
            errors: Default::default(),
        }
    }

    #[test]
    fn what_has_not_begun_is_not_near() {
        let streaming = |lag_seconds| CollectionState::Streaming {
            lag_seconds,
            raised: false,
        };
        let waiting = CollectionState::Waiting {
            why: "connecting".to_owned(),
        };
        assert!(Drained::of(&[status(vec![streaming(1.0)])]).all_begun);
        assert!(
            !Drained::of(&[status(vec![])]).all_begun,
            "nothing known yet"
        );
        assert!(!Drained::of(&[status(vec![streaming(0.1), waiting])]).all_begun);
        assert!(!Drained::of(&[status(vec![streaming(0.1)]), status(vec![])]).all_begun);
        let two = [status(vec![streaming(0.1)]), status(vec![streaming(7.0)])];
        assert_eq!(Drained::of(&two).behind, 7.0);
    }

    #[test]
    fn what_a_target_cannot_do_is_not_waited_for() {
        let mut said = status(vec![]);
        let problem = Problem::new(ErrorClass::Configuration, "no such call", "");
        said.problems
            .push(problem.clone().with_code(ProblemCode::Unable));
        assert!(Drained::of(std::slice::from_ref(&said)).well);
        said.problems.push(problem);
        assert!(!Drained::of(&[said]).well);
    }
}
