//! Databases of the target: made, given their properties, and dropped with the source's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::TaskContext;
use super::converge::{read_note, write_note};
use super::properties::{At, Kept, Of, Properties};
use crate::backoff::Backoff;
use crate::catalog::{Database, View};
use crate::error::Problem;
use crate::ids::{CollectionId, DbId};
use crate::select::mapping::check as check_name;
use crate::select::{Name, Operation};
use crate::target::TargetError;

/// Under this id the store's notes hold the databases that were made, as JSON.
const DATABASES_NOTE: CollectionId = CollectionId(-1);
/// And under this one those that were made with their first collection since the start.
const MADE_NOTE: CollectionId = CollectionId(-5);
/// The database that every Milvus has and nobody can drop.
const DEFAULT: &str = "default";
/// How soon one is looked at again that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Notes databases that are about to be made with their first collection: [`Databases`] takes them over.
pub(super) async fn note_made(ctx: &TaskContext, made: &BTreeMap<DbId, String>) {
    write_note(ctx, MADE_NOTE, made).await;
}

/// The databases of the target that were made for this task.
pub(super) struct Databases {
    made: BTreeMap<DbId, String>,
    /// Of these it is known that they are there: one that is only noted may not have been made before a crash.
    there: BTreeSet<DbId>,
    /// As it is stored.
    noted: BTreeMap<DbId, String>,
    /// Those whose properties were looked at.
    looked: HashMap<DbId, Looked>,
    /// What keeps them from being so.
    unlike: BTreeMap<DbId, Problem>,
    /// When those are tried again that could not be altered.
    tries: HashMap<DbId, (Backoff, Instant)>,
}

/// What a database of the source was when its properties were brought in line, or could not be.
struct Looked {
    source: Arc<Database>,
    /// On the target.
    name: String,
    /// It is looked at again then, whatever the source does.
    again: Option<Instant>,
}

impl Databases {
    pub(super) async fn read(ctx: &TaskContext) -> Self {
        let noted: BTreeMap<DbId, String> = read_note(ctx, DATABASES_NOTE).await;
        let with_collections: BTreeMap<DbId, String> = read_note(ctx, MADE_NOTE).await;
        let mut databases = Self {
            made: noted.clone(),
            there: BTreeSet::new(),
            noted,
            looked: HashMap::new(),
            unlike: BTreeMap::new(),
            tries: HashMap::new(),
        };
        if !with_collections.is_empty() {
            databases.made.extend(with_collections);
            databases.note(ctx).await;
            write_note(ctx, MADE_NOTE, &BTreeMap::<DbId, String>::new()).await;
        }
        databases
    }

    async fn note(&mut self, ctx: &TaskContext) {
        if self.made != self.noted {
            write_note(ctx, DATABASES_NOTE, &self.made).await;
            self.noted = self.made.clone();
        }
    }

    /// Those that were made with a collection.
    pub(super) fn take_over(&mut self, made: BTreeMap<DbId, String>) {
        self.made.extend(made);
    }

