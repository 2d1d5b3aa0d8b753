//! A small disk of its own for the store of milvus-cdc, that can be filled to its last byte.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Room for the store of a run of hours.
const SIZE: &str = "64m";

/// A mounted tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Mounts it at `dir`.
    ///
    /// # Errors
    /// We may not mount here.
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mount = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={SIZE}"),
                "milvus-cdc-chaos",
            ])
            .arg(dir)
            .output()
            .context("run mount")?;
        ensure!(
            mount.status.success(),
            "a small disk cannot be mounted: {}",
            String::from_utf8_lossy(&mount.stderr).trim()
        );
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    /// Takes all that is free, in a file of our own.
    ///
    /// # Errors
    /// It cannot be written for another reason than that there is no room left.
    pub(super) fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler()).context("create the filler")?;
        // Large pieces, then small ones into what these leave.
        for piece in [64 << 10, 1] {
            let piece = vec![0u8; piece];
            loop {
                match file.write(&piece) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => return Err(e).context("fill the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn free(&self) -> Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("free the disk"),
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
    }
}
