//! milvus-lite: a Milvus of one process, without a queue and without etcd, for a target of a later version.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::Mutex;

use super::ports::free_port;
use super::process::{Exit, Process};
use super::wheel::{cache_dir, run};
use crate::client::Client;
use crate::progress::Progress;

/// The version of milvus-lite the laboratory runs.
pub const LITE_VERSION: &str = "3.2.2";
/// It does not name the package of which it takes its messages.
const PACKAGES: [&str; 2] = ["milvus-lite==3.2.2", "pymilvus==3.0.2"];
const START_DEADLINE: Duration = Duration::from_secs(120);

static INSTALLING: Mutex<()> = Mutex::const_new(());

/// A server started by us. Dropping it kills it; its folder stays.
#[derive(Debug)]
pub struct Lite {
    dir: PathBuf,
    port: u16,
    program: PathBuf,
    process: Option<Process>,
}

impl Lite {
    /// Installs it if it is not cached, starts it on data in `dir`, and waits until it answers.
    ///
    /// # Errors
    /// Any of these fails.
    pub async fn start(dir: impl Into<PathBuf>, progress: &Progress) -> Result<Self> {
        let program = ensure(progress).await?;
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut server = Self {
            dir,
            port: free_port()?,
            program,
            process: None,
        };
        server.launch(progress).await?;
        Ok(server)
    }

    /// After [`Lite::kill9`].
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self, progress: &Progress) -> Result<()> {
        self.launch(progress).await
    }

    async fn launch(&mut self, progress: &Progress) -> Result<()> {
        let what = format!("start milvus-lite {LITE_VERSION}");
        progress.begin(&what);
        let mut command = Command::new(&self.program);
        command
            .args(["server", "--host", "127.0.0.1", "--data-dir"])
            .arg(self.dir.join("data"))
            .args(["--port", &self.port.to_string()]);
        self.process = Some(Process::spawn("milvus-lite", &mut command, &self.log())?);
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!(
                    "milvus-lite ended with {status} while starting; its last words:\n{}",
                    process.last_lines(30)
                );
            }
            if let Ok(client) = Client::connect("milvus-lite", &self.uri()).await
                && client.databases().await.is_ok()
            {
                break;
            }
            if Instant::now() >= end {
                bail!(
                    "milvus-lite does not answer after {START_DEADLINE:?}; its log: {}",
                    self.log().display()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        progress.done(&what);
        Ok(())
    }

    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("milvus-lite.log")
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// SIGKILL. Does nothing if it does not run.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill9(&mut self) -> Result<Option<Exit>> {
        match self.process.take() {
            Some(mut process) => process.kill9().await.map(Some),
            None => Ok(None),
        }
    }

    /// From now on dropping it leaves it running.
    pub fn leave_running(&mut self) {
        if let Some(process) = &mut self.process {
            process.leave_running();
        }
    }
}

/// The program; installs it into the user's cache if it is not there.
async fn ensure(progress: &Progress) -> Result<PathBuf> {
    let _turn = INSTALLING.lock().await;
    let ready = cache_dir()?.join(format!("milvus-lite-{LITE_VERSION}"));
    let program = ready.join("bin").join("milvus-lite");
    let done = ready.join("installed");
    if done.exists() {
        return Ok(program);
    }
    let what = format!("install milvus-lite {LITE_VERSION} (once)");
    progress.begin(&what);
    let mut venv = tokio::process::Command::new("python3");
    // What an install left that did not come to its end goes.
    venv.args(["-m", "venv", "--clear"]).arg(&ready);
    run(venv, "python3 -m venv", VENV, INSTALL_DEADLINE).await?;
    install(&ready).await?;
    std::fs::write(&done, PACKAGES.join("\n"))
        .with_context(|| format!("write {}", done.display()))?;
    progress.done(&what);
    Ok(program)
}

/// A few hundred megabytes.
const INSTALL_DEADLINE: Duration = Duration::from_secs(900);
const VENV: &str = "python3 with venv has to be installed";

async fn install(venv: &Path) -> Result<()> {
    let mut pip = tokio::process::Command::new(venv.join("bin").join("pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"])
        .args(PACKAGES);
    run(pip, "pip install milvus-lite", VENV, INSTALL_DEADLINE).await
}
