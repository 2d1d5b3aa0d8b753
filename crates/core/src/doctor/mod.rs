//! The doctor: what is wrong with a set-up, found without changing anything.
//!
//! Every check has a deadline of its own, and none waits for the outcome of another that it does not need: one bad
//! check never hides the others. What could not be looked at because of another problem says so.

mod mapping;
mod positions;
mod rows;
mod source;
mod target;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use crate::catalog::View;
use crate::catalog::etcd::EtcdConfig;
use crate::error::Problem;
use crate::ids::TargetKey;
use crate::snapshot::SourceRows;
use crate::source::{LogSource, SourceError};
use crate::store::TaskProgress;
use crate::task::{TargetSpec, TaskSpec};

/// The deadline of one check. A list of a large catalog or the look at many channels is one check.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, but somebody should know.
    Warning,
    Problem,
    /// It could not be looked at; why is a problem of its own.
    Skipped,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
            Verdict::Skipped => "skipped",
        }
    }
}

/// One line of a diagnosis. Holds no secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, in the words of [`names`].
    pub check: String,
    /// Which one, where there are several: a target's address, a task's id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    pub verdict: Verdict,
    /// What was found, with the values that matter.
    pub text: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

/// The checks there are.
pub mod names {
    pub const ETCD: &str = "source etcd";
    pub const METADATA: &str = "source metadata";
    pub const QUEUE: &str = "source queue";
    pub const CHANNELS: &str = "source channels";
    pub const ALIVE: &str = "source time";
    pub const ROWS: &str = "source rows";
    pub const POSITIONS: &str = "positions";
    pub const TARGET: &str = "target";
    pub const STANDBY: &str = "target mode";
    pub const CLOCK: &str = "target clock";
    pub const PRIVILEGES: &str = "target privileges";
    pub const MAPPING: &str = "mapping";
}

impl Check {
    pub fn new(check: &str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            subject: String::new(),
            verdict,
            text: text.into(),
            hint: String::new(),
        }
    }

    pub fn ok(check: &str, text: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, text)
    }

    pub fn warning(check: &str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            hint: hint.into(),
            ..Self::new(check, Verdict::Warning, text)
        }
    }

    pub fn problem(check: &str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            hint: hint.into(),
            ..Self::new(check, Verdict::Problem, text)
        }
    }

    pub fn skipped(check: &str, because: &str) -> Self {
        Self::new(check, Verdict::Skipped, format!("not looked at: {because}"))
    }

    fn of(check: &str, problem: &Problem) -> Self {
        // "tried again by itself" is true of a task, not of the doctor.
        let hint = problem.hint.replace("; tried again by itself", "");
        Self::problem(check, problem.message.clone(), hint)
    }

    #[must_use]
    pub fn about(self, subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            ..self
        }
    }
}

/// A task as the doctor looks at it.
#[derive(Clone, Debug)]
pub struct Patient {
    pub spec: TaskSpec,
    pub progress: TaskProgress,
}

/// What there is to be looked at.
pub struct Setup {
    pub etcd: EtcdConfig,
    /// The queue, or why there is none.
    pub source: Result<Arc<dyn LogSource>, SourceError>,
    /// Where rows from before the queue's history are read, if that is configured.
    pub rows: Option<Arc<dyn SourceRows>>,
    /// `{cluster prefix}-replicate-msg`
    pub replicate_channel: String,
    /// Without those that are promoted: their targets are Milvus of their own.
    pub tasks: Vec<Patient>,
    /// Targets beside those of the tasks.
    pub targets: Vec<TargetSpec>,
}

/// Looks at everything at the same time. The checks come in the order of the data's way: source, positions, targets.
pub async fn examine(setup: &Setup) -> Vec<Check> {
    let (mut checks, view) = {
        let (metadata, queue) = tokio::join!(
            source::metadata(&setup.etcd),
            source::queue(setup.source.as_ref())
        );
        let (mut checks, view) = metadata;
        checks.extend(queue);
        (checks, view)
    };
    let queue = match &setup.source {
        Ok(queue) if answers(&checks, names::QUEUE) => Some(queue.as_ref()),
        _ => None,
    };
    let view = view.as_deref();
    let looks = targets(setup)
        .into_iter()
        .map(|spec| target::look(spec, view, &setup.tasks));
    let (channels, rows, positions, targets) = tokio::join!(
        source::channels(view, queue, &setup.replicate_channel),
        rows::look(view, setup.rows.as_deref(), &setup.tasks),
        positions::all(view, queue, &setup.tasks),
        answers_to(looks),
    );
    checks.extend(channels);
    checks.extend(rows);
    checks.extend(positions);
    checks.extend(targets.into_iter().flatten());
    checks
}

/// Every target once: those of the tasks, then the others.
fn targets(setup: &Setup) -> Vec<&TargetSpec> {
    let mut seen: Vec<(TargetKey, &str)> = Vec::new();
    let all = setup.tasks.iter().map(|task| &task.spec.target);
    all.chain(&setup.targets)
        .filter(|spec| {
            // Two tasks may log in to one target in two ways.
            let key = (spec.key(), spec.token.expose());
            let new = !seen.contains(&key);
            if new {
                seen.push(key);
            }
            new
        })
        .collect()
}

fn answers(checks: &[Check], name: &str) -> bool {
    checks
        .iter()
        .any(|check| check.check == name && check.verdict == Verdict::Ok)
}

/// Questions to one server at the same time.
const AT_ONCE: usize = 8;

/// The answers of many questions, in no order.
async fn answers_to<F: Future>(questions: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    // As a list: a stream that makes its futures by itself cannot be sent between threads where they borrow.
    let questions: Vec<F> = questions.into_iter().collect();
    futures::stream::iter(questions)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

/// At most [`DEADLINE`] for a check.
async fn within<T>(check: &str, look: impl Future<Output = T>) -> Result<T, Check> {
    tokio::time::timeout(DEADLINE, look).await.map_err(|_| {
        Check::problem(
            check,
            format!("no outcome within {} s", DEADLINE.as_secs()),
            "what it asked does not answer, or answers too slowly: look at its load and at the network",
        )
    })
}

/// The first few of a list, and how many more there are.
fn some<T: std::fmt::Display>(list: &[T]) -> String {
    const SHOWN: usize = 8;
    let mut text = list
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if list.len() > SHOWN {
        text += &format!(" and {} more", list.len() - SHOWN);
    }
    text
}

/// A duration as people say it.
pub(crate) fn spoken(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// `database.name` as far as it is known.
fn label(view: &View, collection: &crate::catalog::Collection) -> String {
    let database = view.database_name(collection.db);
    let database = database.map_or_else(|| format!("(database {})", collection.db), str::to_owned);
    format!("{database}.{}", collection.name)
}

#[cfg(test)]
mod tests;
