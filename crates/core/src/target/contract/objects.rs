//! What creations, drops and loads do.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::messages::{drop_collection, drop_partition, tick};
use super::scene::{DB, Scene, ensure, fresh, index, refused, source, until};
use super::{Broken, Outcome, Standby};
use crate::select::Name;
use crate::target::Loaded;
use crate::tso::Tso;

pub(super) async fn created_by_clock(standby: &dyn Standby) -> Outcome {
    let target = standby.target();
    let source = source(&format!("created_by_clock_{}", fresh()), 1, 1);
    let name = source.name.as_str();
    let created = target.now().await?.plus(Duration::from_secs(3));
    target.create_collection(DB, &source, created).await?;
    let there = target.describe(DB, name).await?;
    ensure(there.is_some(), || "not to be found".to_owned())?;
    let ahead = async || {
        let partition = target.create_partition(DB, name, "p", created).await;
        Ok::<_, Broken>((partition, target.now().await?))
    };
    let (partition, now) = ahead().await?;
    ensure(now < created, || {
        "the machine is too slow for this".to_owned()
    })?;
    ensure(partition.as_ref().is_err_and(|e| e.is_not_found()), || {
        format!("a partition before the time of the collection: {partition:?}")
    })?;
    until("it can have a partition", async || {
        let (partition, now) = ahead().await?;
        ensure(partition.is_ok() && now >= created, || {
            format!("{partition:?} at {now}, created at {created}")
        })
    })
    .await
}

pub(super) async fn load_needs_ticks(standby: &dyn Standby) -> Outcome {
    let ticked = Scene::bare(standby, "load_needs_ticks", 2).await?;
    let target = ticked.target.clone();
    let state = async |scene: &Scene<'_>| target.loaded(DB, scene.name(), &[]).await;
    let load = async |scene: &Scene<'_>| {
        target.create_index(DB, scene.name(), &index()).await?;
        let before = state(scene).await?;
        ensure(before == Loaded::No, || format!("{before:?} before"))?;
        Ok::<_, Broken>(target.load(DB, scene.name(), &[], 1).await?)
    };
    // Not later: it would wait for those that wait.
    ticked.tick_all().await?;
    load(&ticked).await?;
    until(
        "a tick on each channel before the load is enough",
        async || {
            let loaded = state(&ticked).await?;
            ensure(loaded == Loaded::Yes, || format!("{loaded:?}"))
        },
    )
    .await?;

    let scene = Scene::bare(standby, "load_needs_ticks", 2).await?;
    load(&scene).await?;
    let not_yet = async |what: &str, shards: &[usize]| {
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            for shard in shards {
                scene.tick(*shard, scene.ts().await?).await?;
            }
            let loaded = state(&scene).await?;
            ensure(loaded == Loaded::Loading, || format!("{what}: {loaded:?}"))?;
            sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, Broken>(())
    };
    not_yet("without ticks", &[]).await?;
    not_yet("with ticks on one channel", &[0]).await?;
    scene.tick(1, scene.ts().await?).await?;
    until("a tick on the other one", async || {
        let loaded = state(&scene).await?;
        ensure(loaded == Loaded::Yes, || format!("{loaded:?}"))
    })
    .await?;
    scene.release().await?;
    until("it is released", async || {
        let loaded = state(&scene).await?;
        ensure(loaded == Loaded::No, || format!("{loaded:?}"))
    })
    .await
}

pub(super) async fn growing_unnamed(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "growing_unnamed", 1).await?;
    let target = &scene.target;
    let name = scene.name();
    let holds = async || {
        scene
            .ticking(async { Ok(target.holds_rows(DB, name).await?) })
            .await
    };
    ensure(!holds().await?, || "an empty one holds rows".to_owned())?;
    scene.put(1).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.sees("a row", &[1]).await?;
    let named = standby.names_segments(name).await?;
    ensure(!named, || "a growing segment is named".to_owned())?;
    ensure(holds().await?, || "one with a row holds none".to_owned())?;
    let named = standby.names_segments(name).await?;
    ensure(named, || "a sealed segment is not named".to_owned())?;
    let ts = scene.ts().await?;
    scene
        .send(0, vec![scene.rows(0, &[1], ts).delete()])
        .await?;
    scene.tick(0, ts).await?;
    scene.sees("a delete", &[]).await?;
    ensure(holds().await?, || {
        "the segment of deleted rows does not count".to_owned()
    })
}

