//! The source and its readers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use tokio::time::timeout;

use super::KafkaConfig;
use super::client::{Held, Lease, Pool};
use crate::ids::PChannel;
use crate::position::{Position, QueueKind};
use crate::source::{Bounds, LogReader, LogSource, RawMessage, SourceError, Start};

/// After so long without a message the reader looks whether the topic still holds what comes next.
const SILENCE: Duration = Duration::from_secs(30);

/// The message queue of a Milvus with `mq.type: kafka`.
pub struct KafkaSource {
    pool: Arc<Pool>,
}

impl KafkaSource {
    /// Starts to connect and returns at once; goes on trying for ever, also after a break. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the settings cannot work: an address that is none, a certificate that cannot be
    /// read.
    pub fn connect(config: &KafkaConfig) -> Result<Self, SourceError> {
        if !config.has_brokers() {
            return Err(SourceError::Configuration {
                address: config.brokers.clone(),
                cause: "this is no address of a broker".to_owned(),
                hint: "the address has the form host:port; several with commas between".to_owned(),
            });
        }
        let pool = Arc::new(Pool::new(config)?);
        Ok(Self { pool })
    }
}

fn bounds_of(held: Held) -> Option<Bounds> {
    (held.first < held.end).then_some(Bounds {
        first: Position::Kafka(held.first),
        last: Position::Kafka(held.end - 1),
    })
}

fn lost(channel: &PChannel, wanted: i64, held: Held) -> SourceError {
    let bounds = bounds_of(held);
    SourceError::PositionLost {
        channel: channel.clone(),
        wanted: Position::Kafka(wanted),
        first: bounds.map(|b| b.first),
        last: bounds.map(|b| b.last),
    }
}

/// Whether a reader that wants `next` finds it, or finds nothing because it is still to be written.
fn holds(held: Held, next: i64) -> bool {
    (held.first..=held.end).contains(&next)
}

#[async_trait]
impl LogSource for KafkaSource {
    fn kind(&self) -> QueueKind {
        QueueKind::Kafka
    }

    async fn ping(&self) -> Result<(), SourceError> {
        self.pool.ping().await
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        Ok(bounds_of(self.pool.held(channel).await?))
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        let held = self.pool.held(channel).await?;
        let offset = |p: Position| match p {
            Position::Kafka(offset) => Ok(offset),
            other => Err(SourceError::Configuration {
                address: self.pool.address.clone(),
                cause: format!("{other} is a position of {}, not of kafka", other.kind()),
                hint: "give a position of the source's own queue".to_owned(),
            }),
        };
        let next = match start {
            Start::At(p) => {
                let wanted = offset(p)?;
                if wanted >= held.end {
                    return Err(lost(channel, wanted, held));
                }
                wanted
            }
            Start::After(p) => offset(p)?.saturating_add(1),
            Start::Earliest => held.first,
            Start::Latest => held.end,
        };
        if !holds(held, next) {
            return Err(lost(channel, next, held));
        }
        Ok(Box::new(KafkaReader {
            pool: self.pool.clone(),
            channel: channel.clone(),
            next,
            beyond: None,
            ahead: None,
            lease: None,
        }))
    }
}

struct KafkaReader {
    pool: Arc<Pool>,
    channel: PChannel,
    /// The offset to deliver next, or the first that is there behind it.
    next: i64,
    /// What an assignment at `next` began with instead.
    beyond: Option<i64>,
    /// A message the bound had no room for.
    ahead: Option<RawMessage>,
    /// Made by the first `next`: the reader this one follows on the same channel may still be there.
    lease: Option<Lease>,
}

enum Got {
    Message(RawMessage),
    /// Before what is wanted.
    Nothing,
    /// Not what comes next.
    Gap,
}

fn owned(message: &BorrowedMessage<'_>) -> RawMessage {
    RawMessage {
        position: Position::Kafka(message.offset()),
        payload: message
            .payload()
            .map_or_else(Bytes::new, Bytes::copy_from_slice),
    }
}

