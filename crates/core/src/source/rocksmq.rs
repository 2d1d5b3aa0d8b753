//! rocksmq: the RocksDB inside a standalone Milvus, read through a *secondary* instance over the live files. It writes
//! nothing into the folder of the primary; its own few files lie in a temporary folder.
//!
//! Layout (`pkg/mq/mqimpl/rocksmq/server`): column families `default` (messages) and `properties` (unused), key
//! `{topic}/{id in decimal}`, value = payload. A second RocksDB at `{path}_meta_kv` holds `topic_id/{topic}`: that a
//! topic without messages exists.
//!
//! # When a position is lost
//! Ids have gaps, so a gap alone says nothing. Retention deletes whole pages from the front, in one range up to and
//! including the last id of a page (`rocksmq_retention.go`). Hence, in one snapshot:
//! - if the message last read, `p`, is still there, nothing behind it was deleted;
//! - if it is not, but `p + 1` is, nothing can be missing between the two;
//! - else messages behind `p` were deleted, unless `p` was exactly the last of its page. The two cannot be told apart
//!   (the page's record is deleted with it), so that this rare case is reported as lost too: never a silent gap.
//!
//! A position above the last id is lost as well: ids only grow, so the queue is not the one the position is from.
//!
//! # Following
//! Whoever waits for messages lets the secondary catch up, one reader for all; while nobody waits nothing runs. The
//! kernel tells of each write into the folder ([`watch`]), so that a message is seen when it is written; where it does
//! not (a volume shared over a network), a look at growing intervals finds it.
//!
//! A secondary reads the list of files first and the write-ahead logs then, and keeps what it has in memory. A log that
//! the primary flushes and removes in between, or before the secondary read its end, leaves a view with a hole that the
//! rule above cannot see. So the logs are listed around every step, and if one came or went the secondary is opened
//! anew: while their set is the same, nothing was flushed away.

mod folder;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{DB, DBRawIterator, LogLevel, Options, ReadOptions};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::folder::Folder;
use self::watch::Watch;
use super::{Bounds, LogReader, LogSource, RawMessage, SourceError, Start};
use crate::ids::PChannel;
use crate::position::{Position, QueueKind};

/// The pause between two looks at the primary: at least the first, which follows something new; doubled while nothing
/// is new. A write that the kernel tells of ends a longer one.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_LAST: Duration = Duration::from_millis(160);
/// How often opening is tried while the primary switches its logs, which it does once per 64 MB.
const OPEN_ATTEMPTS: usize = 5;

/// Where the RocksDB of the source is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RocksmqConfig {
    /// `rocksmq.path` of the source Milvus.
    pub path: PathBuf,
    /// Where our own files go; the system's temp folder if `None`.
    pub secondary_dir: Option<PathBuf>,
}

/// The message queue of a Milvus with `mq.type: rocksmq`.
pub struct RocksmqSource {
    shared: Arc<Shared>,
}

struct Shared {
    config: RocksmqConfig,
    address: String,
    secondary: Mutex<Option<Arc<Secondary>>>,
    following: tokio::sync::Mutex<Following>,
}

/// How far the secondary is.
#[derive(Default)]
struct Following {
    /// Counts the times something new was seen.
    version: u64,
    sequence: Option<u64>,
    /// When the primary was last looked at, and how long until the next look if nothing is heard of it.
    looked: Option<Instant>,
    pause: Duration,
    watch: Option<Watch>,
}

impl Following {
    /// Until it is worth looking at the primary again.
    async fn pause(&mut self, path: &std::path::Path) {
        if self.watch.is_none() {
            // Without one the pauses alone have to do.
            self.watch = Watch::open(path).ok();
        }
        let Some(looked) = self.looked else { return };
        sleep_until(looked + LOOK_FIRST).await;
        let end = looked + self.pause;
        match &mut self.watch {
            None => sleep_until(end).await,
            Some(watch) => {
                if let Ok(Err(_)) = timeout_at(end, watch.written()).await {
                    self.watch = None;
                    sleep_until(end).await;
                }
            }
        }
    }
}

/// The open secondary instance and its folder, which goes with it.
struct Secondary {
    db: DB,
    /// The write-ahead logs of the primary that it has read.
    logs: Vec<OsString>,
    _folder: Folder,
}

impl RocksmqSource {
    /// Opens nothing yet: the database may come later.
    pub fn open(config: RocksmqConfig) -> Self {
        let address = config.path.display().to_string();
        Self {
            shared: Arc::new(Shared {
                config,
                address,
                secondary: Mutex::default(),
                following: Default::default(),
            }),
        }
    }
}

