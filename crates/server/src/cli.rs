//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::command::{doctor, import_go, promote, verify};

/// In place of a list: an empty one.
pub(crate) const NONE: &str = "none";

/// Change data capture from one Milvus to another.
///
/// Exit codes: 0 done; 1 something else went wrong; 2 wrong arguments; 3 the server cannot be reached or is not able to;
/// 4 no or a wrong token, or one that may only read; 5 no such task; 6 it contradicts what is there; 7 what was asked
/// for cannot work, or `plan` found what speaks against it; 8 `watch` ended before what it waited for; 9 `verify` found
/// nothing wrong and did not compare everything.
#[derive(Parser)]
#[command(name = "milvus-cdc", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one, once
pub enum Command {
    /// Runs the HTTP server with its tasks.
    Server {
        /// The configuration; without it ./configs/cdc.yaml, and without that the embedded defaults.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    Doctor(doctor::Args),
    Promote(promote::Args),
    ImportGo(import_go::Args),
    Verify(Box<verify::Args>),
    /// Asks a running server about its tasks, and changes them.
    Task {
        #[command(flatten)]
        connection: Box<Connection>,
        #[command(subcommand)]
        command: Box<TaskCommand>,
    },
    /// Prints completions for a shell: source <(milvus-cdc completions bash)
    Completions {
        shell: Shell,
    },
}

/// How to reach the server.
#[derive(Args)]
pub struct Connection {
    /// The server's address.
    #[arg(
        long,
        global = true,
        env = "MILVUS_CDC_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8444"
    )]
    pub server: String,
    /// The token, or file:PATH of a file that holds it.
    #[arg(
        long,
        global = true,
        env = "MILVUS_CDC_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// Who signed the server's certificate (PEM); without it the system's certificates.
    #[arg(long, global = true, env = "MILVUS_CDC_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// The certificate to show to the server (PEM).
    #[arg(long, global = true, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, global = true, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// Seconds until the server must have answered.
    #[arg(long, global = true, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

