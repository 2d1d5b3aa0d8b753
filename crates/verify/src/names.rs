//! What a task carries, and what that is called on its target: for a comparison of just this.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;

use crate::Options;
use crate::client::Client;
use crate::objects::Objects;

/// What a replicator was told to carry. Of the source's names, if nothing else is said.
pub trait Carried: fmt::Debug + Send + Sync {
    /// Database and name on the target; `None`: it is not carried.
    fn collection(&self, database: &str, name: &str) -> Option<(String, String)>;

    /// A database that is carried as such, not only for some of its collections: its name on the target.
    fn database(&self, database: &str) -> Option<String>;

    /// Whether a collection of the target that stands for none of the source's should not be there.
    fn is_extra(&self, database: &str, name: &str) -> bool;

    /// Whether objects of this kind (`index`, say) are kept as on the source.
    fn has_kind(&self, kind: &str) -> bool;

    /// Whether an object of this kind goes from the target when it goes from the source.
    fn drops(&self, kind: &str) -> bool;
}

/// Reads both sides. What the target has is known by the source's names.
///
/// # Errors
/// A server cannot be read, or something vanished between two calls.
pub(crate) async fn read_both(
    source: &Client,
    target: &Client,
    options: &Options,
) -> Result<(Objects, Objects)> {
    let (selection, likeness) = (&options.selection, options.likeness);
    let Some(carried) = &options.carried else {
        let wanted = Objects::read(source, selection, likeness).await?;
        return Ok((wanted, Objects::read(target, selection, likeness).await?));
    };
    let mut wanted = Objects::default();
    // By the source's names.
    let mut places = BTreeMap::new();
    let mut databases = Vec::new();
    for db in source.databases().await? {
        if !selection.has_database(&db) {
            continue;
        }
        if let Some(to) = carried.database(&db) {
            wanted.read_database(source, &db, &db).await?;
            databases.push((db.clone(), to));
        }
        for name in source.collections(&db).await? {
            if !selection.has(&db, &name) {
                continue;
            }
            if let Some(to) = carried.collection(&db, &name) {
                let own = (db.clone(), name);
                wanted.read_collection(source, &own, &own, likeness).await?;
                places.insert(own, to);
            }
        }
    }
    let mut found = Objects::default();
    let there: BTreeSet<String> = target.databases().await?.into_iter().collect();
    for (db, to) in &databases {
        if there.contains(to) {
            found.read_database(target, to, db).await?;
        }
    }
    // One for which several stand has none of theirs.
    for (db, to) in &databases {
        if databases.iter().filter(|(_, other)| other == to).count() > 1 {
            let of = ("database properties", db.clone());
            wanted.described.remove(&of);
            found.described.remove(&of);
        }
    }
    let mut on_target = BTreeSet::new();
    for db in &there {
        let names = target.collections(db).await?;
        on_target.extend(names.into_iter().map(|name| (db.clone(), name)));
    }
    for (own, at) in &places {
        if on_target.remove(at) {
            found.read_collection(target, at, own, likeness).await?;
        }
    }
    // What another one of the source's stands for, that is not selected, is nobody's business here.
    for at in &on_target {
        if selection.has(&at.0, &at.1) && carried.is_extra(&at.0, &at.1) {
            found.read_collection(target, at, at, likeness).await?;
        }
    }
    wanted
        .described
        .retain(|(kind, _), _| carried.has_kind(kind));
    found.described.retain(|of, _| {
        carried.has_kind(of.0) && (carried.drops(of.0) || wanted.described.contains_key(of))
    });
    Ok((wanted, found))
}
