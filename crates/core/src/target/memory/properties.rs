//! Properties, and what of them a server may not be able to.

use super::state::{Refusal, State};
use super::{MemoryTarget, content::Content};

/// What a server does not do when it is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lack {
    /// It has no such call.
    Call,
    /// It knows nothing of keys that go, and says that there is nothing to do (2.3.5).
    TakingAway,
    /// It answers well, and leaves everything as it is (AlterDatabase of the first 2.4 that had it).
    Effect,
}

/// What can be changed only while a collection is not loaded (since 2.4, `alterCollectionTask.PreExecute`).
const OF_UNLOADED: [&str; 1] = ["mmap.enabled"];

/// The two calls of a change: what is set, then what goes.
fn change(
    lack: Option<Lack>,
    of: &mut Vec<(String, String)>,
    set: Vec<(String, String)>,
    gone: &[String],
) -> Result<(), Refusal> {
    if lack == Some(Lack::Effect) {
        return Ok(());
    }
    of.retain(|(key, _)| set.iter().all(|(k, _)| k != key));
    of.extend(set);
    if lack == Some(Lack::TakingAway) && !gone.is_empty() {
        let why = "only support alter collection properties, but collection properties is empty";
        return Err((65535, why.to_owned()));
    }
    of.retain(|(key, _)| !gone.contains(key));
    Ok(())
}

fn is_loaded(content: &Content) -> bool {
    content.loaded || content.partitions.values().any(|p| p.loaded)
}

impl State {
    /// Whether a collection is loaded that has to be released for a change of this.
    fn bound(&mut self, database: &str, name: &str, keys: &[&str]) -> Result<(), Refusal> {
        let bound = self.asks_for_release && keys.iter().any(|key| OF_UNLOADED.contains(key));
        match self.find(database, name) {
            Some(content) if bound && is_loaded(content) => {
                let why = "can not alter mmap properties if collection loaded";
                Err((104, why.to_owned()))
            }
            Some(_) => Ok(()),
            None => Err((100, format!("collection not found[collection={name}]"))),
        }
    }

    pub(super) fn properties_of_database(
        &self,
        name: &str,
    ) -> Result<Vec<(String, String)>, Refusal> {
        match self.databases.contains_key(name) {
            true => Ok(self
                .database_properties
                .get(name)
                .cloned()
                .unwrap_or_default()),
            false => Err((800, format!("database not found[database={name}]"))),
        }
    }

    pub(super) fn alter_database(
        &mut self,
        name: &str,
        set: Vec<(String, String)>,
        gone: &[String],
    ) -> Result<(), Refusal> {
        self.properties_of_database(name)?;
        let lack = self.lacks.get("AlterDatabase").copied();
        let properties = self.database_properties.entry(name.to_owned());
        change(lack, properties.or_default(), set, gone)
    }

    pub(super) fn alter_collection(
        &mut self,
        (database, name): (&str, &str),
        set: Vec<(String, String)>,
        gone: &[String],
    ) -> Result<(), Refusal> {
        let keys = set.iter().map(|(key, _)| key).chain(gone);
        let keys: Vec<&str> = keys.map(String::as_str).collect();
        self.bound(database, name, &keys)?;
        let lack = self.lacks.get("AlterCollection").copied();
        match self.find(database, name) {
            Some(content) => change(lack, &mut content.source.properties, set, gone),
            None => Ok(()),
        }
    }

    pub(super) fn alter_index(
        &mut self,
        (database, name, index): (&str, &str, &str),
        set: Vec<(String, String)>,
        gone: &[String],
    ) -> Result<(), Refusal> {
        self.bound(database, name, &OF_UNLOADED)?;
        let lack = self.lacks.get("AlterIndex").copied();
        let content = self.find(database, name);
        let indexes = content.map(|c| &mut c.indexes).into_iter().flatten();
        let Some(index) = indexes.into_iter().find(|i| i.name == index) else {
            return Err((700, format!("index not found[indexName={index}]")));
        };
        change(lack, &mut index.params, set, gone)
    }
}

impl MemoryTarget {
    /// From now on it lacks this of a call; `None`: nothing.
    pub fn lacks(&self, call: &'static str, lack: Option<Lack>) {
        let lacks = &mut self.inner.state.lock().lacks;
        match lack {
            Some(lack) => lacks.insert(call, lack),
            None => lacks.remove(call),
        };
    }

    /// As servers since 2.4 do: some properties change only while a collection is released.
    pub fn asks_for_release(&self) {
        self.inner.state.lock().asks_for_release = true;
    }

    /// Whether a call that changes something was made so far.
    pub fn was_called(&self, call: &str) -> bool {
        self.inner.state.lock().called.contains(call)
    }

    pub fn properties(&self, database: &str, name: &str) -> Option<Vec<(String, String)>> {
        let mut state = self.inner.state.lock();
        let found = state.find(database, name);
        found.map(|c| c.source.properties.clone())
    }

    /// Those of a database; none if there is no such one.
    pub fn database_properties(&self, name: &str) -> Vec<(String, String)> {
        let state = self.inner.state.lock();
        state.properties_of_database(name).unwrap_or_default()
    }
}
