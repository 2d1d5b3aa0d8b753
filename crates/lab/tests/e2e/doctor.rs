//! `milvus-cdc doctor` on set-ups that are broken, each in one way: it names the cause, and nothing else is hidden by it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::{Addresses, command, config};
use cdc_lab::servers::free_port;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, PATIENCE, until};
use crate::plain::Plain;

tests![Alone: set_ups_that_cannot_work_are_named];

/// Planted where secrets are; it may be nowhere in what is printed.
const HUSH: &str = "hush-hush";

struct Diagnosis {
    ok: bool,
    checks: Vec<Value>,
}

impl Diagnosis {
    fn of(text: &str) -> Result<Self> {
        say(text);
        ensure!(!text.contains(HUSH), "a secret is shown");
        let mut report: Value = serde_json::from_str(text).context("not JSON")?;
        Ok(Self {
            ok: report["ok"].as_bool().context("ok")?,
            checks: report["checks"]
                .as_array_mut()
                .map(std::mem::take)
                .context("checks")?,
        })
    }

    fn verdicts<'a>(&'a self, verdict: &'a str) -> impl Iterator<Item = &'a Value> {
        self.checks.iter().filter(move |c| c["verdict"] == verdict)
    }

    /// There is exactly one problem, of this check, with these words and something to do.
    fn only_problem(&self, check: &str, words: &[&str]) -> Result<()> {
        let problems: Vec<&Value> = self.verdicts("problem").collect();
        ensure!(!self.ok && problems.len() == 1, "one problem: {problems:?}");
        let problem = problems.first().context("one")?;
        ensure!(problem["check"] == check, "it is one of {check}: {problem}");
        for word in words {
            ensure!(
                problem.to_string().contains(word),
                "{word:?} is not in {problem}"
            );
        }
        let hint = problem["hint"].as_str().unwrap_or_default();
        ensure!(!hint.is_empty(), "what to do is not said: {problem}");
        Ok(())
    }

    /// This check came out well in spite of the problem.
    fn also_ok(&self, check: &str) -> Result<()> {
        ensure!(
            self.verdicts("ok").any(|c| c["check"] == check),
            "{check} is not ok: {:?}",
            self.checks
        );
        Ok(())
    }
}

/// The doctor by the command line, without a server; the exit code has to fit.
async fn doctor(config: &Path, more: &[&str]) -> Result<Diagnosis> {
    let config = config.to_str().context("a path of UTF-8")?;
    let mut args = vec!["doctor", "--config", config, "-o", "json"];
    args.extend(more);
    let said = command(&args, PATIENCE).await?;
    ensure!(!said.stderr.contains(HUSH), "a secret is shown");
    let diagnosis = Diagnosis::of(&said.stdout).with_context(|| format!("{said:?}"))?;
    let expected = if diagnosis.ok { 0 } else { 1 };
    ensure!(said.code == Some(expected), "exit code: {said:?}");
    Ok(diagnosis)
}

/// A configuration for this source with a store that is not there yet.
fn elsewhere(lab: &Lab, name: &str, source: &Addresses) -> Result<std::path::PathBuf> {
    let dir = lab.dir().join(name);
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("cdc.yaml");
    std::fs::write(&path, config(source, free_port()?, &dir))?;
    Ok(path)
}

