//! A reader over consumers that come and go.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::task::AbortOnDropHandle;

use super::inbox::End;
use super::link::Link;
use super::session::{EARLIEST, Session, bounds};
use super::wire::Entry;
use crate::ids::PChannel;
use crate::position::Position;
use crate::source::{Bounds, LogReader, RawMessage, SourceError};

/// What a message is taken to have in bytes before the first one has come.
const FIRST_ESTIMATE: usize = 16 * 1024;

/// How slowly the estimate falls: ticks between large messages must not make it forget them.
const MEMORY: usize = 128;

/// So many consumers in a row that end without a message are told, with the cause of the last one.
const BREAKS: u32 = 3;

/// A message id with the index in its entry, 0 if it is no batch; -1 as an index stands for the whole entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Id {
    pub(super) ledger: u64,
    pub(super) entry: u64,
    pub(super) batch: i32,
}

impl From<Id> for Position {
    fn from(
        Id {
            ledger,
            entry,
            batch,
        }: Id,
    ) -> Self {
        Position::Pulsar {
            ledger,
            entry,
            batch,
        }
    }
}

/// What has to be delivered next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Whatever is the first: the topic held nothing when the reader was opened.
    First,
    /// This message.
    At(Id),
    /// What follows this message, which the topic has to hold still when a consumer begins: a ledger does not say
    /// which ledger came before it, so what follows one that is gone cannot be known.
    Behind(Id),
}

pub(super) struct PulsarReader {
    link: Arc<Link>,
    channel: PChannel,
    next: Next,
    /// Taken from the inbox and not handed out yet: at most what the last `next` had room for, and one entry.
    ready: VecDeque<RawMessage>,
    /// The first step from one ledger to another within `ready` that may have left ledgers out.
    step: Option<Step>,
    /// The queue does not hold this position, which was the next.
    lost: Option<Position>,
    session: Option<Session>,
    /// Outlives a dropped `next`, or short ones would never come to an end of it; a task of its own, so that what it
    /// shares with other readers never waits for somebody to ask this one.
    making: Option<AbortOnDropHandle<Result<Session, SourceError>>>,
    /// What the topic holds, asked for in the same way.
    asking: Option<AbortOnDropHandle<Result<Option<Bounds>, SourceError>>>,
    /// Bytes of a message, as the last ones were.
    estimate: usize,
    /// Consumers that have ended since the last message.
    breaks: u32,
}

#[derive(Clone, Copy)]
struct Step {
    /// The last message before it.
    from: Id,
    /// How many messages of `ready` come before it.
    at: usize,
}

impl PulsarReader {
    pub(super) fn new(link: Arc<Link>, channel: PChannel, next: Next) -> Self {
        Self {
            link,
            channel,
            next,
            ready: VecDeque::new(),
            step: None,
            lost: None,
            session: None,
            making: None,
            asking: None,
            estimate: FIRST_ESTIMATE,
            breaks: 0,
        }
    }

    /// Makes the consumer now, and looks whether it begins where it has to.
    pub(super) async fn begin(&mut self) -> Result<(), SourceError> {
        if self.session.is_some() {
            return Ok(());
        }
        let (link, channel, next) = (self.link.clone(), self.channel.clone(), self.next);
        let making = self.making.get_or_insert_with(|| {
            AbortOnDropHandle::new(tokio::spawn(begin(link, channel, next)))
        });
        let made = making.await;
        self.making = None;
        let made = made.unwrap_or_else(|broken| Err(self.link.unreachable(broken)));
        self.session = Some(made?);
        Ok(())
    }

    async fn held(&mut self) -> Result<Option<Bounds>, SourceError> {
        let (link, channel) = (self.link.clone(), self.channel.clone());
        let asking = self.asking.get_or_insert_with(|| {
            let asking = async move { bounds(&link, &channel).await };
            AbortOnDropHandle::new(tokio::spawn(asking))
        });
        let held = asking.await;
        self.asking = None;
        held.unwrap_or_else(|broken| Err(self.link.unreachable(broken)))
    }

    async fn lost(&mut self, wanted: Position) -> SourceError {
        match self.held().await {
            Ok(held) => lost(&self.channel, wanted, held),
            Err(error) => error,
        }
    }

    /// Takes entries from the inbox while there is room.
    fn drain(&mut self, max_bytes: usize) -> Result<(), SourceError> {
        let mut bytes: usize = self.ready.iter().map(|m| m.payload.len()).sum();
        while bytes < max_bytes.max(1) && self.lost.is_none() {
            let Some(entry) = self.session.as_ref().and_then(|s| s.inbox.take()) else {
                return Ok(());
            };
            bytes += self.accept(entry)?;
        }
        Ok(())
    }

