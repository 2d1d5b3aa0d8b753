//! The null target as a program: any CDC server can be pointed at it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use cdc_bench::null::{NullTarget, Options};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Answers what a writer of replicated messages asks a standby Milvus 2.3.5 (or, with --plain, any client a Milvus of its
/// own), takes every message and keeps none. On
/// SIGTERM or ctrl-c it prints its ledger as JSON and ends.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Of the gRPC; port 0 is a free one.
    #[arg(long, default_value = "127.0.0.1:19530")]
    listen: String,
    /// Of `GET /ledger`.
    #[arg(long, default_value = "127.0.0.1:0")]
    http: String,
    /// Milliseconds between a call with rows and its answer.
    #[arg(long, default_value_t = 0)]
    ack_delay_ms: u64,
    /// Megabytes (a million bytes) that it takes in a second, over all channels; no limit if not given.
    #[arg(long)]
    mb_per_second: Option<f64>,
    /// Takes Insert and Delete, and no replicated messages: a Milvus of its own.
    #[arg(long)]
    plain: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let bind = async |address: &str| {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address}"))
    };
    let (rpc, http) = (bind(&args.listen).await?, bind(&args.http).await?);
    // For whoever chose port 0.
    println!("grpc http://{}", rpc.local_addr()?);
    println!("ledger http://{}/ledger", http.local_addr()?);
    let options = Options {
        ack_delay: Duration::from_millis(args.ack_delay_ms),
        plain: args.plain,
        bytes_per_second: args.mb_per_second.map(|mb| (mb * 1e6).max(1.0) as u64),
    };
    let target = NullTarget::start(rpc, http, options)?;
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    println!("{}", target.report());
    Ok(())
}