impl Shared {
    fn unreachable(&self, cause: impl ToString) -> SourceError {
        SourceError::Unreachable {
            address: self.address.clone(),
            cause: cause.to_string(),
        }
    }

    fn open_secondary(
        &self,
        path: &std::path::Path,
        families: &[&str],
    ) -> Result<Secondary, SourceError> {
        let parent = self
            .config
            .secondary_dir
            .clone()
            .unwrap_or_else(std::env::temp_dir);
        let folder = Folder::make(&parent).map_err(|e| SourceError::Configuration {
            address: self.address.clone(),
            cause: format!("cannot make a folder in {}: {e}", parent.display()),
            hint: "name a folder this process may write to".to_owned(),
        })?;
        let mut options = Options::default();
        // All files stay open: the primary may delete them while they are read.
        options.set_max_open_files(-1);
        options.set_keep_log_file_num(1);
        options.set_log_level(LogLevel::Error);
        let db = DB::open_cf_as_secondary(&options, path, folder.path(), families)
            .map_err(|e| self.unreachable(e))?;
        Ok(Secondary {
            db,
            logs: Vec::new(),
            _folder: folder,
        })
    }

    /// The names of the primary's write-ahead logs. Blocking.
    fn logs(&self) -> Result<Vec<OsString>, SourceError> {
        let mut logs = Vec::new();
        for entry in std::fs::read_dir(&self.config.path).map_err(|e| self.unreachable(e))? {
            let name = entry.map_err(|e| self.unreachable(e))?.file_name();
            if std::path::Path::new(&name)
                .extension()
                .is_some_and(|e| e == "log")
            {
                logs.push(name);
            }
        }
        logs.sort_unstable();
        Ok(logs)
    }

    /// The secondary as it last caught up, opened if it is not. Blocking.
    fn secondary(&self) -> Result<Arc<Secondary>, SourceError> {
        self.opened(&mut self.secondary.lock())
    }

    fn opened(&self, slot: &mut Option<Arc<Secondary>>) -> Result<Arc<Secondary>, SourceError> {
        match slot {
            Some(secondary) => Ok(secondary.clone()),
            None => self.open_anew(slot),
        }
    }

    fn open_anew(&self, slot: &mut Option<Arc<Secondary>>) -> Result<Arc<Secondary>, SourceError> {
        *slot = None;
        for _ in 0..OPEN_ATTEMPTS {
            let logs = self.logs()?;
            let mut secondary =
                self.open_secondary(&self.config.path, &["default", "properties"])?;
            if self.logs()? == logs {
                secondary.logs = logs;
                return Ok(slot.insert(Arc::new(secondary)).clone());
            }
        }
        Err(self.unreachable("the files of the database changed each time it was opened"))
    }

    /// Lets the secondary see what the primary has written; returns the newest sequence number. Blocking.
    fn catch_up(&self) -> Result<u64, SourceError> {
        // Held throughout: nobody reads a view before it was found to be whole.
        let mut slot = self.secondary.lock();
        if let Some(secondary) = slot
            .as_ref()
            .filter(|s| self.logs().is_ok_and(|logs| logs == s.logs))
        {
            let caught_up = secondary.db.try_catch_up_with_primary();
            if caught_up.is_ok() && self.logs()? == secondary.logs {
                return Ok(secondary.db.latest_sequence_number());
            }
        }
        Ok(self.open_anew(&mut slot)?.db.latest_sequence_number())
    }

    /// Waits until there is something newer than `version`; `version` becomes what there is then.
    async fn newer(self: &Arc<Self>, version: &mut u64) -> Result<(), SourceError> {
        // Held while waiting: one waiter looks for all. A dropped waiter hands over to the next.
        let mut following = self.following.lock().await;
        while following.version == *version {
            following.pause(&self.config.path).await;
            following.looked = Some(Instant::now());
            let shared = self.clone();
            let sequence = blocking(&self.address, move || shared.catch_up()).await?;
            if following.sequence.replace(sequence) == Some(sequence) {
                following.pause = (following.pause * 2).clamp(LOOK_FIRST, LOOK_LAST);
            } else {
                following.pause = LOOK_FIRST;
                following.version += 1;
            }
        }
        *version = following.version;
        Ok(())
    }

    /// Whether Milvus made this topic. Blocking.
    fn topic_exists(&self, channel: &PChannel) -> Result<bool, SourceError> {
        let mut path = self.config.path.clone().into_os_string();
        path.push("_meta_kv");
        let meta = self.open_secondary(std::path::Path::new(&path), &["default"])?;
        let found = meta
            .db
            .get(format!("topic_id/{channel}"))
            .map_err(|e| self.unreachable(e))?;
        Ok(found.is_some())
    }