    pub(super) async fn converge(
        &mut self,
        ctx: &TaskContext,
        view: &View,
        properties: &mut Properties,
    ) -> Result<(), Problem> {
        let target = &ctx.hub.target;
        let problem = |e: TargetError| e.problem();
        // Those that the task carries whole; others come with their first collection.
        let wanted = ctx.wanted();
        let name_of = |name: &str| wanted.mapping.database(name);
        let whole = |name: &str| wanted.selection.whole_database(name);
        for (id, database) in view.databases.iter().filter(|(_, d)| whole(&d.name)) {
            // One that is no name of a database: its collections say so, one by one.
            let named = name_of(&database.name)
                .filter(|name| check_name(&Name::new(name.as_str(), "_")).is_ok());
            let Some(name) = named else { continue };
            if !self.there.contains(id) || self.made.get(id) != Some(&name) {
                // Noted first: what is made must not be forgotten.
                self.made.insert(*id, name.clone());
                self.note(ctx).await;
                // It stays noted: a call without an answer may have made it.
                target.create_database(&name).await.map_err(problem)?;
                self.there.insert(*id);
            }
        }
        self.note(ctx).await;
        let gone: Vec<_> = self
            .made
            .iter()
            .filter(|(id, _)| !view.databases.contains_key(id))
            .map(|(i, n)| (*i, n.clone()))
            .collect();
        for (id, name) in gone {
            let mut others = view.databases.values();
            let again = others.find(|d| name_of(&d.name).as_deref() == Some(name.as_str()));
            if again.is_none() && name != DEFAULT && !wanted.skips(Operation::DropDatabase) {
                let there = target.databases().await.map_err(problem)?.contains(&name);
                // Its collections' drops may still be on their way, if they are carried.
                let full = there && !target.collections(&name).await.map_err(problem)?.is_empty();
                if full && !wanted.skips(Operation::DropCollection) {
                    continue;
                }
                if there && !full {
                    target.drop_database(&name).await.map_err(problem)?;
                }
            }
            if let Some(again) = again {
                let to = Of::Database(again.id);
                properties.hand_over(Of::Database(id), to).await;
                self.looked.remove(&again.id);
            }
            properties.forget(Of::Database(id)).await;
            self.made.remove(&id);
            self.there.remove(&id);
        }
        self.note(ctx).await;
        Ok(())
    }

    /// The properties of those that were made for the task, and what keeps them from being as on the source.
    ///
    /// One for which several of the source's stand has none of theirs; one of which the task carries nothing any more
    /// stays as it is.
    pub(super) async fn give_properties(
        &mut self,
        ctx: &TaskContext,
        view: &View,
        properties: &mut Properties,
    ) -> Vec<Problem> {
        let wanted = ctx.wanted();
        if wanted.skips(Operation::AlterDatabase) {
            self.looked.clear();
            self.unlike.clear();
            return Vec::new();
        }
        let mut stand_for: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, name) in self
            .made
            .iter()
            .filter(|(id, _)| view.databases.contains_key(id))
        {
            *stand_for.entry(name).or_default() += 1;
        }
        let is_carried = |source: &Database| {
            let mut collections = view.collections.values().filter(|c| c.db == source.id);
            wanted.selection.whole_database(&source.name)
                || collections.any(|c| wanted.selection.contains(&source.name, &c.name))
        };
        for (id, name) in &self.made {
            let source = view.databases.get(id);
            let Some(source) = source.filter(|_| stand_for.get(name.as_str()) == Some(&1)) else {
                continue;
            };
            let now = Instant::now();
            let same = self.looked.get(id).is_some_and(|looked| {
                Arc::ptr_eq(&looked.source, source)
                    && looked.name == *name
                    && looked.again.is_none_or(|at| at > now)
            });
            let waits = self.tries.get(id).is_some_and(|(_, at)| *at > now);
            if same || waits || !is_carried(source) {
                continue;
            }
            let at = At {
                database: name,
                name: "",
                index: "",
                may_release: false,
            };
            let of = Of::Database(*id);
            let kept = properties.converge(of, at, &source.own_properties()).await;
            let (again, problem) = match kept {
                Ok(Kept::Alike) => (None, None),
                Ok(Kept::Absent) => (Some(LOOK_AGAIN), None),
                Ok(Kept::Again(after)) => (Some(after), None),
                Ok(Kept::Not(problem)) => (None, Some(problem)),
                Err(problem) => {
                    let tries = self.tries.entry(*id);
                    let (backoff, at) = tries.or_insert_with(|| (Backoff::new(), now));
                    *at = Instant::now() + backoff.step();
                    self.unlike.insert(*id, problem);
                    continue;
                }
            };
            self.tries.remove(id);
            match problem {
                Some(problem) => self.unlike.insert(*id, problem),
                None => self.unlike.remove(id),
            };
            let looked = Looked {
                source: source.clone(),
                name: name.clone(),
                again: again.map(|after| Instant::now() + after),
            };
            self.looked.insert(*id, looked);
        }
        let made = &self.made;
        self.looked.retain(|id, _| made.contains_key(id));
        self.tries.retain(|id, _| made.contains_key(id));
        self.unlike.retain(|id, _| made.contains_key(id));
        self.unlike.values().cloned().collect()
    }
}
