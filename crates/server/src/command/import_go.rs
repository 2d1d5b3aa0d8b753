//! `milvus-cdc import-go`

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Output;
use crate::config::Config;
use crate::import::{Outcome, Plan, apply, plan};

/// Takes over the tasks of a Go server (zilliztech/milvus-cdc) from its etcd or MySQL, with the places where their
/// collections go on. Says what would become of each, and changes nothing without --apply. That server has to be stopped
/// for good first; nothing of what it keeps is changed. Exit code 0: every task can be taken, is, or is here already.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration; without it ./configs/cdc.yaml. The tasks are made in its store, which no server may own.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The Go server's own configuration, if its tasks are in another store than metaStoreConfig names.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Make the tasks.
    #[arg(long)]
    apply: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// # Errors
/// Nothing can be said, or nothing was changed.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, _) = Config::load(args.config.as_deref())?;
    let from = match &args.from {
        Some(path) => Config::load(Some(path))?.0,
        None => config.clone(),
    };
    let mut plan = plan(&config, &from).await?;
    let applied = match args.apply {
        true => apply(&config, &mut plan).await,
        false => Ok(()),
    };
    match args.output {
        Output::Table => print!("{}", table(&plan)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&plan)?),
    }
    applied?;
    Ok(match plan.count(Outcome::Refused) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn table(plan: &Plan) -> String {
    let mut text = format!("from {}\nto   {}\n", plan.from, plan.to);
    let below = " ".repeat(12);
    for task in &plan.tasks {
        let what = match task.outcome {
            Outcome::New => "would take",
            Outcome::Taken => "taken",
            Outcome::There => "is here",
            Outcome::Refused => "cannot take",
        };
        let all = [&task.id, &task.target, &task.collections, &task.state];
        let all: Vec<&str> = all
            .into_iter()
            .map(String::as_str)
            .filter(|t| !t.is_empty())
            .collect();
        text += &format!("{what:<11} {}\n", all.join("  "));
        for place in &task.places {
            text += &format!(
                "{below}{}  {}  {}\n",
                place.collection, place.channel, place.text
            );
        }
        for left in &task.left {
            let not = match task.outcome {
                Outcome::Refused => "because:",
                _ => "not taken:",
            };
            text += &format!("{below}{not} {}\n", left.what);
            text += &format!("{below}what to do: {}\n", left.hint);
        }
    }
    text += &format!(
        "{} taken, {} would be taken, {} here already, {} cannot be taken\n",
        plan.count(Outcome::Taken),
        plan.count(Outcome::New),
        plan.count(Outcome::There),
        plan.count(Outcome::Refused),
    );
    if plan.tasks.is_empty() {
        text += "No task of a Go server is there: check metaStoreConfig.rootPath, or name that server's own file with --from.\n";
    }
    text += match (&plan.running, plan.count(Outcome::New)) {
        (Some(_), _) => "THE GO SERVER STILL RUNS: stop it for good before you apply.\n",
        (None, 0) => "",
        (None, _) => {
            "Nothing was changed; --apply makes the tasks. Stop the Go server for good first: one whose tasks are paused, or that cannot reach its source, is not always seen from here.\n"
        }
    };
    if plan.count(Outcome::Taken) > 0 {
        text += "What the Go server keeps was left as it is. Never start it again for these tasks: both would write. Start milvus-cdc server now.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_tasks_says_where_to_look() {
        let mut plan = Plan {
            from: "etcd http://h:1, root cdc".to_owned(),
            to: "sqlite ./s.db".to_owned(),
            tasks: Vec::new(),
            running: None,
        };
        let shown = table(&plan);
        assert!(
            shown.contains("0 would be taken") && shown.contains("rootPath"),
            "{shown}"
        );
        plan.running = Some("its store changes".to_owned());
        assert!(table(&plan).contains("STILL RUNS"));
    }
}
