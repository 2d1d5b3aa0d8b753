//! `milvus-cdc verify --repair`: rows that are lost, doubled, changed or from nowhere on the target are made right, with
//! both kinds of keys, in partitions and with partition keys, while the source stands still and while rows flow.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::command;
use cdc_lab::client::{Client, CollectionOptions, Key, Query, Row, Value, key_expr};
use cdc_lab::sabotage::{Sabotage, spoil};
use cdc_lab::workload::{Plan, Workload};
use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value as Json, json};

use crate::harness::{say, tests};
use crate::lab::{DB, Kind, Lab, PATIENCE, until};
use crate::plain::Plain;

tests![Alone: whatever_is_spoilt_is_made_right];

const LIMIT: Duration = Duration::from_secs(240);
const EQUAL: i32 = 0;
const DIFFERS: i32 = 1;
/// Longer than our own clock can be ahead of the target's last tick.
const SETTLE: Duration = Duration::from_secs(2);
/// The last one takes a row away: it moves no other one's place.
const ROWS: [Sabotage; 4] = [
    Sabotage::Double,
    Sabotage::Change,
    Sabotage::Extra,
    Sabotage::Lose,
];

/// Looks every second; the report and the code.
async fn verify(lab: &Lab, more: &[&str]) -> Result<(Json, i32)> {
    let (source, target) = (lab.source.uri(), lab.target.uri());
    let mut args = vec!["verify", "--source", &source, "--target", &target];
    args.extend(["--settle", "1", "-o", "json"]);
    args.extend(more);
    let said = command(&args, LIMIT).await?;
    say(&format!(
        "{more:?}: {:?}\n{}{}",
        said.code, said.stdout, said.stderr
    ));
    let report = serde_json::from_str(&said.stdout)
        .with_context(|| format!("no JSON: {} {}", said.stdout, said.stderr))?;
    Ok((report, said.code.context("ended by a signal")?))
}

async fn repair(lab: &Lab, more: &[&str]) -> Result<(Json, i32)> {
    let server = format!("http://{}", lab.cdc.address());
    let mut args = vec!["--repair", "--task", &lab.task, "--server", &server];
    args.extend(more);
    verify(lab, &args).await
}

async fn equal(lab: &Lab, what: &str) -> Result<()> {
    until(what, async || Ok(verify(lab, &[]).await?.1 == EQUAL)).await
}

