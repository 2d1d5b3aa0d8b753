//! What a task carries, asked of its server, for a comparison of just this.

use std::collections::BTreeMap;

use cdc_core::position::QueueKind;
use cdc_core::select::{Name, Operation};
use cdc_verify::names;
use cdc_verify::objects::Likeness;
use serde_json::{Map, Value};

use crate::cli::Connection;
use crate::client::Failure;
use crate::client::http::Client;
use crate::client::task::whole;
use crate::fields::{Errors, Fields};
use crate::request::{self, CreateTask, Limits};

/// What of a task's answer a creation takes as it is shown.
const SHOWN: [&str; 4] = ["target", "collections", "mapping", "skip_operations"];

/// A task's selection, names, and what it leaves out.
#[derive(Debug)]
pub(super) struct Carried {
    task: CreateTask,
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
        let shown = SHOWN.iter().filter_map(|key| {
            let value = task.get(key)?;
            Some(((*key).to_owned(), value.clone()))
        });
        let shown: Map<String, Value> = shown.collect();
        // Its server has judged it by its own limits.
        let limits = Limits {
            max_name_length: usize::MAX,
            queue: QueueKind::Natsmq,
            replicate_channel: String::new(),
            rows: true,
        };
        let errors = Errors::default();
        let read = request::task(Fields::root(&shown, &errors), &limits);
        errors.check().map_err(|all| all.join("; "))?;
        let named = |c: &Value| {
            let gone = ["Dropped", "Excluded"].contains(&c["state"].as_str()?);
            let (database, name) = (c["database"].as_str()?, c["name"].as_str()?);
            let (to, as_name) = c["target"].as_str()?.split_once('.')?;
            (!gone).then(|| (Name::new(database, name), Name::new(to, as_name)))
        };
        Ok(Self {
            task: read.ok_or("incomplete")?,
            now: collections.iter().filter_map(named).collect(),
            likeness: match task["mode"].as_str() {
                Some("plain") => Likeness::Plain,
                _ => Likeness::Standby,
            },
        })
    }

    fn skips(&self, operation: Operation) -> bool {
        self.task.skip.contains(&operation)
    }
}

impl names::Carried for Carried {
    fn collection(&self, database: &str, name: &str) -> Option<(String, String)> {
        if !self.task.selection.contains(database, name) {
            return None;
        }
        let now = self.now.get(&Name::new(database, name)).cloned();
        let at = now.unwrap_or_else(|| self.task.mapping.apply(database, name));
        Some((at.database, at.name))
    }

    fn database(&self, database: &str) -> Option<String> {
        self.task
            .selection
            .whole_database(database)
            .then(|| self.task.mapping.database(database))?
    }

    fn is_extra(&self, database: &str, name: &str) -> bool {
        // Under other names it cannot be told what else is of the source.
        self.task.mapping.is_empty()
            && self.now.is_empty()
            && self.drops("collection")
            && self.task.selection.contains(database, name)
    }

    fn has_kind(&self, kind: &str) -> bool {
        match kind {
            "properties" => !self.skips(Operation::AlterCollection),
            "database properties" => !self.skips(Operation::AlterDatabase),
            "aliases" => !self.skips(Operation::Alias),
            "load state" => !self.skips(Operation::Load) && !self.skips(Operation::Release),
            "index" => !self.skips(Operation::CreateIndex) && !self.skips(Operation::DropIndex),
            _ => true,
        }
    }

    fn drops(&self, kind: &str) -> bool {
        match kind {
            "database" => !self.skips(Operation::DropDatabase),
            "collection" => !self.skips(Operation::DropCollection),
            "partition" => !self.skips(Operation::DropPartition),
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
            "id": "t", "state": "running", "target": {"uri": "http://t:1", "connect_timeout": 10},
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
        let of = |collections: Value| json!({"mode": "replicate", "target": {"uri": "http://t:1"}, "collections": collections});
        let task = of(json!([{"database": "*", "name": "*"}]));
        let carried = Carried::read(&task, &[]).unwrap();
        assert!(carried.is_extra("any", "thing"));
        assert_eq!(carried.collection("any", "thing"), to("any", "thing"));
        assert_eq!(carried.database("any").as_deref(), Some("any"));
        let other = of(json!([{"include": "a.*"}]));
        let other = Carried::read(&other, &[]).unwrap();
        assert!(other.is_extra("a", "c") && !other.is_extra("b", "c"));
        // One that its server cannot read shows nothing.
        assert!(Carried::read(&json!({"state": "unreadable"}), &[]).is_err());
        assert!(Carried::read(&of(json!([{"include": "("}])), &[]).is_err());
    }
}
