//! Collections that the source gives another name: they get it on the target, too.
//!
//! Level triggered, like all that is not in the log: what counts is the name that the source's metadata has now. A
//! collection is taken off its readers for it, so that nothing that goes by name is under way, and opened again; the
//! name it is about to get is stored first. What cannot be renamed goes on under the name it has, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::objects::{Objects, Obstacle, Route};
use crate::catalog::{Collection, View};
use crate::error::{ErrorClass, Problem};
use crate::ids::CollectionId;
use crate::select::mapping::check as check_name;
use crate::select::{Name, Operation};
use crate::store::{CollectionObject, ObjectPhase};
use crate::target::{TargetCollection, TargetError};

/// A rename of which no answer was seen is not carried out any more after this: it leaves within the 20.5 s for which it
/// is waited for, and has 20 s then.
pub(super) const LATE: Duration = Duration::from_secs(42);
/// One that the target has refused is tried again after this, ever more rarely: the collection stands still for it.
const TRY_AGAIN: Duration = Duration::from_secs(5);
const TRY_AGAIN_AT_MOST: Duration = Duration::from_secs(600);
/// Collections that wait for each other's names in a ring.
const LONGEST_RING: usize = 64;

/// A name that a collection was to have on the target, and could not.
#[derive(Clone, Debug)]
struct RefusedName {
    name: Name,
    until: Instant,
    wait: Duration,
    problem: Problem,
}

/// What is known of names on the target beside what is stored.
#[derive(Default)]
pub(crate) struct Names {
    /// Held from the look whether a name is free until it is stored who is to have it.
    pub(super) settling: tokio::sync::Mutex<()>,
    /// When a creation was called for once more, or found as begun: the earlier call may be carried out yet.
    pub(super) creating: Mutex<BTreeMap<CollectionId, Instant>>,
    /// When a rename was called for, or found as begun.
    renaming: Mutex<BTreeMap<CollectionId, Instant>>,
    refused: Mutex<BTreeMap<CollectionId, RefusedName>>,
    /// The target has no ids for collections.
    stand_for_ids: AtomicBool,
    /// Collections that are to be opened again, for the conductor.
    to_open_again: Mutex<BTreeSet<CollectionId>>,
}

impl Names {
    pub(super) fn forget(&self, id: CollectionId) {
        self.creating.lock().remove(&id);
        self.renaming.lock().remove(&id);
        self.refused.lock().remove(&id);
    }
}

/// What is to be done about a collection's name on the target.
#[derive(Debug)]
pub(super) enum Naming {
    Stays,
    /// It has the right name there; only the source's is new.
    Noted(Name),
    Becomes {
        to: Name,
        /// The source's name that this is for; `None` for one in between, of two that swap their names.
        of: Option<Name>,
    },
    /// It is to have another one, and cannot.
    Waits(Problem),
}

/// Its name on the source at the moment.
pub(super) fn name_of(view: &View, source: &Collection) -> Option<Name> {
    let database = view.database_name(source.db)?;
    Some(Name::new(database, source.name.as_str()))
}

/// What the name of one ends with that steps aside for another.
fn aside(id: CollectionId) -> String {
    format!("_{id}")
}

fn waits(class: ErrorClass, to: &Name, why: &str, hint: &str) -> Naming {
    let why = format!("it was renamed on the source, and is to be {to} on the target: {why}");
    Naming::Waits(Problem::new(class, why, hint))
}

impl Objects {
    pub(super) fn view(&self) -> std::sync::Arc<View> {
        self.ctx.catalog().subscribe().borrow().clone()
    }

    /// The name on the target that a collection is to have, if it is another one.
    fn wanted_name(
        &self,
        view: &View,
        source: &Collection,
        object: &CollectionObject,
    ) -> Option<(Name, Name)> {
        let wanted = self.ctx.wanted();
        let current = name_of(view, source)?;
        let is_new = object.in_between || current != object.carried_name();
        if !is_new || wanted.skips(Operation::RenameCollection) {
            return None;
        }
        let to = wanted.target_of(&current.database, &current.name);
        Some((current, to))
    }

    /// Whether a call may still give it that name.
    pub(super) fn may_become(&self, object: &CollectionObject, name: &Name) -> bool {
        if object.renaming.as_ref() != Some(name) {
            return false;
        }
        let mut renaming = self.names.renaming.lock();
        let since = renaming.entry(object.source).or_insert_with(Instant::now);
        since.elapsed() < LATE
    }

