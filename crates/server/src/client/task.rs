//! The commands.

use cdc_core::select::Operation;
use serde::Serialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::http::{Client, secret};
use super::{Failure, quarantine, say, table, watch};
use crate::cli::{
    Create, Edit, Initial, Mode, NONE, NamedAnswer, OnConflict, Output, Rules, Start, TaskCommand,
};
use crate::http::v1::body;

pub(super) fn run(client: &Client, command: &TaskCommand) -> Result<(), Failure> {
    match command {
        TaskCommand::Create(create) => {
            let task = client.ask(Method::POST, "/api/v1/tasks", Some(&new_task(create)?))?;
            show(client, &task, |task| {
                table::tasks(std::slice::from_ref(task))
            });
            Ok(())
        }
        TaskCommand::Plan(create) => {
            let plan = client.ask(Method::POST, "/api/v1/plan", Some(&new_task(create)?))?;
            show(client, &plan, table::plan);
            match plan["ok"] == true {
                true => Ok(()),
                false => Err(Failure::new(7, "something speaks against it, as shown")),
            }
        }
        TaskCommand::List => {
            let tasks = all(client, "/api/v1/tasks")?;
            show(client, &Value::Array(tasks), |tasks| {
                table::tasks(tasks.as_array().map_or(&[], Vec::as_slice))
            });
            Ok(())
        }
        TaskCommand::Get { id } => {
            let (task, collections) = whole(client, id)?;
            match client.output {
                Output::Json => {
                    let mut task = task;
                    task["collection_states"] = Value::Array(collections);
                    print(&task);
                }
                Output::Table => say(table::task(&task, &collections)),
            }
            Ok(())
        }
        TaskCommand::Pause { id, reason } => {
            let patch = body::Patch {
                state: Some(body::WantedState::Paused),
                reason: reason.clone(),
                ..body::Patch::default()
            };
            change(client, id, patch)
        }
        TaskCommand::Resume { id, answers } => {
            let patch = body::Patch {
                state: Some(body::WantedState::Running),
                answers: Some(answers.iter().map(answer).collect()),
                ..body::Patch::default()
            };
            change(client, id, patch)
        }
        TaskCommand::Edit(edit) => change(client, &edit.id, edited(client, edit)?),
        TaskCommand::Delete { id } => {
            client.ask(Method::DELETE, &path(id), None)?;
            show(client, &json!({ "deleted": id }), |_| {
                format!("deleted {id}")
            });
            Ok(())
        }
        TaskCommand::Quarantine { command } => quarantine::run(client, command),
        TaskCommand::Watch {
            id,
            until_streaming,
            limit,
            interval,
        } => watch::run(client, id, *until_streaming, *limit, *interval),
    }
}

/// The address of a task. What is not an id is not let through to become part of another address.
pub(super) fn path(id: &str) -> String {
    format!("/api/v1/tasks/{}", part(id))
}

/// What was given as one part of an address.
pub(super) fn part(given: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    given
        .bytes()
        .map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}

/// A task and all its collections.
pub(crate) fn whole(client: &Client, id: &str) -> Result<(Value, Vec<Value>), Failure> {
    let task = client.get(&path(id))?;
    let collections = match task["state"] == "unreadable" {
        true => Vec::new(),
        false => all(client, &format!("{}/collections", path(id)))?,
    };
    Ok((task, collections))
}

/// Every page of a list.
pub(super) fn all(client: &Client, path: &str) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let mut page = client.get(&format!("{path}?limit=1000{after}"))?;
        if let Value::Array(items) = page["items"].take() {
            found.extend(items);
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(found),
        }
    }
}

