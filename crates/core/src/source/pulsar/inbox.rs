//! What has arrived for one consumer and nobody has taken yet, bounded in bytes.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::wire::Entry;

/// Filled by the connection's task, which never waits: what has no room is thrown away, and the reader asks for it
/// again.
pub(super) struct Inbox {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
    /// Messages the broker may still send.
    permits: i64,
    ended: Option<End>,
}

/// Why nothing will come any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// An entry did not fit; it has so many bytes for each of its messages.
    Overflow(usize),
    /// The broker closed the consumer, the connection broke, or what came cannot be read: why.
    Closed(String),
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// One entry always fits: a message may be larger than the bound.
    pub(super) fn put(&self, entry: Entry) {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return;
        }
        let (size, messages) = (entry.size(), entry.messages());
        state.permits -= messages as i64;
        if !state.entries.is_empty() && state.bytes + size > state.limit {
            state.ended = Some(End::Overflow(size / messages));
        } else {
            state.bytes += size;
            state.entries.push_back(entry);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// The first cause counts: what follows comes of it.
    pub(super) fn close(&self, cause: impl Into<String>) {
        let mut state = self.state.lock();
        state.ended.get_or_insert_with(|| End::Closed(cause.into()));
        drop(state);
        self.arrived.notify_one();
    }

    pub(super) fn take(&self) -> Option<Entry> {
        let mut state = self.state.lock();
        let entry = state.entries.pop_front()?;
        state.bytes -= entry.size();
        Some(entry)
    }

    /// Ledger and entry of the first one.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        let state = self.state.lock();
        state.entries.front().map(|e| (e.ledger, e.entry))
    }

    /// Why nothing will come any more; only once everything that came is taken.
    pub(super) fn ended(&self) -> Option<End> {
        let state = self.state.lock();
        let ended = state.ended.as_ref();
        ended.filter(|_| state.entries.is_empty()).cloned()
    }

    /// How many more messages to allow the broker, if it is time, for `limit` bytes of messages of about `each`.
    /// They count as allowed from here on.
    pub(super) fn allow(&self, limit: usize, each: usize, most: usize) -> Option<u32> {
        let mut state = self.state.lock();
        state.limit = limit;
        if state.ended.is_some() {
            return None;
        }
        let room = limit.saturating_sub(state.bytes) / each.max(1);
        let least = usize::from(state.entries.is_empty());
        let want = room.clamp(least, most) as i64;
        let have = state.permits.max(0);
        // Half of them used up, or none left: not for every single message.
        if want == 0 || have > want / 2 {
            return None;
        }
        // What the broker sent beyond its permits it takes off the next ones.
        let more = want - state.permits;
        state.permits = want;
        u32::try_from(more).ok()
    }

    /// Waits until something has changed since the last wait.
    pub(super) async fn changed(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use pulsar::proto::MessageMetadata;

    fn entry(n: u64, size: usize) -> Entry {
        Entry::new(1, n, MessageMetadata::default(), Bytes::from(vec![0; size]))
    }

    #[test]
    fn what_does_not_fit_is_thrown_away_and_everything_behind_it() {
        let inbox = Inbox::new();
        assert_eq!(inbox.allow(100, 10, 1000), Some(10));
        inbox.put(entry(0, 500));
        inbox.put(entry(1, 10));
        inbox.put(entry(2, 10));
        assert_eq!(inbox.ended(), None, "the first one is to be taken yet");
        assert_eq!(inbox.take().map(|e| e.entry), Some(0));
        assert_eq!(inbox.ended(), Some(End::Overflow(10)));
        inbox.put(entry(3, 1));
        assert!(inbox.take().is_none());
    }

    #[test]
    fn permits_follow_the_room() {
        let inbox = Inbox::new();
        assert_eq!(inbox.allow(0, 10, 1000), Some(1), "one always");
        assert_eq!(inbox.allow(0, 10, 1000), None, "but only one");
        inbox.put(entry(0, 30));
        assert_eq!(inbox.allow(30, 10, 1000), None, "no room");
        inbox.take();
        assert_eq!(inbox.allow(30, 10, 1000), Some(3));
        inbox.put(entry(1, 1));
        assert_eq!(inbox.allow(30, 10, 1000), None, "most of them are left");
        inbox.put(entry(2, 1));
        inbox.put(entry(3, 1));
        assert_eq!(inbox.allow(30, 10, 1000), Some(2));
        assert_eq!(inbox.allow(1_000_000, 1, 50), Some(48));
    }
}
