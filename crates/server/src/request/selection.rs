//! `collection_infos` and `db_collections`: which collections, and where each begins.

use std::collections::BTreeMap;

use cdc_core::select::{self, Glob, Rule, Rules};
use cdc_core::task::{Pattern, Selection, StartPoint};
use serde_json::{Map, Value, json};

use super::position::{Positions, positions, positions_of_one};
use super::{Limits, STARTS};
use crate::fields::{Fields, clip, objects_of};

/// Patterns of one task, and how many of them may be regexes.
const PATTERNS: usize = 5000;
const REGEXES: usize = 100;

/// Any, in place of the name of a database or collection.
const ANY: &str = "*";

/// What a create request says of collections.
pub(super) struct Wanted {
    pub(super) selection: Selection,
    pub(super) start: StartPoint,
    pub(super) starts: BTreeMap<(String, String), StartPoint>,
    pub(super) positions: Positions,
    /// As given, in the form in which the answers show it.
    pub(super) collection_infos: Vec<Value>,
    pub(super) db_collections: Map<String, Value>,
}

/// In the forms of the Go server.
pub(super) fn read(data: &Fields<'_>, limits: &Limits) -> Wanted {
    let mut reader = Reader::new(limits);
    let mut collection_infos = Vec::new();
    let mut db_collections = Map::new();
    for info in data.objects("collection_infos").unwrap_or_default() {
        collection_infos.push(reader.info(None, info));
    }
    if let Some(databases) = data.object("db_collections") {
        for (database, list) in databases.entries() {
            let infos = reader.database(data, database, list);
            db_collections.insert(database.clone(), Value::Array(infos));
        }
    }
    let everything = "[{\"name\": \"*\"}] stands for every collection";
    if collection_infos.is_empty() && db_collections.is_empty() {
        let given = data.has("collection_infos") || data.has("db_collections");
        let what = if given { "empty" } else { "missing" };
        data.wrong("collection_infos", format_args!("{what}; {everything}"));
    }
    reader.loose_positions(data);
    reader.finish(data, "collection_infos", collection_infos, db_collections)
}

/// In the form of `/api/v1`: a list of `{database, name}`, either of which may be `*`, and of rules.
pub(super) fn read_list(data: &Fields<'_>, limits: &Limits) -> Wanted {
    let mut reader = Reader::new(limits);
    let items = data.objects("collections");
    if items.as_ref().is_none_or(Vec::is_empty) && data.has("collections") {
        let what = "at least one expected; [{\"database\": \"*\", \"name\": \"*\"}] stands for every collection";
        data.wrong("collections", what);
    } else if !data.has("collections") {
        data.wrong("collections", "missing");
    }
    let shown = items
        .into_iter()
        .flatten()
        .map(|item| reader.listed(item))
        .collect();
    reader.finish(data, "collections", shown, Map::new())
}

struct Reader<'l> {
    limits: &'l Limits,
    /// By database and name, either of which may be any.
    list: Vec<(String, String)>,
    starts: BTreeMap<(String, String), StartPoint>,
    positions: Positions,
    /// All steps as rules, in their order.
    rules: Vec<Rule>,
    /// Whether one of them was given as a rule.
    ruled: bool,
}

impl<'l> Reader<'l> {
    fn new(limits: &'l Limits) -> Self {
        Self {
            limits,
            list: Vec::new(),
            starts: BTreeMap::new(),
            positions: Positions::new(),
            rules: Vec::new(),
            ruled: false,
        }
    }

    /// What was read, as a whole; `key` is the field that is blamed for contradictions.
    fn finish(
        mut self,
        data: &Fields<'_>,
        key: &'static str,
        collection_infos: Vec<Value>,
        db_collections: Map<String, Value>,
    ) -> Wanted {
        let start = data.choice("start", STARTS);
        let any = (ANY.to_owned(), ANY.to_owned());
        let all = self.list.contains(&any);
        let patterns: usize = self.rules.iter().map(|r| r.patterns().len()).sum();
        let regexes = self.rules.iter().flat_map(Rule::patterns);
        let regexes = regexes.filter(|p| p.globs().is_none()).count();
        if self.ruled && (patterns > PATTERNS || regexes > REGEXES) {
            data.wrong(
                key,
                format_args!(
                    "{patterns} patterns, {regexes} of them regexes; {PATTERNS} and {REGEXES} are allowed"
                ),
            );
        }
        let includes = |rule: &Rule| matches!(rule, Rule::Include(_));
        if self.ruled && !self.rules.is_empty() && !self.rules.iter().any(includes) {
            let what = "only excludes: they take away from what is included, and nothing is; begin with {\"include\": \"*.*\"}";
            data.wrong(key, what);
        }
        if all && self.list.len() > 1 && !self.ruled {
            data.wrong(
                key,
                "'*' stands for every collection; name no other one beside it",
            );
        }
        // The start of "every collection" is the task's.
        let start = match (start, self.starts.remove(&any)) {
            (Some(a), Some(b)) if a != b => {
                data.wrong(
                    "start",
                    "contradicts the start given with '*'; leave out one of them",
                );
                a
            }
            (a, b) => a.or(b).unwrap_or_default(),
        };
        let patterns = self.list.into_iter().map(|(database, name)| Pattern {
            database: Some(database).filter(|d| d != ANY),
            name: Some(name).filter(|n| n != ANY),
        });
        Wanted {
            selection: match all {
                _ if self.ruled => Selection::Rules(Rules(self.rules)),
                true => Selection::All,
                false => Selection::Collections(patterns.collect()),
            },
            start,
            starts: self.starts,
            positions: self.positions,
            collection_infos,
            db_collections,
        }
    }
}

