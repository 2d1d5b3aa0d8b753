//! Messages that their producer wrote twice.

use std::collections::HashMap;

use crate::position::Position;
use crate::tso::Tso;

/// Of how many messages the ids are known at least. A producer that tries again has far fewer under way.
const KNOWN: usize = 1 << 17;

/// Which message ids one reader has met, and first at what position, since the tick that shows them.
///
/// A source's producer writes again what its broker did not acknowledge in time (seen on Kafka, whose broker was killed:
/// the same bytes at two offsets, nothing between them). The source takes one of them: between two ticks its own readers
/// drop an insert or delete whose `MsgBase.msgID` they have met (`pkg/mq/msgstream/mq_msgstream.go`, 2.3 to 2.5). Both
/// stand before the tick: the proxy lets none pass before its write is acknowledged.
///
/// By position, so that a stretch that is read again is not taken for a repetition of itself.
#[derive(Default)]
pub(super) struct Repeats {
    young: HashMap<i64, (Position, Tso)>,
    /// The generation before: memory stays bounded where ticks do not come.
    old: HashMap<i64, (Position, Tso)>,
}

impl Repeats {
    /// Whether the message at `position` is one that stands before it as well. `ts`: its largest timestamp.
    pub(super) fn is_repeated(&mut self, id: i64, position: Position, ts: Tso) -> bool {
        let known = self.young.get(&id).or_else(|| self.old.get(&id));
        if let Some((first, _)) = known {
            return *first < position;
        }
        if self.young.len() >= KNOWN {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, (position, ts));
        false
    }

    /// The stretch up to `tick` is over.
    pub(super) fn close(&mut self, tick: Tso) {
        for generation in [&mut self.young, &mut self.old] {
            generation.retain(|_, (_, ts)| *ts > tick);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Position {
        Position::Natsmq(n)
    }

    #[test]
    fn a_second_one_is_told_until_its_tick() {
        let mut repeats = Repeats::default();
        assert!(!repeats.is_repeated(7, at(1), Tso(10)));
        assert!(!repeats.is_repeated(8, at(2), Tso(30)));
        assert!(repeats.is_repeated(7, at(3), Tso(10)));
        // Read again from its beginning: the first is the first still.
        assert!(!repeats.is_repeated(7, at(1), Tso(10)));
        assert!(repeats.is_repeated(7, at(3), Tso(10)));
        repeats.close(Tso(20));
        assert!(!repeats.is_repeated(7, at(5), Tso(25)));
        assert!(repeats.is_repeated(8, at(6), Tso(30)));
    }

    #[test]
    fn without_ticks_the_last_ones_are_known_and_no_more_than_twice_as_many() {
        let mut repeats = Repeats::default();
        let n = 3 * KNOWN as u64;
        for i in 0..n {
            assert!(!repeats.is_repeated(i as i64, at(i), Tso(1)));
        }
        assert!(repeats.young.len() + repeats.old.len() <= 2 * KNOWN);
        assert!(repeats.is_repeated((n - KNOWN as u64) as i64, at(n), Tso(1)));
    }
}
