//! The in-memory twin of a message queue, for tests: same contract, with faults and purges on demand.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Bounds, LogReader, LogSource, RawMessage, SourceError, Start};
use crate::ids::PChannel;
use crate::position::{Position, QueueKind};

const ADDRESS: &str = "memory";

/// A queue in memory. Clones share their content.
#[derive(Clone)]
pub struct MemoryLog {
    inner: Arc<Inner>,
}

struct Inner {
    kind: QueueKind,
    /// Every this many messages one id is left out; 0: never.
    gap_every: u64,
    state: Mutex<State>,
    /// Counts the changes; readers wait on it.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    channels: HashMap<PChannel, Channel>,
    faults: usize,
    retention: Option<Duration>,
}

struct Channel {
    messages: VecDeque<RawMessage>,
    appended: u64,
    next_id: u64,
    /// The newest message ever appended, and the newest that was purged.
    newest: Option<Position>,
    purged: Option<Position>,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            appended: 0,
            next_id: 1,
            newest: None,
            purged: None,
        }
    }
}

impl Channel {
    fn bounds(&self) -> Option<Bounds> {
        let (first, last) = (self.messages.front()?, self.messages.back()?);
        Some(Bounds {
            first: first.position,
            last: last.position,
        })
    }

    /// The index of the first message at (`inclusive`) or behind `position`.
    fn index(&self, position: Position, inclusive: bool) -> usize {
        self.messages
            .partition_point(|m| m.position < position || (!inclusive && m.position == position))
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    /// A queue whose positions are those of natsmq.
    pub fn new() -> Self {
        Self::with(QueueKind::Natsmq, 0)
    }

    /// A queue with the positions of `kind`; with `gap_every` > 0 one id is left out after each that many messages.
    pub fn with(kind: QueueKind, gap_every: u64) -> Self {
        let changed = watch::Sender::new(0);
        Self {
            inner: Arc::new(Inner {
                kind,
                gap_every,
                state: Mutex::default(),
                changed,
            }),
        }
    }

    /// Makes an empty channel, if it is not there yet.
    pub fn create_channel(&self, channel: &PChannel) {
        self.inner
            .state
            .lock()
            .channels
            .entry(channel.clone())
            .or_default();
    }

    /// Appends a message, making the channel if need be.
    pub fn append(&self, channel: &PChannel, payload: impl Into<Bytes>) -> Position {
        let position = {
            let mut state = self.inner.state.lock();
            let channel = state.channels.entry(channel.clone()).or_default();
            let position = position_of(self.inner.kind, channel.next_id);
            channel.appended += 1;
            channel.next_id += 1;
            if self.inner.gap_every > 0 && channel.appended.is_multiple_of(self.inner.gap_every) {
                channel.next_id += 1;
            }
            channel.newest = Some(position);
            channel.messages.push_back(RawMessage {
                position,
                payload: payload.into(),
            });
            position
        };
        self.notify();
        position
    }

    /// Deletes everything up to and including `position`, as retention does.
    pub fn purge_to(&self, channel: &PChannel, position: Position) {
        if let Some(channel) = self.inner.state.lock().channels.get_mut(channel) {
            while channel
                .messages
                .front()
                .is_some_and(|m| m.position <= position)
            {
                channel.purged = channel.messages.pop_front().map(|m| m.position);
            }
        }
        self.notify();
    }

    /// What it says of its retention; it deletes nothing by itself.
    pub fn set_retention(&self, retention: Option<Duration>) {
        self.inner.state.lock().retention = retention;
    }

    /// The next `n` calls of any kind fail with [`SourceError::Unreachable`], those that wait now included.
    pub fn fail_next(&self, n: usize) {
        self.inner.state.lock().faults = n;
        self.notify();
    }

    fn notify(&self) {
        self.inner.changed.send_modify(|n| *n += 1);
    }
}

fn position_of(kind: QueueKind, n: u64) -> Position {
    match kind {
        QueueKind::Natsmq => Position::Natsmq(n),
        QueueKind::Rocksmq => Position::Rocksmq(n as i64),
        QueueKind::Kafka => Position::Kafka(n as i64),
        QueueKind::Pulsar => Position::Pulsar {
            ledger: 1,
            entry: n,
            batch: -1,
        },
    }
}

impl Inner {
    fn take_fault(state: &mut State) -> Result<(), SourceError> {
        if state.faults == 0 {
            return Ok(());
        }
        state.faults -= 1;
        Err(SourceError::Unreachable {
            address: ADDRESS.to_owned(),
            cause: "injected fault".to_owned(),
        })
    }