fn new_task(create: &Create) -> Result<Value, Failure> {
    let token = create.target_token.as_deref().filter(|t| !t.is_empty());
    let token = token.map(|t| secret(t, "--target-token")).transpose()?;
    let named = |given: &String| body::NewStep::Named(selected(given));
    let mut collections = steps(&create.rules);
    match collections.first() {
        None => collections.extend(create.collections.iter().map(named)),
        Some(_) if create.rules.include.is_empty() => {
            collections.insert(0, rule(Some(vec!["*.*".to_owned()]), None))
        }
        Some(_) => {}
    }
    let task = body::NewTask {
        id: create.id.clone(),
        target: body::NewTarget {
            uri: create.target.clone(),
            token,
            username: None,
            password: None,
            connect_timeout: None,
            dial_config: None,
        },
        collections,
        start: create.start.map(|start| match start {
            Start::Created => body::Start::Created,
            Start::Earliest => body::Start::Earliest,
            Start::Now => body::Start::Now,
        }),
        on_conflict: create.on_conflict.map(on_conflict),
        mode: create.mode.map(|mode| match mode {
            Mode::Auto => body::Mode::Auto,
            Mode::Replicate => body::Mode::Replicate,
            Mode::Plain => body::Mode::Plain,
        }),
        initial: create.initial.map(|initial| match initial {
            Initial::Incremental => body::Initial::Incremental,
            Initial::Snapshot => body::Initial::Snapshot,
            Initial::Auto => body::Initial::Auto,
        }),
        load_for_snapshot: create.load_for_snapshot.then_some(true),
        rows_per_second: create.rows_per_second,
        bytes_per_second: create.bytes_per_second,
        mapping: mapping(&create.rules.mapping)?,
        skip_operations: skipped(&create.rules.skip)?,
    };
    to_json(task)
}

/// The patterns of the command line as rules; excludes come last, so they count.
fn steps(rules: &Rules) -> Vec<body::NewStep> {
    let some = |given: &[String]| (!given.is_empty()).then(|| given.to_vec());
    let include = some(&rules.include).map(|all| rule(Some(all), None));
    let exclude = some(&rules.exclude).map(|all| rule(None, Some(all)));
    include.into_iter().chain(exclude).collect()
}

fn rule(include: Option<Vec<String>>, exclude: Option<Vec<String>>) -> body::NewStep {
    body::NewStep::Rule(body::NewRule {
        include: include.map(body::Patterns::Several),
        exclude: exclude.map(body::Patterns::Several),
        database: None,
    })
}

fn mapping(given: &[String]) -> Result<Option<Vec<body::NewMapping>>, Failure> {
    if given.is_empty() {
        return Ok(None);
    }
    if given == [NONE] {
        return Ok(Some(Vec::new()));
    }
    // A regex may have a '=', a name has none.
    let one = |text: &String| match text.rsplit_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(body::NewMapping {
            from: from.to_owned(),
            to: to.to_owned(),
        }),
        _ => {
            let what = format!("--map: FROM=TO expected, like 'db1.*=db2.*', not {text:?}");
            Err(Failure::new(2, what))
        }
    };
    given.iter().map(one).collect::<Result<_, _>>().map(Some)
}

fn skipped(given: &[String]) -> Result<Option<Vec<body::Operation>>, Failure> {
    if given.is_empty() {
        return Ok(None);
    }
    if given == [NONE] {
        return Ok(Some(Vec::new()));
    }
    let one = |name: &String| {
        let found = Operation::ALL.iter().find(|(known, _)| known == name);
        let known = Operation::ALL.map(|(known, _)| known).join(", ");
        let what = format!("--skip: {NONE} alone, or some of {known} expected, not {name:?}");
        found
            .map(|(_, operation)| body::Operation::from(*operation))
            .ok_or(Failure::new(2, what))
    };
    given.iter().map(one).collect::<Result<_, _>>().map(Some)
}

fn selected(given: &str) -> body::NewSelected {
    let (database, name) = match given {
        "*" => ("*", "*"),
        given => given.split_once('.').unwrap_or(("default", given)),
    };
    body::NewSelected {
        database: Some(database.to_owned()),
        name: name.to_owned(),
        start: None,
        positions: None,
    }
}

fn on_conflict(choice: OnConflict) -> body::OnConflict {
    match choice {
        OnConflict::Ask => body::OnConflict::Ask,
        OnConflict::Adopt => body::OnConflict::Adopt,
        OnConflict::Recreate => body::OnConflict::Recreate,
    }
}

