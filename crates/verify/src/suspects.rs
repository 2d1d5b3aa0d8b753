//! Keys that differed at a look, until later looks clear or convict them. Pure.
//!
//! While rows flow, the target is a little behind: a difference may be in flight. A key is clear as soon as one look at
//! both sides finds it equal. It is convicted if it differs at the last look, and the source has held the same since the
//! look before: then the target had the time in between. Where the source itself changed in that time, nothing can be
//! said of it.

use std::collections::BTreeMap;

use crate::client::Key;
use crate::hash::RowHash;
use crate::report::Kind;

/// A row on both sides; `None` where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub source: Option<RowHash>,
    pub target: Option<RowHash>,
}

impl Seen {
    fn is_equal(&self) -> bool {
        self.source == self.target
    }
}

#[derive(Debug, Clone, Copy)]
struct Suspect {
    seen: Seen,
    /// The source holds what it held at the look before; true if there was none.
    steady: bool,
}

/// The suspects of one place. Holds no more keys than its bound.
#[derive(Debug)]
pub struct Suspects {
    kept: BTreeMap<Key, Suspect>,
    /// Those from before the look at everything that is under way.
    before: BTreeMap<Key, Suspect>,
    bound: usize,
    dropped: u64,
}

/// What the looks came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    pub different: Vec<(Key, Kind)>,
    /// They differed, but the source changed them between the last two looks.
    pub unsettled: Vec<Key>,
    /// Keys that differed at the last look at everything, and were too many to be kept.
    pub dropped: u64,
}

impl Suspects {
    /// `bound`: how many keys are kept.
    pub fn new(bound: usize) -> Self {
        Self {
            kept: BTreeMap::new(),
            before: BTreeMap::new(),
            bound,
            dropped: 0,
        }
    }

    /// A look at everything begins: keys it does not find different are clear.
    pub fn begin(&mut self) {
        self.before = std::mem::take(&mut self.kept);
        self.dropped = 0;
    }

    /// A look at everything came to its end.
    pub fn end(&mut self) {
        self.before.clear();
    }

    /// A look at everything broke off: keys that it had not come to are as they were.
    pub fn break_off(&mut self) {
        let mut before = std::mem::take(&mut self.before);
        before.append(&mut self.kept);
        while before.len() > self.bound {
            before.pop_last();
            self.dropped += 1;
        }
        self.kept = before;
    }

    /// Both sides were looked at.
    pub fn look(&mut self, key: &Key, seen: Seen) {
        let earlier = self.kept.remove(key).or_else(|| self.before.remove(key));
        if seen.is_equal() {
            return;
        }
        if self.kept.len() >= self.bound {
            self.dropped += 1;
            return;
        }
        let steady = earlier.is_none_or(|e| e.seen.source == seen.source);
        self.kept.insert(key.clone(), Suspect { seen, steady });
    }

    /// Those to look at again.
    pub fn keys(&self) -> Vec<Key> {
        self.kept.keys().cloned().collect()
    }

    /// Keys that are held.
    pub fn held(&self) -> usize {
        self.kept.len() + self.before.len()
    }

    pub fn is_clear(&self) -> bool {
        self.kept.is_empty() && self.dropped == 0
    }

    /// More differed than are kept: another look at everything is needed to clear them.
    pub fn has_dropped(&self) -> bool {
        self.dropped > 0
    }

