//! natsmq: the JetStream server embedded in Milvus 2.3 to 2.5. One stream per physical channel; stream, subject and
//! channel have one name (`pkg/mq/msgstream/mqwrapper/nmq`); the position is the stream sequence.
//!
//! A reader is an ephemeral pull consumer without acknowledgements. Its pull requests are written here rather than by
//! the client library, because the contract of [`super`] needs what that hides: one request is open at a time and
//! carries the caller's bound in bytes, and it outlives a dropped `next`. What they bring comes over a connection of the
//! reader's own ([`wire`]); everything else is the client library's.
//!
//! Sequences of a stream have no gaps and retention deletes from the front only. So a sequence that is not the next one
//! is a lost position, and whenever a consumer is made, and each time a request expired, the bounds of the stream and
//! its time of creation are checked as well: a stream that was made anew starts again at 1.

mod wire;

use std::time::Duration;

use async_nats::connection::State as ConnectionState;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{self, ErrorCode, stream};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::wire::{Delivered, Login, Spare, Wire};
use super::{Bounds, LogReader, LogSource, RawMessage, SourceError, Start};
use crate::ids::PChannel;
use crate::position::{Position, QueueKind};

/// How long one pull request waits on a silent stream.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// The server's sign of life within a pull request.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The server removes a consumer that nobody pulled from for this long: what a killed reader leaves behind.
const INACTIVE: Duration = Duration::from_secs(60);
/// The largest number of messages asked for at once.
const PULL_MESSAGES: usize = 8192;
/// A request that has more to deliver and is silent for this long is asked for again: servers end a request without a
/// word when its bytes are used up exactly.
const STALLED: Duration = Duration::from_millis(250);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How often a reader's connection may break within one call before that is an error.
const BREAKS: u32 = 3;

/// Codes of the server's answers to a pull request.
const IDLE_HEARTBEAT: u16 = 100;
const NOT_FOUND: u16 = 404;
const TIMEOUT: u16 = 408;
const REQUEST_TERMINATED: u16 = 409;

/// Where the JetStream of the source is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NatsmqConfig {
    /// `nats://host:port`.
    pub address: String,
    /// For one attempt to connect, and for one answer of the server.
    pub connect_timeout: Duration,
}

/// The message queue of a Milvus with `mq.type: natsmq`.
pub struct NatsmqSource {
    link: Link,
}

#[derive(Clone)]
struct Link {
    address: String,
    server: ServerAddr,
    patience: Duration,
    client: Client,
    context: jetstream::Context,
    /// Counts connects and disconnects: a consumer made before the last of them may be gone.
    connection: watch::Receiver<u64>,
    spare: Spare,
}

impl NatsmqSource {
    /// Starts to connect and returns at once; goes on trying for ever, also after a break.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] if the address is none.
    pub async fn connect(config: NatsmqConfig) -> Result<Self, SourceError> {
        let NatsmqConfig {
            address,
            connect_timeout: patience,
        } = config;
        let configuration = |cause: String| SourceError::Configuration {
            address: address.clone(),
            cause,
            hint: "the address has the form nats://host:port".to_owned(),
        };
        let server: ServerAddr = address
            .parse()
            .map_err(|e: std::io::Error| configuration(e.to_string()))?;
        let (events, connection) = watch::channel(0);
        let client = ConnectOptions::new()
            .name("milvus-cdc")
            .retry_on_initial_connect()
            .connection_timeout(patience)
            .request_timeout(Some(patience))
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis(50 * (1 << attempt.min(6)) as u64).min(RECONNECT_MAX)
            })
            .event_callback(move |event| {
                if matches!(
                    event,
                    Event::Connected | Event::Disconnected | Event::SlowConsumer(_)
                ) {
                    events.send_modify(|n| *n += 1);
                }
                std::future::ready(())
            })
            .connect(server.clone())
            .await
            .map_err(|e| configuration(e.to_string()))?;
        let context = jetstream::new(client.clone());
        Ok(Self {
            link: Link {
                address,
                server,
                patience,
                client,
                context,
                connection,
                spare: Spare::default(),
            },
        })
    }
}

impl Link {
    fn unreachable(&self, cause: impl ToString) -> SourceError {
        SourceError::Unreachable {
            address: self.address.clone(),
            cause: cause.to_string(),
        }
    }

