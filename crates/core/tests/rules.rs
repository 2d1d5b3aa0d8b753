//! The rules of a standby, on its in-memory twin; `rules` of the end-to-end tests has them on a real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cdc_core::ids::PChannel;
use cdc_core::secret::Secret;
use cdc_core::target::contract::{Outcome, Rule, Seen, Standby, scenario};
use cdc_core::target::memory::{Key, MemoryTarget, Weather};
use cdc_core::target::{Target, TargetConnector, TargetError};
use cdc_core::task::TargetSpec;
use cdc_core::tso::Tso;

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a restart leaves of what is not flushed.
#[derive(Clone, Copy, Debug)]
enum Restart {
    ReadsAgain,
    Loses,
}

struct Twin {
    memory: MemoryTarget,
    target: Arc<dyn Target>,
    restart: Restart,
}

impl Twin {
    async fn new(without: Option<Rule>, restart: Restart) -> Self {
        let mut memory = MemoryTarget::new(4, Tso::from_millis(1_700_000_000_000), 1);
        if let Some(rule) = without {
            memory = memory.without(rule);
        }
        let spec = TargetSpec {
            uri: "http://memory:1".to_owned(),
            token: Secret::new(""),
            tls: Default::default(),
            connect_timeout: CALL_TIMEOUT,
            call_timeout: CALL_TIMEOUT,
            mode: cdc_core::task::Mode::Replicate,
        };
        Self {
            target: memory.connect(&spec).await.unwrap(),
            memory,
            restart,
        }
    }
}

#[async_trait]
impl Standby for Twin {
    fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    async fn read(&self, name: &str) -> Outcome<Seen> {
        let copies = self.memory.rows("default", name).unwrap_or_default();
        let mut rows: Vec<(i64, i64)> = copies
            .iter()
            .map(|row| match row.key {
                Key::Int(key) => (key, row.version),
                Key::Text(_) => panic!("{row:?}"),
            })
            .collect();
        // Of the copies of a key a query shows the youngest.
        rows.sort_unstable_by(|a, b| b.cmp(a));
        rows.dedup_by_key(|(key, _)| *key);
        rows.reverse();
        Ok(Seen {
            count: copies.len(),
            rows,
        })
    }

    async fn names_segments(&self, name: &str) -> Outcome<bool> {
        Ok(self.memory.names_segments("default", name).unwrap())
    }

    async fn cut_short(
        &self,
        channel: &PChannel,
        first: Vec<Bytes>,
        rest: Vec<Bytes>,
        end: Tso,
    ) -> Outcome<TargetError> {
        self.memory.cut_next(first.len());
        let msgs = [first, rest].concat();
        Ok(self
            .target
            .replicate(
                channel,
                msgs.into_iter().map(Into::into).collect(),
                end,
                end,
            )
            .await
            .unwrap_err())
    }

    async fn send_and_die(
        &self,
        channel: &PChannel,
        msgs: Vec<Bytes>,
        end: Tso,
    ) -> Outcome<Duration> {
        self.memory.set_weather(Weather {
            outlives: 1.0,
            ..Weather::default()
        });
        self.memory.hang();
        let call = self.target.replicate(
            channel,
            msgs.into_iter().map(Into::into).collect(),
            end,
            end,
        );
        let dead = tokio::time::timeout(Duration::from_millis(10), call).await;
        assert!(dead.is_err(), "it was answered");
        self.memory.release();
        Ok(CALL_TIMEOUT)
    }

    async fn restart(&self) -> Outcome {
        match self.restart {
            Restart::ReadsAgain => self.memory.restart(),
            Restart::Loses => self.memory.restart_losing(),
        }
        Ok(())
    }

    async fn dies(&self) -> bool {
        let rule = format!("[{:?}]", Rule::UnknownShardKills);
        self.memory.violations().iter().any(|v| v.contains(&rule))
    }
}

/// On which kinds of restart a rule can be looked at.
fn restarts(rule: Rule) -> &'static [Restart] {
    match rule {
        Rule::FlushedStays => &[Restart::ReadsAgain, Restart::Loses],
        _ => &[Restart::ReadsAgain],
    }
}

#[tokio::test(start_paused = true)]
async fn the_twin_keeps_each_rule() {
    let mut broken = Vec::new();
    for rule in Rule::ALL {
        for restart in restarts(*rule) {
            let twin = Twin::new(None, *restart).await;
            if let Err(e) = scenario(*rule, &twin).await {
                broken.push(format!("{rule:?} ({restart:?}): {e}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A scenario that a twin without its rule passes says nothing.
#[tokio::test(start_paused = true)]
async fn a_twin_without_a_rule_is_noticed() {
    let mut unnoticed = Vec::new();
    for rule in Rule::ALL {
        let mut all = Vec::new();
        for restart in restarts(*rule) {
            let twin = Twin::new(Some(*rule), *restart).await;
            all.push(scenario(*rule, &twin).await);
        }
        match all.iter().find_map(|outcome| outcome.as_ref().err()) {
            Some(e) => println!("without {rule:?}: {e}"),
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
