//! How a reader of one collection comes to its channel's main reader, and which readers hold their lanes' time meanwhile.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::objects::Route;
use super::passes::{Pass, Turn};
use super::reader::{End, Inner, NEAR, Reader, Scope};
use crate::source::SourceError;
use crate::store::Change;
use crate::task::Mode;
use crate::tso::Tso;

/// How long a main reader waits for the reader of a collection that joins it, and that one for acknowledgements before.
const JOINED_WITHIN: Duration = Duration::from_millis(500);
/// Between two tries in the middle of a stretch: each takes some of the main reader's time.
const TRIED_EVERY: Duration = Duration::from_millis(200);

/// Not in a stretch that is read more than once, or in parts.
fn is_read_once(inner: &Inner) -> bool {
    matches!(inner.pass, Pass::Once) && inner.remainder.is_none()
}

impl Reader {
    /// The end of a collection that has a reader of its own. What follows its drop is still to be waited for: not with the
    /// gate, for that takes a tick, and another's lane may not have one before the conductor has looked in here.
    pub(super) fn last_words(&self, inner: &mut Inner) {
        self.followers.close();
        // What waits for a partition's name goes with the collection.
        if let Some((_, partitions)) = inner.edges.awaited(Tso::MAX) {
            for partition in partitions {
                inner.edges.resolve(partition, None);
            }
        }
        // It must not hold its lanes below the drop's own (raised) time; their other readers show it, or the lane does.
        inner.edges.set_holds(false);
        inner.edges.close(Tso::MAX);
    }

    /// Whether this collection's reader is so near its main reader that it can be joined to it. When near, it holds its
    /// lanes' ticks for a moment, so that its times come to be natural.
    pub(super) fn near(&self, inner: &mut Inner) -> bool {
        let near = inner.edges.behind() < NEAR && inner.edges.tick > Tso::ZERO;
        // What waits for a partition needs its lanes' ticks soon.
        let near = near && inner.edges.awaited(Tso::MAX).is_none();
        self.hold(inner, near);
        // What it has raised is shown before: the main reader would not say so of this collection.
        let natural = inner.edges.is_natural() && inner.edges.raised().is_empty();
        near && natural && is_read_once(inner) && !self.follows()
    }

