//! What is left of a run: one line of JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;

use super::Chaos;
use super::bench::Happened;
use super::starts::{Start, median};
use crate::servers::Mq;

/// How a run ended; only the first one is good.
#[cfg_attr(
    not(feature = "audit"),
    allow(dead_code, reason = "only the log tells")
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Equal,
    /// Source and target differ.
    Different,
    /// They differ, and the target's log proves that it was given the right rows.
    TargetLost,
    /// The same, and the source's own log has them, too: it is the source that shows others.
    SourceLost,
    /// The target's log goes against the rules of time and ids.
    AgainstTheRules,
    /// The task, or a collection, did not come back by itself.
    NeedsHands,
    /// milvus-cdc ended by itself.
    Ended,
    /// The run itself could not be carried to its end.
    Broken,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Equal => "equal",
            Outcome::Different => "different",
            Outcome::TargetLost => "target lost rows of its own",
            Outcome::SourceLost => "source shows other rows than its log has",
            Outcome::AgainstTheRules => "against the rules",
            Outcome::NeedsHands => "needs hands",
            Outcome::Ended => "milvus-cdc ended",
            Outcome::Broken => "not finished",
        }
    }
}

/// The figures of a run.
#[derive(Debug)]
pub(super) struct Figures {
    seed: u64,
    queue: &'static str,
    minutes: f64,
    commit: String,
    began: u64,
    faults: BTreeMap<String, u64>,
    pub(super) left_out: BTreeMap<String, String>,
    pub(super) rows_written: u64,
    pub(super) rows_compared: u64,
    pub(super) operations: u64,
    /// Calls of the workload that the source refused.
    pub(super) refused: u32,
    ended: Vec<String>,
    starts: Vec<Start>,
    pub(super) outcome: Outcome,
    pub(super) detail: Vec<String>,
    /// What `verify --repair` made of a difference.
    pub(super) mended: Option<serde_json::Value>,
}

impl Figures {
    pub(super) fn new(chaos: &Chaos) -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            seed: chaos.seed,
            queue: match chaos.queue {
                Mq::Natsmq => "natsmq",
                Mq::Rocksmq => "rocksmq",
                Mq::Kafka => "kafka",
                Mq::Pulsar => "pulsar",
            },
            minutes: chaos.lasts.as_secs_f64() / 60.0,
            commit: commit(),
            began: began.map_or(0, |d| d.as_secs()),
            faults: BTreeMap::new(),
            left_out: BTreeMap::new(),
            rows_written: 0,
            rows_compared: 0,
            operations: 0,
            refused: 0,
            ended: Vec::new(),
            starts: Vec::new(),
            outcome: Outcome::Broken,
            detail: Vec::new(),
            mended: None,
        }
    }

    pub(super) fn take(&mut self, happened: &Happened) {
        self.faults.clone_from(&happened.faults);
        self.ended.clone_from(&happened.ended);
        self.starts = happened.starts.took();
    }

    /// Not equal; the first failure names the outcome.
    pub(super) fn fail(&mut self, outcome: Outcome, detail: Vec<String>) {
        if matches!(self.outcome, Outcome::Equal | Outcome::Broken) {
            self.outcome = outcome;
        }
        self.detail.extend(detail);
    }

    pub(super) fn line(&self) -> String {
        let ms = |d: Option<Duration>| d.map(|d| d.as_millis() as u64);
        let rows = self.starts.iter().filter(|start| !start.cut_short);
        let faults: u64 = self.faults.values().sum();
        json!({
            "seed": self.seed,
            "queue": self.queue,
            "minutes": self.minutes,
            "commit": self.commit,
            "began_unix": self.began,
            "faults": self.faults,
            "faults_in_all": faults,
            "left_out": self.left_out,
            "rows_written": self.rows_written,
            "rows_compared": self.rows_compared,
            "operations": self.operations,
            "refused_by_source": self.refused,
            "ended_by_themselves": self.ended,
            "kills_of_milvus_cdc": {
                "count": self.faults.get("kill-cdc").copied().unwrap_or_default(),
                "starts_with_a_row": rows.clone().count(),
                "starts_cut_short": self.starts.len() - rows.clone().count(),
                "start_to_first_row_ms_median": ms(median(&self.starts)),
                "start_to_first_row_ms_max": ms(rows.map(|start| start.lasted).max()),
            },
            "outcome": self.outcome.name(),
            "detail": self.detail,
            "mended": self.mended,
        })
        .to_string()
    }
}

/// The lines of a verdict that say something of the log.
#[cfg_attr(
    not(feature = "audit"),
    allow(dead_code, reason = "only the log tells")
)]
pub(super) fn verdict(text: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| !line.starts_with("the target's log"))
        .take(super::NAMED)
        .map(str::to_owned)
        .collect()
}

/// Adds a line to a file of lines.
pub(super) fn append(file: &Path, line: &str) -> Result<()> {
    let open = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("open {}", file.display()))?;
    writeln!(&open, "{line}").with_context(|| format!("write {}", file.display()))
}

/// The commit of the checkout we are in, `-dirty` if what is in it has changed since; the figures themselves do not count.
fn commit() -> String {
    let git = |args: &[&str]| Command::new("git").args(args).output().ok();
    let head = git(&["rev-parse", "--short=12", "HEAD"])
        .filter(|out| out.status.success())
        .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let Some(head) = head else {
        return "unknown".to_owned();
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--",
        ":/",
        ":(top,exclude)docs/reliability-runs.jsonl",
    ])
    .is_none_or(|out| !out.stdout.is_empty());
    if changed {
        format!("{head}-dirty")
    } else {
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures::new(&Chaos {
            seed: 1,
            lasts: Duration::from_secs(90),
            queue: Mq::Kafka,
            faults: Vec::new(),
            rate: 50,
            gap: Duration::from_secs(9),
            append: None,
            dir: None,
        })
    }

    #[test]
    fn a_line_is_one_and_appended() {
        let mut figures = figures();
        figures.starts = [(10, false), (20, false), (900, false), (1_000, true)]
            .map(|(ms, cut_short)| Start {
                lasted: Duration::from_millis(ms),
                cut_short,
            })
            .to_vec();
        let line = figures.line();
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value["kills_of_milvus_cdc"]["start_to_first_row_ms_median"],
            20
        );
        assert_eq!(
            value["kills_of_milvus_cdc"]["start_to_first_row_ms_max"],
            900
        );
        assert_eq!(value["kills_of_milvus_cdc"]["starts_cut_short"], 1);
        assert_eq!(value["outcome"], "not finished");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("runs");
        append(&file, &line).unwrap();
        append(&file, &line).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap().lines().count(), 2);
    }

    #[test]
    fn equal_is_no_more_once_anything_failed() {
        let mut figures = figures();
        figures.outcome = Outcome::Equal;
        figures.fail(Outcome::NeedsHands, vec!["d.c is Failing".to_owned()]);
        figures.fail(Outcome::Ended, Vec::new());
        assert_eq!(figures.outcome, Outcome::NeedsHands);
    }
}
