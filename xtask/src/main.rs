//! The commands of this repository, as `cargo xtask COMMAND`.

mod env;
mod mutants;
mod run;
mod schemathesis;

use std::process::ExitCode;

const HELP: &str = "\
The commands of this repository

cargo xtask demo [OPTIONS]   Two real Milvus servers, milvus-cdc between them, a workload over every operation, and
                             the comparison of both servers. Exits 0 only if they are equal.
    --source natsmq|rocksmq|kafka|pulsar
                                     the source's message queue (natsmq; rocksmq compiles RocksDB, 10 to 20 minutes;
                                     kafka compiles OpenSSL and librdkafka, 3 to 5; kafka and pulsar need Java 17 and
                                     Maven)
    --keep                           leave everything running and print how to go on by hand
    --sabotage lose|double|change|index   spoil one thing on the target first: the comparison must fail and name it
    --rows N, --ops N, --seed N, --dir FOLDER

cargo xtask chaos [OPTIONS]  The same servers and a workload, while milvus-cdc is killed and frozen, connections break, etcd
                             is compacted, the disk of the store is full, …, by a plan made from a seed. Exits 0 only if
                             source and target are equal then and nothing needed a hand. docs/reliability.md
    --seed N, --minutes M, --queue natsmq|rocksmq|kafka|pulsar, --rate ROWS_A_SECOND
    --faults kill-cdc,proxy,…        only these; all that are safe with the queue if not given. Off unless named:
                                     kill-target, kill-source, kill-etcd, and kill-broker with pulsar: a Milvus 2.3.5
                                     then can lose or double rows of its own
    --append FILE                    add the figures, one line of JSON, to this file
    --audit                          read the target's own log, too, and say who lost (compiles RocksDB)
    --dir FOLDER

cargo xtask bench [SCENARIO…]   What milvus-cdc costs: CPU, memory, throughput, delay, each scenario a line of JSON. A
                             generated source on a real etcd and queue, a target that only counts; built as released.
                             Without a scenario they are listed; `all` takes twenty minutes. docs/performance.md
    --queue natsmq|kafka, --megabytes N, --seconds N, --ack-delay-ms N,N,…, --seed N, --no-pin, --append FILE,
    --dir FOLDER, --against NAME=COMMAND (another server; --help of cdc-bench says how)
    --micro                          the small benchmarks of single functions, with criterion

cargo xtask test [--quick|--long]   fmt, clippy, all tests, end-to-end tests on real servers included; --quick leaves
                             those out, --long has a few more of them, which show what others show too
cargo xtask simulate [OPTIONS]   the corelib between models of a source and a target, one run a seed, the same again
    --seeds FROM..TO, --seconds N    which seeds, and for how long (0..1000)
    --seed N                         one, with all that happens in it; RUST_LOG=cdc_core=debug shows the rest
    --record FILE                    appends a line of JSON about the runs
    --waits                          of a run that stands still, where each of its tasks waits (another build)
cargo xtask schemathesis [--seed N]   the OpenAPI document against the running server (schemathesis, from PyPI)
cargo xtask fuzz [--seconds N] [--seed N] [--target NAME]   mutated bytes to everything that reads bytes from outside
cargo xtask mutants [--list|--only WORD,…]   breaks one guard of the heart after the other, in a copy of what git has,
                             and names those that the quick tests do not notice; long
cargo xtask env              prints the environment in which these commands build, as shell exports
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("--help", [].as_slice()),
    };
    let outcome = match command {
        "demo" => run::demo(rest),
        "chaos" => run::chaos(rest),
        "bench" => run::bench(rest),
        "test" => run::test(rest),
        "simulate" => run::simulate(rest),
        "schemathesis" => run::schemathesis(rest),
        "fuzz" => run::fuzz(rest),
        "mutants" => mutants::mutants(rest),
        "env" => run::print_env(rest),
        "-h" | "--help" | "help" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("no such command: {other}\n\n{HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
