//! Properties of databases, collections and indexes: which of them are carried.

use super::{Collection, Database, Index};

/// What of an index can be changed once it is there (`pkg/util/indexparams/index_params.go`, `configableIndexParams`:
/// the first since 2.4, the second since 2.5, the third since 2.6). All else needs a new one.
const OF_INDEXES: [&str; 3] = ["mmap.enabled", "indexoffsetcache.enabled", "warmup"];

/// The key that an alteration has to state again where it is set: servers of 2.4.6 and later take one without it for
/// one that takes it away (`internal/proxy/task.go`, `alterCollectionTask.PreExecute`), and refuse that of a
/// collection with a vector index.
pub const STATED_AGAIN: &str = "partitionkey.isolation";

/// Whether a property of a database or collection is a matter of its data. Keys: `pkg/common/common.go`.
///
/// Not so what says that it is replicated; with which key of the source's own it is encrypted (which no call can change,
/// `hookutil.ContainsCipherProperties`); which nodes of that cluster serve it: a group that a target does not have keeps it
/// from loading; and what the source refuses to its clients for now: on a target that would be us.
pub fn is_carried(key: &str) -> bool {
    let ours = ["replicate.", "cipher.", "database.force.deny."];
    let groups = ["database.resource_groups", "collection.resource_groups"];
    !ours.iter().any(|start| key.starts_with(start)) && !groups.contains(&key)
}

/// Whether a parameter of an index can be changed without a new one.
pub fn is_alterable(key: &str) -> bool {
    OF_INDEXES.contains(&key)
}

fn those(of: &[(String, String)], wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    of.iter().filter(|(key, _)| wanted(key)).cloned().collect()
}

impl Database {
    /// Those that are carried.
    pub fn own_properties(&self) -> Vec<(String, String)> {
        those(&self.properties, is_carried)
    }
}

impl Collection {
    /// Those that are carried.
    pub fn own_properties(&self) -> Vec<(String, String)> {
        those(&self.properties, is_carried)
    }
}

impl Index {
    /// Parameters that can be changed.
    pub fn properties(&self) -> Vec<(String, String)> {
        alterable(&self.params)
    }
}

/// Of an index's parameters those that can be changed.
pub fn alterable(params: &[(String, String)]) -> Vec<(String, String)> {
    those(params, is_alterable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_sources_own_is_not_carried() {
        for (key, carried) in [
            ("collection.ttl.seconds", true),
            ("mmap.enabled", true),
            ("timezone", true),
            ("collection.replica.number", true),
            ("database.replica.number", true),
            ("database.max.collections", true),
            ("database.diskQuota.mb", true),
            ("database.resource_groups", false),
            ("collection.resource_groups", false),
            ("database.force.deny.writing", false),
            ("database.force.deny.index", false),
            ("replicate.id", false),
            ("replicate.endTS", false),
            ("cipher.ezID", false),
        ] {
            assert_eq!(is_carried(key), carried, "{key}");
        }
    }
}
