//! One consumer on a broker: exclusive, of a subscription of its own that is not durable and goes with it.

use std::sync::Arc;
use std::time::Duration;

use pulsar::proto::base_command::Type;
use pulsar::proto::command_subscribe::SubType;
use pulsar::proto::{
    BaseCommand, CommandCloseConsumer, CommandConsumerStats, CommandFlow, CommandGetLastMessageId,
    CommandSubscribe, MessageIdData,
};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Connection, Failure};
use super::inbox::{End, Inbox};
use super::link::Link;
use super::wire;
use crate::ids::PChannel;
use crate::position::Position;
use crate::source::{Bounds, SourceError};

/// Messages the broker may send ahead at most, however small they are.
const PERMITS: usize = 1000;
/// How Pulsar writes "before the first" and "behind the last": -1, and the largest i64.
pub(super) const EARLIEST: (u64, u64) = (u64::MAX, u64::MAX);
const NO_ENTRY: u64 = u64::MAX;
/// Between two questions for the last message.
const AGAIN: Duration = Duration::from_millis(100);

/// A consumer. Dropping it closes it on the broker, and its subscription with it.
pub(super) struct Session {
    connection: Arc<Connection>,
    consumer: u64,
    patience: Duration,
    pub(super) inbox: Arc<Inbox>,
    /// Whether the entry that it had to begin with has come; nothing is missing before what it delivers then.
    pub(super) begun: bool,
}

impl Session {
    /// Makes a consumer that begins at this ledger and entry, inclusive.
    pub(super) async fn make(
        link: &Link,
        channel: &PChannel,
        start: (u64, u64),
    ) -> Result<Self, SourceError> {
        let failed = |failure| link.error(Some(channel), failure);
        let topic = link.topic(channel);
        let connection = link.of(&topic).await.map_err(failed)?;
        let consumer = connection.id();
        let inbox = Arc::new(Inbox::new());
        connection.add_consumer(consumer, inbox.clone());
        // Made first, so that a dropped future closes what the broker may have made already.
        let session = Self {
            connection,
            consumer,
            patience: link.long(),
            inbox,
            begun: start == EARLIEST,
        };
        let request_id = session.connection.id();
        let name = format!("milvus-cdc-{:016x}", rand::random::<u64>());
        let subscribe = BaseCommand {
            subscribe: Some(CommandSubscribe {
                topic,
                subscription: name.clone(),
                sub_type: SubType::Exclusive as i32,
                consumer_id: consumer,
                request_id,
                consumer_name: Some(name),
                durable: Some(false),
                start_message_id: Some(MessageIdData {
                    ledger_id: start.0,
                    entry_id: start.1,
                    ..Default::default()
                }),
                read_compacted: Some(false),
                // Else the broker would make the topic because we want to read it.
                force_topic_creation: Some(false),
                ..Default::default()
            }),
            ..wire::command(Type::Subscribe)
        };
        session
            .connection
            .request(request_id, &subscribe, session.patience)
            .await
            .map_err(failed)?;
        Ok(session)
    }

    /// Entries from where it began to the end of the topic; it acknowledges none.
    pub(super) async fn entries(&self) -> Result<u64, Failure> {
        let request_id = self.connection.id();
        let ask = BaseCommand {
            consumer_stats: Some(CommandConsumerStats {
                request_id,
                consumer_id: self.consumer,
            }),
            ..wire::command(Type::ConsumerStats)
        };
        let answer = self
            .connection
            .request(request_id, &ask, self.patience)
            .await?;
        match answer.consumer_stats_response {
            Some(stats) if stats.error_code.is_some() => {
                let cause = stats.error_message.clone().unwrap_or_default();
                Err(Failure::Refused(stats.error_code(), cause))
            }
            Some(stats) => Ok(stats.msg_backlog.unwrap_or(0)),
            None => Err(Failure::Away("no answer about the reader".to_owned())),
        }
    }