pub(super) async fn drop_message_hides_nothing(standby: &dyn Standby) -> Outcome {
    let mut scene = Scene::bare(standby, "drop_message_hides_nothing", 2).await?;
    let partition = scene.partition("p").await?;
    scene.load().await?;
    let t1 = scene.ts().await?;
    let in_partition = |shard, key| scene.rows(shard, &[key], t1).partition(partition).insert();
    let row = |shard, key| scene.rows(shard, &[key], t1).insert();
    scene.send(0, vec![in_partition(0, 1), row(0, 2)]).await?;
    scene.send(1, vec![in_partition(1, 3), row(1, 4)]).await?;
    scene.tick_all().await?;
    scene.sees("rows", &[1, 2, 3, 4]).await?;
    let t2 = scene.ts().await?;
    let mut place = scene.place(0);
    place.partition = partition;
    let drop = drop_partition(&place, "p", fresh(), t2);
    scene.send(0, vec![drop]).await?;
    scene.tick_all().await?;
    scene.still("a partition's drop", &[1, 2, 3, 4]).await?;
    scene.release().await?;
    scene.load().await?;
    scene.still("loaded behind it", &[1, 2, 3, 4]).await?;
    let t3 = scene.ts().await?;
    let drop = drop_collection(&scene.place(0), fresh(), t3);
    scene.send(0, vec![drop]).await?;
    scene.tick_all().await?;
    scene.still("the collection's", &[1, 2, 3, 4]).await
}

pub(super) async fn again_is_fine(standby: &dyn Standby) -> Outcome {
    let mut scene = Scene::loaded(standby, "again_is_fine", 1).await?;
    let target = scene.target.clone();
    let name = scene.name().to_owned();
    let name = name.as_str();
    let (ts, database) = (scene.ts().await?, format!("db_{}", fresh()));
    let id = scene.there.id;
    target.create_collection(DB, &scene.source, ts).await?;
    let there = target.describe(DB, name).await?;
    ensure(there.as_ref().is_some_and(|c| c.id == id), || {
        format!("another one: {there:?}")
    })?;
    scene.partition("p").await?;
    target.create_partition(DB, name, "p", ts).await?;
    let answer = target.create_collection(DB, &scene.source, ts).await;
    refused(
        "with another partition",
        answer,
        "with different parameters",
    )?;
    target.create_index(DB, name, &index()).await?;
    target.load(DB, name, &[], 1).await?;
    target.create_database(&database).await?;
    target.create_database(&database).await?;
    let indexes = target.indexes(DB, name).await?;
    ensure(indexes.len() == 1, || format!("{indexes:?}"))?;

    let otherwise = "with different parameters";
    let mut other = source(name, 2, 1);
    let answer = target.create_collection(DB, &other, ts).await;
    refused("other shards", answer, otherwise)?;
    other = source(name, 1, 1);
    other.schema.fields[3].name = "another".to_owned();
    let answer = target.create_collection(DB, &other, ts).await;
    refused("another schema", answer, otherwise)?;
    other = source(&format!("timeless_{}", fresh()), 1, 1);
    let answer = target.create_collection(DB, &other, Tso::ZERO).await;
    refused("without a time", answer, "(code 1100)")?;
    let answer = target.create_collection("nowhere", &other, ts).await;
    refused("in no database", answer, "database:nowhere not found")?;

    target.drop_partition(DB, name, "nothing", ts).await?;
    target.drop_collection(DB, "nothing", ts).await?;
    target.drop_database("nothing").await?;
    target.drop_database(&database).await?;
    target.drop_database(&database).await?;
    let databases = target.databases().await?;
    ensure(!databases.contains(&database), || format!("{databases:?}"))?;
    ensure(target.describe(DB, "nothing").await?.is_none(), || {
        "nothing is there".to_owned()
    })?;
    let mut no_index = index();
    no_index.name = "nothing".to_owned();
    scene.release().await?;
    target.drop_index(DB, name, &no_index).await?;
    target.drop_index(DB, name, &index()).await?;
    target.drop_index(DB, name, &index()).await?;
    let indexes = target.indexes(DB, name).await?;
    ensure(indexes.is_empty(), || format!("{indexes:?}"))
}

