//! Databases, empty and with collections.

use anyhow::Result;
use rand::rngs::StdRng;

use crate::harness::tests;
use crate::lab::{DB, Lab};
use crate::plain::Plain;

tests![Test: create_and_drop_database];

async fn create_and_drop_database(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    for db in ["empty", "full"] {
        from.create_database(db).await?;
    }
    lab.equal_objects().await?;
    from.drop_database("empty").await?;
    lab.equal_objects().await?;
    // The same name in two databases are two collections.
    let mut rows = 0;
    for db in ["full", DB] {
        let mut c = Plain::bare(&from, db, "twin", 1).await?;
        c.index(&from).await?;
        c.load(&from).await?;
        c.insert(&from, "", if db == DB { 10 } else { 25 }, random)
            .await?;
        rows += c.keys.len();
    }
    lab.equal_rows(rows).await?;
    from.drop_collection("full", "twin").await?;
    from.drop_database("full").await?;
    lab.equal_rows(10).await?;
    // Dropped and created again with nothing in between.
    from.create_database("full").await?;
    Plain::bare(&from, "full", "twin", 2).await?;
    from.drop_collection("full", "twin").await?;
    from.drop_database("full").await?;
    from.create_database("full").await?;
    let mut c = Plain::bare(&from, "full", "twin", 3).await?;
    c.insert(&from, "", 4, random).await?;
    lab.equal_rows(14).await
}
