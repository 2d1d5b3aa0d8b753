//! Names and aliases, as a 2.3.5 has them.

use super::rules::Rule;
use super::state::{Refusal, State};
use crate::select::Name;

fn missing(name: &str) -> Refusal {
    (100, format!("collection not found[collection={name}]"))
}

impl State {
    pub(super) fn rename(&mut self, database: &str, name: &str, to: &Name) -> Result<(), Refusal> {
        let id = self.databases.get(database).and_then(|d| d.get(name));
        let id = *id.ok_or_else(|| missing(name))?;
        let as_alias = (to.database.clone(), to.name.clone());
        let taken = self.find(&to.database, &to.name).is_some();
        if taken || self.aliases.contains_key(&as_alias) {
            let why = format!(
                "duplicated new collection name {}:{} with other collection name or alias",
                to.database, to.name
            );
            return Err((65535, why));
        }
        let Some(names) = self.databases.get_mut(&to.database) else {
            return Err((65535, format!("database:{} not found", to.database)));
        };
        names.insert(to.name.clone(), id);
        if let Some(names) = self.databases.get_mut(database) {
            names.remove(name);
        }
        if let Some(content) = self.collections.get_mut(&id) {
            content.database.clone_from(&to.database);
            content.source.name.clone_from(&to.name);
        }
        self.forget_renamed(id);
        Ok(())
    }

    /// Without the rule that a collection stays what it is: its rows are gone.
    fn forget_renamed(&mut self, id: crate::ids::CollectionId) {
        if self.keeps(Rule::RenamedIsTheSame) {
            return;
        }
        if let Some(content) = self.collections.get_mut(&id) {
            content.keep(0, 0);
        }
    }

    pub(super) fn put_alias(
        &mut self,
        database: &str,
        alias: &str,
        name: &str,
        moved: bool,
    ) -> Result<(), Refusal> {
        if self.find(database, alias).is_some() {
            let why =
                format!("alias and collection name conflict[database={database}][alias={alias}]");
            return Err((1601, why));
        }
        let id = self.databases.get(database).and_then(|d| d.get(name));
        let id = *id.ok_or_else(|| missing(name))?;
        let key = (database.to_owned(), alias.to_owned());
        match (self.aliases.get(&key), moved) {
            (None, true) => return Err((1600, format!("alias not found[alias={alias}]"))),
            (Some(other), false) if *other != id => {
                return Err((1602, format!("{alias} is alias to another collection")));
            }
            _ => {}
        }
        self.aliases.insert(key, id);
        Ok(())
    }
}
