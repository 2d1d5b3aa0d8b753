//! Partitions that come, go and come again.

use anyhow::Result;
use futures::future::try_join_all;
use rand::rngs::StdRng;

use crate::harness::tests;
use crate::lab::{DB, Lab};
use crate::plain::Plain;

tests![Test:
    create_and_drop_partition,
    a_partition_comes_again_without_rows,
    twenty_partitions_at_once,
];

async fn create_and_drop_partition(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    // Not loaded: a loaded partition cannot be dropped.
    let mut c = Plain::bare(&lab.from, DB, "parted", 2).await?;
    c.index(&lab.from).await?;
    for p in ["p", "q"] {
        lab.from.create_partition(DB, c.name(), p).await?;
        c.insert(&lab.from, p, 30, random).await?;
    }
    c.insert(&lab.from, "", 30, random).await?;
    lab.equal_objects().await?;
    lab.from.drop_partition(DB, c.name(), "p").await?;
    lab.equal_rows(60).await?;
    lab.from.release(DB, c.name()).await?;
    lab.from.drop_partition(DB, c.name(), "q").await?;
    lab.equal_rows(30).await
}

/// The new one is another partition: it has none of the old one's rows.
async fn a_partition_comes_again_without_rows(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::bare(&lab.from, DB, "again", 2).await?;
    c.index(&lab.from).await?;
    let from = lab.from.clone();
    for p in ["empty", "full"] {
        from.create_partition(DB, c.name(), p).await?;
    }
    c.insert(&from, "full", 30, random).await?;
    for p in ["empty", "full"] {
        from.drop_partition(DB, c.name(), p).await?;
        from.create_partition(DB, c.name(), p).await?;
    }
    lab.equal_rows(0).await?;
    // Again, with milvus-cdc up to date when each step comes.
    from.release(DB, c.name()).await?;
    for p in ["empty", "full"] {
        from.drop_partition(DB, c.name(), p).await?;
        lab.equal_objects().await?;
        from.create_partition(DB, c.name(), p).await?;
        lab.equal_objects().await?;
    }
    c.insert(&from, "empty", 5, random).await?;
    lab.equal_rows(5).await
}

async fn twenty_partitions_at_once(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let mut c = Plain::bare(&lab.from, DB, "twenty", 2).await?;
    c.index(&lab.from).await?;
    let names: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();
    let from = &lab.from;
    let create = names.iter().map(|p| from.create_partition(DB, "twenty", p));
    try_join_all(create).await?;
    for p in &names {
        c.insert(&lab.from, p, 3, random).await?;
    }
    lab.equal_objects().await?;
    let drop = names[..15]
        .iter()
        .map(|p| from.drop_partition(DB, "twenty", p));
    try_join_all(drop).await?;
    lab.equal_rows(15).await
}
