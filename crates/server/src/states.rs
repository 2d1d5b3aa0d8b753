//! The states of collections in words.

use cdc_core::task::CollectionState;

pub fn name(state: &CollectionState) -> &'static str {
    match state {
        CollectionState::Waiting { .. } => "Waiting",
        CollectionState::Snapshotting { .. } => "Snapshotting",
        CollectionState::Streaming { .. } => "Streaming",
        CollectionState::Failing { .. } => "Failing",
        CollectionState::Conflict { .. } => "Conflict",
        CollectionState::PositionLost { .. } => "PositionLost",
        CollectionState::Quarantined { .. } => "Quarantined",
        CollectionState::Dropped => "Dropped",
    }
}

/// What a collection in this state can be answered, in the words of the request; `None` if it waits for nobody.
pub fn answers(state: &CollectionState) -> Option<&'static str> {
    match state {
        CollectionState::Conflict { .. } => Some("on_conflict: adopt or recreate"),
        CollectionState::PositionLost { .. } => {
            Some("start: earliest, now or snapshot, or positions")
        }
        CollectionState::Quarantined { .. } => Some("skip: true"),
        _ => None,
    }
}
