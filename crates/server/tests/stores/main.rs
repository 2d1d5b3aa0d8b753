//! Every store on a real server of its kind: `cargo test -p milvus-cdc --features e2e --test stores`.
//!
//! One test after the other; the servers are started when they are first needed and shared by the tests of their kind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cut;
mod fence;
mod go_file;
#[path = "../support/go_shape.rs"]
mod go_shape;
mod history;
mod import_go;
mod large;
mod look;
mod place;
mod program;
mod secrets;
mod suite;
mod tls;

use std::pin::Pin;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use place::{Kind, Place};

type Test = for<'a> fn(&'a mut Place) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! tests {
    ($($name:path),* $(,)?) => {
        &[$((stringify!($name), (|place| Box::pin($name(place))) as Test)),*]
    };
}

/// On servers of its own.
type Alone = fn(Kind) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! alone {
    ($($name:path),* $(,)?) => {
        &[$((stringify!($name), (|kind| Box::pin($name(kind))) as Alone)),*]
    };
}

/// On every store.
const ALL: &[(&str, Test)] = tests![
    suite::contract,
    suite::tasks_and_their_history,
    look::a_look_changes_nothing,
    history::of_one_task_and_of_all_in_their_order,
    history::a_place_is_never_used_again,
    history::of_deleted_tasks_the_last_deletions_stay,
    suite::one_failing_job_fails_alone_and_whole,
    secrets::a_dump_has_no_planted_secret,
    secrets::another_key_or_none_is_refused,
];

/// Where several servers may share one.
const SHARED: &[(&str, Test)] = tests![
    suite::what_was_committed_outlives_a_kill_of_the_server,
    suite::a_store_that_was_away_goes_on,
    fence::without_a_term_nothing_is_written,
    fence::one_of_two_has_it,
    fence::an_owner_that_lives_keeps_it,
    fence::a_silent_owner_is_replaced_after_its_lease,
    fence::a_write_of_an_old_epoch_is_refused_whole,
    fence::commits_and_a_takeover_at_once,
    tls::asked_of_a_server_that_has_none,
];

/// The same as `GO` on servers with TLS.
const SECURED_GO: &[(&str, Alone)] = alone![tls::import_go_names_it_too];

/// The same stores on servers with TLS.
const SECURED: &[(&str, Alone)] = alone![
    tls::the_contract_with_certificates_of_both_and_a_login,
    tls::what_must_not_work_is_named,
    tls::every_mode_does_what_it_says,
    tls::changed_certificates_count_from_the_next_connection,
];

const ETCD: &[(&str, Test)] = tests![
    large::a_commit_of_any_size,
    large::a_large_commit_is_whole_or_not_at_all,
    large::a_commit_that_is_cut_at_each_of_its_requests,
    large::a_commit_whose_connection_breaks_goes_on,
    history::a_page_sees_what_is_in_the_journal,
    go_file::starts_the_program_which_answers_as_documented,
];

/// Where a Go server may have kept its tasks.
const GO: &[(&str, Test)] = tests![
    import_go::tasks_are_taken_over_once_and_nothing_else_is_touched,
    import_go::not_while_a_go_server_writes,
    import_go::not_while_a_server_owns_the_store,
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let mut trials = Vec::new();
    for kind in [Kind::Sqlite, Kind::Postgres, Kind::Mysql, Kind::Etcd] {
        let mut add = |tests: &'static [(&str, Test)]| {
            for (name, test) in tests {
                let name = format!("{}::{name}", kind.name());
                trials.push(Trial::test(name, move || run(kind, *test)));
            }
        };
        add(ALL);
        if kind != Kind::Sqlite {
            add(SHARED);
        }
        if matches!(kind, Kind::Etcd | Kind::Mysql) {
            add(GO);
        }
        if kind == Kind::Etcd {
            add(ETCD);
        }
        let secured: &[&[(&str, Alone)]] = match kind {
            Kind::Sqlite => &[],
            Kind::Postgres => &[SECURED],
            Kind::Mysql | Kind::Etcd => &[SECURED, SECURED_GO],
        };
        for (name, test) in secured.iter().copied().flatten() {
            let name = format!("{}::{name}", kind.name());
            trials.push(Trial::test(name, move || run_alone(kind, *test)));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    place::end_all();
    conclusion.exit_code()
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

fn run_alone(kind: Kind, test: Alone) -> Result<(), Failed> {
    runtime()?.block_on(test(kind));
    Ok(())
}

fn run(kind: Kind, test: Test) -> Result<(), Failed> {
    let runtime = runtime()?;
    let mut place = runtime
        .block_on(place::get(kind))
        .map_err(|e| format!("{e:#}"))?;
    runtime.block_on(test(&mut place));
    place::put_back(place);
    Ok(())
}
