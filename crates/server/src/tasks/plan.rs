//! What a task would do, found out without writing anything.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::ids::TaskId;
use cdc_core::select::{Name, Verdict, mapping};
use cdc_core::snapshot::Initial;
use cdc_core::store::ObjectPhase;
use cdc_core::task::OnConflict;

use super::{Desired, TaskError, Tasks, making, unix_ms};
use crate::request::CreateTask;

/// A collection that would be carried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    pub source: Name,
    pub target: Name,
    /// The rule that has it, from 0.
    pub rule: usize,
    pub problems: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    pub carried: Vec<Planned>,
    /// With the rule that excludes it; `None`: no rule matches.
    pub left_out: Vec<(Name, Option<usize>)>,
    /// Of the task as a whole.
    pub problems: Vec<String>,
}

impl Plan {
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty() && self.carried.iter().all(|c| c.problems.is_empty())
    }
}

impl Tasks {
    /// What this task would do to what is there now. Of a task that is there already it is what an edit would come to:
    /// what it carries does not speak against it.
    ///
    /// # Errors
    /// The source cannot be read.
    pub async fn plan(&self, request: CreateTask) -> Result<Plan, TaskError> {
        let inner = &self.inner;
        let id = request.id.clone().unwrap_or_else(|| "(new)".to_owned());
        let spec = making::task(request, TaskId::new(id), unix_ms(), &inner.limits).spec;
        let source = inner.replication.check_source().await;
        source.map_err(TaskError::Refused)?;
        let mut present = inner
            .replication
            .collections()
            .await
            .map_err(TaskError::Refused)?;
        present.sort();
        let rules = spec.selection.rules();
        let mut plan = Plan::default();
        for source in &present {
            match rules.verdict(&source.database, &source.name) {
                Verdict::Included(rule) => plan.carried.push(Planned {
                    target: spec.target_of(&source.database, &source.name),
                    source: source.clone(),
                    rule,
                    problems: Vec::new(),
                }),
                Verdict::Excluded(rule) => plan.left_out.push((source.clone(), Some(rule))),
                Verdict::Unmatched => plan.left_out.push((source.clone(), None)),
            }
        }
        // Its own, if it is there already.
        let mut own: BTreeSet<Name> = BTreeSet::new();
        if inner.tasks.read().contains_key(&spec.id) {
            let progress = self.progress(&spec.id).await?;
            let live = progress.collections.into_values();
            let live = live.filter(|o| o.phase != ObjectPhase::Dropped);
            own.extend(live.map(|o| Name::new(o.database, o.name)));
        }
        let targets: BTreeSet<Name> = plan.carried.iter().map(|c| c.target.clone()).collect();
        let there = match inner.replication.on_target(&spec.target, &targets).await {
            Ok(there) => there,
            Err(problem) => {
                plan.problems.push(problem.to_string());
                BTreeMap::new()
            }
        };
        let initial = spec.snapshot.initial;
        if initial != Initial::Incremental {
            let sources = plan.carried.iter().map(|c| c.source.clone()).collect();
            match inner.replication.not_loaded(&sources).await {
                Err(problem) => plan.problems.push(problem.to_string()),
                Ok(not_loaded) => {
                    let waits = |c: &Planned| !spec.snapshot.load && not_loaded.contains(&c.source);
                    for planned in plan.carried.iter_mut().filter(|c| waits(c)) {
                        let when = match initial {
                            Initial::Auto => {
                                "if the queue does not hold its history, its copy waits"
                            }
                            _ => "its copy waits",
                        };
                        planned.problems.push(format!(
                            "{} is not loaded on the source: {when} until somebody loads it, or with load_for_snapshot",
                            planned.source
                        ));
                    }
                }
            }
        }
        let others: Vec<_> = inner
            .tasks
            .read()
            .values()
            .filter(|t| t.spec.id != spec.id && t.spec.target.uri == spec.target.uri)
            .filter(|t| !matches!(t.desired, Desired::Promoted { .. }))
            .map(|t| t.spec.clone())
            .collect();
        let mut first: BTreeMap<Name, Name> = BTreeMap::new();
        for planned in &mut plan.carried {
            let Planned {
                source,
                target,
                problems,
                ..
            } = planned;
            if let Err(why) = mapping::check(target) {
                problems.push(why);
            }
            match first.get(target) {
                Some(other) => {
                    problems.push(format!("{other} would have the same name on the target"))
                }
                None => drop(first.insert(target.clone(), source.clone())),
            }
            for other in &others {
                let writes = present.iter().find(|n| {
                    other.selection.contains(&n.database, &n.name)
                        && other.target_of(&n.database, &n.name) == *target
                });
                if let Some(of) = writes {
                    problems.push(format!(
                        "task {} writes {target} already, for {of}",
                        other.id
                    ));
                }
            }
            if !own.contains(target) && there.get(target) == Some(&true) {
                let then = match spec.on_conflict {
                    OnConflict::Ask => "it would wait for an answer (on_conflict)",
                    OnConflict::Adopt => continue,
                    OnConflict::Recreate => "it would be dropped there (on_conflict: recreate)",
                };
                problems.push(format!(
                    "{target} is on the target already, with rows: {then}"
                ));
            }
        }
        for other in &others {
            if let Some(common) = making::in_common(other, &spec, &present) {
                plan.problems.push(format!(
                    "task {} carries some of these collections to {} already: both would write {common}",
                    other.id, spec.target.uri
                ));
            }
        }
        Ok(plan)
    }
}
