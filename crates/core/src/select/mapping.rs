//! The names of collections on the target: rules from patterns to templates, the first that matches counts. Pure.

use serde::{Deserialize, Serialize};

use super::Name;
use super::pattern::{BadPattern, Glob, Pattern};

/// Longest name of a database or collection that a Milvus takes, in bytes (`proxy.maxNameLength`, 2.3.5).
pub const LONGEST_NAME: usize = 255;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Text(String),
    /// `*`: what the `*` of the same part of `from` stands for.
    Star,
    /// `{}`: the whole name of the same part.
    Own,
    /// `{database}`
    Database,
    /// `{name}`
    Name,
}

/// One part of `to`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Template(Vec<Piece>);

/// One step of a mapping.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct MapRule {
    from: Pattern,
    /// As it was given.
    to: String,
    database: Template,
    name: Template,
}

/// As it is written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    from: String,
    to: String,
}

impl TryFrom<Written> for MapRule {
    type Error = BadPattern;

    fn try_from(written: Written) -> Result<Self, BadPattern> {
        let from = MapRule::source(&written.from)?;
        MapRule::new(from, &written.to)
    }
}

impl From<MapRule> for Written {
    fn from(rule: MapRule) -> Self {
        Written {
            from: rule.from.into(),
            to: rule.to,
        }
    }
}

impl MapRule {
    /// The `from` of a rule: a pattern without a regex.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn source(text: &str) -> Result<Pattern, BadPattern> {
        let from = Pattern::new(text)?;
        match from.globs() {
            Some(_) => Ok(from),
            None => Err(BadPattern(format!(
                "{text:?}: no regex is taken here; database.name with '*' and '?' is"
            ))),
        }
    }

    /// # Errors
    /// What is wrong with `to`, and what would be right.
    pub fn new(from: Pattern, to: &str) -> Result<Self, BadPattern> {
        let Some((database, name)) = to.split_once('.') else {
            return Err(BadPattern(format!(
                "{to:?} has no database: \"{{}}.{to}\" leaves it as it is"
            )));
        };
        let Some((from_database, from_name)) = from.globs() else {
            return Err(BadPattern("from: no regex is taken here".to_owned()));
        };
        let rule = Self {
            to: to.to_owned(),
            database: Template::read(database, from_database)?,
            name: Template::read(name, from_name)?,
            from: from.clone(),
        };
        let follows = |piece: &Piece, own: bool| match piece {
            Piece::Text(_) | Piece::Database => false,
            Piece::Star | Piece::Own => own,
            Piece::Name => true,
        };
        let varies = rule.name.0.iter().any(|p| follows(p, true))
            || rule.database.0.iter().any(|p| follows(p, false));
        if !from_name.is_exact() && !varies {
            return Err(BadPattern(format!(
                "{to:?} gives all collections of {from} in a database one name; '*', {{}} or {{name}} in it keeps them apart"
            )));
        }
        Ok(rule)
    }

    pub fn from(&self) -> &Pattern {
        &self.from
    }

    pub fn to(&self) -> &str {
        &self.to
    }

    fn apply(&self, database: &str, name: &str) -> Name {
        let Some((of_database, of_name)) = self.from.globs() else {
            return Name::new(database, name);
        };
        Name {
            database: self.database.fill(of_database, database, (database, name)),
            name: self.name.fill(of_name, name, (database, name)),
        }
    }

    /// What all its results match.
    fn image(&self, include: &Pattern) -> Option<Pattern> {
        // What an exact part of either side says is known.
        let (from_database, from_name) = self.from.globs()?;
        let known = |include: Option<&Glob>, from: &Glob| -> Option<String> {
            [include, Some(from)]
                .into_iter()
                .flatten()
                .find(|g| g.is_exact())
                .map(|g| g.as_str().to_owned())
        };
        let parts = include.globs();
        let database = known(parts.map(|(d, _)| d), from_database);
        let name = known(parts.map(|(_, n)| n), from_name);
        let both = (database.as_deref(), name.as_deref());
        Some(Pattern::of(
            self.database.image(from_database, both.0, both)?,
            self.name.image(from_name, both.1, both)?,
        ))
    }

    /// The source's names that could come to be `target`, as a pattern; `None`: none could.
    fn source_of(&self, target: &Name) -> Option<Pattern> {
        let (from_database, from_name) = self.from.globs()?;
        let mut database: Option<String> = None;
        let mut name: Option<String> = None;
        let found = [
            (
                &self.database,
                from_database,
                target.database.as_str(),
                true,
            ),
            (&self.name, from_name, target.name.as_str(), false),
        ];
        for (template, from, text, of_database) in found {
            match template.undo(from, text, of_database) {
                Undone::No => return None,
                Undone::Open => {}
                Undone::Database(known) => {
                    if database.get_or_insert(known.clone()) != &known {
                        return None;
                    }
                }
                Undone::Name(known) => {
                    if name.get_or_insert(known.clone()) != &known {
                        return None;
                    }
                }
            }
        }
        let part = |known: Option<String>, from: &Glob| match known {
            Some(known) if from.matches(&known) => Glob::new(&known).ok(),
            Some(_) => None,
            None => Some(from.clone()),
        };
        Some(Pattern::of(
            part(database, from_database)?,
            part(name, from_name)?,
        ))
    }
}

