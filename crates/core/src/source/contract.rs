//! The contract of [`super::LogSource`] as a suite that runs against any queue.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use super::{LogReader, LogSource, RawMessage, SourceError, Start};
use crate::ids::PChannel;
use crate::position::Position;

/// Long enough for any queue under test on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a silent channel is watched for a message that must not come.
const SILENCE: Duration = Duration::from_millis(300);
const PLENTY: usize = 1 << 20;

/// A queue under test, with the rights of its owner.
#[async_trait]
pub trait ContractHarness: Send + Sync {
    fn source(&self) -> &dyn LogSource;

    /// Makes a new, empty channel.
    async fn create(&self) -> PChannel;

    async fn append(&self, channel: &PChannel, payload: Bytes) -> Position;

    /// What the channels made by [`ContractHarness::create`] are set to; `None` if the queue does not say so.
    fn retention(&self) -> Option<Duration> {
        None
    }

    /// Deletes everything up to and including `position`, as the queue's retention does.
    async fn purge_to(&self, channel: &PChannel, position: Position);
}

/// Runs every case; panics with the name of the first that fails.
pub async fn run(harness: impl ContractHarness) {
    let h = &harness;
    case("inclusive_open", inclusive_open(h)).await;
    case("after", after(h)).await;
    case("earliest_and_latest", earliest_and_latest(h)).await;
    case(
        "complete_and_ordered_under_writes",
        complete_and_ordered_under_writes(h),
    )
    .await;
    case("byte_bound", byte_bound(h)).await;
    case("smaller_bound_later", smaller_bound_later(h)).await;
    case(
        "purge_overtakes_a_paused_reader",
        purge_overtakes_a_paused_reader(h),
    )
    .await;
    case(
        "purge_behind_a_reader_is_harmless",
        purge_behind_a_reader_is_harmless(h),
    )
    .await;
    case("open_where_purged", open_where_purged(h)).await;
    case("open_beyond_the_end", open_beyond_the_end(h)).await;
    case(
        "cancelled_next_loses_nothing",
        cancelled_next_loses_nothing(h),
    )
    .await;
    case("no_such_channel", no_such_channel(h)).await;
    case("bounds", bounds(h)).await;
    case("retention", retention(h)).await;
}

#[allow(clippy::panic)]
async fn case(name: &str, case: impl Future<Output = Result<(), String>>) {
    match timeout(PATIENCE * 3, case).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => panic!("{name}: {why}"),
        Err(_) => panic!("{name}: not finished in {:?}", PATIENCE * 3),
    }
}

fn is(what: &str, is: impl PartialEq<bool>) -> Result<(), String> {
    if is == true {
        Ok(())
    } else {
        Err(format!("not so: {what}"))
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{what}: got {got:?}, expected {expected:?}"))
    }
}

async fn fill(h: &dyn ContractHarness, n: usize, size: usize) -> (PChannel, Vec<RawMessage>) {
    let channel = h.create().await;
    let messages = more(h, &channel, n, size).await;
    (channel, messages)
}

async fn more(
    h: &dyn ContractHarness,
    channel: &PChannel,
    n: usize,
    size: usize,
) -> Vec<RawMessage> {
    let mut messages = Vec::new();
    for i in 0..n {
        let mut payload = format!("{i:08}").into_bytes();
        payload.resize(size.max(8), b'.');
        let payload = Bytes::from(payload);
        let position = h.append(channel, payload.clone()).await;
        messages.push(RawMessage { position, payload });
    }
    messages
}

async fn open(
    h: &dyn ContractHarness,
    channel: &PChannel,
    start: Start,
) -> Result<Box<dyn LogReader>, String> {
    h.source()
        .open(channel, start)
        .await
        .map_err(|e| format!("open at {start:?}: {e}"))
}

async fn batch(reader: &mut dyn LogReader, max_bytes: usize) -> Result<Vec<RawMessage>, String> {
    let batch = timeout(PATIENCE, reader.next(max_bytes))
        .await
        .map_err(|_| "no message came".to_owned())?;
    let batch = batch.map_err(|e| e.to_string())?;
    is("a batch holds at least one message", !batch.is_empty())?;
    let bytes: usize = batch.iter().map(|m| m.payload.len()).sum();
    is(
        "a batch keeps its bound, or is one message",
        bytes <= max_bytes || batch.len() == 1,
    )?;
    Ok(batch)
}

async fn expect(
    reader: &mut dyn LogReader,
    expected: &[RawMessage],
    max_bytes: usize,
) -> Result<(), String> {
    let mut got = Vec::new();
    while got.len() < expected.len() {
        got.extend(batch(reader, max_bytes).await?);
        let n = got.len().min(expected.len());
        if got[..n] != expected[..n] || got.len() > expected.len() {
            let ids =
                |m: &[RawMessage]| m.iter().map(|m| m.position.to_string()).collect::<Vec<_>>();
            return Err(format!("got {:?}, expected {:?}", ids(&got), ids(expected)));
        }
    }
    Ok(())
}

