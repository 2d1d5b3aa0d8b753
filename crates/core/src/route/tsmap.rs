//! Source timestamps to target timestamps, strictly monotone.

use std::collections::BTreeMap;

use crate::tso::Tso;

/// How one stretch between two source ticks is re-stamped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TsMap {
    /// As on the source.
    Natural,
    /// Every timestamp of the stretch, raised.
    Raised(BTreeMap<u64, u64>),
}

impl TsMap {
    /// Raises all of `sources` above `floor`: equal stays equal, larger maps to larger, nothing falls below its own
    /// source timestamp.
    ///
    /// Target time never goes back: `floor` is at or above the last tick of the lane and above everything sent before
    /// this stretch that it must replace.
    pub fn raise(sources: impl IntoIterator<Item = u64>, floor: Tso) -> Self {
        let mut map: BTreeMap<u64, u64> = sources.into_iter().map(|ts| (ts, 0)).collect();
        let mut previous = floor.0;
        for (source, target) in &mut map {
            *target = (*source).max(previous.saturating_add(1));
            previous = *target;
        }
        TsMap::Raised(map)
    }

    pub fn get(&self, source: u64) -> u64 {
        match self {
            TsMap::Natural => source,
            TsMap::Raised(map) => map.get(&source).copied().unwrap_or(source),
        }
    }

    /// The smallest and the largest target timestamp; `None` for the natural map and for an empty one.
    pub fn range(&self) -> Option<(Tso, Tso)> {
        match self {
            TsMap::Natural => None,
            TsMap::Raised(map) => Some((
                Tso(*map.first_key_value()?.1),
                Tso(*map.last_key_value()?.1),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stretch_below_the_floor_is_raised_by_the_least() {
        let map = TsMap::raise([10, 12, 12, 30], Tso(20));
        assert_eq!([10, 12, 30].map(|ts| map.get(ts)), [21, 22, 30]);
        assert_eq!(map.range(), Some((Tso(21), Tso(30))));
    }

    proptest! {
        #[test]
        fn raised_time_is_strictly_monotone_above_the_floor_and_never_early(
            sources in proptest::collection::vec(0u64..1000, 1..50), floor in 0u64..1200,
        ) {
            let map = TsMap::raise(sources.clone(), Tso(floor));
            for a in &sources {
                prop_assert!(map.get(*a) > floor && map.get(*a) >= *a);
                for b in &sources {
                    prop_assert_eq!(a.cmp(b), map.get(*a).cmp(&map.get(*b)));
                }
            }
        }
    }
}
