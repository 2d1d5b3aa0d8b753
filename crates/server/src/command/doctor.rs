//! `milvus-cdc doctor`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cdc_core::doctor::{Check, Verdict};
use serde_json::{Value, json};

use crate::cli::{Connection, Output};
use crate::client::http::{Client, Method, secret};
use crate::doctor::{Report, without_server};

/// Above what all checks of a server may take one after the other.
const ANSWER: Duration = Duration::from_secs(180);

/// Looks at source, queue, positions and targets, and says of each whether it is well and what to do if it is not.
/// Changes nothing. Exit code 0: no problem was found.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration; without it ./configs/cdc.yaml, and without that the embedded defaults. Needs no server.
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    config: Option<PathBuf>,
    /// Ask a running server instead, at http(s)://host:port.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The server's own token, or file:PATH of a file that holds it.
    #[arg(
        long,
        env = "MILVUS_CDC_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    server_token: Option<String>,
    /// Who signed the server's certificate (PEM); without it the system's certificates.
    #[arg(long, env = "MILVUS_CDC_CA_CERT", value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// A target to look at beside those of the tasks.
    #[arg(long, value_name = "URI")]
    target: Option<String>,
    /// Its login, user:password or an API key. Others on this machine can see it; --token-file is better.
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "target",
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// A file with the login.
    #[arg(long, value_name = "FILE", requires = "target")]
    token_file: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// # Errors
/// There is no diagnosis: the server cannot be asked, or a file cannot be read.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let target = match &args.target {
        None => Value::Null,
        Some(uri) => {
            let token = match &args.token_file {
                Some(path) => secret(&format!("file:{}", path.display()), "--token-file")?,
                None => args.token.clone().unwrap_or_default(),
            };
            json!({ "milvus_connect_param": { "uri": uri, "token": token } })
        }
    };
    let report = match &args.server {
        None => without_server(args.config.as_deref(), &target).await,
        Some(server) => {
            let client = Client::new(&Connection {
                server: server.clone(),
                token: args.server_token.clone(),
                ca_cert: args.ca_cert.clone(),
                client_cert: None,
                client_key: None,
                timeout: ANSWER.as_secs(),
                output: args.output,
            })?;
            let path = "/api/v1/doctor";
            let answer = match target {
                Value::Null => client.get(path)?,
                target => client.ask(Method::POST, path, Some(&target))?,
            };
            serde_json::from_value(answer)?
        }
    };
    match args.output {
        Output::Table => print!("{}", table(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(match report.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let Check {
            check: name,
            subject,
            verdict,
            text: found,
            hint,
        } = check;
        let about = match subject.as_str() {
            "" => String::new(),
            subject => format!("{subject}: "),
        };
        text += &format!("{:<8} {name:<17} {about}{found}\n", verdict.name());
        if !hint.is_empty() {
            text += &format!("{:<26} what to do: {hint}\n", "");
        }
    }
    let count = |verdict| {
        report
            .checks
            .iter()
            .filter(|c| c.verdict == verdict)
            .count()
    };
    text += &format!(
        "{} problem(s), {} warning(s)\n",
        count(Verdict::Problem),
        count(Verdict::Warning)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_check_and_one_for_what_to_do() {
        let report = Report::from(vec![
            Check::ok("source etcd", "it answers"),
            Check::problem("target mode", "not a standby", "make it one").about("http://h:1"),
            Check::skipped("mapping", "no metadata"),
        ]);
        assert!(!report.ok);
        assert_eq!(
            table(&report),
            "ok       source etcd       it answers\n\
             problem  target mode       http://h:1: not a standby\n\
             \x20                          what to do: make it one\n\
             skipped  mapping           not looked at: no metadata\n\
             1 problem(s), 0 warning(s)\n"
        );
    }
}
