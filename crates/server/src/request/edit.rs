//! A change of what a task is asked to do, in the form of a part of its creation: what is given replaces what was, and
//! all of it together is checked as at a creation.

use cdc_core::task::{StartPoint, TaskSpec};
use cdc_core::tso::Tso;
use serde_json::{Map, Value, json};

use super::{CONFLICTS, Given, Limits, carried, connect, normalise_uri, selection};
use crate::fields::{Errors, Fields};
use crate::tasks::unix_ms;

/// What an edited task is asked to do.
#[derive(Clone, PartialEq, Debug)]
pub struct Edited {
    /// What it was made of.
    pub base: TaskSpec,
    pub spec: TaskSpec,
    pub given: Given,
    /// What is not as before, for the history.
    pub changed: Vec<&'static str>,
}

const START_STAYS: &str = "the task's start cannot be changed: it was for the collections that were there when the task was created; give a start with a collection that is added";

const SNAPSHOT_STAYS: &str = "cannot be changed by this version; make a new task";

/// What can be changed.
pub(super) const FIELDS: [&str; 5] = [
    "target",
    "collections",
    "on_conflict",
    "mapping",
    "skip_operations",
];
/// The login may be given in any of these.
const LOGIN: [&str; 3] = ["token", "username", "password"];
/// Together they are the address.
const ADDRESS: [&str; 4] = ["uri", "host", "port", "enable_tls"];

/// Whether the body asks for a change of the task itself.
pub(super) fn is_asked(data: &Fields<'_>) -> bool {
    FIELDS.iter().any(|key| data.has(key))
}

/// What cannot be changed, by name and with the reason.
pub(super) fn refuse_what_stays(data: &Fields<'_>) {
    for (key, why) in [
        (
            "id",
            "cannot be changed: all that is stored of the task goes by it; make a new task",
        ),
        ("start", START_STAYS),
        (
            "initial",
            "cannot be changed: it was for the collections that were there when the task was created; make a new task",
        ),
        ("load_for_snapshot", SNAPSHOT_STAYS),
        ("rows_per_second", SNAPSHOT_STAYS),
        ("bytes_per_second", SNAPSHOT_STAYS),
        (
            "mode",
            "cannot be changed: what is on the target was made for this one; make a new task",
        ),
    ] {
        if data.get(key).is_some() {
            data.wrong(key, why);
        }
    }
}

/// Reads the change of `spec`. What is wrong goes to the errors of `data`.
pub(super) fn read(
    data: &Fields<'_>,
    limits: &Limits,
    spec: &TaskSpec,
    given: &Given,
) -> Option<Edited> {
    let mut edited = Edited {
        base: spec.clone(),
        spec: spec.clone(),
        given: given.clone(),
        changed: Vec::new(),
    };
    data.accept(&FIELDS);
    if let Some(target) = data.secret_object("target") {
        change_target(&target, &mut edited)?;
    }
    if data.has("collections") {
        change_selection(data, limits, &mut edited);
    }
    if let Some(mapping) = carried::mapping(data) {
        edited.spec.mapping = mapping;
    }
    if let Some(skip) = carried::skipped(data) {
        edited.spec.skip = skip;
    }
    carried::check(data, &edited.spec.selection, &edited.spec.mapping);
    if let Some(on_conflict) = data.choice("on_conflict", CONFLICTS) {
        edited.spec.on_conflict = on_conflict;
    }
    name_changes(spec, &mut edited);
    Some(edited)
}

fn name_changes(before: &TaskSpec, edited: &mut Edited) {
    let after = &edited.spec;
    let (a, b) = (&before.target, &after.target);
    for (name, is) in [
        ("the target's login", a.token != b.token),
        ("the target's certificates", a.tls != b.tls),
        (
            "the target's connect_timeout",
            a.connect_timeout != b.connect_timeout,
        ),
        (
            "collections",
            before.selection != after.selection
                || before.starts != after.starts
                || before.positions != after.positions,
        ),
        ("on_conflict", before.on_conflict != after.on_conflict),
        ("mapping", before.mapping != after.mapping),
        ("skip_operations", before.skip != after.skip),
    ] {
        if is {
            edited.changed.push(name);
        }
    }
}

/// The whole target, put together of what it was and what is given, is read as that of a creation.
fn change_target(given: &Fields<'_>, edited: &mut Edited) -> Option<()> {
    let stays = &edited.spec.target.uri;
    check_address(given, stays);
    let shown = &edited.given.milvus_connect_param;
    let mut whole: Map<String, Value> = Map::new();
    whole.insert("uri".to_owned(), json!(stays));
    for key in ["dial_config", "channel_num"] {
        if let Some(before) = shown.get(key) {
            whole.insert(key.to_owned(), before.clone());
        }
    }
    let timeout = edited.spec.target.connect_timeout.as_secs();
    whole.insert("connect_timeout".to_owned(), json!(timeout));
    if LOGIN.iter().all(|key| !given.has(key)) {
        let token = edited.spec.target.token.expose();
        whole.insert("token".to_owned(), json!(token));
    }
    for (key, value) in given.entries() {
        if !ADDRESS.contains(&key.as_str()) && !value.is_null() {
            whole.insert(key.clone(), value.clone());
        }
    }
    let connect = connect::connect_param(Fields::element(
        given.path("").trim_end_matches('.').to_owned(),
        &whole,
        given.errors(),
    ))?;
    edited.spec.target.token = connect.token;
    edited.spec.target.tls = connect.tls;
    edited.spec.target.connect_timeout = connect.timeout;
    // The address is shown as it was given.
    for (key, value) in connect.shown {
        if !ADDRESS.contains(&key.as_str()) {
            edited.given.milvus_connect_param.insert(key, value);
        }
    }
    Some(())
}

fn check_address(given: &Fields<'_>, stays: &str) {
    let why = format!(
        "cannot be changed from {stays}: what is known of the target's time and objects goes by its address; make a new task"
    );
    if let Some(uri) = given.string("uri")
        && normalise_uri(&uri).as_deref() != Ok(stays)
    {
        given.wrong("uri", &why);
    }
    for key in ["host", "port", "enable_tls"] {
        if given.has(key) {
            given.wrong(key, &why);
        }
    }
}

/// The list replaces the one before. One that is left out keeps what is stored of it, and goes on from there if it is
/// wanted again.
fn change_selection(data: &Fields<'_>, limits: &Limits, edited: &mut Edited) {
    // Of its own: a task's `start` is refused by name already.
    let map: Map<String, Value> = data
        .entries()
        .filter(|(key, _)| *key == "collections")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let errors = Errors::default();
    let wanted = selection::read_list(&Fields::root(&map, &errors), limits);
    if let Err(all) = errors.check() {
        for error in all {
            data.errors().add(error);
        }
        return;
    }
    // Of "*.*", which would be the task's.
    if wanted.start != StartPoint::default() {
        data.wrong("collections", START_STAYS);
        return;
    }
    edited.spec.selection = wanted.selection;
    // A start counts only for collections that are not met yet, and were there when it was given.
    let now = Tso::from_millis(unix_ms());
    for (of, start) in wanted.starts {
        if edited.spec.starts.insert(of.clone(), start) != Some(start) {
            edited.spec.added.insert(of, now);
        }
    }
    for (collection, places) in wanted.positions {
        edited.spec.positions.insert(collection, places);
    }
    edited.given.collection_infos = wanted.collection_infos;
    edited.given.db_collections = wanted.db_collections;
}
