//! What of a standby's rows would outlive its restart.
//!
//! A flush seals what is written so far; the data node has it on disk once a tick has passed the time of the flush. A
//! restart that loses (a 2.3.5 whose collections share a physical channel) leaves only that.

use super::content::Content;
use super::rules::Rule;
use super::state::State;
use crate::tso::Tso;

/// The rows and deletes that were written before a flush.
#[derive(Clone, Copy)]
struct Sealed {
    copies: usize,
    kills: usize,
    at: Tso,
}

/// The flushes of a collection that are not done, and what is on disk.
#[derive(Default)]
pub(super) struct Flushes {
    asked: Vec<Sealed>,
    copies: usize,
    kills: usize,
}

impl Content {
    fn shown(&self, state: impl Fn(&crate::ids::PChannel) -> Tso) -> Tso {
        let ticks = self.vchannels.iter().map(|v| state(&v.pchannel()));
        ticks.min().unwrap_or_default()
    }
}

impl State {
    pub(super) fn flush(&mut self, database: &str, name: &str) {
        let at = self.clock;
        if let Some(content) = self.find(database, name) {
            let (copies, kills) = content.written();
            content.flushes.asked.push(Sealed { copies, kills, at });
        }
    }

    fn settle(&mut self) {
        let ticks: std::collections::HashMap<_, _> = self.ticks();
        for content in self.collections.values_mut() {
            let shown = content.shown(|p| ticks.get(p).copied().unwrap_or_default());
            let flushes = &mut content.flushes;
            for sealed in flushes.asked.extract_if(.., |s| s.at <= shown) {
                flushes.copies = flushes.copies.max(sealed.copies);
                flushes.kills = flushes.kills.max(sealed.kills);
            }
        }
    }

    /// Whether the collection's channels are at or above `up_to`, and nothing up to there is only in memory.
    pub(super) fn is_flushed(&mut self, database: &str, name: &str, up_to: Tso) -> Option<bool> {
        self.settle();
        let ticks = self.ticks();
        let content = self.find(database, name)?;
        let shown = content.shown(|p| ticks.get(p).copied().unwrap_or_default());
        let (copies, kills) = (content.flushes.copies, content.flushes.kills);
        let all = content.all_below(copies, kills, up_to) || !content.keeps(Rule::FlushedStays);
        Some(shown >= up_to && all)
    }

    /// Whether there is a segment of the collection that is sealed ([`Rule::GrowingUnnamed`]).
    pub(super) fn names_segments(&mut self, database: &str, name: &str) -> Option<bool> {
        let all = !self.keeps(Rule::GrowingUnnamed);
        let content = self.find(database, name)?;
        let flushes = &content.flushes;
        let sealed = flushes.copies > 0 || flushes.asked.iter().any(|s| s.copies > 0);
        Some(sealed || all && content.holds_rows())
    }

    fn other_nodes(&mut self) {
        self.settle();
        if self.keeps(Rule::NodesTellRestarts) {
            self.incarnation += 1;
        }
        for content in self.collections.values_mut() {
            content.flushes.asked.clear();
        }
    }

    /// The nodes read their log again ([`Rule::RepeatLostOnRecovery`]).
    pub(super) fn restart(&mut self) {
        self.other_nodes();
        for (collection, mut numbers) in self.perishable() {
            if let Some(content) = self.collections.get_mut(&collection) {
                numbers.copies.start = numbers.copies.start.max(content.flushes.copies);
                numbers.kills.start = numbers.kills.start.max(content.flushes.kills);
                content.forget(&numbers);
            }
        }
    }

    /// The nodes read their log again, without what only they had: all of it is gone ([`Rule::FlushedStays`]).
    pub(super) fn restart_losing(&mut self) {
        self.other_nodes();
        for content in self.collections.values_mut() {
            let (copies, kills) = (content.flushes.copies, content.flushes.kills);
            content.keep(copies, kills);
        }
    }
}
