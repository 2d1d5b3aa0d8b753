//! Properties of databases, collections and indexes on the target, in line with the source's etcd.
//!
//! Which of an object's properties are the source's is stored before they are set: what goes there, also while nobody
//! looks, has to go here, and what is a person's own stays. A call of which no answer was seen may be carried out later:
//! until it cannot any more, the target is looked at again. What the target cannot do is said, and not tried again before
//! something changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::TaskContext;
use super::converge::{read_note, write_note};
use super::objects::Objects;
use super::renames::LATE;
use crate::catalog::Collection;
use crate::catalog::properties::{STATED_AGAIN, alterable};
use crate::error::{ErrorClass, Problem, ProblemCode};
use crate::ids::{CollectionId, DbId, IndexId};
use crate::select::Operation;
use crate::store::Held;
use crate::target::{Target, TargetError};

/// Under this id the store's notes hold which properties of the target's databases are the source's, as JSON.
const PROPERTIES_NOTE: CollectionId = CollectionId(-7);
/// How soon one is looked at again that may be changed yet.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

type Pairs = Vec<(String, String)>;

/// Whose properties, by the source's ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Of {
    Database(DbId),
    Collection(CollectionId),
    Index(CollectionId, IndexId),
}

/// Where it is on the target.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) database: &'a str,
    /// Of a collection, or an index of it.
    pub(super) name: &'a str,
    pub(super) index: &'a str,
    /// The collection may be released for a change that needs it.
    pub(super) may_release: bool,
}

/// How it stands with an object's properties.
#[derive(Debug)]
pub(super) enum Kept {
    Alike,
    /// The object is not on the target.
    Absent,
    /// To be looked at again after this.
    Again(Duration),
    /// The target cannot have them.
    Not(Problem),
}

/// What has to change on the target.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Step {
    set: Pairs,
    gone: Vec<String>,
}

impl Step {
    /// `wanted`: the source's; `held`: keys that were the source's.
    fn new(wanted: &Pairs, held: &BTreeSet<String>, there: &Pairs) -> Self {
        let mut set: Pairs = wanted
            .iter()
            .filter(|pair| !there.contains(pair))
            .cloned()
            .collect();
        let has = |of: &Pairs, key: &str| of.iter().any(|(k, _)| k == key);
        if !set.is_empty() && !has(&set, STATED_AGAIN) {
            let stated = wanted.iter().find(|(key, _)| key == STATED_AGAIN);
            set.extend(stated.cloned());
        }
        let gone = held.iter().filter(|key| !has(wanted, key.as_str()));
        let gone = gone.filter(|key| has(there, key.as_str()));
        Self {
            set,
            gone: gone.cloned().collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.gone.is_empty()
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = self.set.iter().map(|(key, value)| format!("{key}={value}"));
        let gone = self.gone.iter().map(|key| format!("{key} taken away"));
        let all: Vec<String> = set.chain(gone).collect();
        f.write_str(&all.join(", "))
    }
}

/// What is known of one object's properties beside what is stored.
#[derive(Default)]
struct Look {
    /// Until then a call may be carried out of which no answer was seen.
    unsure_until: Option<Instant>,
    /// It was asked for, and the answer was good.
    asked: Option<Step>,
}

pub(super) struct Properties {
    ctx: Arc<TaskContext>,
    objects: Arc<Objects>,
    databases: BTreeMap<DbId, Held>,
    looks: HashMap<Of, Look>,
}

impl Properties {
    pub(super) async fn read(ctx: &Arc<TaskContext>, objects: &Arc<Objects>) -> Self {
        Self {
            databases: read_note(ctx, PROPERTIES_NOTE).await,
            ctx: ctx.clone(),
            objects: objects.clone(),
            looks: HashMap::new(),
        }
    }

    pub(super) fn held(&self, of: Of) -> Held {
        let stored = match of {
            Of::Database(id) => self.databases.get(&id).cloned(),
            Of::Collection(id) => self.objects.look(id, |o| o.properties.own.clone()),
            Of::Index(id, index) => {
                let of_index = self
                    .objects
                    .look(id, |o| o.properties.indexes.get(&index).cloned());
                of_index.flatten()
            }
        };
        stored.unwrap_or_default()
    }

    async fn keep(&mut self, of: Of, held: Held) {
        match of {
            Of::Database(id) => {
                match held.is_empty() {
                    true => self.databases.remove(&id),
                    false => self.databases.insert(id, held),
                };
                write_note(&self.ctx, PROPERTIES_NOTE, &self.databases).await;
            }
            Of::Collection(id) => {
                let put = self.objects.change(id, |o| o.properties.own = held);
                put.await;
            }
            Of::Index(id, index) => {
                let put = self.objects.change(id, |o| {
                    let indexes = &mut o.properties.indexes;
                    match held.is_empty() {
                        true => indexes.remove(&index),
                        false => indexes.insert(index, held),
                    };
                });
                put.await;
            }
        }
    }