    /// What is to be said after the last look.
    pub fn outcome(&self) -> Outcome {
        let mut outcome = Outcome {
            dropped: self.dropped,
            ..Outcome::default()
        };
        for (key, suspect) in &self.kept {
            if !suspect.steady {
                outcome.unsettled.push(key.clone());
                continue;
            }
            let kind = match (suspect.seen.source, suspect.seen.target) {
                (Some(_), None) => Kind::Missing,
                (None, Some(_)) => Kind::Extra,
                _ => Kind::Changed,
            };
            outcome.different.push((key.clone(), kind));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::client::{Row, Value};

    fn hash(of: Option<u8>) -> Option<RowHash> {
        let row = |v: u8| Row::from([("f".to_owned(), Value::Int(v.into()))]);
        of.map(|v| RowHash::of(&row(v)))
    }

    fn seen(source: Option<u8>, target: Option<u8>) -> Seen {
        Seen {
            source: hash(source),
            target: hash(target),
        }
    }

    const KEY: Key = Key::Int(1);

    #[test]
    fn a_later_equal_look_clears() {
        let mut s = Suspects::new(9);
        s.look(&KEY, seen(Some(1), None));
        assert_eq!(s.outcome().different, [(KEY, Kind::Missing)]);
        s.look(&KEY, seen(Some(1), Some(1)));
        assert!(s.is_clear());
        assert_eq!(s.outcome(), Outcome::default());
    }

    #[test]
    fn what_the_source_itself_changes_is_unsettled() {
        let mut s = Suspects::new(9);
        s.look(&KEY, seen(Some(1), Some(0)));
        s.look(&KEY, seen(Some(2), Some(1)));
        assert_eq!(s.outcome().unsettled, [KEY]);
        assert!(s.outcome().different.is_empty());
        // It stands still now, and the target does not follow.
        s.look(&KEY, seen(Some(2), Some(1)));
        assert_eq!(s.outcome().different, [(KEY, Kind::Changed)]);
        s.look(&KEY, seen(None, Some(1)));
        s.look(&KEY, seen(None, Some(1)));
        assert_eq!(s.outcome().different, [(KEY, Kind::Extra)]);
    }

    #[test]
    fn a_look_at_everything_clears_what_it_does_not_find() {
        let mut s = Suspects::new(9);
        s.look(&KEY, seen(Some(1), None));
        s.look(&Key::Int(2), seen(Some(1), Some(2)));
        s.begin();
        s.look(&Key::Int(2), seen(Some(3), Some(2)));
        s.end();
        let outcome = s.outcome();
        assert!(outcome.different.is_empty());
        // What was known of the other one is not forgotten: the source has changed it.
        assert_eq!(outcome.unsettled, [Key::Int(2)]);
    }

    #[test]
    fn a_look_that_breaks_off_clears_only_what_it_came_to() {
        let mut s = Suspects::new(9);
        s.look(&KEY, seen(Some(1), None));
        s.look(&Key::Int(2), seen(Some(1), None));
        s.begin();
        s.look(&KEY, seen(Some(1), Some(1)));
        s.break_off();
        assert_eq!(s.keys(), [Key::Int(2)]);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut s = Suspects::new(2);
        for k in 0..5 {
            s.look(&Key::Int(k), seen(Some(1), None));
        }
        assert_eq!((s.held(), s.outcome().dropped), (2, 3));
        assert!(s.has_dropped() && !s.is_clear());
        s.begin();
        s.end();
        assert!(s.is_clear());
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// The source takes this value for the key.
        Write(u8, Option<u8>),
        /// The target takes over what the source holds, except for the keys that are broken.
        Follow,
        /// All suspects are looked at again.
        Again,
        /// Everything is looked at.
        Everything,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(
            prop_oneof![
                4 => (0..8u8, prop::option::of(0..3u8)).prop_map(|(k, v)| Event::Write(k, v)),
                2 => Just(Event::Follow),
                2 => Just(Event::Again),
                1 => Just(Event::Everything),
            ],
            0..60,
        )
    }

    type Side = BTreeMap<u8, u8>;

    fn look(s: &mut Suspects, keys: &[u8], source: &Side, target: &Side) {
        for k in keys {
            let seen = seen(source.get(k).copied(), target.get(k).copied());
            s.look(&Key::Int((*k).into()), seen);
        }
    }

    fn everything(s: &mut Suspects, source: &Side, target: &Side) {
        s.begin();
        look(s, &(0..8).collect::<Vec<_>>(), source, target);
        s.end();
    }

    fn again(s: &mut Suspects, source: &Side, target: &Side) {
        let keys: Vec<u8> = s
            .keys()
            .iter()
            .filter_map(|k| match k {
                Key::Int(i) => u8::try_from(*i).ok(),
                Key::Str(_) => None,
            })
            .collect();
        look(s, &keys, source, target);
    }

    proptest! {
        /// Whatever happens on the way: when it has become quiet and the target has followed, just the broken keys are
        /// convicted; and never are more kept than the bound.
        #[test]
        fn in_the_end_just_the_broken_keys_are_convicted(
            events in events(),
            broken in prop::collection::btree_map(0..8u8, prop::option::of(3..5u8), 0..4),
            bound in 1..9usize,
        ) {
            let (mut source, mut target) = (Side::new(), Side::new());
            let mut s = Suspects::new(bound);
            let follow = |source: &Side, target: &mut Side| {
                *target = source.clone();
                for (k, v) in &broken {
                    match v {
                        Some(v) => _ = target.insert(*k, *v),
                        None => _ = target.remove(k),
                    }
                }
            };
            for event in events {
                match event {
                    Event::Write(k, Some(v)) => _ = source.insert(k, v),
                    Event::Write(k, None) => _ = source.remove(&k),
                    Event::Follow => follow(&source, &mut target),
                    Event::Again => again(&mut s, &source, &target),
                    Event::Everything => everything(&mut s, &source, &target),
                }
                prop_assert!(s.held() <= 2 * bound && s.keys().len() <= bound);
            }
            follow(&source, &mut target);
            everything(&mut s, &source, &target);
            again(&mut s, &source, &target);
            let wrong: BTreeSet<u8> = (0..8).filter(|k| source.get(k) != target.get(k)).collect();
            let outcome = s.outcome();
            prop_assert!(outcome.unsettled.is_empty());
            prop_assert_eq!(outcome.different.len() as u64 + outcome.dropped, wrong.len() as u64);
            prop_assert_eq!(outcome.different.len(), wrong.len().min(bound));
            for (key, _) in outcome.different {
                prop_assert!(wrong.iter().any(|k| Key::Int((*k).into()) == key));
            }
        }

        /// A key that the source changes between any two looks is never convicted.
        #[test]
        fn a_key_in_motion_is_never_convicted(looks in 2..20u8) {
            let mut s = Suspects::new(1);
            for n in 0..looks {
                s.look(&KEY, seen(Some(n + 1), Some(n)));
            }
            prop_assert!(s.outcome().different.is_empty());
            prop_assert_eq!(s.outcome().unsettled, vec![KEY]);
        }
    }
}
