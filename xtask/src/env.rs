//! What a build needs besides Rust: `protoc` for the etcd client, `libclang` for RocksDB.
//!
//! The values must not change from run to run: a change of any rebuilds RocksDB.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names and values for the environment of cargo.
pub(crate) type Env = Vec<(String, String)>;

const LIBCLANG: &str = "libclang==18.1.1";

/// The environment for a build; `rocksdb`: what RocksDB needs too (libclang is downloaded if there is none).
pub(crate) fn build(rocksdb: bool) -> Result<Env, String> {
    let mut env = Env::new();
    if std::env::var_os("PROTOC").is_none() {
        let protoc = protoc_bin_vendored::protoc_bin_path()
            .map_err(|e| format!("no protoc for this machine: {e}"))?;
        env.push(("PROTOC".to_owned(), protoc.display().to_string()));
    }
    if rocksdb {
        env.extend(libclang()?);
    }
    Ok(env)
}

fn libclang() -> Result<Env, String> {
    if std::env::var_os("LIBCLANG_PATH").is_some() || on_the_system() {
        return Ok(Env::new());
    }
    let folder = cache()?.join("libclang");
    let native = folder.join("clang").join("native");
    if !native.join("libclang.so").exists() {
        eprintln!("== download {LIBCLANG} (25 MB, once)");
        install(&folder)?;
    }
    let mut env = vec![("LIBCLANG_PATH".to_owned(), native.display().to_string())];
    // The wheel has no headers of its own: stddef.h and the like come from gcc.
    if std::env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_none()
        && let Some(include) = output("gcc", &["-print-file-name=include"])
    {
        env.push((
            "BINDGEN_EXTRA_CLANG_ARGS".to_owned(),
            format!("-I{include}"),
        ));
    }
    Ok(env)
}

/// Into a folder of its own first: a broken download must not look like a whole one.
fn install(folder: &Path) -> Result<(), String> {
    let part = folder.with_extension(format!("{}.part", std::process::id()));
    let status = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--target",
        ])
        .arg(&part)
        .arg(LIBCLANG)
        .stdin(Stdio::null())
        .status()
        .map_err(|e| format!("python3 with pip has to be installed: {e}"))?;
    if !status.success() {
        return Err(format!("pip install {LIBCLANG} failed: {status}"));
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::rename(&part, folder)
        .map_err(|e| format!("move {} to {}: {e}", part.display(), folder.display()))
}

/// Whether the linker or an llvm knows one; clang-sys looks in the same places.
fn on_the_system() -> bool {
    let known = output("ldconfig", &["-p"]).or_else(|| output("/sbin/ldconfig", &["-p"]));
    if known.is_some_and(|list| is_libclang(&list)) {
        return true;
    }
    output("llvm-config", &["--libdir"])
        .is_some_and(|dir| Path::new(&dir).join("libclang.so").exists())
}

/// `libclang.so`, `libclang-14.so` and the like, but not `libclang-cpp.so`, which is another library.
fn is_libclang(list: &str) -> bool {
    list.split_whitespace().any(|word| {
        word.starts_with("libclang.so")
            || word
                .strip_prefix("libclang-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `$XDG_CACHE_HOME/milvus-cdc`, else `~/.cache/milvus-cdc`.
pub(crate) fn cache() -> Result<PathBuf, String> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => {
            return Err(
                "neither XDG_CACHE_HOME nor HOME is set: no place for downloads".to_owned(),
            );
        }
    };
    Ok(base.join("milvus-cdc"))
}
