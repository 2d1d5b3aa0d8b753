//! A task as a resource of `/api/v1`: its creation and its changes.

use cdc_core::task::TaskSpec;

use super::{
    Answer, CONFLICTS, CreateTask, Edited, Given, Limits, MODES, answer, carried, check_id,
    connect, edit, put_together, selection, snapshot,
};
use crate::fields::Fields;

/// Longest reason of a pause, in characters.
const REASON: usize = 200;

/// A change of a task.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Patch {
    /// Whether it shall run; `None`: as before.
    pub run: Option<bool>,
    /// Why it is paused, in a person's words.
    pub reason: Option<String>,
    pub answers: Vec<Answer>,
    /// What it shall be asked to do from now on.
    pub edited: Option<Edited>,
}

/// Reads the body of a creation. What is wrong goes to the errors of `data`.
pub fn task(data: Fields<'_>, limits: &Limits) -> Option<CreateTask> {
    let id = data.string("id");
    check_id(&data, "id", id.as_deref());
    let target = match data.secret_object("target") {
        Some(target) => connect::connect_param(target),
        None => {
            if !data.has("target") {
                data.wrong("target", "missing; {\"uri\": \"http://host:port\"}");
            }
            None
        }
    };
    let wanted = selection::read_list(&data, limits);
    let names = carried::read(&data).unwrap_or_default();
    carried::check(&data, &wanted.selection, &names.mapping);
    let on_conflict = data.choice("on_conflict", CONFLICTS).unwrap_or_default();
    let mode = data.choice("mode", MODES).unwrap_or_default();
    let snapshot = snapshot::read(&data, limits, &wanted);
    data.finish();
    Some(put_together(
        id,
        target?,
        wanted,
        names,
        (on_conflict, mode, snapshot),
    ))
}

/// Reads the body of a change of the task `current`, if there is one. What is wrong goes to the errors of `data`.
pub fn patch(data: Fields<'_>, limits: &Limits, current: Option<(&TaskSpec, &Given)>) -> Patch {
    edit::refuse_what_stays(&data);
    let asked = edit::is_asked(&data);
    let edited = match current {
        Some((spec, given)) if asked => edit::read(&data, limits, spec, given),
        _ => {
            data.accept(&edit::FIELDS);
            None
        }
    };
    let run = data.choice("state", &[("running", true), ("paused", false)]);
    let reason = data.string("reason");
    if let Some(reason) = &reason {
        if run != Some(false) {
            data.wrong("reason", "only a pause has a reason; add state: paused");
        }
        let count = reason.chars().count();
        if count > REASON || reason.chars().any(char::is_control) {
            data.wrong(
                "reason",
                format_args!("one line of at most {REASON} characters expected"),
            );
        }
    }
    let answers = answer::read(&data, "answers", "database", limits);
    if run == Some(false) && !answers.is_empty() {
        data.wrong("answers", "a paused task takes none; add state: running");
    }
    if run.is_none() && answers.is_empty() && !asked {
        data.wrong(
            "state",
            "nothing to change; state, answers, target, collections, on_conflict, mapping or skip_operations expected",
        );
    }
    data.finish();
    Patch {
        run,
        reason,
        answers,
        edited,
    }
}
