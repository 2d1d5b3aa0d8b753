//! Durations in buckets that grow by a fixed ratio: percentiles with a known error, in bounded memory.

/// Each bucket is this much wider than the one before: a percentile is at most 5 % too large.
const RATIO: f64 = 1.05;
/// Microseconds from 1 to about 10 hours.
const BUCKETS: usize = 500;

#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            max_us: 0,
        }
    }
}

impl Histogram {
    /// Adds `n` times the same duration, in microseconds.
    pub fn add(&mut self, us: u64, n: u64) {
        let bucket = (us.max(1) as f64).ln() / RATIO.ln();
        self.counts[(bucket as usize).min(BUCKETS - 1)] += n;
        self.total += n;
        self.max_us = self.max_us.max(us);
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The duration that this share of all (0 to 1) does not exceed, in milliseconds; `None` of nothing.
    pub fn at(&self, share: f64) -> Option<f64> {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        let upper = RATIO.powi(bucket as i32 + 1).min(self.max_us.max(1) as f64);
        Some(upper / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_bucket() {
        let mut all = Histogram::default();
        assert_eq!(all.at(0.5), None);
        for us in 1..=100_000 {
            all.add(us, 1);
        }
        for (share, wanted) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = all.at(share).unwrap();
            assert!(
                (wanted..=wanted * RATIO).contains(&found),
                "{share}: {found}, not {wanted}"
            );
        }
        all.add(u64::MAX, 1);
        assert!(all.at(1.0).unwrap() > 1e6);
    }
}
