//! How long after the source's ack a row can be queried on the target.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use milvus::proto::common::ConsistencyLevel;
use milvus::proto::schema::{CollectionSchema, DataType, FieldSchema};
use rand::Rng;

use crate::client::{Client, CollectionOptions, Query, Row, Value};

const DB: &str = "default";
const NAME: &str = "latency";
/// Of the source, `proxy.timeTickInterval`.
const TICK_INTERVAL: Duration = Duration::from_millis(200);
/// A row that is not there after this is not coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measured times, sorted.
#[derive(Debug, Clone)]
pub struct Latency {
    sorted: Vec<Duration>,
}

impl Latency {
    /// The time within which `percent` of the rows (0 to 100) were there.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }
}

/// When rows could be queried, on both servers.
#[derive(Debug, Clone)]
pub struct Visibility {
    pub source: Latency,
    pub target: Latency,
}

/// Creates the collection `default.latency` on the source, waits until the target has it loaded, and inserts `rows`
/// rows one by one, each at a random moment of the source's tick interval (0.2 s) after the one before was seen: by a
/// query of its key at Eventually, on the source and on the target.
///
/// # Errors
/// The source refuses a call, or something does not arrive within a minute.
pub async fn visibility(source: &Client, target: &Client, rows: usize) -> Result<Visibility> {
    let field = |name: &str, kind: DataType| FieldSchema {
        name: name.to_owned(),
        data_type: kind.into(),
        ..Default::default()
    };
    let mut pk = field("pk", DataType::Int64);
    pk.is_primary_key = true;
    let mut vector = field("vec", DataType::FloatVector);
    vector.type_params = vec![milvus::proto::common::KeyValuePair {
        key: "dim".to_owned(),
        value: "8".to_owned(),
    }];
    let schema = CollectionSchema {
        name: NAME.to_owned(),
        fields: vec![pk, vector],
        ..Default::default()
    };
    let options = CollectionOptions {
        shards: 1,
        consistency: ConsistencyLevel::Strong,
        properties: Vec::new(),
        partitions: 0,
    };
    source.create_collection(DB, &schema, &options).await?;
    let params = [
        ("index_type", "FLAT"),
        ("metric_type", "L2"),
        ("params", "{}"),
    ];
    let params = params.map(|(k, v)| (k.to_owned(), v.to_owned()));
    source
        .create_index(DB, NAME, "vec", "by_vec", &params)
        .await?;
    source.load(DB, NAME).await?;
    source.wait_loaded(DB, NAME, &[], PATIENCE).await?;
    let end = Instant::now() + PATIENCE;
    while target.wait_loaded(DB, NAME, &[], PATIENCE).await.is_err() {
        if Instant::now() >= end {
            bail!("{DB}.{NAME} is not loaded on the target after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let mut times = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for n in 0..rows {
        let key = i64::try_from(n)?;
        let row = Row::from([
            ("pk".to_owned(), Value::Int(key)),
            (
                "vec".to_owned(),
                Value::FloatVector(vec![(n as f32).to_bits(); 8]),
            ),
        ]);
        // The last row was seen at a tick: without a pause each one would be written right behind a tick.
        let pause = rand::rng().random_range(0..TICK_INTERVAL.as_millis() as u64);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        source.insert(DB, &schema, "", &[row]).await?;
        let acked = Instant::now();
        let (here, there) = tokio::try_join!(seen(source, key, acked), seen(target, key, acked))?;
        times.0.push(here);
        times.1.push(there);
    }
    let sorted = |mut times: Vec<Duration>| {
        times.sort();
        Latency { sorted: times }
    };
    Ok(Visibility {
        source: sorted(times.0),
        target: sorted(times.1),
    })
}

/// Until a query at Eventually finds the key.
async fn seen(server: &Client, key: i64, since: Instant) -> Result<Duration> {
    let (expr, output) = (format!("pk == {key}"), ["pk".to_owned()]);
    let query = Query {
        db: DB,
        collection: NAME,
        partitions: &[],
        expr: &expr,
        output: &output,
        consistency: ConsistencyLevel::Eventually,
    };
    while server.query(&query).await?.is_empty() {
        if since.elapsed() > PATIENCE {
            bail!(
                "the row {key} of {DB}.{NAME} is not on the {} {PATIENCE:?} after the source's ack",
                server.name()
            );
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(since.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred() {
        let sorted = (1..=100).map(Duration::from_millis).collect();
        let latency = Latency { sorted };
        assert_eq!(latency.percentile(50), Duration::from_millis(50));
        assert_eq!(latency.percentile(99), Duration::from_millis(99));
        assert_eq!(
            Latency { sorted: Vec::new() }.percentile(50),
            Duration::ZERO
        );
    }
}
