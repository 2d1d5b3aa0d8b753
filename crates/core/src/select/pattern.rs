//! Patterns of collections: what they match, whether two can meet. Pure.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// Bytes of one pattern.
const LONGEST: usize = 1024;
/// Bytes of a compiled regex, and of what it builds while it matches.
const REGEX_SIZE: usize = 256 << 10;
/// Depth of a regex' groups.
const REGEX_NEST: u32 = 32;

/// Why a text is no pattern, in words for the one who wrote it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadPattern(pub String);

/// A part of a name with `*` (any characters, also none) and `?` (exactly one).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Glob(String);

impl Glob {
    /// # Errors
    /// It holds a character that no name has, or nothing.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() {
            return Err(BadPattern("a name is missing".to_owned()));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "_$*?".contains(c);
        match text.chars().find(|c| !legal(*c)) {
            None => Ok(Self(text.to_owned())),
            Some(c) => Err(BadPattern(format!(
                "{c:?} is in no name: letters, digits, '_', '$', and the wildcards '*' and '?' are"
            ))),
        }
    }

    pub fn any() -> Self {
        Self("*".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    pub fn is_any(&self) -> bool {
        self.0.bytes().all(|b| b == b'*')
    }

    pub fn matches(&self, text: &str) -> bool {
        wild(self.0.as_bytes(), text.as_bytes(), |p, t| {
            p == b'?' || p == t
        })
    }

    /// Whether every text of the other is one of this. `false` may be wrong where both have wildcards; `true` never is.
    pub fn covers(&self, other: &Glob) -> bool {
        // The other's wildcards are met by wildcards alone: its '*' only by a '*'.
        wild(self.0.as_bytes(), other.0.as_bytes(), |p, t| {
            p == t || (p == b'?' && t != b'*')
        })
    }

    /// Whether some text is one of both.
    pub fn meets(&self, other: &Glob) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        // `met[j]`: the rest of `a` from `i` and the rest of `b` from `j` have a text in common.
        let mut below = vec![false; b.len() + 1];
        for i in (0..=a.len()).rev() {
            let mut met = vec![false; b.len() + 1];
            for j in (0..=b.len()).rev() {
                met[j] = match (a.get(i), b.get(j)) {
                    (None, None) => true,
                    (Some(b'*'), _) if below[j] => true,
                    (Some(b'*'), Some(_)) => met[j + 1],
                    (_, Some(b'*')) => met[j + 1] || (i < a.len() && below[j]),
                    (Some(x), Some(y)) => (x == y || *x == b'?' || *y == b'?') && below[j + 1],
                    _ => false,
                };
            }
            below = met;
        }
        below[0]
    }
}