fn edited(client: &Client, edit: &Edit) -> Result<body::Patch, Failure> {
    let token = edit.target_token.as_deref();
    let token = token.map(|t| secret(t, "--target-token")).transpose()?;
    let files = [
        &edit.ca_pem,
        &edit.client_pem,
        &edit.client_key,
        &edit.server_name,
    ];
    let dial_config = files
        .iter()
        .any(|file| file.is_some())
        .then(|| body::DialConfig {
            ca_pem_path: edit.ca_pem.clone(),
            server_pem_path: None,
            client_pem_path: edit.client_pem.clone(),
            client_key_path: edit.client_key.clone(),
            server_name: edit.server_name.clone(),
        });
    let target = body::PatchTarget {
        token,
        connect_timeout: edit.connect_timeout,
        dial_config,
        ..body::PatchTarget::default()
    };
    let given =
        target.token.is_some() || target.connect_timeout.is_some() || target.dial_config.is_some();
    Ok(body::Patch {
        target: given.then_some(target),
        collections: all_with(client, edit)?,
        on_conflict: edit.on_conflict.map(on_conflict),
        mapping: mapping(&edit.rules.mapping)?,
        skip_operations: skipped(&edit.rules.skip)?,
        ..body::Patch::default()
    })
}

/// The collections of the task and those that are added; the server takes whole lists.
fn all_with(client: &Client, edit: &Edit) -> Result<Option<Vec<body::NewStep>>, Failure> {
    let added: Vec<_> = edit.collections.iter().map(|c| selected(c)).collect();
    let any = |s: &body::NewSelected| s.database.as_deref() == Some("*") && s.name == "*";
    let steps = steps(&edit.rules);
    if added.is_empty() && steps.is_empty() {
        return Ok(None);
    }
    if added.iter().any(any) && steps.is_empty() {
        // It stands for all of them.
        return Ok(Some(added.into_iter().map(body::NewStep::Named).collect()));
    }
    let task = client.get(&path(&edit.id))?;
    let part = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = task["collections"]
        .as_array()
        .into_iter()
        .flatten()
        .map(
            |c| match (patterns(&c["include"]), patterns(&c["exclude"])) {
                (None, None) => body::NewStep::Named(body::NewSelected {
                    database: Some(part(c, "database")),
                    name: part(c, "name"),
                    start: None,
                    positions: None,
                }),
                (include, exclude) => body::NewStep::Rule(body::NewRule {
                    include,
                    exclude,
                    database: None,
                }),
            },
        )
        .collect();
    for new in added {
        let same = |step: &body::NewStep| match step {
            body::NewStep::Named(c) => c.database == new.database && c.name == new.name,
            body::NewStep::Rule(_) => false,
        };
        if !all.iter().any(same) {
            all.push(body::NewStep::Named(new));
        }
    }
    all.extend(steps);
    Ok(Some(all))
}

fn patterns(of: &Value) -> Option<body::Patterns> {
    let all = of.as_array()?.iter().filter_map(|p| p.as_str());
    let mut all: Vec<String> = all.map(str::to_owned).collect();
    match (all.len(), all.pop()) {
        (1, Some(one)) => Some(body::Patterns::One(one)),
        (_, last) => {
            all.extend(last);
            Some(body::Patterns::Several(all))
        }
    }
}

fn to_json(body: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(body).map_err(|e| Failure::new(1, e.to_string()))
}

fn answer(given: &NamedAnswer) -> body::Answer {
    let on_conflict = match given.answer.as_str() {
        "adopt" => Some(body::OnConflict::Adopt),
        "recreate" => Some(body::OnConflict::Recreate),
        _ => None,
    };
    let start = match given.answer.as_str() {
        "earliest" => Some(body::Beginning::Earliest),
        "now" => Some(body::Beginning::Now),
        "snapshot" => Some(body::Beginning::Snapshot),
        _ => None,
    };
    body::Answer {
        database: Some(given.database.clone()),
        name: given.name.clone(),
        on_conflict,
        start,
        positions: None,
        skip: (given.answer == "skip").then_some(true),
    }
}

fn change(client: &Client, id: &str, patch: body::Patch) -> Result<(), Failure> {
    let task = client.ask(Method::PATCH, &path(id), Some(&to_json(patch)?))?;
    show(client, &task, |task| {
        table::tasks(std::slice::from_ref(task))
    });
    Ok(())
}

pub(super) fn show(client: &Client, value: &Value, table: impl Fn(&Value) -> String) {
    match client.output {
        Output::Json => print(value),
        Output::Table => say(table(value)),
    }
}

fn print(value: &Value) {
    say(format_args!("{value:#}"));
}
