//! A target: whether it can be reached and logged in to, its version, its mode, its clock, what the login may do.

use super::source::age;
use super::{Check, Patient, mapping, names, some, within};
use crate::catalog::View;
use crate::engine::target_problem;
use crate::target::TargetError;
use crate::target::grpc::plain::{Account, PlainTarget};
use crate::task::{Mode, TargetSpec};

/// A target's clock that differs by more than this from ours, in seconds, is worth a word: rows ahead of the target's
/// clock wait for it.
const SKEW: f64 = 1.5;

pub(super) async fn look(spec: &TargetSpec, view: Option<&View>, tasks: &[Patient]) -> Vec<Check> {
    let uri = spec.uri.as_str();
    let own: Vec<&Patient> = tasks
        .iter()
        .filter(|t| t.spec.target.key() == spec.key() && t.spec.target.token == spec.token)
        .collect();
    // What a task asks of it is known. One that has no task yet is whatever it turns out to be.
    let wanted = own.first().map(|t| t.spec.target.mode);
    let (target, standby) = match connect(spec, wanted).await {
        Ok(found) => found,
        Err(why) => {
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
    let is_plain = match wanted {
        Some(mode) => mode == Mode::Plain,
        None => matches!(standby, Ok(Ok(false))),
    };
    let mode = mode(standby, wanted);
    let mut checks = Vec::new();
    let (version, clock, privileges, mapped) = tokio::join!(
        version(&target),
        clock(&target, is_plain),
        privileges(&target),
        mapping::look(&target, view, &own),
    );
    checks.extend([version, mode, clock, privileges].map(|check| check.about(uri)));
    checks.extend(mapped);
    checks
}

/// Whether it is a standby, as it says.
type Standby = Result<Result<bool, TargetError>, Check>;

/// Connected as a task of mode `wanted` would be; without one, as fits what it is.
async fn connect(spec: &TargetSpec, wanted: Option<Mode>) -> Result<(PlainTarget, Standby), Check> {
    let to = |mode| TargetSpec {
        mode,
        ..spec.clone()
    };
    let connected = async |mode| match within(names::TARGET, PlainTarget::connect(&to(mode))).await
    {
        Ok(Ok(target)) => Ok(target),
        Ok(Err(error)) => Err(Check::of(names::TARGET, &target_problem(&error))),
        Err(late) => Err(late),
    };
    let target = connected(wanted.unwrap_or(Mode::Plain)).await?;
    let standby = within(names::STANDBY, target.is_standby()).await;
    match (wanted, &standby) {
        (None, Ok(Ok(true))) => Ok((connected(Mode::Replicate).await?, standby)),
        _ => Ok((target, standby)),
    }
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

fn mode(standby: Standby, wanted: Option<Mode>) -> Check {
    let standby = match standby {
        Ok(Ok(standby)) => standby,
        Ok(Err(error)) => return Check::of(names::STANDBY, &target_problem(&error)),
        Err(late) => return late,
    };
    let text = match standby {
        true => "it is a standby",
        false => {
            "it is not a standby: common.ttMsgEnabled is true there, and it takes no replicated messages"
        }
    };
    let make = "set common.ttMsgEnabled to false in its milvus.yaml and restart it";
    match (standby, wanted) {
        (true, None | Some(Mode::Replicate)) => Check::ok(names::STANDBY, text),
        (false, Some(Mode::Plain)) => Check::ok(
            names::STANDBY,
            "it is a Milvus of its own: rows go there by Insert and Delete",
        ),
        (false, None) => Check::warning(
            names::STANDBY,
            format!("{text}; a task to it is of mode plain"),
            format!("if it is to be a standby, {make}"),
        ),
        (false, Some(Mode::Replicate)) => Check::problem(
            names::STANDBY,
            text,
            format!("{make}; after a fail-over delete the task instead"),
        ),
        (true, Some(Mode::Plain)) => Check::problem(
            names::STANDBY,
            "it is a standby, and takes no rows of clients, which is what a task of mode plain sends",
            "set common.ttMsgEnabled to true in its milvus.yaml and restart it, or make a new task with mode replicate",
        ),
    }
}

async fn clock(target: &PlainTarget, is_plain: bool) -> Check {
    if is_plain {
        return Check::ok(
            names::CLOCK,
            "it gives the rows' times itself: its clock is of no concern",
        );
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_mode_is_held_against_what_a_task_asks_for() {
        let verdict = |standby, wanted| mode(Ok(Ok(standby)), wanted).verdict;
        let (replicate, plain) = (Some(Mode::Replicate), Some(Mode::Plain));
        assert_eq!(verdict(true, replicate), Verdict::Ok);
        assert_eq!(verdict(true, plain), Verdict::Problem);
        assert_eq!(verdict(true, None), Verdict::Ok);
        assert_eq!(verdict(false, replicate), Verdict::Problem);
        assert_eq!(verdict(false, plain), Verdict::Ok);
        assert_eq!(verdict(false, None), Verdict::Warning);
    }
}
