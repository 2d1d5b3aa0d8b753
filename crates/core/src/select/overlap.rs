//! Whether two tasks could write one collection of the target. Pure.
//!
//! Names that are given exactly are told exactly. Of two patterns with wildcards it is asked whether their names on the
//! target could meet; excludes count where they cover one of the two whole. A regex is asked only for the collections
//! that are there. What is missed here is seen when the second task comes to the collection.

use std::collections::BTreeMap;
use std::fmt;

use super::mapping::Mapping;
use super::pattern::Pattern;
use super::rules::Rules;
use super::{Glob, Name};

/// What two tasks have in common on the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Overlap {
    /// This collection of the target.
    Collection(Name),
    /// What these two patterns of names on the target have in common.
    Patterns(String, String),
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Overlap::Collection(name) => write!(f, "{name}"),
            Overlap::Patterns(a, b) if a == b => write!(f, "{a}"),
            Overlap::Patterns(a, b) => write!(f, "what {a} and {b} have in common"),
        }
    }
}

/// Which collections a task writes: its rules and its mapping.
#[derive(Clone, Copy, Debug)]
pub struct Writes<'a> {
    pub rules: &'a Rules,
    pub mapping: &'a Mapping,
}

/// What one included pattern comes to on the target.
struct Claim<'a> {
    on_target: Pattern,
    is_wild: bool,
    /// Names stay as they are, so that the excludes are names of the target as well.
    same: bool,
    behind: Vec<&'a Pattern>,
}

impl<'a> Writes<'a> {
    fn claims(&self) -> Vec<Claim<'a>> {
        let mut claims = Vec::new();
        for (include, behind) in self.rules.includes() {
            if behind.iter().any(|exclude| exclude.covers(include)) {
                continue;
            }
            for (on_target, same) in self.mapping.images(include) {
                claims.push(Claim {
                    on_target,
                    is_wild: include.exact().is_none(),
                    same,
                    behind: behind.clone(),
                });
            }
        }
        claims
    }

    /// The names on the target of what is included by its exact name, and those that a mapping gives to what is included
    /// by a pattern.
    fn exact(&self) -> Vec<Name> {
        let included = self.rules.includes().filter_map(|(p, _)| p.exact());
        let carried = included.filter(|(database, name)| self.rules.contains(database, name));
        let given = carried.map(|(database, name)| self.mapping.apply(database, name));
        let mut wild = self.claims();
        wild.retain(|claim| claim.is_wild);
        let one = |claim: &Claim<'_>| {
            let (database, name) = claim.on_target.exact()?;
            Some(Name::new(database, name))
        };
        given.chain(wild.iter().filter_map(one)).collect()
    }

    /// Whether some collection of the source could be written to this one of the target.
    fn reaches(&self, target: &Name) -> bool {
        self.mapping.sources(target).iter().any(|source| {
            if let Some((database, name)) = source.exact() {
                return self.rules.contains(database, name)
                    && self.mapping.apply(database, name) == *target;
            }
            // Which one is not known: any that is included could be it.
            let mut includes = self.rules.includes();
            includes.any(|(include, behind)| {
                !behind
                    .iter()
                    .any(|exclude| exclude.covers(include) || exclude.covers(source))
                    && include.meets(source).unwrap_or(false)
            })
        })
    }

    /// What the collections of the source that are there now come to, by their names on the target.
    fn of(&self, present: &[Name]) -> BTreeMap<Name, Name> {
        let carried = present
            .iter()
            .filter(|n| self.rules.contains(&n.database, &n.name));
        carried
            .map(|n| (self.mapping.apply(&n.database, &n.name), n.clone()))
            .collect()
    }
}

impl Claim<'_> {
    /// Whether nothing of `pattern`, on the target, is left of this one.
    fn leaves_out(&self, pattern: &Pattern) -> bool {
        self.same && self.behind.iter().any(|exclude| exclude.covers(pattern))
    }
}

/// What both could write. `present`: the source's collections, where they are known.
pub fn overlap(a: Writes<'_>, b: Writes<'_>, present: &[Name]) -> Option<Overlap> {
    for (one, other) in [(a, b), (b, a)] {
        if let Some(name) = one.exact().into_iter().find(|name| other.reaches(name)) {
            return Some(Overlap::Collection(name));
        }
    }
    let (of_a, of_b) = (a.of(present), b.of(present));
    if let Some(name) = of_a.keys().find(|name| of_b.contains_key(*name)) {
        return Some(Overlap::Collection(name.clone()));
    }
    let (a, b) = (a.claims(), b.claims());
    for x in &a {
        for y in &b {
            // Exact ones are told above.
            let wild =
                |c: &Claim<'_>| c.on_target.globs().is_some() && c.on_target.exact().is_none();
            if wild(x)
                && wild(y)
                && x.on_target.meets(&y.on_target) == Some(true)
                && !x.leaves_out(&y.on_target)
                && !y.leaves_out(&x.on_target)
            {
                let name = |c: &Claim<'_>| c.on_target.to_string();
                return Some(Overlap::Patterns(name(x), name(y)));
            }
        }
    }
    None
}

/// Two collections of one task that would have one name on the target, and that name: of those that are given exactly,
/// and of those that are there.
pub fn clash(rules: &Rules, mapping: &Mapping, present: &[Name]) -> Option<(Name, Name, Name)> {
    let exact = rules.includes().filter_map(|(p, _)| p.exact());
    let exact = exact.map(|(database, name)| Name::new(database, name));
    let mut seen: BTreeMap<Name, Name> = BTreeMap::new();
    for source in exact.chain(present.iter().cloned()) {
        if !rules.contains(&source.database, &source.name) {
            continue;
        }
        let target = mapping.apply(&source.database, &source.name);
        match seen.get(&target) {
            Some(before) if *before != source => return Some((before.clone(), source, target)),
            Some(_) => {}
            None => drop(seen.insert(target, source)),
        }
    }
    None
}

/// The rules of every collection of every database.
pub fn everything() -> Rules {
    let any = Pattern::of(Glob::any(), Glob::any());
    Rules(vec![super::Rule::Include(vec![any])])
}
