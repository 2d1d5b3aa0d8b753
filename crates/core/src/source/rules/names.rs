//! Rules of names, and of what is refused.

use std::collections::HashMap;

use super::trace::Trace;
use super::{Broken, Outcome, Rule, ensure};
use crate::catalog::ObjectState;

pub(super) fn names_are_once(_: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = 0;
    for view in &trace.views {
        let mut names = HashMap::new();
        let living = view.collections.values();
        for collection in living.filter(|c| c.state == ObjectState::Created) {
            let name = (collection.db, collection.name.clone());
            let alias = view.aliases.get(&name).map(|a| a.collection);
            let alias = alias.and_then(|of| view.collections.get(&of));
            let alias = alias.filter(|c| c.state == ObjectState::Created);
            ensure(alias.is_none(), || format!("{name:?} is an alias as well"))?;
            if let Some(other) = names.insert(name, collection.id) {
                return Err(Broken(format!(
                    "{other} and {} have one name, {}",
                    collection.id, collection.name
                )));
            }
        }
        seen += usize::from(names.len() > 1);
    }
    Ok(seen)
}

/// Of rules that say what is refused: each act of theirs went as they say, and there was one of either kind.
pub(super) fn as_it_says(rule: Rule, trace: &Trace) -> Outcome<usize> {
    let mut seen = [0, 0];
    for done in &trace.acts {
        let Some((_, carried_out)) = done.by.filter(|(by, _)| *by == rule) else {
            continue;
        };
        ensure(done.answer.is_ok() == carried_out, || format!("{done:?}"))?;
        seen[usize::from(carried_out)] += 1;
    }
    Ok(seen.into_iter().min().unwrap_or_default())
}
