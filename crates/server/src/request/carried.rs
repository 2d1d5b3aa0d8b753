//! `mapping` and `skip_operations`: the names on the target, and what is not carried.

use cdc_core::select::mapping::check as check_name;
use cdc_core::select::{MapRule, Mapping, Name, Operation, Skipped, overlap};
use cdc_core::task::Selection;
use serde_json::Value;

use crate::fields::{Fields, clip};

/// Rules of one mapping.
const RULES: usize = 1000;

/// What a request says beside which collections.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Names {
    pub(super) mapping: Mapping,
    pub(super) skip: Skipped,
}

/// `None` if neither is given. What is wrong goes to the errors of `data`.
pub(super) fn read(data: &Fields<'_>) -> Option<Names> {
    let (mapping, skip) = (mapping(data), skipped(data));
    if mapping.is_none() && skip.is_none() {
        return None;
    }
    Some(Names {
        mapping: mapping.unwrap_or_default(),
        skip: skip.unwrap_or_default(),
    })
}

pub(super) fn mapping(data: &Fields<'_>) -> Option<Mapping> {
    let items = data.objects("mapping")?;
    if items.len() > RULES {
        data.wrong(
            "mapping",
            format_args!("{} rules, {RULES} are allowed", items.len()),
        );
        return None;
    }
    let mut rules = Vec::new();
    for item in items {
        let (from, to) = (item.string("from"), item.string("to"));
        for (key, given) in [("from", &from), ("to", &to)] {
            if given.is_none() && !item.has(key) {
                item.wrong(key, "missing");
            }
        }
        if let (Some(from), Some(to)) = (from, to) {
            match MapRule::source(&from) {
                Err(why) => item.wrong("from", why),
                Ok(from) => match MapRule::new(from, &to) {
                    Err(why) => item.wrong("to", why),
                    Ok(rule) => rules.push(rule),
                },
            }
        }
        item.finish();
    }
    Some(Mapping(rules))
}

pub(super) fn skipped(data: &Fields<'_>) -> Option<Skipped> {
    let list = data.list("skip_operations")?;
    let mut skipped = Skipped::new();
    for (i, value) in list.iter().enumerate() {
        let known = value.as_str().and_then(|given| {
            let mut all = Operation::ALL.into_iter();
            all.find(|(name, _)| *name == given)
        });
        match known {
            Some((_, operation)) => drop(skipped.insert(operation)),
            None => {
                let given = match value {
                    Value::String(text) => format!("{:?}", clip(text)),
                    _ => "something else".to_owned(),
                };
                let names: Vec<&str> = Operation::ALL.iter().map(|(name, _)| *name).collect();
                data.wrong(
                    &format!("skip_operations[{i}]"),
                    format_args!("one of {} expected, not {given}", names.join(", ")),
                );
            }
        }
    }
    Some(skipped)
}

/// What can be seen of names on the target before anything is there: of collections that are named exactly.
pub(super) fn check(data: &Fields<'_>, selection: &Selection, mapping: &Mapping) {
    if mapping.is_empty() {
        return;
    }
    let rules = selection.rules();
    if let Some((a, b, to)) = overlap::clash(&rules, mapping, &[]) {
        data.wrong(
            "mapping",
            format_args!("{a} and {b} both would be {to} on the target"),
        );
    }
    for rule in &rules.0 {
        let exact = rule.patterns().iter().filter_map(|p| p.exact());
        for (database, name) in exact {
            let to = mapping.apply(database, name);
            if rules.contains(database, name)
                && let Err(why) = check_name(&to)
            {
                let from = Name::new(database, name);
                data.wrong("mapping", format_args!("{from}: {why}"));
            }
        }
    }
}
