//! `collections` of a resume request: a person's answers.

use cdc_core::ids::CollectionId;
use cdc_core::task::{Choice, CollectionState, StartPoint};

use super::position::positions_of_one;
use super::{CONFLICTS, Limits};
use crate::fields::Fields;

/// Where one that has lost its position goes on.
const BEGINNINGS: &[(&str, Option<StartPoint>)] = &[
    ("earliest", Some(StartPoint::Earliest)),
    ("now", Some(StartPoint::Now)),
    ("snapshot", None),
];

/// A person's answer for one collection.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    pub database: String,
    pub name: String,
    pub choice: Choice,
    /// The collection whose positions were given.
    pub collection: Option<CollectionId>,
}

impl Answer {
    /// Whether a collection in this state takes this kind of answer. One that fails may be failing because of a message
    /// that can be skipped; only the task knows.
    pub fn fits(&self, state: &CollectionState) -> bool {
        matches!(
            (&self.choice, state),
            (Choice::Conflict(_), CollectionState::Conflict { .. })
                | (
                    Choice::Start(_) | Choice::At(_) | Choice::Snapshot,
                    CollectionState::PositionLost { .. }
                )
                | (
                    Choice::Skip,
                    CollectionState::Quarantined { .. } | CollectionState::Failing { .. }
                )
        )
    }
}

/// Reads the answers of a resume request. What is wrong goes to the errors of `data`.
pub fn answers(data: &Fields<'_>, limits: &Limits) -> Vec<Answer> {
    read(data, "collections", "db", limits)
}

/// Reads the answers under `list`, each with its database under `db`.
pub(super) fn read(
    data: &Fields<'_>,
    list: &'static str,
    db: &'static str,
    limits: &Limits,
) -> Vec<Answer> {
    let mut found: Vec<Answer> = Vec::new();
    for item in data.objects(list).unwrap_or_default() {
        let database = item.string(db).unwrap_or_else(|| "default".to_owned());
        let name = item.string("name");
        if name.is_none() && !item.has("name") {
            item.wrong("name", "missing");
        }
        let (collection, at) = positions_of_one(&item, limits.queue).unzip();
        let choices: Vec<Choice> = [
            item.choice("on_conflict", &CONFLICTS[1..])
                .map(Choice::Conflict),
            item.choice("start", BEGINNINGS)
                .map(|start| start.map_or(Choice::Snapshot, Choice::Start)),
            at.map(Choice::At),
            (item.boolean("skip") == Some(true)).then_some(Choice::Skip),
        ]
        .into_iter()
        .flatten()
        .collect();
        if choices.len() != 1 {
            item.wrong(
                "name",
                "exactly one answer expected: on_conflict, start, positions or skip: true",
            );
        }
        if let (Some(name), Some(choice)) = (name, choices.into_iter().next()) {
            if found
                .iter()
                .any(|a| a.database == database && a.name == name)
            {
                item.wrong("name", "this collection is answered twice");
            }
            found.push(Answer {
                database,
                name,
                choice,
                collection,
            });
        }
        item.finish();
    }
    found
}
