//! `milvus-cdc promote`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use crate::cli::{Connection, Output};
use crate::client::http::{Client, Method, secret};
use crate::tasks::{Promotion, PromotionState};

const LOOK_EVERY: Duration = Duration::from_millis(500);

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
    /// A login for that etcd, with --target-etcd-password-file.
    #[arg(
        long,
        value_name = "NAME",
        requires = "target_etcd",
        requires = "target_etcd_password_file"
    )]
    target_etcd_user: Option<String>,
    #[arg(long, value_name = "FILE", requires = "target_etcd_user")]
    target_etcd_password_file: Option<PathBuf>,
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
        bail!("TASK: letters, digits, '-' and '_' expected");
    }
    let mut wish = json!({ "patience_seconds": args.patience });
    if !args.target_etcd.is_empty() {
        wish["target_etcd"] =
            json!({ "address": args.target_etcd, "rootPath": args.target_root_path });
        if let (Some(user), Some(file)) = (&args.target_etcd_user, &args.target_etcd_password_file)
        {
            wish["target_etcd"]["username"] = json!(user);
            wish["target_etcd"]["password"] = json!(secret(
                &format!("file:{}", file.display()),
                "--target-etcd-password-file"
            )?);
        }
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