/// What a template says of the name that was filled in.
enum Undone {
    /// This text is none of its results.
    No,
    /// It cannot be told.
    Open,
    Database(String),
    Name(String),
}

impl Template {
    fn read(text: &str, from: &Glob) -> Result<Self, BadPattern> {
        let wrong = |what: String| Err(BadPattern(what));
        if text.is_empty() {
            return wrong("a name is missing".to_owned());
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let placeholder = [
                ("*", Piece::Star),
                ("{}", Piece::Own),
                ("{database}", Piece::Database),
                ("{name}", Piece::Name),
            ]
            .into_iter()
            .find_map(|(mark, piece)| Some((rest.strip_prefix(mark)?, piece)));
            if let Some((behind, piece)) = placeholder {
                pieces.push(piece);
                rest = behind;
                continue;
            }
            if !(c.is_ascii_alphanumeric() || c == '_' || c == '$') {
                return wrong(format!(
                    "{text:?}: {c:?} is in no name; letters, digits, '_' and '$' are, and the marks '*', {{}}, {{database}}, {{name}}"
                ));
            }
            match pieces.last_mut() {
                Some(Piece::Text(text)) => text.push(c),
                _ => pieces.push(Piece::Text(c.to_string())),
            }
            rest = &rest[c.len_utf8()..];
        }
        let stars = from.as_str().matches('*').count();
        if pieces.contains(&Piece::Star) && stars != 1 {
            return wrong(format!(
                "{text:?}: '*' stands for what the one '*' in the same part of from does, and {:?} has {stars}; {{}} stands for the whole name",
                from.as_str()
            ));
        }
        let fixed: usize = pieces
            .iter()
            .map(|p| if let Piece::Text(t) = p { t.len() } else { 0 })
            .sum();
        if fixed > LONGEST_NAME {
            return wrong(format!(
                "{fixed} characters are longer than a name may be ({LONGEST_NAME})"
            ));
        }
        if let Some(Piece::Text(first)) = pieces.first()
            && first.starts_with(|c: char| c.is_ascii_digit() || c == '$')
        {
            return wrong(format!("{text:?} is no legal name: a letter or '_' first"));
        }
        Ok(Self(pieces))
    }

    fn fill(&self, from: &Glob, own: &str, (database, name): (&str, &str)) -> String {
        let mut filled = String::new();
        for piece in &self.0 {
            filled.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Star => starred(from, own),
                Piece::Own => own,
                Piece::Database => database,
                Piece::Name => name,
            });
        }
        filled
    }

    /// A glob of all results, with what is known of the names.
    fn image(
        &self,
        from: &Glob,
        own: Option<&str>,
        (database, name): (Option<&str>, Option<&str>),
    ) -> Option<Glob> {
        let mut image = String::new();
        for piece in &self.0 {
            image.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Star => own.map_or("*", |own| starred(from, own)),
                Piece::Own => own.unwrap_or(from.as_str()),
                Piece::Database => database.unwrap_or("*"),
                Piece::Name => name.unwrap_or("*"),
            });
        }
        Glob::new(&image).ok()
    }

    fn undo(&self, from: &Glob, text: &str, of_database: bool) -> Undone {
        let marks = self.0.iter().filter(|p| !matches!(p, Piece::Text(_)));
        match marks.count() {
            0 => {
                let fixed = self.fill(from, "", ("", ""));
                if fixed == text {
                    Undone::Open
                } else {
                    Undone::No
                }
            }
            1 => {
                let mut rest = text;
                if let Some(Piece::Text(before)) = self.0.first() {
                    let Some(behind) = rest.strip_prefix(before.as_str()) else {
                        return Undone::No;
                    };
                    rest = behind;
                }
                if let Some(Piece::Text(behind)) = self.0.last() {
                    let Some(before) = rest.strip_suffix(behind.as_str()) else {
                        return Undone::No;
                    };
                    rest = before;
                }
                let mark = self.0.iter().find(|p| !matches!(p, Piece::Text(_)));
                match mark {
                    Some(Piece::Star) => {
                        // Beside a '?' it is not known which letter stood there.
                        if from.as_str().contains('?') {
                            return Undone::Open;
                        }
                        let whole = from.as_str().replace('*', rest);
                        if of_database {
                            Undone::Database(whole)
                        } else {
                            Undone::Name(whole)
                        }
                    }
                    Some(Piece::Own) if of_database => Undone::Database(rest.to_owned()),
                    Some(Piece::Own) => Undone::Name(rest.to_owned()),
                    Some(Piece::Database) => Undone::Database(rest.to_owned()),
                    _ => Undone::Name(rest.to_owned()),
                }
            }
            _ => Undone::Open,
        }
    }
}

