//! What all tasks to one target share: its connection, its lanes, its time and its message ids.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::claims::Claims;
use super::flow::Flow;
use super::{LATE, Target, TargetConnector, TargetError, plain};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel, PartitionId, TargetKey};
use crate::lane::Lane;
use crate::store::{Change, SharedStore, StoreError};
use crate::task::{Mode, TargetSpec};
use crate::tso::Tso;

/// Message ids of ours start here: above every id that Milvus' own allocators give out (they are TSO-like, below 2^60),
/// so that ours and those of the target's own messages never meet on a channel.
const FIRST_MESSAGE_ID: i64 = 1 << 62;
/// How long a reading of the target's clock is used before the next.
const CLOCK_AGE: Duration = Duration::from_millis(500);
/// How long a hub may outlive its last task: until the lanes have ended.
const WINDING_DOWN: Duration = Duration::from_secs(2);

/// The hubs in use. A hub lives as long as a task holds it.
pub struct Hubs {
    connector: Arc<dyn TargetConnector>,
    store: SharedStore,
    /// One lock a target: a target that does not answer keeps nobody else waiting.
    hubs: Mutex<HashMap<TargetKey, Arc<tokio::sync::Mutex<Slot>>>>,
}

/// The hub of a target, while some task holds it, and what it was connected with.
#[derive(Default)]
struct Slot {
    hub: Weak<Hub>,
    with: Option<TargetSpec>,
}

impl Slot {
    /// One that was connected otherwise is only used if a task holds on to it: a task that was stopped to be given
    /// another login must not find its old connection, which ends in a moment.
    async fn in_use(&self, spec: &TargetSpec) -> Option<Arc<Hub>> {
        if self.with.as_ref() != Some(spec) {
            let end = Instant::now() + WINDING_DOWN;
            while self.hub.strong_count() > 0 && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        self.hub.upgrade()
    }
}

impl Hubs {
    pub fn new(connector: Arc<dyn TargetConnector>, store: SharedStore) -> Self {
        Self {
            connector,
            store,
            hubs: Mutex::default(),
        }
    }

