//! Looks at the ledger and at the processes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::servers::{Cdc, Target};
use crate::proc;

/// One look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Inserts and deletes.
    pub(super) messages: u64,
    pub(super) ticks: u64,
    pub(super) calls: u64,
    /// CPU time of the measured program, the queue's server, the target.
    pub(super) ours: Duration,
    pub(super) broker: Duration,
    pub(super) target: Duration,
}

pub(super) struct Watch<'a> {
    pub(super) target: &'a Target,
    pub(super) cdc: &'a Cdc,
    pub(super) broker: Option<u32>,
}

fn count(ledger: &Value, name: &str) -> u64 {
    ledger["counts"][name].as_u64().unwrap_or_default()
}

/// Inserted and deleted ones.
pub(super) fn rows(ledger: &Value) -> u64 {
    count(ledger, "rows_inserted") + count(ledger, "rows_deleted")
}

impl Watch<'_> {
    pub(super) async fn sample(&self) -> Result<Sample> {
        let ledger = self.target.ledger().await?;
        Ok(Sample {
            at: Instant::now(),
            rows: rows(&ledger),
            bytes: count(&ledger, "bytes"),
            messages: count(&ledger, "inserts") + count(&ledger, "deletes"),
            ticks: count(&ledger, "ticks"),
            calls: count(&ledger, "calls"),
            ours: proc::cpu(self.cdc.pid()?)?,
            broker: self.broker.map_or(Ok(Duration::ZERO), proc::cpu)?,
            target: proc::cpu(self.target.pid())?,
        })
    }

    /// Waits for so many rows, looking every `every`.
    ///
    /// # Errors
    /// No row more within `patience`.
    pub(super) async fn until(
        &self,
        wanted: u64,
        patience: Duration,
        every: Duration,
    ) -> Result<Sample> {
        let mut moved = (0, Instant::now());
        loop {
            let sample = self.sample().await?;
            if sample.rows >= wanted {
                return Ok(sample);
            }
            if sample.rows > moved.0 {
                moved = (sample.rows, sample.at);
            }
            if moved.1.elapsed() > patience {
                bail!(
                    "{} of {wanted} rows, and none more for {patience:?}",
                    sample.rows
                );
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Waits for so many rows or so long, whichever comes first.
    pub(super) async fn until_or(&self, wanted: u64, long: Duration) -> Result<Sample> {
        let end = Instant::now() + long;
        loop {
            let sample = self.sample().await?;
            if sample.rows >= wanted || Instant::now() >= end {
                return Ok(sample);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
