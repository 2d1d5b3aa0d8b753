//! The clients of the brokers, and the channels they are assigned.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio::time::timeout;

use super::KafkaConfig;
use crate::ids::PChannel;
use crate::source::SourceError;

/// Milvus writes to this partition alone.
const PARTITION: i32 = 0;
/// A call to the client library gets this much longer than the deadline it was given.
const GRACE: Duration = Duration::from_secs(1);
/// The longest that anybody may still use a client that has ended: a call that was given up on.
const USED_FOR: Duration = Duration::from_secs(60);

/// What the client last said of its connections.
#[derive(Clone, Default)]
pub(super) struct Trouble {
    /// Goes up with each report.
    pub(super) reports: u64,
    code: Option<Code>,
    cause: String,
}

/// Takes what the client library reports.
pub(super) struct Ears {
    trouble: watch::Sender<Trouble>,
}

/// What says nothing about reading: the client asks for the coordinator of a group nobody joins.
fn is_of_the_group(code: Code) -> bool {
    matches!(
        code,
        Code::GroupAuthorizationFailed
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
    )
}

impl ClientContext for Ears {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(%error, "{reason}");
        if code.is_some_and(is_of_the_group) {
            return;
        }
        self.trouble.send_modify(|trouble| {
            trouble.reports += 1;
            // The last of its brokers being down says less than why the broker before it was.
            if code != Some(Code::AllBrokersDown) || trouble.cause.is_empty() {
                trouble.code = code;
                trouble.cause = reason.to_owned();
            }
        });
    }
}

impl ConsumerContext for Ears {}

impl Ears {
    /// A broker answers: what was said before explains no later failure. Wakes nobody.
    fn is_well(&self) {
        self.trouble.send_if_modified(|trouble| {
            trouble.code = None;
            trouble.cause.clear();
            false
        });
    }
}

type Native = StreamConsumer<Ears>;

/// One client: a few threads and connections, for any number of channels, each at most once.
pub(super) struct Client {
    native: Option<Arc<Native>>,
    /// Serves what concerns no channel; ends with the client.
    events: tokio::task::AbortHandle,
    taken: Mutex<HashSet<PChannel>>,
    pub(super) trouble: watch::Receiver<Trouble>,
}

