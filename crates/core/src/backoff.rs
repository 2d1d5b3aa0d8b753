//! Waiting between tries.

use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubling waits with jitter, up to ten seconds.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    pub attempt: u32,
}

impl Backoff {
    #[allow(
        clippy::new_without_default,
        reason = "a back-off begins somewhere, it has no neutral value"
    )]
    pub fn new() -> Self {
        Self {
            next: FIRST,
            attempt: 0,
        }
    }

    /// The wait before the next try.
    pub fn step(&mut self) -> Duration {
        let wait = self.next.mul_f64(jitter());
        self.next = (self.next * 2).min(LONGEST);
        self.attempt += 1;
        wait
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}

fn jitter() -> f64 {
    #[cfg(any(test, feature = "testkit"))]
    if let Some(jitter) = seeded::next() {
        return jitter;
    }
    rand::rng().random_range(0.5..1.0)
}

/// Waits that are the same whenever a simulation runs again.
#[cfg(any(test, feature = "testkit"))]
pub mod seeded {
    use std::cell::RefCell;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    thread_local! {
        static RNG: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// From now on the jitter of this thread's back-offs is of this seed.
    pub fn seed(seed: u64) {
        RNG.with_borrow_mut(|rng| *rng = Some(StdRng::seed_from_u64(seed)));
    }

    pub(super) fn next() -> Option<f64> {
        RNG.with_borrow_mut(|rng| rng.as_mut().map(|rng| rng.random_range(0.5..1.0)))
    }
}
