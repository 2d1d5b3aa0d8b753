//! The program `milvus-cdc`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use milvus_cdc::cli::{Cli, Command};
use milvus_cdc::client;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Server { config } => server(config.as_deref()),
        Command::Task {
            connection,
            command,
        } => client::run(&connection, &command),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn server(config: Option<&Path>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("milvus-cdc: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(milvus_cdc::serve::serve(config));
    // Whatever still blocks has had its time.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("milvus-cdc: {error:#}");
            ExitCode::FAILURE
        }
    }
}
