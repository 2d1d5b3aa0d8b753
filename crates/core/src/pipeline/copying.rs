//! Carries the rows that a collection had before the task to the target; see [`crate::snapshot`] for why that is right.

mod patient;
mod progress;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cdc_keys::Range;
use futures::future::try_join_all;
use milvus::proto::schema::{CollectionSchema, DataType, FieldData, FieldSchema};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::TaskContext;
use super::objects::{Objects, Route};
use super::settle;
use patient::Patient;
use progress::Step;
pub(super) use progress::{Pace, Progress};
use worker::Worker;

use crate::catalog::{Collection, ObjectState};
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, PChannel, PartitionId, TaskId};
use crate::repair::columns::{column, fit};
use crate::route::hash::{self, Value};
use crate::snapshot::{Of, Part, Piece, Snapshot, SourceRows, pick};
use crate::source::{SourceError, Start};
use crate::store::{Change, Progress as Place, TaskProgress};
use crate::task::Mode;
use crate::tso::Tso;

/// Pieces of one collection that are copied at the same time.
const WORKERS: usize = 4;
/// Bytes of a page, about.
const PAGE_BYTES: u64 = 1 << 20;
/// Rows of a page at most, and of the first, before it is known how large rows are.
const PAGE_ROWS: u64 = 4_000;
const FIRST_PAGE: u64 = 200;
/// Pages of a piece, about: what is copied again after a crash.
const PIECE_PAGES: u64 = 16;
const LOADED_WITHIN: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is asked whether the queue still holds what comes behind the copy.
const REACH_EVERY: Duration = Duration::from_secs(30);
/// The target has flushed what was copied within so many rounds of [`settle::flush`].
const FLUSHES: u32 = 5;

/// Under this id the store keeps how far the copy of a collection is: below those that stand for something else, and
/// above none that Milvus gives out.
pub(super) fn note_of(id: CollectionId) -> CollectionId {
    CollectionId(i64::MIN.wrapping_add(id.0))
}

pub(super) fn note(ctx: &TaskContext, id: CollectionId, snapshot: Option<&Snapshot>) -> Change {
    let note = snapshot.and_then(|s| serde_json::to_string(s).ok());
    Change::PutNote {
        task: ctx.spec.id.clone(),
        collection: note_of(id),
        note: note.unwrap_or_default(),
    }
}

/// What makes every copy that is not done begin anew.
pub(super) fn anew(task: &TaskId, stored: &TaskProgress) -> Vec<Change> {
    let copied = |id: &CollectionId| {
        let note = stored.notes.get(&note_of(*id))?;
        let snapshot: Snapshot = serde_json::from_str(note).ok()?;
        Some(Change::PutNote {
            task: task.clone(),
            collection: note_of(*id),
            note: serde_json::to_string(&snapshot.anew()).ok()?,
        })
    };
    stored.collections.keys().filter_map(copied).collect()
}

/// Why a copy has ended before its end.
#[derive(Debug)]
pub(super) enum Stopped {
    Failed(Problem),
    /// The queue does not hold any more where the collection's messages would be read from, on these channels.
    Lost(Vec<SourceError>),
}

impl From<Problem> for Stopped {
    fn from(problem: Problem) -> Self {
        Stopped::Failed(problem)
    }
}

/// What is left to do, with what of it somebody has in hand.
#[derive(Default)]
struct Work {
    snapshot: Snapshot,
    /// Of [`Snapshot::begun`]: begun by an earlier job.
    again: Vec<Piece>,
    /// Taken, and nothing of it is sent.
    held: Vec<Piece>,
}

struct Copier {
    ctx: Arc<TaskContext>,
    objects: Arc<Objects>,
    source: Arc<Collection>,
    /// When its entry was last written before anything of it was read.
    written: Option<i64>,
    of: Of,
    schema: CollectionSchema,
    partition_key: Option<String>,
    /// With a partition key: its partitions as the hash counts them.
    order: Vec<PartitionId>,
    route: Arc<Route>,
    rows: Patient,
    at: Tso,
    work: tokio::sync::Mutex<Work>,
    /// Told when there may be more work, or none.
    moved: Notify,
    /// Where its messages are read from, behind the copy.
    places: BTreeMap<PChannel, Place>,
    progress: Arc<Progress>,
    pace: Arc<Pace>,
    /// Bytes of a row, as seen.
    row_bytes: AtomicU64,
}

