//! `milvus-cdc verify --repair`: what a comparison has found wrong with rows is copied anew, through the task that writes
//! to the target.
//!
//! Only the server may write there: the target's time, F and the message ids are its own. So the task is paused, then the
//! keys are read on the source once more, and handed to the server with the moment they were read behind; see
//! [`cdc_core::repair`] for why that is right while the source goes on. Whatever happens on the way, a task that ran is
//! resumed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::route::hash::{self, Value as Hashed};
use cdc_verify::client::{Client as Milvus, Key, META, Row, Value as Field, to_columns};
use cdc_verify::copies::{self, From};
use cdc_verify::report::{Kind, Report, Wrong};
use milvus::proto::msg::InsertRequest;
use milvus::proto::schema::CollectionSchema;
use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Connection;
use crate::client::Failure;
use crate::client::http::{Client, Method};
use crate::request::normalise_uri;

/// Keys read and handed over at a time.
const KEYS: usize = 200;
/// Bytes of a request, below what a server takes if nobody says otherwise (`limits.bodyBytes`).
const BODY: usize = 900 << 10;
/// Keys that are named in JSON, of each place.
const NAMED: usize = 100;
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// What was done, or with --dry-run would be.
#[derive(Debug, Default, Serialize)]
pub(super) struct Told {
    dry_run: bool,
    task: String,
    /// The task ran, and was paused for it.
    paused: bool,
    places: Vec<Place>,
    /// What differs and stays as it is, with the next step.
    left: Vec<String>,
    remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Place {
    /// `db.collection/partition`
    place: String,
    /// Keys that get the source's row.
    replaced: usize,
    /// Keys that the source has not.
    deleted: usize,
    /// The first of them.
    keys: Vec<String>,
}

impl Told {
    /// No row is wrong.
    pub(super) fn is_nothing(&self) -> bool {
        self.places.is_empty()
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = if self.dry_run {
            "would repair"
        } else {
            "repair"
        };
        for place in &self.places {
            writeln!(
                f,
                "{head}: {}: {} copied anew, {} deleted",
                place.place, place.replaced, place.deleted
            )?;
        }
        for line in &self.left {
            writeln!(f, "not repaired: {line}")?;
        }
        for line in &self.remarks {
            writeln!(f, "note: {line}")?;
        }
        match (self.is_nothing(), self.dry_run) {
            (true, _) => write!(
                f,
                "{head}: no row is known to be wrong; nothing was changed"
            ),
            (false, true) => write!(f, "nothing was changed (--dry-run)"),
            (false, false) => write!(f, "repaired; comparing again"),
        }
    }
}

/// Asks the server that runs the task.
pub(super) struct Repairer {
    server: Client,
    path: String,
    told: Told,
    runs: bool,
}

/// A collection on the source, as its rows have to be handed over.
struct Source {
    id: i64,
    schema: CollectionSchema,
    fields: Vec<String>,
    primary: String,
    partition_key: Option<String>,
    shards: usize,
    partitions: BTreeMap<String, i64>,
}

impl Repairer {
    /// Looks at the task, before anything is compared.
    ///
    /// # Errors
    /// The server cannot be asked, there is no such task, or its target is being promoted.
    pub(super) fn new(
        connection: &Connection,
        task: &str,
        target: &str,
        dry_run: bool,
    ) -> Result<Self, Failure> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if task.is_empty() || !task.chars().all(legal) {
            let what = format!("--task: letters, digits, '-' and '_' expected, not {task:?}");
            return Err(Failure::new(2, what));
        }
        let server = Client::new(connection)?;
        let path = format!("/api/v1/tasks/{task}");
        let found = server.get(&path)?;
        let runs = match found["state"].as_str() {
            Some("running") => true,
            Some("paused") => false,
            other => {
                let state = other.unwrap_or("unknown");
                let what = format!(
                    "task {task} is {state}: only the target of a task that runs or is paused is repaired"
                );
                return Err(Failure::new(6, what));
            }
        };
        let mut remarks = Vec::new();
        let its = found["target"]["uri"].as_str().unwrap_or_default();
        if normalise_uri(target).is_ok_and(|target| target != its) {
            remarks.push(format!(
                "task {task} writes to {its}, and {target} was compared: be sure that they are one server"
            ));
        }
        let told = Told {
            dry_run,
            task: task.to_owned(),
            paused: runs && !dry_run,
            remarks,
            ..Told::default()
        };
        Ok(Self {
            server,
            path,
            told,
            runs,
        })
    }