    /// Before an object is made with these: they are the source's.
    pub(super) async fn about_to_set(&mut self, of: Of, wanted: &Pairs) {
        let mut held = self.held(of);
        if wanted.iter().any(|(key, _)| !held.keys.contains(key)) {
            held.keys.extend(wanted.iter().map(|(key, _)| key.clone()));
            self.keep(of, held).await;
        }
    }

    /// What is known of collections that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(CollectionId) -> bool) {
        self.looks.retain(|of, _| match of {
            Of::Database(_) => true,
            Of::Collection(id) | Of::Index(id, _) => is_there(*id),
        });
    }

    /// An object is gone on the source, and on the target or not.
    pub(super) async fn forget(&mut self, of: Of) {
        self.looks.remove(&of);
        if !self.held(of).is_empty() {
            self.keep(of, Held::default()).await;
        }
    }

    /// Indexes that the source has no more.
    pub(super) async fn forget_others(&mut self, source: &Collection) {
        let gone = self.objects.look(source.id, |o| {
            let held = o.properties.indexes.keys();
            let gone = held.filter(|id| !source.indexes.contains_key(id));
            gone.copied().collect::<Vec<_>>()
        });
        for index in gone.unwrap_or_default() {
            self.forget(Of::Index(source.id, index)).await;
        }
    }

    /// What one of the source's had set is another's from now on: a database that was made again under its name.
    pub(super) async fn hand_over(&mut self, from: Of, to: Of) {
        let (old, mut held) = (self.held(from), self.held(to));
        if !old.keys.is_subset(&held.keys) {
            held.keys.extend(old.keys);
            self.keep(to, held).await;
        }
    }

    /// Brings an object's properties in line with `wanted`, those of the source.
    ///
    /// # Errors
    /// The target did not do it now.
    pub(super) async fn converge(
        &mut self,
        of: Of,
        at: At<'_>,
        wanted: &Pairs,
    ) -> Result<Kept, Problem> {
        let target = self.ctx.hub.target.clone();
        let target = target.as_ref();
        let mut held = self.held(of);
        if wanted.is_empty() && held.is_empty() {
            return Ok(Kept::Alike);
        }
        // An earlier process may have called for something.
        let look = self.looks.entry(of).or_insert_with(|| Look {
            unsure_until: held.calling.then(|| Instant::now() + LATE),
            asked: None,
        });
        let before = look.asked.take();
        let mut asked = None;
        let keys: BTreeSet<String> = wanted.iter().map(|(key, _)| key.clone()).collect();
        let mut known = held.keys.clone();
        known.extend(keys.iter().cloned());
        loop {
            let there = match of.read(target, at).await {
                Ok(None) => return Ok(Kept::Absent),
                Ok(Some(there)) => there,
                Err(error) if error.is_unable() => {
                    let step = Step::new(wanted, &known, &Pairs::new());
                    return Ok(match step.is_empty() {
                        true => Kept::Alike,
                        false => Kept::Not(of.not(at, &step, &error.to_string())),
                    });
                }
                Err(error) => return Err(error.problem()),
            };
            let step = Step::new(wanted, &known, &there);
            if step.is_empty() {
                return Ok(self.alike(of, held, keys).await);
            }
            if asked.is_some() {
                // It may show it a little later.
                if let Some(look) = self.looks.get_mut(&of) {
                    look.asked = asked;
                }
                return Ok(Kept::Again(LOOK_AGAIN));
            }
            if before.as_ref() == Some(&step) {
                let why = "it answers well, and leaves them as they are";
                held.calling = false;
                self.keep(of, held).await;
                return Ok(Kept::Not(of.not(at, &step, why)));
            }
            let begun = Held {
                keys: known.clone(),
                calling: true,
            };
            if held != begun {
                held = begun;
                self.keep(of, held.clone()).await;
            }
            match of.change(target, at, &step).await {
                Ok(()) => asked = Some(step),
                Err(error) if error.is_unable() => {
                    // What is set may be so by now.
                    let left = match of.read(target, at).await {
                        Ok(Some(there)) => Step::new(wanted, &known, &there),
                        _ => step,
                    };
                    held.calling = false;
                    self.keep(of, held).await;
                    return Ok(Kept::Not(of.not(at, &left, &error.to_string())));
                }
                Err(error) => {
                    if error.outcome_unknown()
                        && let Some(look) = self.looks.get_mut(&of)
                    {
                        look.unsure_until = Some(Instant::now() + LATE);
                    }
                    return Err(error.problem());
                }
            }
        }
    }

