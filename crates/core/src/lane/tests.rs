//! The lane's rules on its state alone: when a tick may go, and above what rows must be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::state::{Call, Outgoing, State};
use super::{Budget, Cell, StreamCtl, Ticket};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::secret::Secret;
use crate::store::memory::MemoryStore;
use crate::store::{Change, ProgressStore};
use crate::target::hub::Hubs;
use crate::target::memory::MemoryTarget;
use crate::task::TargetSpec;
use crate::tls::ClientTls;
use crate::tso::Tso;

fn ms(ms: u64) -> Tso {
    Tso::from_millis(ms)
}

fn stream(id: i64) -> Arc<StreamCtl> {
    StreamCtl::new(CollectionId(id), Arc::new(Notify::new()), Arc::default())
}

fn message(stream: &Arc<StreamCtl>, ts: Tso) -> Outgoing {
    Outgoing {
        stream: stream.clone(),
        bytes: Bytes::from_static(b"row").into(),
        ts,
        rows: 1,
        is_insert: true,
        partition: None,
        origin: None,
        ticket: None,
        ticked: None,
    }
}

/// Sends and acknowledges everything that is due; the ticks sent, in order.
fn settle(state: &mut State) -> Vec<Tso> {
    let mut ticks = Vec::new();
    while let Some(call) = state.gather(true, usize::MAX) {
        ticks.extend(call.tick);
        assert!(
            call.messages
                .iter()
                .all(|m| call.tick.is_none_or(|t| m.ts > t)),
            "rows above the tick that leads"
        );
        state.acknowledged(call);
    }
    ticks
}

#[test]
fn rows_do_not_wait_and_the_tick_waits_for_the_slowest() {
    let mut state = State::new(Tso::ZERO);
    let (fast, slow) = (
        state.join(ms(1000), true, Tso::ZERO),
        state.join(ms(1000), true, Tso::ZERO),
    );
    let s = stream(1);
    state.push(message(&s, ms(1500)));
    state.passed(fast, ms(2000));
    let call = state.gather(true, usize::MAX).unwrap();
    assert_eq!(
        (call.tick.is_none_or(|t| t <= ms(1000)), call.messages.len()),
        (true, 1)
    );
    state.acknowledged(call);
    assert!(
        settle(&mut state).iter().all(|t| *t <= ms(1000)),
        "the slow reader has not passed 1000"
    );
    state.passed(slow, ms(1900));
    assert_eq!(settle(&mut state).last(), Some(&ms(1900)));
    state.leave(slow);
    assert_eq!(
        settle(&mut state),
        [],
        "nothing is hidden, and the next tick is not worth a call yet"
    );
    state.passed(fast, ms(2600));
    assert_eq!(settle(&mut state), [ms(2600)]);
}

/// Calls have a limit: a tick that its reader has passed does not lead one with what the reader had pushed before.
#[test]
fn a_tick_that_was_passed_waits_for_what_was_pushed_before() {
    let mut state = State::new(Tso::ZERO);
    let edge = state.join(ms(1000), true, Tso::ZERO);
    let s = stream(1);
    for ts in [1500, 1600, 1700] {
        state.push(message(&s, ms(ts)));
    }
    state.passed(edge, ms(2000));
    for ts in [1500, 1600, 1700] {
        // One message a call.
        let call = state.gather(true, 1).unwrap();
        let sent: Vec<Tso> = call.messages.iter().map(|m| m.ts).collect();
        assert_eq!(sent, [ms(ts)]);
        assert!(
            call.tick.is_none_or(|tick| tick <= ms(1000)),
            "{:?}",
            call.tick
        );
        state.acknowledged(call);
    }
    assert_eq!(settle(&mut state), [ms(2000)]);
}

#[test]
fn after_a_restart_time_goes_on_above_the_floor() {
    let mut state = State::new(ms(5000));
    let edge = state.join(ms(4000), true, Tso::ZERO);
    assert!(!state.is_natural(edge, ms(4000)));
    let map = state.raise(edge, vec![ms(4100).0, ms(4200).0], true);
    let (first, last) = map.range().unwrap();
    assert!(first > ms(5000) && last > first);
    let s = stream(1);
    state.push(message(&s, first));
    state.push(message(&s, last));
    state.passed(edge, ms(4300));
    assert_eq!(
        settle(&mut state),
        [],
        "no tick while the holder is below the floor"
    );
    state.passed(edge, ms(5200));
    assert_eq!(settle(&mut state), [ms(5200)]);
    assert!(
        state.is_natural(edge, ms(5200)),
        "caught up: source time again"
    );
}

