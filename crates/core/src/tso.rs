//! Milvus' hybrid timestamp.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

const LOGICAL_BITS: u32 = 18;

/// A timestamp of Milvus' timestamp oracle: unix milliseconds in the upper 46 bits, a counter in the lower 18
/// (`pkg/util/tsoutil`).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tso(pub u64);

impl Tso {
    pub const ZERO: Tso = Tso(0);
    pub const MAX: Tso = Tso(u64::MAX);

    /// This machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self::from_millis(since.unwrap_or_default().as_millis() as u64)
    }

    pub const fn from_millis(unix_ms: u64) -> Self {
        Self(unix_ms << LOGICAL_BITS)
    }

    /// The physical part, in unix milliseconds.
    pub const fn millis(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The next larger timestamp.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// This timestamp moved into the future by `d` (whole milliseconds).
    #[must_use]
    pub const fn plus(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_add((d.as_millis() as u64) << LOGICAL_BITS),
        )
    }

    /// How far `self` lies behind `later`; zero if it does not.
    pub const fn behind(self, later: Tso) -> Duration {
        Duration::from_millis(later.millis().saturating_sub(self.millis()))
    }
}

impl fmt::Display for Tso {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_part_survives_and_orders_before_the_counter() {
        let t = Tso::from_millis(1_700_000_000_123);
        assert_eq!(t.millis(), 1_700_000_000_123);
        assert!(t < t.next());
        assert!(t.next() < t.plus(Duration::from_millis(1)));
        assert_eq!(
            t.behind(t.plus(Duration::from_secs(2))),
            Duration::from_secs(2)
        );
        assert_eq!(t.plus(Duration::from_secs(2)).behind(t), Duration::ZERO);
    }
}
