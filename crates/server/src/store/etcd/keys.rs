//! The names of the keys.

use cdc_core::ids::{CollectionId, PChannel, TargetKey, TaskId};

/// Everything of one store.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    root: String,
}

impl Keys {
    pub(super) fn new(root_path: &str) -> Self {
        Self {
            root: format!("{}/milvus-cdc/", root_path.trim_end_matches('/')),
        }
    }

    pub(super) fn version(&self) -> String {
        format!("{}version", self.root)
    }

    pub(super) fn owner(&self) -> String {
        format!("{}owner", self.root)
    }

    pub(super) fn seq(&self) -> String {
        format!("{}seq", self.root)
    }

    pub(super) fn journal(&self) -> String {
        format!("{}journal/", self.root)
    }

    pub(super) fn journal_chunk(&self, n: usize) -> String {
        format!("{}journal/{n:06}", self.root)
    }

    /// With it the whole journal holds.
    pub(super) fn journal_commit(&self) -> String {
        format!("{}journal/commit", self.root)
    }

    pub(super) fn tasks(&self) -> String {
        format!("{}tasks/", self.root)
    }

    pub(super) fn task(&self, task: &TaskId) -> String {
        format!("{}tasks/{}", self.root, part(task.as_str()))
    }

    pub(super) fn events(&self, task: &TaskId) -> String {
        format!("{}events/{}/", self.root, part(task.as_str()))
    }

    /// `seq`: 20 digits.
    pub(super) fn event(&self, task: &TaskId, seq: &str) -> String {
        format!("{}{seq}", self.events(task))
    }

    /// The `seq` of the last event there ever was.
    pub(super) fn last_event(&self) -> String {
        format!("{}last_event", self.root)
    }

    /// The events of all tasks, in their order.
    pub(super) fn history(&self) -> String {
        format!("{}history/", self.root)
    }

    pub(super) fn in_history(&self, seq: &str) -> String {
        format!("{}{seq}", self.history())
    }

    /// Which of the events say that a task was deleted.
    pub(super) fn deletions(&self) -> String {
        format!("{}deletions/", self.root)
    }

    pub(super) fn deletion(&self, task: &TaskId, seq: &str) -> String {
        format!("{}{seq}/{}", self.deletions(), part(task.as_str()))
    }

    /// What `deletion` was made of.
    pub(super) fn parse_deletion<'a>(&self, key: &'a str) -> Option<(&'a str, TaskId)> {
        let rest = key.get(self.deletions().len()..)?;
        let (seq, task) = rest.split_once('/')?;
        Some((seq, TaskId::new(name(task))))
    }

    pub(super) fn progress(&self, task: &TaskId) -> String {
        format!("{}progress/{}/", self.root, part(task.as_str()))
    }

    pub(super) fn channel(&self, task: &TaskId, channel: &PChannel) -> String {
        format!("{}channels/{}", self.progress(task), part(channel.as_str()))
    }

    pub(super) fn detached(
        &self,
        task: &TaskId,
        channel: &PChannel,
        collection: CollectionId,
    ) -> String {
        let channel = part(channel.as_str());
        format!("{}detached/{channel}/{collection}", self.progress(task))
    }

    /// `kind`: collections, partitions or notes.
    pub(super) fn object(&self, task: &TaskId, kind: &str, source: i64) -> String {
        format!("{}{kind}/{source}", self.progress(task))
    }

    pub(super) fn replicate(&self, task: &TaskId) -> String {
        format!("{}replicate", self.progress(task))
    }

    /// Messages that could not be carried. Not below `progress`: what is read at every start stays small.
    pub(super) fn quarantine(&self, task: &TaskId) -> String {
        format!("{}quarantine/{}/", self.root, part(task.as_str()))
    }

    pub(super) fn quarantined(&self, task: &TaskId) -> String {
        format!("{}records/", self.quarantine(task))
    }

    pub(super) fn quarantined_one(&self, task: &TaskId, key: &str) -> String {
        format!("{}{}", self.quarantined(task), part(key))
    }

    pub(super) fn message(&self, task: &TaskId, message: &str) -> String {
        format!("{}messages/{}/", self.quarantine(task), part(message))
    }

    pub(super) fn message_part(&self, task: &TaskId, message: &str, part: u32) -> String {
        format!("{}{part:06}", self.message(task, message))
    }

    pub(super) fn floors(&self, target: &TargetKey) -> String {
        format!("{}floors/{}/", self.root, part(target.as_str()))
    }

    pub(super) fn floor(&self, target: &TargetKey, channel: &PChannel) -> String {
        format!("{}{}", self.floors(target), part(channel.as_str()))
    }
}

/// A name as one part of a key.
pub(super) fn part(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

pub(super) fn name(part: &str) -> String {
    part.replace("%2F", "/").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_part_and_comes_back() {
        for given in ["http://a:1/x", "a%2Fb", "%25", "plain_0", "ü"] {
            assert!(!part(given).contains('/'));
            assert_eq!(name(&part(given)), given);
        }
    }
}
