//! A physical channel of a standby: what was written to it and no tick has shown.

use std::collections::{HashMap, HashSet};

use super::Key;
use super::content::Numbers;
use super::message::Head;
use crate::ids::{CollectionId, VChannel};
use crate::tso::Tso;

#[derive(Default)]
pub(super) struct Channel {
    pub(super) last_tick: Tso,
    /// The ids of its messages, with the last time of each.
    pub(super) ids: HashMap<i64, Tso>,
    /// What no tick has shown yet, in the order of writing.
    hidden: Vec<Hidden>,
    /// What a recovery leaves out.
    perishable: Vec<(CollectionId, Numbers)>,
}

/// A message that no tick has shown.
struct Hidden {
    id: i64,
    end: Tso,
    /// Of an insert or a delete.
    rows: Option<Rows>,
}

/// The rows or the keys of a message.
pub(super) struct Rows {
    pub(super) collection: CollectionId,
    pub(super) vchannel: VChannel,
    pub(super) numbers: Numbers,
    /// Only where somebody watches.
    pub(super) keys: Vec<(Key, Tso)>,
}

impl Channel {
    /// What was written is hidden until a tick.
    pub(super) fn hide(&mut self, head: &Head, perishes: bool, rows: Option<Rows>) {
        if let (true, Some(rows)) = (perishes, &rows) {
            let numbers = rows.numbers.clone();
            self.perishable.push((rows.collection, numbers));
        }
        self.hidden.push(Hidden {
            id: head.id,
            end: head.last,
            rows,
        });
    }

    /// What the last tick shows, and what of that repeats an id.
    pub(super) fn shown(&mut self) -> (Vec<Rows>, Vec<Rows>) {
        let tick = self.last_tick;
        let shown = self.hidden.extract_if(.., |message| message.end <= tick);
        let (mut first, mut again) = (Vec::new(), Vec::new());
        let mut ids = HashSet::new();
        for message in shown {
            let list = match ids.insert(message.id) {
                true => &mut first,
                false => &mut again,
            };
            list.extend(message.rows);
        }
        (first, again)
    }

    /// What a recovery leaves out, by collection.
    pub(super) fn perishable(&mut self) -> Vec<(CollectionId, Numbers)> {
        std::mem::take(&mut self.perishable)
    }
}
