//! Rows that were there before the task, and that the queue does not hold any more: copied, while rows go on and
//! milvus-cdc is killed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::{Cdc, command};
use cdc_lab::client::{Client, CollectionOptions, Key, Row, Value as Field, key_expr};
use cdc_lab::servers::lite::Lite;
use cdc_lab::servers::{Milvus, Mq, Spec};
use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, folder, progress, until};
use crate::plain::Plain;
use crate::tasks::some;

tests![Alone:
    to_a_standby_through_three_kills,
    two_hundred_thousand_rows_to_a_plain_target_through_three_kills,
    a_lost_position_is_answered_with_a_copy,
    the_guide_from_a_2_3_to_milvus_lite,
];

/// Rows of one insert.
const BATCH: usize = 5_000;

/// A collection of a string key, in partitions of its own or by a partition key.
struct Texts {
    schema: CollectionSchema,
    partitions: &'static [&'static str],
}

impl Texts {
    async fn create(from: &Client, name: &str, by_key: bool) -> Result<Self> {
        let field = |name: &str, kind: DataType| FieldSchema {
            name: name.to_owned(),
            data_type: kind.into(),
            type_params: vec![KeyValuePair {
                key: if kind == DataType::VarChar {
                    "max_length"
                } else {
                    "dim"
                }
                .into(),
                value: if kind == DataType::VarChar {
                    "100"
                } else {
                    "4"
                }
                .into(),
            }],
            ..Default::default()
        };
        let mut key = field("id", DataType::VarChar);
        key.is_primary_key = true;
        let mut of = field("of", DataType::Int64);
        of.type_params.clear();
        of.is_partition_key = by_key;
        let texts = Self {
            schema: CollectionSchema {
                name: name.to_owned(),
                enable_dynamic_field: true,
                fields: vec![key, of, field("vec", DataType::FloatVector)],
                ..Default::default()
            },
            partitions: if by_key { &[""] } else { &["", "other"] },
        };
        let options = CollectionOptions {
            shards: 2,
            consistency: ConsistencyLevel::Bounded,
            properties: Vec::new(),
            partitions: if by_key { 4 } else { 0 },
        };
        from.create_collection(DB, &texts.schema, &options).await?;
        for partition in texts.partitions.iter().filter(|p| !p.is_empty()) {
            from.create_partition(DB, name, partition).await?;
        }
        let params = [
            ("index_type", "FLAT"),
            ("metric_type", "L2"),
            ("params", "{}"),
        ];
        let params = params.map(|(k, v)| (k.to_owned(), v.to_owned()));
        from.create_index(DB, name, "vec", "by_vec", &params)
            .await?;
        from.load(DB, name).await?;
        from.wait_loaded(DB, name, &[], crate::lab::PATIENCE)
            .await?;
        Ok(texts)
    }

    /// Keys that are hard to write in an expression among them.
    fn key(n: usize) -> String {
        let odd = ["", "\"", "\\", "ü\n", "'", " zz"][n % 6];
        format!("k{n:06}{odd}")
    }

    async fn insert(
        &self,
        from: &Client,
        numbers: std::ops::Range<usize>,
        random: &mut StdRng,
    ) -> Result<()> {
        for (i, partition) in self.partitions.iter().enumerate() {
            let mine = numbers.clone().filter(|n| n % self.partitions.len() == i);
            let rows: Vec<Row> = mine
                .map(|n| {
                    let vector = (0..4).map(|_| random.random::<f32>().to_bits()).collect();
                    Row::from([
                        ("id".to_owned(), Field::Str(Self::key(n))),
                        ("of".to_owned(), Field::Int(n as i64 % 50)),
                        ("vec".to_owned(), Field::FloatVector(vector)),
                        (
                            "$meta".to_owned(),
                            Field::Json(format!("{{\"n\":{n}}}").into_bytes()),
                        ),
                    ])
                })
                .collect();
            from.insert(DB, &self.schema, partition, &rows).await?;
        }
        Ok(())
    }

    async fn delete(&self, from: &Client, numbers: &[usize]) -> Result<()> {
        let keys: Vec<Key> = numbers.iter().map(|n| Key::Str(Self::key(*n))).collect();
        let expr = key_expr("id", &keys);
        from.delete(DB, &self.schema.name, "", &expr)
            .await
            .map(drop)
    }
}