/// Copies a collection, from where it is. Returns a bound of everything the source had given out when the last row was
/// read.
pub(super) async fn copy(
    ctx: Arc<TaskContext>,
    objects: Arc<Objects>,
    (source, database): (Arc<Collection>, String),
    route: Arc<Route>,
    (snapshot, places): (Snapshot, BTreeMap<PChannel, Place>),
    (progress, pace): (Arc<Progress>, Arc<Pace>),
) -> Result<Tso, Stopped> {
    let rows = ctx.parts.rows.clone().ok_or_else(unreadable)?;
    let id = source.id;
    let source = ctx.catalog().read_collection(id).await;
    let source = source.map_err(|e| e.problem())?.ok_or_else(gone)?;
    let written = ctx.catalog().written_at(source.db, id).await;
    let written = written.map_err(|e| e.problem())?;
    if source.state != ObjectState::Created {
        return Err(gone().into());
    }
    let mut schema = source.schema.clone();
    schema.fields.retain(|f| f.field_id >= 100);
    if ctx.hub.mode == Mode::Plain {
        // The target computes them itself.
        schema.fields.retain(|f| !f.is_function_output);
    }
    if let Some(why) = refused(&schema, ctx.hub.mode) {
        let hint =
            "leave the collection out, or begin it with its messages alone (initial: incremental)";
        return Err(Problem::new(ErrorClass::Data, why, hint).into());
    }
    let primary = schema.fields.iter().find(|f| f.is_primary_key);
    let primary = primary.ok_or_else(|| later("its fields are not known yet"))?;
    let string = milvus::proto::schema::DataType::VarChar;
    let of = Of {
        database,
        name: source.name.clone(),
        primary: primary.name.clone(),
        has_string_key: primary.data_type() == string,
        fields: schema.fields.iter().map(|f| f.name.clone()).collect(),
    };
    let partition_key = schema.fields.iter().find(|f| f.is_partition_key);
    let by_name: BTreeMap<&str, PartitionId> = source
        .partitions
        .values()
        .map(|p| (p.name.as_str(), p.id))
        .collect();
    let order = hash::in_order(by_name.keys().copied()).unwrap_or_default();
    let order = order.iter().filter_map(|name| by_name.get(name).copied());
    let order = order.collect();
    let copier = Arc::new(Copier {
        partition_key: partition_key.map(|f| f.name.clone()),
        order,
        at: snapshot.at,
        work: tokio::sync::Mutex::new(Work {
            again: snapshot.begun.clone(),
            snapshot,
            held: Vec::new(),
        }),
        moved: Notify::new(),
        row_bytes: AtomicU64::new(PAGE_BYTES / FIRST_PAGE),
        source: Arc::new(source),
        written,
        ctx,
        objects,
        of,
        schema,
        route,
        rows: Patient(rows),
        places,
        progress,
        pace,
    });
    copier.run().await
}

/// What of a schema cannot be copied by this version: said before anything is.
fn refused(schema: &CollectionSchema, mode: Mode) -> Option<String> {
    let fields = &schema.fields;
    // All of their types, of whatever version, are behind the scalars'.
    let is_vector = |f: &FieldSchema| f.data_type >= DataType::BinaryVector as i32;
    if let Some(field) = fields.iter().find(|f| f.nullable && is_vector(f)) {
        return Some(format!(
            "{}: vectors that may be null are not copied by this version",
            field.name
        ));
    }
    let computed = fields.iter().find(|f| f.is_function_output);
    let computed = computed.filter(|_| mode == Mode::Replicate)?;
    Some(format!(
        "{}: the source computes it, and does not show it: it cannot be copied to a standby",
        computed.name
    ))
}