    /// Copies anew what the report says is wrong; with --dry-run only looks what that would be.
    ///
    /// # Errors
    /// The source cannot be read, or the server refuses or does not answer. What was repaired by then stays; the task goes
    /// on if it ran before.
    pub(super) async fn repair(mut self, source: &Milvus, report: &Report) -> Result<Told> {
        self.told.left = left(report, &self.told.task);
        if report.wrong.is_empty() {
            self.told.paused = false;
            return Ok(self.told);
        }
        if self.told.dry_run {
            self.places(source, &report.wrong).await?;
            return Ok(self.told);
        }
        if self.runs {
            let pause = json!({ "state": "paused", "reason": "milvus-cdc verify --repair" });
            self.server.ask(Method::PATCH, &self.path, Some(&pause))?;
        } else {
            self.told.remarks.push(format!(
                "task {} was paused and stays so: what the source has written since is not on the target yet",
                self.told.task
            ));
        }
        let done = tokio::select! {
            done = self.places(source, &report.wrong) => done,
            () = interrupted() => Err(Failure::new(1, "interrupted: what was repaired by then stays; run it again for the rest").into()),
        };
        if self.runs {
            self.resume(done.as_ref().err()).await?;
        }
        done?;
        Ok(self.told)
    }

    async fn resume(&self, because: Option<&anyhow::Error>) -> Result<()> {
        let run = json!({ "state": "running" });
        let mut tries = 1;
        loop {
            let Err(failure) = self.server.ask(Method::PATCH, &self.path, Some(&run)) else {
                return Ok(());
            };
            if tries == TRIES {
                let task = &self.told.task;
                let because = because.map_or_else(String::new, |e| format!("{e:#}; "));
                let what = format!(
                    "{because}task {task} is still paused, for it cannot be resumed: {}; then `milvus-cdc task resume {task}`",
                    failure.message
                );
                return Err(Failure::new(failure.code, what).into());
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn places(&mut self, source: &Milvus, wrong: &[Wrong]) -> Result<()> {
        for wrong in wrong {
            let full = format!("{}.{}", wrong.db, wrong.collection);
            let of = Source::read(source, wrong)
                .await
                .with_context(|| full.clone())?;
            let place = match &wrong.partition {
                Some(partition) => format!("{full}/{partition}"),
                None => full,
            };
            self.told.places.push(Place {
                place,
                replaced: 0,
                deleted: 0,
                keys: wrong.keys.iter().take(NAMED).map(Key::to_string).collect(),
            });
            // Given out behind the pause and before the rows are read: the server holds it against what is applied.
            let read_at = source.timestamp().await?;
            let mut parts = wrong.keys.chunks(KEYS).peekable();
            while let Some(keys) = parts.next() {
                let rows = of.rows(source, wrong, keys).await?;
                let last = parts.peek().is_none();
                self.part(&of, wrong, (keys, &rows), read_at, last).await?;
            }
        }
        Ok(())
    }

    /// In as many requests as it takes.
    async fn part(
        &mut self,
        of: &Source,
        wrong: &Wrong,
        (keys, rows): (&[Key], &BTreeMap<Key, Row>),
        read_at: u64,
        last: bool,
    ) -> Result<()> {
        let mut parts = vec![keys];
        while let Some(keys) = parts.pop() {
            let flush = last && parts.is_empty();
            let body = of.request(wrong, keys, rows, read_at, flush)?;
            if keys.len() > 1 && body.to_string().len() > BODY {
                let (low, high) = keys.split_at(keys.len() / 2);
                parts.extend([high, low]);
                continue;
            }
            let there = keys.iter().filter(|k| rows.contains_key(k)).count();
            if !self.told.dry_run {
                self.send(&body).await?;
            }
            if let Some(place) = self.told.places.last_mut() {
                place.replaced += there;
                place.deleted += keys.len() - there;
            }
        }
        Ok(())
    }

    /// It may be sent again as it is.
    async fn send(&self, body: &Value) -> Result<(), Failure> {
        let path = format!("{}/repair", self.path);
        let mut tries = 1;
        loop {
            match self.server.ask(Method::POST, &path, Some(body)) {
                Ok(_) => return Ok(()),
                // Not to be reached, or not able to, at the moment.
                Err(failure) if failure.code == 3 && tries < TRIES => {}
                Err(failure) => return Err(failure),
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Source {
    async fn read(source: &Milvus, wrong: &Wrong) -> Result<Self> {
        let described = source.describe(&wrong.db, &wrong.collection).await?;
        let partitions = source.partitions(&wrong.db, &wrong.collection).await?;
        let mut schema = described.schema.unwrap_or_default();
        // A row that is copied brings its key.
        schema.fields.iter_mut().for_each(|f| f.auto_id = false);
        let named = |is: fn(&milvus::proto::schema::FieldSchema) -> bool| {
            schema.fields.iter().find(|f| is(f)).map(|f| f.name.clone())
        };
        let primary = named(|f| f.is_primary_key).context("it has no primary key")?;
        let partition_key = named(|f| f.is_partition_key);
        let mut fields: Vec<String> = schema.fields.iter().map(|f| f.name.clone()).collect();
        if schema.enable_dynamic_field {
            fields.push(META.to_owned());
        }
        Ok(Self {
            id: described.collection_id,
            fields,
            primary,
            partition_key,
            shards: described.virtual_channel_names.len(),
            partitions: partitions.into_iter().collect(),
            schema,
        })
    }

    async fn rows(
        &self,
        source: &Milvus,
        wrong: &Wrong,
        keys: &[Key],
    ) -> Result<BTreeMap<Key, Row>> {
        let from = From {
            db: &wrong.db,
            collection: &wrong.collection,
            partition: wrong.partition.as_deref(),
            primary: &self.primary,
            fields: &self.fields,
        };
        copies::read(source, from, keys).await
    }

    fn request(
        &self,
        wrong: &Wrong,
        keys: &[Key],
        rows: &BTreeMap<Key, Row>,
        read_at: u64,
        flush: bool,
    ) -> Result<Value> {
        let id_of = |name: &str| {
            let id = self.partitions.get(name).copied();
            id.with_context(|| format!("the source has no partition {name} any more"))
        };
        let mut by_place: BTreeMap<(i64, usize), Vec<Row>> = BTreeMap::new();
        for key in keys {
            let Some(row) = rows.get(key) else {
                continue;
            };
            let hashed = match key {
                Key::Int(key) => Hashed::Int(*key),
                Key::Str(key) => Hashed::Str(key),
            };
            let partition = match (&wrong.partition, &self.partition_key) {
                (Some(name), _) => id_of(name)?,
                (None, Some(field)) => id_of(self.partition_of(row, field)?)?,
                // All are loaded and can be named otherwise.
                (None, None) => id_of("_default")?,
            };
            let place = (partition, hashed.place(self.shards));
            by_place.entry(place).or_default().push(row.clone());
        }
        let rows: Vec<Value> = by_place
            .into_iter()
            .map(|((partition, shard), rows)| {
                let insert = InsertRequest {
                    fields_data: to_columns(&self.schema, &rows)?,
                    num_rows: rows.len() as u64,
                    ..InsertRequest::default()
                };
                Ok(json!({
                    "partition_id": partition.to_string(),
                    "shard": shard,
                    "insert": STANDARD.encode(insert.encode_to_vec()),
                }))
            })
            .collect::<Result<_>>()?;
        let mut body = json!({
            "collection_id": self.id.to_string(),
            "read_at": read_at.to_string(),
            "rows": rows,
            "flush": flush,
        });
        if let Some(name) = &wrong.partition {
            body["partition_id"] = json!(id_of(name)?.to_string());
        }
        let (mut ints, mut strings) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                Key::Int(key) => ints.push(key.to_string()),
                Key::Str(key) => strings.push(key.clone()),
            }
        }
        match strings.is_empty() {
            true => body["int_keys"] = json!(ints),
            false => body["string_keys"] = json!(strings),
        }
        Ok(body)
    }

    /// The partition that the source's proxy has put a row into.
    fn partition_of(&self, row: &Row, field: &str) -> Result<&str> {
        let value = match row.get(field) {
            Some(Field::Int(value)) => Hashed::Int(*value),
            Some(Field::Str(value)) => Hashed::Str(value),
            _ => anyhow::bail!("{field}: an integer or a string expected"),
        };
        let order = hash::in_order(self.partitions.keys().map(String::as_str));
        let order = order.context("its partitions are not numbered")?;
        order
            .get(value.place(order.len()))
            .copied()
            .context("it has no partitions")
    }
}

/// What is not made right, and what to do about it.
fn left(report: &Report, task: &str) -> Vec<String> {
    let mut left = Vec::new();
    for d in &report.differences {
        if d.object.starts_with("row ") {
            continue;
        }
        let step = match (d.object.starts_with("rows "), d.kind) {
            // Its rows are named one by one.
            (true, Kind::Doubled) => continue,
            (true, Kind::Unreadable) => "compare again when it can be read".to_owned(),
            (true, _) => "the source itself holds keys of it more than once; a target cannot be given that by key".to_owned(),
            (false, Kind::Extra) => "it stays: only a task drops something on a standby".to_owned(),
            (false, _) => format!("task {task} makes it by itself while it runs: `milvus-cdc task get {task}` says what keeps it from that"),
        };
        left.push(format!("{d}: {step}"));
    }
    for line in &report.open {
        let step = match line.contains("not loaded") {
            true => "verify with --load",
            false => "run it again",
        };
        left.push(format!("{line}: {step}"));
    }
    left
}

/// Whoever ends this must not leave the task paused.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => _ = signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

#[cfg(test)]
mod tests {
    use cdc_verify::report::Difference;

    use super::*;
    use milvus::proto::schema::{DataType, FieldSchema};

    fn field(name: &str, kind: DataType) -> FieldSchema {
        FieldSchema {
            name: name.to_owned(),
            data_type: kind.into(),
            ..Default::default()
        }
    }

    fn source(partition_key: bool, partitions: &[(&str, i64)]) -> Source {
        let fields = vec![field("pk", DataType::VarChar), field("t", DataType::Int64)];
        Source {
            id: 7,
            schema: CollectionSchema {
                fields,
                ..Default::default()
            },
            fields: vec!["pk".to_owned(), "t".to_owned()],
            primary: "pk".to_owned(),
            partition_key: partition_key.then(|| "t".to_owned()),
            shards: 2,
            partitions: partitions
                .iter()
                .map(|(n, id)| ((*n).to_owned(), *id))
                .collect(),
        }
    }

    fn wrong(partition: Option<&str>, keys: &[Key]) -> Wrong {
        Wrong {
            db: "d".to_owned(),
            collection: "c".to_owned(),
            partition: partition.map(str::to_owned),
            keys: keys.to_vec(),
        }
    }

    fn rows(keys: &[Key]) -> BTreeMap<Key, Row> {
        keys.iter()
            .enumerate()
            .map(|(n, key)| {
                let Key::Str(text) = key else {
                    panic!("strings only")
                };
                let row = Row::from([
                    ("pk".to_owned(), Field::Str(text.clone())),
                    ("t".to_owned(), Field::Int(n as i64)),
                ]);
                (key.clone(), row)
            })
            .collect()
    }

    #[test]
    fn each_row_is_asked_for_where_the_source_has_it() {
        let keys: Vec<Key> = (0..20).map(|n| Key::Str(format!("k{n}"))).collect();
        let (there, gone) = keys.split_at(15);
        let of = source(false, &[("_default", 1), ("p", 2)]);
        let wrong = wrong(Some("p"), &keys);
        let body = of.request(&wrong, &keys, &rows(there), 9, true).unwrap();
        assert_eq!(body["collection_id"], "7");
        assert_eq!(body["partition_id"], "2");
        assert_eq!(body["read_at"], "9");
        assert_eq!(body["flush"], true);
        assert_eq!(body["string_keys"].as_array().unwrap().len(), 20);
        let mut inserted = 0;
        for part in body["rows"].as_array().unwrap() {
            assert_eq!(part["partition_id"], "2");
            let bytes = STANDARD.decode(part["insert"].as_str().unwrap()).unwrap();
            let insert = InsertRequest::decode(bytes.as_slice()).unwrap();
            let rows = cdc_verify::client::from_columns(insert.fields_data).unwrap();
            inserted += rows.len();
            for row in rows {
                let Some(Field::Str(key)) = row.get("pk") else {
                    panic!("no key")
                };
                let shard = Hashed::Str(key).place(2);
                assert_eq!(part["shard"], shard);
                assert!(gone.iter().all(|k| *k != Key::Str(key.clone())));
            }
        }
        assert_eq!(inserted, 15);
    }

    #[test]
    fn with_a_partition_key_the_partition_is_that_of_its_value() {
        let keys = [Key::Str("a".to_owned())];
        let of = source(true, &[("_default_0", 10), ("_default_1", 11)]);
        let body = of.request(&wrong(None, &keys), &keys, &rows(&keys), 9, false);
        let body = body.unwrap();
        let id = 10 + Hashed::Int(0).place(2);
        assert_eq!(body["rows"][0]["partition_id"], id.to_string());
        assert!(body.get("partition_id").is_none());
        let ints = [Key::Int(-5)];
        let body = of.request(&wrong(None, &ints), &ints, &BTreeMap::new(), 9, false);
        assert_eq!(body.unwrap()["int_keys"], json!(["-5"]));
    }

    #[test]
    fn what_stays_is_said_with_the_next_step() {
        let difference = |object: &str, kind| Difference {
            object: object.to_owned(),
            kind,
            detail: String::new(),
        };
        let report = Report {
            differences: vec![
                difference("row d.c/p 1", Kind::Missing),
                difference("rows d.c/p", Kind::Doubled),
                difference("rows d.c/p", Kind::Changed),
                difference("index d.c v", Kind::Missing),
                difference("collection d.x", Kind::Extra),
            ],
            open: vec!["d.e: not loaded".to_owned()],
            ..Report::default()
        };
        let left = left(&report, "east");
        assert_eq!(left.len(), 4, "{left:#?}");
        for (line, words) in left.iter().zip([
            "more than once",
            "task get east",
            "it stays",
            "verify with --load",
        ]) {
            assert!(line.contains(words), "{line}");
        }
    }
}
