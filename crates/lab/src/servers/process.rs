//! A child process in a process group of its own, stopped by that group and by nothing else.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A running child. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    outlives_us: bool,
}

/// How a process ended, and how long that took after it was asked to.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// From the signal to the end.
    pub took: Duration,
    /// Whether it had to be killed because it did not stop in the time given.
    pub forced: bool,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the log {}", log.display()))?;
        let err = out
            .try_clone()
            .context("share the log between both outputs")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            outlives_us: false,
        })
    }

    /// The process id, which is also the id of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with everything it has printed.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// From now on dropping it leaves it running.
    pub fn leave_running(&mut self) {
        self.outlives_us = true;
    }

    /// The exit status if it has ended.
    ///
    /// # Errors
    /// The operating system refuses to tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("ask whether {} runs", self.name))
    }

    /// The last `lines` lines of its log, for an error message.
    pub fn last_lines(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// SIGTERM, then SIGKILL once `patience` is over.
    ///
    /// # Errors
    /// It lives on after the SIGKILL.
    pub async fn stop(&mut self, patience: Duration) -> Result<Exit> {
        self.end(Signal::SIGTERM, patience).await
    }

    /// SIGKILL: no chance to tidy up.
    ///
    /// # Errors
    /// It lives on nevertheless.
    pub async fn kill9(&mut self) -> Result<Exit> {
        self.end(Signal::SIGKILL, Duration::from_secs(10)).await
    }

    /// SIGSTOP: it does nothing any more, and nobody who talks to it is told.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT after [`Process::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    async fn end(&mut self, signal: Signal, patience: Duration) -> Result<Exit> {
        let start = Instant::now();
        if let Some(status) = self.ended()? {
            return Ok(exit(status, Duration::ZERO, false));
        }
        self.signal(signal);
        if let Some(status) = self.wait(patience).await? {
            // Children of the child that outlived it.
            self.signal(Signal::SIGKILL);
            return Ok(exit(status, start.elapsed(), false));
        }
        self.signal(Signal::SIGKILL);
        match self.wait(Duration::from_secs(10)).await? {
            Some(status) => Ok(exit(status, start.elapsed(), true)),
            None => bail!(
                "{} (pid {}) lives on 10 s after SIGKILL",
                self.name,
                self.pid()
            ),
        }
    }

    /// Waits until it ends by itself; `None` if it has not within `deadline`.
    ///
    /// # Errors
    /// The operating system refuses to tell.
    pub async fn wait(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // The only failure is that nobody is left in the group.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.outlives_us || matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn exit(status: ExitStatus, took: Duration, forced: bool) -> Exit {
    Exit {
        code: status.code(),
        signal: status.signal(),
        took,
        forced,
    }
}

/// The last `lines` lines of a file, however large it is; empty if it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    const WINDOW: u64 = 64 * 1024;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stopped_process_tells_its_code_and_a_killed_one_its_signal() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut polite = Process::spawn(
            "polite",
            Command::new("sh").args([
                "-c",
                "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done",
            ]),
            &log,
        )
        .unwrap();
        while polite.last_lines(1) != "up" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let exit = polite.stop(Duration::from_secs(5)).await.unwrap();
        assert_eq!((exit.code, exit.forced), (Some(3), false));
        assert_eq!(tail(&log, 1), "bye");

        let mut deaf = Process::spawn(
            "deaf",
            Command::new("sh").args([
                "-c",
                "trap '' TERM; echo deaf; while :; do sleep 0.02; done",
            ]),
            &log,
        )
        .unwrap();
        while deaf.last_lines(1) != "deaf" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let exit = deaf.stop(Duration::from_millis(50)).await.unwrap();
        assert_eq!((exit.code, exit.signal, exit.forced), (None, Some(9), true));
    }
}
