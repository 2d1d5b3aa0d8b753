//! The one writer. While a transaction is being written others queue up; they share the next one.
//!
//! A transaction of etcd holds 128 operations and 1.5 MiB, unless the server was told otherwise. What is larger goes
//! into a *journal* first: chunks below `journal/`, then the key `journal/commit`. That key is the moment at which
//! the write happens: from then on every reader sees it through the journal, and the writer, or the next owner before
//! anything else, writes it out and deletes the journal. Chunks without that key are nothing, and are deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdc_core::store::StoreError;
use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::{mpsc, oneshot};

use super::keys::Keys;
use super::link::Link;
use super::plan::{Cache, Plan};
use super::read::{Changes, changes_of, corrupt, pairs};
use crate::store::Write;

/// Jobs in one transaction.
const MERGE: usize = 64;
/// Operations in one transaction, of the 128 that etcd takes (`--max-txn-ops`).
const OPERATIONS: usize = 100;
/// Bytes in one transaction, of the 1.5 MiB that etcd takes (`--max-request-bytes`).
const BYTES: usize = 1 << 20;

pub(super) struct Job {
    pub(super) writes: Vec<Write>,
    pub(super) epoch: i64,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
}

pub(super) struct Writer {
    link: Arc<Link>,
    keys: Keys,
    /// The epoch of the jobs that were written last.
    epoch: i64,
    /// The revision of `seq`; `None`: something may have been written that we do not know of.
    seq: Option<i64>,
    cache: Cache,
}

impl Writer {
    pub(super) fn new(link: Arc<Link>, keys: Keys) -> Self {
        Self {
            link,
            keys,
            epoch: 0,
            seq: None,
            cache: Cache::new(),
        }
    }

    /// Ends when the last handle of the store is gone.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(MERGE);
        while waiting.recv_many(&mut jobs, MERGE).await > 0 {
            let alike = jobs.windows(2).all(|w| match w {
                [a, b] => a.epoch == b.epoch,
                _ => true,
            });
            let merged = match alike {
                true => self.write(&jobs, jobs.len() == 1, false).await,
                false => Written::Apart,
            };
            match merged {
                Written::Done(result) if result.is_ok() || jobs.len() == 1 => {
                    for job in jobs.drain(..) {
                        let _ = job.done.send(result.clone());
                    }
                }
                // One of them spoils it, or together they are too large: each by itself, in the same order. Every
                // write may be repeated.
                _ => {
                    for job in jobs.drain(..) {
                        let written = self.write(std::slice::from_ref(&job), true, true).await;
                        let _ = job.done.send(match written {
                            Written::Done(result) => result,
                            Written::Apart => Err(corrupt("one job is no two")),
                        });
                    }
                }
            }
        }
    }

    /// `large`: with a journal if need be. `again`: an earlier try may have written it.
    async fn write(&mut self, jobs: &[Job], large: bool, again: bool) -> Written {
        let epoch = jobs.first().map_or(0, |job| job.epoch);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.forget();
        }
        // A second try when what we knew turned out to be old.
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_write(jobs, large, again || tries > 1).await {
                Ok(true) => return Written::Done(Ok(())),
                Ok(false) => return Written::Apart,
                Err(Trouble::Moved) if tries < 3 => self.forget(),
                // An answer that was lost: it may have been written, and what is written again is the same.
                Err(Trouble::Store(StoreError::Unavailable(_))) if tries < 2 => self.forget(),
                Err(Trouble::Moved) => {
                    self.forget();
                    let why = "somebody else writes to it all the time";
                    return Written::Done(Err(StoreError::Unavailable(why.to_owned())));
                }
                Err(Trouble::Store(error)) => {
                    self.forget();
                    return Written::Done(Err(error));
                }
            }
        }
    }

    fn forget(&mut self) {
        self.seq = None;
        self.cache.clear();
    }

    async fn try_write(&mut self, jobs: &[Job], large: bool, again: bool) -> Result<bool, Trouble> {
        if jobs.iter().all(|job| job.writes.is_empty()) {
            return Ok(true);
        }
        if self.seq.is_none() {
            self.settle().await?;
        }
        let mut plan = Plan {
            link: &self.link,
            keys: &self.keys,
            cache: &mut self.cache,
            changes: Changes::new(),
            again,
        };
        for write in jobs.iter().flat_map(|job| &job.writes) {
            plan.add(write).await?;
        }
        let changes = plan.changes;
        if changes.is_empty() {
            return Ok(true);
        }
        let parts = split(&changes);
        match parts.len() {
            0 | 1 => self.commit(operations(&changes)).await?,
            _ if !large => return Ok(false),
            _ => {
                self.clear_journal().await?;
                self.write_journal(&changes).await?;
                // It holds from here on, whatever happens.
                if let Err(trouble) = self.write_out(&changes).await {
                    tracing::warn!(
                        ?trouble,
                        "a large write is in the store's journal and will be written out later"
                    );
                    self.forget();
                    return Ok(true);
                }
            }
        }
        for (key, value) in changes {
            match (value, self.cache.get_mut(&key)) {
                (Some(value), Some(known)) => *known = Some(value),
                (None, _) => drop(self.cache.remove(&key)),
                (Some(_), None) => {}
            }
        }
        Ok(true)
    }

    /// Looks whether we are the owner and where `seq` is, and brings a journal to its end.
    async fn settle(&mut self) -> Result<(), Trouble> {
        let get = |key: String| TxnOp::get(key, None);
        let journal = TxnOp::get(self.keys.journal(), Some(GetOptions::new().with_prefix()));
        let look = vec![get(self.keys.owner()), get(self.keys.seq()), journal];
        let answer = self.link.txn(Txn::new().and_then(look)).await?;
        let mut gets = answer.op_responses().into_iter().map(|op| match op {
            TxnOpResponse::Get(get) => Some(get),
            _ => None,
        });
        let mut next = || gets.next().flatten();
        let (owner, seq, journal) = (next(), next(), next());
        let owner = owner.as_ref().and_then(|get| get.kvs().first());
        match owner {
            Some(kv) if kv.create_revision() == self.epoch => {}
            Some(kv) => {
                let name = String::from_utf8_lossy(kv.value());
                return Err(StoreError::NotOwner(format!("{name} owns it now")).into());
            }
            None => return Err(StoreError::NotOwner("nobody owns it now".to_owned()).into()),
        }
        let seq = seq.as_ref().and_then(|get| get.kvs().first());
        self.seq = Some(seq.map_or(0, |kv| kv.mod_revision()));
        let journal = match &journal {
            Some(get) => pairs(get)?,
            None => BTreeMap::new(),
        };
        if journal.contains_key(&self.keys.journal_commit()) {
            self.write_out(&changes_of(&self.keys, &journal)?).await?;
        } else if !journal.is_empty() {
            self.clear_journal().await?;
        }
        Ok(())
    }

    async fn clear_journal(&mut self) -> Result<(), Trouble> {
        let all = DeleteOptions::new().with_prefix();
        self.commit(vec![TxnOp::delete(self.keys.journal(), Some(all))])
            .await
    }

    async fn write_journal(&mut self, changes: &Changes) -> Result<(), Trouble> {
        for (n, part) in split(changes).iter().enumerate() {
            let chunk = serde_json::to_string(part).map_err(corrupt)?;
            self.commit(vec![TxnOp::put(self.keys.journal_chunk(n), chunk, None)])
                .await?;
        }
        self.commit(vec![TxnOp::put(self.keys.journal_commit(), "1", None)])
            .await
    }

    /// May be repeated from any point.
    async fn write_out(&mut self, changes: &Changes) -> Result<(), Trouble> {
        for part in split(changes) {
            self.commit(operations(&part)).await?;
        }
        self.clear_journal().await
    }

    /// One transaction, if we are still the owner and nobody wrote since.
    async fn commit(&mut self, mut operations: Vec<TxnOp>) -> Result<(), Trouble> {
        let seq = self.keys.seq();
        let known = self.seq.ok_or(Trouble::Moved)?;
        let when = vec![
            Compare::create_revision(self.keys.owner(), CompareOp::Equal, self.epoch),
            Compare::mod_revision(seq.as_str(), CompareOp::Equal, known),
        ];
        operations.push(TxnOp::put(seq, "", None));
        // Until the answer is there it is unknown whether it was written.
        self.seq = None;
        let answer = self
            .link
            .txn(Txn::new().when(when).and_then(operations))
            .await?;
        if !answer.succeeded() {
            return Err(Trouble::Moved);
        }
        self.seq = answer.header().map(|header| header.revision());
        Ok(())
    }
}

