//! Watches a source while things are done to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::acts::{Act, Answer, Done, Origin};
use super::trace::{Message, Read, Trace, What};
use super::{Broken, Outcome, Rule};
use crate::catalog::{Catalog, Collection, LoadState, ObjectState, View};
use crate::ids::{CollectionId, PChannel};
use crate::source::{LogSource, SourceError, Start};
use crate::tso::Tso;

/// How long something may take that has to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How far ticks go on at the end, by the source's own time: so that a channel without them is seen to have none.
pub(super) const AFTERWARDS: Duration = Duration::from_secs(6);
const BATCH: usize = 1 << 20;
/// Between two looks whether a channel is there by now.
const CHANNEL: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Seen {
    trace: Trace,
    /// What went wrong while watching.
    failed: Option<Broken>,
    /// Counts what begins and ends.
    moments: u64,
}

impl Seen {
    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }
}

/// Reads all channels and the metadata from its start on.
pub struct Recorder<'a> {
    origin: &'a dyn Origin,
    seen: Arc<Mutex<Seen>>,
    /// They end with it.
    _watchers: JoinSet<()>,
}

impl<'a> Recorder<'a> {
    pub fn start(origin: &'a dyn Origin) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let mut watchers = JoinSet::new();
        let failing = |seen: &Arc<Mutex<Seen>>, outcome: Outcome| {
            if let Err(e) = outcome {
                seen.lock().failed.get_or_insert(e);
            }
        };
        for channel in origin.channels() {
            let (log, catalog, seen) = (origin.log(), origin.catalog(), seen.clone());
            seen.lock()
                .trace
                .channels
                .insert(channel.clone(), Vec::new());
            watchers.spawn(async move {
                let outcome = channel_of(&channel, &*log, &*catalog, &seen).await;
                failing(&seen, outcome);
            });
        }
        let (catalog, of_views) = (origin.catalog(), seen.clone());
        watchers.spawn(async move {
            let outcome = views(&*catalog, &of_views).await;
            failing(&of_views, outcome);
        });
        Self {
            origin,
            seen,
            _watchers: watchers,
        }
    }

    /// Carries out one act, with nothing else under way, and looks at the metadata then.
    pub async fn act(&self, act: Act) -> Outcome<Result<Answer, String>> {
        self.alone(act, None).await
    }

    /// As [`Self::act`], of an act that a rule is about: whether it is carried out or refused.
    pub async fn by(&self, rule: Rule, carried_out: bool, act: Act) -> Outcome {
        self.alone(act, Some((rule, carried_out))).await.map(drop)
    }

    /// What there has to be, for the rest of a course to mean something.
    pub async fn surely(&self, act: Act) -> Outcome {
        let text = format!("{act:?}");
        match self.act(act).await? {
            Ok(_) => Ok(()),
            Err(e) => Err(Broken(format!("{text}: {e}"))),
        }
    }

    /// Carries out all of them at once.
    pub async fn together(&self, acts: Vec<Act>) -> Outcome {
        join_all(acts.into_iter().map(|act| async {
            let began = self.seen.lock().moment();
            let answer = self.origin.act(&act).await;
            self.note(act, began, answer, None);
        }))
        .await;
        self.origin.pass().await;
        self.well()
    }

    async fn alone(&self, act: Act, by: Option<(Rule, bool)>) -> Outcome<Result<Answer, String>> {
        let began = self.seen.lock().moment();
        let answer = self.origin.act(&act).await;
        let at = self.note(act.clone(), began, answer.clone(), by);
        if let Ok(answer) = &answer {
            let (shown, late) = self.shown(&act, answer).await?;
            let done = &mut self.seen.lock().trace.acts[at];
            (done.shown, done.late) = (shown, late);
        }
        self.origin.pass().await;
        self.well()?;
        Ok(answer)
    }

    fn note(
        &self,
        act: Act,
        began: u64,
        answer: Result<Answer, String>,
        by: Option<(Rule, bool)>,
    ) -> usize {
        let mut seen = self.seen.lock();
        let ended = seen.moment();
        seen.trace.acts.push(Done {
            act,
            began,
            ended,
            answer,
            by,
            shown: None,
            late: false,
        });
        seen.trace.acts.len() - 1
    }

    fn well(&self) -> Outcome {
        match &self.seen.lock().failed {
            Some(e) => Err(Broken(e.0.clone())),
            None => Ok(()),
        }
    }