    /// The last message of the topic; `None` if the broker does not know it: a topic that was just loaded knows only
    /// what was written since.
    async fn last(&self) -> Result<Option<Position>, Failure> {
        let request_id = self.connection.id();
        let ask = BaseCommand {
            get_last_message_id: Some(CommandGetLastMessageId {
                consumer_id: self.consumer,
                request_id,
            }),
            ..wire::command(Type::GetLastMessageId)
        };
        let answer = self
            .connection
            .request(request_id, &ask, self.patience)
            .await?;
        let id = answer
            .get_last_message_id_response
            .map(|a| a.last_message_id)
            .ok_or_else(|| Failure::Away("no answer about the last message".to_owned()))?;
        if id.ledger_id == NO_ENTRY || id.entry_id == NO_ENTRY {
            return Ok(None);
        }
        Ok(Some(Position::Pulsar {
            ledger: id.ledger_id,
            entry: id.entry_id,
            batch: id.batch_index.unwrap_or(0).max(0),
        }))
    }

    /// Allows the broker to send what has room in `limit` bytes, at about `each` bytes a message.
    pub(super) fn allow(&self, limit: usize, each: usize) {
        let Some(permits) = self.inbox.allow(limit, each, PERMITS) else {
            return;
        };
        let flow = BaseCommand {
            flow: Some(CommandFlow {
                consumer_id: self.consumer,
                message_permits: permits,
            }),
            ..wire::command(Type::Flow)
        };
        // They are counted as given: without them this consumer would wait for ever.
        if !self.connection.try_send(&flow) {
            self.inbox.close(self.connection.cause());
        }
    }

    /// Waits until something has come, or nothing will.
    pub(super) async fn changed(&self) {
        tokio::select! {
            () = self.inbox.changed() => {}
            () = self.connection.died() => self.inbox.close(self.connection.cause()),
        }
    }

    /// Ledger and entry of the first entry, which stays where it is. `None` if none has come in time.
    pub(super) async fn first(&self) -> Result<Option<(u64, u64)>, Failure> {
        self.allow(0, 1);
        let wait = async {
            loop {
                if let Some(first) = self.inbox.first() {
                    return Ok(Some(first));
                }
                let cause = match self.inbox.ended() {
                    None => {
                        self.changed().await;
                        continue;
                    }
                    Some(End::Closed(cause)) => cause,
                    Some(End::Overflow(_)) => "more came than was asked for".to_owned(),
                };
                return Err(Failure::Away(cause));
            }
        };
        timeout(self.patience, wait).await.unwrap_or(Ok(None))
    }

    pub(super) fn ended(&self) -> Option<End> {
        self.inbox.ended()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.remove_consumer(self.consumer);
        if self.connection.is_dead() {
            return;
        }
        let close = BaseCommand {
            close_consumer: Some(CommandCloseConsumer {
                consumer_id: self.consumer,
                request_id: self.connection.id(),
            }),
            ..wire::command(Type::CloseConsumer)
        };
        if self.connection.try_send(&close) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let connection = self.connection.clone();
            // Ends within the connect timeout.
            runtime.spawn(async move {
                let _ = connection.send(&close).await;
            });
        }
    }
}

/// What the topic holds now; `None` if nothing.
pub(super) async fn bounds(link: &Link, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
    let failed = |failure| link.error(Some(channel), failure);
    let session = Session::make(link, channel, EARLIEST).await?;
    if session.entries().await.map_err(failed)? == 0 {
        return Ok(None);
    }
    let first = session.first().await.map_err(failed)?;
    let end = Instant::now() + session.patience;
    loop {
        if let (Some((ledger, entry)), Some(last)) = (first, session.last().await.map_err(failed)?)
        {
            let first = Position::Pulsar {
                ledger,
                entry,
                batch: 0,
            };
            // The first one may have been written after the last one was asked for.
            return Ok(Some(Bounds {
                first,
                last: last.max(first),
            }));
        }
        // Retention may have been quicker.
        if session.entries().await.map_err(failed)? == 0 {
            return Ok(None);
        }
        if first.is_none() || Instant::now() >= end {
            return Err(link.unreachable(format!(
                "{channel}: the broker does not tell what it holds; has it loaded the topic, and nothing been written since?"
            )));
        }
        // Milvus writes several ticks a second.
        sleep(AGAIN).await;
    }
}
