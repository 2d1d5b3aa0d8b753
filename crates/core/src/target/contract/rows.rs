//! What becomes of rows, deletes and ticks.

use super::messages::tick;
use super::scene::{Scene, fresh};
use super::{Outcome, Seen, Standby};

pub(super) async fn tick_shows(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "tick_shows", 1).await?;
    let (t1, t2, t3) = (scene.ts().await?, scene.ts().await?, scene.ts().await?);
    let mut of_two_times = scene.rows(0, &[1], t1);
    of_two_times.rows.push((2, t3));
    let between = scene.rows(0, &[3], t2);
    scene
        .send(0, vec![of_two_times.insert(), between.insert()])
        .await?;
    scene.still("rows without a tick", &[]).await?;
    scene.tick(0, t2).await?;
    scene.still("a tick at the time of one row", &[3]).await?;
    scene.tick(0, t3).await?;
    scene.sees("a tick at the last time", &[1, 2, 3]).await?;
    let (t4, t5) = (scene.ts().await?, scene.ts().await?);
    let delete = scene.rows(0, &[3], t5).delete();
    let insert = scene.rows(0, &[4], t4).insert();
    scene.send(0, vec![delete, insert]).await?;
    scene.tick(0, t4).await?;
    scene.still("a tick before a delete", &[1, 2, 3, 4]).await?;
    // Rows may come behind a tick in one call.
    let t6 = scene.ts().await?;
    let row = scene.rows(0, &[5], t6).insert();
    scene.send(0, vec![tick(t5, fresh()), row]).await?;
    scene.still("a tick at a delete", &[1, 2, 4]).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.sees("a tick above all", &[1, 2, 4, 5]).await
}

pub(super) async fn repeat_dropped(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "repeat_dropped", 1).await?;
    let id = fresh();
    let (t1, t2, t3) = (scene.ts().await?, scene.ts().await?, scene.ts().await?);
    let msgs = vec![
        scene.rows(0, &[1], t1).id(id).insert(),
        scene.rows(0, &[2], t2).id(id).insert(),
        scene.rows(0, &[3], t3).insert(),
    ];
    scene.send(0, msgs.clone()).await?;
    // As one whose answer was lost is sent again.
    scene.send(0, msgs).await?;
    scene.tick(0, t3).await?;
    scene
        .still("one id twice, and a call twice", &[1, 3])
        .await?;

    let id = fresh();
    let (t1, t2) = (scene.ts().await?, scene.ts().await?);
    let insert = scene.rows(0, &[4], t1).id(id).insert();
    let delete = scene.rows(0, &[1], t2).id(id).delete();
    scene.send(0, vec![insert, delete]).await?;
    scene.tick(0, t2).await?;
    scene
        .still("a delete with an insert's id", &[1, 3, 4])
        .await?;

    let id = fresh();
    let (t1, t2) = (scene.ts().await?, scene.ts().await?);
    let first = scene.rows(0, &[5], t1).id(id).insert();
    let second = scene.rows(0, &[6], t2).id(id).insert();
    scene.send(0, vec![first]).await?;
    let below = scene.ts().await?;
    scene.send(0, vec![second]).await?;
    scene.tick(0, below).await?;
    scene.still("one tick for both", &[1, 3, 4, 5]).await?;

    let id = fresh();
    let (t1, t2) = (scene.ts().await?, scene.ts().await?);
    let first = scene.rows(0, &[7], t1).id(id).insert();
    let second = scene.rows(0, &[8], t2).id(id).insert();
    scene.send(0, vec![first, second]).await?;
    scene.tick(0, t1).await?;
    scene.tick(0, t2).await?;
    scene
        .sees("a tick between the two", &[1, 3, 4, 5, 7, 8])
        .await
}

pub(super) async fn stale_taken(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "stale_taken", 1).await?;
    let stale = scene.ts().await?;
    scene.put(1).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.sees("a row", &[1]).await?;
    scene
        .send(0, vec![scene.rows(0, &[2], stale).insert()])
        .await?;
    scene.still("one at a time below the tick", &[1]).await?;
    scene.put(3).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.sees("the next tick", &[1, 2, 3]).await?;
    scene.release().await?;
    scene.load().await?;
    scene.sees("loaded behind it", &[1, 2, 3]).await
}