    /// Waits for a connection, for no longer than the connect timeout.
    async fn connected(&self) -> Result<(), SourceError> {
        let mut connection = self.connection.clone();
        let up = async {
            while self.client.connection_state() != ConnectionState::Connected {
                // The state is set a little after or before the event: look again soon even without one.
                let _ = timeout(Duration::from_millis(20), connection.changed()).await;
                if connection.has_changed().is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        timeout(self.patience, up).await.map_err(|_| {
            self.unreachable(format!(
                "not connected within {:?}; is Milvus up?",
                self.patience
            ))
        })
    }

    async fn stream(&self, channel: &PChannel) -> Result<stream::Info, SourceError> {
        self.connected().await?;
        match self.context.get_stream(channel.as_str()).await {
            Ok(stream) => Ok(stream.cached_info().clone()),
            Err(e) => Err(match e.kind() {
                GetStreamErrorKind::JetStream(js) => match js.error_code() {
                    ErrorCode::STREAM_NOT_FOUND => SourceError::NoSuchChannel {
                        channel: channel.clone(),
                        address: self.address.clone(),
                    },
                    ErrorCode::JETSTREAM_NOT_ENABLED
                    | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => SourceError::Configuration {
                        address: self.address.clone(),
                        cause: "JetStream is not enabled on this NATS server".to_owned(),
                        hint: "give the address of the NATS server inside the source Milvus"
                            .to_owned(),
                    },
                    _ => self.unreachable(js),
                },
                GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
                    SourceError::NoSuchChannel {
                        channel: channel.clone(),
                        address: self.address.clone(),
                    }
                }
                GetStreamErrorKind::Request => self.unreachable(e),
            }),
        }
    }
}

fn held(state: &stream::State) -> Option<Bounds> {
    (state.messages > 0).then_some(Bounds {
        first: Position::Natsmq(state.first_sequence),
        last: Position::Natsmq(state.last_sequence),
    })
}

fn lost(channel: &PChannel, wanted: u64, state: &stream::State) -> SourceError {
    let held = held(state);
    SourceError::PositionLost {
        channel: channel.clone(),
        wanted: Position::Natsmq(wanted),
        first: held.map(|b| b.first),
        last: held.map(|b| b.last),
    }
}

/// Whether a reader that wants `next` finds it, or finds nothing because it is still to be written.
fn holds(state: &stream::State, next: u64) -> bool {
    let first = if state.messages > 0 {
        state.first_sequence
    } else {
        state.last_sequence + 1
    };
    (first..=state.last_sequence + 1).contains(&next)
}

#[async_trait]
impl LogSource for NatsmqSource {
    fn kind(&self) -> QueueKind {
        QueueKind::Natsmq
    }

    async fn ping(&self) -> Result<(), SourceError> {
        self.link.connected().await?;
        // Any answer is a sign of life; the client library's own type for it asks for more than older servers tell.
        let answer: Result<serde_json::Value, _> = self.link.context.request("INFO", &()).await;
        answer.map(drop).map_err(|e| self.link.unreachable(e))
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        Ok(held(&self.link.stream(channel).await?.state))
    }

