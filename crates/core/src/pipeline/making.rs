//! A collection's way to the target: made there, or found, or taken over; and what is in the way of that.

use std::sync::Arc;

use milvus::proto::schema::FieldSchema;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::databases::note_made;
use super::objects::{Objects, Obstacle, Opened, Route, TargetShard};
use super::renames::LATE;
use crate::catalog::Collection;
use crate::error::{ErrorClass, Problem};
use crate::ids::{CollectionId, DbId, TargetKey};
use crate::lane::StreamCtl;
use crate::route::encode;
use crate::select::Name;
use crate::select::mapping::check as check_name;
use crate::store::{CollectionObject, Held, HeldProperties, ObjectPhase};
use crate::target::grpc::user_schema;
use crate::target::hub::store_problem;
use crate::target::{TargetCollection, TargetError};
use crate::task::{Mode, OnConflict};
use crate::tso::Tso;

impl Objects {
    /// Makes the collection on the target, or finds the one made before, and builds its route.
    ///
    /// `choice`: what to do with something of that name that is not ours. `may_rename`: it may take the time that a new
    /// name needs.
    pub(crate) async fn open(
        &self,
        source: &Collection,
        database: &str,
        choice: OnConflict,
        may_rename: bool,
    ) -> Result<Opened, Obstacle> {
        let target = &self.ctx.hub.target;
        let failed = |e: TargetError| Obstacle::Failed(e.problem());
        let wanted = self.ctx.wanted();
        let known = self.get(source.id);
        if let Some(object) = known.as_ref().filter(|o| o.phase != ObjectPhase::Creating) {
            if object.phase == ObjectPhase::Dropped {
                return Err(Obstacle::Gone);
            }
            let found = self.whereabouts(object).await.map_err(failed)?;
            return match found {
                Some(found) => {
                    self.claim(&found.0, source.id)?;
                    let found = self.follow_name(source, found, may_rename).await?;
                    let found = found.with_channels(self.ctx.hub.mode, source.shards.len());
                    let database = self.look(source.id, |o| o.database.clone());
                    let database = database.unwrap_or_else(|| object.database.clone());
                    Ok(Opened {
                        route: self.route(source, &database, &found).await?,
                        adopted: None,
                        fresh: None,
                    })
                }
                None => Err(Obstacle::Conflict(Problem::new(
                    ErrorClass::Conflict,
                    format!(
                        "{}.{} is no longer on the target: someone dropped or replaced it there",
                        object.database, object.name
                    ),
                    "choose recreate to make it anew and copy what the queue still holds",
                ))),
            };
        }
        let from = Name::new(database, source.name.as_str());
        // One whose creation was begun keeps the name that it was to have, as long as it may be made under that.
        let begun = match &known {
            Some(object) if self.may_be_made(object, &from).await.map_err(failed)? => {
                known.as_ref()
            }
            _ => None,
        };
        let to = match begun {
            Some(object) => object.target_name(),
            None => wanted.target_of(database, &source.name),
        };
        check_name(&to).map_err(|why| {
            let why = format!("{from} would be {to} on the target: {why}");
            let hint = "give the collection another name with the task's mapping, or exclude it";
            Obstacle::Unnamed(Problem::new(ErrorClass::Conflict, why, hint))
        })?;
        let database = to.database.as_str();
        self.is_free_for(source, &to)?;
        self.claim(&to, source.id)?;
        if source.schema.fields.iter().all(|f| !f.is_primary_key) {
            return Err(Obstacle::Failed(Problem::new(
                ErrorClass::Transient,
                "its fields are not there yet",
                "",
            )));
        }
        self.database_for(source.db, Some(&from.database), database)
            .await?;
        let mut adopted = false;
        let mut there = false;
        if let Some(found) = self.described(source, database, &to.name).await? {
            // Another one of ours that has come to the name, or is just being made.
            self.is_free_for(source, &to)?;
            self.is_not_of_another(source, &found)?;
            // Our own create whose answer we never saw is empty as well: nothing was sent to it yet.
            let empty = !target
                .holds_rows(database, &to.name)
                .await
                .map_err(failed)?;
            let alike = found.vchannels.len() == source.shards.len()
                && same_schema(source, &found, self.ctx.hub.mode);
            if choice == OnConflict::Recreate && !(empty && alike) {
                self.drop_on_target(database, &found, &[])
                    .await
                    .map_err(Obstacle::Failed)?;
            } else if alike && (empty || choice == OnConflict::Adopt) {
                there = true;
                adopted = !empty;
            } else {
                return Err(Obstacle::Conflict(on_target(
                    source, database, &found, empty, alike,
                )));
            }
        }
        let mut object = CollectionObject {
            source: source.id,
            database: database.to_owned(),
            name: to.name.clone(),
            // It may have been renamed since that was begun.
            from: match begun {
                Some(object) => object.from.clone(),
                None => (from != to).then(|| from.clone()),
            },
            renamed: None,
            renaming: None,
            in_between: false,
            created: source.create_ts,
            phase: ObjectPhase::Creating,
            target: None,
            target_vchannels: Vec::new(),
            dropped_shards: Vec::new(),
            properties: Box::new(held_from_the_start(source)),
        };
        {
            let _naming = self.names.settling.lock().await;
            self.is_free_for(source, &to)?;
            self.put(object.clone()).await;
        }
        if !there {
            let now = self.ctx.hub.now().await.map_err(failed)?;
            let named = match to.name == source.name {
                true => None,
                false => Some(Collection {
                    name: to.name.clone(),
                    ..source.clone()
                }),
            };
            if known.is_some() {
                self.names.creating.lock().insert(source.id, Instant::now());
            }
            target
                .create_collection(
                    database,
                    named.as_ref().unwrap_or(source),
                    source.create_ts.min(now),
                )
                .await
                .map_err(failed)?;
        }
        let found = self
            .described(source, database, &to.name)
            .await?
            .ok_or_else(|| {
                let why = format!("{to} was made on the target but is not visible there yet");
                Obstacle::Failed(Problem::new(
                    ErrorClass::Transient,
                    why,
                    "tried again by itself",
                ))
            })?;
        self.is_not_of_another(source, &found)?;
        object.phase = ObjectPhase::Live;
        object.target = Some(found.id);
        object.target_vchannels = found.vchannels.clone();
        let adopted = if adopted {
            Some(self.adopt(&found).await.map_err(Obstacle::Failed)?)
        } else {
            None
        };
        let route = self.route(source, database, &found).await?;
        Ok(Opened {
            route,
            adopted,
            fresh: Some(object),
        })
    }