/// Lets the source's queue forget everything it holds by now.
async fn forget(from: &Client, nats: &str, names: &[&str]) -> Result<()> {
    for name in names {
        from.flush_and_wait(DB, name, crate::lab::PATIENCE).await?;
    }
    let queue = async_nats::jetstream::new(async_nats::connect(nats).await?);
    let mut streams = queue.stream_names();
    let mut purged = 0;
    while let Some(name) = futures::TryStreamExt::try_next(&mut streams).await? {
        if !name.contains("dml") {
            continue;
        }
        let mut stream = queue.get_stream(&name).await?;
        let last = stream.info().await?.state.last_sequence;
        if last > 0 {
            stream.purge().sequence(last + 1).await?;
            purged += 1;
        }
    }
    ensure!(purged > 0, "the source's queue has no channels");
    Ok(())
}

/// Rows before the task, a queue without them, then writes that aim at what is read, has been, and will be.
async fn copied(lab: &mut Lab, before: usize, per_second: u64, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let mut old = Plain::create(&from, "old", 2).await?;
    while old.keys.len() < before {
        old.insert(&from, "", BATCH.min(before - old.keys.len()), random)
            .await?;
    }
    let texts = Texts::create(&from, "texts", false).await?;
    let keyed = Texts::create(&from, "keyed", true).await?;
    for of in [&texts, &keyed] {
        of.insert(&from, 0..3_000, random).await?;
    }
    // Also rows that are deleted and changed before.
    old.delete(&from, before / 50, random).await?;
    old.upsert(&from, before / 50, 0, random).await?;
    texts.delete(&from, &[1, 2, 3, 500]).await?;
    forget(&from, &lab.source.nats(), &["old", "texts", "keyed"]).await?;
    old.round(&from, random).await?;

    let mut data = some(lab, &["old", "texts", "keyed"]);
    data["initial"] = json!("snapshot");
    data["rows_per_second"] = json!(per_second);
    let began = std::time::Instant::now();
    let task = lab.cdc.create(data).await?;
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let write = async {
        let mut next = 3_000;
        while !enough.load(Ordering::Relaxed) {
            // Anywhere among the keys.
            old.delete(&from, 30, &mut of_rows).await?;
            old.upsert(&from, 30, 5, &mut of_rows).await?;
            old.insert(&from, "", 20, &mut of_rows).await?;
            for of in [&texts, &keyed] {
                of.insert(&from, next..next + 10, &mut of_rows).await?;
                let gone: Vec<usize> = (0..5).map(|_| of_rows.random_range(0..next)).collect();
                of.delete(&from, &gone).await?;
            }
            next += 10;
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let (cdc, progress) = (&mut lab.cdc, &lab.progress);
    let watched = async {
        for kill in 1..=3u64 {
            // In the middle: some of it is there.
            until("a part is copied", async || {
                let Ok(status) = cdc.task(&task).await else {
                    return Ok(false);
                };
                let of = status.collection(DB, "old").cloned().unwrap_or_default();
                let copied = of["detail"]["rows_copied"].as_u64().unwrap_or_default();
                ensure!(
                    of["state"] != "Streaming",
                    "all is copied before the kill {kill}: make it slower"
                );
                Ok(copied >= kill * before as u64 / 5)
            })
            .await?;
            say(&format!("kill -9 number {kill}"));
            cdc.kill9().await?;
            cdc.restart(progress).await?;
        }
        until("all is copied", async || {
            let status = cdc.task(&task).await?;
            Ok(["old", "texts", "keyed"]
                .iter()
                .all(|name| status.states_of(DB, name).last() == Some(&"Streaming")))
        })
        .await?;
        say(&format!(
            "all is copied after {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        tokio::time::sleep(Duration::from_millis(500)).await;
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let outcome = tokio::try_join!(write, watched);
    enough.store(true, Ordering::Relaxed);
    outcome?;
    say(&format!(
        "{} rounds of rows meanwhile",
        rounds.load(Ordering::Relaxed)
    ));
    lab.equal().await.map(drop)
}

async fn to_a_standby_through_three_kills(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::NoTask, random.random()).await?;
    copied(&mut lab, 30_000, 4_000, random).await?;
    lab.tidy().await?;
    lab.end().await
}

async fn two_hundred_thousand_rows_to_a_plain_target_through_three_kills(
    random: &mut StdRng,
) -> Result<()> {
    let mut lab = Lab::start(Kind::Plain, random.random()).await?;
    lab.cdc.delete(&lab.task.clone()).await?;
    copied(&mut lab, 200_000, 12_000, random).await?;
    lab.end().await
}

/// A task that finds the queue without its place while it was stopped.
async fn a_lost_position_is_answered_with_a_copy(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::NoTask, random.random()).await?;
    let from = lab.from.clone();
    let mut c = Plain::create(&from, "lost", 2).await?;
    c.insert(&from, "", 2_000, random).await?;
    let task = lab.cdc.create(some(&lab, &["lost"])).await?;
    lab.wait_state(&task, "lost", "Streaming").await?;
    lab.stop_cdc().await?;
    c.insert(&from, "", 500, random).await?;
    c.delete(&from, 300, random).await?;
    forget(&from, &lab.source.nats(), &["lost"]).await?;
    lab.cdc.restart(&lab.progress).await?;
    lab.wait_state(&task, "lost", "PositionLost").await?;
    c.round(&from, random).await?;
    let answer = json!([{ "name": "lost", "start": "snapshot" }]);
    lab.cdc.answer(&task, answer).await.context("the answer")?;
    lab.wait_state(&task, "lost", "Streaming").await?;
    c.round(&from, random).await?;
    lab.equal_rows(c.keys.len()).await?;
    lab.tidy().await?;
    lab.end().await
}

/// The steps of docs/snapshot.md, by the commands that it names.
async fn the_guide_from_a_2_3_to_milvus_lite(random: &mut StdRng) -> Result<()> {
    let (dir, progress) = (folder()?, progress());
    let source = Spec::source("source", Mq::Natsmq, dir.join("source"));
    let source = Milvus::start(source, &progress).await?;
    let lite = Lite::start(dir.join("lite"), &progress).await?;
    let from = Client::connect("source", &source.uri()).await?;
    let mut all = Vec::new();
    for (name, shards) in [("a", 1), ("b", 2)] {
        let mut c = Plain::create(&from, name, shards).await?;
        c.insert(&from, "", 5_000, random).await?;
        c.delete(&from, 200, random).await?;
        all.push(c);
    }
    forget(&from, &source.nats(), &["a", "b"]).await?;
    let mut cdc = Cdc::start(&source, dir.join("cdc"), &progress).await?;
    let (server, old, new) = (
        format!("http://{}", cdc.address()),
        source.uri(),
        lite.uri(),
    );
    let config = cdc.config_path();
    let config = config.to_str().context("a path of UTF-8")?;
    let run = async |args: &[&str]| -> Result<String> {
        let said = command(args, crate::lab::PATIENCE).await?;
        say(&format!(
            "{args:?}: {:?}\n{}{}",
            said.code, said.stdout, said.stderr
        ));
        ensure!(said.code == Some(0), "{args:?}: {said:?}");
        Ok(said.stdout)
    };
    // 1. Both can be reached.
    run(&["doctor", "--config", config, "--target", &new]).await?;
    // 2. What would be carried.
    let task = json!({
        "target": {"uri": new}, "collections": [{"include": "*.*"}], "initial": "snapshot",
    });
    let (status, plan) = cdc.rest("/api/v1/plan", Some(&task)).await?;
    ensure!(status == 200 && plan["ok"] == true, "{plan}");
    // 3. and 4.
    let create = [
        "task",
        "create",
        "--server",
        &server,
        "--target",
        &new,
        "--id",
        "move",
        "-c",
        "*",
        "--initial",
        "snapshot",
    ];
    run(&create).await?;
    let watch = [
        "task",
        "watch",
        "move",
        "--server",
        &server,
        "--until-streaming",
        "--for",
        "100",
    ];
    run(&watch).await?;
    // 5. Every row, while the old one is written to.
    for c in &mut all {
        c.round(&from, random).await?;
    }
    let verify = [
        "verify",
        "--source",
        &old,
        "--target",
        &new,
        "--likeness",
        "lite",
    ];
    let report = run(&verify).await?;
    ensure!(report.contains("source and target are equal"), "{report}");
    // 6. The writers have stopped: what is written last is there, then the task goes.
    for c in &mut all {
        c.round(&from, random).await?;
    }
    run(&verify).await?;
    run(&["task", "delete", "move", "--server", &server]).await?;
    run(&verify).await?;
    cdc.kill9().await?;
    drop((source, lite));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
