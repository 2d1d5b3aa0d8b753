//! A reader's books: what it has read, what of that is acknowledged, what may be stored. No I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::lane::Cell;
use crate::position::Position;
use crate::store::Progress;
use crate::tso::Tso;

/// What is true once all messages read before a tick are acknowledged.
#[derive(Debug)]
struct Stretch {
    /// Where to go on reading: at the first message above the tick, or behind the tick.
    resume: Position,
    after: bool,
    tick: Tso,
    open: Arc<Cell>,
}

#[derive(Debug)]
pub(crate) struct Books {
    /// As stored, or as it may be stored now.
    progress: Progress,
    /// Stretches that are not wholly acknowledged yet, oldest first.
    stretches: VecDeque<Stretch>,
    /// Messages read that are above the last tick. A message may stand before a tick and be above it: the queue is in
    /// order of time only across ticks.
    above: Vec<(Position, Tso)>,
    /// The same of collections that are not carried here: one of them may be joined to this reader later, and then goes
    /// on from here after a restart, with both halves of each upsert.
    others: Vec<(Position, Tso)>,
    /// Messages of the stretch being read.
    cell: Arc<Cell>,
    closed_at: Option<Position>,
    /// W as it is on disk.
    pub(crate) sent: Tso,
    changed: bool,
    /// Its record is gone from the store: nothing of it may be written any more.
    pub(crate) retired: bool,
    /// Up to here another reader, which joined this one, has sent.
    pub(crate) joined: Tso,
    /// W at the start: up to here an earlier process may have sent.
    doubt: Tso,
}

impl Books {
    pub(crate) fn new(progress: Progress) -> Self {
        Self {
            progress,
            stretches: VecDeque::new(),
            above: Vec::new(),
            others: Vec::new(),
            cell: Arc::default(),
            closed_at: None,
            sent: progress.sent,
            changed: false,
            retired: false,
            joined: Tso::ZERO,
            doubt: progress.sent,
        }
    }

    /// What counts the messages of the stretch being read.
    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// A message is read that is to be carried.
    pub(crate) fn read(&mut self, position: Position, ts: Tso) {
        self.above.push((position, ts));
    }

    /// A message is read that may be of a collection that is not carried here.
    pub(crate) fn seen(&mut self, position: Position, ts: Tso) {
        self.others.push((position, ts));
    }

    /// The stretch up to `tick` is read.
    ///
    /// Reading goes on, after a restart, at the first message above the tick, even if that stands before it: an upsert's
    /// insert and delete have one timestamp and may stand on both sides of a tick, and must be replayed together.
    pub(crate) fn close(&mut self, position: Position, tick: Tso) {
        self.closed_at = Some(position);
        self.above.retain(|(_, ts)| *ts > tick);
        self.others.retain(|(_, ts)| *ts > tick);
        let first = self.above.first().into_iter().chain(self.others.first());
        let (resume, after) = match first.map(|(position, _)| *position).min() {
            Some(first) => (first, false),
            None => (position, true),
        };
        if self.cell.is_done()
            && let Some(last) = self.stretches.back_mut()
        {
            // Nothing open in it: it is acknowledged with the one before.
            (last.resume, last.after, last.tick) = (resume, after, tick);
            return;
        }
        let open = std::mem::take(&mut self.cell);
        self.stretches.push_back(Stretch {
            resume,
            after,
            tick,
            open,
        });
    }

    /// Where the stretch being read begins: its first message, and whether that one is behind the position.
    pub(crate) fn begun_at(&self) -> (Position, bool) {
        match self.stretches.back() {
            Some(last) => (last.resume, last.after),
            None => (self.progress.position, self.progress.after),
        }
    }

    /// What is applied by now.
    pub(crate) fn progress(&mut self) -> Progress {
        while let Some(stretch) = self.stretches.front() {
            if !stretch.open.is_done() {
                break;
            }
            self.progress.position = stretch.resume;
            self.progress.after = stretch.after;
            self.progress.applied = self.progress.applied.max(stretch.tick);
            self.changed = true;
            self.stretches.pop_front();
        }
        self.progress.sent = self.sent.max(self.progress.applied);
        self.progress
    }

    /// What is applied by now, if that is more than at the last call.
    pub(crate) fn news(&mut self) -> Option<Progress> {
        let progress = self.progress();
        (std::mem::take(&mut self.changed) && !self.retired).then_some(progress)
    }

