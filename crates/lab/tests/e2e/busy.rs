//! A collection that is written to without a pause from its first moment on, as a load of many rows does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use cdc_core::source::rules::Write;
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::lab::{DB, Lab, PATIENCE};
use crate::plain::Plain;

tests![Test: comes_to_its_channels_reader, is_seen_when_it_is_loaded_late];

const WRITERS: i64 = 6;
/// Each writer upserts the same keys again and again.
const KEYS: i64 = 500;
const AT_ONCE: i64 = 5;

/// Writes until `enough` of how many requests there were so far.
async fn write(
    lab: &Lab,
    c: &Plain,
    random: &mut StdRng,
    enough: impl Fn(usize) -> bool,
) -> Result<()> {
    let requests = AtomicUsize::new(0);
    let (requests, enough) = (&requests, &enough);
    let seeds: Vec<u64> = (0..WRITERS).map(|_| random.random()).collect();
    let writers = (0..WRITERS).zip(seeds).map(|(n, seed)| async move {
        let mut random = StdRng::seed_from_u64(seed);
        let mut first = 0;
        while first < KEYS || !enough(requests.load(Ordering::Relaxed)) {
            let keys: Vec<i64> = (0..AT_ONCE)
                .map(|k| n * KEYS + (first + k) % KEYS)
                .collect();
            c.request(&lab.from, "", Write::Upsert, &keys, &mut random)
                .await?;
            requests.fetch_add(1, Ordering::Relaxed);
            first += AT_ONCE;
        }
        anyhow::Ok(())
    });
    try_join_all(writers).await?;
    say(&format!("{} requests", requests.load(Ordering::Relaxed)));
    Ok(())
}

/// Not only in a pause: until then its rows wait for the end of their stretch, and its channel is read twice.
async fn comes_to_its_channels_reader(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    // With readers on every channel.
    let mut other = Plain::create(&lab.from, "other", 16).await?;
    other.insert(&lab.from, "", 100, random).await?;
    lab.equal_rows(other.keys.len()).await?;
    let c = Plain::bare(&lab.from, DB, "busy", 2).await?;
    let over = AtomicBool::new(false);
    let before = lab.cdc.task(&lab.task).await?.rows();
    let joined = async {
        let joined = lab
            .cdc
            .wait(&lab.task, "busy has joined", PATIENCE, |status| {
                let busy = status.collection(DB, "busy");
                let flows = status.rows() > before + 500;
                flows && busy.is_some_and(|c| c["detail"]["raised"] == false)
            });
        let joined = joined.await;
        over.store(true, Ordering::Relaxed);
        joined
    };
    let write = write(lab, &c, random, |_| over.load(Ordering::Relaxed));
    let (joined, written) = tokio::join!(joined, write);
    written?;
    joined?;
    c.index(&lab.from).await?;
    c.load(&lab.from).await?;
    lab.equal_rows(other.keys.len() + (WRITERS * KEYS) as usize)
        .await
}

/// The target's readers begin at its last flush then, and a 2.3.5 on RocksMQ reads on only when something is written.
async fn is_seen_when_it_is_loaded_late(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let c = Plain::bare(&lab.from, DB, "late", 2).await?;
    write(lab, &c, random, |requests| requests > 10_000).await?;
    c.index(&lab.from).await?;
    c.load(&lab.from).await?;
    lab.equal_rows((WRITERS * KEYS) as usize).await
}