    /// `max_age` of the stream, which Milvus sets from `natsmq.server.retention.maxAge`; zero is none.
    async fn retention(&self, channel: &PChannel) -> Result<Option<Duration>, SourceError> {
        let age = self.link.stream(channel).await?.config.max_age;
        Ok(Some(age).filter(|age| !age.is_zero()))
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        let info = self.link.stream(channel).await?;
        let state = &info.state;
        let sequence = |p: Position| match p {
            Position::Natsmq(sequence) => Ok(sequence),
            other => Err(SourceError::Configuration {
                address: self.link.address.clone(),
                cause: format!("{other} is a position of {}, not of natsmq", other.kind()),
                hint: "give a position of the source's own queue".to_owned(),
            }),
        };
        let next = match start {
            Start::At(p) => {
                let wanted = sequence(p)?;
                if wanted > state.last_sequence {
                    return Err(lost(channel, wanted, state));
                }
                wanted
            }
            Start::After(p) => sequence(p)?.saturating_add(1),
            Start::Earliest if state.messages > 0 => state.first_sequence,
            Start::Earliest | Start::Latest => state.last_sequence + 1,
        };
        if !holds(state, next) {
            return Err(lost(channel, next, state));
        }
        Ok(Box::new(NatsmqReader {
            link: self.link.clone(),
            channel: channel.clone(),
            created: info.created,
            next,
            ahead: None,
            session: None,
        }))
    }
}

struct NatsmqReader {
    link: Link,
    channel: PChannel,
    /// When the stream was made.
    created: async_nats::datetime::DateTime,
    /// The sequence to deliver next.
    next: u64,
    /// A message that a request of a larger bound brought and the present bound has no room for.
    ahead: Option<RawMessage>,
    session: Option<Session>,
}

/// One consumer on the server, removed from it on drop.
struct Session {
    link: Link,
    stream: String,
    consumer: String,
    inbox: String,
    wire: Wire,
    request: Option<Request>,
    requests: u64,
    /// What [`Link::connection`] stood at when the consumer was made.
    connection: u64,
}

/// A pull request that the server has not ended yet.
struct Request {
    subject: String,
    messages_left: usize,
    /// As the server counts them; `None`: not bounded, because it is for one message.
    bytes_left: Option<usize>,
    fresh: bool,
    /// Whether the last message said that there are more.
    more: bool,
    heard: Instant,
}

impl Drop for Session {
    fn drop(&mut self) {
        // With the connection gone, so is the consumer, or the server removes it by itself.
        if self.link.client.connection_state() != ConnectionState::Connected {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (link, stream, consumer) = (
            self.link.clone(),
            std::mem::take(&mut self.stream),
            std::mem::take(&mut self.consumer),
        );
        // Ends within the request timeout.
        runtime.spawn(async move {
            let _ = link
                .context
                .delete_consumer_from_stream(consumer, stream)
                .await;
        });
    }
}

enum Got {
    Message(RawMessage),
    /// The first message of a request is larger than its bound.
    TooLarge,
    /// Nothing to deliver; ask on.
    Nothing,
    /// The request expired with nothing delivered.
    Expired,
    /// Not the sequence that comes next.
    Gap,
    /// The consumer is no more.
    Gone,
}

impl Session {
    async fn make(link: &Link, channel: &PChannel, next: u64) -> Result<Self, SourceError> {
        let connection = *link.connection.borrow();
        let inbox = link.client.new_inbox();
        let login = Login {
            user: link.server.username(),
            password: link.server.password(),
        };
        let (host, port) = (link.server.host(), link.server.port());
        let all = format!("{inbox}.*");
        let opening = Wire::open((host, port), login, &all, link.spare.clone());
        let wire = timeout(link.patience, opening)
            .await
            .map_err(|_| link.unreachable(format!("not connected within {:?}", link.patience)))?
            .map_err(|e| link.unreachable(e))?;
        let name = format!("milvus-cdc-{:016x}", rand::random::<u64>());
        // Made first, so that a dropped future removes what the server may have made already.
        let session = Self {
            link: link.clone(),
            stream: channel.as_str().to_owned(),
            consumer: name.clone(),
            inbox,
            wire,
            request: None,
            requests: 0,
            connection,
        };
        let config = pull::Config {
            name: Some(name),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: next,
            },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        link.context
            .create_consumer_on_stream(config, channel.as_str())
            .await
            .map_err(|e| link.unreachable(format!("cannot read {channel}: {e}")))?;
        Ok(session)
    }

