//! What a task carries, asked of its server, for a comparison of just this.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::select::mapping::MapRule;
use cdc_core::select::{BadPattern, Glob, Mapping, Name, Pattern, Rule, Rules};
use cdc_verify::names;
use cdc_verify::objects::Likeness;
use serde_json::Value;

use crate::cli::Connection;
use crate::client::Failure;
use crate::client::http::Client;
use crate::client::task::whole;

/// A task's selection, names, and what it leaves out.
#[derive(Debug)]
pub(super) struct Carried {
    rules: Rules,
    mapping: Mapping,
    skipped: BTreeSet<String>,
    /// Where the collections are that it carries now, if under other names: those may not follow the mapping yet, or ever.
    now: BTreeMap<Name, Name>,
    /// What its target is to its source.
    pub(super) likeness: Likeness,
}

impl Carried {
    /// # Errors
    /// The server cannot be asked, has no such task, or cannot read it.
    pub(super) fn ask(connection: &Connection, task: &str) -> Result<Self, Failure> {
        let (found, collections) = whole(&Client::new(connection)?, task)?;
        Self::read(&found, &collections).map_err(|why| {
            let what = format!("what task {task} carries cannot be told: {why}; compare without --task, with --collections");
            Failure::new(1, what)
        })
    }

    fn read(task: &Value, collections: &[Value]) -> Result<Self, String> {
        if task["state"] == "unreadable" {
            return Err("it is unreadable for its server".to_owned());
        }
        let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
        let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let wrong = |e: BadPattern| e.to_string();
        let rules = list(&task["collections"])
            .iter()
            .map(step)
            .collect::<Result<_, _>>();
        let mapping = list(&task["mapping"])
            .iter()
            .map(|rule| MapRule::new(MapRule::source(&text(&rule["from"]))?, &text(&rule["to"])))
            .collect::<Result<_, _>>();
        let mut now = BTreeMap::new();
        for c in collections {
            let gone = ["Dropped", "Excluded"].contains(&c["state"].as_str().unwrap_or_default());
            if let (Some(database), Some(name), Some(target), false) = (
                c["database"].as_str(),
                c["name"].as_str(),
                c["target"].as_str(),
                gone,
            ) && let Some((db, as_name)) = target.split_once('.')
            {
                now.insert(Name::new(database, name), Name::new(db, as_name));
            }
        }
        Ok(Self {
            rules: Rules(rules.map_err(wrong)?),
            mapping: Mapping(mapping.map_err(wrong)?),
            skipped: list(&task["skip_operations"]).iter().map(text).collect(),
            now,
            likeness: match task["mode"].as_str() {
                Some("plain") => Likeness::Plain,
                _ => Likeness::Standby,
            },
        })
    }

    fn skips(&self, operation: &str) -> bool {
        self.skipped.contains(operation)
    }
}

/// One step of the task's list, as its server shows it.
fn step(step: &Value) -> Result<Rule, BadPattern> {
    let patterns = |of: &Value| {
        let all = of.as_array()?.iter().filter_map(Value::as_str);
        Some(all.map(Pattern::new).collect::<Result<Vec<_>, _>>())
    };
    if let Some(all) = patterns(&step["include"]) {
        return Ok(Rule::Include(all?));
    }
    if let Some(all) = patterns(&step["exclude"]) {
        return Ok(Rule::Exclude(all?));
    }
    let part = |key: &str| match step[key].as_str() {
        Some("*") | None => Ok(Glob::any()),
        Some(name) => Glob::new(name),
    };
    Ok(Rule::Include(vec![Pattern::of(
        part("database")?,
        part("name")?,
    )]))
}

impl names::Carried for Carried {
    fn collection(&self, database: &str, name: &str) -> Option<(String, String)> {
        if !self.rules.contains(database, name) {
            return None;
        }
        let now = self.now.get(&Name::new(database, name)).cloned();
        let at = now.unwrap_or_else(|| self.mapping.apply(database, name));
        Some((at.database, at.name))
    }

    fn database(&self, database: &str) -> Option<String> {
        self.rules
            .whole_database(database)
            .then(|| self.mapping.database(database))?
    }

    fn is_extra(&self, database: &str, name: &str) -> bool {
        // Under other names it cannot be told what else is of the source.
        self.mapping.is_empty()
            && self.now.is_empty()
            && self.drops("collection")
            && self.rules.contains(database, name)
    }

    fn has_kind(&self, kind: &str) -> bool {
        match kind {
            "properties" => !self.skips("alter_collection"),
            "aliases" => !self.skips("alias"),
            "load state" => !self.skips("load") && !self.skips("release"),
            "index" => !self.skips("create_index") && !self.skips("drop_index"),
            _ => true,
        }
    }

    fn drops(&self, kind: &str) -> bool {
        match kind {
            "database" => !self.skips("drop_database"),
            "collection" => !self.skips("drop_collection"),
            "partition" => !self.skips("drop_partition"),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_verify::names::Carried as _;
    use serde_json::json;

    use super::*;

    fn to(database: &str, name: &str) -> Option<(String, String)> {
        Some((database.to_owned(), name.to_owned()))
    }

    #[test]
    fn a_tasks_answer_becomes_what_it_carries() {
        let task = json!({
            "mode": "plain",
            "collections": [{"include": ["shop.*"]}, {"exclude": ["shop./tmp_[0-9]+/"]},
                {"database": "default", "name": "a"}],
            "mapping": [{"from": "shop.*", "to": "copy.{}_1"}],
            "skip_operations": ["load", "drop_partition"],
        });
        let collections = [
            json!({"database": "shop", "name": "b", "state": "Streaming", "target": "copy.old_1"}),
            json!({"database": "shop", "name": "c", "state": "Dropped", "target": "copy.gone_1"}),
        ];
        let carried = Carried::read(&task, &collections).unwrap();
        for (database, name, wanted) in [
            ("shop", "a", to("copy", "a_1")),
            // Where it is, not where it should be.
            ("shop", "b", to("copy", "old_1")),
            ("shop", "c", to("copy", "c_1")),
            ("shop", "tmp_7", None),
            ("default", "a", to("default", "a")),
            ("default", "b", None),
        ] {
            assert_eq!(
                carried.collection(database, name),
                wanted,
                "{database}.{name}"
            );
        }
        assert_eq!(carried.database("shop").as_deref(), Some("copy"));
        assert_eq!(carried.database("default"), None);
        assert_eq!(carried.likeness, Likeness::Plain);
        assert!(!carried.is_extra("copy", "whatever"));
        assert!(!carried.has_kind("load state") && carried.has_kind("index"));
        assert!(!carried.drops("partition") && carried.drops("collection"));
    }

    #[test]
    fn under_the_same_names_more_than_the_source_has_is_extra() {
        let task = json!({"mode": "replicate", "collections": [{"database": "*", "name": "*"}]});
        let carried = Carried::read(&task, &[]).unwrap();
        assert!(carried.is_extra("any", "thing"));
        assert_eq!(carried.collection("any", "thing"), to("any", "thing"));
        assert_eq!(carried.database("any").as_deref(), Some("any"));
        let other = json!({"collections": [{"include": ["a.*"]}]});
        assert!(!Carried::read(&other, &[]).unwrap().is_extra("b", "c"));
        assert!(Carried::read(&json!({"state": "unreadable"}), &[]).is_err());
        assert!(Carried::read(&json!({"collections": [{"include": ["("]}]}), &[]).is_err());
    }
}
