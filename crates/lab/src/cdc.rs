//! The `milvus-cdc` server as a process of its own, and its HTTP interface as a person with curl uses it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::http::{self, Reply};
use crate::progress::Progress;
use crate::servers::{Exit, Milvus, Mq, Process, Pulsar, free_port, process};

/// How long the server may take to answer its first `/healthz`.
const START_DEADLINE: Duration = Duration::from_secs(60);
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// For answers that look at everything.
const LONG_CALL: Duration = Duration::from_secs(120);

/// A `milvus-cdc server` started by us. Dropping it kills it; its folder stays.
pub struct Cdc {
    dir: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Cdc {
    /// Writes `cdc.yaml` for `source` into `dir`, starts the server and waits for `/healthz`.
    ///
    /// # Errors
    /// The binary is not there, or the server does not come up; the message has the last lines of its log.
    pub async fn start(
        source: &Milvus,
        dir: impl Into<PathBuf>,
        progress: &Progress,
    ) -> Result<Self> {
        Self::start_with(source, dir, "", progress).await
    }

    /// As [`Cdc::start`], with more lines of YAML at the top level of the configuration.
    ///
    /// # Errors
    /// As [`Cdc::start`].
    pub async fn start_with(
        source: &Milvus,
        dir: impl Into<PathBuf>,
        more: &str,
        progress: &Progress,
    ) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let port = free_port()?;
        let yaml = config(&Addresses::of(source), port, &dir) + more;
        Self::start_from(dir, port, &yaml, progress).await
    }