impl Client {
    fn new(config: &ClientConfig) -> Result<Self, KafkaError> {
        let (sender, trouble) = watch::channel(Trouble::default());
        let native: Arc<Native> = Arc::new(config.create_with_context(Ears { trouble: sender })?);
        let serve = native.clone();
        let events = tokio::spawn(async move {
            loop {
                match serve.recv().await {
                    Ok(message) => {
                        use rdkafka::Message;
                        // Would be found as a gap by its reader.
                        tracing::warn!(
                            channel = message.topic(),
                            offset = message.offset(),
                            "a message without a reader"
                        );
                    }
                    // Heard by the context already. Never in a hot loop, whatever the library says.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .abort_handle();
        Ok(Self {
            native: Some(native),
            events,
            taken: Mutex::default(),
            trouble,
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.events.abort();
        let Some(native) = self.native.take() else {
            return;
        };
        // The library's own end waits for its threads, without a deadline: not here, and not where the last of those who
        // still use it lets go of it.
        let end = move || {
            for _ in 0..USED_FOR.as_millis() / 10 {
                if Arc::strong_count(&native) == 1 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("kafka-end".to_owned())
            .spawn(end)
        {
            tracing::warn!(%error, "the end of a client had to be waited for");
        }
    }
}

/// The clients of one source.
pub(super) struct Pool {
    pub(super) address: String,
    timeout: Duration,
    config: ClientConfig,
    /// Certificates and keys. The library reads them when a client is made, and never again.
    files: Vec<PathBuf>,
    clients: Mutex<Clients>,
}

/// As many as the busiest channel has readers, which is one but for those that catch up.
struct Clients {
    /// Asks, and reads; it lives as long as the source, or until the files it was made with are others.
    first: Arc<Client>,
    others: Vec<std::sync::Weak<Client>>,
    made_with: Vec<Stamp>,
}

/// Tells whether a file was written anew; `None` if it cannot be looked at.
type Stamp = Option<(SystemTime, u64)>;

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let about = std::fs::metadata(file).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    files.iter().map(stamp).collect()
}

/// What a partition holds: its first offset, and the one after its last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) first: i64,
    pub(super) end: i64,
}

impl Pool {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, SourceError> {
        let native = config.native();
        let files = config.files();
        // Before they are read: what is written in between is read again.
        let made_with = stamps(&files);
        let first = Client::new(&native).map_err(|e| SourceError::Configuration {
            address: config.brokers.clone(),
            cause: e.to_string(),
            hint: "check sourceConfig.kafka: host:port, and for TLS that the files are PEM and can be read".to_owned(),
        })?;
        Ok(Self {
            address: config.brokers.clone(),
            timeout: config.timeout,
            config: native,
            files,
            clients: Mutex::new(Clients {
                first: Arc::new(first),
                others: Vec::new(),
                made_with,
            }),
        })
    }

    /// Makes a new first client if certificates or keys are others than when the one that is there was made. Who reads
    /// with the old one goes on until that has trouble: see [`Pool::is_outdated`].
    fn renew(&self, clients: &mut Clients) {
        let now = stamps(&self.files);
        if now == clients.made_with {
            return;
        }
        match Client::new(&self.config) {
            Ok(client) => {
                tracing::info!(address = %self.address, "the certificates of the queue were read anew");
                *clients = Clients {
                    first: Arc::new(client),
                    others: Vec::new(),
                    made_with: now,
                };
            }
            // Half written, or one of two. Tried again with the next call.
            Err(error) => tracing::warn!(
                address = %self.address, %error,
                "the queue's certificates have changed and cannot be used; going on with the old ones"
            ),
        }
    }

    fn first(&self) -> Arc<Client> {
        let mut clients = self.clients.lock();
        self.renew(&mut clients);
        clients.first.clone()
    }

    /// Whether a client made since has newer certificates. Clients that catch up are made with the first one's.
    pub(super) fn is_outdated(&self, lease: &Lease) -> bool {
        let mut clients = self.clients.lock();
        self.renew(&mut clients);
        let of_now =
            |client: &std::sync::Weak<Client>| client.as_ptr() == Arc::as_ptr(&lease.client);
        !Arc::ptr_eq(&clients.first, &lease.client) && !clients.others.iter().any(of_now)
    }

    /// Any answer of a broker.
    pub(super) async fn ping(&self) -> Result<(), SourceError> {
        // Asking for one topic is cheap on any cluster; it need not be there and is not made.
        self.ask(|native, deadline| {
            native
                .fetch_metadata(Some("milvus-cdc-ping"), deadline)
                .map(drop)
        })
        .await?
        .map_err(|e| self.error(&e))
    }

    /// What the channel holds now.
    pub(super) async fn held(&self, channel: &PChannel) -> Result<Held, SourceError> {
        let topic = channel.as_str().to_owned();
        let asked = self.ask(move |native, deadline| {
            // First whether it is there: asked for offsets, the client waits for a leader that will never be.
            let metadata = native.fetch_metadata(Some(&topic), deadline)?;
            let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
            let found = metadata.topics().iter().find(|t| t.name() == topic);
            match found.map(|t| (t.error(), t.partitions().len())) {
                Some((Some(error), _)) => return Err(KafkaError::MetadataFetch(error.into())),
                None | Some((None, 0)) => return Err(missing),
                Some((None, _)) => {}
            }
            native.fetch_watermarks(&topic, PARTITION, deadline)
        });
        match asked.await? {
            Ok((first, end)) => Ok(Held { first, end }),
            Err(error) => Err(self.channel_error(channel, &error)),
        }
    }

    /// Runs a call of the library, which blocks, on a thread for that.
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Native, Duration) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<Result<T, KafkaError>, SourceError> {
        let Some(native) = self.first().native.clone() else {
            return Err(self.unreachable("the client has ended"));
        };
        let deadline = self.timeout;
        let asked = tokio::task::spawn_blocking(move || {
            let answer = call(&native, deadline);
            if answer.is_ok() {
                native.context().is_well();
            }
            answer
        });
        match timeout(2 * self.timeout + GRACE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unreachable(format!("the call broke off: {error}"))),
            Err(_) => Err(self.unreachable(format!("no answer within {:?}", self.timeout))),
        }
    }

    /// Assigns the channel from `offset` on to a client that has no reader of it yet.
    pub(super) fn assign(&self, channel: &PChannel, offset: i64) -> Result<Lease, SourceError> {
        let client = self.vacant(channel)?;
        // Made first, so that whatever fails is undone by its drop.
        let mut lease = Lease {
            trouble: client.trouble.clone(),
            client,
            channel: channel.clone(),
            queue: None,
        };
        lease.trouble.mark_unchanged();
        let Some(native) = &lease.client.native else {
            return Err(self.unreachable("the client has ended"));
        };
        // Before the assignment: what comes from then on goes to this queue.
        lease.queue = native.split_partition_queue(channel.as_str(), PARTITION);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(channel.as_str(), PARTITION, Offset::Offset(offset))
            .and_then(|()| native.incremental_assign(&list))
            .map_err(|e| self.error(&e))?;
        Ok(lease)
    }

    fn vacant(&self, channel: &PChannel) -> Result<Arc<Client>, SourceError> {
        let take = |client: &Client| client.taken.lock().insert(channel.clone());
        let mut clients = self.clients.lock();
        self.renew(&mut clients);
        if take(&clients.first) {
            return Ok(clients.first.clone());
        }
        clients.others.retain(|client| client.strong_count() > 0);
        let vacant = clients.others.iter().filter_map(std::sync::Weak::upgrade);
        if let Some(client) = vacant.into_iter().find(|client| take(client)) {
            return Ok(client);
        }
        let client = match Client::new(&self.config) {
            Ok(client) => Arc::new(client),
            Err(error) => {
                drop(clients);
                return Err(self.error(&error));
            }
        };
        take(&client);
        clients.others.push(Arc::downgrade(&client));
        Ok(client)
    }

    pub(super) fn unreachable(&self, cause: impl ToString) -> SourceError {
        SourceError::Unreachable {
            address: self.address.clone(),
            cause: cause.to_string(),
        }
    }

    /// An error in reading or asking about a channel.
    pub(super) fn channel_error(&self, channel: &PChannel, error: &KafkaError) -> SourceError {
        match error.rdkafka_error_code() {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
            | Some(Code::InvalidTopic) => SourceError::NoSuchChannel {
                channel: channel.clone(),
                address: self.address.clone(),
            },
            Some(Code::TopicAuthorizationFailed) => SourceError::Login {
                address: self.address.clone(),
                cause: format!("not permitted to read the topic {channel}"),
            },
            _ => self.error(error),
        }
    }

    fn error(&self, error: &KafkaError) -> SourceError {
        let trouble = self.clients.lock().first.trouble.borrow().clone();
        let address = self.address.clone();
        let login = [Code::Authentication, Code::SaslAuthenticationFailed];
        // A call that fails says that it got no connection; why not, the client has said before.
        let cause = match error.rdkafka_error_code() {
            Some(code) if login.contains(&code) => {
                let cause = error.to_string();
                return SourceError::Login { address, cause };
            }
            Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::AllBrokersDown)
                if !trouble.cause.is_empty() =>
            {
                if trouble.code.is_some_and(|code| login.contains(&code)) {
                    let cause = trouble.cause;
                    return SourceError::Login { address, cause };
                }
                trouble.cause
            }
            _ => error.to_string(),
        };
        SourceError::Unreachable { address, cause }
    }
}

/// A channel assigned to a client, until it is dropped.
pub(super) struct Lease {
    pub(super) queue: Option<StreamPartitionQueue<Ears>>,
    pub(super) trouble: watch::Receiver<Trouble>,
    channel: PChannel,
    client: Arc<Client>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(native) = &self.client.native {
            let mut list = TopicPartitionList::new();
            list.add_partition(self.channel.as_str(), PARTITION);
            // The client's own thread answers at once; the only failure is that it was not assigned.
            let _ = native.incremental_unassign(&list);
        }
        self.client.taken.lock().remove(&self.channel);
    }
}
