//! A running server: from the configuration to the last acknowledged message.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

use crate::config::Config;
use crate::engine_adapter::EngineReplication;
use crate::http;
use crate::listen::{self, Tls};
use crate::maintenance::LogLevel;
use crate::request::Limits;
use crate::store::owner::Claim;
use crate::store::seal::{self, SealKey, Sealed};
use crate::store::switch::Switch;
use crate::tasks::{TaskLimits, Tasks};
use crate::terms::Terms;

/// Of the 5 s a stop may take, what the tasks get to drain. The rest: 0.6 s for those that do not, 0.3 s for the store,
/// 0.2 s for the runtime.
const DRAIN: Duration = Duration::from_millis(3500);
/// How long an owner of a shared store may be silent before another one takes over. A call to a target is begun only if
/// its deadline lies within, so it is longer where that deadline is.
const LEASE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or ctrl-c.
pub async fn serve(path: Option<&Path>) -> anyhow::Result<()> {
    let (config, origin) = Config::load(path)?;
    let log_level = start_log(&config)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), configuration = %origin, "milvus-cdc starts");
    if !config.ignored.is_empty() {
        tracing::info!(keys = %config.ignored.join(", "), "these keys mean nothing here and are ignored");
    }
    let warnings = config.access.warnings(&config.address);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let tls = config.access.tls.as_ref().map(Tls::load).transpose()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let parts = async {
        let store = open_store(&config).await?;
        let replication = EngineReplication::new(&config).await?;
        anyhow::Ok((Arc::new(store), Arc::new(replication)))
    };
    let (store, replication) = tokio::select! {
        parts = parts => parts?,
        () = stop_wanted(&mut terminate) => return Ok(()),
    };
    let switch = Switch::new(store.clone());
    let tasks = Tasks::new(switch.clone(), replication.clone(), TaskLimits::of(&config));
    let stop = CancellationToken::new();
    let router = http::router(http::Parts {
        tasks: tasks.clone(),
        limits: Limits {
            max_name_length: config.max_name_length,
            queue: config.source.queue.kind(),
            replicate_channel: config.source.replicate_channel.clone(),
            rows: config.source.milvus.is_some(),
        },
        access: config.access.clone(),
        warnings,
        log_level,
        stop: stop.clone(),
    });
    let address = config.address.as_str();
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (address)"))?;
    tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), "listening");
    let mut server = JoinSet::new();
    if let Some(tls) = &tls {
        server.spawn(tls.clone().watch(stop.clone()));
    }
    let access = config.access.clone();
    let stopped = stop.clone();
    server.spawn(async move { listen::serve(listener, router, &access, tls, stopped).await });
    let terms = Terms {
        backend: store,
        switch,
        replication,
        tasks: tasks.clone(),
        claim: Claim {
            name: name(&config.address),
            lease: LEASE.max(config.call_timeout + LEASE / 2),
        },
    };
    let run = terms.run();
    tokio::pin!(run);
    tokio::select! {
        () = stop_wanted(&mut terminate) => {}
        failed = &mut run => return failed.map_err(Into::into),
    }
    tracing::info!("stopping");
    stop.cancel();
    // The lease is renewed until the end: what is drained is still ours.
    tokio::select! {
        () = tasks.shut_down(DRAIN) => {}
        _ = run => {}
    }
    server.shutdown().await;
    tracing::info!("stopped");
    Ok(())
}

async fn open_store(config: &Config) -> anyhow::Result<Sealed> {
    let key = config.secret_key.as_ref().map(SealKey::parse).transpose()?;
    tracing::info!(store = %config.store.shown(), "opening the store");
    let sealed = Sealed::open(config.store.open().await?, key).await?;
    if !sealed.has_key() {
        tracing::warn!(
            "targets' tokens are stored as they are; set {} to have them encrypted (openssl rand -base64 32)",
            seal::SETTING
        );
    }
    Ok(sealed)
}

/// How this server is told from others that share its store.
fn name(address: &str) -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!(
        "{address} (pid {} on {})",
        std::process::id(),
        host.to_string_lossy()
    )
}

/// SIGTERM or ctrl-c.
async fn stop_wanted(terminate: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn start_log(config: &Config) -> anyhow::Result<LogLevel> {
    let filter = EnvFilter::try_new(&config.log_level).context("logLevel")?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log_json {
        true => lines.json().boxed(),
        false => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|e| anyhow::anyhow!("cannot start the log: {e}"))?;
    Ok(LogLevel::new(move |text| {
        let filter = EnvFilter::try_new(text).map_err(|e| e.to_string())?;
        handle.reload(filter).map_err(|e| e.to_string())
    }))
}
