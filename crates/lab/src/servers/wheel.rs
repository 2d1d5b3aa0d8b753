//! The Milvus binary: from the Python package index into the user's cache, unpacked once.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::progress::Progress;

/// The version of Milvus the laboratory runs.
pub const VERSION: &str = "2.3.5";

const PYTHON: &str = "python3 with pip has to be installed";

/// Packages of one process take turns: the second one finds the cache filled.
static UNPACKING: Mutex<()> = Mutex::const_new(());

/// Where this project keeps what it downloads: `$XDG_CACHE_HOME/milvus-cdc`, else `~/.cache/milvus-cdc`.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set: no place for downloads"),
    };
    Ok(base.join("milvus-cdc"))
}

/// The folder with the unpacked server (`milvus`, its shared libraries, `config.yaml.template`, `glog.conf`);
/// downloads and unpacks it if it is not there yet.
///
/// # Errors
/// No Python with pip, no network, no space.
pub async fn ensure(progress: &Progress) -> Result<PathBuf> {
    let _turn = UNPACKING.lock().await;
    let cache = cache_dir()?;
    let ready = cache.join(format!("milvus-{VERSION}"));
    if ready.join("milvus").exists() {
        return Ok(ready);
    }
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let work = cache.join(format!("milvus-{VERSION}.{}.part", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let filled = fill(&work, progress).await;
    // Another process may have been quicker: then its folder stays and ours goes.
    if filled.is_ok()
        && std::fs::rename(work.join("milvus"), &ready).is_err()
        && !ready.join("milvus").exists()
    {
        bail!("cannot move the unpacked server to {}", ready.display());
    }
    let _ = std::fs::remove_dir_all(&work);
    filled.map(|()| ready)
}

async fn fill(work: &Path, progress: &Progress) -> Result<()> {
    let what = format!("download Milvus {VERSION} (58 MB, once)");
    progress.begin(&what);
    let package = format!("milvus=={VERSION}");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
    ])
    .arg(work)
    .arg(&package);
    run(
        pip,
        "python3 -m pip download",
        PYTHON,
        Duration::from_secs(900),
    )
    .await?;
    progress.done(&what);

    let what = format!("unpack Milvus {VERSION} (once)");
    progress.begin(&what);
    let wheel = std::fs::read_dir(work)?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"))
        .context("pip downloaded no wheel")?;
    let mut python = Command::new("python3");
    python
        .args(["-c", UNPACK])
        .arg(&wheel)
        .arg(work.join("milvus"));
    run(python, "python3 (unpack)", PYTHON, Duration::from_secs(300)).await?;
    progress.done(&what);
    Ok(())
}

/// A wheel is a zip; the binaries in it are lzma-packed once more.
const UNPACK: &str = r#"
import lzma, os, shutil, sys, zipfile
wheel, to = sys.argv[1:]
os.makedirs(to)
with zipfile.ZipFile(wheel) as z:
    for name in z.namelist():
        base = os.path.basename(name)
        if name.startswith("milvus/data/bin/") and base.endswith(".lzma"):
            path = os.path.join(to, base[:-5])
            with z.open(name) as packed, lzma.open(packed) as f, open(path, "wb") as out:
                shutil.copyfileobj(f, out, 1 << 20)
            os.chmod(path, 0o755)
        elif name in ("milvus/data/config.yaml.template", "milvus/data/glog.conf"):
            with z.open(name) as f, open(os.path.join(to, base), "wb") as out:
                shutil.copyfileobj(f, out)
"#;

/// Runs a command to its end. `needs`: what to say if it cannot be started.
pub(super) async fn run(
    mut command: Command,
    what: &str,
    needs: &str,
    deadline: Duration,
) -> Result<()> {
    let child = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(deadline, child)
        .await
        .with_context(|| format!("{what} took longer than {} s", deadline.as_secs()))?
        .with_context(|| format!("start {what} ({needs})"))?;
    if !output.status.success() {
        bail!(
            "{what} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}