async fn whatever_is_spoilt_is_made_right(random: &mut StdRng) -> Result<()> {
    let mut lab = Lab::start(Kind::Natsmq, random.random()).await?;
    let from = lab.from.clone();
    // Every shape: auto id, partition keys, all types.
    let plan = Plan {
        collections: 6,
        ddl: false,
        // Of rows while a repair is under way; both servers are compared meanwhile.
        rate: 200,
        seed: random.random(),
        ..Plan::default()
    };
    let mut workload = Workload::new(&from, plan, |_, _| {});
    workload.begin().await?;
    // The workload deletes as well: of those with a partition key it may have left none.
    workload
        .go_on(|w| w.done().rows_written() > 1000 && w.rows_by_partition_key() > 0)
        .await?;
    let mut ints = Plain::create(&from, "ints", 2).await?;
    from.create_partition(DB, "ints", "p").await?;
    let texts = Texts::create(&from).await?;
    for partition in ["", "p"] {
        ints.insert(&from, partition, 60, random).await?;
        texts.insert(&from, partition, random).await?;
    }
    equal(&lab, "source and target are equal before").await?;

    refusals(&lab).await?;
    for flow in [false, true] {
        say(&format!("rows flow: {flow}"));
        let spoilt = spoil_all(&lab, &workload.rows(), random).await?;
        is_told_and_not_touched(&lab, &spoilt, flow).await?;
        let enough = AtomicBool::new(!flow);
        let flowing = async {
            let done = workload.go_on(|_| enough.load(Ordering::Relaxed)).await;
            done.map(drop)
        };
        let repairing = async {
            let done = repair(&lab, &["--rounds", "3"]).await;
            enough.store(true, Ordering::Relaxed);
            done
        };
        let ((), (report, code)) = tokio::try_join!(flowing, repairing)?;
        ensure!(code == EQUAL && report["equal"] == true, "{report:#}");
        let told = &report["repair"];
        ensure!(
            told["paused"] == true && told["dry_run"] == false,
            "{told:#}"
        );
        // The workload may have written some of its own anew, or deleted them.
        let mended = sum(told, "replaced") + sum(told, "deleted");
        let at_least = if flow { 2 * ROWS.len() } else { spoilt.len() };
        ensure!(
            mended >= at_least as u64,
            "{mended} of {at_least}: {told:#}"
        );
        if !flow {
            let (report, code) = verify(&lab, &[]).await?;
            ensure!(code == EQUAL, "{report:#}");
        }
        of_the_same_partition(&lab, &spoilt).await?;
    }
    let events = lab
        .cdc
        .get(&format!("/api/v1/tasks/{}/events", lab.task))
        .await?;
    ensure!(events.body.contains("copied anew"), "{}", events.body);

    // A delete goes to the shard that the source reckons with: what was copied to another one would stay.
    let keys = ints.keys.clone();
    ints.erase(&from, "", &keys).await?;
    texts.erase(&from).await?;
    equal(&lab, "what was repaired is deleted").await?;
    let (report, _) = verify(&lab, &["--collections", "ints,texts"]).await?;
    let lines = report["lines"].as_array().context("no lines")?;
    let rows = lines
        .iter()
        .filter(|l| l["object"].as_str().is_some_and(|o| o.starts_with("rows ")));
    for line in rows {
        ensure!(line["source"] == 0 && line["target"] == 0, "{line:#}");
    }
    let dir = lab.dir().to_owned();
    lab.stop_cdc().await?;
    lab.abandon().await;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn sum(told: &Json, what: &str) -> u64 {
    let places = told["places"].as_array().into_iter().flatten();
    places.filter_map(|p| p[what].as_u64()).sum()
}

async fn state(lab: &Lab) -> Result<Json> {
    let path = format!("/api/v1/tasks/{}", lab.task);
    let (_, task) = lab.cdc.rest(&path, None).await?;
    Ok(task["state"].clone())
}

async fn refusals(lab: &Lab) -> Result<()> {
    let (source, target) = (lab.source.uri(), lab.target.uri());
    let server = format!("http://{}", lab.cdc.address());
    let args = ["verify", "--source", &source, "--target", &target];
    let nobody = ["--repair", "--task", "nobody", "--server", &server];
    let said = command(&[&args[..], &nobody].concat(), LIMIT).await?;
    ensure!(
        said.code == Some(5) && said.stderr.contains("nobody"),
        "{said:?}"
    );
    // While it runs no row can be put in its place.
    let described = lab.from.describe(DB, "ints").await?;
    let body = json!({
        "collection_id": described.collection_id.to_string(),
        "read_at": "1",
        "int_keys": ["1"],
    });
    let path = format!("/api/v1/tasks/{}/repair", lab.task);
    let (status, answer) = lab.cdc.rest(&path, Some(&body)).await?;
    ensure!(
        status == 409
            && answer["hint"]
                .as_str()
                .is_some_and(|h| h.contains("pause it first")),
        "{answer:#}"
    );
    // Rows that were read before the task went on are old.
    lab.cdc.pause(&lab.task).await?;
    let (status, answer) = lab.cdc.rest(&path, Some(&body)).await?;
    lab.cdc.resume(&lab.task).await?;
    ensure!(
        status == 409
            && answer["detail"]
                .as_str()
                .is_some_and(|d| d.contains("they may be old")),
        "{answer:#}"
    );
    Ok(())
}

/// Each kind in the collections with both keys, in some partition; one of them in each of the others.
async fn spoil_all(
    lab: &Lab,
    others: &[(String, String, u64)],
    random: &mut StdRng,
) -> Result<Vec<(Sabotage, String)>> {
    // The task has to go on above what is written here meanwhile: it is quiet now.
    lab.cdc.pause(&lab.task).await?;
    tokio::time::sleep(SETTLE).await;
    let mut spoilt = Vec::new();
    for name in ["ints", "texts"] {
        let first = random.random_range(0..40);
        // Each at a row of its own: a row that is changed is not a doubled one any more.
        for (n, what) in ROWS.into_iter().enumerate() {
            let pick = first + 3 * n;
            let is_it = |db: &str, n: &str| db == DB && n == name;
            spoilt.push((what, spoil(&lab.to, what, pick, is_it).await?));
        }
    }
    let mut keyed = 0;
    for (db, name, rows) in others {
        // The workload's own deletes may have left none.
        if *rows == 0 {
            continue;
        }
        let pick = random.random_range(0..40);
        let described = lab.from.describe(db, name).await?;
        let fields = described.schema.unwrap_or_default().fields;
        let what = match fields.iter().any(|f| f.is_partition_key) {
            true => {
                keyed += 1;
                Sabotage::Lose
            }
            false => ROWS[random.random_range(0..ROWS.len())],
        };
        let is_it = |d: &str, n: &str| d == db && n == name;
        let done = spoil(&lab.to, what, pick, is_it).await;
        spoilt.push((
            what,
            done.with_context(|| format!("{what:?} in {db}.{name} of {rows} rows"))?,
        ));
    }
    ensure!(keyed > 0, "none with a partition key has rows");
    for (what, name) in &spoilt {
        say(&format!("{what:?}: {name}"));
    }
    lab.cdc.resume(&lab.task).await?;
    Ok(spoilt)
}

/// A dry run names everything; a second one finds the same.
async fn is_told_and_not_touched(
    lab: &Lab,
    spoilt: &[(Sabotage, String)],
    once: bool,
) -> Result<()> {
    let mut before = Json::Null;
    for _ in 0..if once { 1 } else { 2 } {
        let (report, code) = repair(lab, &["--dry-run", "--rounds", "2"]).await?;
        ensure!(code == DIFFERS, "{report:#}");
        let told = &report["repair"];
        ensure!(
            told["dry_run"] == true && told["paused"] == false,
            "{told:#}"
        );
        let differences = report["differences"].as_array().context("no differences")?;
        let named: BTreeSet<&str> = differences
            .iter()
            .filter_map(|d| d["object"].as_str())
            .collect();
        for (what, name) in spoilt {
            ensure!(
                named.iter().any(|n| n.starts_with(name.as_str())),
                "{what:?} {name} is not in {report:#}"
            );
        }
        ensure!(before.is_null() || before == *told, "{before:#} {told:#}");
        before = told.clone();
    }
    ensure!(sum(&before, "deleted") >= 2, "{before:#}");
    ensure!(state(lab).await? == "running");
    let events = lab
        .cdc
        .get(&format!("/api/v1/tasks/{}/events", lab.task))
        .await?;
    ensure!(
        !events.body.contains("verify --repair") || events.body.contains("copied anew"),
        "{}",
        events.body
    );
    Ok(())
}

/// A query by the partition key looks only into the partition of its value.
async fn of_the_same_partition(lab: &Lab, spoilt: &[(Sabotage, String)]) -> Result<()> {
    for (_, name) in spoilt {
        // `row db.collection key`, where no partition is named.
        let mut words = name.splitn(3, ' ').skip(1);
        let (Some(place), Some(key)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((db, collection)) = place.split_once('.') else {
            continue;
        };
        if place.contains('/') || !name.starts_with("row ") {
            continue;
        }
        let output = ["pk".to_owned(), "tenant".to_owned()];
        let rows = async |client: &Client, expr: &str| {
            let query = Query {
                db,
                collection,
                partitions: &[],
                expr,
                output: &output,
                consistency: ConsistencyLevel::Eventually,
            };
            client.query(&query).await
        };
        let found = rows(&lab.from, &format!("pk in [{key}]")).await?;
        let Some(row) = found.first() else {
            continue;
        };
        let tenant = row.get("tenant").context("no tenant")?.key();
        let tenant = tenant.context("no tenant")?.literal();
        let expr = format!("tenant == {tenant} and pk in [{key}]");
        let found = rows(&lab.to, &expr).await?;
        ensure!(found == [row.clone()], "{name}: {expr}: {found:?}");
        say(&format!("{name}: found by {expr}"));
    }
    Ok(())
}

const TEXTS: &str = "texts";
const EACH: usize = 50;

/// A collection with strings as keys, some of which need quotes.
struct Texts {
    schema: CollectionSchema,
}

impl Texts {
    async fn create(client: &Client) -> Result<Self> {
        let field = |name: &str, kind: DataType, param: (&str, &str)| FieldSchema {
            name: name.to_owned(),
            data_type: kind.into(),
            type_params: vec![KeyValuePair {
                key: param.0.to_owned(),
                value: param.1.to_owned(),
            }],
            ..Default::default()
        };
        let mut pk = field("pk", DataType::VarChar, ("max_length", "100"));
        pk.is_primary_key = true;
        let schema = CollectionSchema {
            name: TEXTS.to_owned(),
            enable_dynamic_field: true,
            fields: vec![pk, field("vec", DataType::FloatVector, ("dim", "8"))],
            ..Default::default()
        };
        let options = CollectionOptions {
            shards: 2,
            consistency: ConsistencyLevel::Bounded,
            properties: Vec::new(),
            partitions: 0,
        };
        client.create_collection(DB, &schema, &options).await?;
        client.create_partition(DB, TEXTS, "p").await?;
        let params = [
            ("index_type", "FLAT"),
            ("metric_type", "L2"),
            ("params", "{}"),
        ];
        let params = params.map(|(k, v)| (k.to_owned(), v.to_owned()));
        client
            .create_index(DB, TEXTS, "vec", "by_vec", &params)
            .await?;
        client.load(DB, TEXTS).await?;
        client.wait_loaded(DB, TEXTS, &[], PATIENCE).await?;
        Ok(Self { schema })
    }

    fn key(partition: &str, n: usize) -> String {
        format!("key \"{partition}\" {n:03} ü")
    }

    async fn insert(&self, client: &Client, partition: &str, random: &mut StdRng) -> Result<()> {
        let rows: Vec<Row> = (0..EACH)
            .map(|n| {
                let vector = (0..8).map(|_| random.random::<f32>().to_bits()).collect();
                Row::from([
                    ("pk".to_owned(), Value::Str(Self::key(partition, n))),
                    ("vec".to_owned(), Value::FloatVector(vector)),
                    (
                        "$meta".to_owned(),
                        Value::Json(format!("{{\"n\":{n}}}").into_bytes()),
                    ),
                ])
            })
            .collect();
        client
            .insert(DB, &self.schema, partition, &rows)
            .await
            .map(drop)
    }

    async fn erase(&self, client: &Client) -> Result<()> {
        let keys: Vec<Key> = ["", "p"]
            .into_iter()
            .flat_map(|p| (0..EACH).map(move |n| Key::Str(Self::key(p, n))))
            .collect();
        client
            .delete(DB, TEXTS, "", &key_expr("pk", &keys))
            .await
            .map(drop)
    }
}