impl KafkaReader {
    /// Looks whether the topic holds what comes next.
    async fn check(&self) -> Result<(), SourceError> {
        let held = self.pool.held(&self.channel).await?;
        if holds(held, self.next) {
            Ok(())
        } else {
            Err(lost(&self.channel, self.next, held))
        }
    }

    fn take(&mut self, message: RawMessage) -> Got {
        let Position::Kafka(offset) = message.position else {
            return Got::Nothing;
        };
        if offset < self.next {
            return Got::Nothing;
        }
        if offset != self.next && self.beyond != Some(offset) {
            self.beyond = Some(offset);
            return Got::Gap;
        }
        Got::Message(message)
    }

    fn accept(&mut self, message: RawMessage, batch: &mut Vec<RawMessage>) {
        if let Position::Kafka(offset) = message.position {
            self.next = offset + 1;
        }
        self.beyond = None;
        batch.push(message);
    }

    /// Adds what has arrived already, as far as it fits. Does not wait.
    fn drain(&mut self, max_bytes: usize, batch: &mut Vec<RawMessage>) {
        let mut bytes: usize = batch.iter().map(|m| m.payload.len()).sum();
        while bytes < max_bytes {
            let Some(queue) = self.lease.as_ref().and_then(|l| l.queue.as_ref()) else {
                return;
            };
            // The scheduler's budget has no say in what is here already.
            let arrived = tokio::task::unconstrained(queue.recv()).now_or_never();
            let message = match arrived {
                None => return,
                Some(Ok(message)) => owned(&message),
                // Found again by the next call, with nothing of this batch at stake.
                Some(Err(_)) => {
                    self.lease = None;
                    return;
                }
            };
            match self.take(message) {
                Got::Message(message) => {
                    bytes += message.payload.len();
                    if bytes > max_bytes {
                        self.ahead = Some(message);
                        return;
                    }
                    self.accept(message, batch);
                }
                Got::Nothing => {}
                Got::Gap => {
                    self.lease = None;
                    return;
                }
            }
        }
    }

    /// An error that the channel's queue delivered.
    async fn broken(&mut self, error: &KafkaError) -> Result<(), SourceError> {
        self.lease = None;
        if error.rdkafka_error_code() == Some(Code::LogTruncation) {
            let held = self.pool.held(&self.channel).await?;
            return Err(lost(&self.channel, self.next, held));
        }
        self.check().await
    }
}

#[async_trait]
impl LogReader for KafkaReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        let mut batch = Vec::new();
        if let Some(message) = self.ahead.take() {
            self.accept(message, &mut batch);
            self.drain(max_bytes, &mut batch);
            return Ok(batch);
        }
        let mut broke = false;
        loop {
            let Some(lease) = &mut self.lease else {
                self.check().await?;
                self.lease = Some(self.pool.assign(&self.channel, self.next)?);
                continue;
            };
            let Some(queue) = &lease.queue else {
                self.lease = None;
                return Err(self.pool.unreachable("the client gave no queue"));
            };
            let arrived = tokio::select! {
                biased;
                arrived = timeout(SILENCE, queue.recv()) => arrived.ok().map(|m| m.map(|m| owned(&m))),
                _ = lease.trouble.changed() => None,
            };
            match arrived {
                None => {
                    self.check().await?;
                    // Trouble that may be an old certificate's.
                    if self
                        .lease
                        .as_ref()
                        .is_some_and(|l| self.pool.is_outdated(l))
                    {
                        self.lease = None;
                    }
                }
                Some(Ok(message)) => match self.take(message) {
                    Got::Message(message) => {
                        self.accept(message, &mut batch);
                        self.drain(max_bytes, &mut batch);
                        return Ok(batch);
                    }
                    Got::Nothing => {}
                    Got::Gap => self.lease = None,
                },
                Some(Err(error)) => {
                    self.broken(&error).await?;
                    // Once may be what the look has put right.
                    if broke {
                        return Err(self.pool.channel_error(&self.channel, &error));
                    }
                    broke = true;
                }
            }
        }
    }
}
