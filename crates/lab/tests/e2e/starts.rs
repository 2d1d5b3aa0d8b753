//! Where a task begins with a collection that is there already.

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use serde_json::json;

use crate::harness::tests;
use crate::lab::{Lab, until};
use crate::plain::Plain;
use crate::tasks::{count, some};

tests![Test: now_created_and_earliest];

async fn now_created_and_earliest(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let from = lab.from.clone();
    let starts = [
        (Some("now"), 10),
        (Some("created"), 60),
        (Some("earliest"), 60),
        (None, 60),
    ];
    let mut all = Vec::new();
    for (start, _) in starts {
        let mut c = Plain::create(&from, start.unwrap_or("not_said"), 2).await?;
        c.insert(&from, "", 50, random).await?;
        all.push(c);
    }
    for ((start, _), c) in starts.iter().zip(&all) {
        let mut data = some(lab, &[c.name()]);
        if let Some(start) = start {
            data["start"] = json!(start);
        }
        let task = lab.cdc.create(data).await?;
        lab.wait_state(&task, c.name(), "Streaming").await?;
    }
    lab.equal_objects().await?;
    for ((_, wanted), c) in starts.iter().zip(&mut all) {
        c.insert(&from, "", 10, random).await?;
        let mut last = 0;
        let there = until("the rows are there", async || {
            last = count(&lab.to, c.name()).await.unwrap_or_default();
            Ok(last == *wanted)
        })
        .await;
        ensure!(
            there.is_ok(),
            "{}: {wanted} rows expected, {last} found",
            c.name()
        );
    }
    Ok(())
}
