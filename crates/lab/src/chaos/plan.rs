//! Which faults come when: pure, and made from a seed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::servers::Mq;

/// Where a connection of milvus-cdc breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Target,
    /// The source's etcd.
    Etcd,
    /// The source's queue.
    Queue,
}

/// How it breaks; [`crate::link::Way`] without its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    Cut,
    Delay,
    BlackHole,
    HalfClose,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of milvus-cdc, and a new start.
    KillCdc,
    /// SIGSTOP of milvus-cdc, and SIGCONT.
    FreezeCdc,
    Wire(Place, Wire),
    /// ReplicateMessage calls whose reply does not come back.
    LostReplies,
    /// etcd forgets everything before its present revision.
    CompactEtcd,
    DefragEtcd,
    /// No byte more can be written where the store of milvus-cdc is.
    FullDisk,
    KillBroker,
    KillEtcd,
    KillSource,
    KillTarget,
}

/// Every kind, as often as it is in the deck from which faults are drawn.
const DECK: [(Kind, usize); 22] = [
    (Kind::KillCdc, 12),
    (Kind::FreezeCdc, 4),
    (Kind::Wire(Place::Target, Wire::Cut), 2),
    (Kind::Wire(Place::Target, Wire::Delay), 1),
    (Kind::Wire(Place::Target, Wire::BlackHole), 2),
    (Kind::Wire(Place::Target, Wire::HalfClose), 1),
    (Kind::Wire(Place::Etcd, Wire::Cut), 1),
    (Kind::Wire(Place::Etcd, Wire::Delay), 1),
    (Kind::Wire(Place::Etcd, Wire::BlackHole), 1),
    (Kind::Wire(Place::Etcd, Wire::HalfClose), 1),
    (Kind::Wire(Place::Queue, Wire::Cut), 1),
    (Kind::Wire(Place::Queue, Wire::Delay), 1),
    (Kind::Wire(Place::Queue, Wire::BlackHole), 1),
    (Kind::Wire(Place::Queue, Wire::HalfClose), 1),
    (Kind::LostReplies, 2),
    (Kind::CompactEtcd, 2),
    (Kind::DefragEtcd, 1),
    (Kind::FullDisk, 2),
    (Kind::KillBroker, 2),
    (Kind::KillEtcd, 1),
    (Kind::KillSource, 1),
    (Kind::KillTarget, 1),
];

/// A group of kinds, for `--faults`.
const PROXY: &str = "proxy";
/// Between the end of a fault and the next one, in milliseconds, at least; and at most, if nothing else is asked for.
const SHORTEST_GAP: u64 = 500;
pub const LONGEST_GAP: Duration = Duration::from_secs(9);
/// Of so many SIGSTOPs one lasts [`LONG`]: longer than every deadline.
const LONG_ONE_OF: u32 = 6;
const LONG: Duration = Duration::from_secs(60);

impl Kind {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        DECK.into_iter().map(|(kind, _)| kind)
    }

    /// What it is called on the command line and in the figures.
    pub fn name(self) -> String {
        match self {
            Kind::KillCdc => "kill-cdc".to_owned(),
            Kind::FreezeCdc => "freeze-cdc".to_owned(),
            Kind::LostReplies => "lost-replies".to_owned(),
            Kind::CompactEtcd => "compact-etcd".to_owned(),
            Kind::DefragEtcd => "defrag-etcd".to_owned(),
            Kind::FullDisk => "full-disk".to_owned(),
            Kind::KillBroker => "kill-broker".to_owned(),
            Kind::KillEtcd => "kill-etcd".to_owned(),
            Kind::KillSource => "kill-source".to_owned(),
            Kind::KillTarget => "kill-target".to_owned(),
            Kind::Wire(place, wire) => {
                let place = match place {
                    Place::Target => "target",
                    Place::Etcd => "etcd",
                    Place::Queue => "queue",
                };
                let wire = match wire {
                    Wire::Cut => "cut",
                    Wire::Delay => "delay",
                    Wire::BlackHole => "blackhole",
                    Wire::HalfClose => "halfclose",
                };
                format!("{place}-{wire}")
            }
        }
    }

    /// Why a lab with this queue cannot do it.
    fn impossible(self, queue: Mq) -> Option<&'static str> {
        match (self, queue) {
            (Kind::KillBroker, Mq::Natsmq | Mq::Rocksmq) => {
                Some("the queue is in the source's own process")
            }
            (Kind::Wire(Place::Queue, _), Mq::Kafka | Mq::Pulsar) => {
                Some("the broker tells clients its own address, past the proxy")
            }
            (Kind::Wire(Place::Queue, _), Mq::Rocksmq) => Some("the queue is read as files"),
            _ => None,
        }
    }

    /// Why it happens only where `--faults` names it.
    fn unsafe_by_default(self, queue: Mq) -> Option<&'static str> {
        match (self, queue) {
            (Kind::KillSource, _) => {
                Some("a 2.3.5 source that is killed can lose or double rows of its own")
            }
            (Kind::KillTarget, _) => Some(
                "a 2.3.5 target that is killed loses rows it has not flushed and gets them again, which the comparison may not wait long enough for",
            ),
            (Kind::KillBroker, Mq::Pulsar) => {
                Some("a 2.3.5 source whose Pulsar is killed can lose or double rows of its own")
            }
            (Kind::KillEtcd, _) => Some("a 2.3.5 source whose etcd is killed may end as well"),
            _ => None,
        }
    }
}

