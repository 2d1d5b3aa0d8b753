//! What the request `maintenance` can do: set what is logged, until the next start.

use std::sync::Arc;

use crate::config::check_filter;
use crate::fields::{Fields, clip};

type Set = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// Sets the filter of the running log.
#[derive(Clone)]
pub struct LogLevel {
    set: Arc<Set>,
}

impl LogLevel {
    pub fn new(set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self { set: Arc::new(set) }
    }
}

pub(crate) enum Operation {
    SetLogLevel(String),
}

/// Reads `request_data` of a maintenance request. What is wrong goes to the errors of `data`.
pub(crate) fn read(data: Fields<'_>) -> Option<Operation> {
    let operation = data.string("operation");
    let params = data.object("params");
    data.accept(&["params"]);
    let found = match operation.as_deref() {
        Some("set_log_level") => match params {
            Some(params) => {
                let level = params.string("log_level");
                if level.is_none() && !params.has("log_level") {
                    params.wrong(
                        "log_level",
                        "missing; trace, debug, info, warn, error or off",
                    );
                }
                let level = level.map(|level| ours(&level));
                if let Some(Err(part)) = level.as_deref().map(check_filter) {
                    let what = format!(
                        "{:?} is no level; trace, debug, info, warn, error or off expected, with module=level behind it if wanted",
                        clip(&part)
                    );
                    params.wrong("log_level", what);
                }
                params.finish();
                level.map(Operation::SetLogLevel)
            }
            None => {
                if !data.has("params") {
                    data.wrong("params", "missing; {\"log_level\": …}");
                }
                None
            }
        },
        Some("set_force_log_msg" | "reset_log_msg") => {
            data.wrong(
                "operation",
                "not available in this version: single messages are not logged; set_log_level with cdc_core=trace shows what is done",
            );
            None
        }
        Some(other) => {
            let what = format!("set_log_level expected, not {:?}", clip(other));
            data.wrong("operation", what);
            None
        }
        None => {
            if !data.has("operation") {
                data.wrong("operation", "missing; set_log_level");
            }
            None
        }
    };
    data.finish();
    found
}

/// A level of the Go server's log in the words of this one.
fn ours(level: &str) -> String {
    match level.to_ascii_lowercase().as_str() {
        "dpanic" | "panic" | "fatal" => "error".to_owned(),
        _ if level.contains('=') => level.to_owned(),
        lower => lower.to_owned(),
    }
}

/// # Errors
/// The log cannot be set.
pub(crate) fn carry_out(operation: &Operation, log: &LogLevel) -> Result<String, String> {
    let Operation::SetLogLevel(filter) = operation;
    (log.set)(filter)?;
    Ok(format!("set log level to {filter}"))
}
