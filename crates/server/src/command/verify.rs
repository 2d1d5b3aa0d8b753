//! `milvus-cdc verify`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::tls::{
    ClientTls, FieldNames, Identity, NoChannel, TlsVersion, channel, is_server_name,
};
use cdc_verify::client::{Client, NoAnswer, Refused};
use cdc_verify::names;
use cdc_verify::objects::Likeness;
use cdc_verify::report::Report;
use cdc_verify::select::Selection;
use cdc_verify::{Again, Options, verify};
use serde_json::json;
use tonic::Code;

use super::carried::Carried;
use super::repair::{Repairer, Told};
use crate::cli::{Connection, Output};
use crate::client::http::secret;
use crate::client::{Failure, say};
use crate::request::normalise_uri;

/// Until a connection must be there.
const CONNECT: Duration = Duration::from_secs(10);
/// Differences by name in the table.
const SHOWN: usize = 40;
/// See [`Likeness`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum AsWhat {
    Standby,
    Plain,
    Lite,
}

impl From<AsWhat> for Likeness {
    fn from(what: AsWhat) -> Self {
        match what {
            AsWhat::Standby => Likeness::Standby,
            AsWhat::Plain => Likeness::Plain,
            AsWhat::Lite => Likeness::Lite,
        }
    }
}

/// Behind a repair it is looked again for at least so many seconds: the task has to go on and to catch up.
const AFTERWARDS: u64 = 30;

/// Compares a target with its source by reading both: databases, collections, schemas, properties, partitions, indexes,
/// load states, every row with every field, count(*). Works while rows flow: what differs is looked at again, and what is
/// equal then was only on its way. Changes nothing, but for --load and --repair.
///
/// Exit code 0: everything was compared and is equal; 1: something differs; 9: what was compared is equal, and something
/// was not compared, as it says.
#[derive(clap::Args)]
pub struct Args {
    /// The source, http(s)://host:port of its Milvus.
    #[arg(long, value_name = "URI")]
    source: String,
    /// The target.
    #[arg(long, value_name = "URI")]
    target: String,
    /// A file with the source's user:password or API key.
    #[arg(long, value_name = "FILE")]
    source_token_file: Option<PathBuf>,
    /// A file with the target's user:password or API key.
    #[arg(long, value_name = "FILE")]
    target_token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Collections, DATABASE.NAME, either of which may be *; a name alone is in default. Without it, all.
    #[arg(long, value_name = "COLLECTIONS", value_delimiter = ',')]
    collections: Vec<String>,
    /// Seconds until what differs is looked at again.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    settle: u64,
    /// How often it is looked at again, at most. With 0 what is on its way is taken for a difference.
    #[arg(long, value_name = "ROUNDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    rounds: u32,
    /// What the target is to the source; standby if not given, or with --task what that takes it for. Of a Milvus of its own
    /// field ids, shards and who makes the keys may differ.
    #[arg(long, value_enum)]
    likeness: Option<AsWhat>,
    /// Load on the source what is not loaded and has an index, flush it there, and wait until milvus-cdc has carried that
    /// to the target, up to so many seconds. It stays loaded.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120", value_parser = clap::value_parser!(u64).range(1..=3600))]
    load: Option<u64>,
    /// Rows held of each side at a time, at most; by their size if not given. Four partitions are read at a time.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    range_rows: Option<u64>,
    /// Make right what is wrong with rows: they are copied from the source anew, through the task that writes to this
    /// target. It is paused for that, and goes on. Then all is compared again, which is what the exit code is of.
    #[arg(long, requires = "task")]
    repair: bool,
    /// With --repair: say what would be copied or deleted, and change nothing.
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// The task that writes to this target, on the server of --server. What it carries is compared, and only that, under
    /// the names it has on the target; what it leaves out makes no difference.
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Where the task is; of use only with --task, but for --output.
    #[command(flatten)]
    connection: Connection,
}

