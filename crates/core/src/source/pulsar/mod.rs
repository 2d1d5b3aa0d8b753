//! Pulsar. One topic per physical channel, without partitions: `persistent://{tenant}/{namespace}/{channel}`; the
//! position is ledger, entry and the index in the entry (`pkg/mq/msgstream/mqwrapper/pulsar`).
//!
//! A reader is an exclusive consumer of a subscription that is not durable: it has no cursor on disk, acknowledges
//! nothing, holds back no retention, and goes with its connection. The broker is asked not to make a topic for it.
//!
//! The client library gives the wire types only. Its consumer cannot keep the contract of [`super`]: between its
//! connection and its consumers are queues without a bound, it asks for messages by number and not by room, and it
//! does not tell where it goes on after a break. Here each consumer has an inbox with a bound in bytes. Pulsar counts
//! messages and not bytes, so what the bound has no room for is thrown away, and asked for again by a new consumer.
//!
//! Which messages are missing cannot be seen from ids: entries are numbered within their ledger, and a ledger does not
//! say which one came before it. But retention deletes whole ledgers, from the front. So a reader begins at a message
//! that has to be there still, and whenever a message of another ledger follows, the ledger before has to be held even
//! then; if it is not, something may be missing and the position is lost. Where a source keeps no messages beyond what
//! its own consumers have acknowledged (no retention in the namespace), that may be said although nothing is missing.

mod connection;
mod inbox;
mod link;
mod pool;
mod reader;
mod session;
mod stream;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;

use self::link::Link;
use self::reader::{Id, Next, PulsarReader};
use super::open::PulsarConfig;
use super::{Bounds, LogReader, LogSource, SourceError, Start};
use crate::ids::PChannel;
use crate::position::{Position, QueueKind};

/// Tries to find the first message of a topic before retention takes it.
const TRIES: usize = 5;

/// The message queue of a Milvus with `mq.type: pulsar`.
pub struct PulsarSource {
    link: Arc<Link>,
}

impl PulsarSource {
    /// Connects when it is first needed.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the address is none.
    pub fn new(config: PulsarConfig) -> Result<Self, SourceError> {
        Ok(Self {
            link: Arc::new(Link::new(config)?),
        })
    }

    fn id(&self, position: Position) -> Result<Id, SourceError> {
        match position {
            Position::Pulsar {
                ledger,
                entry,
                batch,
            } => Ok(Id {
                ledger,
                entry,
                batch,
            }),
            other => Err(SourceError::Configuration {
                address: self.link.config.address.clone(),
                cause: format!("{other} is a position of {}, not of pulsar", other.kind()),
                hint: "give a position of the source's own queue".to_owned(),
            }),
        }
    }

    async fn first_or_last(&self, channel: &PChannel, last: bool) -> Result<Next, SourceError> {
        Ok(match self.bounds(channel).await? {
            None => Next::First,
            Some(held) if last => Next::Behind(self.id(held.last)?),
            Some(held) => Next::At(self.id(held.first)?),
        })
    }
}

#[async_trait]
impl LogSource for PulsarSource {
    fn kind(&self) -> QueueKind {
        QueueKind::Pulsar
    }

    async fn ping(&self) -> Result<(), SourceError> {
        let alive = async { self.link.base().await?.ping().await };
        alive
            .await
            .map_err(|failure| self.link.error(None, failure))
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        session::bounds(&self.link, channel).await
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        for tries in 1.. {
            let next = match start {
                Start::At(p) => Next::At(self.id(p)?),
                Start::After(p) => Next::Behind(self.id(p)?),
                Start::Earliest => self.first_or_last(channel, false).await?,
                Start::Latest => self.first_or_last(channel, true).await?,
            };
            let mut reader = PulsarReader::new(self.link.clone(), channel.clone(), next);
            match reader.begin().await {
                Ok(()) => return Ok(Box::new(reader)),
                // Gone between the two questions.
                Err(SourceError::PositionLost { .. })
                    if tries < TRIES && matches!(start, Start::Earliest | Start::Latest) => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.link.unreachable("not opened"))
    }
}
