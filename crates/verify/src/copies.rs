//! Rows of a server as they are now, to be copied.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use milvus::proto::common::ConsistencyLevel;

use crate::client::{Client, Key, Query, Row, key_expr};
use crate::table::{TooLarge, again};

/// Where the rows are.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    pub db: &'a str,
    pub collection: &'a str,
    /// `None`: the partitions cannot be named.
    pub partition: Option<&'a str>,
    pub primary: &'a str,
    /// All to be read.
    pub fields: &'a [String],
}

/// What a server holds of these keys, with Strong consistency: nothing that was written before the call is missing. A key
/// that it has not is left out; one that it has more than once is there once.
///
/// # Errors
/// It cannot be read.
pub async fn read(client: &Client, from: From<'_>, keys: &[Key]) -> Result<BTreeMap<Key, Row>> {
    let partitions: Vec<String> = from.partition.map(str::to_owned).into_iter().collect();
    let mut found = BTreeMap::new();
    let mut parts = vec![keys.to_vec()];
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let expr = key_expr(from.primary, &part);
        let query = Query {
            db: from.db,
            collection: from.collection,
            partitions: &partitions,
            expr: &expr,
            output: from.fields,
            consistency: ConsistencyLevel::Strong,
        };
        let rows = match again(|| client.query(&query)).await {
            Ok(rows) => rows,
            Err(e) if e.is::<TooLarge>() && part.len() > 1 => {
                let rest = part.split_off(part.len() / 2);
                parts.extend([part, rest]);
                continue;
            }
            Err(e) => return Err(e),
        };
        for row in rows {
            let key = row.get(from.primary).and_then(|v| v.key());
            let key = key.with_context(|| {
                format!("a row of {}.{} without its key", from.db, from.collection)
            })?;
            found.insert(key, row);
        }
        // A key that is there twice can hide another one from the same answer (2.3.5): who is not in it is asked for
        // once more, without those that are.
        let asked = part.len();
        part.retain(|key| !found.contains_key(key));
        if part.len() < asked {
            parts.push(part);
        }
    }
    Ok(found)
}
