//! One connection to one broker: its handshake, its requests, and the entries of all consumers on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use pulsar::proto::base_command::Type;
use pulsar::proto::{
    AuthData, BaseCommand, CommandAuthResponse, CommandConnect, CommandPing, CommandPong,
    ServerError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::inbox::Inbox;
use super::stream::{self, Stream};
use super::wire::{self, Entry, Frame};
use crate::secret::Secret;
use crate::source::open::{PulsarAuth, PulsarConfig};

/// The oldest version with all that is used here (2.8); newer brokers keep to it.
const PROTOCOL: i32 = 15;
const CLIENT: &str = concat!("milvus-cdc-", env!("CARGO_PKG_VERSION"));
/// A connection that is silent for so long is asked for a sign of life.
const SILENT: Duration = Duration::from_secs(10);
/// Commands that wait to be sent. They are small.
const OUTGOING: usize = 256;

/// What came of a request that did not succeed.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The broker says no.
    Refused(ServerError, String),
    /// No answer, or no connection.
    Away(String),
}

/// A connection. Its task ends when the last handle is dropped.
pub(super) struct Connection {
    out: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
    patience: Duration,
}

struct Shared {
    ids: AtomicU64,
    state: Mutex<State>,
    dead: CancellationToken,
    /// Counts the broker's signs of life that were asked for.
    pongs: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    requests: HashMap<u64, oneshot::Sender<BaseCommand>>,
    consumers: HashMap<u64, Arc<Inbox>>,
    cause: Option<String>,
}

impl Connection {
    /// Connects to `host:port`. `through`: the broker behind the proxy that is there.
    pub(super) async fn open(
        config: &PulsarConfig,
        address: &str,
        tls: bool,
        through: Option<String>,
    ) -> Result<Arc<Self>, Failure> {
        let patience = config.connect_timeout;
        let silent = |what: &str| Failure::Away(format!("{what} within {patience:?}"));
        let mut stream = timeout(patience, stream::connect(config, address, tls))
            .await
            .map_err(|_| silent("no connection"))?
            .map_err(Failure::Away)?;
        let mut arrived = BytesMut::new();
        let greeting = timeout(patience, greet(&mut stream, &mut arrived, config, through))
            .await
            .map_err(|_| silent("connected, but no answer of a Pulsar broker"))??;
        let largest = config.max_message_size.max(greeting) + wire::OVERHEAD;
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let shared = Arc::new(Shared {
            ids: AtomicU64::new(1),
            state: Mutex::default(),
            dead: CancellationToken::new(),
            pongs: watch::Sender::new(0),
        });
        let task = Task {
            stream,
            arrived,
            largest,
            outgoing,
            shared: shared.clone(),
            patience,
            auth: config.auth.clone(),
        };
        // Ends with the connection, or with the last handle.
        tokio::spawn(task.run());
        Ok(Arc::new(Self {
            out,
            shared,
            patience,
        }))
    }

    pub(super) fn is_dead(&self) -> bool {
        self.shared.dead.is_cancelled()
    }

    pub(super) async fn died(&self) {
        self.shared.dead.cancelled().await;
    }

    /// A number that no request and no consumer of this connection has had.
    pub(super) fn id(&self) -> u64 {
        self.shared.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn add_consumer(&self, id: u64, inbox: Arc<Inbox>) {
        let mut state = self.shared.state.lock();
        match state.cause.clone() {
            Some(cause) => {
                drop(state);
                inbox.close(cause);
            }
            None => {
                state.consumers.insert(id, inbox);
            }
        }
    }

    pub(super) fn remove_consumer(&self, id: u64) {
        self.shared.state.lock().consumers.remove(&id);
    }

    /// Sends a command that has no answer.
    pub(super) async fn send(&self, command: &BaseCommand) -> Result<(), Failure> {
        let sent = timeout(self.patience, self.out.send(wire::encode(command))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(self.broken()),
        }
    }

    /// As [`Connection::send`], at once or not at all.
    pub(super) fn try_send(&self, command: &BaseCommand) -> bool {
        self.out.try_send(wire::encode(command)).is_ok()
    }

    /// Sends a command and waits for the answer with its `request_id`, for `deadline` at most.
    pub(super) async fn request(
        &self,
        request_id: u64,
        command: &BaseCommand,
        deadline: Duration,
    ) -> Result<BaseCommand, Failure> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.shared.state.lock();
            if state.cause.is_none() {
                state.requests.insert(request_id, answer);
            }
        }
        let _forgotten = Forget {
            shared: &self.shared,
            request_id,
        };
        self.send(command).await?;
        let answer = timeout(deadline, answered)
            .await
            .map_err(|_| Failure::Away(format!("no answer within {deadline:?}")))?
            .map_err(|_| self.broken())?;
        match answer.error {
            Some(error) => Err(Failure::Refused(error.error(), error.message)),
            None => Ok(answer),
        }
    }

    /// Waits for a sign of life.
    pub(super) async fn ping(&self) -> Result<(), Failure> {
        let mut pongs = self.shared.pongs.subscribe();
        self.send(&ping()).await?;
        let patience = self.patience;
        tokio::select! {
            pong = timeout(patience, pongs.changed()) => match pong {
                Ok(Ok(())) => Ok(()),
                _ => Err(Failure::Away(format!("no sign of life within {patience:?}"))),
            },
            () = self.died() => Err(self.broken()),
        }
    }

    /// Why it broke, or else why it is of no use.
    pub(super) fn cause(&self) -> String {
        let cause = self.shared.state.lock().cause.clone();
        cause.unwrap_or_else(|| "the connection takes no commands".to_owned())
    }

    fn broken(&self) -> Failure {
        Failure::Away(self.cause())
    }
}