    /// Whether the metadata shows it, and whether the watch does not yet.
    async fn shown(&self, act: &Act, answer: &Answer) -> Outcome<(Option<bool>, bool)> {
        if matches!(act, Act::Write { .. }) {
            return Ok((None, false));
        }
        if let Some(in_view) = of_view(act, answer) {
            let late = !in_view(&self.view());
            let shown = self.until(|| in_view(&self.view())).await?;
            return Ok((Some(shown), late));
        }
        let Some(id) = answer.collection else {
            return Ok((None, false));
        };
        let view = self.view();
        let entry = read(&*self.origin.catalog(), id).await?;
        let late = view.collections.get(&id).map(AsRef::as_ref) != entry.as_ref();
        Ok((Some(of_entry(act, entry.as_ref())), late))
    }

    fn view(&self) -> Arc<View> {
        self.origin.catalog().subscribe().borrow().clone()
    }

    /// Lets time go by until it is so; whether it came to be.
    async fn until(&self, mut is: impl FnMut() -> bool) -> Outcome<bool> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.well()?;
            if is() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            self.origin.pass().await;
        }
    }

    /// Waits until the watch shows what it has to show and all that was done stands in the queue, then for some seconds
    /// of ticks; their end.
    ///
    /// # Errors
    /// It does not become quiet, or reading failed.
    pub async fn quiet(&self) -> Outcome<Tso> {
        let bound = self.origin.catalog().tso_bound().await.map_err(broken)?;
        let until = bound.plus(AFTERWARDS);
        let mut missing = None;
        let quiet = self.until(|| {
            missing = unquiet(&self.seen.lock().trace, &self.view(), until);
            missing.is_none()
        });
        match quiet.await? {
            true => Ok(until),
            false => Err(Broken(format!(
                "{} does not come",
                missing.unwrap_or_default()
            ))),
        }
    }

    /// Hands out what was seen when it has become quiet.
    ///
    /// # Errors
    /// As [`Self::quiet`].
    pub async fn finish(self) -> Outcome<Trace> {
        let until = self.quiet().await?;
        let catalog = self.origin.catalog();
        let view = self.view();
        let mut ids: Vec<CollectionId> = view.collections.keys().copied().collect();
        {
            let seen = self.seen.lock();
            ids.extend(seen.trace.messages().filter_map(|(_, m)| m.collection()));
        }
        ids.sort_unstable();
        ids.dedup();
        let mut last = Vec::new();
        for id in ids {
            let found = read(&*catalog, id).await?;
            let same = self
                .until(|| self.view().collections.get(&id).map(AsRef::as_ref) == found.as_ref());
            let same = same.await?;
            last.push((id, (found, same)));
        }
        let mut trace = std::mem::take(&mut self.seen.lock().trace);
        trace.last.extend(last);
        // Who writes without end may have written parts of more than that.
        for all in trace.channels.values_mut() {
            all.retain(|m| m.rows().is_none() || m.ts() <= until);
        }
        Ok(trace)
    }
}

fn broken(e: impl std::fmt::Display) -> Broken {
    Broken(e.to_string())
}

async fn read(catalog: &dyn Catalog, id: CollectionId) -> Outcome<Option<Collection>> {
    catalog.read_collection(id).await.map_err(broken)
}

/// Whether a view shows what was done.
type IsSo = Box<dyn Fn(&View) -> bool + Send + Sync>;

/// How a view looks that shows an act which no collection's entry tells of.
fn of_view(act: &Act, answer: &Answer) -> Option<IsSo> {
    let database = |view: &View, name: &str| {
        let mut found = view.databases.values().filter(|d| d.name == name);
        found.next().map(|d| d.id)
    };
    match act.clone() {
        Act::CreateDatabase(name) => Some(Box::new(move |view| database(view, &name).is_some())),
        Act::DropDatabase(name) => Some(Box::new(move |view| database(view, &name).is_none())),
        Act::Alias { of, alias } => {
            let id = answer.collection;
            Some(Box::new(move |view| {
                let key = database(view, &of.db).map(|db| (db, alias.clone()));
                let found = key.and_then(|key| view.aliases.get(&key));
                found.map(|a| a.collection) == id
            }))
        }
        Act::DropAlias(alias) => Some(Box::new(move |view| {
            let key = database(view, &alias.db).map(|db| (db, alias.name.clone()));
            key.is_none_or(|key| !view.aliases.contains_key(&key))
        })),
        _ => None,
    }
}

