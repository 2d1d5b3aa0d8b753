//! Collections, indexes, load states.

use anyhow::{Context, Result};
use milvus::proto::common::LoadState;
use rand::rngs::StdRng;

use crate::harness::tests;
use crate::lab::{DB, Lab, PATIENCE};
use crate::plain::Plain;

tests![Test:
    create_and_drop_collection,
    create_and_drop_index,
    load,
    release,
    load_and_release_partitions,
];

async fn create_and_drop_collection(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    for shards in 1..=4 {
        let name = format!("made{shards}");
        Plain::bare(&lab.from, DB, &name, shards).await?;
    }
    lab.equal_objects().await?;
    // Empty, with rows, and the last one that is left.
    lab.from.drop_collection(DB, "made1").await?;
    let mut c = Plain::create(&lab.from, "full", 2).await?;
    c.insert(&lab.from, "", 50, random).await?;
    lab.equal_rows(50).await?;
    lab.from.drop_collection(DB, "full").await?;
    lab.equal_objects().await?;
    for name in ["made2", "made3", "made4"] {
        lab.from.drop_collection(DB, name).await?;
    }
    lab.equal_objects().await?;
    // Under a name that was there before.
    let mut c = Plain::create(&lab.from, "full", 3).await?;
    c.insert(&lab.from, "", 7, random).await?;
    lab.equal_rows(7).await
}

/// Without parameters the source chooses: the target has to have the same.
async fn create_and_drop_index(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::bare(&lab.from, DB, "indexed", 2).await?;
    c.insert(&lab.from, "", 30, random).await?;
    let from = lab.from.clone();
    from.create_index(DB, c.name(), "vec", "auto", &[]).await?;
    lab.equal_objects().await?;
    from.create_index(DB, c.name(), "a", "", &[]).await?;
    lab.equal_objects().await?;
    let indexes = from.indexes(DB, c.name()).await?;
    let by_a = indexes.iter().find(|i| i.field_name == "a");
    let by_a = by_a.context("it was just made")?.index_name.clone();
    from.drop_index(DB, c.name(), "a", &by_a).await?;
    lab.equal_objects().await?;
    from.drop_index(DB, c.name(), "vec", "auto").await?;
    lab.equal_objects().await?;
    // Another one on the same field, and a drop that needs a release.
    c.index(&from).await?;
    from.create_index(DB, c.name(), "a", "by_a", &[]).await?;
    c.load(&from).await?;
    lab.equal_rows(30).await?;
    from.release(DB, c.name()).await?;
    from.drop_index(DB, c.name(), "vec", "by_vec").await?;
    lab.equal_objects().await.map(drop)
}

async fn load(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::bare(&lab.from, DB, "loaded", 2).await?;
    c.index(&lab.from).await?;
    c.insert(&lab.from, "", 40, random).await?;
    lab.equal_objects().await?;
    c.load(&lab.from).await?;
    lab.equal_objects().await?;
    c.insert(&lab.from, "", 40, random).await?;
    lab.equal_rows(80).await
}

async fn release(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::create(&lab.from, "released", 2).await?;
    c.insert(&lab.from, "", 40, random).await?;
    lab.equal_rows(40).await?;
    lab.from.release(DB, c.name()).await?;
    lab.equal_objects().await?;
    // Rows go on into a collection that nobody can read.
    c.insert(&lab.from, "", 40, random).await?;
    c.delete(&lab.from, 10, random).await?;
    lab.equal_objects().await?;
    c.load(&lab.from).await?;
    lab.equal_rows(70).await
}

/// Of all the operations the one that 2.3.5 does not tell its replication channel of.
async fn load_and_release_partitions(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::bare(&lab.from, DB, "in_part", 2).await?;
    c.index(&lab.from).await?;
    for p in ["p", "q", "r"] {
        lab.from.create_partition(DB, c.name(), p).await?;
        c.insert(&lab.from, p, 20, random).await?;
    }
    let from = &lab.from;
    let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    from.load_partitions(DB, c.name(), &names(&["p", "q"]))
        .await?;
    from.wait_loaded(DB, c.name(), &names(&["p", "q"]), PATIENCE)
        .await?;
    lab.equal_objects().await?;
    from.release_partitions(DB, c.name(), &names(&["q"]))
        .await?;
    lab.equal_objects().await?;
    from.load_partitions(DB, c.name(), &names(&["r"])).await?;
    from.wait_loaded(DB, c.name(), &names(&["r"]), PATIENCE)
        .await?;
    lab.equal_objects().await?;
    let state = lab.to.load_state(DB, c.name(), &names(&["q"])).await?;
    anyhow::ensure!(state != LoadState::Loaded, "q is {state:?} on the target");
    from.release_partitions(DB, c.name(), &names(&["p", "r"]))
        .await?;
    lab.equal_objects().await?;
    c.insert(&lab.from, "q", 20, random).await?;
    c.load(&lab.from).await?;
    lab.equal_rows(80).await
}
