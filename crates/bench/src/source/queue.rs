//! Where the messages go: a real queue. Writes are pipelined, in order, and counted in bytes.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use bytes::Bytes;

/// Bytes that may be under way.
const UNDER_WAY: usize = 16 << 20;
/// Messages that may be under way.
const MESSAGES: usize = 4000;

/// A queue to write to.
pub enum Queue {
    Natsmq(Natsmq),
    #[cfg(feature = "kafka")]
    Kafka(super::kafka::Kafka),
}

/// JetStream, one stream for each channel (`pkg/mq/msgstream/mqwrapper/nmq`).
pub struct Natsmq {
    context: jetstream::Context,
    under_way: VecDeque<(usize, PublishAckFuture)>,
    bytes: usize,
}

impl Queue {
    /// # Errors
    /// It cannot be reached.
    pub async fn natsmq(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await.context("connect to NATS")?;
        let context = jetstream::new(client);
        let under_way = VecDeque::new();
        Ok(Self::Natsmq(Natsmq {
            context,
            under_way,
            bytes: 0,
        }))
    }

    /// # Errors
    /// The settings cannot work.
    #[cfg(feature = "kafka")]
    pub fn kafka(brokers: &str) -> Result<Self> {
        super::kafka::Kafka::connect(brokers).map(Self::Kafka)
    }

    /// Makes a channel.
    ///
    /// # Errors
    /// The queue refuses.
    pub async fn create(&mut self, channel: &str) -> Result<()> {
        match self {
            Self::Natsmq(nats) => {
                let stream = jetstream::stream::Config {
                    name: channel.to_owned(),
                    subjects: vec![channel.to_owned()],
                    max_age: std::time::Duration::from_secs(72 * 3600),
                    ..Default::default()
                };
                nats.context
                    .create_stream(stream)
                    .await
                    .with_context(|| format!("make {channel}"))?;
                Ok(())
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.create(channel).await,
        }
    }

    /// Writes one message and waits; its position as Milvus stores it.
    ///
    /// # Errors
    /// The queue refuses, or something before it failed.
    pub async fn write_now(&mut self, channel: &str, payload: Bytes) -> Result<Vec<u8>> {
        self.settle().await?;
        match self {
            Self::Natsmq(nats) => {
                let ack = nats.context.publish(channel.to_owned(), payload).await?;
                Ok(ack.await?.sequence.to_le_bytes().to_vec())
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.write_now(channel, &payload).await,
        }
    }

    /// Writes one message behind what was written before on this channel.
    ///
    /// # Errors
    /// An earlier one was refused.
    pub async fn write(&mut self, channel: &str, payload: Bytes) -> Result<()> {
        match self {
            Self::Natsmq(nats) => {
                let size = payload.len();
                let ack = nats.context.publish(channel.to_owned(), payload).await?;
                nats.bytes += size;
                nats.under_way.push_back((size, ack));
                nats.drain(UNDER_WAY, MESSAGES).await
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.write(channel, &payload).await,
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// Something was refused.
    pub async fn settle(&mut self) -> Result<()> {
        match self {
            Self::Natsmq(nats) => nats.drain(0, 0).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.settle().await,
        }
    }
}

impl Natsmq {
    /// May be dropped at its await: the books are right before it.
    async fn drain(&mut self, bytes: usize, messages: usize) -> Result<()> {
        while (self.bytes > bytes || self.under_way.len() > messages)
            && let Some((size, ack)) = self.under_way.pop_front()
        {
            self.bytes -= size;
            ack.await.context("a message is not taken")?;
        }
        Ok(())
    }
}
