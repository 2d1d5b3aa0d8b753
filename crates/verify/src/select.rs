//! Which collections are compared.

/// A choice of collections by database and name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Empty: all. `None` in a pair stands for every one.
    patterns: Vec<(Option<String>, Option<String>)>,
}

impl Selection {
    /// Of `DATABASE.NAME`, either of which may be `*`; a name alone is in `default`, `*` alone is everything.
    ///
    /// # Errors
    /// A pattern of another form.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut all = Vec::new();
        for pattern in patterns {
            let (db, name) = match pattern {
                "*" => ("*", "*"),
                other => other.split_once('.').unwrap_or(("default", other)),
            };
            let part = |text: &str| match text {
                "*" => Some(None),
                text if text.is_empty() || text.contains(['*', '.', ' ']) => None,
                text => Some(Some(text.to_owned())),
            };
            match (part(db), part(name)) {
                (Some(db), Some(name)) => all.push((db, name)),
                _ => {
                    return Err(format!(
                        "{pattern:?}: DATABASE.NAME expected, either of which may be *"
                    ));
                }
            }
        }
        Ok(Self { patterns: all })
    }

    /// Whether anything of this database may be chosen.
    pub fn has_database(&self, db: &str) -> bool {
        let fits = |(d, _): &(Option<String>, Option<String>)| d.as_ref().is_none_or(|d| d == db);
        self.patterns.is_empty() || self.patterns.iter().any(fits)
    }

    pub fn has(&self, db: &str, name: &str) -> bool {
        let fits = |part: &Option<String>, of: &str| part.as_ref().is_none_or(|p| p == of);
        self.patterns.is_empty()
            || self
                .patterns
                .iter()
                .any(|(d, n)| fits(d, db) && fits(n, name))
    }

    /// The pairs that name one collection: such a one has to be there.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.patterns
            .iter()
            .filter_map(|(d, n)| Some((d.as_deref()?, n.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_stars() {
        let s = Selection::parse(["a", "shop.*", "*.log"]).unwrap();
        for (db, name, wanted) in [
            ("default", "a", true),
            ("default", "b", false),
            ("shop", "b", true),
            ("other", "log", true),
            ("other", "a", false),
        ] {
            assert_eq!(s.has(db, name), wanted, "{db}.{name}");
        }
        assert!(s.has_database("other"));
        assert!(!Selection::parse(["a"]).unwrap().has_database("shop"));
        assert!(Selection::default().has("any", "thing"));
        assert!(Selection::parse(["*"]).unwrap().has("any", "thing"));
        assert_eq!(s.named().collect::<Vec<_>>(), [("default", "a")]);
        for bad in ["", "a.", ".b", "a*", "a.b.c", "a b"] {
            assert!(Selection::parse([bad]).is_err(), "{bad:?}");
        }
    }
}
