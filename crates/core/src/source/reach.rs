//! How far back the channels of a queue reach, and how long it takes until what is still needed falls out of them.
//!
//! Asked for only when somebody wants to know, at most once a minute for each physical channel. No queue is asked for
//! single collections.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{LogSource, SourceError, Start};
use crate::decode::header::header;
use crate::ids::PChannel;
use crate::position::Position;
use crate::tso::Tso;

/// How long an answer of the queue is used.
const FRESH: Duration = Duration::from_secs(60);
/// A channel that did not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(15);
/// What a queue does not confirm for this long means nothing any more.
const STALE: Duration = Duration::from_secs(300);
/// How long the asking may take in all. What is not answered by then is left out.
const WITHIN: Duration = Duration::from_secs(2);
/// Channels asked at the same time.
const AT_ONCE: usize = 4;
/// To find one that carries a time: the insert of an upsert does not.
const FIRST_BYTES: usize = 64 << 10;

/// What a channel holds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Held {
    /// Source timestamp of the first message it holds; `None` if it holds none, or the time of none.
    pub first: Option<Tso>,
    /// How long the queue keeps a message, by its own settings; `None` if it does not say, or keeps it for ever.
    pub retention: Option<Duration>,
}

/// How far something that is needed is from falling out of a channel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Headroom {
    /// Seconds of source time that the channel still holds before it. At or below zero: it may be lost already. Where the
    /// queue deletes by age and has begun to, that is how long it takes.
    pub kept: Option<f64>,
    /// Seconds until it is older than the queue keeps its messages, if the queue says how long that is. A queue that is
    /// full deletes earlier.
    pub left: Option<f64>,
}

impl Held {
    /// `needed`: source timestamp of the oldest that is needed. `now`: of the source.
    pub fn headroom(&self, needed: Tso, now: Tso) -> Headroom {
        let seconds = |ts: Tso| ts.millis() as f64 / 1000.0;
        let (needed, now) = (seconds(needed), seconds(now));
        Headroom {
            kept: self.first.map(|first| needed - seconds(first)),
            left: self.retention.map(|r| needed + r.as_secs_f64() - now),
        }
    }
}

struct Known {
    held: Held,
    first: Option<Position>,
    at: Instant,
}

/// What is known of a queue's channels.
pub struct Reach {
    source: Arc<dyn LogSource>,
    known: Mutex<HashMap<PChannel, Known>>,
    tried: Mutex<HashMap<PChannel, Instant>>,
}

impl Reach {
    pub fn new(source: Arc<dyn LogSource>) -> Self {
        Self {
            source,
            known: Mutex::default(),
            tried: Mutex::default(),
        }
    }

    /// What these channels hold, as of the last minute. Answers within 2 s; a channel of which nothing is known is left
    /// out.
    pub async fn of(&self, channels: &BTreeSet<PChannel>) -> BTreeMap<PChannel, Held> {
        let due = self.due(channels);
        let ask = stream::iter(&due).for_each_concurrent(AT_ONCE, |channel| async move {
            match self.ask(channel).await {
                Ok(known) => {
                    self.known.lock().insert(channel.clone(), known);
                }
                Err(error) => {
                    tracing::debug!(%channel, %error, "how far back it reaches is not known")
                }
            }
        });
        // What was answered by then is kept.
        let _ = timeout(WITHIN, ask).await;
        let mut known = self.known.lock();
        known.retain(|_, known| known.at.elapsed() < STALE);
        let of = |channel: &PChannel| Some((channel.clone(), known.get(channel)?.held));
        channels.iter().filter_map(of).collect()
    }

    /// Those to be asked now, noted as asked: another caller does not ask for them too.
    fn due(&self, channels: &BTreeSet<PChannel>) -> Vec<PChannel> {
        let known = self.known.lock();
        let mut tried = self.tried.lock();
        tried.retain(|_, at| at.elapsed() < FRESH);
        let due = channels.iter().filter(|channel| {
            let fresh = known.get(*channel).is_some_and(|k| k.at.elapsed() < FRESH);
            let asked = tried.get(*channel).is_some_and(|at| at.elapsed() < AGAIN);
            !fresh && !asked
        });
        let due: Vec<PChannel> = due.cloned().collect();
        tried.extend(due.iter().map(|channel| (channel.clone(), Instant::now())));
        due
    }

    async fn ask(&self, channel: &PChannel) -> Result<Known, SourceError> {
        let retention = self.source.retention(channel).await?;
        let bounds = self.source.bounds(channel).await?;
        let first = bounds.map(|b| b.first);
        let before = {
            let known = self.known.lock();
            let same = known.get(channel).filter(|k| k.first == first);
            same.and_then(|k| k.held.first)
        };
        let time = match (first, before) {
            (None, _) => None,
            (_, Some(before)) => Some(before),
            (Some(_), None) => self.first_time(channel).await?,
        };
        Ok(Known {
            held: Held {
                first: time,
                retention,
            },
            first,
            at: Instant::now(),
        })
    }

    /// Of the first message that says when it was written.
    async fn first_time(&self, channel: &PChannel) -> Result<Option<Tso>, SourceError> {
        let mut log = self.source.open(channel, Start::Earliest).await?;
        let messages = log.next(FIRST_BYTES).await?;
        let mut times = messages
            .iter()
            .filter_map(|m| header(&m.payload).timestamp)
            .filter(|ts| *ts > 0);
        Ok(times.next().map(Tso))
    }
}