/// Of a server with https://
#[derive(clap::Args)]
struct TlsArgs {
    /// Who signed the source's certificate (PEM); without it the system's certificates.
    #[arg(long, value_name = "FILE")]
    source_ca_cert: Option<PathBuf>,
    /// The certificate to show to the source (PEM).
    #[arg(long, value_name = "FILE", requires = "source_client_key")]
    source_client_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "source_client_cert")]
    source_client_key: Option<PathBuf>,
    /// If the source's certificate is for another name than its address.
    #[arg(long, value_name = "NAME")]
    source_server_name: Option<String>,
    /// Who signed the target's certificate (PEM); without it the system's certificates.
    #[arg(long, value_name = "FILE")]
    target_ca_cert: Option<PathBuf>,
    /// The certificate to show to the target (PEM).
    #[arg(long, value_name = "FILE", requires = "target_client_key")]
    target_client_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "target_client_cert")]
    target_client_key: Option<PathBuf>,
    /// If the target's certificate is for another name than its address.
    #[arg(long, value_name = "NAME")]
    target_server_name: Option<String>,
}

const SOURCE_FLAGS: FieldNames = FieldNames {
    trusted: "--source-ca-cert",
    certificate: "--source-client-cert",
    key: "--source-client-key",
    name: "--source-server-name",
    switch: "https:// in --source",
};

const TARGET_FLAGS: FieldNames = FieldNames {
    trusted: "--target-ca-cert",
    certificate: "--target-client-cert",
    key: "--target-client-key",
    name: "--target-server-name",
    switch: "https:// in --target",
};

/// One of the two servers, as it was given.
struct Side<'a> {
    name: &'static str,
    uri: &'a str,
    uri_flag: &'static str,
    token_file: &'a Option<PathBuf>,
    token_flag: &'static str,
    tls: ClientTls,
    flags: &'static FieldNames,
}

/// # Errors
/// There is no comparison: a server cannot be reached or refuses the login, or a file cannot be read.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let selection = Selection::parse(args.collections.iter().map(String::as_str))
        .map_err(|why| Failure::new(2, format!("--collections: {why}")))?;
    let carried = args.task.as_ref();
    let carried = carried.map(|task| Carried::ask(&args.connection, task));
    let carried = carried.transpose()?.map(Arc::new);
    let likeness = match (args.likeness, &carried) {
        (Some(given), _) => given.into(),
        (None, Some(carried)) => carried.likeness,
        (None, None) => Likeness::Standby,
    };
    let options = Options {
        settle: Duration::from_secs(args.settle),
        again: Again::Rounds(args.rounds),
        selection,
        carried: carried.map(|carried| carried as Arc<dyn names::Carried>),
        range_rows: args.range_rows,
        likeness,
        load: args.load.map(Duration::from_secs),
        keys: args.repair,
        ..Options::default()
    };
    let [source, target] = sides(&args);
    let (source, target) = futures::try_join!(connect(&source), connect(&target))?;
    let repairer = match &args.task {
        Some(task) if args.repair => Some(Repairer::new(
            &args.connection,
            task,
            &args.target,
            args.dry_run,
        )?),
        _ => None,
    };
    let report = compare(&source, &target, &options).await?;
    let output = args.connection.output;
    let Some(repairer) = repairer else {
        show(output, &report, None)?;
        return Ok(code(&report));
    };
    if output == Output::Table {
        say(report.table(SHOWN));
    }
    let told = repairer.repair(&source, &report).await?;
    if output == Output::Table {
        say(&told);
    }
    if args.dry_run || told.is_nothing() {
        if output == Output::Json {
            show(output, &report, Some(&told))?;
        }
        return Ok(code(&report));
    }
    let rounds = u32::try_from(AFTERWARDS.div_ceil(args.settle)).unwrap_or(u32::MAX);
    let again = Options {
        again: Again::Rounds(args.rounds.max(rounds)),
        load: None,
        keys: false,
        ..options
    };
    let report = compare(&source, &target, &again).await?;
    show(output, &report, Some(&told))?;
    Ok(code(&report))
}