    /// Whether a collection whose creation was begun is on the target under the name it was to have, or may be made there
    /// yet; also where its name on the source is still the same.
    async fn may_be_made(
        &self,
        object: &CollectionObject,
        now: &Name,
    ) -> Result<bool, TargetError> {
        if object.carried_name() == *now {
            return Ok(true);
        }
        let at = object.target_name();
        match self.ctx.hub.target.describe(&at.database, &at.name).await {
            Err(error) if error.is_alias() || error.is_not_found() => {}
            // Some other one, or ours: which of them is asked of its rows.
            Ok(Some(found)) if self.made_for(found.id).is_none() => return Ok(true),
            found => drop(found?),
        }
        let mut creating = self.names.creating.lock();
        let since = creating.entry(object.source).or_insert_with(Instant::now);
        Ok(since.elapsed() < LATE)
    }

    /// Whether no other collection has a name on the target, or may get it.
    fn is_free_for(&self, source: &Collection, to: &Name) -> Result<(), Obstacle> {
        let collections = self.collections.lock();
        let mut others = collections.values().filter(|o| o.source != source.id);
        match others.find(|o| self.holds(o, to)) {
            Some(holder) => Err(Obstacle::NameTaken(holder.source)),
            None => Ok(()),
        }
    }

    /// The source's collection that one of the target's stands for.
    pub(super) fn made_for(&self, target: CollectionId) -> Option<CollectionId> {
        let collections = self.collections.lock();
        let is =
            |o: &&CollectionObject| o.target == Some(target) && o.phase != ObjectPhase::Dropped;
        collections.values().find(is).map(|o| o.source)
    }