    /// Whether a name on the target is a collection's, or may come to be.
    pub(super) fn holds(&self, o: &CollectionObject, name: &Name) -> bool {
        match o.phase {
            ObjectPhase::Live | ObjectPhase::Dropping => {
                o.target_name() == *name || self.may_become(o, name)
            }
            // Its create call may have been carried out.
            ObjectPhase::Creating => o.target_name() == *name,
            // A call that is carried out yet would rename what has its old name then.
            ObjectPhase::Dropped => {
                let later = o.renaming.as_ref();
                later.is_some_and(|later| {
                    (o.target_name() == *name || later == name) && self.may_become(o, later)
                })
            }
        }
    }

    /// Another collection that has a name on the target, or may have it.
    fn holder(&self, of: &CollectionObject, name: &Name) -> Option<CollectionObject> {
        let collections = self.collections.lock();
        let mut others = collections.values().filter(|o| o.source != of.source);
        others.find(|o| self.holds(o, name)).cloned()
    }

    /// Whether those that hold each other's names are a ring, and this one is to step out of it.
    fn steps_aside(
        &self,
        view: &View,
        object: &CollectionObject,
        holder: &CollectionObject,
    ) -> bool {
        let (mut at, mut least) = (holder.clone(), object.source);
        for _ in 0..LONGEST_RING {
            least = least.min(at.source);
            let source = view.collections.get(&at.source);
            let wanted = source.and_then(|source| self.wanted_name(view, source, &at));
            let Some(next) = wanted.and_then(|(_, to)| self.holder(&at, &to)) else {
                return false;
            };
            if next.source == object.source {
                return least == object.source;
            }
            at = next;
        }
        false
    }

    /// What is to be done about its name, by what is known here.
    pub(super) fn naming(
        &self,
        view: &View,
        source: &Collection,
        object: &CollectionObject,
    ) -> Naming {
        let Some((of, to)) = self.wanted_name(view, source, object) else {
            return Naming::Stays;
        };
        if let Some(earlier) = object.renaming.as_ref()
            && self.may_become(object, earlier)
        {
            // Not called again before: a second one that comes late would find another collection under the name.
            let why = format!("it may become {earlier} yet, for which there was no answer");
            return waits(ErrorClass::Transient, &to, &why, "goes on by itself");
        }
        if to == object.target_name() {
            return Naming::Noted(of);
        }
        let made = self.names.creating.lock().get(&source.id).copied();
        if made.is_some_and(|at| at.elapsed() < LATE) {
            let why = "it may be made once more under the name it has, by an earlier call";
            return waits(ErrorClass::Transient, &to, why, "goes on by itself");
        }
        if self.names.stand_for_ids.load(Ordering::Acquire) {
            let why = "this target knows collections by their names alone (milvus-lite), so it keeps the one it has";
            return waits(ErrorClass::Conflict, &to, why, "its rows go on there");
        }
        let step = match self.holder(object, &to) {
            None => Naming::Becomes { to, of: Some(of) },
            Some(holder) if self.steps_aside(view, object, &holder) => {
                let name = format!("{}{}", to.name, aside(source.id));
                let to = Name::new(to.database, name);
                Naming::Becomes { to, of: None }
            }
            Some(holder) => {
                let why = format!("{} has that name there", holder.carried_name());
                let hint = "goes on by itself when that one is renamed or dropped";
                return waits(ErrorClass::Transient, &to, &why, hint);
            }
        };
        let Naming::Becomes { to, .. } = &step else {
            return step;
        };
        if let Err(why) = check_name(to) {
            let hint = "give the collection another name with the task's mapping";
            return waits(ErrorClass::Conflict, to, &why, hint);
        }
        match self.names.refused.lock().get(&source.id) {
            Some(refused) if refused.name == *to && Instant::now() < refused.until => {
                Naming::Waits(refused.problem.clone())
            }
            _ => step,
        }
    }

    /// What is to be done about its name, asked before it is taken off its readers.
    pub(super) async fn is_to_be_renamed(
        &self,
        view: &View,
        source: &Collection,
    ) -> Result<bool, Problem> {
        let live = self.get(source.id).filter(|o| o.phase == ObjectPhase::Live);
        let Some(object) = live else { return Ok(false) };
        if let Some(may_be) = &object.renaming {
            let found = self
                .ctx
                .hub
                .target
                .describe(&may_be.database, &may_be.name)
                .await;
            if found.is_ok_and(|f| f.is_some_and(|f| Some(f.id) == object.target)) {
                return Ok(true);
            }
        }
        match self.naming(view, source, &object) {
            Naming::Stays => Ok(false),
            Naming::Noted(_) => Ok(true),
            Naming::Waits(problem) => Err(problem),
            Naming::Becomes { to, .. } => match self.is_free(&to).await {
                Ok(true) => Ok(true),
                Ok(false) => Err(taken(&to)),
                Err(error) => Err(error.problem()),
            },
        }
    }

