//! How much may be under way to a target at once.
//!
//! A slow target divides what it can take among all lanes. If each call then takes longer than its deadline, all of them
//! are repeated, whole, and none ever gets through. So there is a window of bytes over all lanes: it halves when a call
//! has met its deadline and grows with those that are quick, as a TCP sender's does, and calls are made smaller with it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::task::Mode;

/// Sixteen lanes with a whole call each.
const WIDEST: usize = 64 << 20;
/// In plain mode the bytes of a call are there three times: as they were read, as the columns of several messages, and as
/// a request.
const WIDEST_PLAIN: usize = 16 << 20;
/// What a target begins with.
const FIRST: usize = 16 << 20;
const NARROWEST: usize = 256 << 10;
/// Calls up to this, ticks above all, wait for nobody.
const SMALL: usize = 16 << 10;
/// A call of several messages is at most this large: more makes it only slower (measured on 2.3.5: 5 MB in 129 ms, 53 MB
/// in 1.7 s). It is made smaller with the window, down to one message.
const LARGEST_CALL: usize = 4 << 20;
const SMALLEST_CALL: usize = 64 << 10;

pub(crate) struct Flow {
    widest: usize,
    state: Mutex<State>,
    /// Told when something is no longer under way.
    less: Notify,
    /// Who waits for room, in the order they came: a large call is not overtaken for ever by smaller ones.
    turn: tokio::sync::Mutex<()>,
}

struct State {
    window: usize,
    under_way: usize,
    /// When the window was narrowed last: calls that began before know of nothing new.
    narrowed: Option<Instant>,
}

impl Flow {
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            widest: match mode {
                Mode::Replicate => WIDEST,
                Mode::Plain => WIDEST_PLAIN,
            },
            state: Mutex::new(State {
                window: FIRST,
                under_way: 0,
                narrowed: None,
            }),
            less: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The most bytes that a call of several messages should have.
    pub(crate) fn call_limit(&self) -> usize {
        self.state.lock().call_limit()
    }

    /// Waits until a call may be made. `size`: how many bytes it has if it is not to have more than so many; asked
    /// whenever it is looked at, for while it waits calls may have to become smaller. One that is larger than the window
    /// waits until it is alone.
    pub(crate) async fn enter(&self, mut size: impl FnMut(usize) -> usize) -> Place<'_> {
        let mut take = |small_only: bool| {
            let mut state = self.state.lock();
            let bytes = size(state.call_limit());
            let free = bytes <= SMALL || !small_only && state.has_room(bytes);
            free.then(|| {
                state.under_way += bytes;
                bytes
            })
        };
        let bytes = match take(true) {
            Some(bytes) => bytes,
            None => {
                let _turn = self.turn.lock().await;
                loop {
                    let less = self.less.notified();
                    match take(false) {
                        Some(bytes) => break bytes,
                        None => less.await,
                    }
                }
            }
        };
        Place {
            flow: self,
            bytes,
            begun: Instant::now(),
        }
    }
}

impl State {
    fn call_limit(&self) -> usize {
        (self.window / 4).clamp(SMALLEST_CALL, LARGEST_CALL)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.under_way <= SMALL || self.under_way + bytes <= self.window
    }
}

/// A call's place among those under way. Dropped, it is free again.
pub(crate) struct Place<'a> {
    flow: &'a Flow,
    bytes: usize,
    begun: Instant,
}

impl Place<'_> {
    /// The call is over; `answered` or not, within `deadline`.
    pub(crate) fn over(self, answered: bool, deadline: Duration) {
        let took = self.begun.elapsed();
        let mut state = self.flow.state.lock();
        if answered {
            if took < deadline / 4 {
                state.window = (state.window + self.bytes / 2).min(self.flow.widest);
            }
        } else if took >= deadline && state.narrowed.is_none_or(|at| at <= self.begun) {
            state.window = (state.window.min(state.under_way) / 2).max(NARROWEST);
            state.narrowed = Some(Instant::now());
            tracing::debug!(window = state.window, "calls met their deadline");
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.flow.state.lock().under_way -= self.bytes;
        self.flow.less.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// A target that takes so many bytes a second, divided among the calls that are under way; one that meets its
    /// deadline has taken its share for nothing. How many bytes got through in 120 s.
    async fn carried(rate: usize, lanes: usize, message: usize) -> usize {
        let (flow, sharing) = (
            Arc::new(Flow::new(Mode::Replicate)),
            Arc::new(AtomicUsize::new(0)),
        );
        let through = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for _ in 0..lanes {
            let (flow, sharing, through) = (flow.clone(), sharing.clone(), through.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let place = flow.enter(|limit| limit.max(message)).await;
                    let bytes = place.bytes;
                    sharing.fetch_add(1, Ordering::SeqCst);
                    let call = async {
                        let mut left = bytes as f64;
                        while left > 0.0 {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            left -= rate as f64 * 0.02 / sharing.load(Ordering::SeqCst) as f64;
                        }
                    };
                    let answered = tokio::time::timeout(DEADLINE, call).await.is_ok();
                    sharing.fetch_sub(1, Ordering::SeqCst);
                    place.over(answered, DEADLINE);
                    if answered {
                        through.fetch_add(bytes, Ordering::SeqCst);
                    }
                }
            }));
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        for task in tasks {
            task.abort();
        }
        through.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_target_gets_on_at_its_own_pace() {
        for (rate, message) in [
            (1 << 20, 300 << 10),
            (1 << 20, 3 << 20),
            (100 << 10, 200 << 10),
        ] {
            let carried = carried(rate, 16, message).await;
            assert!(
                carried > rate * 120 / 2,
                "{carried} bytes at {rate} a second"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_target_has_all_lanes_at_once() {
        let rate = 1 << 30;
        let carried = carried(rate, 16, 4 << 20).await;
        assert!(carried > rate * 120 / 2, "{carried} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_wait_for_nobody_and_a_large_call_is_not_overtaken() {
        let flow = Arc::new(Flow::new(Mode::Replicate));
        let first = flow.enter(|_| FIRST).await;
        let _tick = tokio::time::timeout(Duration::from_millis(1), flow.enter(|_| 200))
            .await
            .unwrap();
        let large = tokio::spawn({
            let flow = flow.clone();
            async move { drop(flow.enter(|_| 2 * WIDEST).await) }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        let other =
            tokio::time::timeout(Duration::from_millis(10), flow.enter(|_| SMALL + 1)).await;
        assert!(
            other.is_err(),
            "there would be room, but another one waits for it"
        );
        drop(first);
        tokio::time::timeout(Duration::from_millis(10), large)
            .await
            .unwrap()
            .unwrap();
    }
}