/// The kinds of a run, and those that it leaves out with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub kinds: Vec<Kind>,
    pub left_out: BTreeMap<String, String>,
}

/// What `--faults` asks for; all that are safe with this queue if it asks for nothing.
///
/// # Errors
/// A name that is none, or nothing is left.
pub fn choose(asked: &[String], queue: Mq) -> Result<Chosen> {
    for name in asked {
        if name != PROXY && !Kind::all().any(|kind| kind.name() == *name) {
            let known: Vec<String> = Kind::all().map(Kind::name).collect();
            bail!(
                "--faults: no {name:?}; there are {PROXY}, {}",
                known.join(", ")
            );
        }
    }
    let names = |kind: Kind| {
        let of_proxy = matches!(kind, Kind::Wire(..) | Kind::LostReplies);
        asked
            .iter()
            .any(|name| *name == kind.name() || (name == PROXY && of_proxy))
    };
    let mut chosen = Chosen {
        kinds: Vec::new(),
        left_out: BTreeMap::new(),
    };
    for kind in Kind::all() {
        let reason = match kind.impossible(queue) {
            Some(reason) => Some(format!("not possible here: {reason}")),
            None if asked.is_empty() => kind
                .unsafe_by_default(queue)
                .map(|reason| format!("off by default: {reason}")),
            None => (!names(kind)).then(|| "not asked for".to_owned()),
        };
        match reason {
            Some(reason) => _ = chosen.left_out.insert(kind.name(), reason),
            None => chosen.kinds.push(kind),
        }
    }
    if chosen.kinds.is_empty() {
        bail!("none of the faults {asked:?} is possible with this queue");
    }
    Ok(chosen)
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    /// How long it lasts: what is killed is down, what is broken stays so.
    pub lasts: Duration,
    /// Of a [`Wire::Delay`].
    pub delay: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        if self.delay > Duration::ZERO {
            write!(f, " of {} ms", self.delay.as_millis())?;
        }
        if self.lasts > Duration::ZERO {
            write!(f, " for {:.1} s", self.lasts.as_secs_f64())?;
        }
        Ok(())
    }
}

/// A fault and how long after the one before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub after: Duration,
    pub fault: Fault,
}

/// Faults without end: the same seed and kinds give the same ones.
#[derive(Debug)]
pub struct Schedule {
    random: StdRng,
    kinds: Vec<Kind>,
    deck: VecDeque<Kind>,
    /// Of the gaps, in milliseconds.
    longest: u64,
}

