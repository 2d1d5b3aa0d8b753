//! The doctor of the corelib, over what the configuration and the store say.

use std::path::Path;
use std::time::Duration;

pub use cdc_core::doctor::Verdict;
use cdc_core::doctor::{Check, Patient, Setup, examine};
use cdc_core::source::open_source;
use cdc_core::task::TargetSpec;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::engine_adapter::{etcd_config, queue_config, rows};
use crate::fields::{Errors, Fields};
use crate::request;
use crate::store::seal::SealKey;
use crate::tasks::{Standing, TaskLimits, Tasks, stored_patients};

/// The checks of the server itself.
const CONFIGURATION: &str = "configuration";
const STORE: &str = "store";

/// A whole diagnosis.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// No check found a problem.
    pub ok: bool,
    pub checks: Vec<Check>,
}

impl From<Vec<Check>> for Report {
    fn from(checks: Vec<Check>) -> Self {
        let ok = !checks.iter().any(|c| c.verdict == Verdict::Problem);
        Self { ok, checks }
    }
}

/// Reads a target that somebody wants to be looked at beside those of the tasks: an object in the form of a create
/// request's `milvus_connect_param`. What is wrong goes to the errors of `data`.
pub fn further_target(data: &Fields<'_>, call_timeout: Duration) -> Option<TargetSpec> {
    let param = data.secret_object("milvus_connect_param")?;
    request::target(param, call_timeout)
}

/// Without a server: everything from the configuration file, the tasks from the store it names, which a running server
/// may have open.
pub async fn without_server(path: Option<&Path>, target: &serde_json::Value) -> Report {
    let config = match Config::load(path) {
        Ok((config, _)) => config,
        Err(error) => {
            let hint = "correct the file; the other checks need it";
            return vec![Check::problem(CONFIGURATION, error.to_string(), hint)].into();
        }
    };
    let mut checks = vec![Check::ok(CONFIGURATION, "it can be read")];
    let targets = match parse_target(target, config.call_timeout) {
        Ok(targets) => targets,
        Err(why) => {
            let check = Check::problem(CONFIGURATION, why, "correct the target's address or login");
            return vec![check].into();
        }
    };
    let tasks = stored(&config, &mut checks).await;
    let source = match queue_config(&config) {
        Ok(queue) => open_source(queue).await,
        Err(error) => Err(error),
    };
    let setup = Setup {
        etcd: etcd_config(&config),
        source,
        rows: rows(&config),
        replicate_channel: config.source.replicate_channel.clone(),
        tasks,
        targets,
    };
    checks.extend(examine(&setup).await);
    checks.into()
}

fn parse_target(target: &serde_json::Value, call: Duration) -> Result<Vec<TargetSpec>, String> {
    let Some(map) = target.as_object() else {
        return Ok(Vec::new());
    };
    let errors = Errors::default();
    let found = further_target(&Fields::root(map, &errors), call);
    errors.check().map_err(|all| all.join("; "))?;
    Ok(found.into_iter().collect())
}

async fn stored(config: &Config, checks: &mut Vec<Check>) -> Vec<Patient> {
    let shown = config.store.shown();
    let read = async {
        let key = config.secret_key.as_ref().map(SealKey::parse).transpose()?;
        let Some(store) = config.store.look(key).await? else {
            return anyhow::Ok(None);
        };
        let found = stored_patients(store.as_ref(), &TaskLimits::of(config)).await?;
        Ok(Some(found))
    };
    match tokio::time::timeout(cdc_core::doctor::DEADLINE, read).await {
        Ok(Ok(None)) => {
            checks.push(Check::ok(
                STORE,
                format!("{shown} is not there yet: no task"),
            ));
            Vec::new()
        }
        Ok(Ok(Some((tasks, unreadable)))) => {
            checks.push(Check::ok(
                STORE,
                format!("{shown}: {} task(s)", tasks.len()),
            ));
            checks.extend(unreadable);
            tasks
        }
        Ok(Err(error)) => {
            checks.push(Check::problem(
                STORE,
                format!("{error:#}"),
                "check metaStoreConfig, and who may read what it names",
            ));
            Vec::new()
        }
        Err(_) => {
            checks.push(Check::problem(
                STORE,
                format!("{shown} cannot be read in time"),
                "check its disk, or the server it is in",
            ));
            Vec::new()
        }
    }
}

/// In a server: its tasks as they are.
pub async fn in_server(tasks: &Tasks, targets: Vec<TargetSpec>) -> Report {
    let standing = tasks.standing();
    let mut checks = Vec::new();
    if standing == Standing::Starting {
        checks.push(Check::problem(
            STORE,
            "the stored tasks are not recovered yet, so not all of them are looked at",
            "try again; if it lasts, see the log of the server",
        ));
    }
    let patients = match tasks.patients().await {
        Ok((patients, unreadable)) => {
            let mut found = format!("{} task(s)", patients.len());
            if let Standing::Waiting { owner } = &standing {
                found += &format!(", run by {owner}");
            }
            checks.push(Check::ok(STORE, found));
            checks.extend(unreadable);
            patients
        }
        Err(error) => {
            checks.push(Check::problem(
                STORE,
                error.to_string(),
                "check the store of metaStoreConfig",
            ));
            Vec::new()
        }
    };
    checks.extend(tasks.examine(patients, targets).await);
    checks.into()
}