    fn id(&self, key: &[u8], topic: &Topic) -> Result<i64, SourceError> {
        let digits = key
            .get(topic.prefix.len()..)
            .and_then(|d| std::str::from_utf8(d).ok());
        digits
            .and_then(|d| d.parse().ok())
            .ok_or_else(|| SourceError::Configuration {
                address: self.address.clone(),
                cause: format!(
                    "key {:?} of {} has no message id",
                    String::from_utf8_lossy(key),
                    topic.channel
                ),
                hint: "check that the path is rocksmq.path of the source, not another RocksDB"
                    .to_owned(),
            })
    }

    /// What the topic holds in this state. Blocking.
    fn held(&self, db: &DB, topic: &Topic) -> Result<Option<Bounds>, SourceError> {
        let mut iterator = topic.iterator(db);
        iterator.seek_to_first();
        let Some(first) = iterator.key().map(|k| self.id(k, topic)).transpose()? else {
            iterator.status().map_err(|e| self.unreachable(e))?;
            return Ok(None);
        };
        iterator.seek_to_last();
        let Some(last) = iterator.key().map(|k| self.id(k, topic)).transpose()? else {
            return Err(self.unreachable("the last message went while looking for it"));
        };
        self.in_order(first, last, topic)?;
        Ok(Some(Bounds {
            first: Position::Rocksmq(first),
            last: Position::Rocksmq(last),
        }))
    }

    /// Keys sort as text. Ids of unlike length would come out of order: refused rather than read wrongly. Milvus' ids
    /// have 18 digits until the year 2090.
    fn in_order(&self, earlier: i64, later: i64, topic: &Topic) -> Result<(), SourceError> {
        if earlier <= later && earlier.checked_ilog10() == later.checked_ilog10() {
            return Ok(());
        }
        Err(SourceError::Configuration {
            address: self.address.clone(),
            cause: format!(
                "{}: message ids {earlier} and {later} do not sort in the order of their keys",
                topic.channel
            ),
            hint: "this queue was not written by a supported Milvus".to_owned(),
        })
    }

    fn lost(&self, db: &DB, topic: &Topic, wanted: i64) -> SourceError {
        match self.held(db, topic) {
            Ok(held) => SourceError::PositionLost {
                channel: topic.channel.clone(),
                wanted: Position::Rocksmq(wanted),
                first: held.map(|b| b.first),
                last: held.map(|b| b.last),
            },
            Err(error) => error,
        }
    }

    /// The messages at `next`, empty if there is nothing new. Blocking.
    fn read(
        &self,
        topic: &Topic,
        next: Next,
        max_bytes: usize,
    ) -> Result<Vec<RawMessage>, SourceError> {
        // The iterator is made while nothing catches up: its view is one that was found to be whole.
        let mut slot = self.secondary.lock();
        let secondary = self.opened(&mut slot)?;
        let db = &secondary.db;
        let mut iterator = topic.iterator(db);
        drop(slot);
        let mut previous = None;
        match next {
            Next::First => iterator.seek_to_first(),
            Next::At(p) | Next::Behind(p) => iterator.seek(topic.key(p)),
        }
        let here = iterator.key().map(|k| self.id(k, topic)).transpose()?;
        iterator.status().map_err(|e| self.unreachable(e))?;
        match next {
            Next::First => {}
            Next::At(p) if here == Some(p) => {}
            Next::Behind(p) if here == Some(p) => {
                previous = here;
                iterator.next();
            }
            Next::Behind(p) if here.is_some() && here == p.checked_add(1) => {}
            Next::At(p) | Next::Behind(p) => return Err(self.lost(db, topic, p)),
        }
        let mut bytes = 0;
        let mut batch: Vec<RawMessage> = Vec::new();
        while let Some((key, value)) = iterator.item() {
            bytes += value.len();
            if bytes > max_bytes && !batch.is_empty() {
                break;
            }
            let id = self.id(key, topic)?;
            if let Some(previous) = previous {
                self.in_order(previous, id, topic)?;
            }
            previous = Some(id);
            batch.push(RawMessage {
                position: Position::Rocksmq(id),
                payload: Bytes::copy_from_slice(value),
            });
            if bytes >= max_bytes {
                break;
            }
            iterator.next();
        }
        iterator.status().map_err(|e| self.unreachable(e))?;
        Ok(batch)
    }