/// Whether a collection's entry shows an act.
fn of_entry(act: &Act, entry: Option<&Collection>) -> bool {
    let Some(entry) = entry else {
        return matches!(act, Act::Drop(_));
    };
    let partition = |name: &str| {
        let mut all = entry.partitions.values();
        all.any(|p| p.name == name && p.state == ObjectState::Created)
    };
    match act {
        Act::Create { name, shards } => {
            entry.state == ObjectState::Created
                && entry.name == name.name
                && entry.shards.len() == *shards
        }
        Act::Drop(_) => entry.state == ObjectState::Dropping,
        Act::CreatePartition { partition: p, .. } => partition(p),
        Act::DropPartition { partition: p, .. } => !partition(p),
        Act::Index(_) => entry.indexes.len() == 1,
        Act::DropIndex(_) => entry.indexes.is_empty(),
        Act::Load(_) => matches!(entry.load, LoadState::Collection { .. }),
        Act::Release(_) => entry.load == LoadState::Released,
        Act::Rename { to, .. } => entry.name == to.name,
        _ => true,
    }
}

/// What is still to come: an entry, a message, a tick.
fn unquiet(trace: &Trace, view: &View, until: Tso) -> Option<String> {
    for collection in view.collections.values() {
        for shard in &collection.shards {
            let Some(all) = trace.channels.get(&shard.pchannel) else {
                return Some(format!("the channel {}", shard.pchannel));
            };
            let last_tick = all.iter().filter_map(Message::tick).max();
            let wanted = match collection.state {
                ObjectState::Created => until,
                ObjectState::Creating => return Some(format!("the end of {}", collection.id)),
                ObjectState::Dropping => {
                    let of_it = |m: &&Message| matches!(&m.what, What::DropCollection { collection: c, .. } if *c == collection.id);
                    match all.iter().find(of_it) {
                        Some(drop) => drop.base,
                        None => return Some(format!("the drop of {}", shard.vchannel)),
                    }
                }
            };
            if last_tick < Some(wanted) {
                return Some(format!("a tick at {wanted} on {}", shard.pchannel));
            }
        }
    }
    None
}

async fn channel_of(
    channel: &PChannel,
    log: &dyn LogSource,
    catalog: &dyn Catalog,
    seen: &Mutex<Seen>,
) -> Outcome {
    let mut reader = loop {
        match log.open(channel, Start::Earliest).await {
            Ok(reader) => break reader,
            Err(SourceError::NoSuchChannel { .. }) => tokio::time::sleep(CHANNEL).await,
            Err(e) => return Err(broken(e)),
        }
    };
    let mut known = BTreeSet::new();
    loop {
        for raw in reader.next(BATCH).await.map_err(broken)? {
            let mut message = Message::read(&raw)?;
            match &mut message.what {
                What::DropCollection { collection, entry } => {
                    *entry = read(catalog, *collection).await?.map(|c| c.state);
                }
                What::DropPartition {
                    collection,
                    partition,
                    entry,
                } => {
                    let found = read(catalog, *collection).await?;
                    let found = found.and_then(|c| c.partitions.get(partition).map(|p| p.state));
                    *entry = found;
                }
                What::Rows(rows) if known.insert((rows.collection, rows.partition)) => {
                    let found = read(catalog, rows.collection).await?;
                    let first = (channel.clone(), rows.clone(), found);
                    seen.lock().trace.first_rows.push(first);
                }
                _ => {}
            }
            let bound = match message.what {
                What::Tick => None,
                _ => Some(catalog.tso_bound().await.map_err(broken)?),
            };
            let mut seen = seen.lock();
            let ts = message.ts();
            seen.trace.bounds.extend(bound.map(|bound| (ts, bound)));
            if let Some(all) = seen.trace.channels.get_mut(channel) {
                all.push(message);
            }
        }
    }
}

async fn views(catalog: &dyn Catalog, seen: &Mutex<Seen>) -> Outcome {
    let mut views = catalog.subscribe();
    let mut before = Arc::<View>::default();
    loop {
        let view = views.borrow_and_update().clone();
        let changed = |(id, collection): &(&CollectionId, &Arc<Collection>)| {
            before.collections.get(id) != Some(collection)
        };
        let changed: Vec<_> = view.collections.iter().filter(changed).collect();
        let mut reads = Vec::new();
        for (id, _) in changed {
            reads.push((*id, read(catalog, *id).await?));
        }
        {
            let mut seen = seen.lock();
            let at = seen.trace.views.len();
            seen.trace.views.push(view.clone());
            let reads = reads.into_iter();
            let reads = reads.map(|(id, found)| Read {
                view: at,
                id,
                found,
            });
            seen.trace.reads.extend(reads);
        }
        before = view;
        views.changed().await.map_err(broken)?;
    }
}