    /// As [`Cdc::start`], with its store elsewhere: `store` is the YAML of `metaStoreConfig`.
    ///
    /// # Errors
    /// As [`Cdc::start`].
    pub async fn start_on(
        source: &Milvus,
        dir: impl Into<PathBuf>,
        store: &str,
        progress: &Progress,
    ) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let port = free_port()?;
        let yaml = config_with(&Addresses::of(source), port, store);
        Self::start_from(dir, port, &yaml, progress).await
    }

    /// As [`Cdc::start`], for a source of which nothing needs to run.
    ///
    /// # Errors
    /// As [`Cdc::start`].
    pub async fn start_at(
        source: &Addresses,
        dir: impl Into<PathBuf>,
        progress: &Progress,
    ) -> Result<Self> {
        Self::start_edited(source, dir, |yaml| yaml, progress).await
    }

    /// As [`Cdc::start_at`], with a configuration that `edit` makes of the usual one.
    ///
    /// # Errors
    /// As [`Cdc::start`].
    pub async fn start_edited(
        source: &Addresses,
        dir: impl Into<PathBuf>,
        edit: impl FnOnce(String) -> String,
        progress: &Progress,
    ) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let port = free_port()?;
        let yaml = edit(config(source, port, &dir));
        Self::start_from(dir, port, &yaml, progress).await
    }

    async fn start_from(dir: PathBuf, port: u16, yaml: &str, progress: &Progress) -> Result<Self> {
        std::fs::write(dir.join("cdc.yaml"), yaml)?;
        let mut cdc = Self {
            dir,
            port,
            process: None,
        };
        cdc.restart(progress).await?;
        Ok(cdc)
    }

    /// Starts it again with the same configuration and store (kills it first if it runs).
    ///
    /// # Errors
    /// As [`Cdc::start`].
    pub async fn restart(&mut self, progress: &Progress) -> Result<()> {
        self.kill9().await?;
        let what = "start milvus-cdc";
        progress.begin(what);
        let mut command = Command::new(binary()?);
        command
            .arg("server")
            .arg("--config")
            .arg(self.config_path())
            .current_dir(&self.dir);
        self.process = Some(Process::spawn("milvus-cdc", &mut command, &self.log())?);
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()?
            {
                bail!(
                    "milvus-cdc ended with {status} while starting; its last words:\n{}",
                    process.last_lines(30)
                );
            }
            if let Ok(reply) = http::get(&self.address(), "/healthz", Duration::from_secs(2)).await
                && reply.status == 200
            {
                progress.done(what);
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "milvus-cdc is not live after {START_DEADLINE:?}; its last words:\n{}",
                    process::tail(&self.log(), 30)
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL. Does nothing if it does not run.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill9().await?;
        }
        Ok(())
    }

    /// SIGTERM: its code and how long it took; SIGKILL after `patience`.
    ///
    /// # Errors
    /// It does not run, or cannot be stopped.
    pub async fn sigterm(&mut self, patience: Duration) -> Result<Exit> {
        self.process
            .take()
            .context("milvus-cdc does not run")?
            .stop(patience)
            .await
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        if let Some(process) = &self.process {
            process.freeze();
        }
    }

    /// SIGCONT after [`Cdc::freeze`].
    pub fn thaw(&self) {
        if let Some(process) = &self.process {
            process.thaw();
        }
    }

    /// How it ended, if it was started and has ended by itself.
    ///
    /// # Errors
    /// The operating system refuses to tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.process {
            Some(process) => process.ended(),
            None => Ok(None),
        }
    }

    /// The same server without its process: to ask it from another task.
    #[must_use]
    pub fn asking(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            port: self.port,
            process: None,
        }
    }

    /// From now on dropping it leaves it running.
    pub fn leave_running(&mut self) {
        if let Some(process) = &mut self.process {
            process.leave_running();
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("cdc.yaml")
    }

    /// Everything it has printed, over all starts.
    pub fn log(&self) -> PathBuf {
        self.dir.join("milvus-cdc.log")
    }

    /// `GET path`, `/cdc/metrics` for example.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        http::get(&self.address(), path, CALL_DEADLINE).await
    }

    /// `GET` or `POST` of one of the REST paths: the status and the JSON of the answer.
    ///
    /// # Errors
    /// No answer, or one that is not JSON.
    pub async fn rest(&self, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let reply = match body {
            None => http::get(&self.address(), path, LONG_CALL).await?,
            Some(body) => http::post(&self.address(), path, &body.to_string(), LONG_CALL).await?,
        };
        let answer = serde_json::from_str(&reply.body)
            .with_context(|| format!("{path}: HTTP {}: {}", reply.status, reply.body))?;
        Ok((reply.status, answer))
    }

    /// Edits a task: `PATCH /api/v1/tasks/{task}`; the task as it is then.
    ///
    /// # Errors
    /// No answer, or it is refused.
    pub async fn edit(&self, task: &str, body: &Value) -> Result<Value> {
        let path = format!("/api/v1/tasks/{task}");
        let reply = http::patch(&self.address(), &path, &body.to_string(), LONG_CALL).await?;
        if reply.status != 200 {
            bail!("edit: HTTP {}: {}", reply.status, reply.body);
        }
        Ok(serde_json::from_str(&reply.body)?)
    }

    /// `POST /cdc` with any body; the answer as it comes.
    ///
    /// # Errors
    /// No answer.
    pub async fn post(&self, body: &str) -> Result<Reply> {
        http::post(&self.address(), "/cdc", body, CALL_DEADLINE).await
    }

    /// `POST /cdc`; the `data` of an answer with code 200. Waits while the stored tasks are being recovered.
    ///
    /// # Errors
    /// No answer, or one with another code.
    pub async fn request(&self, kind: &str, data: Value) -> Result<Value> {
        let body = json!({ "request_type": kind, "request_data": data }).to_string();
        let end = Instant::now() + CALL_DEADLINE;
        let reply = loop {
            let reply = self.post(&body).await?;
            let recovering = reply.status == 503 && reply.body.contains("being recovered");
            if !recovering || Instant::now() >= end {
                break reply;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut answer: Value = serde_json::from_str(&reply.body).with_context(|| {
            format!(
                "{kind}: HTTP {} with a body that is not JSON: {}",
                reply.status, reply.body
            )
        })?;
        if answer["code"] != json!(200) {
            bail!("{kind}: HTTP {}: {}", reply.status, reply.body);
        }
        Ok(answer["data"].take())
    }

    /// Creates a task for every collection of every database; its id.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create_cluster_task(&self, target_uri: &str) -> Result<String> {
        self.create(json!({
            "milvus_connect_param": { "uri": target_uri },
            "collection_infos": [{ "name": "*" }],
        }))
        .await
    }

    /// Creates a task from a whole `request_data`; its id.
    ///
    /// # Errors
    /// It is refused.
    pub async fn create(&self, data: Value) -> Result<String> {
        let answer = self.request("create", data).await?;
        answer["task_id"]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("create answered without a task_id: {answer}"))
    }

    pub async fn pause(&self, task: &str) -> Result<()> {
        self.request("pause", json!({ "task_id": task }))
            .await
            .map(drop)
    }

    pub async fn resume(&self, task: &str) -> Result<()> {
        self.request("resume", json!({ "task_id": task }))
            .await
            .map(drop)
    }

    /// `resume` with answers for collections that wait for a person: the value of `collections`.
    ///
    /// # Errors
    /// It is refused.
    pub async fn answer(&self, task: &str, collections: Value) -> Result<()> {
        let data = json!({ "task_id": task, "collections": collections });
        self.request("resume", data).await.map(drop)
    }

    pub async fn delete(&self, task: &str) -> Result<()> {
        self.request("delete", json!({ "task_id": task }))
            .await
            .map(drop)
    }

    /// The task as `get` shows it.
    ///
    /// # Errors
    /// It is not there.
    pub async fn task(&self, task: &str) -> Result<Status> {
        let mut answer = self.request("get", json!({ "task_id": task })).await?;
        Ok(Status {
            task: answer["task"].take(),
        })
    }

    /// Polls the task until `done` says so.
    ///
    /// # Errors
    /// `deadline` is over; the message has the last answer.
    pub async fn wait(
        &self,
        task: &str,
        what: &str,
        deadline: Duration,
        done: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let end = Instant::now() + deadline;
        loop {
            let status = self.task(task).await;
            if let Ok(status) = &status
                && done(status)
            {
                return Ok(status.clone());
            }
            if Instant::now() >= end {
                let last = match status {
                    Ok(s) => s.task.to_string(),
                    Err(e) => format!("{e:#}"),
                };
                bail!("{what}: not within {deadline:?}; the task's last answer: {last}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A task's answer to `get`.
#[derive(Debug, Clone)]
pub struct Status {
    pub task: Value,
}

impl Status {
    /// Running, Paused, …
    pub fn state(&self) -> &str {
        self.task["state"].as_str().unwrap_or_default()
    }

    /// Its collections, wherever the answer has them.
    pub fn collections(&self) -> &[Value] {
        find(&self.task, "collections")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The states of the collections of this database and name (several after a drop and re-creation), newest last.
    pub fn states_of(&self, db: &str, name: &str) -> Vec<&str> {
        self.collections()
            .iter()
            .filter(|c| c["name"] == *name && c["db"] == *db)
            .filter_map(|c| c["state"].as_str())
            .collect()
    }

    /// The newest collection of this database and name.
    pub fn collection(&self, db: &str, name: &str) -> Option<&Value> {
        self.collections()
            .iter()
            .rev()
            .find(|c| c["name"] == *name && c["db"] == *db)
    }

    /// Rows the target has acknowledged since the server started.
    pub fn rows(&self) -> u64 {
        match find(&self.task, "rows_out").and_then(Value::as_u64) {
            Some(rows) => rows,
            None => self
                .collections()
                .iter()
                .filter_map(|c| c["rows"].as_u64())
                .sum(),
        }
    }

    /// Seconds of source time; `None` before the first message.
    pub fn lag_seconds(&self) -> Option<f64> {
        self.task
            .get("lag_seconds")
            .or_else(|| find(&self.task, "lag_seconds"))
            .and_then(Value::as_f64)
    }
}

/// The first value of this key, breadth first.
fn find<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    let mut level = vec![root];
    while !level.is_empty() {
        if let Some(found) = level.iter().find_map(|v| v.get(key)) {
            return Some(found);
        }
        level = level
            .into_iter()
            .filter_map(Value::as_object)
            .flat_map(|o| o.values())
            .collect();
    }
    None
}

/// What a command of the binary printed, and its code; `None` if it was ended by a signal.
#[derive(Debug, Clone)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command of the binary to its end; killed when the future is dropped.
///
/// # Errors
/// The binary is not there, or does not end within `deadline`.
pub async fn command(args: &[&str], deadline: Duration) -> Result<Said> {
    command_in(args, &[], deadline).await
}

/// As [`command`], with these environment variables more.
///
/// # Errors
/// As [`command`].
pub async fn command_in(
    args: &[&str],
    environment: &[(&str, &str)],
    deadline: Duration,
) -> Result<Said> {
    let output = tokio::process::Command::new(binary()?)
        .args(args)
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(deadline, output)
        .await
        .with_context(|| format!("milvus-cdc {args:?} did not end within {deadline:?}"))??;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The server's binary: `MILVUS_CDC_BIN`, else beside this executable or in the folder above (tests are in `deps`).
///
/// # Errors
/// It is in none of these places.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MILVUS_CDC_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("find this executable")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("milvus-cdc"))
        .find(|path| path.is_file())
        .context("no milvus-cdc binary beside this one (cargo build -p milvus-cdc) and MILVUS_CDC_BIN is not set")
}

/// Where `milvus-cdc` finds a source.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub mq: Mq,
    /// `http://host:port`.
    pub etcd: String,
    /// `nats://host:port`; read with natsmq only.
    pub nats: String,
    /// Read with RocksMQ only.
    pub rocksmq: PathBuf,
    /// `pulsar://host:port`; read with Pulsar only.
    pub pulsar: String,
    /// `host:port`; read with Kafka only.
    pub kafka: String,
    pub root_path: String,
    pub replicate_channel: String,
    /// `http://host:port` of its proxy, where rows are to be read.
    pub rows: Option<String>,
}

impl Addresses {
    pub fn of(source: &Milvus) -> Self {
        Self {
            mq: source.mq(),
            etcd: source.etcd(),
            nats: source.nats(),
            rocksmq: source.rocksmq_path(),
            pulsar: source.pulsar().map(Pulsar::url).unwrap_or_default(),
            kafka: source.kafka(),
            root_path: source.root_path().to_owned(),
            replicate_channel: source.replicate_channel(),
            rows: Some(source.uri()),
        }
    }
}

/// `metaStoreConfig` of a store in this folder.
fn sqlite(dir: &Path) -> String {
    let store = dir.join("milvus-cdc.db");
    format!(
        "metaStoreConfig:\n  storeType: sqlite\n  sqlite:\n    path: \"{}\"\n",
        store.display()
    )
}

/// A `cdc.yaml` for this source, with the store in `dir`.
pub fn config(source: &Addresses, port: u16, dir: &Path) -> String {
    config_with(source, port, &sqlite(dir))
}

/// The same with this `metaStoreConfig`.
fn config_with(source: &Addresses, port: u16, store: &str) -> String {
    let queue = match source.mq {
        Mq::Natsmq => format!("natsmq:\n    address: \"{}\"", source.nats),
        Mq::Rocksmq => format!("rocksmq:\n    path: \"{}\"", source.rocksmq.display()),
        Mq::Pulsar => format!("pulsar:\n    address: \"{}\"", source.pulsar),
        Mq::Kafka => format!("kafka:\n    address: \"{}\"", source.kafka),
    };
    let rows = source.rows.as_ref();
    let rows = rows.map_or_else(String::new, |uri| {
        format!("  milvus:\n    uri: \"{uri}\"\n")
    });
    format!(
        "address: \"127.0.0.1:{port}\"\n\
         logLevel: info,cdc_core::pipeline=debug\n\
         {store}\
         sourceConfig:\n  etcd:\n    address: [\"{etcd}\"]\n    rootPath: \"{root}\"\n    metaSubPath: meta\n\
         \x20 replicateChan: \"{channel}\"\n\
         {rows}\
         \x20 {queue}\n",
        etcd = source.etcd,
        root = source.root_path,
        channel = source.replicate_channel,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_found_at_any_depth() {
        let task = json!({
            "state": "Running",
            "status": {
                "lag_seconds": 0.5,
                "collections": [
                    { "db": "d", "name": "c", "state": "Dropped", "rows": 3, "lag_seconds": 9.0 },
                    { "db": "d", "name": "c", "state": "Streaming", "rows": 4 },
                ],
            },
        });
        let status = Status { task };
        assert_eq!(status.state(), "Running");
        assert_eq!(status.rows(), 7);
        assert_eq!(status.lag_seconds(), Some(0.5));
        assert_eq!(status.states_of("d", "c"), ["Dropped", "Streaming"]);
        assert!(status.states_of("e", "c").is_empty());
        assert_eq!(
            status.collection("d", "c").map(|c| &c["state"]),
            Some(&json!("Streaming"))
        );
    }
}
