//! Between a client and its etcd: lets requests through one by one, and cuts the connection at a chosen one.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What a client of HTTP/2 says first.
const PREFACE: usize = 24;
/// Length, kind, flags, number of the stream.
const FRAME_HEADER: usize = 9;
/// The frame that begins a request, and an answer.
const HEADERS: u8 = 1;

/// Where in the life of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// etcd never sees it.
    Before,
    /// etcd has done it, and nobody hears of that.
    After,
}

#[derive(Default)]
struct State {
    /// Of which request, counted from now.
    at: Option<(usize, Cut)>,
    seen: usize,
    /// The stream whose answer is not to arrive.
    stream: Option<u32>,
    /// Nobody comes through any more.
    closed: bool,
    /// What happens at the cut.
    stays_closed: bool,
    is_cut: bool,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    cut: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

/// One client's way to one server.
pub(crate) struct Proxy {
    gate: Arc<Gate>,
    port: u16,
}

impl Proxy {
    /// `server`: `host:port`.
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Arc::new(Gate::default());
        // Ends with the runtime of the test.
        tokio::spawn({
            let gate = gate.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if !gate.state.lock().closed
                        && let Ok(server) = TcpStream::connect(&server).await
                    {
                        tokio::spawn(between(client, server, gate.clone()));
                    }
                }
            }
        });
        Self { gate, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Cuts at request `n` from now on, counted from 0; then for ever, or until the next connection.
    pub(crate) fn cut_at(&self, n: usize, cut: Cut, stays_closed: bool) {
        *self.gate.state.lock() = State {
            at: Some((n, cut)),
            stays_closed,
            ..State::default()
        };
    }

    /// Until it is cut.
    pub(crate) async fn is_cut(&self) {
        loop {
            let next = self.gate.cut.notified();
            if self.was_cut() {
                return;
            }
            next.await;
        }
    }

    pub(crate) fn was_cut(&self) -> bool {
        self.gate.state.lock().is_cut
    }

    /// Everything goes through again.
    pub(crate) fn cut_nothing(&self) {
        *self.gate.state.lock() = State::default();
    }

    /// Nobody comes through from now on.
    pub(crate) fn close(&self) {
        self.gate.state.lock().closed = true;
    }
}

impl Gate {
    /// Whether this frame goes through.
    fn passes(&self, from: From, kind: u8, stream: u32) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        let Some((n, cut)) = state.at else {
            return true;
        };
        if kind != HEADERS {
            return true;
        }
        let here = match from {
            From::Client => {
                let this = state.seen == n;
                state.seen += 1;
                if this && cut == Cut::After {
                    state.stream = Some(stream);
                }
                this && cut == Cut::Before
            }
            From::Server => state.stream == Some(stream),
        };
        if here {
            state.at = None;
            state.is_cut = true;
            state.closed = state.stays_closed;
            self.cut.notify_waiters();
        }
        !here
    }
}

/// Ends both ways together.
async fn between(client: TcpStream, server: TcpStream, gate: Arc<Gate>) {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let mut preface = [0; PREFACE];
    if from_client.read_exact(&mut preface).await.is_err()
        || to_server.write_all(&preface).await.is_err()
    {
        return;
    }
    tokio::select! {
        _ = carry(from_client, to_server, From::Client, &gate) => {}
        _ = carry(from_server, to_client, From::Server, &gate) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    side: From,
    gate: &Gate,
) -> std::io::Result<()> {
    loop {
        let mut frame = vec![0; FRAME_HEADER];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) & (u32::MAX >> 1);
        let kind = frame[3];
        frame.resize(FRAME_HEADER + length as usize, 0);
        from.read_exact(&mut frame[FRAME_HEADER..]).await?;
        if !gate.passes(side, kind, stream) {
            return Ok(());
        }
        to.write_all(&frame).await?;
    }
}
