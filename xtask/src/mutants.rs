//! Guards of the heart, each broken on purpose: the quick tests have to notice.
//!
//! A copy of the tree as git has it (staged, at least) gets a switch at each guard and is built once. Then the tests of
//! cdc-core run with one switch on after the other, until one of them fails. What no test notices is named, and is a hole
//! in the tests.

mod guards;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::env::{self, Env};
use crate::run::{Outcome, built};
use guards::{GUARDS, Guard};

/// Tests that take this many times as long as without a broken guard have noticed: they wait for what does not come.
const PATIENCE: u32 = 4;
/// But not before.
const AT_LEAST: Duration = Duration::from_secs(300);
/// Names the guard that is broken, by its place in the list, to the tests.
const BROKEN: &str = "CDC_BROKEN_GUARD";
/// Where the switches ask.
const SWITCHES: &str = "crates/core/src/lib.rs";

const TESTS: [&str; 12] = [
    // Compiled a little longer, run several times as fast.
    "--config",
    "profile.dev.package.cdc-core.opt-level=1",
    "--config",
    "profile.dev.package.cdc-sim.opt-level=1",
    "-p",
    "cdc-core",
    "--no-default-features",
    "--features",
    "testkit",
    "--lib",
    "--test",
    "pipeline",
];

pub(crate) fn mutants(args: &[String]) -> Outcome {
    let chosen = chosen(args)?;
    let env = env::build(false)?;
    let own = built("xtask")?;
    let target = own.ancestors().nth(2).ok_or("where is the build folder")?;
    let folder = target.join("mutants");
    let tree = folder.join("tree");
    unpack(&tree)?;
    let build = Build {
        env,
        tree: &tree,
        target: folder.join("target"),
    };
    let tests = build.tests()?;
    eprintln!("== all as it is: the tests have to pass");
    let began = Instant::now();
    if let Some(failed) = build.first_failure(&tests, None, Duration::MAX)? {
        return Err(format!("without a broken guard {failed}"));
    }
    let patience = (began.elapsed() * PATIENCE).max(AT_LEAST);
    println!("without a broken guard: {} s", began.elapsed().as_secs());
    let mut escaped = Vec::new();
    for (n, guard) in &chosen {
        let began = Instant::now();
        let noticed = build
            .first_failure(&tests, Some(*n), patience)
            .map_err(|e| format!("{}: {e}", guard.name))?;
        let seconds = began.elapsed().as_secs();
        match noticed {
            Some(by) => println!("noticed  {}: {by} ({seconds} s)", guard.name),
            None => {
                println!("ESCAPED  {} ({seconds} s)", guard.name);
                escaped.push(guard.name);
            }
        }
    }
    println!(
        "{} of {} broken guards are noticed",
        chosen.len() - escaped.len(),
        chosen.len()
    );
    match escaped.len() {
        0 => Ok(()),
        n => Err(format!("{n} not noticed: {}", escaped.join("; "))),
    }
}

