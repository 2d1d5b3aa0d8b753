//! Kafka, as Milvus' producer writes it: partition 0, no key, compressed with zstd, 2 ms of linger.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;

const UNDER_WAY: usize = 16 << 20;
const MESSAGES: usize = 4000;
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Kafka {
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
    under_way: VecDeque<(usize, DeliveryFuture)>,
    bytes: usize,
}

impl Kafka {
    /// # Errors
    /// The settings cannot work.
    pub fn connect(brokers: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("message.max.bytes", "10485760")
            .set("compression.codec", "zstd")
            .set("linger.ms", "2");
        Ok(Self {
            admin: config.create().context("a Kafka client")?,
            producer: config.create().context("a Kafka producer")?,
            under_way: VecDeque::new(),
            bytes: 0,
        })
    }

    pub(super) async fn create(&self, topic: &str) -> Result<()> {
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1))
            .set("max.message.bytes", "10485760");
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE));
        for outcome in self.admin.create_topics([&new], &options).await? {
            outcome.map_err(|(topic, code)| anyhow::anyhow!("make {topic}: {code}"))?;
        }
        Ok(())
    }

    pub(super) async fn write_now(&mut self, topic: &str, payload: &[u8]) -> Result<Vec<u8>> {
        let record: FutureRecord<'_, (), [u8]> =
            FutureRecord::to(topic).partition(0).payload(payload);
        let sent = self.producer.send(record, DEADLINE).await;
        let delivery = sent.map_err(|(error, _)| error).context("write")?;
        Ok(delivery.offset.to_le_bytes().to_vec())
    }

    pub(super) async fn write(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        loop {
            let record: FutureRecord<'_, (), [u8]> =
                FutureRecord::to(topic).partition(0).payload(payload);
            match self.producer.send_result(record) {
                Ok(delivery) => {
                    self.bytes += payload.len();
                    self.under_way.push_back((payload.len(), delivery));
                    return self.drain(UNDER_WAY, MESSAGES).await;
                }
                // Its own queue is full: until one of ours is through.
                Err((error, _))
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
                        && !self.under_way.is_empty() =>
                {
                    let less = self.bytes / 2;
                    self.drain(less, self.under_way.len() / 2).await?;
                }
                Err((error, _)) => return Err(error).context("write"),
            }
        }
    }

    pub(super) async fn settle(&mut self) -> Result<()> {
        self.drain(0, 0).await
    }

    /// May be dropped at its await: the books are right before it.
    async fn drain(&mut self, bytes: usize, messages: usize) -> Result<()> {
        while (self.bytes > bytes || self.under_way.len() > messages)
            && let Some((size, delivery)) = self.under_way.pop_front()
        {
            self.bytes -= size;
            let delivered = tokio::time::timeout(DEADLINE, delivery).await;
            delivered
                .context("a message is not taken")?
                .context("the producer ended")?
                .map_err(|(error, _)| error)
                .context("a message is not taken")?;
        }
        Ok(())
    }
}