impl Reader<'_> {
    fn database(&mut self, data: &Fields<'_>, database: &str, list: &Value) -> Vec<Value> {
        let at = format!("db_collections.{}", clip(database));
        let Value::Array(list) = list else {
            data.errors()
                .add(format!("{at}: a list of {{\"name\": …}} expected"));
            return Vec::new();
        };
        if let Err(cause) = self.check(database) {
            data.errors().add(format!("{at}: database name: {cause}"));
        }
        if list.is_empty() {
            data.errors().add(format!(
                "{at}: empty; name the collections, [{{\"name\": \"*\"}}] stands for all of the database"
            ));
        }
        objects_of(&at, list, data.errors())
            .into_iter()
            .map(|info| self.info(Some(database), info))
            .collect()
    }

    /// Reads one element; gives it back as the answers show it.
    fn info(&mut self, database: Option<&str>, info: Fields<'_>) -> Value {
        let given = info.string("name");
        let from_start = info.boolean("use_start_position").unwrap_or(false);
        let start = match (info.choice("start", STARTS), from_start) {
            (None, true) => Some(StartPoint::Created),
            (Some(start), true) if start != StartPoint::Created => {
                info.wrong(
                    "use_start_position",
                    "true contradicts start; leave out one of them",
                );
                None
            }
            (start, _) => start,
        };
        let mut shown = json!({
            "name": given,
            "positions": info.get("positions").cloned().unwrap_or_else(|| json!({})),
            "use_start_position": from_start,
        });
        if let (Some(value), Some(map)) = (info.get("start"), shown.as_object_mut()) {
            map.insert("start".to_owned(), value.clone());
        }
        let positions = positions_of_one(&info, self.limits.queue);
        match given.as_deref() {
            None if !info.has("name") => info.wrong("name", "missing"),
            None => {}
            Some(name) => {
                let (db, name) = match database {
                    Some(db) => (db, name),
                    None if name == ANY => (ANY, ANY),
                    None => name.split_once('.').unwrap_or(("default", name)),
                };
                // The database of `db_collections` is checked once, with its key.
                for part in [Some(db).filter(|_| database.is_none()), Some(name)] {
                    if let Some(Err(cause)) = part.map(|part| self.check(part)) {
                        info.wrong("name", cause);
                    }
                }
                self.take(&info, db, name, start, positions.is_some());
            }
        }
        self.put(&info, positions.into_iter().collect());
        info.finish();
        shown
    }

    /// One element of `/api/v1`; gives it back as the answers in the Go server's form show it.
    fn listed(&mut self, item: Fields<'_>) -> Value {
        if item.has("include") || item.has("exclude") {
            return self.rule(item);
        }
        let database = item.string("database");
        let name = item.string("name");
        let start = item.choice("start", STARTS);
        let positions = positions_of_one(&item, self.limits.queue);
        let db = database.as_deref().unwrap_or("default");
        if name.is_none() && !item.has("name") {
            item.wrong("name", "missing");
        }
        if let Err(cause) = self.check(db) {
            item.wrong("database", cause);
        }
        if let Some(name) = &name {
            if let Err(cause) = self.check(name) {
                item.wrong("name", cause);
            }
            self.take(&item, db, name, start, positions.is_some());
        }
        let full = match (db, name.as_deref()) {
            (ANY, Some(ANY)) => ANY.to_owned(),
            (db, name) => format!("{db}.{}", name.unwrap_or_default()),
        };
        let mut shown = json!({
            "name": full,
            "positions": item.get("positions").cloned().unwrap_or_else(|| json!({})),
            "use_start_position": false,
        });
        if let (Some(value), Some(map)) = (item.get("start"), shown.as_object_mut()) {
            map.insert("start".to_owned(), value.clone());
        }
        self.put(&item, positions.into_iter().collect());
        item.finish();
        shown
    }

    /// `{"include": …}` or `{"exclude": …}`; gives it back as it was given.
    fn rule(&mut self, item: Fields<'_>) -> Value {
        self.ruled = true;
        let shown = item.entries().map(|(k, v)| (k.clone(), v.clone()));
        let shown = Value::Object(shown.collect());
        let database = item.string("database");
        let read = |key: &'static str| {
            let (texts, one) = match item.get(key)? {
                Value::String(text) => (vec![Some(text.as_str())], true),
                Value::Array(list) => (list.iter().map(Value::as_str).collect(), false),
                _ => (vec![None], true),
            };
            if texts.is_empty() {
                item.wrong(key, "empty; a pattern or a list of patterns expected");
            }
            let mut patterns = Vec::new();
            for (i, text) in texts.into_iter().enumerate() {
                let at = match one {
                    true => key.to_owned(),
                    false => format!("{key}[{i}]"),
                };
                let Some(text) = text else {
                    item.wrong(&at, "a pattern expected, \"database.name\"");
                    continue;
                };
                let pattern = match &database {
                    Some(database) => select::Pattern::within(database, text),
                    None => select::Pattern::new(text),
                };
                match pattern {
                    Ok(pattern) => patterns.push(pattern),
                    Err(why) => item.wrong(&at, clip_to(&why.0, 400)),
                }
            }
            Some(patterns)
        };
        match (read("include"), read("exclude")) {
            (Some(_), Some(_)) => item.wrong(
                "exclude",
                "contradicts include in the same rule; two rules expected, the last one that matches wins",
            ),
            (Some(patterns), None) => self.rules.push(Rule::Include(patterns)),
            (None, Some(patterns)) => self.rules.push(Rule::Exclude(patterns)),
            (None, None) => {}
        }
        item.finish();
        shown
    }

    fn take(
        &mut self,
        info: &Fields<'_>,
        db: &str,
        name: &str,
        start: Option<StartPoint>,
        with_positions: bool,
    ) {
        if [db, name].contains(&ANY) && with_positions {
            info.wrong(
                "positions",
                "'*' stands for many collections, positions are of one; name the collection, or use start",
            );
        }
        let key = (db.to_owned(), name.to_owned());
        if self.list.contains(&key) {
            let (db, name) = (clip(db), clip(name));
            info.wrong("name", format_args!("{db}.{name} is named twice"));
        } else {
            if let Some(start) = start {
                self.starts.insert(key.clone(), start);
            }
            // A name that is none is refused where it was read.
            let globs = Glob::new(db).and_then(|d| Ok((d, Glob::new(name)?)));
            if let Ok((db, name)) = globs {
                let pattern = select::Pattern::of(db, name);
                self.rules.push(Rule::Include(vec![pattern]));
            }
            self.list.push(key);
        }
    }

    fn check(&self, part: &str) -> Result<(), String> {
        match part {
            ANY => Ok(()),
            part => check_name(part, self.limits.max_name_length),
        }
    }

    /// `positions` beside `collection_infos`, as old tools send them: the keys say which collection each belongs to.
    fn loose_positions(&mut self, data: &Fields<'_>) {
        let found = positions(data, self.limits.queue);
        let many = |(db, name): &(String, String)| db == ANY || name == ANY;
        if !found.is_empty() && self.list.iter().any(many) {
            data.wrong(
                "positions",
                "'*' stands for many collections, positions are of one; name the collections, or use start",
            );
        }
        self.put(data, found);
    }

    fn put(&mut self, fields: &Fields<'_>, found: Positions) {
        for (collection, places) in found {
            let known = self.positions.entry(collection).or_default();
            for (channel, given) in places {
                match known.insert(channel.clone(), given) {
                    Some(before) if before != given => fields.wrong(
                        "positions",
                        format_args!("{channel} is given twice for collection {collection}"),
                    ),
                    _ => {}
                }
            }
        }
    }
}

fn clip_to(text: &str, longest: usize) -> &str {
    text.char_indices()
        .nth(longest)
        .map_or(text, |(end, _)| &text[..end])
}

/// Names of databases and collections, as Milvus takes them.
pub fn check_name(name: &str, max: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name expected, not \"\"".to_owned());
    }
    if name.len() > max {
        return Err(format!(
            "{:?} has {} bytes, maxNameLength allows {max}",
            clip(name),
            name.len()
        ));
    }
    let head = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !head
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    {
        return Err(format!(
            "{:?} is not a legal name: a letter or '_' first, then letters, digits, '_' and '$'",
            clip(name)
        ));
    }
    Ok(())
}