async fn silent(reader: &mut dyn LogReader) -> Result<(), String> {
    match timeout(SILENCE, reader.next(PLENTY)).await {
        Err(_) => Ok(()),
        Ok(got) => Err(format!("nothing was to come, but got {got:?}")),
    }
}

fn is_lost<T>(
    result: Result<T, SourceError>,
    channel: &PChannel,
    first: Option<Position>,
    last: Option<Position>,
) -> Result<(), String> {
    match result {
        Err(SourceError::PositionLost {
            channel: c,
            first: f,
            last: l,
            ..
        }) => {
            equal("channel", &c, channel)?;
            equal("what is held now", (f, l), (first, last))
        }
        Err(e) => Err(format!("expected PositionLost, got {e}")),
        Ok(_) => Err("expected PositionLost, got a success".to_owned()),
    }
}

async fn inclusive_open(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, all) = fill(h, 5, 8).await;
    for i in 0..all.len() {
        let mut reader = open(h, &channel, Start::At(all[i].position)).await?;
        expect(&mut *reader, &all[i..], PLENTY).await?;
    }
    Ok(())
}

async fn after(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, mut all) = fill(h, 4, 8).await;
    let mut middle = open(h, &channel, Start::After(all[1].position)).await?;
    expect(&mut *middle, &all[2..], PLENTY).await?;
    let mut end = open(h, &channel, Start::After(all[3].position)).await?;
    silent(&mut *end).await?;
    all.extend(more(h, &channel, 2, 8).await);
    expect(&mut *end, &all[4..], PLENTY).await?;
    expect(&mut *middle, &all[4..], PLENTY).await
}

async fn earliest_and_latest(h: &dyn ContractHarness) -> Result<(), String> {
    let channel = h.create().await;
    let mut earliest = open(h, &channel, Start::Earliest).await?;
    let mut latest = open(h, &channel, Start::Latest).await?;
    silent(&mut *earliest).await?;
    let first = more(h, &channel, 3, 8).await;
    expect(&mut *earliest, &first, PLENTY).await?;
    expect(&mut *latest, &first, PLENTY).await?;
    let mut latest = open(h, &channel, Start::Latest).await?;
    silent(&mut *latest).await?;
    h.purge_to(&channel, first[0].position).await;
    let mut earliest = open(h, &channel, Start::Earliest).await?;
    expect(&mut *earliest, &first[1..], PLENTY).await?;
    let second = more(h, &channel, 1, 8).await;
    expect(&mut *latest, &second, PLENTY).await
}

async fn complete_and_ordered_under_writes(h: &dyn ContractHarness) -> Result<(), String> {
    let channel = h.create().await;
    let mut reader = open(h, &channel, Start::Earliest).await?;
    let n = 1000;
    let read = async {
        let mut got = Vec::new();
        while got.len() < n {
            got.extend(batch(&mut *reader, 1000).await?);
        }
        Ok::<_, String>(got)
    };
    let (written, got) = tokio::join!(more(h, &channel, n, 50), read);
    is("all messages, in order, each once", got? == written)
}

async fn byte_bound(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, mut all) = fill(h, 20, 100).await;
    all.extend(more(h, &channel, 1, 5000).await);
    all.extend(more(h, &channel, 1, 5000).await);
    all.extend(more(h, &channel, 20, 100).await);
    for bound in [0, 1, 100, 350, 4999, 5000, 5001] {
        let mut reader = open(h, &channel, Start::Earliest).await?;
        expect(&mut *reader, &all, bound)
            .await
            .map_err(|e| format!("with a bound of {bound}: {e}"))?;
    }
    Ok(())
}

async fn smaller_bound_later(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, all) = fill(h, 50, 100).await;
    let mut reader = open(h, &channel, Start::Earliest).await?;
    let mut got = batch(&mut *reader, 2000).await?;
    while got.len() < all.len() {
        got.extend(batch(&mut *reader, 250).await?);
    }
    is("all messages, in order, each once", got == all)
}

async fn purge_overtakes_a_paused_reader(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, all) = fill(h, 200, 1000).await;
    let mut reader = open(h, &channel, Start::Earliest).await?;
    let mut read = batch(&mut *reader, 3000).await?;
    h.purge_to(&channel, all[149].position).await;
    // What was on its way already may still come, in order; then the loss has to be told.
    let error = loop {
        match timeout(PATIENCE, reader.next(3000))
            .await
            .map_err(|_| "no answer".to_owned())?
        {
            Ok(more) => read.extend(more),
            Err(error) => break error,
        }
        is("no message behind the gap", read.len() < 150)?;
    };
    is(
        "what came before the loss is complete",
        read[..] == all[..read.len()],
    )?;
    let (first, last) = (Some(all[150].position), Some(all[199].position));
    is_lost::<()>(Err(error), &channel, first, last)?;
    let again = timeout(PATIENCE, reader.next(3000))
        .await
        .map_err(|_| "no answer".to_owned())?;
    is_lost(again, &channel, first, last)?;
    let mut reader = open(h, &channel, Start::At(all[150].position)).await?;
    expect(&mut *reader, &all[150..], PLENTY).await
}

