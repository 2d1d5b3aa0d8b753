//! A clock that goes on while a process is stopped and a machine sleeps.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the machine was started, the time it slept included.
pub fn boot_time() -> Duration {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(now) => Duration::from(now),
        // Linux always has this clock. Without it nothing that is bound to a time would ever be permitted.
        Err(_) => Duration::MAX,
    }
}