    /// What keeps it from being clean, for people: stretches of which something is not acknowledged, and messages behind
    /// the last tick. `None` if nothing does.
    pub(crate) fn waits_for(&mut self) -> Option<(usize, usize)> {
        let clean = self.is_clean();
        (!clean).then_some((self.stretches.len(), self.above.len() + self.others.len()))
    }

    /// Nothing is in flight, and nothing was sent behind the last tick.
    pub(crate) fn is_clean(&mut self) -> bool {
        self.progress();
        self.stretches.is_empty() && self.above.is_empty() && self.progress.applied >= self.joined
    }

    /// Nothing is in flight: of a reader that reads no more, nothing else comes.
    pub(crate) fn is_settled(&mut self) -> bool {
        self.progress();
        self.stretches.is_empty() && self.cell.is_done()
    }

    /// What is true after a clean stop: nothing is in doubt but what was so at the start and is not replayed yet.
    pub(crate) fn clean(&mut self) -> Progress {
        let mut progress = self.progress();
        progress.sent = progress.applied.max(self.doubt);
        progress
    }

    /// Whether a message above the last tick was read.
    pub(crate) fn has_above(&self) -> bool {
        !self.above.is_empty()
    }

    /// The largest timestamp above the last tick that was read to be carried.
    pub(crate) fn highest(&self) -> Option<Tso> {
        self.above.iter().map(|(_, ts)| *ts).max()
    }

    /// Whether the last message read was a tick.
    pub(crate) fn ends_at(&self, position: Option<Position>) -> bool {
        self.closed_at.is_some() && self.closed_at == position
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lane::{Budget, Ticket};

    fn books() -> Books {
        Books::new(Progress {
            position: Position::Natsmq(1),
            after: false,
            applied: Tso(0),
            sent: Tso(50),
        })
    }

    fn ticket(books: &Books) -> Ticket {
        Ticket::new(books.cell(), &Arc::default(), &Budget::new(100), 1)
    }

    #[test]
    fn a_stretch_counts_when_all_before_it_is_acknowledged() {
        let mut books = books();
        let first = ticket(&books);
        books.close(Position::Natsmq(5), Tso(10));
        let second = ticket(&books);
        books.close(Position::Natsmq(9), Tso(20));
        drop(second);
        assert_eq!(books.news(), None, "the first stretch is open");
        drop(first);
        let progress = books.news().unwrap();
        assert_eq!(
            (progress.position, progress.after, progress.applied),
            (Position::Natsmq(9), true, Tso(20))
        );
        assert_eq!(progress.sent, Tso(50), "in doubt does not shrink by itself");
        assert!(books.is_clean());
    }

    #[test]
    fn a_message_above_the_tick_it_stands_before_is_read_again() {
        let mut books = books();
        books.read(Position::Natsmq(3), Tso(9));
        books.read(Position::Natsmq(4), Tso(12));
        books.close(Position::Natsmq(5), Tso(10));
        assert!(!books.is_clean(), "something above the tick was sent");
        let progress = books.progress();
        assert_eq!(
            (progress.position, progress.after, progress.applied),
            (Position::Natsmq(4), false, Tso(10))
        );
        books.close(Position::Natsmq(6), Tso(20));
        assert!(books.is_clean());
        assert_eq!(
            (books.progress().position, books.progress().after),
            (Position::Natsmq(6), true)
        );
    }

    #[test]
    fn a_message_of_another_collection_is_read_again_too() {
        let mut books = books();
        books.seen(Position::Natsmq(3), Tso(12));
        books.close(Position::Natsmq(5), Tso(10));
        assert!(books.is_clean(), "it is not this reader's");
        let progress = books.progress();
        assert_eq!(
            (progress.position, progress.after, progress.applied),
            (Position::Natsmq(3), false, Tso(10))
        );
    }

    #[test]
    fn a_clean_stop_leaves_in_doubt_what_an_earlier_process_may_have_sent() {
        let mut books = books();
        books.close(Position::Natsmq(5), Tso(10));
        books.sent = Tso(90);
        assert_eq!(books.clean().sent, Tso(50), "W at the start was 50");
        books.close(Position::Natsmq(9), Tso(70));
        assert_eq!(books.clean().sent, Tso(70));
    }

    #[test]
    fn empty_stretches_ride_on_the_open_one_before_them() {
        let mut books = books();
        let open = ticket(&books);
        books.close(Position::Natsmq(5), Tso(10));
        for i in 0..1000 {
            books.close(Position::Natsmq(6 + i), Tso(11 + i));
        }
        assert_eq!(
            books.stretches.len(),
            1,
            "memory does not grow while a message is stuck"
        );
        drop(open);
        assert_eq!(books.progress().position, Position::Natsmq(1005));
    }

    /// What a queue and a target do to a reader.
    #[derive(Clone, Debug)]
    enum Step {
        /// A message so far above the last tick; of a collection that is carried here, or of another one.
        Message(u64, bool),
        /// A tick so far above the last one.
        Tick(u64),
        /// One of the messages that are in flight is acknowledged.
        Ack(prop::sample::Index),
        /// The progress is stored.
        Store,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (1u64..40, prop::bool::weighted(0.8)).prop_map(|(ts, ours)| Step::Message(ts, ours)),
            2 => (1u64..30).prop_map(Step::Tick),
            5 => any::<prop::sample::Index>().prop_map(Step::Ack),
            2 => Just(Step::Store),
        ];
        proptest::collection::vec(step, 1..150)
    }