    /// Where a reader starts. Blocking.
    fn start(&self, topic: &Topic, start: Start) -> Result<Next, SourceError> {
        self.catch_up()?;
        let secondary = self.secondary()?;
        let held = self.held(&secondary.db, topic)?;
        if held.is_none() && !self.topic_exists(&topic.channel)? {
            return Err(SourceError::NoSuchChannel {
                channel: topic.channel.clone(),
                address: self.address.clone(),
            });
        }
        let id = |p: Position| match p {
            Position::Rocksmq(id) => Ok(id),
            other => Err(SourceError::Configuration {
                address: self.address.clone(),
                cause: format!("{other} is a position of {}, not of rocksmq", other.kind()),
                hint: "give a position of the source's own queue".to_owned(),
            }),
        };
        let next = match (start, held.map(|b| b.last)) {
            (Start::At(p), _) => Next::At(id(p)?),
            (Start::After(p), _) => Next::Behind(id(p)?),
            (Start::Latest, Some(last)) => Next::Behind(id(last)?),
            (Start::Earliest, _) | (Start::Latest, None) => match held {
                Some(held) => Next::At(id(held.first)?),
                None => Next::First,
            },
        };
        // Says so at once if the start is no longer held.
        self.read(topic, next, 0)?;
        Ok(next)
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(
    address: &str,
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(SourceError::Unreachable {
            address: address.to_owned(),
            cause: e.to_string(),
        })
    })
}

#[derive(Clone)]
struct Topic {
    channel: PChannel,
    /// `{topic}/`
    prefix: Vec<u8>,
}

impl Topic {
    fn new(channel: &PChannel) -> Self {
        Self {
            channel: channel.clone(),
            prefix: format!("{channel}/").into_bytes(),
        }
    }

    fn key(&self, id: i64) -> Vec<u8> {
        format!("{}/{id}", self.channel).into_bytes()
    }

    fn iterator<'a>(&self, db: &'a DB) -> DBRawIterator<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(self.prefix.clone());
        // '0' is the character behind '/'.
        options.set_iterate_upper_bound(format!("{}0", self.channel));
        options.fill_cache(false);
        options.set_readahead_size(1 << 20);
        db.raw_iterator_opt(options)
    }
}

#[derive(Clone, Copy)]
enum Next {
    /// The first message there will be: the topic was empty.
    First,
    At(i64),
    Behind(i64),
}

#[async_trait]
impl LogSource for RocksmqSource {
    fn kind(&self) -> QueueKind {
        QueueKind::Rocksmq
    }

    async fn ping(&self) -> Result<(), SourceError> {
        let shared = self.shared.clone();
        blocking(&self.shared.address, move || shared.catch_up().map(drop)).await
    }

    async fn bounds(&self, channel: &PChannel) -> Result<Option<Bounds>, SourceError> {
        let (shared, topic) = (self.shared.clone(), Topic::new(channel));
        blocking(&self.shared.address, move || {
            shared.catch_up()?;
            let held = shared.held(&shared.secondary()?.db, &topic)?;
            if held.is_none() && !shared.topic_exists(&topic.channel)? {
                let address = shared.address.clone();
                return Err(SourceError::NoSuchChannel {
                    channel: topic.channel,
                    address,
                });
            }
            Ok(held)
        })
        .await
    }

    async fn open(
        &self,
        channel: &PChannel,
        start: Start,
    ) -> Result<Box<dyn LogReader>, SourceError> {
        let (shared, topic) = (self.shared.clone(), Topic::new(channel));
        let next = blocking(&self.shared.address, move || shared.start(&topic, start)).await?;
        Ok(Box::new(RocksmqReader {
            shared: self.shared.clone(),
            topic: Topic::new(channel),
            next,
            version: 0,
        }))
    }
}

struct RocksmqReader {
    shared: Arc<Shared>,
    topic: Topic,
    next: Next,
    /// The version that was read to its end.
    version: u64,
}

#[async_trait]
impl LogReader for RocksmqReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Vec<RawMessage>, SourceError> {
        loop {
            let (shared, topic, next) = (self.shared.clone(), self.topic.clone(), self.next);
            let batch = blocking(&self.shared.address, move || {
                shared.read(&topic, next, max_bytes)
            })
            .await?;
            if let Some(RawMessage {
                position: Position::Rocksmq(id),
                ..
            }) = batch.last()
            {
                self.next = Next::Behind(*id);
                return Ok(batch);
            }
            self.shared.newer(&mut self.version).await?;
        }
    }
}