#[test]
fn a_raised_stretch_holds_the_tick_until_it_is_acknowledged() {
    let mut state = State::new(ms(1000));
    let (holder, raised) = (
        state.join(ms(1000), true, Tso::ZERO),
        state.join(ms(10), false, Tso::ZERO),
    );
    let map = state.raise(raised, vec![ms(20).0], false);
    state.passed(holder, ms(3000));
    assert!(
        settle(&mut state)
            .iter()
            .all(|t| *t < Tso(map.get(ms(20).0))),
        "its row is not sent yet"
    );
    let s = stream(1);
    state.push(message(&s, Tso(map.get(ms(20).0))));
    state.passed(raised, ms(30));
    assert_eq!(settle(&mut state).last(), Some(&ms(3000)));
}

#[test]
fn a_failed_stream_keeps_its_place_and_lets_the_others_pass() {
    let mut state = State::new(Tso::ZERO);
    let (bad, good) = (stream(1), stream(2));
    let cell = Arc::new(Cell::default());
    let mut stuck = message(&bad, ms(10));
    stuck.ticket = Some(Ticket::new(
        &cell,
        &Arc::new(AtomicUsize::new(0)),
        &Budget::new(10),
        1,
    ));
    state.push(stuck);
    state.push(message(&good, ms(11)));
    bad.fail(Problem::new(ErrorClass::Data, "x", ""));
    let call = state.gather(true, usize::MAX).unwrap();
    assert_eq!(call.messages.len(), 1);
    state.acknowledged(call);
    assert!(!cell.is_done(), "the checkpoint must not pass it");
    drop(state.purge(&bad));
    assert!(cell.is_done());
}

#[test]
fn who_waits_for_a_tick_is_told_when_one_at_or_above_it_is_acknowledged() {
    let mut state = State::new(Tso::ZERO);
    let edge = state.join(ms(1), true, Tso::ZERO);
    let (tell, mut told) = oneshot::channel();
    let mut drop_message = message(&stream(1), ms(10));
    drop_message.ticket = Some(Ticket::new(
        &Arc::default(),
        &Arc::new(AtomicUsize::new(0)),
        &Budget::new(10),
        0,
    ));
    drop_message.ticked = Some(tell);
    state.push(drop_message);
    settle(&mut state);
    assert!(told.try_recv().is_err());
    state.passed(edge, ms(10));
    settle(&mut state);
    assert!(told.try_recv().is_ok());
}

#[test]
fn while_a_lost_call_may_arrive_no_tick_is_gathered() {
    let mut state = State::new(Tso::ZERO);
    let edge = state.join(Tso::ZERO, true, Tso::ZERO);
    state.push(message(&stream(1), ms(5)));
    state.passed(edge, ms(900));
    let call: Call = state.gather(false, usize::MAX).unwrap();
    state.acknowledged(call);
    assert!(state.gather(false, usize::MAX).is_none());
    assert_eq!(
        state.gather(true, usize::MAX).and_then(|c| c.tick),
        Some(ms(900))
    );
}

#[test]
fn a_second_raised_stretch_still_holds_the_tick_when_the_first_is_acknowledged() {
    let mut state = State::new(ms(1000));
    let (holder, raised) = (
        state.join(ms(1000), true, Tso::ZERO),
        state.join(ms(10), false, Tso::ZERO),
    );
    let s = stream(1);
    let first = state.raise(raised, vec![ms(20).0], false).get(ms(20).0);
    state.push(message(&s, Tso(first)));
    state.passed(raised, ms(30));
    let call = state.gather(true, usize::MAX).unwrap();
    let second = state.raise(raised, vec![ms(40).0], false).get(ms(40).0);
    state.push(message(&s, Tso(second)));
    state.passed(raised, ms(50));
    state.passed(holder, ms(3000));
    state.acknowledged(call);
    let next = state.gather(true, usize::MAX).unwrap();
    assert!(
        next.tick.is_none_or(|tick| tick < Tso(second)),
        "the second row would come after its tick"
    );
}

#[test]
fn a_message_that_comes_back_after_its_stream_was_taken_back_is_dropped() {
    let mut state = State::new(Tso::ZERO);
    let bad = stream(1);
    let cell = Arc::new(Cell::default());
    let mut refused = message(&bad, ms(10));
    refused.ticket = Some(Ticket::new(
        &cell,
        &Arc::new(AtomicUsize::new(0)),
        &Budget::new(10),
        1,
    ));
    state.push(refused);
    let mut call = state.gather(true, usize::MAX).unwrap();
    let kept = std::mem::take(&mut call.messages);
    bad.fail(Problem::new(ErrorClass::Data, "x", ""));
    drop(state.purge(&bad));
    state.give_back(call, kept);
    assert!(cell.is_done(), "nobody would ever take it out again");
}

