//! Reading below prefixes at one revision, with a journal that holds but is not written out yet.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::{CollectionId, PChannel, PartitionId};
use cdc_core::quarantine::Record;
use cdc_core::store::{StoreError, TaskProgress};
use cdc_core::tso::Tso;
use etcd_client::{GetOptions, GetResponse, Txn, TxnOp, TxnOpResponse};
use serde::de::DeserializeOwned;

use super::keys::{Keys, name};
use super::link::Link;

type Pairs = BTreeMap<String, String>;

/// What keys become: `None` is gone.
pub(super) type Changes = BTreeMap<String, Option<String>>;

/// Keys and values below `prefix`, at one instant.
pub(super) async fn below(
    link: &Link,
    keys: &Keys,
    prefix: &str,
) -> Result<BTreeMap<String, String>, StoreError> {
    let all = TxnOp::get(prefix, Some(GetOptions::new().with_prefix()));
    let (mut found, journal) = with_journal(link, keys, all).await?;
    if journal.contains_key(&keys.journal_commit()) {
        for (key, value) in changes_of(keys, &journal)? {
            if !key.starts_with(prefix) {
                continue;
            }
            match value {
                Some(value) => found.insert(key, value),
                None => found.remove(&key),
            };
        }
    }
    Ok(found)
}

/// Of the keys below `prefix` that end with 20 digits the first `limit` behind `after`, at one instant.
pub(super) async fn page(
    link: &Link,
    keys: &Keys,
    prefix: &str,
    after: u64,
    limit: u32,
) -> Result<BTreeMap<String, String>, StoreError> {
    let Some(first) = after.checked_add(1).filter(|_| limit > 0) else {
        return Ok(BTreeMap::new());
    };
    let first = format!("{prefix}{first:020}");
    // The character behind the digits.
    let options = GetOptions::new()
        .with_range(format!("{prefix}:"))
        .with_limit(i64::from(limit));
    let get = TxnOp::get(first.as_str(), Some(options));
    let (found, journal) = with_journal(link, keys, get).await?;
    if !journal.contains_key(&keys.journal_commit()) {
        return Ok(found);
    }
    // It may take away some of those and add others.
    let all = below(link, keys, prefix).await?;
    let behind = all.into_iter().filter(|(key, _)| *key >= first);
    Ok(behind.take(limit as usize).collect())
}

/// What `get` finds and what is in the journal, at one instant.
async fn with_journal(link: &Link, keys: &Keys, get: TxnOp) -> Result<(Pairs, Pairs), StoreError> {
    let journal = TxnOp::get(keys.journal(), Some(GetOptions::new().with_prefix()));
    let answer = link.txn(Txn::new().and_then(vec![get, journal])).await?;
    let mut gets = answer.op_responses().into_iter().map(|op| match op {
        TxnOpResponse::Get(get) => pairs(&get),
        _ => Ok(BTreeMap::new()),
    });
    let mut next = || gets.next().unwrap_or_else(|| Ok(BTreeMap::new()));
    Ok((next()?, next()?))
}

pub(super) fn pairs(get: &GetResponse) -> Result<BTreeMap<String, String>, StoreError> {
    get.kvs()
        .iter()
        .map(|kv| {
            let key = kv.key_str().map_err(corrupt)?.to_owned();
            Ok((key, kv.value_str().map_err(corrupt)?.to_owned()))
        })
        .collect()
}

/// What a journal says.
pub(super) fn changes_of(
    keys: &Keys,
    journal: &BTreeMap<String, String>,
) -> Result<Changes, StoreError> {
    let mut all = Changes::new();
    for (key, chunk) in journal {
        if *key != keys.journal_commit() {
            let changes: Changes = serde_json::from_str(chunk).map_err(corrupt)?;
            all.extend(changes);
        }
    }
    Ok(all)
}

pub(super) fn corrupt(cause: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(cause.to_string())
}

pub(super) fn json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(corrupt)
}

pub(super) fn number(text: &str) -> Result<i64, StoreError> {
    text.parse().map_err(corrupt)
}

/// `found`: everything below the task's prefix.
pub(super) fn progress(
    prefix: &str,
    found: &BTreeMap<String, String>,
) -> Result<TaskProgress, StoreError> {
    let mut all = TaskProgress::default();
    for (key, value) in found {
        let parts: Vec<&str> = key.get(prefix.len()..).unwrap_or("").split('/').collect();
        match parts[..] {
            ["channels", channel] => {
                all.channels
                    .insert(PChannel::new(name(channel)), json(value)?);
            }
            ["detached", channel, collection] => {
                let collection = CollectionId(number(collection)?);
                let key = (PChannel::new(name(channel)), collection);
                all.detached.insert(key, json(value)?);
            }
            ["replicate"] => all.replicate = Some(json(value)?),
            ["collections", id] => {
                all.collections
                    .insert(CollectionId(number(id)?), json(value)?);
            }
            ["partitions", id] => {
                all.partitions
                    .insert(PartitionId(number(id)?), json(value)?);
            }
            ["notes", id] => {
                all.notes.insert(CollectionId(number(id)?), value.clone());
            }
            _ => return Err(corrupt(format!("unknown key {key}"))),
        }
    }
    Ok(all)
}

/// `found`: everything below the prefix of the records.
pub(super) fn quarantine(
    prefix: &str,
    found: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Record>, StoreError> {
    let records = found.iter().map(|(key, value)| {
        let key = name(key.get(prefix.len()..).unwrap_or(""));
        Ok((key, json(value)?))
    });
    records.collect()
}

/// The parts of a message below `prefix`, put together.
pub(super) async fn parts(link: &Link, keys: &Keys, prefix: &str) -> Result<Vec<u8>, StoreError> {
    let mut whole = Vec::new();
    // The parts are counted from 0 and may have gaps; their keys end with 6 digits.
    let mut next = prefix.to_owned();
    loop {
        let options = GetOptions::new()
            .with_range(format!("{prefix}:"))
            .with_limit(1);
        let get = TxnOp::get(next.as_str(), Some(options));
        let (found, journal) = with_journal(link, keys, get).await?;
        if journal.contains_key(&keys.journal_commit()) {
            // It may be about these.
            whole.clear();
            for part in below(link, keys, prefix).await?.values() {
                whole.extend(STANDARD.decode(part).map_err(corrupt)?);
            }
            return Ok(whole);
        }
        let Some((key, part)) = found.into_iter().next() else {
            return Ok(whole);
        };
        whole.extend(STANDARD.decode(part).map_err(corrupt)?);
        next = key + "\0";
    }
}

/// `found`: everything below the target's prefix.
pub(super) fn floors(
    prefix: &str,
    found: &BTreeMap<String, String>,
) -> Result<BTreeMap<PChannel, Tso>, StoreError> {
    found
        .iter()
        .map(|(key, value)| {
            let channel = name(key.get(prefix.len()..).unwrap_or(""));
            Ok((PChannel::new(channel), Tso(value.parse().map_err(corrupt)?)))
        })
        .collect()
}