    fn is_not_of_another(
        &self,
        source: &Collection,
        found: &TargetCollection,
    ) -> Result<(), Obstacle> {
        match self.made_for(found.id).filter(|other| *other != source.id) {
            Some(other) => Err(Obstacle::NameTaken(other)),
            None => Ok(()),
        }
    }

    /// Makes the database for a collection, if it is not there. `from`: the source's.
    pub(super) async fn database_for(
        &self,
        source: DbId,
        from: Option<&str>,
        database: &str,
    ) -> Result<(), Obstacle> {
        let target = &self.ctx.hub.target;
        let failed = |e: TargetError| Obstacle::Failed(e.problem());
        let databases = target.databases().await.map_err(failed)?;
        if databases.iter().any(|d| d == database) {
            return Ok(());
        }
        // One that stands for the source's: others never go with it.
        let mapped = from.and_then(|from| self.ctx.wanted().mapping.database(from));
        if mapped.as_deref() == Some(database) {
            let made = {
                let mut made = self.made_databases.lock();
                made.insert(source, database.to_owned());
                made.clone()
            };
            // Before the call: one that a crash leaves behind has to go with its database on the source.
            note_made(&self.ctx, &made).await;
        }
        target.create_database(database).await.map_err(failed)
    }

    fn claim(&self, to: &Name, source: CollectionId) -> Result<(), Obstacle> {
        let task = &self.ctx.spec.id;
        self.ctx
            .hub
            .claims
            .take(to, task, source)
            .map_err(|other| {
                let why = format!("task {other} writes {to} on this target");
                let hint = "exclude it from one of the two tasks, or give it another name with the mapping of one";
                Obstacle::Unnamed(Problem::new(ErrorClass::Conflict, why, hint))
            })
    }

    /// A collection taken over as it is: its rows may carry any time up to now, ours or the source's. F is raised above
    /// them on its channels, on disk, before anything is sent.
    async fn adopt(&self, found: &TargetCollection) -> Result<Tso, Problem> {
        let source = self.ctx.catalog().tso_bound().await;
        let source = source.map_err(|e| e.problem())?;
        let target = self.ctx.hub.target.now().await.map_err(|e| e.problem())?;
        for channel in &found.pchannels {
            self.ctx
                .hub
                .others_wrote(channel, source.max(target))
                .await
                .map_err(store_problem)?;
        }
        Ok(source)
    }

    async fn route(
        &self,
        source: &Collection,
        database: &str,
        found: &TargetCollection,
    ) -> Result<Arc<Route>, Obstacle> {
        let name = format!("{database}.{}", found.name);
        if found.vchannels.len() != source.shards.len()
            || found.pchannels.len() != source.shards.len()
        {
            return Err(Obstacle::Conflict(Problem::new(
                ErrorClass::Conflict,
                format!(
                    "{name} has {} shards on the target, {} on the source",
                    found.vchannels.len(),
                    source.shards.len()
                ),
                "choose recreate",
            )));
        }
        let mut shards = Vec::new();
        for (i, shard) in source.shards.iter().enumerate() {
            // By shard number, not by place in the list.
            let at = found
                .vchannels
                .iter()
                .position(|v| v.shard() == Some(i))
                .unwrap_or(i);
            let (vchannel, pchannel) = (found.vchannels[at].clone(), &found.pchannels[at]);
            if vchannel.pchannel() != *pchannel {
                let why = format!("{name}: the target's channel {vchannel} is not on {pchannel}");
                return Err(Obstacle::Failed(Problem::new(
                    ErrorClass::Bug,
                    why,
                    "please report it",
                )));
            }
            let (database, name) = (database.to_owned(), found.name.clone());
            shards.push(TargetShard {
                source: shard.pchannel.clone(),
                to: encode::Shard {
                    collection: found.id,
                    vchannel,
                    database,
                    name,
                },
                lane: self.ctx.hub.lane(pchannel),
                floor: self.ctx.hub.of_others(pchannel),
            });
        }
        let Some(primary_key) = source.primary_key() else {
            return Err(Obstacle::Failed(Problem::new(
                ErrorClass::Transient,
                "its fields are not there yet",
                "",
            )));
        };
        let route = Arc::new(Route {
            source: source.id,
            primary_key,
            has_partition_key: source.has_partition_key(),
            shards,
            stream: StreamCtl::new(
                source.id,
                self.ctx.wake.clone(),
                self.ctx.meter.sent.clone(),
            ),
            partitions: RwLock::default(),
        });
        self.refresh_partitions(&route, source)
            .await
            .map_err(Obstacle::Failed)?;
        self.routes.write().insert(source.id, route.clone());
        Ok(route)
    }

