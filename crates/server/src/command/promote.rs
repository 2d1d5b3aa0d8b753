//! `milvus-cdc promote`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{Connection, Output};
use crate::client::Failure;
use crate::client::http::{Client, Method, secret};
use crate::tasks::{Promotion, PromotionState};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const PASSWORD: &str = "MILVUS_CDC_TARGET_ETCD_PASSWORD";

/// Makes the standby of a task a Milvus of its own, the day the source is gone. Stops the task for good: there is no way
/// back. It goes on in the server; if this command or the server ends on the way, run it again. See docs/failover.md.
#[derive(clap::Args)]
pub struct Args {
    /// The task. All tasks to the same target are promoted with it.
    task: String,
    /// The target's own etcd (may be given several times), through which its time is switched on. Without it you are
    /// told what to do, and it is waited for.
    #[arg(long, value_name = "URL")]
    target_etcd: Vec<String>,
    /// The target's etcd.rootPath.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "by-dev",
        requires = "target_etcd"
    )]
    target_root_path: String,
    /// A login for that etcd. Its password comes from the file of --target-etcd-password-file, or from the environment
    /// variable MILVUS_CDC_TARGET_ETCD_PASSWORD.
    #[arg(long, value_name = "NAME", requires = "target_etcd")]
    target_etcd_user: Option<String>,
    #[arg(long, value_name = "FILE", requires = "target_etcd_user")]
    target_etcd_password_file: Option<PathBuf>,
    /// Who signed the certificate of an etcd with https:// (a PEM file on the machine of the server, as the next two);
    /// without it the system's certificates.
    #[arg(long, value_name = "FILE", requires = "target_etcd")]
    target_etcd_ca_cert: Option<PathBuf>,
    /// The certificate to show to that etcd.
    #[arg(long, value_name = "FILE", requires = "target_etcd_key")]
    target_etcd_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "target_etcd_cert")]
    target_etcd_key: Option<PathBuf>,
    /// How long each step may take, the wait for a person included.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    patience: u64,
    /// The server that runs the task. As a table every new step is a line; as JSON the last state is printed.
    #[command(flatten)]
    connection: Connection,
}

/// # Errors
/// The server cannot be asked, or refuses.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if args.task.is_empty() || !args.task.chars().all(legal) {
        let what = "TASK: letters, digits, '-' and '_' expected";
        return Err(Failure::new(2, what).into());
    }
    let mut wish = json!({ "patience_seconds": args.patience });
    if let Some(etcd) = etcd(&args)? {
        wish["target_etcd"] = etcd;
    }
    let path = format!("/api/v1/tasks/{}/promote", args.task);
    // Its calls block, each no longer than --timeout; nothing else runs here.
    let client = Client::new(&args.connection)?;
    let output = args.connection.output;
    let mut answer = client.ask(Method::POST, &path, Some(&wish))?;
    let mut printed = String::new();
    loop {
        let now: Promotion = serde_json::from_value(answer)?;
        let lines = lines(&now);
        if output == Output::Table && lines != printed {
            print!("{lines}");
            printed = lines;
        }
        if now.state != PromotionState::Promoting {
            if output == Output::Json {
                println!("{}", serde_json::to_string_pretty(&now)?);
            }
            return Ok(match now.state {
                PromotionState::Promoted => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
        answer = client.get(&path)?;
    }
}

/// The target's etcd as the server wants it.
fn etcd(args: &Args) -> Result<Option<Value>, Failure> {
    let files = [
        ("tlsCACertPath", &args.target_etcd_ca_cert),
        ("tlsCertPath", &args.target_etcd_cert),
        ("tlsKeyPath", &args.target_etcd_key),
    ];
    if args.target_etcd.is_empty() {
        if args.target_etcd_cert.is_some() {
            return Err(Failure::new(
                2,
                "--target-etcd-cert: of use only with --target-etcd",
            ));
        }
        return Ok(None);
    }
    let mut etcd = json!({ "address": args.target_etcd, "rootPath": args.target_root_path });
    for (key, file) in files {
        if let Some(file) = file {
            if !args.target_etcd.iter().all(|e| e.starts_with("https://")) {
                let what =
                    "--target-etcd: https://host:port expected, since certificates are given";
                return Err(Failure::new(2, what));
            }
            etcd[key] = json!(file);
        }
    }
    if let Some(user) = &args.target_etcd_user {
        etcd["username"] = json!(user);
        etcd["password"] = json!(password(args)?);
    }
    Ok(Some(etcd))
}

/// Never from the command line, which others on the machine can read.
fn password(args: &Args) -> Result<String, Failure> {
    if let Some(file) = &args.target_etcd_password_file {
        let place = format!("file:{}", file.display());
        return secret(&place, "--target-etcd-password-file");
    }
    match std::env::var(PASSWORD) {
        Ok(password) if !password.is_empty() => Ok(password),
        _ => {
            let what = format!(
                "--target-etcd-user: its password is missing, in --target-etcd-password-file or {PASSWORD}"
            );
            Err(Failure::new(2, what))
        }
    }
}

fn lines(now: &Promotion) -> String {
    let step = match now.state {
        PromotionState::Promoting => now.step.as_str(),
        PromotionState::Promoted => "promoted",
        PromotionState::Failed => "failed",
        PromotionState::Interrupted => "interrupted",
    };
    let mut text = format!("{step:<12} {}\n", now.text);
    if !now.hint.is_empty() {
        text += &format!("{:<12} what to do: {}\n", "", now.hint);
    }
    text
}