    /// The hub of this target: the one in use, or a new one.
    pub async fn get(&self, spec: &TargetSpec) -> Result<Arc<Hub>, Problem> {
        let slot = self.hubs.lock().entry(spec.key()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(hub) = slot.in_use(spec).await {
            if hub.mode != spec.mode {
                let why = format!(
                    "another task writes to {} in mode {}, this one in mode {}",
                    spec.uri, hub.mode, spec.mode
                );
                let hint = "a target is a standby or it is not: set the mode of both alike";
                return Err(Problem::new(ErrorClass::Configuration, why, hint));
            }
            return Ok(hub);
        }
        let target = self
            .connector
            .connect(spec)
            .await
            .map_err(|e| e.problem())?;
        target.probe().await.map_err(|e| e.problem())?;
        let now = target.now().await.map_err(|e| e.problem())?;
        let floors = self
            .store
            .floors(&spec.key())
            .await
            .map_err(store_problem)?;
        let used = match spec.mode {
            // Ticks of others are of no concern.
            Mode::Plain => false,
            Mode::Replicate => {
                !floors.is_empty()
                    || holds_collections(target.as_ref())
                        .await
                        .map_err(|e| e.problem())?
            }
        };
        let hub = Arc::new(Hub {
            key: spec.key(),
            mode: spec.mode,
            target,
            store: self.store.clone(),
            call_timeout: spec.call_timeout,
            first_floor: if used { now } else { Tso::ZERO },
            floors: Mutex::new(floors),
            others: Mutex::default(),
            clock: Mutex::new((now, Instant::now())),
            // The target's clock is persisted and never goes back, and gives out more ids in a millisecond than we
            // could send: starting at it, ids of two runs never overlap, and nothing has to be written for them.
            message_id: AtomicI64::new(FIRST_MESSAGE_ID + now.0 as i64),
            lanes: Mutex::default(),
            flow: Flow::new(spec.mode),
            claims: Claims::default(),
            begun: Instant::now(),
            unanswered: Arc::default(),
            unclean: AtomicBool::new(false),
        });
        *slot = Slot {
            hub: Arc::downgrade(&hub),
            with: Some(spec.clone()),
        };
        Ok(hub)
    }
}

async fn holds_collections(target: &dyn Target) -> Result<bool, TargetError> {
    for database in target.databases().await? {
        if !target.collections(&database).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn store_problem(error: StoreError) -> Problem {
    let hint = "check that the store's disk is there and not full; tried again by itself";
    Problem::new(ErrorClass::Transient, error.to_string(), hint)
}

/// One target.
pub struct Hub {
    pub key: TargetKey,
    pub mode: Mode,
    pub target: Arc<dyn Target>,
    pub store: SharedStore,
    pub call_timeout: Duration,
    /// F of a channel we never wrote to: zero on a target that held nothing, else its clock when we first met it, since
    /// another writer may have sent ticks up to then.
    first_floor: Tso,
    floors: Mutex<BTreeMap<PChannel, Tso>>,
    /// What others have written on a channel, as far as that was found out since.
    others: Mutex<BTreeMap<PChannel, Tso>>,
    clock: Mutex<(Tso, Instant)>,
    message_id: AtomicI64,
    lanes: Mutex<HashMap<PChannel, Weak<Lane>>>,
    pub(crate) flow: Flow,
    pub(crate) claims: Claims,
    /// When this process began to write to the target.
    begun: Instant,
    /// Channels with a call whose answer nobody waited for any more, and until when it may still be carried out.
    unanswered: Noted,
    /// Whether an earlier process may have left calls that are still carried out.
    unclean: AtomicBool,
}

type Noted = Arc<Mutex<HashMap<PChannel, Instant>>>;

/// A call under way. Dropped without [`Unanswered::answered`], its channel is noted.
pub(crate) struct Unanswered {
    note: Option<(Noted, PChannel, Instant)>,
}

impl Unanswered {
    pub(crate) fn answered(mut self) {
        self.note = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some((noted, channel, until)) = self.note.take() {
            let mut noted = noted.lock();
            let at = noted.entry(channel).or_insert(until);
            *at = until.max(*at);
        }
    }
}

impl Hub {
    /// An id that was never used on this target and never will be again.
    pub fn message_id(&self) -> i64 {
        self.message_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The lane to a target channel: the one in use, or a new one whose time goes on from F.
    pub fn lane(self: &Arc<Self>, channel: &PChannel) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(channel).and_then(Weak::upgrade) {
            return lane;
        }
        let floor = self.floor(channel);
        let lane = Lane::spawn(self.clone(), channel.clone(), floor);
        lanes.insert(channel.clone(), Arc::downgrade(&lane));
        lane
    }

    /// Notes a call on this channel that may be carried out until `until`, unless its answer is seen.
    pub(crate) fn unanswered(&self, channel: &PChannel, until: Instant) -> Unanswered {
        let note = Some((self.unanswered.clone(), channel.clone(), until));
        Unanswered { note }
    }

    /// An earlier process ended with calls under way: what it sent last may still be carried out, until the deadline of
    /// those calls has passed. No lane ticks before.
    pub(crate) fn earlier_process_was_cut_off(&self) {
        self.unclean.store(true, Ordering::Release);
        let until = self.earlier_calls_end();
        for lane in self.lanes.lock().values().filter_map(Weak::upgrade) {
            lane.hush(until);
        }
    }

    pub(crate) fn was_cut_off(&self) -> bool {
        self.unclean.load(Ordering::Acquire)
    }

    /// What an ended process sent had left when this one began.
    fn earlier_calls_end(&self) -> Instant {
        self.begun + self.call_timeout + LATE
    }

    /// Before this moment a call whose answer was not seen may still be carried out on this channel.
    pub(crate) fn quiet_until(&self, channel: &PChannel) -> Instant {
        let mut noted = self.unanswered.lock();
        let now = Instant::now();
        noted.retain(|_, until| *until > now);
        let own = noted.get(channel).copied().unwrap_or(now);
        if self.was_cut_off() {
            own.max(self.earlier_calls_end())
        } else {
            own
        }
    }

    /// Whether messages of a call whose answer was not seen may still be carried out, on any channel.
    pub(crate) fn is_hushed(&self) -> bool {
        let now = Instant::now();
        // Also where this process has sent nothing itself: a start that is stopped at once.
        let earlier = self.was_cut_off() && self.earlier_calls_end() > now;
        if earlier || self.unanswered.lock().values().any(|until| *until > now) {
            return true;
        }
        let lanes = self.lanes.lock();
        lanes
            .values()
            .filter_map(Weak::upgrade)
            .any(|lane| lane.is_hushed())
    }

    /// Before a collection, or one of its partitions, is dropped by its name: in plain mode rows go there by name too, and a
    /// call that is carried out late must not find a newer one of that name. Waits until no call whose answer was not seen
    /// can be carried out there any more; what is under way on a lane is answered before the lane's next message.
    pub(crate) async fn until_ended(&self, collection: CollectionId) {
        if self.mode != Mode::Plain {
            return;
        }
        let prefix = plain::channel_prefix(collection);
        let ours = |channel: &PChannel| channel.as_str().starts_with(&prefix);
        loop {
            let now = Instant::now();
            let until = self.may_be_carried_out_until(ours, now);
            if until <= now {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Before a partition of the target is dropped by its name: the same, and no rows of it are on their way. What a
    /// collection that was taken off its readers has sent once more may still wait, with the drop behind it done.
    pub(crate) async fn drop_rows(&self, collection: CollectionId, partition: PartitionId) {
        if self.mode != Mode::Plain {
            return;
        }
        for lane in self.plain_lanes(collection) {
            lane.drop_rows(partition);
        }
        self.until_silent(collection).await;
    }

    /// Before a collection that is taken off its readers gets another name: the same, and nothing of it is on its way.
    pub(crate) async fn until_silent(&self, collection: CollectionId) {
        if self.mode != Mode::Plain {
            return;
        }
        for lane in self.plain_lanes(collection) {
            lane.until_idle().await;
        }
        self.until_ended(collection).await;
    }

    fn plain_lanes(&self, collection: CollectionId) -> Vec<Arc<Lane>> {
        let prefix = plain::channel_prefix(collection);
        let lanes = self.lanes.lock();
        let ours = lanes
            .iter()
            .filter(|(channel, _)| channel.as_str().starts_with(&prefix));
        ours.filter_map(|(_, lane)| lane.upgrade()).collect()
    }

    /// Of calls to these channels; `now` if there is none.
    fn may_be_carried_out_until(&self, of: impl Fn(&PChannel) -> bool, now: Instant) -> Instant {
        let earlier = self.was_cut_off().then(|| self.earlier_calls_end());
        let noted: Vec<Instant> = {
            let noted = self.unanswered.lock();
            let noted = noted.iter().filter(|(channel, _)| of(channel));
            noted.map(|(_, end)| *end).collect()
        };
        let lanes: Vec<_> = {
            let lanes = self.lanes.lock();
            let lanes = lanes.iter().filter(|(channel, _)| of(channel));
            lanes.filter_map(|(_, lane)| lane.upgrade()).collect()
        };
        let all = lanes.iter().map(|lane| lane.quiet_until());
        all.chain(noted).chain(earlier).fold(now, Instant::max)
    }

    /// F of a channel: nothing that was ever sent there lies above.
    pub fn floor(&self, channel: &PChannel) -> Tso {
        let floors = self.floors.lock();
        floors.get(channel).copied().unwrap_or(self.first_floor)
    }

    /// Others have written on a channel, up to `ts` perhaps. F is raised above it, on disk.
    pub(crate) async fn others_wrote(&self, channel: &PChannel, ts: Tso) -> Result<(), StoreError> {
        self.raise_floor(channel, ts).await?;
        let mut others = self.others.lock();
        let known = others.entry(channel.clone()).or_default();
        *known = ts.max(*known);
        Ok(())
    }

    /// What a lane to a channel does not know of what is there: it begins at F, and knows what it has sent since. F itself
    /// is ahead of that by what is kept ready; who began above F would take the lane's time ahead, again and again.
    pub(crate) fn of_others(&self, channel: &PChannel) -> Tso {
        self.others.lock().get(channel).copied().unwrap_or_default()
    }

    /// Raises F of a channel, on disk, before anything up to `floor` is sent there; in the same commit F of others that
    /// would have to be raised soon.
    pub async fn raise_floor(&self, channel: &PChannel, floor: Tso) -> Result<(), StoreError> {
        let clock = self.clock();
        let mut all = vec![(channel.clone(), floor, None)];
        for (other, lane) in self.lanes.lock().iter() {
            if other != channel
                && let Some((to, raising)) = lane.upgrade().and_then(|l| l.raise_too(clock))
            {
                all.push((other.clone(), to, Some(raising)));
            }
        }
        let raise = |(channel, floor, _): &(PChannel, Tso, _)| Change::RaiseFloor {
            target: self.key.clone(),
            channel: channel.clone(),
            floor: *floor,
        };
        self.store.commit(all.iter().map(raise).collect()).await?;
        let mut floors = self.floors.lock();
        for (channel, floor, raising) in all {
            let stored = floors.entry(channel).or_default();
            *stored = floor.max(*stored);
            if let Some(raising) = raising {
                raising.done(floor);
            }
        }
        Ok(())
    }

    /// About the target's timestamp of this moment, never ahead of its clock. Asks nobody.
    pub(crate) fn clock(&self) -> Tso {
        let (ts, read) = *self.clock.lock();
        ts.plus(read.elapsed())
    }

    /// The target's timestamp of this moment, never ahead of its clock: read from it twice a second, and counted on in
    /// between by the time that passed since the answer.
    pub async fn now(&self) -> Result<Tso, TargetError> {
        let (ts, read) = *self.clock.lock();
        let age = read.elapsed();
        if age < CLOCK_AGE {
            return Ok(ts.plus(age));
        }
        let now = self.target.now().await?;
        *self.clock.lock() = (now, Instant::now());
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::secret::Secret;
    use crate::store::memory::MemoryStore;
    use crate::target::memory::MemoryTarget;
    use crate::tls::ClientTls;

    /// Keeps the logins it was asked to connect with.
    struct Noting {
        inner: MemoryTarget,
        logins: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl TargetConnector for Noting {
        async fn connect(&self, spec: &TargetSpec) -> Result<Arc<dyn Target>, TargetError> {
            self.logins.lock().push(spec.token.expose().to_owned());
            self.inner.connect(spec).await
        }
    }

    fn with(token: &str) -> TargetSpec {
        TargetSpec {
            uri: "http://t:1".to_owned(),
            token: Secret::new(token),
            tls: ClientTls::default(),
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(1),
            mode: Mode::Replicate,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_login_is_used_as_soon_as_nobody_holds_the_old_one() {
        let noting = Arc::new(Noting {
            inner: MemoryTarget::new(1, Tso::from_millis(1_000), 1),
            logins: Mutex::default(),
        });
        let hubs = Hubs::new(noting.clone(), Arc::new(MemoryStore::default()));
        let first = hubs.get(&with("old")).await.unwrap();
        let same = hubs.get(&with("old")).await.unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        // What a task that was stopped leaves for a moment.
        let lane = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop((first, same));
        });
        let new = hubs.get(&with("new")).await.unwrap();
        lane.await.unwrap();
        assert_eq!(*noting.logins.lock(), ["old", "new"]);
        // Another task holds it: one target has one hub, and its time.
        let shared = hubs.get(&with("third")).await.unwrap();
        assert!(Arc::ptr_eq(&new, &shared));
        assert_eq!(noting.logins.lock().len(), 2);
    }
}