/// Whether `pattern`, of which `*` is any run, is `text`. Linear in the product of both at worst, without recursion.
fn wild(pattern: &[u8], text: &[u8], same: impl Fn(u8, u8) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p + 1, t));
                p += 1;
            }
            Some(x) if same(*x, text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match &mut back {
                Some((after, taken)) => {
                    *taken += 1;
                    (p, t) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[derive(Clone, Debug)]
enum Kind {
    Globs {
        database: Glob,
        name: Glob,
    },
    /// A regex over the name, in databases.
    Name {
        database: Glob,
        name: Regex,
    },
    /// A regex over `database.name`.
    Whole(Regex),
}

/// Collections by their names on the source: `db.name` with `*` and `?` in either part, `db./regex/` with a regex over
/// the name, or `/regex/` over the whole `db.name`. A regex has to match all of it, not a part.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    kind: Kind,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, BadPattern> {
        Self::new(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl Pattern {
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        bounded(text)?;
        if let Some(inner) = in_slashes(text)? {
            return Ok(Self {
                text: text.to_owned(),
                kind: Kind::Whole(regex(inner)?),
            });
        }
        let Some((database, name)) = text.split_once('.') else {
            return Err(BadPattern(format!(
                "{text:?} has no database: \"default.{text}\" is one of the database default, \"*.{text}\" one of any; or put a database beside it"
            )));
        };
        Self::within(database, name)
    }

    /// One whose database is given beside it: `name` is a name with wildcards or a `/regex/` over the name.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn within(database: &str, name: &str) -> Result<Self, BadPattern> {
        if !database.is_empty() {
            bounded(database)?;
        }
        bounded(name)?;
        let database = Glob::new(database).map_err(|e| BadPattern(format!("the database: {e}")))?;
        let text = format!("{}.{name}", database.as_str());
        let kind = match in_slashes(name)? {
            Some(inner) => Kind::Name {
                database,
                name: regex(inner)?,
            },
            None if name.contains('.') => {
                return Err(BadPattern(format!(
                    "{name:?} has a dot too many: a pattern is database.name, and neither has a dot; a regex stands between slashes, /…/"
                )));
            }
            None => Kind::Globs {
                database,
                name: Glob::new(name)?,
            },
        };
        Ok(Self { text, kind })
    }

    /// Of two globs.
    pub fn of(database: Glob, name: Glob) -> Self {
        Self {
            text: format!("{}.{}", database.0, name.0),
            kind: Kind::Globs { database, name },
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn matches(&self, database: &str, name: &str) -> bool {
        match &self.kind {
            Kind::Globs {
                database: d,
                name: n,
            } => d.matches(database) && n.matches(name),
            Kind::Name {
                database: d,
                name: n,
            } => d.matches(database) && n.is_match(name),
            Kind::Whole(regex) => regex.is_match(&format!("{database}.{name}")),
        }
    }

    /// Its two parts, if it has no regex.
    pub fn globs(&self) -> Option<(&Glob, &Glob)> {
        match &self.kind {
            Kind::Globs { database, name } => Some((database, name)),
            _ => None,
        }
    }

    /// Database and name, if it is one collection's.
    pub fn exact(&self) -> Option<(&str, &str)> {
        let (database, name) = self.globs()?;
        (database.is_exact() && name.is_exact()).then_some((database.as_str(), name.as_str()))
    }

    /// Whether every collection of a database is one of this.
    pub fn is_whole_database(&self, database: &str) -> bool {
        self.globs()
            .is_some_and(|(d, n)| n.is_any() && d.matches(database))
    }

    /// Whether every collection of the other is one of this; of regexes only what is plain to see.
    pub fn covers(&self, other: &Pattern) -> bool {
        match (self.globs(), other.globs()) {
            (Some((d, n)), Some((od, on))) => d.covers(od) && n.covers(on),
            (Some((d, n)), None) => d.is_any() && n.is_any(),
            (None, Some(_)) => match other.exact() {
                Some((database, name)) => self.matches(database, name),
                None => false,
            },
            (None, None) => self == other,
        }
    }

    /// Whether some collection is one of both; `None` where a regex does not let it be told.
    pub fn meets(&self, other: &Pattern) -> Option<bool> {
        match (self.exact(), other.exact()) {
            (Some((database, name)), _) => return Some(other.matches(database, name)),
            (_, Some((database, name))) => return Some(self.matches(database, name)),
            _ => {}
        }
        let ((d, n), (od, on)) = (self.globs()?, other.globs()?);
        Some(d.meets(od) && n.meets(on))
    }
}

fn bounded(text: &str) -> Result<(), BadPattern> {
    match text.len() {
        0 => Err(BadPattern("a pattern expected, not \"\"".to_owned())),
        n if n > LONGEST => Err(BadPattern(format!(
            "it has {n} bytes, {LONGEST} are allowed"
        ))),
        _ => Ok(()),
    }
}

/// What is between slashes, if there is a slash at the beginning.
fn in_slashes(text: &str) -> Result<Option<&str>, BadPattern> {
    let Some(rest) = text.strip_prefix('/') else {
        return Ok(None);
    };
    match rest.strip_suffix('/') {
        Some("") | None => Err(BadPattern(format!(
            "{text:?} begins a regex and has no end: /…/ expected"
        ))),
        Some(inner) => Ok(Some(inner)),
    }
}

fn regex(inner: &str) -> Result<Regex, BadPattern> {
    // By itself first: one like `a)(b` must not be whole only between the anchors.
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(REGEX_SIZE)
            .dfa_size_limit(REGEX_SIZE)
            .nest_limit(REGEX_NEST)
            .build()
            .map_err(|error| BadPattern(format!("/{inner}/ is no regex: {}", last_line(&error))))
    };
    build(inner)?;
    build(&format!("^(?:{inner})$"))
}

/// The errors of the crate draw a picture; their last line says what is wrong.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim().to_owned()
}