pub(super) fn unreadable() -> Problem {
    Problem::new(
        ErrorClass::Configuration,
        "its rows are to be copied, and this server does not know where the source's Milvus is",
        "set sourceConfig.milvus.uri, and restart this server",
    )
}

fn odd(why: &str) -> Problem {
    Problem::new(ErrorClass::Data, why, "please report it")
}

fn no_partition_key() -> Problem {
    odd("an answer has no values of the partition key")
}

/// How many rows of so many bytes each are read at a time, and sent in one message.
fn rows_of_a_page(row_bytes: u64) -> u64 {
    (PAGE_BYTES / row_bytes.max(1)).clamp(1, PAGE_ROWS)
}

fn gone() -> Problem {
    later("the source has dropped it, or is about to")
}

fn later(why: &str) -> Problem {
    Problem::new(ErrorClass::Transient, why, "tried again by itself")
}

impl Copier {
    async fn run(self: Arc<Self>) -> Result<Tso, Stopped> {
        self.progress.is(Step::Begins);
        self.reachable().await?;
        self.same().await?;
        self.loaded().await?;
        self.list().await?;
        self.ask_how_long_is_kept().await;
        if let Some(problem) = self.progress.too_slow() {
            tracing::warn!(task = %self.ctx.spec.id, collection = %self.of.name, "{problem}");
        }
        self.progress.is(Step::Copies);
        // In this task: where it ends, they have ended.
        let workers = (0..WORKERS).map(|_| Worker::new(self.clone()).run());
        let mut workers = std::pin::pin!(try_join_all(workers));
        let mut look = tokio::time::interval(REACH_EVERY);
        loop {
            tokio::select! {
                done = &mut workers => break drop(done?),
                _ = look.tick() => self.reachable().await?,
            }
        }
        self.flushed().await?;
        self.reachable().await?;
        let bound = self.ctx.catalog().tso_bound().await;
        let bound = bound.map_err(|e| e.problem())?;
        let snapshot = self.work.lock().await.snapshot.clone();
        if snapshot.release {
            self.same().await?;
            self.progress.is(Step::Releases);
            let released = self.rows.release(&self.of.database, &self.of.name).await;
            released.map_err(Problem::from)?;
        }
        tracing::info!(
            task = %self.ctx.spec.id,
            collection = %format!("{}.{}", self.of.database, self.of.name),
            rows = snapshot.copied,
            doubled = snapshot.doubled,
            "all rows it had are copied"
        );
        Ok(bound)
    }

    /// Whether the queue still holds what comes behind the copy.
    async fn reachable(&self) -> Result<(), Stopped> {
        let mut lost = Vec::new();
        for (channel, place) in &self.places {
            let start = match place.after {
                true => Start::After(place.position),
                false => Start::At(place.position),
            };
            // That it cannot be asked now says nothing.
            let opened = self.ctx.parts.source.open(channel, start).await;
            if let Err(error @ SourceError::PositionLost { .. }) = opened {
                lost.push(error);
            }
        }
        match lost.is_empty() {
            true => Ok(()),
            false => Err(Stopped::Lost(lost)),
        }
    }

    /// How long the queue keeps what comes behind the copy: the least of its channels.
    async fn ask_how_long_is_kept(&self) {
        let mut kept = None;
        for channel in self.places.keys() {
            // A queue that does not answer now is not waited for.
            let of_channel = self
                .ctx
                .parts
                .source
                .retention(channel)
                .await
                .ok()
                .flatten();
            kept = [kept, of_channel].into_iter().flatten().min();
        }
        *self.progress.kept.lock() = kept;
    }

    /// The name still means this collection, and has meant it all the time since the copy began: it may have been
    /// another's in between, and what was read then is not of this one.
    async fn same(&self) -> Result<(), Problem> {
        let found = self.rows.describe(&self.of.database, &self.of.name);
        match found.await? {
            Some(id) if id == self.source.id => {
                let catalog = self.ctx.catalog();
                let written = catalog.written_at(self.source.db, id).await;
                match written.map_err(|e| e.problem())? {
                    written if written == self.written => Ok(()),
                    _ => Err(later(
                        "its entry was changed on the source, perhaps its name, since its copy began",
                    )),
                }
            }
            found => Err(later(&format!(
                "{}.{} is {} on the source by now, and was {} when its copy began",
                self.of.database,
                self.of.name,
                found.map_or_else(|| "gone".to_owned(), |id| id.to_string()),
                self.source.id
            ))),
        }
    }

