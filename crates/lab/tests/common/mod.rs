//! What the end-to-end tests share: two servers with `milvus-cdc` between them, and a plain collection.
// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cdc_lab::cdc::Cdc;
use cdc_lab::client::{Client, CollectionOptions, Key, Row, Value, key_expr};
use cdc_lab::compare::{Options, Report, compare};
use cdc_lab::progress::Progress;
use cdc_lab::servers::{Milvus, Mq, Spec};
use milvus::proto::common::{ConsistencyLevel, KeyValuePair};
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// What a clean stop of milvus-cdc may take.
pub const STOP: Duration = Duration::from_secs(5);
/// What the target may take to catch up.
pub const PATIENCE: Duration = Duration::from_secs(120);

const DIM: usize = 8;

/// The seed of this run: `CDC_E2E_SEED`, else a new one. It is printed either way.
pub fn seed() -> u64 {
    let seed = std::env::var("CDC_E2E_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(rand::random);
    println!("seed {seed} (again with CDC_E2E_SEED={seed})");
    seed
}

/// A natsmq source, a standby target and milvus-cdc. Dropping it kills them; the folder stays unless [`Lab::finish`].
pub struct Lab {
    pub source: Milvus,
    pub target: Milvus,
    pub cdc: Cdc,
    pub from: Client,
    pub to: Client,
    pub progress: Progress,
    dir: PathBuf,
}

impl Lab {
    pub async fn start() -> Result<Self> {
        let progress = Progress::auto();
        let dir = tempfile::Builder::new()
            .prefix("milvus-cdc-e2e-")
            .tempdir()?
            .keep();
        println!("data and logs: {}", dir.display());
        let (source, target) = tokio::try_join!(
            Milvus::start(
                Spec::source("source", Mq::Natsmq, dir.join("source")),
                &progress
            ),
            Milvus::start(Spec::standby("target", dir.join("target")), &progress),
        )?;
        let cdc = Cdc::start(&source, dir.join("cdc"), &progress).await?;
        let from = Client::connect("source", &source.uri()).await?;
        let to = Client::connect("target", &target.uri()).await?;
        Ok(Self {
            source,
            target,
            cdc,
            from,
            to,
            progress,
            dir,
        })
    }

    /// A cluster-level task that has begun.
    pub async fn task(&self) -> Result<String> {
        let task = self.cdc.create_cluster_task(&self.target.uri()).await?;
        self.running(&task).await?;
        Ok(task)
    }

    pub async fn running(&self, task: &str) -> Result<()> {
        self.cdc
            .wait(task, "the task is running", PATIENCE, |s| {
                s.state() == "Running"
            })
            .await
            .map(drop)
    }

    /// Objects, rows by key and value, and `count(*)` are equal on both sides, and there are rows at all.
    pub async fn assert_equal(&self) -> Result<Report> {
        let options = Options {
            patience: PATIENCE,
            rows: true,
        };
        let report = compare(&self.from, &self.to, options).await?;
        println!("{report}");
        ensure!(report.rows() > 0, "nothing has been compared");
        ensure!(
            report.is_equal(),
            "source and target differ; logs: {}\n{report}",
            self.dir.display()
        );
        Ok(report)
    }

    /// SIGTERM to milvus-cdc, which has to end well in time; then the servers and the folder go.
    pub async fn finish(mut self) -> Result<()> {
        let exit = self.cdc.sigterm(STOP).await?;
        println!("SIGTERM: {exit:?}");
        ensure!(
            exit.code == Some(0) && !exit.forced && exit.took <= STOP,
            "milvus-cdc did not end well: {exit:?}; its log: {}",
            self.cdc.log().display()
        );
        tokio::try_join!(self.source.kill9(), self.target.kill9())?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

/// Polls until `done`.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done().await? {
        if Instant::now() >= end {
            bail!("{what}: not within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A collection of an Int64 key, a number and a vector, with the keys that it has.
pub struct Plain {
    pub schema: CollectionSchema,
    pub keys: Vec<i64>,
    next: i64,
}

pub const DB: &str = "default";

impl Plain {
    /// Creates it on `client`, indexed and loaded.
    pub async fn create(client: &Client, name: &str, shards: i32) -> Result<Self> {
        let mut pk = field("pk", DataType::Int64);
        pk.is_primary_key = true;
        let mut vector = field("vec", DataType::FloatVector);
        vector.type_params = vec![KeyValuePair {
            key: "dim".into(),
            value: DIM.to_string(),
        }];
        let schema = CollectionSchema {
            name: name.to_owned(),
            fields: vec![pk, field("a", DataType::Int64), vector],
            ..Default::default()
        };
        let options = CollectionOptions {
            shards,
            consistency: ConsistencyLevel::Bounded,
            properties: Vec::new(),
            partitions: 0,
        };
        client.create_collection(DB, &schema, &options).await?;
        let params = [
            ("index_type", "FLAT"),
            ("metric_type", "L2"),
            ("params", "{}"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
        client
            .create_index(DB, name, "vec", "by_vec", &params)
            .await?;
        client.load(DB, name).await?;
        client.wait_loaded(DB, name, &[], PATIENCE).await?;
        Ok(Self {
            schema,
            keys: Vec::new(),
            next: 0,
        })
    }

    pub fn name(&self) -> &str {
        &self.schema.name
    }

    /// New keys into `partition` (empty: the default one).
    pub async fn insert(
        &mut self,
        client: &Client,
        partition: &str,
        count: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let new: Vec<i64> = (self.next..).take(count).collect();
        self.next += new.len() as i64;
        let rows: Vec<Row> = new.iter().map(|k| row(*k, random)).collect();
        client.insert(DB, &self.schema, partition, &rows).await?;
        self.keys.extend(new);
        Ok(())
    }

    /// Other values for some of its keys.
    pub async fn upsert(
        &mut self,
        client: &Client,
        count: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let old: Vec<i64> = self.keys.choose_multiple(random, count).copied().collect();
        let rows: Vec<Row> = old.iter().map(|k| row(*k, random)).collect();
        client.upsert(DB, &self.schema, "", &rows).await?;
        Ok(())
    }

    pub async fn delete(
        &mut self,
        client: &Client,
        count: usize,
        random: &mut StdRng,
    ) -> Result<()> {
        let gone: Vec<i64> = self.keys.choose_multiple(random, count).copied().collect();
        let gone: Vec<Key> = gone.into_iter().map(Key::Int).collect();
        client
            .delete(DB, self.name(), "", &key_expr("pk", &gone))
            .await?;
        self.keys.retain(|k| !gone.contains(&Key::Int(*k)));
        Ok(())
    }

    /// One insert, one upsert, one delete.
    pub async fn round(&mut self, client: &Client, random: &mut StdRng) -> Result<()> {
        self.insert(client, "", 20, random).await?;
        self.upsert(client, 10, random).await?;
        self.delete(client, 3, random).await
    }
}

fn field(name: &str, kind: DataType) -> FieldSchema {
    FieldSchema {
        name: name.to_owned(),
        data_type: kind.into(),
        ..Default::default()
    }
}

fn row(key: i64, random: &mut StdRng) -> Row {
    let vector = (0..DIM).map(|_| random.random::<f32>().to_bits()).collect();
    Row::from([
        ("pk".to_owned(), Value::Int(key)),
        (
            "a".to_owned(),
            Value::Int(random.random_range(0..1_000_000)),
        ),
        ("vec".to_owned(), Value::FloatVector(vector)),
    ])
}
