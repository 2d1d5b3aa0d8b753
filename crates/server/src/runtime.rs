//! The seam between the tasks and what carries them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use cdc_core::catalog::etcd::EtcdConfig;
use cdc_core::doctor::{Check, Patient};
use cdc_core::error::Problem;
use cdc_core::ids::{PChannel, TaskId};
use cdc_core::promote::TriedOut;
use cdc_core::repair::{Repair, Repaired};
use cdc_core::select::Name;
use cdc_core::source::reach::Held;
use cdc_core::task::{Choice, TargetSpec, TaskSpec, TaskStatus, Verdict};
use cdc_core::tso::Tso;

/// What carries the tasks: the corelib's engine, or a stand-in in tests.
#[async_trait]
pub trait Replication: Send + Sync {
    /// Whether a task could write to this target. Writes nothing.
    async fn check_target(&self, target: &TargetSpec) -> Result<(), Problem>;
    /// Whether the source's metadata and queue can be read now.
    async fn check_source(&self) -> Result<(), Problem>;
    /// The source's collections, as they are known now.
    async fn collections(&self) -> Result<Vec<Name>, Problem>;
    /// Which of these collections are on a target, and whether they hold rows. Changes nothing.
    async fn on_target(
        &self,
        target: &TargetSpec,
        names: &BTreeSet<Name>,
    ) -> Result<BTreeMap<Name, bool>, Problem>;
    /// Which of these collections of the source are not loaded there, so that their rows cannot be copied now.
    async fn not_loaded(&self, names: &BTreeSet<Name>) -> Result<BTreeSet<Name>, Problem>;
    /// Gives a running task something else to do. Its target stays.
    fn change(&self, spec: TaskSpec) -> Result<(), Problem>;
    /// Starts a task; what is not there yet is waited for and said in the status.
    fn start(&self, spec: TaskSpec) -> Result<(), Problem>;
    async fn stop(&self, task: &TaskId, deadline: Duration);
    async fn stop_all(&self, deadline: Duration);
    /// `None` if the task does not run.
    fn status(&self, task: &TaskId) -> Option<TaskStatus>;
    async fn choose(
        &self,
        task: &TaskId,
        database: &str,
        name: &str,
        choice: Choice,
    ) -> Result<(), Problem>;
    /// What a person, `by`, says of a message that could not be carried.
    async fn judge(
        &self,
        task: &TaskId,
        key: &str,
        verdict: Verdict,
        by: &str,
    ) -> Result<(), Problem>;
    /// Copies rows of a stopped task's collection to its target anew.
    async fn repair(&self, spec: &TaskSpec, wanted: &Repair) -> Result<Repaired, Problem>;
    /// A fresh timestamp of the target's oracle.
    async fn target_time(&self, target: &TargetSpec) -> Result<Tso, Problem>;
    /// Whether the target takes replicated messages, and none from clients.
    async fn is_standby(&self, target: &TargetSpec) -> Result<bool, Problem>;
    /// Whether a target's own ticks could be switched on through this etcd. Changes nothing.
    async fn check_switch(&self, etcd: &EtcdConfig) -> Result<(), Problem>;
    /// Switches a target's own ticks on, through its etcd.
    async fn switch_on(&self, etcd: &EtcdConfig) -> Result<(), Problem>;
    /// Reads these collections (database, name) of a promoted target and inserts for a try.
    async fn try_out(
        &self,
        target: &TargetSpec,
        collections: &[(String, String)],
    ) -> Result<TriedOut, Problem>;
    /// What these channels of the source's queue hold, as of the last minute; one of which that is not known is left out.
    async fn reach(&self, channels: &BTreeSet<PChannel>) -> BTreeMap<PChannel, Held>;
    /// Looks at the source, at what these tasks need of it, and at the targets, theirs and some more. Changes nothing.
    async fn examine(&self, tasks: Vec<Patient>, targets: Vec<TargetSpec>) -> Vec<Check>;
}
