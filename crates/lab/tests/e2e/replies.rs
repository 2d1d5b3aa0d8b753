//! Calls of which milvus-cdc does not hear what became of them.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use cdc_lab::proxy::Faults;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{say, tests};
use crate::lab::{Kind, Lab, until};
use crate::plain::Plain;

tests![Test: a_hundred_lost_replies, hanging_replies];

/// Writes rows until the proxy has made `faults.limit` faults, and asserts equality.
async fn under(lab: &mut Lab, random: &mut StdRng, faults: Faults) -> Result<()> {
    let from = lab.from.clone();
    let mut collections = Vec::new();
    for shards in 1..=2 {
        collections.push(Plain::create(&from, &format!("lost{shards}"), shards).await?);
    }
    lab.equal_rows(0).await?;
    let before = lab.proxy.counts().faults();
    let limit = before + faults.limit;
    lab.proxy.set(Faults { limit, ..faults });
    let enough = AtomicBool::new(false);
    let mut of_rows = StdRng::seed_from_u64(random.random());
    let write = async {
        while !enough.load(Ordering::Relaxed) {
            for c in &mut collections {
                c.round(&from, &mut of_rows).await?;
            }
        }
        anyhow::Ok(())
    };
    let wait = async {
        let outcome = until("all faults have happened", async || {
            Ok(lab.proxy.counts().faults() >= limit)
        })
        .await;
        enough.store(true, Ordering::Relaxed);
        outcome
    };
    tokio::try_join!(write, wait)?;
    say(&format!("{:?}", lab.proxy.counts()));
    ensure!(lab.proxy.counts().faults() == limit);
    let keys = collections.iter().map(|c| c.keys.len()).sum();
    lab.equal_rows(keys).await
}

async fn a_hundred_lost_replies(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    // Behind an Insert whose reply is lost nothing is sent before its deadline is over.
    let limit = if lab.kind == Kind::Plain { 8 } else { 100 };
    let faults = Faults {
        lose_reply: 0.3,
        limit,
        ..Faults::default()
    };
    under(lab, random, faults).await
}

async fn hanging_replies(lab: &mut Lab, random: &mut StdRng) -> Result<()> {
    let faults = Faults {
        hang_reply: 0.05,
        limit: 4,
        ..Faults::default()
    };
    under(lab, random, faults).await
}
