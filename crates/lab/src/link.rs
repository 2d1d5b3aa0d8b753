//! A TCP relay whose connections break: between milvus-cdc and a server, without knowing what they say to each other.
//!
//! What is broken at a moment is a pure [`State`]; the relay only asks it. Nothing is ever delivered late but by
//! [`Way::Delay`]: what a black hole has swallowed is gone, and its connections end with it, as those of a network do
//! that has forgotten them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// How connections are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The open ones end, and new ones end at once.
    Cut,
    /// Every byte comes this much later, in both directions.
    Delay(Duration),
    /// Nothing comes through and nobody is told; behind it the connections that were open end.
    BlackHole,
    /// The open ones end in the direction from the server only; new ones work.
    HalfClose,
}

/// What is broken, and until when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    broken: Option<(Way, Instant)>,
}

impl State {
    /// Broken in this way from now on, for a time; what was before is over.
    #[must_use]
    pub fn broken(way: Way, now: Instant, lasts: Duration) -> Self {
        Self {
            broken: Some((way, now + lasts)),
        }
    }

    /// The way it is broken at `now`, and when that ends.
    #[must_use]
    pub fn at(&self, now: Instant) -> Option<(Way, Instant)> {
        self.broken.filter(|(_, until)| now < *until)
    }
}

/// A running relay. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    way: watch::Sender<State>,
    relay: JoinHandle<()>,
}

impl Link {
    /// Listens on a free port of 127.0.0.1 and relays to `server`, `host:port`, with a scheme before it or not.
    ///
    /// # Errors
    /// No port, or `server` is no address.
    pub async fn start(server: &str) -> Result<Self> {
        let server = server.rsplit('/').next().unwrap_or(server);
        let server: SocketAddr = server
            .parse()
            .with_context(|| format!("the address {server}"))?;
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("bind the relay")?;
        let address = listener.local_addr()?;
        let (way, state) = watch::channel(State::default());
        let relay = tokio::spawn(accept(listener, server, state));
        Ok(Self {
            address,
            way,
            relay,
        })
    }

    /// `host:port` of the relay.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks it from now on, for a time.
    pub fn fault(&self, way: Way, lasts: Duration) {
        self.way
            .send_replace(State::broken(way, Instant::now(), lasts));
    }

    /// Nothing is broken any more.
    pub fn heal(&self) {
        self.way.send_replace(State::default());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, state: watch::Receiver<State>) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        if let Ok((client, _)) = accepted {
            connections.spawn(connection(client, server, state.clone()));
        }
    }
}

async fn connection(client: TcpStream, server: SocketAddr, mut state: watch::Receiver<State>) {
    let now = state.borrow_and_update().at(Instant::now());
    match now {
        Some((Way::Cut, _)) => return,
        Some((Way::BlackHole, until)) => {
            // It was taken and hears nothing, until this is over.
            tokio::select! {
                () = sleep_until(until) => {}
                _ = state.changed() => {}
            }
            return;
        }
        _ => {}
    }
    let Ok(upstream) = TcpStream::connect(server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let mut up = Pump::new(from_client, to_server, false, state.clone());
    let mut down = Pump::new(from_server, to_client, true, state);
    // Whoever is broken ends both; a direction that ended well leaves the other one open.
    let (mut up, mut down) = (pin!(up.run()), pin!(down.run()));
    tokio::select! {
        end = &mut up => if end == End::Well { down.await; },
        end = &mut down => if end == End::Well { up.await; },
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Well,
    Broken,
}

/// Bytes in flight in one direction, at most; then its sender waits.
const IN_FLIGHT: usize = 4 << 20;

/// One direction of a connection.
struct Pump {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    to_client: bool,
    state: watch::Receiver<State>,
    /// Something was swallowed: it ends when the black hole does.
    holed: bool,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    held: usize,
}

impl Pump {
    fn new(
        from: OwnedReadHalf,
        to: OwnedWriteHalf,
        to_client: bool,
        state: watch::Receiver<State>,
    ) -> Self {
        Self {
            from,
            to,
            to_client,
            state,
            holed: false,
            waiting: VecDeque::new(),
            held: 0,
        }
    }

    async fn run(&mut self) -> End {
        let mut buffer = vec![0; 64 << 10];
        let mut eof = false;
        loop {
            if eof && self.waiting.is_empty() {
                let _ = self.to.shutdown().await;
                return End::Well;
            }
            let now = self.state.borrow().at(Instant::now());
            let (hole, until) = match now {
                Some((Way::BlackHole, until)) => (true, Some(until)),
                _ => (false, None),
            };
            if hole {
                self.holed = true;
                self.waiting.clear();
                self.held = 0;
            } else if self.holed {
                return End::Broken;
            }
            let due = self.waiting.front().map(|(due, _)| *due);
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return End::Broken;
                    }
                    let now = self.state.borrow().at(Instant::now());
                    match now {
                        Some((Way::Cut, _)) => return End::Broken,
                        Some((Way::HalfClose, _)) if self.to_client => {
                            let _ = self.to.shutdown().await;
                            return End::Well;
                        }
                        _ => {}
                    }
                }
                () = until_then(until) => {}
                () = until_then(due), if !hole => {
                    if let Some((_, bytes)) = self.waiting.pop_front() {
                        self.held -= bytes.len();
                        if self.to.write_all(&bytes).await.is_err() {
                            return End::Broken;
                        }
                    }
                }
                read = self.from.read(&mut buffer), if !eof && self.held < IN_FLIGHT => match read {
                    Ok(0) => eof = true,
                    Ok(n) => {
                        let delay = match now {
                            Some((Way::Delay(by), _)) => by,
                            _ => Duration::ZERO,
                        };
                        // In order, also where the delay ends.
                        let after = self.waiting.back().map(|(due, _)| *due);
                        let due = (Instant::now() + delay).max(after.unwrap_or_else(Instant::now));
                        self.waiting.push_back((due, buffer[..n].to_vec()));
                        self.held += n;
                    }
                    Err(_) => return End::Broken,
                },
            }
        }
    }
}

