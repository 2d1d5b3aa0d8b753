//! The answers as tables for people.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::watch::seconds;

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().copied());
    table
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn tasks(tasks: &[Value]) -> String {
    let mut out = table(&["ID", "STATE", "TARGET", "COLLECTIONS", "REASON"]);
    for task in tasks {
        let names = task["collections"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let names: Vec<String> = names.iter().map(step).collect();
        out.add_row([
            text(&task["id"]),
            text(&task["state"]),
            text(&task["target"]["uri"]),
            names.join(","),
            text(&task["reason"]),
        ]);
    }
    out.to_string()
}

/// A step of a selection: a name, or the patterns of a rule, with ! before those that it excludes.
fn step(step: &Value) -> String {
    let patterns = |key: &str, before: &str| {
        let all = step[key].as_array()?.iter();
        let all: Vec<String> = all.map(|p| format!("{before}{}", text(p))).collect();
        Some(all.join(","))
    };
    patterns("include", "")
        .or_else(|| patterns("exclude", "!"))
        .unwrap_or_else(|| format!("{}.{}", text(&step["database"]), text(&step["name"])))
}

/// What a task would carry.
pub(super) fn plan(plan: &Value) -> String {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let mut out = table(&["COLLECTION", "ON THE TARGET", "RULE", "PROBLEMS"]);
    for c in list(&plan["collections"]) {
        let problems: Vec<String> = list(&c["problems"]).iter().map(text).collect();
        out.add_row([
            text(&c["source"]),
            text(&c["target"]),
            text(&c["rule"]),
            match problems.is_empty() {
                true => "-".to_owned(),
                false => problems.join("; "),
            },
        ]);
    }
    for c in list(&plan["left_out"]) {
        let why = match c["rule"].is_null() {
            true => "(left out: no rule has it)",
            false => "(left out by this rule)",
        };
        out.add_row([
            text(&c["source"]),
            why.to_owned(),
            text(&c["rule"]),
            "-".to_owned(),
        ]);
    }
    let mut lines = vec![out.to_string()];
    let problems = list(&plan["problems"]);
    lines.extend(problems.iter().map(|p| format!("problem: {}", text(p))));
    lines.join("\n")
}

/// One task with its collections.
pub(super) fn task(task: &Value, collections: &[Value]) -> String {
    let mut lines = vec![
        format!("id      {}", text(&task["id"])),
        format!("state   {}", text(&task["state"])),
        format!("target  {}", text(&task["target"]["uri"])),
        format!("lag     {}", seconds(&task["progress"]["lag_seconds"])),
    ];
    for (name, key) in [("reason", "reason"), ("by", "paused_by")] {
        if let Some(text) = task[key].as_str() {
            lines.push(format!("{name:<7} {text}"));
        }
    }
    for problem in task["progress"]["problems"]
        .as_array()
        .into_iter()
        .flatten()
    {
        lines.push(format!("problem {}", problem_line(problem)));
    }
    let mut out = table(&[
        "COLLECTION",
        "STATE",
        "LAG",
        "ROWS",
        "WHAT IS WRONG, AND WHAT TO DO",
    ]);
    for c in collections {
        let mut remarks = Vec::new();
        if c["state"] != "Streaming"
            && let Some(error) = c.get("last_error").filter(|e| e.is_object())
        {
            remarks.push(problem_line(error));
        }
        if let Some(answers) = c["answers"].as_str() {
            remarks.push(format!("answer with {answers}"));
        }
        out.add_row([
            format!("{}.{}", text(&c["database"]), text(&c["name"])),
            text(&c["state"]),
            seconds(&c["lag_seconds"]),
            text(&c["rows"]),
            remarks.join("; "),
        ]);
    }
    lines.push(String::new());
    lines.push(out.to_string());
    lines.join("\n")
}

/// Messages that could not be carried.
pub(super) fn quarantine(messages: &[Value]) -> String {
    let mut out = table(&["KEY", "STATE", "COLLECTION", "KIND", "SIZE", "ERROR"]);
    for m in messages {
        let state = match m["by"].as_str() {
            Some(by) => format!("{} by {by}", text(&m["state"])),
            None => text(&m["state"]),
        };
        out.add_row([
            text(&m["key"]),
            state,
            format!("{}.{}", text(&m["database"]), text(&m["name"])),
            text(&m["kind"]),
            text(&m["size"]),
            text(&m["error"]["message"]),
        ]);
    }
    out.to_string()
}

/// One of them, line by line.
pub(super) fn quarantined(message: &Value) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: &Value| {
        if !value.is_null() {
            lines.push(format!("{name:<13} {}", text(value)));
        }
    };
    for name in [
        "key",
        "state",
        "by",
        "database",
        "name",
        "collection_id",
        "channel",
        "position",
        "kind",
        "size",
        "not_kept",
    ] {
        line(name, &message[name]);
    }
    line("error", &message["error"]["message"]);
    for (name, value) in message["header"].as_object().into_iter().flatten() {
        line(&format!("its {name}"), value);
    }
    lines.join("\n")
}

fn problem_line(problem: &Value) -> String {
    match (text(&problem["message"]), problem["hint"].as_str()) {
        (message, None | Some("")) => message,
        (message, Some(hint)) => format!("{message}; {hint}"),
    }
}