pub(super) async fn stale_tick_ignored(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "stale_tick_ignored", 1).await?;
    let below = scene.ts().await?;
    scene.put(1).await?;
    let last = scene.ts().await?;
    scene.tick(0, last).await?;
    scene.sees("a row", &[1]).await?;
    let t2 = scene.put(2).await?;
    scene.tick(0, below).await?;
    scene.still("a tick below the last", &[1]).await?;
    scene.tick(0, last).await?;
    scene.still("the last once more", &[1]).await?;
    // Nor does it end the stretch in which an id counts once.
    let id = fresh();
    let t3 = scene.ts().await?;
    let row = |key| scene.rows(0, &[key], t3).id(id).insert();
    scene.send(0, vec![row(3)]).await?;
    scene.tick(0, below).await?;
    scene.send(0, vec![row(4)]).await?;
    scene.tick(0, t2).await?;
    scene.sees("a tick above the last", &[1, 2]).await?;
    scene.tick(0, t3).await?;
    scene.still("and one above that", &[1, 2, 3]).await
}

pub(super) async fn delete_kills_older(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "delete_kills_older", 1).await?;
    let (t1, t2, t3) = (scene.ts().await?, scene.ts().await?, scene.ts().await?);
    let insert = |key, ts| scene.rows(0, &[key], ts).insert();
    let delete = |key, ts| scene.rows(0, &[key], ts).delete();
    let msgs = vec![
        // Killed, whichever comes first.
        insert(1, t1),
        delete(1, t2),
        delete(2, t2),
        insert(2, t1),
        // Spared: of the same time.
        insert(3, t2),
        delete(3, t2),
        delete(4, t2),
        insert(4, t2),
        // Spared: younger.
        insert(5, t2),
        delete(5, t1),
        delete(6, t1),
        insert(6, t2),
    ];
    scene.send(0, msgs).await?;
    scene.tick(0, t3).await?;
    scene
        .still("inserts and deletes in one stretch", &[3, 4, 5, 6])
        .await?;
    let t4 = scene.ts().await?;
    scene.send(0, vec![delete(3, t4), delete(9, t4)]).await?;
    scene.tick(0, t4).await?;
    scene
        .still("a delete of what a tick has shown", &[4, 5, 6])
        .await?;
    // A copy of the key behind the delete is another one.
    let t5 = scene.ts().await?;
    scene.send(0, vec![insert(3, t5)]).await?;
    scene.tick(0, t5).await?;
    scene.sees("a key once more", &[3, 4, 5, 6]).await
}

pub(super) async fn delete_kills_in_place(standby: &dyn Standby) -> Outcome {
    let mut scene = Scene::bare(standby, "delete_kills_in_place", 2).await?;
    let partition = scene.partition("p").await?;
    scene.load().await?;
    let t1 = scene.ts().await?;
    let here = scene.rows(0, &[1], t1).insert();
    let in_partition = scene.rows(0, &[1], t1).partition(partition).insert();
    let other_shard = scene.rows(1, &[1], t1).insert();
    scene.send(0, vec![here, in_partition]).await?;
    scene.send(1, vec![other_shard]).await?;
    let copies = |count| Seen {
        count,
        rows: vec![(1, 1)],
    };
    scene.tick_all().await?;
    scene.sees_rows("a key in three places", &copies(3)).await?;
    let t2 = scene.ts().await?;
    let delete = scene.rows(0, &[1], t2).partition(partition).delete();
    scene.send(0, vec![delete]).await?;
    scene.tick_all().await?;
    scene
        .sees_rows("a delete in a partition", &copies(2))
        .await?;
    let t3 = scene.ts().await?;
    let delete = scene.rows(0, &[1], t3).everywhere().delete();
    scene.send(0, vec![delete]).await?;
    scene.tick_all().await?;
    scene.sees_rows("a delete in one shard", &copies(1)).await?;
    let t4 = scene.ts().await?;
    let here = scene.rows(1, &[1], t4).insert();
    let in_partition = scene.rows(1, &[1], t4).partition(partition).insert();
    scene.send(1, vec![here, in_partition]).await?;
    scene.tick_all().await?;
    scene.sees_rows("more copies", &copies(3)).await?;
    let t5 = scene.ts().await?;
    let delete = scene.rows(1, &[1], t5).everywhere().delete();
    scene.send(1, vec![delete]).await?;
    scene.tick_all().await?;
    scene.sees("a delete in all partitions", &[]).await
}

pub(super) async fn copies_count(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "copies_count", 1).await?;
    let (t1, t2) = (scene.ts().await?, scene.ts().await?);
    let msgs = vec![
        scene.rows(0, &[1], t1).insert(),
        scene.rows(0, &[1], t2).version(2).insert(),
        // The same time does not make them one.
        scene.rows(0, &[2], t1).insert(),
        scene.rows(0, &[2], t1).insert(),
    ];
    scene.send(0, msgs).await?;
    scene.tick(0, t2).await?;
    // What a query shows of them is another matter: it may leave out other keys as well.
    scene.counts("two copies of two keys", 4).await
}