/// What the one `*` of a glob stands for in a text that it matches.
fn starred<'t>(from: &Glob, text: &'t str) -> &'t str {
    let (before, behind) = from.as_str().split_once('*').unwrap_or((from.as_str(), ""));
    // Names are ASCII; of another text nothing is taken rather than a part of a letter.
    text.get(before.len()..text.len().saturating_sub(behind.len()))
        .unwrap_or_default()
}

/// Which names the collections of a task have on the target.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mapping(pub Vec<MapRule>);

impl Mapping {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rule that gives a collection its name, and its number from 0.
    pub fn rule(&self, database: &str, name: &str) -> Option<(usize, &MapRule)> {
        let mut rules = self.0.iter().enumerate();
        rules.find(|(_, rule)| rule.from.matches(database, name))
    }

    /// Its name on the target: as on the source if no rule matches. See [`check`] for whether it is one.
    pub fn apply(&self, database: &str, name: &str) -> Name {
        match self.rule(database, name) {
            Some((_, rule)) => rule.apply(database, name),
            None => Name::new(database, name),
        }
    }

    /// The name of a database that is carried whole, where it does not depend on its collections: that of its first
    /// rule for all of it.
    pub fn database(&self, database: &str) -> Option<String> {
        let rule = self.0.iter().find(|rule| {
            let globs = rule.from.globs();
            globs.is_some_and(|(d, n)| d.matches(database) && n.is_any())
        });
        let Some(rule) = rule else {
            return Some(database.to_owned());
        };
        let depends = |p: &Piece| matches!(p, Piece::Name);
        let (of_database, _) = rule.from.globs()?;
        if rule.database.0.iter().any(depends) {
            return None;
        }
        Some(rule.database.fill(of_database, database, (database, "")))
    }

    /// What the collections of `include` may be called on the target, and whether they keep their names there.
    pub(super) fn images(&self, include: &Pattern) -> Vec<(Pattern, bool)> {
        let mut images = Vec::new();
        for rule in &self.0 {
            if include.meets(&rule.from) == Some(false) {
                continue;
            }
            images.extend(rule.image(include).map(|image| (image, false)));
            if rule.from.covers(include) {
                return images;
            }
        }
        images.push((include.clone(), true));
        images
    }

    /// The source's names that could be called `target`.
    pub(super) fn sources(&self, target: &Name) -> Vec<Pattern> {
        let own = Glob::new(&target.database)
            .and_then(|d| Ok(Pattern::of(d, Glob::new(&target.name)?)))
            .ok();
        let mapped = self.0.iter().filter_map(|rule| rule.source_of(target));
        mapped.chain(own).collect()
    }
}

/// Whether a Milvus takes this name.
///
/// # Errors
/// Why not.
pub fn check(name: &Name) -> Result<(), String> {
    for (what, text) in [("database", &name.database), ("collection", &name.name)] {
        if text.len() > LONGEST_NAME {
            return Err(format!(
                "the {what}'s name {text:?} has {} bytes, {LONGEST_NAME} are allowed",
                text.len()
            ));
        }
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        if !first || !text.chars().all(legal) {
            return Err(format!(
                "the {what}'s name {text:?} is not legal: a letter or '_' first, then letters, digits, '_' and '$'"
            ));
        }
    }
    Ok(())
}
