//! The commands.

use serde::Serialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::http::{Client, secret};
use super::{Failure, say, table, watch};
use crate::cli::{Create, NamedAnswer, OnConflict, Output, Start, TaskCommand};
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
                answers: None,
            };
            change(client, id, patch)
        }
        TaskCommand::Resume { id, answers } => {
            let patch = body::Patch {
                state: Some(body::WantedState::Running),
                reason: None,
                answers: Some(answers.iter().map(answer).collect()),
            };
            change(client, id, patch)
        }
        TaskCommand::Delete { id } => {
            client.ask(Method::DELETE, &path(id), None)?;
            show(client, &json!({ "deleted": id }), |_| {
                format!("deleted {id}")
            });
            Ok(())
        }
        TaskCommand::Watch {
            id,
            until_streaming,
            limit,
            interval,
        } => watch::run(client, id, *until_streaming, *limit, *interval),
    }
}

/// The address of a task. What is not an id is not let through to become part of another address.
fn path(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let escaped: String = id
        .bytes()
        .map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect();
    format!("/api/v1/tasks/{escaped}")
}

/// A task and all its collections.
pub(super) fn whole(client: &Client, id: &str) -> Result<(Value, Vec<Value>), Failure> {
    let task = client.get(&path(id))?;
    let collections = match task["state"] == "unreadable" {
        true => Vec::new(),
        false => all(client, &format!("{}/collections", path(id)))?,
    };
    Ok((task, collections))
}

/// Every page of a list.
fn all(client: &Client, path: &str) -> Result<Vec<Value>, Failure> {
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
    let collections = create.collections.iter().map(|given| {
        let (database, name) = match given.as_str() {
            "*" => ("*", "*"),
            given => given.split_once('.').unwrap_or(("default", given)),
        };
        body::NewSelected {
            database: Some(database.to_owned()),
            name: name.to_owned(),
            start: None,
            positions: None,
        }
    });
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
        collections: collections.collect(),
        start: create.start.map(|start| match start {
            Start::Created => body::Start::Created,
            Start::Earliest => body::Start::Earliest,
            Start::Now => body::Start::Now,
        }),
        on_conflict: create.on_conflict.map(|choice| match choice {
            OnConflict::Ask => body::OnConflict::Ask,
            OnConflict::Adopt => body::OnConflict::Adopt,
            OnConflict::Recreate => body::OnConflict::Recreate,
        }),
    };
    to_json(task)
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
        "earliest" => Some(body::Start::Earliest),
        "now" => Some(body::Start::Now),
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

fn show(client: &Client, value: &Value, table: impl Fn(&Value) -> String) {
    match client.output {
        Output::Json => print(value),
        Output::Table => say(table(value)),
    }
}

fn print(value: &Value) {
    say(format_args!("{value:#}"));
}
