//! The command line's side of `/api/v1`.

pub(crate) mod http;
mod quarantine;
mod table;
pub(crate) mod task;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{Connection, TaskCommand};

/// Why a command did not do what it should, and what the process ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What the process ends with after this error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Failure>() {
        Some(failure) => ExitCode::from(failure.code),
        None => ExitCode::FAILURE,
    }
}

/// A line of what was asked for. A reader that has gone away has seen enough.
pub(crate) fn say(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Carries out a command; what it shows goes to stdout, what is wrong to stderr.
pub fn run(connection: &Connection, command: &TaskCommand) -> ExitCode {
    let done = http::Client::new(connection).and_then(|client| task::run(&client, command));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("milvus-cdc: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
