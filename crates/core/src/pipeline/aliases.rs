//! Aliases on the target, in line with the source's etcd.
//!
//! An alias is in the database of its collection, under its own name or the one that the task's mapping makes of it there.
//! One that the target has for something that is none of the task's is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::TaskContext;
use super::converge::{read_note, write_note};
use super::objects::Objects;
use super::renames::LATE;
use crate::backoff::Backoff;
use crate::catalog::{ObjectState, View};
use crate::error::{ErrorClass, Problem};
use crate::ids::CollectionId;
use crate::select::{Name, Operation};
use crate::store::{CollectionObject, ObjectPhase};
use crate::target::TargetError;

/// Under this id the store's notes hold the aliases that were made, as JSON: each with its collection on the source.
const ALIASES_NOTE: CollectionId = CollectionId(-6);

/// How soon one is looked at again that may be made yet.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// What an alias is to stand for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Meant {
    source: CollectionId,
    target: CollectionId,
    /// On the target.
    name: String,
}

pub(super) struct Aliases {
    ctx: Arc<TaskContext>,
    /// On the target, and for which collection of the source.
    made: BTreeMap<Name, CollectionId>,
    /// As they are known to be there.
    there: BTreeMap<Name, Meant>,
    /// Until then a call may be carried out whose answer was lost, or that an earlier process made: what is there is looked
    /// at again.
    unsure_until: Instant,
    backoff: Backoff,
    at: Instant,
}

/// A collection that is on the target, and the target's id of it.
fn live(objects: &Objects, id: CollectionId) -> Option<(CollectionObject, CollectionId)> {
    let object = objects.get(id).filter(|o| o.phase == ObjectPhase::Live)?;
    let target = object.target?;
    Some((object, target))
}

/// Whether a collection of the target is one of the task's.
fn is_of_task(objects: &Objects, there: Option<CollectionId>) -> bool {
    let mut all = objects.all().into_iter();
    there.is_some() && all.any(|o| o.target == there && o.phase != ObjectPhase::Dropped)
}

impl Aliases {
    pub(super) async fn read(ctx: &Arc<TaskContext>) -> Self {
        let made: Vec<(Name, CollectionId)> = read_note(ctx, ALIASES_NOTE).await;
        let unsure = if made.is_empty() {
            Duration::ZERO
        } else {
            LATE
        };
        Self {
            unsure_until: Instant::now() + unsure,
            ctx: ctx.clone(),
            made: made.into_iter().collect(),
            there: BTreeMap::new(),
            backoff: Backoff::new(),
            at: Instant::now(),
        }
    }

    async fn note(&self) {
        let made: Vec<(&Name, &CollectionId)> = self.made.iter().collect();
        write_note(&self.ctx, ALIASES_NOTE, &made).await;
    }

    /// What the aliases of the source mean on the target, and those of which that is not known yet.
    fn meant(&self, objects: &Objects, view: &View) -> (BTreeMap<Name, Meant>, BTreeSet<Name>) {
        let wanted = self.ctx.wanted();
        let (mut meant, mut open) = (BTreeMap::new(), BTreeSet::new());
        for alias in view.aliases.values() {
            let collection = view.collections.get(&alias.collection);
            let collection = collection.filter(|c| c.state == ObjectState::Created);
            let (Some(collection), Some(database)) = (collection, view.database_name(alias.db))
            else {
                continue;
            };
            let mapped = wanted.target_of(database, &alias.name);
            let to = wanted.target_of(database, &collection.name);
            let (object, target) = match live(objects, alias.collection) {
                Some(live) => live,
                None if wanted.selection.contains(database, &collection.name) => {
                    open.insert(mapped);
                    continue;
                }
                None => continue,
            };
            if to.database != object.database && !wanted.skips(Operation::RenameCollection) {
                // It is to move: no Milvus moves one that has an alias.
                continue;
            }
            let name = match mapped.database == object.database {
                true => mapped,
                false => Name::new(object.database.as_str(), alias.name.as_str()),
            };
            if objects.route_of(alias.collection).is_none() {
                // Not opened yet, or left out: it stays as it is.
                open.insert(name);
                continue;
            }
            let of = Meant {
                source: alias.collection,
                target,
                name: object.name,
            };
            meant.insert(name, of);
        }
        (meant, open)
    }

