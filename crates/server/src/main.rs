//! The program `milvus-cdc`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use milvus_cdc::cli::{Cli, Command};
use milvus_cdc::command;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("milvus-cdc: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match command {
            Command::Server { config } => milvus_cdc::serve::serve(config.as_deref())
                .await
                .map(|()| ExitCode::SUCCESS),
            Command::Doctor(args) => command::doctor::run(args).await,
            Command::Promote(args) => command::promote::run(args).await,
        }
    });
    // Whatever still blocks has had its time.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("milvus-cdc: {error:#}");
            ExitCode::FAILURE
        }
    }
}