    /// Whether something waits for a tick of the target behind a drop: the main reader is not kept waiting for that.
    fn follows(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Whether all that was sent is at or below the source's last tick: nothing of its times follows.
    fn is_whole(&self, inner: &Inner) -> bool {
        self.at_tick(inner) && !self.books.lock().has_above()
    }

    /// Hands the collection over to the main reader, at one message for both.
    ///
    /// Where the source's last tick stands above all of it, or where the main reader sends to the same lanes with the
    /// source's times as well: then what this reader has sent above the tick is as if the main reader had, which holds the
    /// lanes' ticks below it until its stretch is whole. A collection that is written to without a pause may never be
    /// found at a tick that stands above all of it.
    pub(super) async fn join(
        &self,
        inner: &mut Inner,
        main: &Reader,
        log: &mut dyn crate::source::LogReader,
    ) -> Result<Option<Turn>, SourceError> {
        let Scope::One(route) = &self.scope else {
            return Ok(None);
        };
        let begun_at_tick = self.at_tick(inner);
        // In plain mode nothing of a stretch is sent before it is whole.
        let soon = inner.tried.is_some_and(|at| at.elapsed() < TRIED_EVERY);
        if !begun_at_tick && (soon || self.ctx.hub.mode == Mode::Plain) {
            return Ok(None);
        }
        inner.tried = Some(Instant::now());
        // What can be waited for without the main reader is.
        let far = inner.edges.tick.behind(main.last_tick()) > NEAR;
        if far
            || !self
                .until_settled(route, Instant::now() + JOINED_WITHIN)
                .await
        {
            return Ok(None);
        }
        let mut theirs = main.gate.lock().await;
        let deadline = Instant::now() + JOINED_WITHIN;
        // A main reader that drains may have stopped already. One that is far behind would keep the collection there.
        let behind = theirs.edges.tick.behind(inner.edges.tick);
        if main.over.load(Ordering::Acquire) || self.ctx.drain.is_cancelled() || behind > NEAR {
            return Ok(None);
        }
        let applied = main.books.lock().progress().applied;
        if !self.may_go_on_from(main, inner, applied) {
            return Ok(None);
        }
        // The main reader stands still now; read up to where it is, to the next tick from there if need be.
        loop {
            let there = theirs.at <= inner.at;
            let ready = inner.edges.is_natural()
                && (self.is_whole(inner) || there && main.takes_over(&mut theirs, inner, route));
            if there && ready {
                break;
            }
            let in_vain = there && (self.at_tick(inner) || !begun_at_tick);
            if in_vain || Instant::now() > deadline {
                return Ok(None);
            }
            let batch = match tokio::time::timeout_at(deadline, log.next(256 << 10)).await {
                Ok(batch) => batch?,
                Err(_) => return Ok(None),
            };
            if let Some(turn) = self.work(inner, batch, false, true).await {
                return Ok(Some(turn));
            }
            if !inner.put_off.is_empty() || !is_read_once(inner) || self.follows() {
                return Ok(None);
            }
        }
        if !self.until_settled(route, deadline).await {
            return Ok(None);
        }
        let guard = self.ctx.progress.lock().await;
        if route.stream.failed() || self.cancel.is_cancelled() {
            return Ok(None);
        }
        let progress = main.books.lock().progress();
        if !self.may_go_on_from(main, inner, progress.applied) {
            return Ok(None);
        }
        let (task, channel) = (self.ctx.spec.id.clone(), self.channel.clone());
        let (sent, highest) = {
            let books = self.books.lock();
            (books.sent, books.highest().unwrap_or_default())
        };
        self.ctx
            .commit(vec![
                main.put(progress, false),
                Change::RaiseSent {
                    task: task.clone(),
                    channel: channel.clone(),
                    sent,
                },
                Change::DeleteDetached {
                    task,
                    channel,
                    collection: route.source,
                },
            ])
            .await;
        {
            let mut books = main.books.lock();
            books.sent = books.sent.max(sent);
            books.joined = books.joined.max(inner.edges.tick).max(highest);
        }
        if inner.edges.has_natural_above() {
            theirs.edges.go_on_with(&inner.edges);
        }
        main.attach(&mut theirs, route.clone(), inner.at);
        self.books.lock().retired = true;
        inner.edges.leave();
        drop(guard);
        Ok(Some(Turn::End(End::Joined)))
    }

    /// What it has sent is acknowledged within a call or two. `false`: not until then, or it has failed.
    async fn until_settled(&self, route: &Route, deadline: Instant) -> bool {
        while !self.books.lock().is_settled() {
            if Instant::now() > deadline || route.stream.failed() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// Whether this main reader can go on with what another one has sent of a collection above the source's last tick. If
    /// it cannot only because it does not send to that one's lanes, it does so from now on.
    fn takes_over(&self, own: &mut Inner, other: &Inner, route: &Route) -> bool {
        // Its last tick is not above the other's: it stands before it.
        let before = own.edges.tick <= other.edges.tick && self.ctx.hub.mode == Mode::Replicate;
        if !before || !is_read_once(own) || own.cut.is_some() || !own.edges.holds {
            return false;
        }
        let mut natural = true;
        for i in route.shards_on(&self.channel) {
            own.edges.join(&route.shards[i]);
            natural &= own.edges.is_natural_on(&route.shards[i]);
        }
        natural
    }

    /// Whether the collection can go on from where the main reader would go on after a restart, if that is done up to
    /// `applied`.
    ///
    /// Where that reader began, the two halves of an upsert may stand on both sides: the delete would be replayed without
    /// its insert. So this reader notes a time behind that place below which all of the collection is that it has read:
    /// an upsert above it is behind it as a whole, and the main reader has seen its first half.
    fn may_go_on_from(&self, main: &Reader, inner: &Inner, applied: Tso) -> bool {
        let mut whole = self.whole.lock();
        if whole.is_none() && inner.at.is_some_and(|at| at >= main.start) {
            let highest = self.books.lock().highest().unwrap_or_default();
            *whole = Some(inner.edges.tick.max(highest));
        }
        whole.is_some_and(|tick| tick <= applied)
    }

    pub(super) fn hold(&self, inner: &mut Inner, near: bool) {
        if !near {
            self.stop_holding(inner);
        } else if !inner.edges.holds {
            inner.edges.set_holds(true);
        }
    }

    /// Not while something above the last tick was sent with its source time.
    pub(super) fn stop_holding(&self, inner: &mut Inner) {
        if inner.edges.holds && !inner.edges.has_natural_above() {
            inner.edges.set_holds(false);
            // From now on its lanes' ticks may pass what it has not read yet: that is said at once.
            self.note_raised(inner);
            self.ctx.wake.notify_one();
        }
    }

    pub(super) fn at_tick(&self, inner: &Inner) -> bool {
        self.books.lock().ends_at(inner.at)
    }
}