impl Connection {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
pub enum TaskCommand {
    /// Makes a task and starts it.
    Create(Create),
    /// Shows what a task would carry, under which names, and what speaks against it. Changes nothing. Exit code 7 if
    /// anything does.
    Plan(Create),
    /// Shows all tasks.
    List,
    /// Shows one task and its collections.
    Get { id: String },
    /// Stops a task for as long as you want.
    Pause {
        id: String,
        /// Why, in one line.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Lets a task run again, and answers what its collections wait for.
    Resume {
        id: String,
        /// DATABASE.NAME=ANSWER, with adopt, recreate, earliest, now or skip.
        #[arg(long = "answer", value_name = "ANSWER", value_parser = answer)]
        answers: Vec<NamedAnswer>,
    },
    /// Gives a task another login, other certificates, more collections or other rules. One that runs goes on with them.
    ///
    /// --include and --exclude go behind the steps that the task has; --map and --skip replace what it has, and none
    /// stands for nothing at all.
    Edit(Box<Edit>),
    /// Stops a task and forgets it.
    Delete { id: String },
    /// Shows the messages of a task that could not be carried, tries one again, or leaves it out.
    Quarantine {
        #[command(subcommand)]
        command: QuarantineCommand,
    },
    /// Shows how far a task is, over and over, until it is stopped or what it waits for is there.
    Watch {
        id: String,
        /// Ends with 0 when the task has a collection and every one is Streaming.
        #[arg(long)]
        until_streaming: bool,
        /// Ends with 8 after so many seconds.
        #[arg(long = "for", value_name = "SECONDS")]
        limit: Option<u64>,
        /// Seconds between two looks.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
    },
}

#[derive(Subcommand)]
pub enum QuarantineCommand {
    /// Shows them all.
    List { id: String },
    /// Shows one, with what can be read of it.
    Show {
        id: String,
        key: String,
        /// Writes all its bytes, as the source wrote them, into this file.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Lets its collection go on at it, at once.
    Retry { id: String, key: String },
    /// Lets its collection go on without it.
    Drop { id: String, key: String },
}

#[derive(Args)]
pub struct Create {
    /// The target, http://host:port
    #[arg(long, value_name = "URL")]
    pub target: String,
    /// The target's user:password or API key, or file:PATH of a file that holds it.
    #[arg(
        long,
        env = "MILVUS_CDC_TARGET_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub target_token: Option<String>,
    /// A collection, DATABASE.NAME, either of which may be *; a name alone is in default, * alone is everything.
    #[arg(
        short,
        long = "collection",
        value_name = "COLLECTION",
        default_value = "*",
        conflicts_with_all = ["include", "exclude"]
    )]
    pub collections: Vec<String>,
    #[command(flatten)]
    pub rules: Rules,
    /// An id of your choice: the command can then be repeated.
    #[arg(long)]
    pub id: Option<String>,
    /// Where collections begin that are there now.
    #[arg(long, value_enum)]
    pub start: Option<Start>,
    /// What to do with collections that are on the target already and not empty.
    #[arg(long, value_enum)]
    pub on_conflict: Option<OnConflict>,
    /// How the target is written to; what it is found to be if left out.
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Whether the rows are copied that the collections have now.
    #[arg(long, value_enum)]
    pub initial: Option<Initial>,
    /// Load collections on the source that are not loaded, for as long as they are copied.
    #[arg(long)]
    pub load_for_snapshot: bool,
    /// Rows copied a second, at most.
    #[arg(long, value_name = "ROWS")]
    pub rows_per_second: Option<u64>,
    /// Bytes copied a second, at most.
    #[arg(long, value_name = "BYTES")]
    pub bytes_per_second: Option<u64>,
}

/// docs/selection.md has the patterns and the names.
#[derive(Args)]
pub struct Rules {
    /// Collections by a pattern: DATABASE.NAME with * and ? in either part, DATABASE./REGEX/, or /REGEX/ over both.
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// And not these, whatever includes them. Alone: all but these.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Other names on the target: FROM=TO, like 'db1.*=db2.{}_copy'; the first that matches counts.
    #[arg(long = "map", value_name = "FROM=TO")]
    pub mapping: Vec<String>,
    /// Operations that are not carried, like drop_collection.
    #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
    pub skip: Vec<String>,
}

#[derive(Args)]
pub struct Edit {
    pub id: String,
    /// The target's new user:password or API key, or file:PATH of a file that holds it.
    #[arg(long, value_name = "TOKEN")]
    pub target_token: Option<String>,
    /// Seconds a connection to the target may take.
    #[arg(long, value_name = "SECONDS")]
    pub connect_timeout: Option<u64>,
    /// The target's authority, a PEM file on the server's machine. With one of these four, all of them are replaced.
    #[arg(long, value_name = "PATH")]
    pub ca_pem: Option<String>,
    /// A certificate to show to the target.
    #[arg(long, value_name = "PATH", requires = "client_key_path")]
    pub client_pem: Option<String>,
    /// The key of that certificate.
    #[arg(
        id = "client_key_path",
        long = "client-key-pem",
        value_name = "PATH",
        requires = "client_pem"
    )]
    pub client_key: Option<String>,
    /// If the target's certificate is for another name than its address.
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// A collection to add, DATABASE.NAME, either of which may be *; a name alone is in default, * alone is everything.
    #[arg(short, long = "collection", value_name = "COLLECTION")]
    pub collections: Vec<String>,
    #[command(flatten)]
    pub rules: Rules,
    /// What to do with collections that are on the target already and not empty.
    #[arg(long, value_enum)]
    pub on_conflict: Option<OnConflict>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Initial {
    /// No: only what is in the source's queue is carried.
    Incremental,
    /// Yes, then what is written after that.
    Snapshot,
    /// Of those whose first message the source's queue does not hold any more.
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Mode {
    /// A standby by replicated messages, anything else by ordinary calls.
    Auto,
    /// By replicated messages: the target is a standby, with common.ttMsgEnabled false.
    Replicate,
    /// By Insert and Delete: the target is a Milvus of its own, of any version.
    Plain,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Start {
    Created,
    Earliest,
    Now,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum OnConflict {
    Ask,
    Adopt,
    Recreate,
}

/// An answer for one collection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedAnswer {
    pub database: String,
    pub name: String,
    pub answer: String,
}

fn answer(text: &str) -> Result<NamedAnswer, String> {
    let form = "DATABASE.NAME=ANSWER expected, with adopt, recreate, earliest, now or skip";
    let (name, answer) = text.rsplit_once('=').ok_or(form)?;
    let (database, name) = name.split_once('.').unwrap_or(("default", name));
    if !["adopt", "recreate", "earliest", "now", "snapshot", "skip"].contains(&answer)
        || name.is_empty()
    {
        return Err(form.to_owned());
    }
    Ok(NamedAnswer {
        database: database.to_owned(),
        name: name.to_owned(),
        answer: answer.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_answer_names_its_collection() {
        let named = |database: &str, name: &str, answer: &str| NamedAnswer {
            database: database.to_owned(),
            name: name.to_owned(),
            answer: answer.to_owned(),
        };
        assert_eq!(answer("db.a=adopt"), Ok(named("db", "a", "adopt")));
        assert_eq!(answer("a=skip"), Ok(named("default", "a", "skip")));
        for bad in ["a", "a=", "a=fly", "=adopt", "db.=adopt"] {
            assert!(answer(bad).is_err(), "{bad}");
        }
    }
}