async fn purge_behind_a_reader_is_harmless(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, mut all) = fill(h, 10, 100).await;
    let mut reader = open(h, &channel, Start::Earliest).await?;
    expect(&mut *reader, &all, PLENTY).await?;
    h.purge_to(&channel, all[8].position).await;
    all.extend(more(h, &channel, 3, 100).await);
    expect(&mut *reader, &all[10..], PLENTY).await
}

async fn open_where_purged(h: &dyn ContractHarness) -> Result<(), String> {
    let (channel, all) = fill(h, 10, 8).await;
    h.purge_to(&channel, all[4].position).await;
    let (first, last) = (Some(all[5].position), Some(all[9].position));
    for start in [
        Start::At(all[0].position),
        Start::At(all[4].position),
        Start::After(all[2].position),
    ] {
        is_lost(
            h.source().open(&channel, start).await,
            &channel,
            first,
            last,
        )?;
    }
    h.purge_to(&channel, all[9].position).await;
    for start in [Start::At(all[9].position), Start::After(all[7].position)] {
        is_lost(h.source().open(&channel, start).await, &channel, None, None)?;
    }
    Ok(())
}

async fn open_beyond_the_end(h: &dyn ContractHarness) -> Result<(), String> {
    let (other, _) = fill(h, 1, 8).await;
    let beyond = more(h, &other, 9, 8).await[8].position;
    let (channel, all) = fill(h, 3, 8).await;
    let (first, last) = (Some(all[0].position), Some(all[2].position));
    if beyond > all[2].position {
        is_lost(
            h.source().open(&channel, Start::At(beyond)).await,
            &channel,
            first,
            last,
        )?;
        is_lost(
            h.source().open(&channel, Start::After(beyond)).await,
            &channel,
            first,
            last,
        )?;
    }
    Ok(())
}

async fn cancelled_next_loses_nothing(h: &dyn ContractHarness) -> Result<(), String> {
    let channel = h.create().await;
    let mut reader = open(h, &channel, Start::Earliest).await?;
    let n = 300;
    let read = async {
        let mut got = Vec::new();
        let mut patience = Duration::from_micros(1);
        while got.len() < n {
            match timeout(patience, reader.next(500)).await {
                Ok(batch) => {
                    got.extend(batch.map_err(|e| e.to_string())?);
                    patience = Duration::from_micros(1);
                }
                // From hardly begun to well under way.
                Err(_) => patience = (patience * 2).min(Duration::from_millis(50)),
            }
        }
        Ok::<_, String>(got)
    };
    let (written, got) = tokio::join!(more(h, &channel, n, 50), read);
    is("all messages, in order, each once", got? == written)
}

async fn no_such_channel(h: &dyn ContractHarness) -> Result<(), String> {
    let channel = PChannel::new("never-made-by-anyone");
    for start in [Start::Earliest, Start::Latest] {
        match h.source().open(&channel, start).await {
            Err(SourceError::NoSuchChannel { channel: c, .. }) => equal("channel", &c, &channel)?,
            Err(e) => return Err(format!("expected NoSuchChannel, got {e}")),
            Ok(_) => return Err("opened a channel that is not there".to_owned()),
        }
    }
    is(
        "bounds know it too",
        matches!(
            h.source().bounds(&channel).await,
            Err(SourceError::NoSuchChannel { .. })
        ),
    )
}

async fn bounds(h: &dyn ContractHarness) -> Result<(), String> {
    h.source().ping().await.map_err(|e| e.to_string())?;
    let held = async |channel: &PChannel| {
        let bounds = h
            .source()
            .bounds(channel)
            .await
            .map_err(|e| e.to_string())?;
        Ok::<_, String>(bounds.map(|b| (b.first, b.last)))
    };
    let channel = h.create().await;
    equal("an empty channel", held(&channel).await?, None)?;
    let all = more(h, &channel, 4, 8).await;
    equal(
        "four messages",
        held(&channel).await?,
        Some((all[0].position, all[3].position)),
    )?;
    h.purge_to(&channel, all[1].position).await;
    equal(
        "two of them",
        held(&channel).await?,
        Some((all[2].position, all[3].position)),
    )?;
    h.purge_to(&channel, all[3].position).await;
    equal("none of them", held(&channel).await?, None)
}

/// What it says is what it is set to; of a channel that is not there it says that, or nothing.
async fn retention(h: &dyn ContractHarness) -> Result<(), String> {
    let channel = h.create().await;
    let said = h.source().retention(&channel).await;
    let said = said.map_err(|e| e.to_string())?;
    equal("how long a message is kept", said, h.retention())?;
    let nowhere = PChannel::new("never-made-by-anyone");
    is(
        "nothing is said of a channel that is not there",
        matches!(
            h.source().retention(&nowhere).await,
            Err(SourceError::NoSuchChannel { .. }) | Ok(None)
        ),
    )
}
