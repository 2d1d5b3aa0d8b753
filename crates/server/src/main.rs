//! The program `milvus-cdc`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use milvus_cdc::cli::{Cli, Command};

fn main() -> ExitCode {
    let Command::Server { config } = Cli::parse().command;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("milvus-cdc: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(milvus_cdc::serve::serve(config.as_deref()));
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
