//! `task watch`: how far a task is, over and over.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::Client;
use super::{Failure, say, table, task};
use crate::cli::Output;

/// How often in a row the server may be away before that is the end.
const AWAY: u32 = 5;

pub(super) fn run(
    client: &Client,
    id: &str,
    until_streaming: bool,
    limit: Option<u64>,
    interval: u64,
) -> Result<(), Failure> {
    let end = limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let interval = Duration::from_secs(interval);
    let live = client.output == Output::Table && std::io::stdout().is_terminal();
    let mut before: Option<(Instant, u64)> = None;
    let mut away = 0;
    loop {
        match task::whole(client, id) {
            Ok((shown, collections)) => {
                away = 0;
                let now = Instant::now();
                let rows = shown["progress"]["counters"]["rows_out"].as_u64();
                let rate = rows.zip(before).map(|(rows, (at, then))| {
                    rows.saturating_sub(then) as f64
                        / now.duration_since(at).as_secs_f64().max(0.001)
                });
                before = rows.map(|rows| (now, rows));
                show(client.output, live, &shown, &collections, rate);
                let streaming = |c: &&Value| c["state"] == "Streaming";
                let counted = collections.iter().filter(|c| c["state"] != "Dropped");
                let all = counted.clone().count();
                if until_streaming && all > 0 && counted.filter(streaming).count() == all {
                    return Ok(());
                }
            }
            Err(failure) if failure.code == 3 && away < AWAY => {
                away += 1;
                eprintln!("milvus-cdc: {}", failure.message);
            }
            Err(failure) => return Err(failure),
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return match until_streaming {
                true => Err(Failure::new(8, "not every collection is Streaming yet")),
                false => Ok(()),
            };
        }
        std::thread::sleep(left.map_or(interval, |left| left.min(interval)));
    }
}

fn show(output: Output, live: bool, task: &Value, collections: &[Value], rate: Option<f64>) {
    let progress = &task["progress"];
    let mut text = match (output, live) {
        (Output::Json, _) => json!({ "task": task, "collections": collections }).to_string(),
        // Home, then what is there, then nothing below it: no flicker.
        (Output::Table, true) => format!("\x1b[H\x1b[2J{}", table::task(task, collections)),
        (Output::Table, false) => {
            let states = progress["collections"].as_object();
            let states: Vec<String> = states
                .into_iter()
                .flatten()
                .map(|(state, n)| format!("{state} {n}"))
                .collect();
            let state = task["state"].as_str().unwrap_or("-");
            let lag = seconds(&progress["lag_seconds"]);
            let rows = progress["counters"]["rows_out"].as_u64().unwrap_or(0);
            format!("{state}  lag {lag}  rows {rows}  {}", states.join(", "))
        }
    };
    if output == Output::Table
        && let Some(rate) = rate
    {
        text += &format!("  {rate:.0} rows/s");
    }
    say(text);
}

/// Seconds for people.
pub(super) fn seconds(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(s) if s < 10.0 => format!("{s:.1} s"),
        Some(s) if s < 120.0 => format!("{s:.0} s"),
        Some(s) if s < 7200.0 => format!("{:.0} min", s / 60.0),
        Some(s) => format!("{:.0} h", s / 3600.0),
    }
}
