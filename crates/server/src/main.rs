//! The program `milvus-cdc`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use milvus_cdc::cli::{Cli, Command};
use milvus_cdc::{client, command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Server { config } => within(async move {
            milvus_cdc::serve::serve(config.as_deref())
                .await
                .map(|()| ExitCode::SUCCESS)
        }),
        Command::Task {
            connection,
            command,
        } => client::run(&connection, &command),
        Command::Doctor(args) => within(command::doctor::run(args)),
        Command::Promote(args) => within(command::promote::run(args)),
        Command::ImportGo(args) => within(command::import_go::run(args)),
        Command::Verify(args) => within(command::verify::run(*args)),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn within(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("milvus-cdc: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(work);
    // Whatever still blocks has had its time.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("milvus-cdc: {error:#}");
            client::exit_code(&error)
        }
    }
}
