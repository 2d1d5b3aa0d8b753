//! The OpenAPI document against the running server: schemathesis sends what the document allows and what it does not, and
//! compares every answer with it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::env::cache;
use crate::run::{Outcome, finish, step};

const PACKAGE: &str = "schemathesis==4.32.5";
const TOKEN: &str = "schemathesis-0123456789";
/// Examples of one operation and phase.
const EXAMPLES: &str = "40";
/// Until a server must have started.
const START: Duration = Duration::from_secs(60);

/// What is tried: the program itself without a source, so that everything but a creation works, and the interface with
/// a stand-in behind it, where creations succeed and no answer above 499 is allowed.
pub(crate) fn run(server: &Path, example: &Path, seed: Option<u64>) -> Outcome {
    let seed = seed.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::from(d.subsec_nanos()))
    });
    let tool = install()?;
    let folder =
        std::env::temp_dir().join(format!("milvus-cdc-schemathesis-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
    let outcome = both(server, example, &tool, &folder, seed);
    let _ = std::fs::remove_dir_all(&folder);
    outcome.map_err(|e| format!("{e}; again with --seed {seed}"))
}

fn both(server: &Path, example: &Path, tool: &Path, folder: &Path, seed: u64) -> Outcome {
    step(&format!(
        "schemathesis, a stand-in behind the interface, seed {seed}"
    ));
    let port = free_port()?;
    let mut command = Command::new(example);
    command.args([&format!("127.0.0.1:{port}"), TOKEN]);
    let running = Server::start(command, port, &folder.join("example.log"))?;
    check(tool, folder, port, seed, false)?;
    drop(running);

    step(&format!(
        "schemathesis, the program without a source, seed {seed}"
    ));
    let port = free_port()?;
    let config = folder.join("cdc.yaml");
    let (etcd, nats) = (free_port()?, free_port()?);
    let text = format!(
        "address: 127.0.0.1:{port}\nsecurity: {{tokens: [{{name: t, token: {TOKEN}, role: full}}]}}\n\
         limits: {{requestsPerSecond: 1000000, burst: 1000000}}\n\
         metaStoreConfig: {{sqlite: {{path: '{}'}}}}\n\
         sourceConfig: {{etcd: {{address: 'http://127.0.0.1:{etcd}'}}, natsmq: {{address: 'nats://127.0.0.1:{nats}'}}}}\n",
        folder.join("store.db").display()
    );
    std::fs::write(&config, text).map_err(|e| format!("write {}: {e}", config.display()))?;
    let mut command = Command::new(server);
    command.args(["server", "--config"]).arg(&config);
    let _running = Server::start(command, port, &folder.join("server.log"))?;
    check(tool, folder, port, seed, true)
}

/// `away`: the source is, which a creation answers with 503.
fn check(tool: &Path, folder: &Path, port: u16, seed: u64, away: bool) -> Outcome {
    let config = folder.join("schemathesis.toml");
    let allowed = match away {
        true => "\"2xx\", \"3xx\", \"4xx\", 503",
        false => "\"2xx\", \"3xx\", \"4xx\"",
    };
    // 400 and 422: the document cannot say everything that makes a request contradict itself.
    let text = format!(
        "[checks]\nnot_a_server_error.expected-statuses = [{allowed}]\n\
         positive_data_acceptance.expected-statuses = [\"2xx\", 400, 404, 409, 422, 503]\n"
    );
    std::fs::write(&config, text).map_err(|e| format!("write {}: {e}", config.display()))?;
    let mut command = Command::new(tool);
    command
        .current_dir(folder)
        .arg("--no-color")
        .arg("--config-file")
        .arg(&config)
        .arg("run")
        .arg(format!("http://127.0.0.1:{port}/api/v1/openapi.json"))
        .arg("--header")
        .arg(format!("Authorization: Bearer {TOKEN}"))
        .args(["--seed", &seed.to_string(), "--max-examples", EXAMPLES])
        .args([
            "--checks",
            "all",
            "--request-timeout",
            "20",
            "--warnings",
            "off",
        ]);
    finish(command, "schemathesis")
}

/// Into a folder of its own, once.
fn install() -> Result<PathBuf, String> {
    let folder = cache()?.join(PACKAGE.replace("==", "-"));
    let tool = folder.join("bin").join("schemathesis");
    if tool.exists() {
        return Ok(tool);
    }
    step(&format!("install {PACKAGE} (once)"));
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&folder);
    finish(venv, "python3 -m venv (python3-venv has to be installed)")?;
    let mut pip = Command::new(folder.join("bin").join("python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        PACKAGE,
    ]);
    let installed = finish(pip, "pip install");
    if installed.is_err() {
        let _ = std::fs::remove_dir_all(&folder);
    }
    installed.map(|()| tool)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts it and waits until it is ready. What it says goes to `log`, and to the error if it does not start.
    fn start(mut command: Command, port: u16, log: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|e| format!("start a server: {e}"))?;
        let mut server = Self(child);
        let end = Instant::now() + START;
        loop {
            if ready(port) {
                return Ok(server);
            }
            let ended = server.0.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() >= end {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!(
                    "the server did not become ready ({ended:?}): {said}"
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn ready(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let _ = stream.shutdown(Shutdown::Both);
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    ask() == Some(true)
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("a free port: {e}"))?;
    let address = listener
        .local_addr()
        .map_err(|e| format!("a free port: {e}"))?;
    Ok(address.port())
}