    /// The target has them as they are wanted: `keys` are the source's from now on, unless an earlier call may change that.
    async fn alike(&mut self, of: Of, held: Held, keys: BTreeSet<String>) -> Kept {
        let unsure = self.looks.get(&of).and_then(|look| look.unsure_until);
        let left = unsure.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return Kept::Again(left.min(LOOK_AGAIN));
        }
        let now = Held {
            keys,
            calling: false,
        };
        if held != now {
            self.keep(of, now).await;
        }
        self.looks.remove(&of);
        Kept::Alike
    }
}

impl Of {
    async fn read(self, target: &dyn Target, at: At<'_>) -> Result<Option<Pairs>, TargetError> {
        let found = match self {
            Of::Database(_) => target.describe_database(at.database).await.map(Some),
            Of::Collection(_) => {
                let found = target.describe(at.database, at.name).await;
                found.map(|found| found.map(|c| c.properties))
            }
            Of::Index(..) => {
                let found = target.indexes(at.database, at.name).await;
                found.map(|all| {
                    let mut all = all.into_iter();
                    let index = all.find(|i| i.name == at.index);
                    index.map(|i| alterable(&i.params))
                })
            }
        };
        match found {
            Err(error) if error.is_not_found() => Ok(None),
            found => found,
        }
    }

    async fn change(self, target: &dyn Target, at: At<'_>, step: &Step) -> Result<(), TargetError> {
        let Step { set, gone } = step;
        let At { database, name, .. } = at;
        let change = async || match self {
            Of::Database(_) => target.alter_database(database, set, gone).await,
            Of::Collection(_) => target.alter_collection(database, name, set, gone).await,
            Of::Index(..) => {
                target
                    .alter_index(database, name, at.index, set, gone)
                    .await
            }
        };
        match change().await {
            // The source came there by a release, too. Whoever looks at loads loads it again.
            Err(error) if error.is_loaded() && at.may_release => {
                target.release(database, name, &[]).await?;
                change().await
            }
            other => other,
        }
    }

    fn not(self, at: At<'_>, step: &Step, why: &str) -> Problem {
        let (what, skip) = match self {
            Of::Database(_) => (
                format!("database {}", at.database),
                Operation::AlterDatabase,
            ),
            Of::Collection(_) => (
                format!("{}.{}", at.database, at.name),
                Operation::AlterCollection,
            ),
            Of::Index(..) => (
                format!("index {} of {}.{}", at.index, at.database, at.name),
                Operation::AlterIndex,
            ),
        };
        let why = format!("properties of {what} are not as on the source: {step}: {why}");
        let hint = format!(
            "the rest goes on; change them there yourself, or leave them out (skip_operations: {})",
            skip.name()
        );
        Problem::new(ErrorClass::Configuration, why, hint).with_code(ProblemCode::Unable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(&str, &str)]) -> Pairs {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        of.iter().map(own).collect()
    }

    fn step(wanted: &[(&str, &str)], held: &[&str], there: &[(&str, &str)]) -> String {
        let held = held.iter().map(|k| (*k).to_owned()).collect();
        Step::new(&pairs(wanted), &held, &pairs(there)).to_string()
    }

    #[test]
    fn only_what_is_or_was_the_sources_changes() {
        for (wanted, held, there, expected) in [
            (&[("a", "1")][..], &[][..], &[][..], "a=1"),
            (&[("a", "1")], &["a"], &[("a", "1")], ""),
            (&[("a", "2")], &["a"], &[("a", "1"), ("own", "1")], "a=2"),
            (&[], &["a"], &[("a", "1"), ("own", "1")], "a taken away"),
            // A person has taken it away there already.
            (&[], &["a"], &[("own", "1")], ""),
            // The same key, but it never was the source's.
            (&[("b", "1")], &[], &[("a", "1")], "b=1"),
            (
                &[("b", "1")],
                &["a", "b"],
                &[("a", "1"), ("b", "2")],
                "b=1, a taken away",
            ),
        ] {
            assert_eq!(step(wanted, held, there), expected);
        }
    }

    #[test]
    fn the_isolation_of_a_partition_key_is_stated_again() {
        let (isolated, ttl) = (("partitionkey.isolation", "true"), ("ttl", "1"));
        assert_eq!(
            step(&[isolated, ttl], &[], &[isolated]),
            "ttl=1, partitionkey.isolation=true"
        );
        assert_eq!(step(&[isolated, ttl], &[], &[isolated, ttl]), "");
        assert_eq!(step(&[isolated], &[], &[]), "partitionkey.isolation=true");
    }
}
