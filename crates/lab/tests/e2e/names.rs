//! Names that change on the source, aliases, and properties.

use anyhow::Result;
use rand::rngs::StdRng;

use crate::harness::tests;
use crate::lab::{DB, Lab};
use crate::plain::Plain;

tests![Test: names_change];

async fn names_change(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    from.create_database("shop").await?;
    let mut one = Plain::create(&from, "one", 2).await?;
    let mut two = Plain::create(&from, "two", 1).await?;
    one.insert(&from, "", 40, random).await?;
    two.insert(&from, "", 20, random).await?;
    from.create_alias(DB, "now", "one").await?;
    lab.equal_rows(60).await?;
    // A 2.3.5 writes what was altered to its metadata with the next change only.
    let properties = [("collection.ttl.seconds", "86400")];
    from.alter_collection(DB, "one", &properties).await?;

    // They swap their names, rows going on; the alias moves.
    from.rename_collection(DB, "one", (DB, "between")).await?;
    from.rename_collection(DB, "two", (DB, "one")).await?;
    two.is_named(DB, "one");
    two.insert(&from, "", 10, random).await?;
    from.rename_collection(DB, "between", (DB, "two")).await?;
    one.is_named(DB, "two");
    one.upsert(&from, 10, 0, random).await?;
    from.alter_alias(DB, "now", "one").await?;
    lab.equal_rows(70).await?;

    // Into another database and back under a third name; a new one of the old name; killed meanwhile.
    from.drop_alias(DB, "now").await?;
    from.rename_collection(DB, "one", ("shop", "one")).await?;
    two.is_named("shop", "one");
    let mut new = Plain::create(&from, "one", 3).await?;
    new.insert(&from, "", 15, random).await?;
    lab.kill().await?;
    two.delete(&from, 5, random).await?;
    from.rename_collection("shop", "one", (DB, "third")).await?;
    two.is_named(DB, "third");
    // What was an alias is a collection, and the other way round.
    from.rename_collection(DB, "two", (DB, "now")).await?;
    one.is_named(DB, "now");
    from.create_alias(DB, "two", "now").await?;
    one.insert(&from, "", 5, random).await?;
    lab.equal_rows(85).await?;
    // With its alias.
    from.drop_collection(DB, "now").await?;
    lab.equal_rows(40).await
}
