//! Newtypes for what Milvus identifies by number or by channel name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

numeric_id!(
    /// A database of one Milvus. The database `default` is 1.
    DbId
);
numeric_id!(
    /// A collection of one Milvus; unique over all its databases, never used again after a drop.
    CollectionId
);
numeric_id!(
    /// A partition of one Milvus; unique over all collections.
    PartitionId
);
numeric_id!(
    /// A field of one collection: 0 and 1 are the system fields RowID and Timestamp, user fields start at 100.
    FieldId
);
numeric_id!(
    /// An index of one Milvus.
    IndexId
);

/// A physical channel: one topic of the message queue, shared by many collections.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PChannel(Arc<str>);

impl PChannel {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A virtual channel: one shard of one collection, `{pchannel}_{collection id}v{shard}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VChannel(Arc<str>);

impl VChannel {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The physical channel this shard lives on: Milvus cuts the name at its last `_`
    /// (`pkg/util/funcutil.ToPhysicalChannel`).
    pub fn pchannel(&self) -> PChannel {
        match self.0.rsplit_once('_') {
            Some((pchannel, _)) => PChannel::new(pchannel),
            None => PChannel::new(self.0.clone()),
        }
    }

    /// The shard's number: what follows the last `v`. `None` if the name has not that form.
    pub fn shard(&self) -> Option<usize> {
        let (_, tail) = self.0.rsplit_once('_')?;
        let (_, shard) = tail.rsplit_once('v')?;
        shard.parse().ok()
    }
}

impl fmt::Display for VChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A replication task, as named by the control plane.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(Arc<str>);

impl TaskId {
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A target Milvus, as far as what we keep about it is concerned: its normalised address. Time and message ids on a
/// target belong to this key, not to a task, and outlive every task.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TargetKey(Arc<str>);

impl TargetKey {
    pub fn new(address: impl Into<Arc<str>>) -> Self {
        Self(address.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vchannel_tells_its_pchannel_and_its_shard() {
        let v = VChannel::new("by-dev-rootcoord-dml_3_445811557825249939v1");
        assert_eq!(v.pchannel(), PChannel::new("by-dev-rootcoord-dml_3"));
        assert_eq!(v.shard(), Some(1));
    }

    #[test]
    fn a_name_of_another_form_has_no_shard() {
        assert_eq!(VChannel::new("by-dev-rootcoord-dml_3").shard(), None);
        assert_eq!(VChannel::new("plain").shard(), None);
    }
}