    /// A message that was read: its place, its time, whether it is carried here.
    type Was = (Position, Tso, bool);

    /// Whether a reader that begins at this progress reads the message and takes it for one that is not done.
    fn comes_again(progress: &Progress, (position, ts, _): &Was) -> bool {
        let read = match progress.after {
            true => *position > progress.position,
            false => *position >= progress.position,
        };
        read && *ts > progress.applied
    }

    proptest! {
        /// Wherever the process dies: what was not acknowledged comes again, what may have been sent is in doubt, and
        /// both halves of what another collection has above the last tick come again.
        #[test]
        fn what_is_stored_loses_nothing(steps in steps(), doubt in 0u64..100) {
            let start = Progress { position: Position::Natsmq(1), after: false, applied: Tso::ZERO, sent: Tso(doubt) };
            let mut books = Books::new(start);
            let (mut at, mut tick) = (0, 0);
            let mut all: Vec<Was> = Vec::new();
            let mut flying: Vec<(Was, Ticket)> = Vec::new();
            let mut before = start;
            for step in steps {
                match step {
                    Step::Message(above, ours) => {
                        at += 1;
                        let was = (Position::Natsmq(at), Tso(tick + above), ours);
                        if ours {
                            // W is on disk before anything is sent.
                            books.sent = books.sent.max(was.1);
                            flying.push((was, ticket(&books)));
                            books.read(was.0, was.1);
                        }
                        books.seen(was.0, was.1);
                        all.push(was);
                    }
                    Step::Tick(above) => {
                        at += 1;
                        tick += above;
                        books.close(Position::Natsmq(at), Tso(tick));
                    }
                    Step::Ack(which) if !flying.is_empty() => {
                        let which = which.index(flying.len());
                        drop(flying.swap_remove(which));
                    }
                    Step::Ack(_) => {}
                    Step::Store => drop(books.news()),
                }
                let now = books.progress();
                for (was, _) in &flying {
                    prop_assert!(comes_again(&now, was), "{was:?} is lost with {now:?}");
                }
                for was in &all {
                    prop_assert!(was.1 <= now.applied || comes_again(&now, was), "{was:?} is left out with {now:?}");
                    prop_assert!(!was.2 || was.1 <= now.sent, "{was:?} was sent and is not in doubt with {now:?}");
                }
                // It never goes back, and W not below C.
                prop_assert!((now.position, now.after) >= (before.position, before.after), "{before:?} {now:?}");
                prop_assert!(now.applied >= before.applied && now.sent >= before.sent && now.sent >= now.applied);
                prop_assert!(now.applied <= Tso(tick));
                before = now;
                if books.is_clean() {
                    prop_assert!(flying.is_empty());
                    let clean = books.clean();
                    prop_assert_eq!(clean.sent, clean.applied.max(Tso(doubt)));
                    prop_assert!(all.iter().all(|was| !was.2 || was.1 <= clean.applied));
                }
            }
            // All is acknowledged, and a tick passes all: nothing is left to do.
            flying.clear();
            let last = all.iter().map(|was| was.1).max().unwrap_or_default();
            books.close(Position::Natsmq(at + 1), last.max(Tso(tick + 1)));
            prop_assert!(books.is_clean());
            let end = books.progress();
            prop_assert_eq!((end.position, end.after), (Position::Natsmq(at + 1), true));
        }
    }
}
