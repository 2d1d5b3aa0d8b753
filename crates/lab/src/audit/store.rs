//! The messages of a RocksMQ, read beside the running server.

use std::path::Path;

use anyhow::{Context, Result};
use milvus::proto::common::{MsgHeader, MsgType};
use milvus::proto::msg;
use prost::Message;
use rocksdb::{DB, IteratorMode, LogLevel, Options};

use super::{least, seconds};

/// Only these topics carry rows and ticks.
const DATA: &str = "rootcoord-dml";
/// The primary may remove a file while the secondary opens.
const ATTEMPTS: usize = 10;

/// Topic, id and payload of a message.
pub(super) type Stored = (String, i64, Box<[u8]>);

/// Every message of one channel, one a line: its place in the log, its type, its id and its time.
///
/// # Errors
/// As [`Log::read`].
pub fn list(dir: &Path, channel: &str) -> Result<Vec<String>> {
    let mut messages = read(dir)?;
    messages.retain(|m| m.0 == channel);
    messages.sort_by_key(|m| m.1);
    let mut lines = Vec::new();
    for (_, place, payload) in messages {
        let base = MsgHeader::decode(&*payload)?.base.unwrap_or_default();
        let rows = match base.msg_type() {
            MsgType::Insert => {
                let m = msg::InsertRequest::decode(&*payload)?;
                format!(
                    " {} rows of {} into segment {} at {:.3}",
                    m.num_rows,
                    m.collection_id,
                    m.segment_id,
                    seconds(least(&m.timestamps))
                )
            }
            MsgType::Delete => {
                let m = msg::DeleteRequest::decode(&*payload)?;
                format!(
                    " {} keys of {} at {:.3}",
                    m.num_rows,
                    m.collection_id,
                    seconds(least(&m.timestamps))
                )
            }
            _ => String::new(),
        };
        lines.push(format!(
            "{place} {} id {} time {} ({:.3}){rows}",
            base.msg_type().as_str_name(),
            base.msg_id,
            base.timestamp,
            seconds(base.timestamp)
        ));
    }
    Ok(lines)
}

/// Every message of a data channel.
pub(super) fn read(dir: &Path) -> Result<Vec<Stored>> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match attempt(dir) {
            Ok(all) => return Ok(all),
            Err(e) => last = Some(e),
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("not tried")))
        .with_context(|| format!("read the RocksMQ at {}", dir.display()))
}

fn attempt(dir: &Path) -> Result<Vec<Stored>> {
    let own = std::env::temp_dir().join(format!("cdc-lab-audit-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&own)?;
    let outcome = scan(dir, &own);
    let _ = std::fs::remove_dir_all(&own);
    outcome
}

fn scan(dir: &Path, own: &Path) -> Result<Vec<Stored>> {
    let mut options = Options::default();
    // All files stay open: the primary may delete them while they are read.
    options.set_max_open_files(-1);
    options.set_log_level(LogLevel::Error);
    let db = DB::open_cf_as_secondary(&options, dir, own, ["default", "properties"])?;
    let mut all = Vec::new();
    for entry in db.iterator(IteratorMode::Start) {
        let (key, value) = entry?;
        let key = std::str::from_utf8(&key).context("a key that is no text")?;
        if let Some((topic, id)) = key.rsplit_once('/')
            && topic.contains(DATA)
        {
            all.push((topic.to_owned(), id.parse()?, value));
        }
    }
    Ok(all)
}