/// A switch at each guard, and what they ask.
fn switch_all(tree: &Path) -> Outcome {
    for (n, guard) in GUARDS.iter().enumerate() {
        let path = tree.join(guard.file);
        write(&path, &guard.switch(&read(&path)?, &switch(n))?)?;
    }
    let path = tree.join(SWITCHES);
    let asked = format!(
        "{}
pub(crate) fn is_broken(guard: usize) -> bool {{
    static BROKEN: std::sync::LazyLock<Option<usize>> =
        std::sync::LazyLock::new(|| std::env::var(\"{BROKEN}\").ok()?.parse().ok());
    *BROKEN == Some(guard)
}}
",
        read(&path)?
    );
    write(&path, &asked)
}

fn switch(n: usize) -> String {
    format!("crate::is_broken({n})")
}

/// All, or those whose name holds one of the words behind `--only`; each with its place in the list.
fn chosen(args: &[String]) -> Result<Vec<(usize, &'static Guard)>, String> {
    let all = GUARDS.iter().enumerate();
    let words: Vec<&str> = match args {
        [] => return Ok(all.collect()),
        [flag] if flag == "--list" => {
            let names: Vec<&str> = GUARDS.iter().map(|g| g.name).collect();
            return Err(format!("{} guards:\n  {}", names.len(), names.join("\n  ")));
        }
        [flag, words] if flag == "--only" => words.split(',').collect(),
        _ => {
            return Err(
                "mutants takes nothing, --list, or --only WORD,… (a part of names)".to_owned(),
            );
        }
    };
    let named = |(_, g): &(usize, &Guard)| words.iter().any(|word| g.name.contains(word));
    let chosen: Vec<(usize, &Guard)> = all.filter(named).collect();
    match chosen.is_empty() {
        true => Err(format!(
            "no guard's name holds {}; --list has them",
            words.join(" or ")
        )),
        false => Ok(chosen),
    }
}

/// The tree as git has it in its index, and only that, with the switches in it.
fn unpack(tree: &Path) -> Outcome {
    // Files that are as before keep their time: what was compiled of them is not compiled again.
    std::fs::create_dir_all(tree).map_err(|e| format!("{}: {e}", tree.display()))?;
    let fresh = tree.with_extension("fresh");
    let _ = std::fs::remove_dir_all(&fresh);
    let prefix = format!("--prefix={}/", fresh.display());
    let status = Command::new("git")
        .args(["checkout-index", "--all", "--force", &prefix])
        .status()
        .map_err(|e| format!("git: {e}"))?;
    if !status.success() {
        return Err(format!("git checkout-index: {status}"));
    }
    switch_all(&fresh)?;
    sync(&fresh, tree)?;
    std::fs::remove_dir_all(&fresh).map_err(|e| format!("{}: {e}", fresh.display()))
}

/// Makes `to` what `from` is, without touching what is equal.
fn sync(from: &Path, to: &Path) -> Outcome {
    let names = |folder: &Path| -> Result<Vec<std::ffi::OsString>, String> {
        let entries =
            std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        entries
            .map(|entry| entry.map(|e| e.file_name()).map_err(|e| e.to_string()))
            .collect()
    };
    let wanted = names(from)?;
    for name in names(to)? {
        let old = to.join(&name);
        if !wanted.contains(&name) {
            let gone = if old.is_dir() {
                std::fs::remove_dir_all(&old)
            } else {
                std::fs::remove_file(&old)
            };
            gone.map_err(|e| format!("{}: {e}", old.display()))?;
        }
    }
    for name in wanted {
        let (new, old) = (from.join(&name), to.join(&name));
        if new.is_dir() {
            std::fs::create_dir_all(&old).map_err(|e| format!("{}: {e}", old.display()))?;
            sync(&new, &old)?;
        } else if std::fs::read(&new).ok() != std::fs::read(&old).ok() {
            std::fs::copy(&new, &old).map_err(|e| format!("{}: {e}", old.display()))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

struct Build<'a> {
    env: Env,
    tree: &'a Path,
    target: PathBuf,
}

impl Build<'_> {
    /// Compiles the tests.
    fn tests(&self) -> Result<[PathBuf; 2], String> {
        let output = Command::new(env!("CARGO"))
            .arg("test")
            .args(TESTS)
            .arg("--no-run")
            .current_dir(self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .envs(self.env.clone())
            .output()
            .map_err(|e| format!("cargo: {e}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("it does not compile:\n{said}"));
        }
        // "Executable tests/pipeline.rs (/…/pipeline-0123)"
        let found = said.lines().filter_map(|line| {
            let rest = line.trim().strip_prefix("Executable ")?;
            let (_, path) = rest.rsplit_once('(')?;
            Some(PathBuf::from(path.strip_suffix(')')?))
        });
        let tests: Vec<PathBuf> = found.collect();
        <[PathBuf; 2]>::try_from(tests)
            .map_err(|tests| format!("{} test programs, not 2, in:\n{said}", tests.len()))
    }

    /// What the first test that fails is, or that they do not end.
    fn first_failure(
        &self,
        tests: &[PathBuf; 2],
        broken: Option<usize>,
        patience: Duration,
    ) -> Result<Option<String>, String> {
        let [units, pipeline] = tests;
        // The crash tests at every write take the longest.
        let runs: [(&PathBuf, &[&str]); 3] = [
            (units, &[]),
            (pipeline, &["--skip", "failpoints"]),
            (pipeline, &["failpoints"]),
        ];
        for (test, of) in runs {
            let mut command = Command::new(test);
            command.env_remove(BROKEN);
            if let Some(broken) = broken {
                command.env(BROKEN, broken.to_string());
            }
            let mut child = command
                .args(of)
                .current_dir(self.tree.join("crates/core"))
                .env("RUST_BACKTRACE", "0")
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|e| format!("{}: {e}", test.display()))?;
            let failure = watch(&mut child, patience);
            let _ = child.kill();
            let status = child.wait().map_err(|e| e.to_string())?;
            match failure {
                Some(failure) => return Ok(Some(failure)),
                None if !status.success() => return Ok(Some(format!("ended with {status}"))),
                None => {}
            }
        }
        Ok(None)
    }
}

fn watch(child: &mut Child, patience: Duration) -> Option<String> {
    let out = child.stdout.take()?;
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if say.send(line).is_err() {
                return;
            }
        }
    });
    let began = Instant::now();
    loop {
        match said.recv_timeout(patience.saturating_sub(began.elapsed())) {
            Ok(line) => {
                if let Some(test) = line.strip_suffix(" ... FAILED") {
                    return Some(test.trim_start_matches("test ").to_owned());
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Some(format!("not at its end after {patience:?}"));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// So that the list stays true while the code moves.
    #[test]
    fn each_guard_is_where_the_list_says() {
        // Of this run: what was compiled in may be another checkout's, for they share a build folder.
        let own = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
        let root = Path::new(&own).parent().unwrap_or(Path::new("."));
        let mut texts: BTreeMap<&str, String> = BTreeMap::new();
        let mut wrong = Vec::new();
        // One after the other in the same text, as they are built: what one switch stands at is not another one's.
        for (n, guard) in GUARDS.iter().enumerate() {
            let text = match texts.remove(guard.file) {
                Some(text) => Ok(text),
                None => read(&root.join(guard.file)),
            };
            let switched = text.and_then(|text| guard.switch(&text, &switch(n)));
            match switched {
                Ok(text) => drop(texts.insert(guard.file, text)),
                Err(why) => wrong.push(why),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let mut names: Vec<&str> = GUARDS.iter().map(|g| g.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), GUARDS.len());
    }
}
