//! What a standby has after it was killed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::scene::{DB, Scene, ensure, fresh, until};
use super::{Broken, Outcome, Standby};

pub(super) async fn repeat_lost_on_recovery(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "repeat_lost_on_recovery", 1).await?;
    let id = fresh();
    for key in [1, 2] {
        let ts = scene.ts().await?;
        scene
            .send(0, vec![scene.rows(0, &[key], ts).id(id).insert()])
            .await?;
        scene.tick(0, ts).await?;
    }
    scene.put(3).await?;
    scene.tick_all().await?;
    scene.sees("one id behind a tick", &[1, 2, 3]).await?;
    standby.restart().await?;
    scene.wait_loaded().await?;
    scene.sees("after a restart", &[1, 3]).await
}

pub(super) async fn flushed_stays(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "flushed_stays", 1).await?;
    let target = scene.target.clone();
    let name = scene.name();
    scene.put(1).await?;
    let t2 = scene.put(2).await?;
    scene.tick(0, t2).await?;
    scene.sees("rows", &[1, 2]).await?;
    let is_flushed = async |up_to| target.is_flushed(DB, name, up_to).await;
    ensure(!is_flushed(t2).await?, || {
        "flushed before a flush".to_owned()
    })?;
    let t3 = scene.ts().await?;
    let delete = scene.rows(0, &[1], t3).delete();
    scene.send(0, vec![delete]).await?;
    scene.tick(0, t3).await?;
    scene.sees("a delete", &[2]).await?;
    target.flush(DB, &[name.to_owned()]).await?;
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        ensure(!is_flushed(t3).await?, || {
            "flushed without a tick behind".to_owned()
        })?;
        sleep(Duration::from_millis(100)).await;
    }
    until("it is flushed", async || {
        scene.tick_all().await?;
        ensure(is_flushed(t3).await?, || "not flushed".to_owned())
    })
    .await?;
    let t4 = scene.put(3).await?;
    scene.tick(0, t4).await?;
    scene.sees("a row behind the flush", &[2, 3]).await?;
    ensure(!is_flushed(t4).await?, || {
        "flushed with what was before".to_owned()
    })?;
    standby.restart().await?;
    scene.wait_loaded().await?;
    until("what is flushed is there", async || {
        scene.tick_all().await?;
        let seen = standby.read(name).await?;
        // The row that is not flushed may be there, or lost.
        let mut rows = seen.rows.clone();
        rows.retain(|(key, _)| *key != 3);
        let copies = seen.count - (seen.rows.len() - rows.len());
        ensure(rows == [(2, 1)] && copies == 1, || format!("{seen:?}"))
    })
    .await
}

pub(super) async fn nodes_tell_restarts(standby: &dyn Standby) -> Outcome {
    let target = standby.target();
    let nodes = async || {
        let nodes = target.nodes().await?;
        nodes.ok_or_else(|| Broken("it does not tell".to_owned()))
    };
    let mut before = nodes().await?;
    until("all its nodes are there", async || {
        before = nodes().await?;
        ensure(before.len() == 2, || format!("{before:?}"))
    })
    .await?;
    let again = nodes().await?;
    ensure(before == again, || format!("{again:?} after {before:?}"))?;
    standby.restart().await?;
    until("its nodes are others", async || {
        let after = nodes().await?;
        ensure(after.len() == 2 && after.is_disjoint(&before), || {
            format!("{after:?} after {before:?}")
        })
    })
    .await
}