    /// Adds the messages of an entry that are still to come; their bytes.
    fn accept(&mut self, entry: Entry) -> Result<usize, SourceError> {
        let (ledger, number) = (entry.ledger, entry.entry);
        let each = entry.size() / entry.messages();
        self.estimate = each.max(self.estimate - self.estimate / MEMORY).max(1);
        let begun = self.session.as_ref().is_some_and(|s| s.begun);
        let from = match self.next {
            Next::First => i32::MIN,
            Next::At(id) | Next::Behind(id) if (ledger, number) < (id.ledger, id.entry) => {
                return Ok(0);
            }
            Next::At(id) if (ledger, number) == (id.ledger, id.entry) => id.batch,
            Next::Behind(id) if (ledger, number) == (id.ledger, id.entry) => match id.batch {
                ..0 => i32::MAX,
                batch => batch.saturating_add(1),
            },
            Next::At(id) => {
                self.lost = Some(id.into());
                return Ok(0);
            }
            Next::Behind(id) => {
                let follows = ledger == id.ledger && number == id.entry + 1;
                let steps = ledger > id.ledger && number == 0;
                if !begun || !(follows || steps) {
                    self.lost = Some(behind(id));
                    return Ok(0);
                }
                if steps && self.step.is_none() {
                    let at = self.ready.len();
                    self.step = Some(Step { from: id, at });
                }
                i32::MIN
            }
        };
        if let Some(session) = &mut self.session {
            session.begun = true;
        }
        let messages = match entry.unpack() {
            Ok(messages) => messages,
            Err(cause) => {
                // Read again, and said again, by whoever asks again.
                self.session = None;
                return Err(self.link.unreadable(cause));
            }
        };
        let last = messages.last().map_or(-1, |(batch, _)| *batch);
        if let Next::At(id) = self.next
            && id.batch > last
        {
            self.lost = Some(id.into());
            return Ok(0);
        }
        let (batch, entry) = (last, number);
        self.next = Next::Behind(Id {
            ledger,
            entry,
            batch,
        });
        let mut bytes = 0;
        for (batch, payload) in messages.into_iter().filter(|(batch, _)| *batch >= from) {
            bytes += payload.len();
            let position = Id {
                ledger,
                entry,
                batch,
            }
            .into();
            self.ready.push_back(RawMessage { position, payload });
        }
        Ok(bytes)
    }

    /// Hands out what may be handed out; empty if nothing.
    fn hand_out(&mut self, max_bytes: usize) -> Vec<RawMessage> {
        let sure = self.step.map_or(self.ready.len(), |step| step.at);
        let mut bytes = 0;
        let fits = |m: &&RawMessage| {
            bytes += m.payload.len();
            bytes <= max_bytes
        };
        let n = self.ready.iter().take(sure).take_while(fits).count();
        let n = n.max(usize::from(sure > 0));
        if let Some(step) = &mut self.step {
            step.at -= n;
        }
        self.ready.drain(..n).collect()
    }

    /// Whether ledgers were left out at the step. Retention deletes whole ledgers from the front: none was if the one
    /// before the step is held even now. If it is not, nobody can tell.
    async fn check(&mut self, step: Step) -> Result<(), SourceError> {
        let held = self.held().await?;
        let first = held.map(|held| held.first);
        match first {
            Some(Position::Pulsar { ledger, .. }) if ledger <= step.from.ledger => {}
            _ => {
                self.lost = Some(behind(step.from));
                self.ready.clear();
                self.session = None;
            }
        }
        self.step = None;
        Ok(())
    }
}

#[async_trait]
impl LogReader for PulsarReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        loop {
            self.drain(max_bytes)?;
            let batch = self.hand_out(max_bytes);
            if !batch.is_empty() {
                self.breaks = 0;
                return Ok(batch);
            }
            if let Some(step) = self.step {
                self.check(step).await?;
                continue;
            }
            if let Some(wanted) = self.lost {
                self.session = None;
                return Err(self.lost(wanted).await);
            }
            self.begin().await?;
            let Some(session) = &self.session else {
                continue;
            };
            if session.inbox.first().is_some() {
                continue;
            }
            match session.ended() {
                Some(End::Overflow(each)) => {
                    self.estimate = self.estimate.max(each);
                    self.session = None;
                }
                Some(End::Closed(cause)) => {
                    self.session = None;
                    self.breaks = self.breaks.saturating_add(1);
                    // A topic that moves, or one break, is nothing to speak of; what comes back each time is, and
                    // whoever asks again does so after a while.
                    if self.breaks >= BREAKS {
                        let channel = &self.channel;
                        return Err(self.link.unreachable(format!("{channel}: {cause}")));
                    }
                }
                None => {
                    session.allow(max_bytes, self.estimate);
                    session.changed().await;
                }
            }
        }
    }
}

/// What is missing if nothing follows `id`.
fn behind(id: Id) -> Position {
    let entry = id.entry.saturating_add(1);
    Id {
        entry,
        batch: 0,
        ..id
    }
    .into()
}

pub(super) fn lost(channel: &PChannel, wanted: Position, held: Option<Bounds>) -> SourceError {
    SourceError::PositionLost {
        channel: channel.clone(),
        wanted,
        first: held.map(|b| b.first),
        last: held.map(|b| b.last),
    }
}

/// A consumer that begins where `next` says, with that entry in its inbox.
async fn begin(link: Arc<Link>, channel: PChannel, next: Next) -> Result<Session, SourceError> {
    let (id, wanted) = match next {
        Next::First => return Session::make(&link, &channel, EARLIEST).await,
        Next::At(id) => (id, id.into()),
        Next::Behind(id) => (id, behind(id)),
    };
    let start = (id.ledger, id.entry);
    let session = Session::make(&link, &channel, start).await?;
    let failed = |failure| link.error(Some(&channel), failure);
    // From a place beyond its end a broker sends nothing; else at least what is there.
    if session.entries().await.map_err(failed)? == 0 {
        drop(session);
        let held = bounds(&link, &channel).await?;
        return Err(lost(&channel, wanted, held));
    }
    match session.first().await.map_err(failed)? {
        Some(first) if first == start => Ok(session),
        first => {
            drop(session);
            let held = bounds(&link, &channel).await?;
            if first.is_none() && held.is_some_and(|b| b.first <= Id { batch: 0, ..id }.into()) {
                return Err(link.unreachable(format!(
                    "{channel}: {} not read within {:?}",
                    Position::from(id),
                    link.long()
                )));
            }
            Err(lost(&channel, wanted, held))
        }
    }
}
