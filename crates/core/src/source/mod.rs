//! The ordered raw messages of one physical channel of the source.
//!
//! [`LogSource`] is the seam to the message queue. Its contract, kept by every backend and by the in-memory twin, and
//! checked by one suite:
//!
//! 1. *Inclusive.* A reader opened at a position delivers the message at that position first.
//! 2. *Ordered, complete.* Messages come in the order of their positions, each once, none left out.
//! 3. *Never a silent gap.* If the queue no longer holds what would have to come next, the reader says
//!    [`SourceError::PositionLost`], at open **and while reading**: retention can overtake a slow reader. Ids may have
//!    gaps that are none (RocksMQ); those are not reported.
//! 4. *Bounded.* One batch holds at most `max_bytes` of payload, or exactly one message that is larger. Nothing is
//!    fetched ahead without being counted by the same bound.
//! 5. *Cancel safe.* Dropping the future of [`LogReader::next`] loses nothing: the next call goes on where the last
//!    delivered batch ended. Dropping a reader releases what it holds on the server.
//! 6. *Read only.* A reader leaves nothing behind on the source that changes what others see: no group offsets, no
//!    acknowledgements, no durable consumers.

#[cfg(any(test, feature = "testkit"))]
pub mod contract;
pub mod kafka;
#[cfg(any(test, feature = "testkit"))]
pub mod memory;
#[cfg(feature = "natsmq")]
pub mod natsmq;
mod open;
#[cfg(feature = "pulsar")]
pub mod pulsar;
pub mod reach;
#[cfg(feature = "rocksmq")]
pub mod rocksmq;
#[cfg(feature = "testkit")]
pub mod rules;

pub use open::{PulsarAuth, PulsarConfig, PulsarLogin, PulsarTls, QueueConfig, open_source};

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{ErrorClass, Problem, ProblemCode};
use crate::ids::PChannel;
use crate::position::{Position, QueueKind};

/// Where to open a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At this message, inclusive. It has to be there still.
    At(Position),
    /// Behind this message, which need not be there any more, but nothing behind it may be missing.
    After(Position),
    /// At the first message the queue holds.
    Earliest,
    /// Behind the last message the queue holds now.
    Latest,
}

/// One message as the queue holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawMessage {
    pub position: Position,
    pub payload: Bytes,
}

/// The first and the last message a channel holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    pub first: Position,
    pub last: Position,
}

#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SourceError {
    /// The queue no longer holds the message that would have to come next. `first` and `last` are what it holds now;
    /// `None` if it holds nothing.
    #[error("{channel}: position {wanted} is no longer in the queue, which holds {}", range(.first, .last))]
    PositionLost {
        channel: PChannel,
        wanted: Position,
        first: Option<Position>,
        last: Option<Position>,
    },
    /// The channel does not exist (yet).
    #[error("{channel}: no such channel in the queue at {address}")]
    NoSuchChannel { channel: PChannel, address: String },
    /// The queue does not answer, or broke off.
    #[error("message queue at {address}: {cause}")]
    Unreachable { address: String, cause: String },
    /// The queue answers, and does not let us in or permit what is needed.
    #[error("message queue at {address}: {cause}")]
    Login { address: String, cause: String },
    /// The settings cannot work with this queue.
    #[error("message queue at {address}: {cause}")]
    Configuration {
        address: String,
        cause: String,
        hint: String,
    },
}

fn range(first: &Option<Position>, last: &Option<Position>) -> String {
    match (first, last) {
        (Some(first), Some(last)) => format!("{first} to {last}"),
        _ => "nothing".to_owned(),
    }
}

impl SourceError {
    pub fn problem(&self) -> Problem {
        let (class, hint) = match self {
            SourceError::PositionLost { .. } => (
                ErrorClass::Conflict,
                "what lies between is only in the source's storage; choose where to go on: earliest, now, or a position".to_owned(),
            ),
            SourceError::NoSuchChannel { .. } => (
                ErrorClass::Transient,
                "check that sourceConfig names the queue of the same Milvus as sourceConfig.etcd".to_owned(),
            ),
            SourceError::Unreachable { .. } => (
                ErrorClass::Transient,
                "check that the source's queue is up and that its address in sourceConfig is right; tried again by itself".to_owned(),
            ),
            SourceError::Login { .. } => (
                ErrorClass::Configuration,
                "check the login of the queue in sourceConfig, and that it may read and describe the topics of Milvus".to_owned(),
            ),
            SourceError::Configuration { hint, .. } => (ErrorClass::Configuration, hint.clone()),
        };
        let problem = Problem::new(class, self.to_string(), hint);
        match self {
            SourceError::Login { .. } => problem.with_code(ProblemCode::Login),
            _ => problem,
        }
    }
}

/// A message queue of a source Milvus.
#[async_trait]
pub trait LogSource: Send + Sync {
    fn kind(&self) -> QueueKind;

    /// Asks the queue for a sign of life, within a deadline of the backend's own.
    async fn ping(&self) -> Result<(), SourceError>;

    /// What the channel holds now; `None` if it is empty.
    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError>;

    /// How long the channel keeps a message, by the queue's own settings; `None` if the queue does not say, or keeps it
    /// for ever. A limit of bytes can delete it earlier.
    async fn retention(&self, _channel: &PChannel) -> Result<Option<Duration>, SourceError> {
        Ok(None)
    }

    /// Opens a reader. Whether the start is still held is checked here, and again with the first message.
    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError>;
}

/// A reader of one channel. See the module's contract.
#[async_trait]
pub trait LogReader: Send {
    /// Waits for the next messages: at least one, at most `max_bytes` of payload unless the first alone is larger.
    /// Waits for ever on a silent channel; cancelled by dropping the future.
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError>;
}
