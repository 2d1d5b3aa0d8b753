//! A running server: from the configuration to the last acknowledged message.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::engine_adapter::EngineReplication;
use crate::http;
use crate::request::Limits;
use crate::store::SqliteStore;
use crate::tasks::{TaskLimits, Tasks};

/// Of the 5 s a stop may take, what the tasks get to drain. The rest: 0.6 s for those that do not, 0.3 s for the store,
/// 0.2 s for the runtime.
const DRAIN: Duration = Duration::from_millis(3500);

/// Runs until SIGTERM or ctrl-c.
pub async fn serve(path: Option<&Path>) -> anyhow::Result<()> {
    let (config, origin) = Config::load(path)?;
    start_log(&config)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), configuration = %origin, "milvus-cdc starts");
    if !config.ignored.is_empty() {
        tracing::info!(keys = %config.ignored.join(", "), "these keys mean nothing here and are ignored");
    }
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let parts = async {
        let store = SqliteStore::open(&config.store).await?;
        let replication = EngineReplication::new(&config, Arc::new(store.clone())).await?;
        anyhow::Ok((store, replication))
    };
    let (store, replication) = tokio::select! {
        parts = parts => parts?,
        () = stop_wanted(&mut terminate) => return Ok(()),
    };
    let tasks = Tasks::new(store, Arc::new(replication), TaskLimits::of(&config));
    let router = http::router(
        tasks.clone(),
        Limits {
            max_name_length: config.max_name_length,
            queue: config.source.queue.kind(),
            replicate_channel: config.source.replicate_channel.clone(),
        },
    );
    let address = config.address.as_str();
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (address)"))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let server = tokio::spawn(async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await
    });
    let run = async {
        tasks.recover().await?;
        tracing::info!(tasks = tasks.list().len(), "tasks recovered");
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        () = stop_wanted(&mut terminate) => {}
        failed = run => return failed,
    }
    tracing::info!("stopping");
    stop.cancel();
    tasks.shut_down(DRAIN).await;
    server.abort();
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM or ctrl-c.
async fn stop_wanted(terminate: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_level).context("logLevel")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if config.log_json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    started.map_err(|e| anyhow::anyhow!("cannot start the log: {e}"))
}
