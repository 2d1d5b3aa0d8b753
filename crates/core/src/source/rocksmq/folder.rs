//! The folder of a secondary instance. It goes with it, and with the next one if its process was killed.

use std::fs::{File, create_dir_all, read_dir, remove_dir_all, rename};
use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "milvus-cdc-rocksmq-";
/// Locked for as long as the folder is used.
const LOCK: &str = "in-use";

pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// A new one below `parent`, after those that nobody uses any more are removed there. Blocking.
    pub(super) fn make(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        let path = parent.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
        create_dir_all(&path)?;
        // Under its name only when it is locked: another one that sweeps must not find it free.
        let lock = File::create(path.join("new"))?;
        lock.lock()?;
        rename(path.join("new"), path.join(LOCK))?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = remove_dir_all(&self.path);
    }
}

/// A folder without its lock file is one that is being made.
fn sweep(parent: &Path) {
    for entry in read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let path = entry.path();
        if ours
            && let Ok(lock) = File::open(path.join(LOCK))
            && lock.try_lock().is_ok()
            && remove_dir_all(&path).is_ok()
        {
            tracing::debug!(folder = %path.display(), "left by a process that was killed: removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_used_stays() {
        let parent = tempfile::tempdir().unwrap();
        let used = Folder::make(parent.path()).unwrap();
        let left = parent.path().join(format!("{PREFIX}left"));
        create_dir_all(&left).unwrap();
        File::create(left.join(LOCK)).unwrap();
        let another = parent.path().join("another");
        create_dir_all(&another).unwrap();
        let new = Folder::make(parent.path()).unwrap();
        assert!(used.path().exists() && new.path().exists() && another.exists());
        assert!(!left.exists());
        let path = new.path().to_owned();
        drop(new);
        assert!(!path.exists());
    }
}
