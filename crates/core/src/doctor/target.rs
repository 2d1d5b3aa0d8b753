//! A target: whether it can be reached and logged in to, its version, its mode, its clock, what the login may do.

use super::source::age;
use super::{Check, Patient, mapping, names, some, within};
use crate::catalog::View;
use crate::engine::target_problem;
use crate::target::grpc::plain::{Account, PlainTarget};
use crate::task::TargetSpec;

/// A target's clock that differs by more than this from ours, in seconds, is worth a word: rows ahead of the target's
/// clock wait for it.
const SKEW: f64 = 1.5;

pub(super) async fn look(spec: &TargetSpec, view: Option<&View>, tasks: &[Patient]) -> Vec<Check> {
    let uri = spec.uri.as_str();
    let own: Vec<&Patient> = tasks
        .iter()
        .filter(|t| t.spec.target.key() == spec.key() && t.spec.target.token == spec.token)
        .collect();
    let target = match within(names::TARGET, PlainTarget::connect(spec)).await {
        Ok(Ok(target)) => target,
        failed => {
            let why = match failed {
                Ok(Err(error)) => Check::of(names::TARGET, &target_problem(&error)),
                Err(late) => late,
                Ok(Ok(_)) => return Vec::new(),
            };
            let mut checks = vec![why];
            for other in [
                names::STANDBY,
                names::CLOCK,
                names::PRIVILEGES,
                names::MAPPING,
            ] {
                checks.push(Check::skipped(other, "the target cannot be asked"));
            }
            return checks.into_iter().map(|c| c.about(uri)).collect();
        }
    };
    let mut checks = Vec::new();
    let (version, mode, clock, privileges, mapped) = tokio::join!(
        version(&target),
        mode(&target),
        clock(&target),
        privileges(&target),
        mapping::look(&target, view, &own),
    );
    checks.extend([version, mode, clock, privileges].map(|check| check.about(uri)));
    checks.extend(mapped);
    checks
}

async fn version(target: &PlainTarget) -> Check {
    match within(names::TARGET, target.version()).await {
        Ok(Ok(version)) => Check::ok(
            names::TARGET,
            format!("it answers and took the login; it is Milvus {version}"),
        ),
        Ok(Err(error)) => Check::of(names::TARGET, &target_problem(&error)),
        Err(late) => late,
    }
}

async fn mode(target: &PlainTarget) -> Check {
    match within(names::STANDBY, target.is_standby()).await {
        Ok(Ok(true)) => Check::ok(names::STANDBY, "it is a standby"),
        Ok(Ok(false)) => Check::problem(
            names::STANDBY,
            "it is not a standby: common.ttMsgEnabled is true there, and it takes no replicated messages",
            "set common.ttMsgEnabled to false in its milvus.yaml and restart it; after a fail-over delete the task instead",
        ),
        Ok(Err(error)) => Check::of(names::STANDBY, &target_problem(&error)),
        Err(late) => late,
    }
}

async fn clock(target: &PlainTarget) -> Check {
    match within(names::CLOCK, target.now()).await {
        Ok(Ok(now)) => {
            let behind = age(now);
            let text = format!(
                "it is {:.1} s {} this machine's",
                behind.abs(),
                if behind < 0.0 { "ahead of" } else { "behind" }
            );
            if behind.abs() > SKEW {
                Check::warning(
                    names::CLOCK,
                    text,
                    "keep the clocks of source, target and milvus-cdc together (NTP): rows ahead of the target's clock wait for it",
                )
            } else {
                Check::ok(names::CLOCK, text)
            }
        }
        Ok(Err(error)) => Check::of(names::CLOCK, &target_problem(&error)),
        Err(late) => late,
    }
}

/// A standby is written to by calls of every kind, in every database: the role `admin`, or `root`.
async fn privileges(target: &PlainTarget) -> Check {
    match within(names::PRIVILEGES, target.account()).await {
        Ok(Ok(Account::Anybody)) => Check::ok(
            names::PRIVILEGES,
            "no login was given, and none was asked for",
        ),
        Ok(Ok(Account::ApiKey)) => Check::ok(
            names::PRIVILEGES,
            "the login is an API key; what it may do cannot be asked",
        ),
        Ok(Ok(Account::User { name, roles }))
            if name == "root" || roles.iter().any(|role| role == "admin") =>
        {
            Check::ok(names::PRIVILEGES, format!("{name} may do everything"))
        }
        Ok(Ok(Account::User { name, roles })) => Check::problem(
            names::PRIVILEGES,
            format!(
                "{name} has not the role admin on it (roles: {})",
                if roles.is_empty() {
                    "none".to_owned()
                } else {
                    some(&roles)
                }
            ),
            "give that user the role admin, or use one that has it: databases, collections, indexes and load states are made and dropped there",
        ),
        Ok(Err(error)) => Check::of(names::PRIVILEGES, &target_problem(&error)),
        Err(late) => late,
    }
}
