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
        let wait = self.next.mul_f64(rand::rng().random_range(0.5..1.0));
        self.next = (self.next * 2).min(LONGEST);
        self.attempt += 1;
        wait
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}