/// Takes a request off the list, whatever came of it.
struct Forget<'a> {
    shared: &'a Shared,
    request_id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().requests.remove(&self.request_id);
    }
}

/// Connect and Connected; the broker's largest message in bytes.
async fn greet(
    stream: &mut Box<dyn Stream>,
    arrived: &mut BytesMut,
    config: &PulsarConfig,
    through: Option<String>,
) -> Result<usize, Failure> {
    let away = |e: std::io::Error| Failure::Away(e.to_string());
    let login = shown(config.auth.as_ref()).await.map_err(Failure::Away)?;
    let connect = BaseCommand {
        connect: Some(CommandConnect {
            client_version: CLIENT.to_owned(),
            protocol_version: Some(PROTOCOL),
            auth_method_name: config.auth.as_ref().map(|a| a.method.clone()),
            auth_data: login.map(|login| login.expose().into()),
            proxy_to_broker_url: through,
            ..Default::default()
        }),
        ..wire::command(Type::Connect)
    };
    send(stream, &wire::encode(&connect)).await.map_err(away)?;
    loop {
        while let Some(Frame { command, .. }) =
            wire::take(arrived, wire::OVERHEAD).map_err(Failure::Away)?
        {
            if let Some(connected) = command.connected {
                return Ok(connected.max_message_size.unwrap_or(0).max(0) as usize);
            }
            if let Some(error) = command.error {
                return Err(Failure::Refused(error.error(), error.message));
            }
            if command.auth_challenge.is_some() {
                let answer = auth_answer(config.auth.as_ref()).await;
                let answer = wire::encode(&answer.map_err(Failure::Away)?);
                send(stream, &answer).await.map_err(away)?;
            }
        }
        if stream.read_buf(arrived).await.map_err(away)? == 0 {
            return Err(Failure::Away(
                "the server closed the connection at the greeting; is TLS expected there (pulsar+ssl://)?"
                    .to_owned(),
            ));
        }
    }
}