    fn with_channel<T>(
        &self,
        name: &PChannel,
        f: impl FnOnce(&Channel) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut state = self.state.lock();
        Self::take_fault(&mut state)?;
        match state.channels.get(name) {
            Some(channel) => f(channel),
            None => Err(SourceError::NoSuchChannel {
                channel: name.clone(),
                address: ADDRESS.to_owned(),
            }),
        }
    }
}

fn lost(name: &PChannel, wanted: Position, channel: &Channel) -> SourceError {
    let bounds = channel.bounds();
    SourceError::PositionLost {
        channel: name.clone(),
        wanted,
        first: bounds.map(|b| b.first),
        last: bounds.map(|b| b.last),
    }
}

#[async_trait]
impl LogSource for MemoryLog {
    fn kind(&self) -> QueueKind {
        self.inner.kind
    }

    async fn ping(&self) -> Result<(), SourceError> {
        Inner::take_fault(&mut self.inner.state.lock())
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        self.inner.with_channel(channel, |c| Ok(c.bounds()))
    }

    async fn retention(&self, channel: &PChannel) -> Result<Option<Duration>, SourceError> {
        self.inner.with_channel(channel, |_| Ok(()))?;
        Ok(self.inner.state.lock().retention)
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        let after = self.inner.with_channel(channel, |c| match start {
            Start::At(p) => match c.messages.get(c.index(p, true)) {
                Some(m) if m.position == p => Ok(Next::At(p)),
                _ => Err(lost(channel, p, c)),
            },
            Start::After(p) if c.purged > Some(p) || Some(p) > c.newest => Err(lost(channel, p, c)),
            Start::After(p) => Ok(Next::Behind(Some(p))),
            Start::Earliest => Ok(Next::Behind(c.purged)),
            Start::Latest => Ok(Next::Behind(c.newest)),
        })?;
        Ok(Box::new(MemoryReader {
            inner: self.inner.clone(),
            channel: channel.clone(),
            next: after,
            changed: self.inner.changed.subscribe(),
        }))
    }
}

#[derive(Clone, Copy)]
enum Next {
    At(Position),
    Behind(Option<Position>),
}

struct MemoryReader {
    inner: Arc<Inner>,
    channel: PChannel,
    next: Next,
    changed: watch::Receiver<u64>,
}

impl MemoryReader {
    fn take(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        let next = self.next;
        let name = &self.channel;
        let batch = self.inner.with_channel(name, |c| {
            let from = match next {
                Next::At(p) if c.purged >= Some(p) => return Err(lost(name, p, c)),
                Next::Behind(Some(p)) if c.purged > Some(p) => return Err(lost(name, p, c)),
                Next::Behind(None) if c.purged.is_some() => {
                    return Err(lost(name, position_of(self.inner.kind, 1), c));
                }
                Next::At(p) => c.index(p, true),
                Next::Behind(Some(p)) => c.index(p, false),
                Next::Behind(None) => 0,
            };
            let mut bytes = 0;
            let mut batch = Vec::new();
            for message in c.messages.range(from..) {
                bytes += message.payload.len();
                if bytes > max_bytes && !batch.is_empty() {
                    break;
                }
                batch.push(message.clone());
            }
            Ok(batch)
        })?;
        if let Some(last) = batch.last() {
            self.next = Next::Behind(Some(last.position));
        }
        Ok(batch)
    }
}

#[async_trait]
impl LogReader for MemoryReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        loop {
            self.changed.mark_unchanged();
            let batch = self.take(max_bytes)?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            // The sender lives in `inner`, which this reader holds: this cannot fail.
            let _ = self.changed.changed().await;
        }
    }
}