async fn set_ups_that_cannot_work_are_named(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::Natsmq, random.random()).await?;
    let from = lab.from.clone();
    let mut fine = Plain::create(&from, "fine", 2).await?;
    fine.insert(&from, "", 20, random).await?;
    lab.equal_rows(20).await?;
    let own = lab.cdc.config_path();
    let at = Addresses::of(&lab.source);

    // All is well: beside the running server, and by it.
    let well = doctor(&own, &[]).await?;
    ensure!(well.ok, "{:?}", well.checks);
    for check in [
        "source etcd",
        "source channels",
        "positions",
        "target mode",
        "target privileges",
        "mapping",
    ] {
        well.also_ok(check)?;
    }
    let (status, report) = lab.cdc.rest("/api/v1/doctor", None).await?;
    ensure!(status == 200 && report["ok"] == json!(true), "{report}");
    let server = format!("http://{}", lab.cdc.address());
    let said = command(&["doctor", "--server", &server], PATIENCE).await?;
    ensure!(
        said.code == Some(0) && said.stdout.contains("0 problem(s)"),
        "{said:?}"
    );

    // 1. A target that is no standby: it is told, and is no problem of a task that is not there yet.
    let token = format!("root:{HUSH}");
    let target = lab.source.uri();
    let found = doctor(&own, &["--target", &target, "--token", &token]).await?;
    ensure!(found.ok, "{:?}", found.checks);
    let told = found
        .verdicts("warning")
        .find(|c| c["check"] == "target mode");
    let told = told.context("a word on its mode")?.to_string();
    for word in [&target, "standby", "common.ttMsgEnabled", "mode plain"] {
        ensure!(told.contains(word), "{word:?} is not in {told}");
    }
    found.also_ok("positions")?;
    let body = json!({ "milvus_connect_param": { "uri": target, "token": token } });
    let (status, report) = lab.cdc.rest("/api/v1/doctor", Some(&body)).await?;
    ensure!(status == 200 && report["ok"] == json!(true), "{report}");
    ensure!(!report.to_string().contains(HUSH), "a secret is shown");

    // 2. A wrong root path: nothing is there; and the metadata of another Milvus.
    let nothing = Addresses {
        rows: None,
        root_path: "by-dev".to_owned(),
        ..at.clone()
    };
    let found = doctor(&elsewhere(&lab, "wrong-root", &nothing)?, &[]).await?;
    found.only_problem("source metadata", &["by-dev", "rootPath", "source"])?;
    found.also_ok("source etcd")?;
    found.also_ok("source queue")?;
    let other = Addresses {
        rows: None,
        etcd: lab.target.etcd(),
        root_path: lab.target.root_path().to_owned(),
        ..at.clone()
    };
    let found = doctor(&elsewhere(&lab, "other-milvus", &other)?, &[]).await?;
    found.only_problem(
        "source channels",
        &["target-rootcoord-dml_", "default.fine"],
    )?;
    found.also_ok("source metadata")?;

    // 3. The queue does not answer.
    let port = free_port()?.to_string();
    let silent = Addresses {
        rows: None,
        nats: format!("nats://127.0.0.1:{port}"),
        ..at.clone()
    };
    let target = lab.target.uri();
    let found = doctor(
        &elsewhere(&lab, "no-queue", &silent)?,
        &["--target", &target],
    )
    .await?;
    found.only_problem("source queue", &[&port])?;
    found.also_ok("source metadata")?;
    found.also_ok("target mode")?;

    // 4. Another number of shards on the target, where somebody has made the collection before.
    let wide = Plain::bare(&from, DB, "wide", 2).await?;
    until("the wide one is on the target", async || {
        Ok(lab
            .to
            .collections(DB)
            .await?
            .contains(&wide.name().to_owned()))
    })
    .await?;
    lab.cdc.pause(&lab.task).await?;
    let replicator = lab.to.clone().replicating(lab.to.alloc_timestamp().await?);
    let narrow = Plain::bare(&replicator, DB, "narrow", 1).await?;
    Plain::bare(&from, DB, narrow.name(), 2).await?;
    let found = doctor(&own, &[]).await?;
    found.only_problem(
        "mapping",
        &[
            "default.narrow",
            "2 shard(s) on the source",
            "1 on the target",
        ],
    )?;
    found.also_ok("positions")?;
    // The same for a target that no task writes to yet, and which would be asked for first.
    let fresh = elsewhere(&lab, "no-task", &at)?;
    let found = doctor(&fresh, &["--target", &target]).await?;
    found.only_problem("mapping", &["default.narrow"])?;
    from.drop_collection(DB, narrow.name()).await?;
    ensure!(doctor(&own, &[]).await?.ok, "it is dropped on the source");
    // Another collection under the name of one of the task's: other channels.
    replicator.drop_collection(DB, wide.name()).await?;
    Plain::bare(&replicator, DB, wide.name(), 2).await?;
    let found = doctor(&own, &[]).await?;
    found.only_problem("mapping", &["default.wide", "another collection"])?;
    from.drop_collection(DB, wide.name()).await?;

    // 5. The queue has forgotten what the paused task has not read.
    let channels = from.describe(DB, "fine").await?.physical_channel_names;
    let channel = channels.first().context("it has channels")?;
    fine.insert(&from, "", 30, random).await?;
    let queue = async_nats::jetstream::new(async_nats::connect(lab.source.nats()).await?);
    let mut stream = queue.get_stream(channel.as_str()).await?;
    let last = stream.info().await?.state.last_sequence;
    stream.purge().sequence(last + 1).await?;
    let found = doctor(&own, &[]).await?;
    let expired: Vec<&Value> = found
        .verdicts("problem")
        .filter(|c| c["check"] == "positions")
        .collect();
    ensure!(expired.len() == 1, "{:?}", found.checks);
    for word in ["expired", channel.as_str(), &lab.task] {
        ensure!(
            expired[0].to_string().contains(word),
            "{word} in {expired:?}"
        );
    }
    // Without a task it is a warning: a new one would wait for a person.
    let fresh = doctor(&fresh, &[]).await?;
    let warned = fresh
        .verdicts("warning")
        .any(|c| c["check"] == "positions" && c.to_string().contains("default.fine"));
    ensure!(warned && fresh.ok, "{:?}", fresh.checks);

    // Nothing at all to read is said, too.
    let said = command(&["doctor", "--config", "/nowhere/cdc.yaml"], PATIENCE).await?;
    ensure!(
        said.code == Some(1) && said.stdout.contains("/nowhere/cdc.yaml"),
        "{said:?}"
    );
    lab.cdc.kill9().await?;
    let dir = lab.dir().to_owned();
    lab.abandon().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