async fn compare(source: &Client, target: &Client, options: &Options) -> anyhow::Result<Report> {
    tokio::select! {
        report = verify(source, target, options) => report.map_err(explained),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(1, "interrupted: nothing is known").into()),
    }
}

fn show(output: Output, report: &Report, repair: Option<&Told>) -> anyhow::Result<()> {
    if output == Output::Table {
        say(report.table(SHOWN));
        return Ok(());
    }
    let mut shown = json!({ "equal": report.is_equal(), "differs": report.differs() });
    if let (Some(shown), serde_json::Value::Object(all)) =
        (shown.as_object_mut(), serde_json::to_value(report)?)
    {
        shown.extend(all);
        if let Some(repair) = repair {
            shown.insert("repair".to_owned(), serde_json::to_value(repair)?);
        }
    }
    say(format_args!("{shown:#}"));
    Ok(())
}

fn code(report: &Report) -> ExitCode {
    match (report.differs(), report.is_equal()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::from(9),
    }
}

fn sides(args: &Args) -> [Side<'_>; 2] {
    let tls = |ca: &Option<PathBuf>,
               certificate: &Option<PathBuf>,
               key: &Option<PathBuf>,
               name: &Option<String>| {
        let identity = certificate.clone().zip(key.clone());
        ClientTls {
            trusted: ca.clone(),
            identity: identity.map(|(certificate, key)| Identity { certificate, key }),
            server_name: name.clone(),
            oldest: TlsVersion::V12,
        }
    };
    let t = &args.tls;
    [
        Side {
            name: "source",
            uri: &args.source,
            uri_flag: "--source",
            token_file: &args.source_token_file,
            token_flag: "--source-token-file",
            tls: tls(
                &t.source_ca_cert,
                &t.source_client_cert,
                &t.source_client_key,
                &t.source_server_name,
            ),
            flags: &SOURCE_FLAGS,
        },
        Side {
            name: "target",
            uri: &args.target,
            uri_flag: "--target",
            token_file: &args.target_token_file,
            token_flag: "--target-token-file",
            tls: tls(
                &t.target_ca_cert,
                &t.target_client_cert,
                &t.target_client_key,
                &t.target_server_name,
            ),
            flags: &TARGET_FLAGS,
        },
    ]
}

async fn connect(side: &Side<'_>) -> Result<Client, Failure> {
    let wrong = |flag: &str, why: &str| Failure::new(2, format!("{flag}: {why}"));
    let uri = normalise_uri(side.uri).map_err(|why| wrong(side.uri_flag, &why))?;
    if uri.starts_with("http://") && side.tls != ClientTls::default() {
        // Half a wish for TLS must not end as none.
        let why = "https://host:port expected, since certificates are given";
        return Err(wrong(side.uri_flag, why));
    }
    if let Some(name) = side.tls.server_name.as_ref().filter(|n| !is_server_name(n)) {
        let why = format!("{name:?} is no name of a server");
        return Err(wrong(side.flags.name, &why));
    }
    let login = match side.token_file {
        Some(file) => Some(secret(
            &format!("file:{}", file.display()),
            side.token_flag,
        )?),
        None => None,
    };
    let there = channel(&uri, &side.tls, CONNECT).await.map_err(|e| {
        let what = format!("the {} {uri}: {e}", side.name);
        match e {
            NoChannel::Address => Failure::new(2, what),
            NoChannel::Tls(fault) => Failure::new(3, format!("{what}; {}", fault.hint(side.flags))),
            NoChannel::Unreachable(_) => {
                Failure::new(3, format!("{what}; check {}", side.uri_flag))
            }
        }
    })?;
    let client = Client::over(side.name, there, login.as_deref())
        .map_err(|_| wrong(side.token_flag, "the login cannot be sent"))?;
    // A wrong login, or a server that is no Milvus, is told before anything is read.
    match client.databases().await {
        Ok(_) => Ok(client),
        Err(e) => Err(match explained(e).downcast::<Failure>() {
            Ok(failure) if failure.code == 4 => {
                Failure::new(4, format!("{}; check {}", failure.message, side.token_flag))
            }
            Ok(failure) => failure,
            Err(other) => Failure::new(1, format!("{other:#}")),
        }),
    }
}