#[test]
fn who_holds_no_longer_holds_until_what_it_pushed_is_acknowledged() {
    let mut state = State::new(Tso::ZERO);
    let (ahead, behind) = (
        state.join(ms(1000), true, Tso::ZERO),
        state.join(ms(1000), true, Tso::ZERO),
    );
    settle(&mut state);
    let s = stream(1);
    state.push(message(&s, ms(1350)));
    state.passed(ahead, ms(1400));
    state.set_holds(behind, false);
    assert!(
        !state.is_natural(behind, ms(1000)),
        "natural no longer, at once"
    );
    assert_eq!(settle(&mut state), [ms(1400)], "only behind the row");
    state.set_holds(behind, true);
    state.push(message(&s, ms(1500)));
    state.passed(ahead, ms(1900));
    state.leave(behind);
    let call = state.gather(true, usize::MAX).unwrap();
    assert_eq!((call.tick, call.messages.len()), (None, 1));
    state.acknowledged(call);
    assert_eq!(settle(&mut state), [ms(1900)]);
}

#[test]
fn a_release_that_was_taken_back_does_nothing() {
    let mut state = State::new(Tso::ZERO);
    let (ahead, edge) = (
        state.join(ms(1000), true, Tso::ZERO),
        state.join(ms(1000), true, Tso::ZERO),
    );
    state.set_holds(edge, false);
    state.set_holds(edge, true);
    state.passed(ahead, ms(3000));
    assert_eq!(settle(&mut state), [ms(1000)], "it holds");
}

#[test]
fn a_new_reader_is_raised_above_what_an_earlier_one_sent_here() {
    let mut state = State::new(ms(100));
    let first = state.join(ms(10), false, Tso::ZERO);
    let map = state.raise(first, vec![ms(20).0], true);
    let sent = Tso(map.get(ms(20).0));
    state.push(message(&stream(1), sent));
    state.leave(first);
    settle(&mut state);
    let second = state.join(ms(10), false, Tso::ZERO);
    let again = state.raise(second, vec![ms(30).0], false);
    assert!(Tso(again.get(ms(30).0)) > sent);
    let third = state.join(ms(10), true, ms(900));
    assert!(
        !state.is_natural(third, ms(500)),
        "below the floor it was given"
    );
    assert!(state.is_natural(third, ms(900)));
}

#[test]
fn marks_do_not_pile_up_while_a_call_is_stuck() {
    let mut state = State::new(Tso::ZERO);
    let edges: Vec<_> = (0..4).map(|_| state.join(ms(1), true, Tso::ZERO)).collect();
    for tick in 2..1000 {
        for edge in &edges {
            state.passed(*edge, ms(tick));
        }
    }
    assert_eq!(state.waiting_marks(), 4);
}

#[test]
fn a_message_that_is_tried_again_keeps_ticks_from_passing_it() {
    let mut state = State::new(Tso::ZERO);
    let edge = state.join(ms(1000), true, Tso::ZERO);
    settle(&mut state);
    let (refused, other) = (stream(1), stream(2));
    state.push(message(&refused, ms(1100)));
    state.push(message(&other, ms(1150)));
    state.passed(edge, ms(2000));
    let mut call = state.gather(true, usize::MAX).unwrap();
    let kept = vec![call.messages.remove(0)];
    state.give_back(call, kept);
    let again = state.gather(true, usize::MAX).unwrap();
    assert_eq!((again.tick, again.messages.len()), (None, 1), "no tick yet");
    state.acknowledged(again);
    assert_eq!(settle(&mut state), [ms(2000)]);
}

#[test]
fn a_burst_is_followed_by_ticks_that_wake_the_targets_readers() {
    let mut state = State::new(ms(100));
    let s = stream(1);
    for n in 0..100 {
        state.push(message(&s, ms(200 + n)));
    }
    settle(&mut state);
    let mut woken = 0;
    while state.may_be_behind() {
        assert!(state.wake_up().is_some_and(|tick| tick == state.last_tick));
        woken += 1;
    }
    assert_eq!(
        woken, 5,
        "100 messages less 16 for the call and 16 for its tick, at 16 each"
    );
    state.push(message(&s, ms(500)));
    settle(&mut state);
    assert!(
        !state.may_be_behind(),
        "a few messages wake their readers themselves"
    );
}