pub(super) async fn used_is_kept(standby: &dyn Standby) -> Outcome {
    let mut scene = Scene::bare(standby, "used_is_kept", 1).await?;
    let target = scene.target.clone();
    let name = scene.name().to_owned();
    let answer = target.load(DB, &name, &[], 1).await;
    refused("a load without an index", answer, "(code 700)")?;
    scene.partition("before").await?;
    scene.load().await?;
    scene.partition("after").await?;
    let ts = scene.ts().await?;
    for partition in ["before", "after"] {
        let answer = target.drop_partition(DB, &name, partition, ts).await;
        refused(partition, answer, "partition is loaded")?;
    }
    let answer = target.drop_index(DB, &name, &index()).await;
    refused("the index of a loaded one", answer, "collection is loaded")?;
    scene.release().await?;
    target.drop_partition(DB, &name, "before", ts).await?;
    target.drop_partition(DB, &name, "after", ts).await?;
    target.drop_index(DB, &name, &index()).await?;
    scene.look_for_partitions().await?;
    ensure(scene.partitions.len() == 1, || {
        format!("{:?}", scene.partitions)
    })?;

    let database = format!("db_{}", fresh());
    target.create_database(&database).await?;
    target
        .create_collection(&database, &scene.source, ts)
        .await?;
    let answer = target.drop_database(&database).await;
    refused("a database with a collection", answer, "not empty")?;
    target.drop_collection(&database, &name, ts).await?;
    let left = target.collections(&database).await?;
    ensure(left.is_empty(), || format!("{left:?}"))?;
    target.drop_database(&database).await?;
    let there = target.describe(DB, &name).await?;
    ensure(there.is_some(), || "gone with another database".to_owned())
}

pub(super) async fn name_again_is_new(standby: &dyn Standby) -> Outcome {
    let mut scene = Scene::bare(standby, "name_again_is_new", 1).await?;
    let target = scene.target.clone();
    let old = scene.partition("p").await?;
    scene.load().await?;
    let t1 = scene.ts().await?;
    let in_partition = scene.rows(0, &[1], t1).partition(old).insert();
    let row = scene.rows(0, &[2], t1).insert();
    scene.send(0, vec![in_partition, row]).await?;
    scene.tick_all().await?;
    scene.sees("rows", &[1, 2]).await?;

    // As a partition is dropped: released, its message with a tick, the call.
    let t2 = scene.ts().await?;
    let name = scene.name().to_owned();
    let mut place = scene.place(0);
    place.partition = old;
    let drop = drop_partition(&place, "p", fresh(), t2);
    target.release(DB, &name, &["p".to_owned()]).await?;
    scene.send(0, vec![drop, tick(t2, fresh())]).await?;
    target.drop_partition(DB, &name, "p", t2).await?;
    let new = scene.partition("p").await?;
    ensure(new != old, || format!("{new} once more"))?;
    scene.tick_all().await?;
    scene.still("the partition made again", &[2]).await?;
    let t3 = scene.ts().await?;
    let row = scene.rows(0, &[3], t3).partition(new).insert();
    scene.send(0, vec![row]).await?;
    scene.release().await?;
    scene.load().await?;
    scene.sees("a row in it", &[2, 3]).await?;

    let t4 = scene.ts().await?;
    let drop = drop_collection(&scene.place(0), fresh(), t4);
    scene.send(0, vec![drop, tick(t4, fresh())]).await?;
    target.drop_collection(DB, &name, t4).await?;
    let there = target.describe(DB, &name).await?;
    ensure(there.is_none(), || "a dropped one is there".to_owned())?;
    let late = scene.rows(0, &[4], scene.ts().await?).insert();
    // It may still have a segment.
    if let Err(e) = scene.try_send(0, vec![late]).await {
        refused(
            "a row for a dropped one",
            Err::<(), _>(e),
            "getSegmentID failed",
        )?;
    }
    let again = Scene::create(standby, source(&name, 2, 1)).await?;
    ensure(again.there.id != scene.there.id, || {
        "its id once more".to_owned()
    })?;
    let channels = &again.there.vchannels;
    ensure(!channels.contains(&scene.there.vchannels[0]), || {
        format!("its channel once more: {channels:?}")
    })?;
    again.load().await?;
    again.still("the collection made again", &[]).await?;
    again.put(5).await?;
    again.tick_all().await?;
    again.sees("a row in it", &[5]).await
}