async fn until_then(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A server that says everything back, behind a link; and a client of it.
    async fn echo() -> (Link, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = peer.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let link = Link::start(&format!("http://{address}")).await.unwrap();
        let client = TcpStream::connect(link.address()).await.unwrap();
        (link, client)
    }

    async fn said(client: &mut TcpStream) -> std::io::Result<bool> {
        let talk = async {
            client.write_all(b"hello").await?;
            let mut back = [0; 5];
            match client.read_exact(&mut back).await {
                Ok(_) => Ok(&back == b"hello"),
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
                Err(e) => Err(e),
            }
        };
        tokio::time::timeout(SOON, talk).await.unwrap()
    }

    /// Whether it is told that the connection is over.
    async fn ended(client: &mut TcpStream) -> bool {
        let mut buffer = [0; 8];
        let read = client.read(&mut buffer);
        !matches!(tokio::time::timeout(SOON, read).await.unwrap(), Ok(n) if n > 0)
    }

    #[test]
    fn a_fault_ends_by_its_time() {
        let now = Instant::now();
        let state = State::broken(Way::Cut, now, Duration::from_secs(2));
        assert_eq!(
            state.at(now + Duration::from_secs(1)).map(|(way, _)| way),
            Some(Way::Cut)
        );
        assert_eq!(state.at(now + Duration::from_secs(2)), None);
        assert_eq!(State::default().at(now), None);
    }

    #[tokio::test]
    async fn a_cut_ends_the_old_and_refuses_the_new_until_it_is_healed() {
        let (link, mut old) = echo().await;
        assert!(said(&mut old).await.unwrap());
        link.fault(Way::Cut, SOON);
        assert!(ended(&mut old).await);
        let mut new = TcpStream::connect(link.address()).await.unwrap();
        assert!(!said(&mut new).await.unwrap_or(false));
        link.heal();
        let mut newest = TcpStream::connect(link.address()).await.unwrap();
        assert!(said(&mut newest).await.unwrap());
    }

    #[tokio::test]
    async fn a_delay_delays_and_keeps_the_order() {
        let (link, mut client) = echo().await;
        assert!(said(&mut client).await.unwrap());
        link.fault(Way::Delay(Duration::from_millis(50)), SOON);
        let begun = Instant::now();
        assert!(said(&mut client).await.unwrap());
        // There and back.
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_black_hole_delivers_nothing_later_and_ends_its_connections() {
        let (link, mut client) = echo().await;
        assert!(said(&mut client).await.unwrap());
        link.fault(Way::BlackHole, SOON);
        client.write_all(b"lost").await.unwrap();
        let mut buffer = [0; 8];
        let read = client.read(&mut buffer);
        let silent = tokio::time::timeout(Duration::from_millis(100), read);
        assert!(silent.await.is_err(), "something came out of it");
        link.heal();
        assert!(ended(&mut client).await);
    }

    #[tokio::test]
    async fn a_half_close_ends_what_comes_from_the_server() {
        let (link, mut client) = echo().await;
        assert!(said(&mut client).await.unwrap());
        link.fault(Way::HalfClose, SOON);
        assert!(ended(&mut client).await);
        let mut new = TcpStream::connect(link.address()).await.unwrap();
        assert!(said(&mut new).await.unwrap());
    }
}