    pub(super) async fn converge(&mut self, objects: &Objects, view: &View) {
        let nothing = view.aliases.is_empty() && self.made.is_empty();
        if nothing || self.ctx.wanted().skips(Operation::Alias) {
            return objects.aliased(BTreeMap::new());
        }
        if self.at > Instant::now() {
            return;
        }
        let is_unsure = self.is_unsure();
        if is_unsure {
            self.there.clear();
        }
        let (meant, open) = self.meant(objects, view);
        let mut problems = BTreeMap::new();
        for (name, of) in &meant {
            if self.there.get(name) == Some(of) {
                continue;
            }
            match self.put(objects, name, of).await {
                Ok(()) => drop(self.there.insert(name.clone(), of.clone())),
                Err(problem) => drop(problems.insert(of.source, problem)),
            }
        }
        let made = self.made.clone();
        let gone = made
            .into_iter()
            .filter(|(name, _)| !meant.contains_key(name) && !open.contains(name));
        for (name, of) in gone {
            match self.take_away(objects, &name).await {
                Ok(()) => drop(self.there.remove(&name)),
                Err(problem) => drop(problems.insert(of, problem)),
            }
        }
        match problems.is_empty() {
            true => self.backoff = Backoff::new(),
            false => self.at = Instant::now() + self.backoff.step(),
        }
        if is_unsure {
            self.at = self.at.max(Instant::now() + LOOK_AGAIN);
        }
        objects.aliased(problems);
    }

    fn is_unsure(&self) -> bool {
        Instant::now() < self.unsure_until
    }

    fn heard(&mut self, answer: Result<(), TargetError>) -> Result<(), Problem> {
        if answer.as_ref().is_err_and(TargetError::outcome_unknown) {
            self.unsure_until = Instant::now() + LATE;
        }
        answer.map_err(|e| e.problem())
    }

    async fn put(&mut self, objects: &Objects, name: &Name, of: &Meant) -> Result<(), Problem> {
        let target = self.ctx.hub.target.clone();
        let failed = |e: TargetError| e.problem();
        let (database, alias) = (name.database.as_str(), name.name.as_str());
        let there = match target.alias(database, alias).await {
            Err(error) if error.is_alias() => {
                let why = format!("alias {name}: there is a collection of that name on the target");
                let hint = "goes on by itself when that one is gone";
                return Err(Problem::new(ErrorClass::Transient, why, hint));
            }
            there => there.map_err(failed)?,
        };
        if there.is_some_and(|there| there != of.target) && !is_of_task(objects, there) {
            let why = format!("alias {name} is that of another collection on the target");
            let hint = "drop that alias there, or leave aliases out (skip_operations: alias)";
            return Err(Problem::new(ErrorClass::Conflict, why, hint));
        }
        if self.made.insert(name.clone(), of.source) != Some(of.source) {
            // Before the call: what is made must not be forgotten.
            self.note().await;
        }
        if there == Some(of.target) {
            return Ok(());
        }
        let put = target.put_alias(database, alias, &of.name, there.is_some());
        self.heard(put.await)
    }

    /// If it still stands for something of the task's; that of a collection that is gone went with it. It is remembered
    /// as long as it may be made yet.
    async fn take_away(&mut self, objects: &Objects, name: &Name) -> Result<(), Problem> {
        let target = self.ctx.hub.target.clone();
        let failed = |e: TargetError| e.problem();
        let there = match target.alias(&name.database, &name.name).await {
            Err(error) if error.is_alias() || error.is_not_found() => None,
            there => there.map_err(failed)?,
        };
        // Also where it was about to be moved.
        if is_of_task(objects, there) {
            let gone = target.drop_alias(&name.database, &name.name).await;
            self.heard(gone)?;
        }
        if !self.is_unsure() {
            self.made.remove(name);
            self.note().await;
        }
        Ok(())
    }
}