/// With the code of what went wrong.
fn explained(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if let Some(refused) = error.downcast_ref::<Refused>() {
        let code = match refused.code {
            1400 | 1401 => 4,
            _ => 3,
        };
        return Failure::new(code, text).into();
    }
    match error.downcast_ref::<NoAnswer>().map(|n| n.code) {
        Some(Code::Unauthenticated | Code::PermissionDenied) => Failure::new(4, text).into(),
        Some(_) => Failure::new(3, text).into(),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use cdc_verify::report::{Difference, Kind};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(more: &[&str]) -> Result<Args, clap::Error> {
        let all = [
            "verify",
            "--source",
            "http://127.0.0.1:1",
            "--target",
            "http://127.0.0.1:1",
        ];
        Line::try_parse_from(all.iter().chain(more)).map(|line| line.args)
    }

    #[test]
    fn what_was_not_compared_has_a_code_of_its_own() {
        let mut report = Report::default();
        let shown = |report: &Report| format!("{:?}", code(report));
        let of = |n: u8| format!("{:?}", ExitCode::from(n));
        assert_eq!(shown(&report), of(0));
        report.open.push("d.c: not loaded".to_owned());
        assert_eq!(shown(&report), of(9));
        report.differences.push(Difference {
            object: "database d".to_owned(),
            kind: Kind::Missing,
            detail: String::new(),
        });
        assert_eq!(shown(&report), of(1));
    }

    #[test]
    fn arguments_have_their_defaults() {
        let args = parse(&["--collections", "a.*,b"]).unwrap();
        assert_eq!((args.settle, args.rounds, args.load), (5, 3, None));
        assert_eq!(args.collections, ["a.*", "b"]);
        assert_eq!(parse(&["--load"]).unwrap().load, Some(120));
        assert_eq!(parse(&["--load", "7"]).unwrap().load, Some(7));
        assert!(parse(&["--source-client-cert", "f"]).is_err());
        let repair = parse(&["--repair", "--task", "east", "--dry-run"]).unwrap();
        assert!(repair.repair && repair.dry_run && repair.task.as_deref() == Some("east"));
        assert!(parse(&["--task", "east"]).is_ok());
        // Neither means anything alone.
        for half in [&["--repair"][..], &["--dry-run"]] {
            assert!(parse(half).is_err(), "{half:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_work_is_refused_with_its_code_and_without_the_login() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "root:hush-hush\n").unwrap();
        let file = file.display().to_string();
        for (more, wanted, words) in [
            (vec!["--collections", "a*"], 2, "--collections"),
            (vec!["--target-ca-cert", "f"], 2, "--target: https://"),
            (
                vec!["--source-token-file", "/nowhere/at/all"],
                2,
                "--source-token-file",
            ),
            (
                vec!["--source-token-file", &file],
                3,
                "the source http://127.0.0.1:1",
            ),
        ] {
            let Err(error) = run(parse(&more).unwrap()).await else {
                panic!("{more:?} is accepted");
            };
            let failure = error.downcast_ref::<Failure>().unwrap();
            assert_eq!(failure.code, wanted, "{more:?}: {error:#}");
            assert!(failure.message.contains(words), "{error:#}");
            assert!(!format!("{error:?}").contains("hush"));
        }
    }

    #[test]
    fn a_refused_login_has_code_4() {
        let answer = |code| NoAnswer {
            call: "source: list_databases".to_owned(),
            code,
            message: "auth check failure".to_owned(),
        };
        let of = |e: anyhow::Error| explained(e).downcast::<Failure>().unwrap().code;
        assert_eq!(of(answer(Code::Unauthenticated).into()), 4);
        assert_eq!(of(answer(Code::Unavailable).into()), 3);
    }
}
