//! Ticks for a collection that nobody reads yet.
//!
//! A data node of a 2.3.5 begins with a new channel only behind a tick on it, and holds up all other new channels until
//! then (ARCHITECTURE.md). While the rows of a collection are copied, or wait for their turn, no reader brings ticks to its
//! lanes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::objects::Route;
use crate::lane::{EdgeId, Lane};
use crate::target::hub::Hub;
use crate::tso::Tso;

const EVERY: Duration = Duration::from_millis(250);

/// Says the target's own time on the lanes of a collection, as a reader would that has nothing to send, until it is
/// dropped. Other readers of a lane that are not so far hold its time.
pub(super) struct Pulse {
    edges: Vec<(Arc<Lane>, EdgeId)>,
    _beat: AbortOnDropHandle<()>,
}

impl Pulse {
    pub(super) fn start(hub: &Arc<Hub>, route: &Route) -> Self {
        let at = hub.clock();
        let lanes: BTreeMap<&str, &Arc<Lane>> = route
            .shards
            .iter()
            .map(|s| (s.lane.channel().as_str(), &s.lane))
            .collect();
        let edges: Vec<(Arc<Lane>, EdgeId)> = lanes
            .into_values()
            .map(|lane| (lane.clone(), lane.join(at, true, Tso::ZERO)))
            .collect();
        let (beating, hub) = (edges.clone(), hub.clone());
        let beat = tokio::spawn(async move {
            let mut every = tokio::time::interval(EVERY);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                for (lane, edge) in &beating {
                    lane.passed(*edge, hub.clock());
                }
            }
        });
        Self {
            edges,
            _beat: AbortOnDropHandle::new(beat),
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        for (lane, edge) in &self.edges {
            lane.leave(*edge);
        }
    }
}
