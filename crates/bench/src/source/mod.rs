//! A source Milvus 2.3.5 that is not there: what it would have written to its etcd and its queue.

#[cfg(feature = "kafka")]
pub mod kafka;
pub mod messages;
pub mod metadata;
pub mod queue;
pub mod shape;
pub mod writer;

/// `etcd.rootPath`, and the prefix of the channels.
pub const ROOT: &str = "bench";
/// As many as a Milvus has by default (`rootCoord.dmlChannelNum`).
pub const CHANNELS: usize = 16;

pub fn channel(i: usize) -> String {
    format!("{ROOT}-rootcoord-dml_{i}")
}

pub fn replicate_channel() -> String {
    format!("{ROOT}-replicate-msg")
}

/// A timestamp of the oracle at this unix time; the microseconds below the millisecond are in its counter.
pub const fn tso(unix_us: u64) -> u64 {
    ((unix_us / 1000) << 18) + unix_us % 1000
}

/// Unix time in microseconds.
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// One collection of the source; one shard.
#[derive(Clone, Debug)]
pub struct Collection {
    pub id: i64,
    pub name: String,
    pub partition: i64,
    pub pchannel: String,
    pub created: u64,
}

impl Collection {
    /// The `i`-th of a source with `channels` channels in use.
    pub fn new(i: usize, channels: usize, created: u64) -> Self {
        let id = 1_000_000 + 10 * i as i64;
        Self {
            id,
            name: format!("c{i}"),
            partition: id + 1,
            pchannel: channel(i % channels),
            created,
        }
    }

    pub fn vchannel(&self) -> String {
        format!("{}_{}v0", self.pchannel, self.id)
    }
}
