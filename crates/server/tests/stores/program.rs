//! The program itself, beside the store's server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cdc_lab::http::{self, Reply};
use cdc_lab::servers::Process;
use serde_json::{Value, json};

const LIVE: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(30);

/// The one that was built with the tests, unless `MILVUS_CDC_BIN` names another one.
pub(crate) fn binary() -> PathBuf {
    let given = std::env::var_os("MILVUS_CDC_BIN");
    given.map_or_else(|| env!("CARGO_BIN_EXE_milvus-cdc").into(), PathBuf::from)
}

/// A running `milvus-cdc server`; dropping it kills it.
pub(crate) struct Program {
    process: Process,
    address: String,
    log: PathBuf,
}

impl Program {
    /// Starts it with this configuration, which says to listen on `address`, and waits until it owns its store.
    pub(crate) async fn start(config: &Path, address: &str) -> Self {
        let log = config.with_extension("log");
        let mut command = Command::new(binary());
        command.args(["server", "--config"]).arg(config);
        let process = Process::spawn("milvus-cdc", &mut command, &log).unwrap();
        let mut program = Self {
            process,
            address: address.to_owned(),
            log,
        };
        for path in ["/healthz", "/readyz"] {
            program.wait_for(path).await;
        }
        program
    }

    async fn wait_for(&mut self, path: &str) {
        let end = Instant::now() + LIVE;
        loop {
            if let Some(status) = self.process.ended().unwrap() {
                panic!("it ended with {status}: {}", self.said());
            }
            let reply = http::get(&self.address, path, CALL).await;
            if reply.is_ok_and(|reply| reply.status == 200) {
                return;
            }
            assert!(Instant::now() < end, "{path}: {}", self.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `POST /cdc`: the HTTP status and the answer.
    pub(crate) async fn ask(&self, kind: &str, data: Option<Value>) -> (u16, Value) {
        let mut body = json!({ "request_type": kind });
        if let Some(data) = data {
            body["request_data"] = data;
        }
        let Reply { status, body } = http::post(&self.address, "/cdc", &body.to_string(), CALL)
            .await
            .unwrap();
        let answer = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{kind}: {e}: {body}"));
        (status, answer)
    }

    /// Everything it has printed.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM; its code.
    pub(crate) async fn stop(mut self) -> Option<i32> {
        self.process.stop(CALL).await.unwrap().code
    }
}
