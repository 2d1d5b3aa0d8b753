//! Messages that could not be carried: kept in the store when a collection stops at one, and what a person says of them.
//!
//! The bytes go first, part by part, then the record: one that says they are kept has them. Both have the same names
//! whenever the message is found, so that all of it can be done again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::answers::not_waiting;
use super::conductor::{Conductor, Held, Phase, note};
use crate::decode::header::header;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel};
use crate::lane::Poison;
use crate::position::Position;
use crate::quarantine::{self, Kept, PART, Record, State};
use crate::source::Start;
use crate::store::Change;
use crate::task::Verdict;

/// How long a message that is no longer in memory is looked for in the queue.
const READ_AGAIN: Duration = Duration::from_secs(3);
/// How often a part of a message is given to the store before its bytes are given up. What else is stored is tried for
/// ever; without the bytes everything goes on.
const TRIES: u32 = 3;

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

impl Conductor<'_> {
    /// Keeps the message that a collection stopped at. Once it is kept, only what became of it changes.
    pub(super) async fn keep(&mut self, id: CollectionId, poison: &Poison, problem: &Problem) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let (database, name) = (entry.database.clone(), entry.source.name.clone());
        let (channel, position) = (&poison.channel, poison.position);
        let key = quarantine::key(id, channel, position);
        let known = self.stored.quarantine.get(&key);
        if known.is_some_and(|r| r.state == State::Waiting) {
            return;
        }
        // A retry keeps what is there; what was settled may have lost its bytes.
        if let Some(known) = known.filter(|r| r.state.is_open()) {
            let again = Record {
                problem: problem.clone(),
                state: State::Waiting,
                ..known.clone()
            };
            return self.put(key, again, Vec::new()).await;
        }
        let read = match &poison.payload {
            Some(payload) => Ok(payload.clone()),
            None => self.read_again(channel, position).await,
        };
        let (payload, gone) = match read {
            Ok(payload) => (Some(payload), None),
            Err(why) => (None, Some(why)),
        };
        let size = payload.as_ref().map(|p| p.len() as u64);
        let Some(room) = quarantine::room(&self.stored.quarantine, &key, size.unwrap_or_default())
        else {
            tracing::warn!(
                task = %self.ctx.spec.id, %database, collection = %name, %channel, %position,
                "a message that cannot be carried is not kept: there are {} such messages whose collections wait",
                quarantine::RECORDS
            );
            return;
        };
        let kept = match (gone.or(room.no_bytes), &payload) {
            (Some(why), _) => Kept::Not(why),
            (None, None) => Kept::Not("it was not there".to_owned()),
            (None, Some(payload)) => self.keep_bytes(channel, position, payload).await,
        };
        if let Kept::Not(why) = &kept {
            tracing::warn!(
                task = %self.ctx.spec.id, %database, collection = %name, %channel, %position,
                "the bytes of a message that cannot be carried are not kept: {why}"
            );
        }
        let record = Record {
            collection: id,
            database,
            name,
            channel: channel.clone(),
            position,
            kind: payload
                .as_ref()
                .and_then(|p| header(p).kind().map(str::to_owned)),
            size,
            problem: problem.clone(),
            since: now(),
            kept,
            state: State::Waiting,
        };
        self.put(key, record, room.forget).await;
    }

    /// The message as the queue still has it.
    async fn read_again(&self, channel: &PChannel, position: Position) -> Result<Bytes, String> {
        let read = async {
            let start = Start::At(position);
            let mut log = self.ctx.parts.source.open(channel, start).await?;
            loop {
                for message in log.next(PART).await? {
                    if message.position >= position {
                        let found = message.position == position;
                        return Ok(found.then_some(message.payload));
                    }
                }
            }
        };
        let read = tokio::time::timeout(READ_AGAIN, read).await;
        let read: Result<_, crate::source::SourceError> =
            read.map_err(|_| "the queue did not give it again in time".to_owned())?;
        read.map_err(|e| e.to_string())?
            .ok_or_else(|| "the queue no longer holds it".to_owned())
    }

    async fn keep_bytes(&self, channel: &PChannel, position: Position, payload: &Bytes) -> Kept {
        let message = quarantine::message(channel, position);
        // A record of another collection has them stored.
        let there = self.stored.quarantine.values();
        if there
            .filter(|r| r.kept == Kept::Whole)
            .any(|r| r.message() == message)
        {
            return Kept::Whole;
        }
        for (n, at) in (0..payload.len()).step_by(PART).enumerate() {
            let change = Change::PutMessagePart {
                task: self.ctx.spec.id.clone(),
                message: message.clone(),
                part: n as u32,
                bytes: payload.slice(at..payload.len().min(at + PART)),
            };
            let mut backoff = crate::backoff::Backoff::new();
            let mut tries = 0;
            while let Err(error) = self.ctx.parts.store.commit(vec![change.clone()]).await {
                tries += 1;
                if tries >= TRIES {
                    return Kept::Not(error.to_string());
                }
                backoff.wait().await;
            }
        }
        Kept::Whole
    }

    /// Stores a record, and forgets others with what nobody needs any more.
    async fn put(&mut self, key: String, record: Record, forget: Vec<String>) {
        let mut changes = self.forget(forget);
        changes.push(self.put_in(key, record));
        self.ctx.commit(changes).await;
    }

    fn put_in(&mut self, key: String, record: Record) -> Change {
        self.stored.quarantine.insert(key.clone(), record.clone());
        Change::PutQuarantined {
            task: self.ctx.spec.id.clone(),
            key,
            record,
        }
    }

    fn forget(&mut self, keys: Vec<String>) -> Vec<Change> {
        let orphans = quarantine::orphans(&self.stored.quarantine, &keys);
        let task = self.ctx.spec.id.clone();
        let messages = orphans.into_iter().map(|message| Change::DeleteMessage {
            task: task.clone(),
            message,
        });
        let mut changes: Vec<Change> = messages.collect();
        for key in keys {
            self.stored.quarantine.remove(&key);
            let task = task.clone();
            changes.push(Change::DeleteQuarantined { task, key });
        }
        changes
    }

    /// What has to be stored, if a message that is left out has a record.
    pub(super) fn dropped(
        &mut self,
        id: CollectionId,
        (channel, position): &(PChannel, Position),
        by: &str,
    ) -> Option<Change> {
        let key = quarantine::key(id, channel, *position);
        let record = self.stored.quarantine.get(&key)?;
        let (by, at) = (by.to_owned(), now());
        let record = Record {
            state: State::Dropped { by, at },
            ..record.clone()
        };
        Some(self.put_in(key, record))
    }

    /// What a person says of one message. It is stored when this returns.
    pub(super) async fn judge(
        &mut self,
        key: &str,
        verdict: Verdict,
        by: &str,
    ) -> Result<(), Problem> {
        let Some(record) = self.stored.quarantine.get(key).cloned() else {
            let why = format!("no message {key} is kept");
            let hint = "list the messages of the task";
            return Err(Problem::new(ErrorClass::Configuration, why, hint));
        };
        let id = record.collection;
        let label = format!("{}.{}", record.database, record.name);
        let at = (record.channel.clone(), record.position);
        let entry = self.entries.get(&id).filter(|e| {
            let waits = matches!(e.phase, Phase::Held(Held::Quarantined) | Phase::Retry(_));
            waits && e.poison.as_ref() == Some(&at)
        });
        let Some(entry) = entry else {
            return Err(not_waiting(&format!(
                "{label} does not wait at the message {}",
                record.position
            )));
        };
        let mut answer = entry.answer.clone();
        let mut changes = Vec::new();
        match verdict {
            Verdict::Retry => {
                let (by, at) = (by.to_owned(), now());
                let state = State::Retried { by, at };
                changes.push(self.put_in(key.to_owned(), Record { state, ..record }));
            }
            Verdict::Drop => {
                changes.extend(self.dropped(id, &at, by));
                answer.skipped.push(at.clone());
                changes.push(note(&self.ctx, id, &answer));
            }
        }
        self.ctx.commit(changes).await;
        if verdict == Verdict::Drop {
            self.objects.skip(id, &at.0, at.1);
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.answer = answer;
            entry.poison = None;
            entry.phase = Phase::Due;
        }
        Ok(())
    }

    /// Records of messages that were taken in the end, or whose collection is gone: their bytes are not needed.
    pub(super) async fn settle(&mut self) {
        let mut settled = Vec::new();
        for (key, record) in &self.stored.quarantine {
            if !record.state.is_open() {
                continue;
            }
            let at = now();
            let entry = self.entries.get(&record.collection);
            if entry.is_none_or(|e| e.phase == Phase::Dropped) {
                settled.push((key.clone(), State::Gone { at }));
            } else if entry.is_some_and(|e| e.phase == Phase::Streaming) && self.has_passed(record)
            {
                settled.push((key.clone(), State::Carried { at }));
            }
        }
        if settled.is_empty() {
            return;
        }
        let keys: Vec<String> = settled.iter().map(|(key, _)| key.clone()).collect();
        let mut changes: Vec<Change> = quarantine::orphans(&self.stored.quarantine, &keys)
            .into_iter()
            .map(|message| Change::DeleteMessage {
                task: self.ctx.spec.id.clone(),
                message,
            })
            .collect();
        for (key, state) in settled {
            let Some(record) = self.stored.quarantine.get(&key).cloned() else {
                continue;
            };
            let kept = Kept::Not("nobody waits for it any more".to_owned());
            changes.push(self.put_in(
                key,
                Record {
                    state,
                    kept,
                    ..record
                },
            ));
        }
        self.ctx.commit(changes).await;
    }

    /// Whether what is stored of its collection's stream is behind the message.
    fn has_passed(&self, record: &Record) -> bool {
        let key = (record.channel.clone(), record.collection);
        let reader = self.catching.get(&key);
        let Some(reader) = reader.or_else(|| self.mains.get(&record.channel)) else {
            return false;
        };
        let route = self.entries.get(&record.collection);
        let failed = route
            .and_then(|e| e.route.as_ref())
            .is_none_or(|r| r.stream.failed());
        let progress = reader.books.lock().progress();
        !failed
            && (progress.position > record.position
                || (progress.after && progress.position == record.position))
    }
}
