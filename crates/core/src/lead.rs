//! How far ahead W and F are raised.
//!
//! Both are times that have to be on disk before anything above them is sent, so they are raised ahead of what is sent
//! now. Rows of this moment pass as fast as the clock; those of a backlog many times as fast, and a lead of half a second
//! of theirs is used up at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::tso::Tso;

/// What lies between a time and its lead is in doubt after a crash, and cannot be shown before it has passed: no more of
/// it than this, however fast it passes.
const MOST: Duration = Duration::from_secs(10);

/// A lead that grows where it is used up quickly.
#[derive(Debug)]
pub(crate) struct Lead {
    least: Duration,
    now: Duration,
    raised: Option<Instant>,
}

impl Lead {
    /// `least`: what it is where time passes as fast as the clock.
    pub(crate) fn new(least: Duration) -> Self {
        Self {
            least,
            now: least,
            raised: None,
        }
    }

    /// Whether less than this part of the lead is left above `ts`.
    pub(crate) fn is_low(&self, ts: Tso, raised: Tso, part: f64) -> bool {
        ts.behind(raised) < self.now.mul_f64(part)
    }

    /// What to raise to when `ts` is to be sent: as far as the last lead was too short, but not beyond the present for
    /// that. `clock`: the present.
    pub(crate) fn raise(&mut self, ts: Tso, clock: Tso) -> Tso {
        let now = Instant::now();
        if let Some(last) = self.raised.replace(now) {
            let lasted = now.duration_since(last);
            if lasted < self.least / 2 {
                self.now = (self.now * 2).min(MOST);
            } else if lasted > self.least * 2 {
                self.now = (self.now / 2).max(self.least);
            }
        }
        self.above(ts, clock)
    }

    /// The same, without a look at how long the last one lasted: when another one's is raised.
    pub(crate) fn above(&self, ts: Tso, clock: Tso) -> Tso {
        ts.plus(self.least).max(ts.plus(self.now).min(clock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(400);

    /// How often it is raised within ten seconds if rows pass so many times as fast as the clock, and begin so long ago.
    async fn raises(speed: u32, ago: Duration) -> usize {
        let mut lead = Lead::new(LEAST);
        let begin = Tso::from_millis(1_000_000_000);
        let (mut raised, mut times) = (Tso::ZERO, 0);
        for step in 0..1000 {
            let passed = Duration::from_millis(10) * step;
            let clock = begin.plus(ago + passed);
            let ts = begin.plus(passed * speed);
            if ts > raised {
                raised = lead.raise(ts, clock);
                assert!(raised >= ts.plus(LEAST) && raised <= ts.plus(MOST));
                assert!(raised <= clock.max(ts.plus(LEAST)), "beyond the present");
                times += 1;
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_raised_a_few_times_a_second_also_where_time_passes_quickly() {
        let day = Duration::from_secs(24 * 3600);
        assert!(raises(1, Duration::ZERO).await <= 25);
        assert!(raises(10, day).await <= 50);
        assert!(raises(30, day).await <= 60);
    }
}
