//! What a task still needs of the source's queue.

use std::collections::BTreeMap;

use super::TaskProgress;
use crate::ids::{CollectionId, PChannel};
use crate::pipeline::durable::Durable;
use crate::tso::Tso;

/// Source timestamps of the oldest messages on a channel that are still needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// To go on.
    pub applied: Tso,
    /// If the target restarts; never above `applied`. `None` if nothing is known to be flushed.
    pub durable: Option<Tso>,
}

impl TaskProgress {
    /// By channel. One of which nothing is read yet is left out, unless a collection begins on it.
    pub fn needs(&self) -> BTreeMap<PChannel, Need> {
        let created = |id: CollectionId| self.collections.get(&id).map(|o| o.created);
        let shared = self.channels.iter().map(|(ch, p)| (ch, p.applied));
        let own = self.detached.iter();
        let own = own.map(|((ch, id), p)| (ch, p.applied.max(created(*id).unwrap_or_default())));
        let mut needs: BTreeMap<PChannel, Need> = BTreeMap::new();
        for (channel, applied) in shared.chain(own).filter(|(_, ts)| *ts > Tso::ZERO) {
            let fresh = Need {
                applied,
                durable: None,
            };
            let need = needs.entry(channel.clone()).or_insert(fresh);
            need.applied = applied.min(need.applied);
        }
        let durable = Durable::stored(self).map(|durable| durable.oldest(created));
        for (channel, oldest) in durable.into_iter().flatten() {
            if let Some(need) = needs.get_mut(&channel) {
                need.durable = Some(oldest.min(need.applied));
            }
        }
        needs
    }
}
