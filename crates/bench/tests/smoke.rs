//! One scenario end to end, tiny, on real servers (etcd and nats-server of Debian's packages): the figures are there, and
//! the ledger has nothing against what milvus-cdc sent. Needs the programs: `cargo build --workspace --bins`. Nothing of
//! speed is asserted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cdc_bench::proc::Pinning;
use cdc_bench::run::{self, Program, Setup};
use cdc_bench::scenario;

#[tokio::test(flavor = "multi_thread")]
async fn a_small_backlog_arrives_whole_and_in_order() {
    arrives(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_backlog_arrives_whole_by_ordinary_calls() {
    arrives(true).await;
}

async fn arrives(plain: bool) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        queue: "natsmq".to_owned(),
        ack_delay_ms: 0,
        plain,
        program: Program::Ours,
        dir: dir.path().to_owned(),
        pinning: Pinning { on: false },
        seed: 1,
        versions: run::versions("natsmq").unwrap(),
    };
    let scenario = scenario::find("upsert").unwrap().sized(Some(3), None);
    let figures = run::run(&scenario, &setup).await.unwrap();
    println!("{figures}");
    assert_eq!(figures["complete"], true);
    assert_eq!(
        figures["violations"], 0,
        "{}",
        figures["violations_in_words"]
    );
    let written = &figures["backlog"];
    let of = |name: &str| written[name].as_u64().unwrap();
    assert!(of("rows_inserted") > 0 && of("rows_inserted") == of("rows_deleted"));
    assert_eq!(
        figures["rows_in_ledger"],
        of("rows_inserted") + of("rows_deleted")
    );
    for name in ["startup_cpu_s", "rss_peak_mb", "create_to_first_row_ms"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{name}");
    }
}
