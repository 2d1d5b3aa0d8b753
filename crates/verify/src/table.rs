//! The rows of one partition on one server.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use milvus::proto::common::ConsistencyLevel;
use tonic::Code;

use crate::client::{Client, Key, NoAnswer, Query, Refused, Row, Value, key_expr};
use crate::objects::{Collection, Likeness};
use cdc_keys::Range;

/// Which rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    Range(&'a Range),
    Keys(&'a [Key]),
}

/// A side of the comparison.
pub(crate) trait Table: Sync {
    /// Waits until everything that was written before is shown.
    fn catch_up(&self) -> impl Future<Output = Result<()>> + Send;
    /// `count(*)`, of all or of a range.
    fn count(&self, range: Option<&Range>) -> impl Future<Output = Result<u64>> + Send;
    /// Every field, once for each key.
    fn rows(&self, which: Rows<'_>) -> impl Future<Output = Result<Vec<(Key, Row)>>> + Send;
}

/// The answer has more bytes than the server, or we, let pass.
#[derive(Debug)]
pub(crate) struct TooLarge(anyhow::Error);

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the answer is too large: {:#}", self.0)
    }
}

impl std::error::Error for TooLarge {}

/// Tries of a query, and the pause between two.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// A partition of a server, or a whole collection whose partitions cannot be named.
pub(crate) struct Partition<'a> {
    pub(crate) client: &'a Client,
    pub(crate) of: &'a Collection,
    /// Empty: all.
    pub(crate) names: Vec<String>,
    /// The source is asked with Strong first; a standby has nobody's time but the source's.
    pub(crate) strong: bool,
    pub(crate) likeness: Likeness,
}

impl Partition<'_> {
    fn condition(&self, which: Rows<'_>) -> String {
        match which {
            Rows::Range(range) => range.expr(&self.of.primary),
            Rows::Keys(keys) => key_expr(&self.of.primary, keys),
        }
    }
}

impl Table for Partition<'_> {
    async fn catch_up(&self) -> Result<()> {
        if self.strong {
            let (db, name) = (&self.of.db, &self.of.name);
            let strong = ConsistencyLevel::Strong;
            self.client.count(db, name, &self.names, strong).await?;
        }
        Ok(())
    }

    async fn count(&self, range: Option<&Range>) -> Result<u64> {
        if self.likeness == Likeness::Lite {
            return self.counted(range).await;
        }
        let expr = range.map_or_else(String::new, |r| r.expr(&self.of.primary));
        let (db, name) = (&self.of.db, &self.of.name);
        let level = ConsistencyLevel::Eventually;
        again(|| self.client.count_where(db, name, &self.names, &expr, level)).await
    }

    async fn rows(&self, which: Rows<'_>) -> Result<Vec<(Key, Row)>> {
        let Rows::Keys(keys) = which else {
            return self.found(which).await;
        };
        // A key that is there twice can hide another one from the same answer (2.3.5): who is not in it is asked for
        // once more, without those that are.
        let mut all = Vec::new();
        let mut missing: BTreeSet<&Key> = keys.iter().collect();
        while !missing.is_empty() {
            let asked: Vec<Key> = missing.iter().map(|k| (*k).clone()).collect();
            let found = self.found(Rows::Keys(&asked)).await?;
            for (key, _) in &found {
                missing.remove(key);
            }
            all.extend(found);
            if missing.len() == asked.len() {
                break;
            }
        }
        Ok(all)
    }
}

impl Partition<'_> {
    /// The rows of milvus-lite are counted by their keys, none of which is there twice: its `count(*)` is of the whole
    /// collection, whatever is asked for.
    async fn counted(&self, range: Option<&Range>) -> Result<u64> {
        let all = Range::all(self.of.string_key);
        let ranges = range.map_or(all.as_slice(), std::slice::from_ref);
        let output = std::slice::from_ref(&self.of.primary);
        let mut count = 0;
        for range in ranges {
            let expr = range.expr(&self.of.primary);
            let query = Query {
                db: &self.of.db,
                collection: &self.of.name,
                partitions: &self.names,
                expr: &expr,
                output,
                consistency: ConsistencyLevel::Eventually,
            };
            count += again(|| self.client.query(&query)).await?.len() as u64;
        }
        Ok(count)
    }

    async fn found(&self, which: Rows<'_>) -> Result<Vec<(Key, Row)>> {
        let expr = self.condition(which);
        let query = Query {
            db: &self.of.db,
            collection: &self.of.name,
            partitions: &self.names,
            expr: &expr,
            output: &self.of.fields,
            consistency: ConsistencyLevel::Eventually,
        };
        let rows = again(|| self.client.query(&query)).await?;
        rows.into_iter()
            .map(|mut row| {
                if self.likeness == Likeness::Lite {
                    row.values_mut().for_each(Value::rewrite_json);
                }
                let key = row.get(&self.of.primary).and_then(|v| v.key());
                let key = key.with_context(|| {
                    format!("a row of {}.{} without its key", self.of.db, self.of.name)
                })?;
                Ok((key, row))
            })
            .collect()
    }
}

/// A server in the middle of a load or a flush refuses for a moment.
pub(crate) async fn again<T, W: Future<Output = Result<T>>>(ask: impl Fn() -> W) -> Result<T> {
    let mut tries = 1;
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if is_too_large(&error) {
            return Err(TooLarge(error).into());
        }
        if tries == TRIES || is_final(&error) {
            return Err(error);
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_too_large(error: &anyhow::Error) -> bool {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        let reason = &refused.reason;
        return reason.contains("message larger than max")
            || reason.contains("exceeds the maximum")
            || reason.contains("exceeds the limit");
    }
    // tonic has OutOfRange for what it does not decode.
    error
        .downcast_ref::<NoAnswer>()
        .is_some_and(|n| matches!(n.code, Code::OutOfRange | Code::ResourceExhausted))
}

/// Another try comes to the same.
fn is_final(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<NoAnswer>()
        .is_some_and(|n| matches!(n.code, Code::Unauthenticated | Code::PermissionDenied))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: &str) -> anyhow::Error {
        Refused {
            call: "query".to_owned(),
            code: 65535,
            reason: reason.to_owned(),
        }
        .into()
    }

    fn no_answer(code: Code) -> anyhow::Error {
        NoAnswer {
            call: "query".to_owned(),
            code,
            message: String::new(),
        }
        .into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_tried_again_unless_it_is_final_or_too_large() {
        use std::sync::atomic::{AtomicU32, Ordering};
        for (error, wanted) in [
            (refused as fn(&str) -> anyhow::Error, TRIES),
            (|_| no_answer(Code::Unavailable), TRIES),
            (|_| no_answer(Code::Unauthenticated), 1),
            (|_| no_answer(Code::OutOfRange), 1),
        ] {
            let asked = AtomicU32::new(0);
            let outcome: Result<()> = again(|| async {
                asked.fetch_add(1, Ordering::Relaxed);
                Err(error("not yet"))
            })
            .await;
            assert!(outcome.is_err());
            assert_eq!(asked.into_inner(), wanted);
        }
        let large = again(|| async { Err::<(), _>(refused("grpc: message larger than max")) });
        assert!(large.await.is_err_and(|e| e.is::<TooLarge>()));
    }
}