pub(super) async fn keyed_partitions(standby: &dyn Standby) -> Outcome {
    let name = format!("keyed_partitions_{}", fresh());
    let scene = Scene::create(standby, source(&name, 1, 3)).await?;
    let names: Vec<&str> = scene.partitions.keys().map(String::as_str).collect();
    let wanted = ["_default_0", "_default_1", "_default_2"];
    ensure(names == wanted, || format!("{names:?}"))
}

pub(super) async fn renamed_is_the_same(standby: &dyn Standby) -> Outcome {
    let mut scene = Scene::loaded(standby, "renamed_is_the_same", 1).await?;
    let target = scene.target.clone();
    let (id, old) = (scene.there.id, scene.name().to_owned());
    let t1 = scene.ts().await?;
    scene
        .send(0, vec![scene.rows(0, &[1, 2], t1).insert()])
        .await?;
    scene.tick_all().await?;
    scene.sees("rows", &[1, 2]).await?;
    let alias = format!("alias_{}", fresh());
    target.put_alias(DB, &alias, &old, false).await?;

    let taken = Scene::bare(standby, "taken", 1).await?;
    let to_taken = Name::new(DB, taken.name());
    let answer = target.rename_collection(DB, &old, &to_taken).await;
    refused(
        "to the name of another one",
        answer,
        "duplicated new collection name",
    )?;
    let answer = target
        .rename_collection(DB, &old, &Name::new(DB, alias.as_str()))
        .await;
    refused("to an alias", answer, "duplicated new collection name")?;
    let answer = target.put_alias(DB, &alias, taken.name(), false).await;
    refused("the alias made of another one", answer, "(code 1602)")?;
    let answer = target.describe(DB, &alias).await;
    ensure(answer.as_ref().is_err_and(|e| e.is_alias()), || {
        format!("an alias is no name: {answer:?}")
    })?;

    let new = Name::new(DB, format!("renamed_{}", fresh()));
    target.rename_collection(DB, &old, &new).await?;
    let there = target.describe(DB, &old).await?;
    ensure(there.is_none(), || format!("the old name: {there:?}"))?;
    let there = target.describe(DB, &new.name).await?;
    ensure(there.as_ref().is_some_and(|c| c.id == id), || {
        format!("the new name: {there:?}")
    })?;
    let of = target.alias(DB, &alias).await?;
    ensure(of == Some(id), || format!("its alias is that of {of:?}"))?;
    scene.source.name.clone_from(&new.name);
    let t2 = scene.ts().await?;
    scene
        .send(0, vec![scene.rows(0, &[3], t2).insert()])
        .await?;
    scene.tick_all().await?;
    scene.sees("under the new name", &[1, 2, 3]).await?;

    target.put_alias(DB, &alias, taken.name(), true).await?;
    let of = target.alias(DB, &alias).await?;
    ensure(of == Some(taken.there.id), || format!("moved, to {of:?}"))?;
    target.drop_alias(DB, &alias).await?;
    target.drop_alias(DB, &alias).await?;
    let of = target.alias(DB, &alias).await?;
    ensure(of.is_none(), || format!("dropped, and that of {of:?}"))?;

    let database = format!("db_{}", fresh());
    target.create_database(&database).await?;
    let other = Name::new(database, "moved");
    target.rename_collection(DB, &new.name, &other).await?;
    let there = target.describe(&other.database, &other.name).await?;
    ensure(there.is_some_and(|c| c.id == id), || "not moved".to_owned())?;
    let again = target
        .rename_collection(&other.database, &other.name, &new)
        .await;
    Ok(again?)
}