#[test]
fn readers_that_begin_anew_are_woken_for_all_that_was_written() {
    let mut state = State::new(ms(100));
    let s = stream(1);
    for n in 0..40_000 {
        state.push(message(&s, ms(200 + n)));
        settle(&mut state);
    }
    let woken = |state: &mut State| std::iter::from_fn(|| state.wake_up()).count();
    woken(&mut state);
    // A burst alone is followed by no more than its own bound.
    for n in 0..80_000 {
        state.push(message(&s, ms(100_000 + n)));
    }
    settle(&mut state);
    assert_eq!(woken(&mut state), (32 << 10) / 16);
    state.is_read_again();
    // Nor does what is written meanwhile take from it.
    state.push(message(&s, ms(200_000)));
    settle(&mut state);
    let times = woken(&mut state);
    assert!(
        times >= 160_000 / 16,
        "messages and their ticks, at 16 each: {times}"
    );
    state.flushes();
    state.flushes();
    state.is_read_again();
    assert_eq!(woken(&mut state), 0, "all of it is flushed");
}

#[test]
fn each_part_of_a_stretch_holds_the_tick_until_it_is_acknowledged_itself() {
    let mut state = State::new(ms(100));
    let holder = state.join(ms(5000), true, Tso::ZERO);
    let edge = state.join(ms(10), false, Tso::ZERO);
    settle(&mut state);
    let s = stream(1);
    let part = |state: &mut State, ts: Tso| {
        let map = state.raise(edge, vec![ts.0], false);
        let raised = Tso(map.get(ts.0));
        state.push(message(&s, raised));
        // Before its stretch ends: the tick is the one before, for every part.
        state.passed(edge, ms(10));
        raised
    };
    part(&mut state, ms(20));
    let first = state.gather(true, usize::MAX).unwrap();
    let second = part(&mut state, ms(21));
    state.passed(holder, ms(9000));
    state.acknowledged(first);
    let next = state.gather(true, usize::MAX).unwrap();
    assert!(next.tick.is_none_or(|tick| tick < second));
    state.acknowledged(next);
    assert_eq!(settle(&mut state), [ms(9000)]);
}

fn spec() -> TargetSpec {
    TargetSpec {
        uri: "http://t:1".to_owned(),
        token: Secret::new(""),
        tls: ClientTls::default(),
        connect_timeout: Duration::from_secs(1),
        call_timeout: Duration::from_secs(1),
        mode: crate::task::Mode::Replicate,
    }
}

/// Whatever its readers know of it: their own floor is one more lock.
#[tokio::test(start_paused = true)]
async fn a_lane_begins_above_what_a_process_before_may_have_sent() {
    let store = Arc::new(MemoryStore::default());
    let channel = PChannel::new("a");
    let floor = Change::RaiseFloor {
        target: spec().key(),
        channel: channel.clone(),
        floor: ms(5_000),
    };
    store.commit(vec![floor]).await.unwrap();
    let target = MemoryTarget::new(1, ms(1_000_000), 1);
    let hubs = Hubs::new(Arc::new(target), store);
    let lane = hubs.get(&spec()).await.unwrap().lane(&channel);
    let edge = lane.join(ms(4_000), true, Tso::ZERO);
    assert!(!lane.is_natural(edge, ms(4_900)));
    let raised = lane.raise(edge, vec![ms(4_100).0], false).get(ms(4_100).0);
    assert!(Tso(raised) > ms(5_000), "{raised}");
    assert_eq!(lane.last_tick(), ms(5_000), "no tick goes back");
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_lead_is_used_up_is_raised_with_another_one() {
    let store = Arc::new(MemoryStore::default());
    let target = MemoryTarget::new(1, ms(1_000_000), 1);
    let hubs = Hubs::new(Arc::new(target), store.clone());
    let hub = hubs.get(&spec()).await.unwrap();
    let lanes = ["a", "b", "c"].map(|name| hub.lane(&PChannel::new(name)));
    for (lane, on_disk) in lanes.iter().zip([0, 1_300, 1_450]) {
        let floor = &lane.shared.floor;
        floor.used.store(ms(1_000).0, Ordering::Release);
        floor.on_disk.store(ms(on_disk).0, Ordering::Release);
    }
    hub.raise_floor(lanes[0].channel(), ms(2_000))
        .await
        .unwrap();
    let stored = store.floors(&hub.key).await.unwrap();
    let stored: Vec<_> = stored
        .iter()
        .map(|(c, floor)| (c.as_str(), *floor))
        .collect();
    // Half a second above what was used; the third one has enough.
    assert_eq!(stored, [("a", ms(2_000)), ("b", ms(1_500))]);
    let floor = &lanes[1].shared.floor;
    assert_eq!(floor.on_disk(), ms(1_500));
    assert!(!floor.raising.load(Ordering::Acquire));
}