impl Schedule {
    /// `longest`: between the end of a fault and the next one.
    pub fn new(seed: u64, kinds: &[Kind], longest: Duration) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            kinds: kinds.to_vec(),
            deck: VecDeque::new(),
            longest: (longest.as_millis() as u64).max(SHORTEST_GAP + 1),
        }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if self.deck.is_empty() {
            let mut deck: Vec<Kind> = DECK
                .into_iter()
                .filter(|(kind, _)| self.kinds.contains(kind))
                .flat_map(|(kind, n)| std::iter::repeat_n(kind, n))
                .collect();
            deck.shuffle(&mut self.random);
            self.deck = deck.into();
        }
        let kind = self.deck.pop_front()?;
        let after = self.millis(SHORTEST_GAP..self.longest);
        let lasts = match kind {
            Kind::KillCdc => self.millis(0..2_000),
            Kind::FreezeCdc if self.random.random_ratio(1, LONG_ONE_OF) => LONG,
            Kind::FreezeCdc => self.millis(500..12_000),
            Kind::Wire(_, Wire::Cut) => self.millis(10..3_000),
            Kind::Wire(_, Wire::Delay) => self.millis(3_000..10_000),
            Kind::Wire(_, Wire::BlackHole) => self.millis(1_000..15_000),
            Kind::LostReplies => self.millis(2_000..8_000),
            Kind::FullDisk => self.millis(2_000..10_000),
            Kind::KillBroker => self.millis(0..8_000),
            Kind::KillEtcd | Kind::KillSource | Kind::KillTarget => self.millis(0..3_000),
            Kind::Wire(_, Wire::HalfClose) | Kind::CompactEtcd | Kind::DefragEtcd => Duration::ZERO,
        };
        // Below the second within which a call may still arrive: see the limits in the README.
        let delay = match kind {
            Kind::Wire(_, Wire::Delay) => self.millis(20..400),
            _ => Duration::ZERO,
        };
        Some(Planned {
            after,
            fault: Fault { kind, lasts, delay },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const QUEUES: [Mq; 4] = [Mq::Natsmq, Mq::Rocksmq, Mq::Kafka, Mq::Pulsar];

    fn plan(seed: u64, kinds: &[Kind]) -> Vec<Planned> {
        Schedule::new(seed, kinds, LONGEST_GAP).take(200).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_one_another() {
        let kinds = choose(&[], Mq::Natsmq).unwrap().kinds;
        assert_eq!(plan(7, &kinds), plan(7, &kinds));
        assert_ne!(plan(7, &kinds), plan(8, &kinds));
    }

    #[test]
    fn gaps_are_as_long_as_asked_for() {
        let longest = Duration::from_secs(2);
        let gaps = Schedule::new(5, &[Kind::KillCdc], longest).take(200);
        let gaps: Vec<Duration> = gaps.map(|p| p.after).collect();
        let shortest = Duration::from_millis(SHORTEST_GAP);
        assert!(gaps.iter().all(|gap| (shortest..longest).contains(gap)));
        assert!(gaps.iter().any(|gap| *gap > longest.mul_f64(0.9)));
        // As short as can be.
        let none = Schedule::new(5, &[Kind::KillCdc], Duration::ZERO).next();
        assert_eq!(none.unwrap().after, shortest);
    }

    #[test]
    fn every_kind_comes_and_the_kill_of_milvus_cdc_most_often() {
        for queue in QUEUES {
            let kinds = choose(&[], queue).unwrap().kinds;
            let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
            for planned in plan(3, &kinds) {
                *counts.entry(planned.fault.kind).or_default() += 1;
            }
            let seen: BTreeSet<Kind> = counts.keys().copied().collect();
            assert_eq!(seen, kinds.iter().copied().collect());
            let most = counts
                .iter()
                .max_by_key(|(_, n)| **n)
                .map(|(kind, _)| *kind);
            assert_eq!(most, Some(Kind::KillCdc), "{counts:?}");
        }
    }

    #[test]
    fn now_and_then_a_freeze_outlives_every_deadline() {
        let all = plan(1, &[Kind::FreezeCdc]);
        let long = all.iter().filter(|p| p.fault.lasts == LONG).count();
        assert!((10..80).contains(&long), "{long} of {}", all.len());
    }

    #[test]
    fn each_kind_is_done_or_named_with_a_reason() {
        for queue in QUEUES {
            let chosen = choose(&[], queue).unwrap();
            for kind in Kind::all() {
                let done = chosen.kinds.contains(&kind);
                assert_ne!(done, chosen.left_out.contains_key(&kind.name()), "{kind:?}");
            }
        }
        let left_out = choose(&[], Mq::Rocksmq).unwrap().left_out;
        assert!(left_out["kill-broker"].starts_with("not possible here"));
        assert!(left_out["kill-target"].starts_with("off by default"));
    }

    #[test]
    fn what_is_asked_for_is_done_even_if_it_is_off_by_default() {
        let asked = |names: &[&str], queue| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            choose(&names, queue)
        };
        let chosen = asked(&["kill-target", "proxy"], Mq::Natsmq).unwrap();
        assert!(chosen.kinds.contains(&Kind::KillTarget));
        assert!(chosen.kinds.contains(&Kind::LostReplies));
        assert!(!chosen.kinds.contains(&Kind::KillCdc));
        let unknown = asked(&["kill-everything"], Mq::Natsmq).unwrap_err();
        assert!(unknown.to_string().contains("kill-cdc"));
        assert!(asked(&["kill-broker"], Mq::Natsmq).is_err());
    }
}
