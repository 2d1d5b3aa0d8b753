//! A Pulsar broker under test, with the rights of its owner. `cdc-lab beside --pulsar` starts one: with one entry in
//! each ledger, so that retention, which deletes whole ledgers, can delete any message.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::position::Position;
use cdc_core::source::contract::ContractHarness;
use cdc_core::source::pulsar::PulsarSource;
use cdc_core::source::{LogSource, PulsarConfig, PulsarTls};
use pulsar::{Producer, ProducerOptions, TokioExecutor};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

pub(crate) struct Broker {
    pub(crate) source: PulsarSource,
    client: pulsar::Pulsar<TokioExecutor>,
    admin: String,
    /// Of its own, so that its topics are nobody else's.
    pub(crate) namespace: String,
    written: Mutex<HashMap<PChannel, Written>>,
}

/// What was written to a channel, and how much of it is deleted.
struct Written {
    producer: Producer<TokioExecutor>,
    all: Vec<Position>,
    deleted: usize,
}

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by cdc-lab beside --pulsar"))
}

impl Broker {
    /// With a namespace of its own.
    pub(crate) async fn new() -> Self {
        let broker = Self::of(format!("cdc-test-{:016x}", rand::random::<u64>())).await;
        let namespace = format!("namespaces/public/{}", broker.namespace);
        broker.ask("PUT", &namespace, None).await;
        broker
    }

    /// With new connections.
    pub(crate) async fn again(&self) -> Self {
        Self::of(self.namespace.clone()).await
    }

    async fn of(namespace: String) -> Self {
        let address = variable("CDC_TEST_PULSAR_URL");
        let client = pulsar::Pulsar::builder(&address, TokioExecutor);
        let config = PulsarConfig {
            address,
            tenant: "public".to_owned(),
            namespace: namespace.clone(),
            auth: None,
            tls: PulsarTls::default(),
            max_message_size: 5 << 20,
            connect_timeout: Duration::from_secs(5),
        };
        Self {
            source: PulsarSource::new(config).unwrap(),
            client: client.build().await.expect("the broker answers"),
            admin: variable("CDC_TEST_PULSAR_ADMIN"),
            namespace,
            written: Mutex::default(),
        }
    }

    pub(crate) fn topic(&self, channel: &PChannel) -> String {
        format!("persistent/public/{}/{channel}", self.namespace)
    }

    /// A call of the admin interface that has to succeed.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {answer}"
        );
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let request = format!(
            "{method} /admin/v2/{path} HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(&self.admin).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer))
            .await
            .expect("the admin interface answers")
            .unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, b)| b);
        (status, body.to_owned())
    }

    pub(crate) async fn subscriptions(&self, channel: &PChannel) -> Vec<String> {
        let path = format!("{}/subscriptions", self.topic(channel));
        let all = self.ask("GET", &path, None).await;
        all.as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    /// Several messages as one entry; its position.
    pub(crate) async fn append_batch(&self, channel: &PChannel, payloads: &[Bytes]) -> Position {
        let options = ProducerOptions {
            batch_size: Some(payloads.len() as u32 + 1),
            ..Default::default()
        };
        let mut producer = self.producer(channel, options).await;
        let mut sent = Vec::new();
        for payload in payloads {
            sent.push(producer.send_non_blocking(payload.to_vec()).await.unwrap());
        }
        producer.send_batch().await.unwrap();
        let mut positions = Vec::new();
        for receipt in sent {
            positions.push(position(receipt.await.unwrap().message_id));
        }
        assert!(
            positions.iter().all(|p| p == &positions[0]),
            "one entry: {positions:?}"
        );
        producer.close().await.unwrap();
        positions[0]
    }

    async fn producer(
        &self,
        channel: &PChannel,
        options: ProducerOptions,
    ) -> Producer<TokioExecutor> {
        self.client
            .producer()
            .with_topic(format!("persistent://public/{}/{channel}", self.namespace))
            .with_options(options)
            .build()
            .await
            .unwrap()
    }
}

fn position(id: Option<pulsar::proto::MessageIdData>) -> Position {
    let id = id.unwrap();
    Position::Pulsar {
        ledger: id.ledger_id,
        entry: id.entry_id,
        batch: 0,
    }
}

#[async_trait]
impl ContractHarness for Broker {
    fn source(&self) -> &dyn LogSource {
        &self.source
    }

    async fn create(&self) -> PChannel {
        let channel = PChannel::new(format!("cdc-test-{:016x}", rand::random::<u64>()));
        let topic = self.topic(&channel);
        self.ask("PUT", &topic, None).await;
        // Holds everything back until it is told to skip.
        let earliest = json!({ "ledgerId": -1, "entryId": -1, "partitionIndex": -1 });
        self.ask("PUT", &format!("{topic}/subscription/keep"), Some(earliest))
            .await;
        let producer = self.producer(&channel, ProducerOptions::default()).await;
        let written = Written {
            producer,
            all: Vec::new(),
            deleted: 0,
        };
        self.written.lock().await.insert(channel.clone(), written);
        channel
    }

    async fn append(&self, channel: &PChannel, payload: Bytes) -> Position {
        let mut written = self.written.lock().await;
        let written = written.get_mut(channel).unwrap();
        let receipt = written
            .producer
            .send_non_blocking(payload.to_vec())
            .await
            .unwrap();
        let position = position(receipt.await.unwrap().message_id);
        written.all.push(position);
        position
    }

    async fn purge_to(&self, channel: &PChannel, position: Position) {
        let mut written = self.written.lock().await;
        let written = written.get_mut(channel).unwrap();
        let upto = 1 + written.all.iter().position(|p| *p == position).unwrap();
        let topic = self.topic(channel);
        let skip = format!("{topic}/subscription/keep/skip/{}", upto - written.deleted);
        self.ask("POST", &skip, None).await;
        written.deleted = upto;
        let Position::Pulsar { ledger, .. } = position else {
            panic!("{position} is not of Pulsar")
        };
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            self.ask("POST", &format!("{topic}/trim"), None).await;
            let stats = self
                .ask("GET", &format!("{topic}/internalStats"), None)
                .await;
            let held: Vec<u64> = stats["ledgers"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|l| l["ledgerId"].as_u64())
                .collect();
            if held.iter().all(|l| *l > ledger) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "{ledger} not deleted: {stats}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