    async fn loaded(&self) -> Result<(), Problem> {
        let (database, name) = (&self.of.database, &self.of.name);
        let partitions = self.source.partitions.values();
        let partitions = partitions.filter(|p| p.state == ObjectState::Created);
        let partitions: Vec<String> = partitions.map(|p| p.name.clone()).collect();
        let is_loaded = || self.rows.is_loaded(database, name, &partitions);
        if is_loaded().await? {
            return Ok(());
        }
        let refuse = |why: &str, hint: &str| Problem::new(ErrorClass::Configuration, why, hint);
        if self.rows.is_loaded(database, name, &[]).await? {
            return Err(refuse(
                "only some of its partitions are loaded on the source, and only what is loaded can be read",
                "load the whole collection there",
            ));
        }
        if !self.ctx.wanted().snapshot.load {
            return Err(refuse(
                "it is not loaded on the source, and only what is loaded can be read",
                "load it there; or set load_for_snapshot of the task, to have it loaded for as long as it is copied",
            ));
        }
        self.progress.is(Step::Loads);
        {
            let mut work = self.work.lock().await;
            work.snapshot.release = true;
            self.commit(&work).await;
        }
        self.rows.load(database, name).await?;
        let deadline = Instant::now() + LOADED_WITHIN;
        while !is_loaded().await? {
            if Instant::now() > deadline {
                return Err(later("the source has not loaded it within ten minutes"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// What there is to copy, and what is left of that.
    async fn list(&self) -> Result<(), Problem> {
        let partitions = &self.source.partitions;
        let created = |id: &PartitionId| {
            let partition = partitions.get(id);
            partition.is_some_and(|p| p.state == ObjectState::Created)
        };
        let mut work = self.work.lock().await;
        if !work.snapshot.listed {
            let all = self.pieces(None);
            let mut total = 0;
            for piece in &all {
                total += self.count(piece).await?;
            }
            self.same().await?;
            match self.partition_key {
                Some(_) => work.snapshot.todo = all,
                None => {
                    let there = partitions.keys().copied().filter(created);
                    work.snapshot.partitions = there.collect();
                }
            }
            work.snapshot.total = total;
            work.snapshot.listed = true;
            self.commit(&work).await;
        }
        // What was dropped since is not copied.
        let there = |piece: &Piece| piece.partition.as_ref().is_none_or(created);
        work.snapshot.partitions.retain(created);
        work.snapshot.todo.retain(there);
        work.snapshot.begun.retain(there);
        work.again.retain(there);
        self.progress
            .total
            .store(work.snapshot.total, Ordering::Relaxed);
        Ok(())
    }

    /// All keys of a partition.
    fn pieces(&self, partition: Option<PartitionId>) -> Vec<Piece> {
        let ranges = Range::all(self.of.has_string_key).into_iter();
        ranges.map(|range| Piece { partition, range }).collect()
    }

    fn part(&self, piece: &Piece) -> Result<Part, Problem> {
        let name = |id| {
            let partition = self.source.partitions.get(&id);
            partition.map(|p| p.name.clone()).ok_or_else(gone)
        };
        Ok(Part {
            partition: piece.partition.map(name).transpose()?,
            range: piece.range.clone(),
        })
    }

    async fn count(&self, piece: &Piece) -> Result<u64, Problem> {
        let part = self.part(piece)?;
        Ok(self.rows.count(&self.of, &part, self.at).await?)
    }

    async fn commit(&self, work: &Work) {
        let mut snapshot = work.snapshot.clone();
        snapshot.todo.extend(work.held.iter().cloned());
        let note = note(&self.ctx, self.source.id, Some(&snapshot));
        self.ctx.commit(vec![note]).await;
        *self.progress.stored.lock() = snapshot;
    }

    /// The next piece, small enough, noted as begun; whether it may be there in part.
    async fn take(&self) -> Result<Option<(Piece, bool)>, Problem> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let piece = {
                let mut work = self.work.lock().await;
                if let Some(piece) = work.again.pop() {
                    return Ok(Some((piece, true)));
                }
                if work.snapshot.todo.is_empty()
                    && let Some(partition) = work.snapshot.partitions.pop()
                {
                    work.snapshot.todo = self.pieces(Some(partition));
                }
                match work.snapshot.todo.pop() {
                    Some(piece) => {
                        work.held.push(piece.clone());
                        piece
                    }
                    None if work.held.is_empty() => return Ok(None),
                    None => {
                        drop(work);
                        moved.await;
                        continue;
                    }
                }
            };
            let rows = self.count(&piece).await?;
            if rows == 0 {
                // Of another collection that has the name by now, nothing would mean nothing.
                self.same().await?;
            }
            let parts = match rows > self.page_rows() * PIECE_PAGES {
                true => piece.range.split(),
                false => None,
            };
            let mut work = self.work.lock().await;
            work.held.retain(|held| *held != piece);
            match parts {
                Some((low, high)) => work.snapshot.todo.extend([high, low].map(|range| Piece {
                    partition: piece.partition,
                    range,
                })),
                None if rows == 0 => {}
                None => {
                    work.snapshot.begun.push(piece.clone());
                    self.commit(&work).await;
                    let window = work.snapshot.again;
                    drop(work);
                    self.moved.notify_waiters();
                    return Ok(Some((piece, window)));
                }
            }
            drop(work);
            self.moved.notify_waiters();
        }
    }

    /// All rows of a piece are acknowledged.
    async fn done(&self, piece: &Piece, rows: u64, doubled: u64) {
        let mut work = self.work.lock().await;
        work.snapshot.begun.retain(|begun| begun != piece);
        work.snapshot.copied += rows;
        work.snapshot.doubled += doubled;
        // Stored with the next one that is begun, or with the last.
        if work.snapshot.begun.is_empty() {
            self.commit(&work).await;
        }
    }

    fn page_rows(&self) -> u64 {
        rows_of_a_page(self.row_bytes.load(Ordering::Relaxed))
    }

    /// A standby that restarts can lose what it has acknowledged, until it has flushed it; and no queue holds these rows.
    async fn flushed(&self) -> Result<(), Problem> {
        if self.ctx.hub.mode == Mode::Plain {
            return Ok(());
        }
        self.progress.is(Step::Flushes);
        let mut problem = later("all rows are copied, and the target has not flushed them yet");
        for _ in 0..FLUSHES {
            match settle::flush(&self.ctx, &self.route).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // A target that has just made it may not watch all of its channels yet.
                Err(error) => {
                    problem = error.problem();
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
        Err(problem)
    }

    /// Which partitions of the source have these rows.
    fn partitions_of(&self, columns: &[FieldData]) -> Result<Vec<PartitionId>, Problem> {
        let field = self.partition_key.as_deref().unwrap_or_default();
        let values = column(columns, field).ok_or_else(no_partition_key)?;
        let place = |value: Value<'_>| self.order.get(value.place(self.order.len())).copied();
        let places: Option<Vec<PartitionId>> = values.values().into_iter().map(place).collect();
        places.ok_or_else(|| odd("its partitions are not numbered"))
    }

    fn columns(&self, columns: &[FieldData], rows: &[usize]) -> Result<Vec<FieldData>, Problem> {
        let picked: Result<Vec<FieldData>, String> =
            columns.iter().map(|column| pick(column, rows)).collect();
        picked
            .and_then(|columns| fit(&self.schema, &columns, rows.len()))
            .map_err(|why| {
                let hint = "leave the collection out, or begin it with its messages alone (initial: incremental)";
                Problem::new(ErrorClass::Data, why, hint)
            })
    }
}