    fn ask(&mut self, messages: usize, max_bytes: Option<usize>) {
        self.requests += 1;
        let subject = format!("{}.{}", self.inbox, self.requests);
        let mut body = serde_json::json!({
            "batch": messages,
            "expires": PULL_EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        if let Some(max_bytes) = max_bytes {
            body["max_bytes"] = max_bytes.into();
        }
        let to = format!(
            "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
            self.stream, self.consumer
        );
        self.wire
            .publish(&to, &subject, body.to_string().as_bytes());
        self.request = Some(Request {
            subject,
            messages_left: messages,
            bytes_left: max_bytes,
            fresh: true,
            more: true,
            heard: Instant::now(),
        });
    }

    fn take(&mut self, delivered: Delivered, next: u64) -> Got {
        let (sequence, pending, payload, length) = match delivered {
            Delivered::Message {
                sequence,
                pending,
                payload,
                length,
            } => (sequence, pending, payload, length),
            Delivered::Status {
                subject,
                code,
                description,
            } => return self.status(&subject, code, &description),
            Delivered::Other => return Got::Nothing,
        };
        if let Some(request) = &mut self.request {
            request.messages_left = request.messages_left.saturating_sub(1);
            request.fresh = false;
            request.more = pending > 0;
            request.heard = Instant::now();
            if let Some(left) = &mut request.bytes_left {
                *left = left.saturating_sub(length);
            }
            if request.messages_left == 0 || request.bytes_left == Some(0) {
                self.request = None;
            }
        }
        match sequence {
            s if s == next => Got::Message(RawMessage {
                position: Position::Natsmq(s),
                payload,
            }),
            s if s < next => Got::Nothing,
            _ => Got::Gap,
        }
    }

    /// `description` in small letters.
    fn status(&mut self, subject: &str, code: u16, description: &str) -> Got {
        // A consumer that is gone has nobody to answer; what an earlier request of it had to say is of no use.
        let Some(request) = self.request.as_mut().filter(|r| r.subject == subject) else {
            return Got::Nothing;
        };
        request.heard = Instant::now();
        request.more = false;
        if code == IDLE_HEARTBEAT {
            return Got::Nothing;
        }
        let fresh = request.fresh;
        self.request = None;
        match code {
            REQUEST_TERMINATED if description.contains("exceeds maxbytes") => {
                if fresh {
                    Got::TooLarge
                } else {
                    Got::Nothing
                }
            }
            REQUEST_TERMINATED if description.contains("batch completed") => Got::Nothing,
            TIMEOUT | NOT_FOUND => {
                if fresh {
                    Got::Expired
                } else {
                    Got::Nothing
                }
            }
            _ => Got::Gone,
        }
    }

    /// When the silence of the open request has lasted too long.
    fn patience(&self) -> Instant {
        match &self.request {
            Some(request) if request.more => request.heard + STALLED,
            Some(request) => request.heard + 2 * HEARTBEAT + Duration::from_secs(1),
            None => Instant::now(),
        }
    }
}

impl NatsmqReader {
    /// Looks whether the stream still is the one that was opened and holds what comes next.
    async fn check(&self) -> Result<(), SourceError> {
        let info = self.link.stream(&self.channel).await?;
        if info.created != self.created || !holds(&info.state, self.next) {
            return Err(lost(&self.channel, self.next, &info.state));
        }
        Ok(())
    }

    async fn gap(&mut self) -> SourceError {
        self.session = None;
        match self.link.stream(&self.channel).await {
            Ok(info) => lost(&self.channel, self.next, &info.state),
            Err(error) => error,
        }
    }

    fn accept(&mut self, message: RawMessage, batch: &mut Vec<RawMessage>) {
        self.next += 1;
        batch.push(message);
    }

    /// Adds what has arrived already, as far as it fits. Does not wait.
    fn drain(&mut self, max_bytes: usize, batch: &mut Vec<RawMessage>) {
        let mut bytes: usize = batch.iter().map(|m| m.payload.len()).sum();
        while bytes < max_bytes {
            let Some(session) = &mut self.session else {
                return;
            };
            let message = match session.wire.try_next() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                // Begun anew by the next call.
                Err(_) => {
                    self.session = None;
                    return;
                }
            };
            match session.take(message, self.next) {
                Got::Message(message) => {
                    bytes += message.payload.len();
                    if bytes > max_bytes {
                        self.ahead = Some(message);
                        return;
                    }
                    self.accept(message, batch);
                }
                Got::Nothing | Got::Expired | Got::TooLarge => {}
                // Found again by the next call, with nothing of this batch at stake.
                Got::Gap | Got::Gone => {
                    self.session = None;
                    return;
                }
            }
        }
    }
}

#[async_trait]
impl LogReader for NatsmqReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        let mut batch = Vec::new();
        if let Some(message) = self.ahead.take() {
            self.accept(message, &mut batch);
            self.drain(max_bytes, &mut batch);
            return Ok(batch);
        }
        let (mut single, mut breaks) = (false, 0);
        let mut connection = self.link.connection.clone();
        loop {
            let now = *connection.borrow_and_update();
            if self.session.as_ref().is_none_or(|s| s.connection != now) {
                self.session = None;
                self.check().await?;
                self.session = Some(Session::make(&self.link, &self.channel, self.next).await?);
                continue;
            }
            let Some(session) = &mut self.session else {
                continue;
            };
            // What has arrived goes first: an ended request says nothing about that.
            let next = match session.wire.try_next() {
                Ok(Some(message)) => Ok(message),
                Err(error) => Err(error),
                Ok(None) => {
                    if session.request.is_none() {
                        match single {
                            true => session.ask(1, None),
                            false => session.ask(PULL_MESSAGES, Some(max_bytes.max(1))),
                        }
                    }
                    let patience = session.patience();
                    tokio::select! {
                        next = timeout_at(patience, session.wire.next()) => match next {
                            Ok(next) => next,
                            Err(_) => {
                                match &mut session.request {
                                    // It may wait for a first message: from here on heartbeats tell.
                                    Some(request) if request.more && request.fresh => request.more = false,
                                    Some(request) if request.more => session.request = None,
                                    _ => self.session = None,
                                }
                                continue;
                            }
                        },
                        _ = connection.changed() => continue,
                    }
                }
            };
            let message = match next {
                Ok(message) => message,
                Err(error) => {
                    self.session = None;
                    breaks += 1;
                    if breaks >= BREAKS {
                        return Err(self.link.unreachable(error));
                    }
                    continue;
                }
            };
            match session.take(message, self.next) {
                Got::Message(message) => {
                    self.accept(message, &mut batch);
                    self.drain(max_bytes, &mut batch);
                    return Ok(batch);
                }
                Got::TooLarge => single = true,
                Got::Nothing => {}
                Got::Expired => self.check().await?,
                Got::Gap => return Err(self.gap().await),
                Got::Gone => self.session = None,
            }
        }
    }
}
