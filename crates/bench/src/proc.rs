//! What a process has used, from the system: CPU time, memory; and where processes run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// User and system time of a process, of all its threads that are and were.
///
/// # Errors
/// There is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .with_context(|| format!("the CPU time of process {pid}"))?;
    Ok(clock.now()?.into())
}

/// A line of `/proc/PID/status` in kB: `VmHWM` is the peak of resident memory, `VmRSS` what it is now.
///
/// # Errors
/// There is no such process, or no such line.
pub fn memory_mb(pid: u32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("the memory of process {pid}"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    let kb = line.and_then(|l| l.trim_matches([':', '\t', ' ']).split(' ').next());
    let kb: f64 = kb.and_then(|kb| kb.parse().ok()).context("its status")?;
    Ok(kb / 1024.0)
}

/// Runnable processes on the machine in the last minute.
pub fn load() -> Option<f64> {
    let all = std::fs::read_to_string("/proc/loadavg").ok()?;
    all.split(' ').next()?.parse().ok()
}

/// How many processors the machine has, of which model, and its memory in MB.
pub fn machine() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let number = |line: &str| {
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name"));
    let total = memory.lines().find(|l| l.starts_with("MemTotal"));
    serde_json::json!({
        "processors": cpus.lines().filter(|l| l.starts_with("processor")).count(),
        "model": model.map(|m| m.trim_matches([':', '\t', ' '])),
        "memory_mb": total.and_then(number).map(|kb| kb / 1024),
    })
}

/// Where the measured process runs, and where the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinning {
    pub on: bool,
}

/// The core of what is measured, and of everything else.
pub const OURS: u32 = 1;
pub const OTHERS: u32 = 0;

impl Pinning {
    /// On if there are two cores, and `taskset` (of util-linux).
    pub fn detect() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let there = Command::new("taskset").arg("--version").output().is_ok();
        Self {
            on: cores > 1 && there,
        }
    }

    /// A command that runs on this core from its first thread on.
    pub fn command(self, program: &Path, core: u32) -> Command {
        if !self.on {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.arg("-c").arg(core.to_string()).arg(program);
        command
    }

    /// Moves a running process and all its threads.
    ///
    /// # Errors
    /// The system refuses.
    pub fn pin(self, pid: u32, core: u32) -> Result<()> {
        if self.on {
            let output = Command::new("taskset")
                .args(["-a", "-c", "-p", &core.to_string(), &pid.to_string()])
                .output()
                .context("run taskset")?;
            anyhow::ensure!(
                output.status.success(),
                "taskset {pid}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_use_is_found() {
        let me = std::process::id();
        let before = cpu(me).unwrap();
        let mut sum = 0_u64;
        while cpu(me).unwrap() < before + Duration::from_millis(5) {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
        }
        let (now, peak) = (
            memory_mb(me, "VmRSS").unwrap(),
            memory_mb(me, "VmHWM").unwrap(),
        );
        assert!(now > 0.5 && peak >= now * 0.9, "{now} {peak}");
        assert!(memory_mb(me, "VmNothing").is_err());
    }
}