enum Written {
    Done(Result<(), StoreError>),
    /// The jobs have to be written one by one.
    Apart,
}

#[derive(Debug)]
enum Trouble {
    /// `owner` or `seq` is not what it was.
    Moved,
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Trouble::Store(error)
    }
}

fn operations(changes: &Changes) -> Vec<TxnOp> {
    changes
        .iter()
        .map(|(key, value)| match value {
            Some(value) => TxnOp::put(key.as_str(), value.as_str(), None),
            None => TxnOp::delete(key.as_str(), None),
        })
        .collect()
}

/// Into parts that each fit into a transaction, as operations and as a chunk of the journal.
fn split(changes: &Changes) -> Vec<Changes> {
    let mut parts: Vec<Changes> = Vec::new();
    let mut bytes = 0;
    for (key, value) in changes {
        // As JSON within a chunk: quotes are escaped.
        let quotes = value.iter().flat_map(|v| v.bytes());
        let escaped = quotes.filter(|b| matches!(b, b'"' | b'\\')).count();
        let size = key.len() + value.as_ref().map_or(4, String::len) + escaped + 16;
        let fits = parts
            .last()
            .is_some_and(|part| part.len() < OPERATIONS && bytes + size <= BYTES);
        if !fits {
            parts.push(Changes::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.insert(key.clone(), value.clone());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_to_both_limits_and_lose_nothing() {
        let all: Changes = (0..1000)
            .map(|n| (format!("{n:04}"), (n % 3 != 0).then(|| "\"".repeat(n * 20))))
            .collect();
        let parts = split(&all);
        for part in &parts {
            assert!(part.len() <= OPERATIONS);
            assert!(serde_json::to_string(part).unwrap().len() <= BYTES + 1024);
        }
        let joined: Changes = parts.into_iter().flatten().collect();
        assert_eq!(joined, all);
    }
}