/// Writes, and what a TLS stream holds back too: it would wait for the next command.
async fn send(stream: &mut Box<dyn Stream>, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// The login as it is now.
async fn shown(auth: Option<&PulsarAuth>) -> Result<Option<Secret>, String> {
    let Some(auth) = auth else {
        return Ok(None);
    };
    let data = auth.data.clone();
    let read = tokio::task::spawn_blocking(move || data.read());
    match read.await {
        Ok(secret) => secret.map(Some),
        Err(broken) => Err(format!("the login was not read: {broken}")),
    }
}

async fn auth_answer(auth: Option<&PulsarAuth>) -> Result<BaseCommand, String> {
    let login = shown(auth).await?;
    let response = auth.zip(login).map(|(auth, login)| AuthData {
        auth_method_name: Some(auth.method.clone()),
        auth_data: Some(login.expose().into()),
    });
    Ok(BaseCommand {
        auth_response: Some(CommandAuthResponse {
            client_version: Some(CLIENT.to_owned()),
            response,
            protocol_version: Some(PROTOCOL),
        }),
        ..wire::command(Type::AuthResponse)
    })
}

fn ping() -> BaseCommand {
    BaseCommand {
        ping: Some(CommandPing {}),
        ..wire::command(Type::Ping)
    }
}

/// Reads and writes until the connection breaks or nobody wants it any more.
struct Task {
    stream: Box<dyn Stream>,
    arrived: BytesMut,
    /// Bytes of a frame.
    largest: usize,
    outgoing: mpsc::Receiver<Bytes>,
    shared: Arc<Shared>,
    patience: Duration,
    auth: Option<PulsarAuth>,
}

impl Task {
    async fn run(mut self) {
        let cause = match self.work().await {
            Ok(()) => "closed".to_owned(),
            Err(cause) => cause,
        };
        let mut state = self.shared.state.lock();
        state.cause = Some(cause.clone());
        // Whoever waits for an answer is told by this.
        state.requests.clear();
        let consumers = std::mem::take(&mut state.consumers);
        drop(state);
        for inbox in consumers.into_values() {
            inbox.close(cause.clone());
        }
        self.shared.dead.cancel();
    }

    async fn work(&mut self) -> Result<(), String> {
        let mut heard = Instant::now();
        let mut asked = false;
        loop {
            while let Some(frame) = wire::take(&mut self.arrived, self.largest)? {
                self.handle(frame).await?;
            }
            let patience = heard + SILENT + if asked { self.patience } else { Duration::ZERO };
            tokio::select! {
                read = timeout_at(patience, self.stream.read_buf(&mut self.arrived)) => match read {
                    Ok(Ok(0)) => return Err("the broker closed the connection".to_owned()),
                    Ok(Ok(_)) => (heard, asked) = (Instant::now(), false),
                    Ok(Err(e)) => return Err(e.to_string()),
                    Err(_) if asked => return Err("the broker has fallen silent".to_owned()),
                    Err(_) => {
                        asked = true;
                        self.write(wire::encode(&ping())).await?;
                    }
                },
                command = self.outgoing.recv() => match command {
                    Some(command) => self.write(command).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), String> {
        match timeout(self.patience, send(&mut self.stream, &bytes)).await {
            Ok(sent) => sent.map_err(|e| e.to_string()),
            Err(_) => Err("the broker takes no commands".to_owned()),
        }
    }

    async fn handle(&mut self, Frame { command, body }: Frame) -> Result<(), String> {
        if let Some(message) = command.message {
            let inbox = {
                let state = self.shared.state.lock();
                state.consumers.get(&message.consumer_id).cloned()
            };
            let Some(inbox) = inbox else {
                return Ok(());
            };
            let (ledger, entry) = (message.message_id.ledger_id, message.message_id.entry_id);
            match body.unwrap_or_else(|| Err("a message without content".to_owned())) {
                Ok((metadata, payload)) => {
                    inbox.put(Entry::new(ledger, entry, metadata, payload));
                }
                // The frame was whole, and the next one begins where it has to: the others need not break off.
                Err(cause) => inbox.close(format!("entry {ledger}:{entry}: {cause}")),
            }
            return Ok(());
        }
        if command.ping.is_some() {
            let pong = BaseCommand {
                pong: Some(CommandPong {}),
                ..wire::command(Type::Pong)
            };
            return self.write(wire::encode(&pong)).await;
        }
        if command.pong.is_some() {
            self.shared.pongs.send_modify(|n| *n += 1);
            return Ok(());
        }
        if command.auth_challenge.is_some() {
            let answer = timeout(self.patience, auth_answer(self.auth.as_ref()))
                .await
                .map_err(|_| format!("the login was not read within {:?}", self.patience))??;
            return self.write(wire::encode(&answer)).await;
        }
        if let Some(closed) = &command.close_consumer {
            // The topic moves to another broker, is unloaded or deleted.
            let inbox = self
                .shared
                .state
                .lock()
                .consumers
                .remove(&closed.consumer_id);
            if let Some(inbox) = inbox {
                inbox.close("the broker closed the reader");
            }
            return Ok(());
        }
        if let Some(request_id) = answers(&command) {
            let asked = self.shared.state.lock().requests.remove(&request_id);
            if let Some(asked) = asked {
                // Nobody may wait for it any more.
                let _ = asked.send(command);
            }
        }
        // Anything else is for features that are not used here.
        Ok(())
    }
}

/// The request that a command answers.
fn answers(command: &BaseCommand) -> Option<u64> {
    None.or(command.success.as_ref().map(|c| c.request_id))
        .or(command.error.as_ref().map(|c| c.request_id))
        .or(command.lookup_topic_response.as_ref().map(|c| c.request_id))
        .or(command
            .consumer_stats_response
            .as_ref()
            .map(|c| c.request_id))
        .or(command
            .get_last_message_id_response
            .as_ref()
            .map(|c| c.request_id))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// Takes whatever is written and gets rid of nothing, as TLS over a socket that is full; nothing arrives.
    struct Full;

    impl AsyncRead for Full {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_takes_nothing_in_is_given_up() {
        let shared = Arc::new(Shared {
            ids: AtomicU64::new(1),
            state: Mutex::default(),
            dead: CancellationToken::new(),
            pongs: watch::Sender::new(0),
        });
        // Held, or nobody would want the connection.
        let (_out, outgoing) = mpsc::channel(OUTGOING);
        let patience = Duration::from_secs(5);
        let task = Task {
            stream: Box::new(Full),
            arrived: BytesMut::new(),
            largest: wire::OVERHEAD,
            outgoing,
            shared: shared.clone(),
            patience,
            auth: None,
        };
        // Silent, asked for a sign of life, and that does not go out.
        timeout(SILENT + 2 * patience, task.run()).await.unwrap();
        let cause = shared.state.lock().cause.clone();
        assert_eq!(cause.as_deref(), Some("the broker takes no commands"));
        assert!(shared.dead.is_cancelled());
    }
}
