//! One scenario end to end, tiny, on real servers (etcd and nats-server of Debian's packages): the figures are there, and
//! the ledger has nothing against what milvus-cdc sent. Needs the programs: `cargo build --workspace --bins`. Nothing of
//! speed is asserted.

use cdc_bench::proc::Pinning;
use cdc_bench::run::{self, Program, Setup};
use cdc_bench::scenario;

#[tokio::test(flavor = "multi_thread")]
async fn a_small_backlog_arrives_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        queue: "natsmq".to_owned(),
        ack_delay_ms: 0,
        program: Program::Ours,
        dir: dir.path().to_owned(),
        pinning: Pinning { on: false },
        seed: 1,
        versions: run::versions("natsmq").unwrap(),
    };
    let scenario = scenario::find("upsert").unwrap().sized(Some(3), None);
    let figures = run::run(&scenario, &setup).await.unwrap();
    println!("{figures}");
    let of = |name: &str| figures[name].as_f64().unwrap();
    assert_eq!(figures["complete"], true);
    assert_eq!(
        figures["violations"], 0,
        "{}",
        figures["violations_in_words"]
    );
    let written = &figures["backlog"];
    assert!(written["rows_inserted"].as_u64().unwrap() > 0);
    assert_eq!(written["rows_inserted"], written["rows_deleted"]);
    // What was sent before the first look is not in the figures.
    assert!(of("messages") > 0.0 && of("messages") <= written["messages"].as_f64().unwrap());
    assert!(of("cpu_s") > 0.0 && of("rss_peak_mb") > 1.0);
}