    async fn is_free(&self, to: &Name) -> Result<bool, TargetError> {
        match self.ctx.hub.target.describe(&to.database, &to.name).await {
            Ok(found) => Ok(found.is_none()),
            Err(error) if error.is_alias() => Ok(false),
            // Its database is made with it.
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Asks for a collection to be opened again, under the name it is to have.
    pub(super) fn open_again(&self, id: CollectionId) {
        self.names.to_open_again.lock().insert(id);
        self.ctx.wake.notify_one();
    }

    pub(super) fn take_to_open_again(&self) -> BTreeSet<CollectionId> {
        std::mem::take(&mut *self.names.to_open_again.lock())
    }

    /// Where the target's collection that was made for this one is, under whichever of its names.
    pub(super) async fn whereabouts(
        &self,
        object: &CollectionObject,
    ) -> Result<Option<(Name, TargetCollection)>, TargetError> {
        let names = [Some(object.target_name()), object.renaming.clone()];
        for name in names.into_iter().flatten() {
            let found = match self
                .ctx
                .hub
                .target
                .describe(&name.database, &name.name)
                .await
            {
                // Somebody else's alias.
                Err(error) if error.is_alias() || error.is_not_found() => None,
                found => found?,
            };
            if let Some(found) = found.filter(|found| Some(found.id) == object.target) {
                return Ok(Some((name, found)));
            }
        }
        Ok(None)
    }

    /// What the collection of a route is called on the target now. Under [`Objects::making`] or [`Objects::dropping`] it
    /// is not renamed.
    pub(super) async fn place(&self, route: &Route) -> Result<Option<Name>, Problem> {
        let to = &route.shards[0].to;
        let own = Name::new(to.database.as_str(), to.name.as_str());
        // One that is being made is not stored with its place yet.
        let Some(object) = self.get(route.source).filter(|o| o.target.is_some()) else {
            return Ok(Some(own));
        };
        if object.renaming.is_none() {
            return Ok(Some(object.target_name()));
        }
        let found = self.whereabouts(&object).await;
        Ok(found.map_err(|e| e.problem())?.map(|(at, _)| at))
    }

    /// Gives it the name that it is to have, if it can have it.
    pub(super) async fn follow_name(
        &self,
        source: &Collection,
        (at, found): (Name, TargetCollection),
        may_rename: bool,
    ) -> Result<TargetCollection, Obstacle> {
        let id = source.id;
        let view = self.view();
        let Some(mut object) = self.get(id) else {
            return Ok(found);
        };
        if at != object.target_name() {
            // A call whose answer was not seen was carried out.
            let of = view.collections.get(&id).and_then(|c| name_of(&view, c));
            let wanted = self.ctx.wanted();
            let of = of.filter(|of| wanted.target_of(&of.database, &of.name) == at);
            // What was sent under the old name must not find what gets that.
            self.ctx.hub.until_silent(found.id).await;
            let from = object.target_name();
            object = self.is_named(id, at, of).await.unwrap_or(object);
            let task = &self.ctx.spec.id;
            self.ctx.hub.claims.give_up(&from, task, id);
        }
        if found.by_name {
            self.names.stand_for_ids.store(true, Ordering::Release);
        }
        match self.naming(&view, source, &object) {
            Naming::Stays | Naming::Waits(_) => Ok(found),
            Naming::Noted(of) => {
                self.is_named(id, object.target_name(), Some(of)).await;
                Ok(found)
            }
            Naming::Becomes { .. } if !may_rename => Ok(found),
            Naming::Becomes { to, of } => self.rename(source, object, found, (to, of)).await,
        }
    }

    async fn rename(
        &self,
        source: &Collection,
        object: CollectionObject,
        found: TargetCollection,
        (to, of): (Name, Option<Name>),
    ) -> Result<TargetCollection, Obstacle> {
        let target = &self.ctx.hub.target;
        let failed = |e: TargetError| Obstacle::Failed(e.problem());
        let from = object.target_name();
        if !self.is_free(&to).await.map_err(failed)? {
            self.refused_name(source.id, &to, taken(&to));
            return Ok(found);
        }
        let claims = &self.ctx.hub.claims;
        if let Err(other) = claims.take(&to, &self.ctx.spec.id, source.id) {
            let why = format!("task {other} writes {to} on this target");
            let hint = "exclude it from one of the two tasks, or give it another name with the mapping of one";
            let problem = Problem::new(ErrorClass::Conflict, why, hint);
            self.refused_name(source.id, &to, problem);
            return Ok(found);
        }
        // With the source's, it goes from the target.
        let (view, wanted) = (self.view(), self.ctx.wanted());
        let is =
            |name: &str| wanted.mapping.database(name).as_deref() == Some(to.database.as_str());
        let of_source = view.databases.iter().find(|(_, d)| is(&d.name));
        let (id, database) = match of_source {
            Some((id, database)) => (*id, Some(database.name.as_str())),
            None => (source.db, None),
        };
        if let Err(obstacle) = self.database_for(id, database, &to.database).await {
            claims.give_up(&to, &self.ctx.spec.id, source.id);
            if let Obstacle::Failed(problem) = obstacle {
                self.refused_name(source.id, &to, problem);
            }
            return Ok(found);
        }
        {
            let _naming = self.names.settling.lock().await;
            if self.holder(&object, &to).is_some() {
                // Looked at again in a moment.
                claims.give_up(&to, &self.ctx.spec.id, source.id);
                return Ok(found);
            }
            self.names.renaming.lock().insert(source.id, Instant::now());
            self.change(source.id, |object| object.renaming = Some(to.clone()))
                .await;
        }
        // Rows go by name, and what is under way must not find another collection under it.
        self.ctx.hub.until_silent(found.id).await;
        // Partitions are made and dropped by the collection's name.
        let _making = self.making.lock().await;
        let _dropping = self.dropping.lock().await;
        self.names.renaming.lock().insert(source.id, Instant::now());
        let answer = target
            .rename_collection(&from.database, &from.name, &to)
            .await;
        if let Err(error) = answer {
            if error.outcome_unknown() {
                // What it is called is asked for from now on.
                tracing::warn!(task = %self.ctx.spec.id, collection = %source.id, "{from} may be {to} on the target: {error}");
                return Ok(found);
            }
            claims.give_up(&to, &self.ctx.spec.id, source.id);
            self.change(source.id, |object| object.renaming = None)
                .await;
            // Rows go on under the name it has.
            self.refused_name(source.id, &to, error.problem());
            return Ok(found);
        }
        let there = target
            .describe(&to.database, &to.name)
            .await
            .map_err(failed)?;
        if there.is_none_or(|there| there.id != found.id) {
            let why = format!("{to} was renamed on the target and is not to be found there yet");
            let problem = Problem::new(ErrorClass::Transient, why, "tried again by itself");
            return Err(Obstacle::Failed(problem));
        }
        tracing::info!(task = %self.ctx.spec.id, collection = %source.id, "{from} is {to} on the target from now on");
        self.is_named(source.id, to.clone(), of).await;
        claims.give_up(&from, &self.ctx.spec.id, source.id);
        Ok(TargetCollection {
            name: to.name,
            ..found
        })
    }

    fn refused_name(&self, id: CollectionId, to: &Name, problem: Problem) {
        let mut refused = self.names.refused.lock();
        let before = refused.get(&id).filter(|before| before.name == *to);
        let wait = before.map_or(TRY_AGAIN, |before| (before.wait * 2).min(TRY_AGAIN_AT_MOST));
        let name = RefusedName {
            name: to.clone(),
            until: Instant::now() + wait,
            wait,
            problem,
        };
        refused.insert(id, name);
    }

    /// It has this name on the target. `of`: the source's that this is for.
    async fn is_named(
        &self,
        id: CollectionId,
        name: Name,
        of: Option<Name>,
    ) -> Option<CollectionObject> {
        self.names.refused.lock().remove(&id);
        self.names.renaming.lock().remove(&id);
        if self.look(id, |o| o.target_name() != name) == Some(true) {
            // Its way goes by the old name, which may be another one's in a moment.
            self.routes.write().remove(&id);
        }
        self.change(id, |object| {
            object.from = Some(object.source_name());
            object.in_between = of.is_none();
            if of.is_some() {
                object.renamed = of;
            }
            object.renaming = None;
            object.database = name.database;
            object.name = name.name;
            // As when it was met.
            object.renamed = object
                .renamed
                .take()
                .filter(|now| Some(now) != object.from.as_ref());
            object.from = object
                .from
                .take()
                .filter(|from| *from != object.target_name());
        })
        .await
    }
}

fn taken(to: &Name) -> Problem {
    let why = format!(
        "it was renamed on the source, and is to be {to} on the target, where that name belongs to something else"
    );
    let hint = "rename or drop that one, or give the collection another name with the task's mapping; until then its rows go on under the old name";
    Problem::new(ErrorClass::Conflict, why, hint)
}
