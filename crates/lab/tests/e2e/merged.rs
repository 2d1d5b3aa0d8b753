//! Two sources, each with a milvus-cdc of its own, into one target that is a Milvus of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use cdc_lab::cdc::Cdc;
use cdc_lab::client::Client;
use cdc_lab::servers::{Milvus, Mq, Spec};
use cdc_verify::objects::Likeness;
use cdc_verify::select::Selection;
use cdc_verify::{Again, verify};
use milvus::proto::common::ConsistencyLevel;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::harness::{say, tests};
use crate::kills::{some_rounds, write};
use crate::lab::{PATIENCE, folder, progress, until};
use crate::plain::Plain;

tests![Alone: two_sources_into_one_target];

/// One of the sources: its database and collections are its own, under names that both have.
struct Side {
    database: &'static str,
    client: Client,
    cdc: Cdc,
    all: Vec<Plain>,
}

/// Rows, kills of either milvus-cdc, and a collection that comes and goes, on both sides at once.
async fn two_sources_into_one_target(random: &mut StdRng) -> Result<()> {
    let (dir, progress) = (folder()?, progress());
    let source = |name: &str| Spec::source(name, Mq::Natsmq, dir.join(name));
    let (west, east, target) = tokio::try_join!(
        Milvus::start(source("west"), &progress),
        Milvus::start(source("east"), &progress),
        Milvus::start(Spec::plain("target", dir.join("target")), &progress),
    )?;
    let to = Client::connect("target", &target.uri()).await?;
    let mut sides = Vec::new();
    for (database, server) in [("west", &west), ("east", &east)] {
        let client = Client::connect(database, &server.uri()).await?;
        let cdc = Cdc::start(server, dir.join(format!("cdc-{database}")), &progress).await?;
        client.create_database(database).await?;
        let mut all = Vec::new();
        for (name, shards) in [("a", 1), ("b", 2)] {
            let c = Plain::bare(&client, database, name, shards).await?;
            c.index(&client).await?;
            c.load(&client).await?;
            all.push(c);
        }
        let task = json!({
            "id": database,
            "target": {"uri": target.uri()},
            "collections": [{"include": format!("{database}.*")}],
            "initial": "snapshot",
        });
        all[0].insert(&client, "", 500, random).await?;
        let (status, made) = cdc.rest("/api/v1/tasks", Some(&task)).await?;
        ensure!(status == 201 && made["mode"] == "plain", "{status} {made}");
        sides.push(Side {
            database,
            client,
            cdc,
            all,
        });
    }
    let [one, two] = &mut sides[..] else {
        anyhow::bail!("two sides");
    };
    let seeds: [u64; 2] = [random.random(), random.random()];
    let enough = AtomicBool::new(false);
    let rounds = [AtomicU64::new(0), AtomicU64::new(0)];
    let mut of_rows = seeds.map(StdRng::seed_from_u64);
    let [first, second] = &mut of_rows;
    let kills = async {
        for kill in 0..6 {
            let (side, rounds) = match kill % 2 {
                0 => (&mut one.cdc, &rounds[0]),
                _ => (&mut two.cdc, &rounds[1]),
            };
            some_rounds(rounds, random).await?;
            say(&format!("kill -9 of the {kill}. process"));
            side.kill9().await?;
            side.restart(&progress).await?;
        }
        enough.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (from_one, from_two) = (one.client.clone(), two.client.clone());
    let comes_and_goes = async {
        let mut random = StdRng::seed_from_u64(seeds[0] ^ seeds[1]);
        while !enough.load(Ordering::Relaxed) {
            for (client, database) in [(&from_one, "west"), (&from_two, "east")] {
                let mut c = Plain::bare(client, database, "again", 1).await?;
                c.insert(client, "", 20, &mut random).await?;
                client.drop_collection(database, "again").await?;
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(
        write(&from_one, &mut one.all, first, &rounds[0], &enough),
        write(&from_two, &mut two.all, second, &rounds[1], &enough),
        comes_and_goes,
        kills,
    )?;
    for side in &sides {
        // The other source's database is no concern of this one.
        let selection = Selection::parse([format!("{}.*", side.database).as_str()]);
        let options = cdc_verify::Options {
            again: Again::For(PATIENCE),
            selection: selection.map_err(anyhow::Error::msg)?,
            likeness: Likeness::Plain,
            ..cdc_verify::Options::default()
        };
        let report = verify(&side.client, &to, &options).await?;
        say(&report.to_string());
        ensure!(report.is_equal(), "{}:\n{report}", side.database);
        ensure!(report.rows() > 500, "{report}");
    }
    until("each database has its two collections", async || {
        for side in &sides {
            let mut names = to.collections(side.database).await?;
            names.sort();
            if names != ["a", "b"] {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    for side in &sides {
        for c in &side.all {
            let level = ConsistencyLevel::Strong;
            let count = to.count(side.database, c.name(), &[], level).await;
            let count = count.context("the target's count")?;
            ensure!(
                count == c.keys.len() as u64,
                "{}.{}: {count} rows, {} keys",
                side.database,
                c.name(),
                c.keys.len()
            );
        }
    }
    for mut side in sides {
        side.cdc.kill9().await?;
    }
    drop((west, east, target));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