    /// The target's collection of a name, with a channel for each of the source's shards.
    async fn described(
        &self,
        source: &Collection,
        database: &str,
        name: &str,
    ) -> Result<Option<TargetCollection>, Obstacle> {
        let hub = &self.ctx.hub;
        let found = hub.target.describe(database, name).await;
        let found = found.map_err(|e| Obstacle::Failed(e.problem()))?;
        if hub.mode == Mode::Plain && found.as_ref().is_some_and(|f| f.id == source.id) {
            return Err(Obstacle::Conflict(the_source_itself(&hub.key)));
        }
        Ok(found.map(|f| f.with_channels(hub.mode, source.shards.len())))
    }
}

/// Ids of collections are unique: who has one of the same id and name is the source.
pub(crate) fn the_source_itself(target: &TargetKey) -> Problem {
    Problem::new(
        ErrorClass::Configuration,
        format!("{target} is the source itself"),
        "choose another target: what is written there would be read again",
    )
}

/// What a person has to know of something on the target that is in the way.
fn on_target(
    source: &Collection,
    database: &str,
    found: &TargetCollection,
    empty: bool,
    alike: bool,
) -> Problem {
    let rows = if empty { "no rows" } else { "rows in it" };
    let what = if alike {
        rows.to_owned()
    } else if found.vchannels.len() != source.shards.len() {
        format!(
            "{} shards ({} on the source) and {rows}",
            found.vchannels.len(),
            source.shards.len()
        )
    } else {
        format!("another schema and {rows}")
    };
    let hint = if alike {
        "choose adopt (go on into it: rows of the same keys are replaced) or recreate (drop it there and copy anew)"
    } else {
        "choose recreate (drop it there and copy anew), or drop it yourself"
    };
    let why = format!(
        "{database}.{} is on the target already, with {what}",
        found.name
    );
    Problem::new(ErrorClass::Conflict, why, hint)
}

/// It is made with its properties.
fn held_from_the_start(source: &Collection) -> HeldProperties {
    let own = source.own_properties().into_iter();
    HeldProperties {
        own: Held {
            keys: own.map(|(key, _)| key).collect(),
            calling: false,
        },
        indexes: Default::default(),
    }
}

/// Whether rows of one fit the other: fields by id, name, type and parameters. In plain mode field ids are the target's
/// own, and it is given the keys that the source made.
fn same_schema(source: &Collection, found: &TargetCollection, mode: Mode) -> bool {
    let plain = mode == Mode::Plain;
    let wanted = user_schema(source);
    let sorted = |f: &FieldSchema| {
        let mut params: Vec<_> = f
            .type_params
            .iter()
            .map(|p| (p.key.clone(), p.value.clone()))
            .collect();
        params.sort();
        params
    };
    let same = |a: &FieldSchema, b: &FieldSchema| {
        (plain || a.field_id == b.field_id)
            && a.name == b.name
            && a.data_type == b.data_type
            && a.element_type == b.element_type
            && a.is_primary_key == b.is_primary_key
            && a.is_partition_key == b.is_partition_key
            && (plain && !b.auto_id || a.auto_id == b.auto_id)
            && sorted(a) == sorted(b)
    };
    let mut fields: Vec<_> = found
        .schema
        .fields
        .iter()
        .filter(|f| !f.is_dynamic && (plain || f.field_id >= 100))
        .collect();
    if !plain {
        fields.sort_by_key(|f| f.field_id);
    }
    wanted.enable_dynamic_field == found.schema.enable_dynamic_field
        && wanted.fields.len() == fields.len()
        && wanted.fields.iter().zip(fields).all(|(a, b)| same(a, b))
}
