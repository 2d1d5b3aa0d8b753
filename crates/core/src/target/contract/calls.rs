//! What ReplicateMessage takes, refuses, and carries out in part or late.

use std::time::Duration;

use tokio::time::sleep;

use super::messages::{self, tick};
use super::scene::{Scene, ensure, fresh, refused};
use super::{Broken, Outcome, Standby};
use crate::ids::{CollectionId, PChannel, PartitionId, VChannel};
use crate::target::TargetError;
use crate::tso::Tso;

/// What a call must be smaller than.
const MAX_REQUEST: usize = 64 << 20;

pub(super) async fn empty_refused(standby: &dyn Standby) -> Outcome {
    let scene = Scene::bare(standby, "empty_refused", 1).await?;
    let target = &scene.target;
    let end = scene.ts().await?;
    let nameless = PChannel::new("");
    let answer = target
        .replicate(&nameless, vec![tick(end, fresh()).into()], end, end)
        .await;
    refused("without a name", answer, "(code 1100)")?;
    let answer = target.replicate(&nameless, Vec::new(), Tso::ZERO, Tso::ZERO);
    refused("without anything", answer.await, "(code 1100)")?;
    let answer = scene.try_send(0, Vec::new()).await;
    refused("without entries", answer, "empty msgs (code 65535)")?;
    Ok(target.probe().await?)
}

pub(super) async fn too_large_refused(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "too_large_refused", 1).await?;
    let large = |key, ts| scene.rows(0, &[key], ts).ballast(MAX_REQUEST / 8).insert();
    let ts = scene.ts().await?;
    let too_large = (0..8).map(|key| large(key, ts)).collect();
    let answer = scene.try_send(0, too_large).await;
    refused("64 MiB and a little more", answer, "(code 1102)")?;
    scene.put(9).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.sees("nothing of it is written", &[9]).await
}

pub(super) async fn invalid_writes_nothing(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "invalid_writes_nothing", 1).await?;
    let ts = scene.ts().await?;
    for (what, invalid) in messages::invalid(&scene.rows(0, &[1], ts)) {
        let valid = |key| scene.rows(0, &[key], ts).insert();
        let answer = scene.try_send(0, vec![valid(1), invalid, valid(2)]).await;
        refused(what, answer, "")?;
    }
    scene.put(3).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.still("nothing of them is written", &[3]).await
}

pub(super) async fn partly_written(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "partly_written", 1).await?;
    let channel = scene.channel(0);
    let ts = scene.ts().await?;
    let row = |key, ts| vec![scene.rows(0, &[key], ts).insert()];
    standby
        .cut_short(&channel, row(1, ts), row(2, ts), scene.ts().await?)
        .await?;
    scene.put(3).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.still("the first is written", &[1, 3]).await?;
    // Whoever does not know sends the whole call once more, before a tick.
    let ts = scene.ts().await?;
    let (first, rest) = (row(4, ts), row(5, ts));
    standby
        .cut_short(&channel, first.clone(), rest.clone(), scene.ts().await?)
        .await?;
    scene.send(0, [first, rest].concat()).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.still("sent once more", &[1, 3, 4, 5]).await
}

pub(super) async fn late_call(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "late_call", 1).await?;
    let ts = scene.ts().await?;
    let row = scene.rows(0, &[1], ts).insert();
    let end = scene.ts().await?;
    let within = standby
        .send_and_die(&scene.channel(0), vec![row], end)
        .await?;
    sleep(within).await;
    scene.put(2).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.still("its sender is dead", &[1, 2]).await
}

pub(super) async fn unknown_shard_kills(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "unknown_shard_kills", 1).await?;
    let ts = scene.ts().await?;
    // As the source calls its own.
    let shard = VChannel::new(format!("source-dml_0_{}v0", scene.source.id));
    let row = scene.rows(0, &[1], ts).vchannel(shard).insert();
    match scene.try_send(0, vec![row]).await {
        // It may be dead before it has answered.
        Ok(()) | Err(TargetError::Unknown { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let dies = async {
        let dies = standby.dies().await;
        ensure(dies, || "it lives on".to_owned())
    };
    let ticks = async {
        // Whatever the answers are: it is about to die.
        loop {
            let _ = scene.tick_all().await;
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        outcome = dies => outcome,
        () = ticks => Ok(()),
    }
}

pub(super) async fn unknown_place_lost(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "unknown_place_lost", 1).await?;
    let ts = scene.ts().await?;
    let nowhere = PChannel::new(format!("{}0", scene.channel(0)));
    let row = scene.rows(0, &[1], ts).insert();
    let target = &scene.target;
    target.replicate(&nowhere, vec![row.into()], ts, ts).await?;
    let elsewhere = scene
        .rows(0, &[2], ts)
        .partition(PartitionId(4711))
        .insert();
    scene.send(0, vec![elsewhere]).await?;
    scene.put(3).await?;
    scene.tick(0, scene.ts().await?).await?;
    scene
        .still("a channel and a partition of nobody's", &[3])
        .await?;
    scene.release().await?;
    scene.load().await?;
    scene.still("and once more", &[3]).await
}

pub(super) async fn segment_by_clock(standby: &dyn Standby) -> Outcome {
    let scene = Scene::loaded(standby, "segment_by_clock", 1).await?;
    let channel = scene.channel(0);
    let nobody = scene
        .rows(0, &[1], scene.ts().await?)
        .collection(CollectionId(4711));
    let no_segment = "getSegmentID failed";
    let answer = scene.try_send(0, vec![nobody.insert()]).await;
    refused("for a collection that is not there", answer, no_segment)?;
    let ahead = async |key, by| {
        let now = scene.ts().await?;
        let end = now.plus(Duration::from_millis(by));
        let row = scene.rows(0, &[key], now).insert();
        Ok::<_, Broken>(
            scene
                .target
                .replicate(&channel, vec![row.into()], end, end)
                .await,
        )
    };
    refused("4 s ahead", ahead(1, 4_000).await?, no_segment)?;
    ahead(2, 1_000).await??;
    // A time that is long past is no reason.
    let now = scene.ts().await?;
    let row = scene.rows(0, &[3], now).insert();
    let target = &scene.target;
    target
        .replicate(&channel, vec![row.into()], now, now)
        .await?;
    scene.tick(0, scene.ts().await?).await?;
    scene.still("one second ahead, and now", &[2, 3]).await
}
