//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::command::{doctor, promote};

/// Change data capture from one Milvus to another.
#[derive(Parser)]
#[command(name = "milvus-cdc", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Runs the HTTP server with its tasks.
    Server {
        /// The configuration; without it ./configs/cdc.yaml, and without that the embedded defaults.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    Doctor(doctor::Args),
    Promote(promote::Args),
}
