use proptest::prelude::*;

use super::overlap::{Writes, clash, everything};
use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn patterns(of: &[&str]) -> Vec<Pattern> {
    of.iter().map(|text| pattern(text)).collect()
}

fn include(of: &[&str]) -> Rule {
    Rule::Include(patterns(of))
}

fn exclude(of: &[&str]) -> Rule {
    Rule::Exclude(patterns(of))
}

fn mapping(rules: &[(&str, &str)]) -> Mapping {
    let rule = |(from, to): &(&str, &str)| {
        MapRule::new(MapRule::source(from).unwrap(), to).unwrap_or_else(|e| panic!("{to}: {e}"))
    };
    Mapping(rules.iter().map(rule).collect())
}

/// What each pattern matches and what it does not.
#[test]
fn patterns_by_a_table() {
    let (yes, no) = (true, false);
    for (text, database, name, matches) in [
        // Exact names.
        ("db.a", "db", "a", yes),
        ("db.a", "db", "A", no),
        ("db.a", "db", "ab", no),
        ("db.a", "db", "", no),
        ("db.a", "da", "a", no),
        ("default._a$1", "default", "_a$1", yes),
        // '*' is any run of characters, also none.
        ("db.*", "db", "a", yes),
        ("db.*", "db", "anything_at_all", yes),
        ("db.*", "dbx", "a", no),
        ("*.*", "db", "a", yes),
        ("*.a", "db", "a", yes),
        ("*.a", "other", "a", yes),
        ("*.a", "db", "b", no),
        ("db.tmp_*", "db", "tmp_", yes),
        ("db.tmp_*", "db", "tmp_1", yes),
        ("db.tmp_*", "db", "tmp", no),
        ("db.tmp_*", "db", "a_tmp_1", no),
        ("db.*_tmp", "db", "a_tmp", yes),
        ("db.*_tmp", "db", "_tmp", yes),
        ("db.*_tmp", "db", "a_tmp_b", no),
        ("db.a*b*c", "db", "abc", yes),
        ("db.a*b*c", "db", "axxbyybzzc", yes),
        ("db.a*b*c", "db", "axxbyyczz", no),
        ("db.**", "db", "a", yes),
        ("team_*.*", "team_a", "x", yes),
        ("team_*.*", "teama", "x", no),
        // '?' is exactly one.
        ("db.a?", "db", "ab", yes),
        ("db.a?", "db", "a", no),
        ("db.a?", "db", "abc", no),
        ("db.??", "db", "ab", yes),
        ("d?.a", "db", "a", yes),
        ("d?.a", "d", "a", no),
        ("db.a?*", "db", "a", no),
        ("db.a?*", "db", "ab", yes),
        // A dot of the text is the one between both parts, not any character.
        ("*.a", "a", "b_a", no),
        // A regex over the whole has to match all of it.
        ("/db\\.(a|b)/", "db", "a", yes),
        ("/db\\.(a|b)/", "db", "ab", no),
        ("/db\\.a/", "xdb", "a", no),
        ("/db\\..*_[0-9]{4}/", "db", "log_2024", yes),
        ("/db\\..*_[0-9]{4}/", "db", "log_202", no),
        ("/.*/", "any", "thing", yes),
        ("/(?i)DB\\.A/", "db", "a", yes),
        ("/a|b/", "a", "b", no),
        // A regex over the name.
        ("db./a|b/", "db", "a", yes),
        ("db./a|b/", "db", "b", yes),
        ("db./a|b/", "db", "ab", no),
        ("db./a|b/", "dc", "a", no),
        ("*./[a-c]+/", "x", "abc", yes),
        ("*./[a-c]+/", "x", "abd", no),
        ("d*./a.c/", "db", "abc", yes),
    ] {
        let found = pattern(text).matches(database, name);
        assert_eq!(found, matches, "{text} and {database}.{name}");
    }
}

#[test]
fn a_pattern_that_is_none_says_what_would_be_right() {
    for (text, says) in [
        ("", "a pattern expected"),
        ("a", "\"default.a\""),
        ("*", "\"*.*\""),
        ("a*", "\"*.a*\""),
        (".a", "database: a name is missing"),
        ("db.", "a pattern expected"),
        ("db.a.b", "a dot too many"),
        ("db.a b", "' '"),
        ("db.a-b", "'-'"),
        ("dätä.a", "'ä'"),
        ("db.[ab]", "'['"),
        ("/db", "no end"),
        ("/", "no end"),
        ("//", "no end"),
        ("/(/", "no regex"),
        ("/a)(b/", "no regex"),
        ("db./[/", "no regex"),
        ("db./a", "no end"),
        ("/(a{500}){500}/", "no regex"),
        ("/[/b]*a.b", "no end"),
    ] {
        match Pattern::new(text) {
            Ok(pattern) => panic!("{text} was taken: {pattern:?}"),
            Err(error) => assert!(error.0.contains(says), "{text}: {error}"),
        }
    }
    let long = format!("db.{}", "a".repeat(2000));
    assert!(Pattern::new(&long).is_err());
    let deep = format!("/{}a{}/", "(".repeat(100), ")".repeat(100));
    assert!(Pattern::new(&deep).is_err());
}

#[test]
fn a_database_beside_takes_names_alone() {
    let within = |name: &str| Pattern::within("db", name);
    assert_eq!(within("a*"), Ok(pattern("db.a*")));
    assert_eq!(within("/a|b/"), Ok(pattern("db./a|b/")));
    assert_eq!(Pattern::within("d*", "*"), Ok(pattern("d*.*")));
    assert!(within("db.a").unwrap_err().0.contains("a dot too many"));
    assert!(Pattern::within("", "a").is_err());
    assert!(Pattern::within("d.b", "a").is_err());
}

#[test]
fn the_last_rule_that_matches_wins() {
    let rules = Rules(vec![
        include(&["*.*"]),
        exclude(&["db.tmp_*", "scratch.*"]),
        include(&["db.tmp_keep"]),
    ]);
    for (database, name, verdict) in [
        ("db", "a", Verdict::Included(0)),
        ("db", "tmp_1", Verdict::Excluded(1)),
        ("db", "tmp_keep", Verdict::Included(2)),
        ("scratch", "a", Verdict::Excluded(1)),
    ] {
        assert_eq!(rules.verdict(database, name), verdict, "{database}.{name}");
    }
    let some = Rules(vec![include(&["db.a"])]);
    assert_eq!(some.verdict("db", "b"), Verdict::Unmatched);
    assert!(!Rules::default().contains("db", "a"));
    // Of a database of which some names are excluded the rest is wanted.
    assert!(rules.whole_database("db") && !rules.whole_database("scratch"));
    assert!(!some.whole_database("db"));
}

#[test]
fn rules_are_stored_as_they_are_written() {
    let rules = Rules(vec![include(&["db.*", "/x\\..*/"]), exclude(&["db.tmp_*"])]);
    let json = r#"[{"include":["db.*","/x\\..*/"]},{"exclude":["db.tmp_*"]}]"#;
    assert_eq!(serde_json::to_string(&rules).unwrap(), json);
    assert_eq!(serde_json::from_str::<Rules>(json).unwrap(), rules);
    let json = r#"[{"from":"db1.*","to":"db2.{}_copy"}]"#;
    let mapping = mapping(&[("db1.*", "db2.{}_copy")]);
    assert_eq!(serde_json::to_string(&mapping).unwrap(), json);
    assert_eq!(serde_json::from_str::<Mapping>(json).unwrap(), mapping);
    assert!(serde_json::from_str::<Rules>(r#"[{"include":["db"]}]"#).is_err());
    assert!(serde_json::from_str::<Mapping>(r#"[{"from":"db.*","to":"db"}]"#).is_err());
    let skipped: Skipped = serde_json::from_str(r#"["drop_collection","flush"]"#).unwrap();
    assert_eq!(
        skipped,
        Skipped::from([Operation::DropCollection, Operation::Flush])
    );
    for (name, operation) in Operation::ALL {
        assert_eq!(serde_json::to_value(operation).unwrap(), name);
        assert_eq!(operation.name(), name);
    }
}

#[test]
fn names_on_the_target_by_a_table() {
    for (rules, database, name, on_target) in [
        (&[("db1.a", "db2.b")][..], "db1", "a", "db2.b"),
        (&[("db1.a", "db2.b")], "db1", "c", "db1.c"),
        (&[("db1.*", "db3.*")], "db1", "a", "db3.a"),
        (&[("db1.*", "db3.*")], "db2", "a", "db2.a"),
        (&[("*.*", "*.{}_copy")], "db", "a", "db.a_copy"),
        (&[("*.*", "backup_*.*")], "db", "a", "backup_db.a"),
        // '*' is what the '*' of from stands for, {} the whole name.
        (&[("*.tmp_*", "*.t_*")], "db", "tmp_1", "db.t_1"),
        (&[("*.tmp_*", "*.x_{}")], "db", "tmp_1", "db.x_tmp_1"),
        (&[("*.a*z", "*.*")], "db", "abcz", "db.bc"),
        (&[("*.a?*", "*.x{}y")], "db", "abc", "db.xabcy"),
        (&[("*.a?*", "*.*")], "db", "abcd", "db.cd"),
        // Several databases in one.
        (&[("*.*", "all.{database}_{name}")], "db", "a", "all.db_a"),
        (&[("*.*", "{name}.{database}")], "db", "a", "a.db"),
        // The first that matches counts.
        (&[("db.a", "x.y"), ("db.*", "z.*")], "db", "a", "x.y"),
        (&[("db.a", "x.y"), ("db.*", "z.*")], "db", "b", "z.b"),
        (&[("db.*", "z.*"), ("db.a", "x.y")], "db", "a", "z.a"),
        // As it is: an exception from what follows.
        (&[("db.a", "{}.{}"), ("*.*", "*.{}_c")], "db", "a", "db.a"),
    ] {
        let found = mapping(rules).apply(database, name).to_string();
        assert_eq!(found, on_target, "{rules:?} of {database}.{name}");
    }
}

#[test]
fn a_mapping_that_is_none_says_why() {
    for (from, to, says) in [
        ("db.*", "db2", "no database"),
        ("db.*", "db2.x", "one name"),
        ("db.*", "db2.{database}", "one name"),
        ("db.a", "db2.*", "has 0"),
        ("db.a*b*", "db2.*", "has 2"),
        ("db.*", "db 2.*", "' '"),
        ("db.*", "db2.{x}", "'{'"),
        ("db.*", "1db.*", "no legal name"),
        ("db.*", ".*", "missing"),
        ("db.*", "a.b.c", "'.'"),
    ] {
        let error = MapRule::new(MapRule::source(from).unwrap(), to);
        let error = error.expect_err(to);
        assert!(error.0.contains(says), "{from} to {to}: {error}");
    }
    assert!(MapRule::source("/a.b/").unwrap_err().0.contains("no regex"));
    let long = format!("db2.{}*", "a".repeat(300));
    assert!(MapRule::new(MapRule::source("db.*").unwrap(), &long).is_err());
}

#[test]
fn a_name_that_milvus_would_not_take_is_told() {
    assert_eq!(mapping::check(&Name::new("db", "a$_1")), Ok(()));
    for (database, name) in [("db", "1a"), ("1", "a"), ("db", ""), ("db", "a-b")] {
        assert!(mapping::check(&Name::new(database, name)).is_err());
    }
    let long = "a".repeat(255);
    assert_eq!(mapping::check(&Name::new("db", long.as_str())), Ok(()));
    assert!(mapping::check(&Name::new("db", long + "a")).is_err());
}

type Side<'a> = (&'a [Rule], &'a [(&'a str, &'a str)]);

fn both(a: &Side<'_>, b: &Side<'_>, present: &[Name]) -> Option<Overlap> {
    let (ra, rb) = (Rules(a.0.to_vec()), Rules(b.0.to_vec()));
    let (ma, mb) = (mapping(a.1), mapping(b.1));
    let found = overlap(
        Writes {
            rules: &ra,
            mapping: &ma,
        },
        Writes {
            rules: &rb,
            mapping: &mb,
        },
        present,
    );
    let back = overlap(
        Writes {
            rules: &rb,
            mapping: &mb,
        },
        Writes {
            rules: &ra,
            mapping: &ma,
        },
        present,
    );
    assert_eq!(found.is_some(), back.is_some(), "{a:?} and {b:?}");
    found
}

#[test]
fn tasks_that_could_write_one_collection() {
    let not_db1 = [include(&["*.*"]), exclude(&["db1.*"])];
    let no_tmp = [include(&["db1.*"]), exclude(&["db1.tmp_*"])];
    let to_db3 = &[("db1.*", "db3.*")][..];
    let all = [include(&["*.*"])];
    for (a, b, meet) in [
        (
            (&[include(&["db.a"])][..], &[][..]),
            (&[include(&["db.b"])][..], &[][..]),
            false,
        ),
        (
            (&[include(&["db.a"])], &[]),
            (&[include(&["db.a"])], &[]),
            true,
        ),
        (
            (&[include(&["db.a"])], &[]),
            (&[include(&["db.b*"])], &[]),
            false,
        ),
        (
            (&[include(&["db.a"])], &[]),
            (&[include(&["db.a*"])], &[]),
            true,
        ),
        (
            (&[include(&["db.tmp_*"])], &[]),
            (&[include(&["db.*_x"])], &[]),
            true,
        ),
        (
            (&[include(&["db.tmp_*"])], &[]),
            (&[include(&["db.log_*"])], &[]),
            false,
        ),
        ((&all, &[]), (&[include(&["db1.*"])], &[]), true),
        // What one excludes the other may have.
        ((&not_db1, &[]), (&[include(&["db1.*"])], &[]), false),
        ((&not_db1, &[]), (&[include(&["db1.a"])], &[]), false),
        ((&not_db1, &[]), (&[include(&["db2.a"])], &[]), true),
        ((&no_tmp, &[]), (&[include(&["db1.tmp_1"])], &[]), false),
        ((&no_tmp, &[]), (&[include(&["db1.tmp_*"])], &[]), false),
        // By the names on the target.
        (
            (&[include(&["db1.a"])], to_db3),
            (&[include(&["db1.a"])], &[]),
            false,
        ),
        (
            (&[include(&["db1.a"])], to_db3),
            (&[include(&["db3.a"])], &[]),
            true,
        ),
        (
            (&[include(&["db1.*"])], to_db3),
            (&[include(&["db1.*"])], &[]),
            false,
        ),
        (
            (&[include(&["db1.*"])], to_db3),
            (&[include(&["db3.*"])], &[]),
            true,
        ),
        (
            (&[include(&["db1.*"])], to_db3),
            (&[include(&["db3.a"])], &[]),
            true,
        ),
        ((&no_tmp, to_db3), (&[include(&["db3.tmp_1"])], &[]), false),
        ((&no_tmp, to_db3), (&[include(&["db3.a"])], &[]), true),
        (
            (&all, &[("*.*", "*.{}_copy")]),
            (&[include(&["db.a"])], &[]),
            false,
        ),
        (
            (&all, &[("*.*", "*.{}_copy")]),
            (&[include(&["db.a_copy"])], &[]),
            true,
        ),
        (
            (&all, &[("*.*", "*.{}_copy")]),
            (&all, &[("*.*", "*.{}_old")]),
            false,
        ),
        ((&all, &[("*.*", "*.{}_copy")]), (&all, &[]), true),
        (
            (&all, &[("*.*", "all.{database}_{name}")]),
            (&[include(&["all.x"])], &[]),
            true,
        ),
        (
            (&all, &[("*.*", "all.{database}_{name}")]),
            (&[include(&["db.x"])], &[]),
            false,
        ),
        // A regex and a name are told exactly, a regex and a pattern are not told here.
        (
            (&[include(&["/db\\.[ab]/"])], &[]),
            (&[include(&["db.a"])], &[]),
            true,
        ),
        (
            (&[include(&["/db\\.[ab]/"])], &[]),
            (&[include(&["db.c"])], &[]),
            false,
        ),
        (
            (&[include(&["/db\\.[ab]/"])], &[]),
            (&[include(&["db.*"])], &[]),
            false,
        ),
        ((&[], &[]), (&all, &[]), false),
    ] {
        let found = both(&a, &b, &[]);
        assert_eq!(found.is_some(), meet, "{a:?} and {b:?}: {found:?}");
    }
    // What is there counts as well, for regexes too.
    let (a, b): (Side<'_>, Side<'_>) = (
        (&[include(&["/db\\.[ab]/"])], &[]),
        (&[include(&["db.*"])], &[]),
    );
    let found = both(&a, &b, &[Name::new("db", "a"), Name::new("db", "c")]);
    assert_eq!(found, Some(Overlap::Collection(Name::new("db", "a"))));
    assert_eq!(both(&a, &b, &[Name::new("db", "c")]), None);
}

#[test]
fn two_collections_of_one_name_are_found() {
    let rules = Rules(vec![include(&["db1.a", "db2.a", "db3.b"])]);
    let one = mapping(&[("*.*", "all.*")]);
    let found = clash(&rules, &one, &[]).map(|(a, b, to)| format!("{a} {b} {to}"));
    assert_eq!(found.as_deref(), Some("db1.a db2.a all.a"));
    assert_eq!(clash(&rules, &Mapping::default(), &[]), None);
    let all = everything();
    let there = [Name::new("db1", "x"), Name::new("db2", "x")];
    assert_eq!(clash(&all, &one, &[]), None);
    assert!(clash(&all, &one, &there).is_some());
    assert_eq!(
        clash(&rules, &one, &there[..1]).map(|c| c.2),
        Some(Name::new("all", "a"))
    );
}

#[test]
fn a_database_has_a_name_of_its_own_where_its_collections_do_not_say_it() {
    let of = |rules: &[(&str, &str)]| mapping(rules).database("db");
    assert_eq!(of(&[]).as_deref(), Some("db"));
    assert_eq!(of(&[("db.*", "x.*")]).as_deref(), Some("x"));
    assert_eq!(
        of(&[("db.a", "x.*")].map(|(f, _)| (f, "x.b"))).as_deref(),
        Some("db")
    );
    assert_eq!(of(&[("*.*", "b_{}.*")]).as_deref(), Some("b_db"));
    assert_eq!(of(&[("*.*", "{name}.{}")]), None);
}

/// Few letters, so that they meet often.
fn glob() -> impl Strategy<Value = Glob> {
    "[ab*?]{1,5}".prop_map(|text| Glob::new(&text).unwrap())
}

/// All texts of up to five of these letters; no glob above is longer.
fn texts() -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = all.clone();
    for _ in 0..6 {
        last = last
            .iter()
            .flat_map(|t| ["a", "b", "c"].map(|c| format!("{t}{c}")))
            .collect();
        all.extend(last.clone());
    }
    all
}

/// By its meaning, slowly.
fn slow(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|n| slow(rest, &text[n..])),
        Some((p, rest)) => text
            .split_first()
            .is_some_and(|(t, text)| (*p == b'?' || p == t) && slow(rest, text)),
    }
}

fn name_pattern() -> impl Strategy<Value = Pattern> {
    let part = || "[ab*]{1,3}".prop_map(|text| Glob::new(&text).unwrap());
    (part(), part()).prop_map(|(d, n)| Pattern::of(d, n))
}

fn rules() -> impl Strategy<Value = Rules> {
    let rule = (
        any::<bool>(),
        proptest::collection::vec(name_pattern(), 1..3),
    )
        .prop_map(|(include, patterns)| match include {
            true => Rule::Include(patterns),
            false => Rule::Exclude(patterns),
        });
    proptest::collection::vec(rule, 0..4).prop_map(Rules)
}

fn map_rules() -> impl Strategy<Value = Mapping> {
    let to = proptest::sample::select(vec![
        "*.*",
        "{}.{}",
        "a.{}",
        "b*.*",
        "{}.a{}",
        "{}.{}b",
        "a.{database}{name}",
        "{name}.{}",
        "b.a",
    ]);
    let rule =
        (name_pattern(), to).prop_filter_map("no rule", |(from, to)| MapRule::new(from, to).ok());
    proptest::collection::vec(rule, 0..3).prop_map(Mapping)
}

/// All names of up to three letters.
fn names() -> Vec<Name> {
    let parts: Vec<String> = texts()
        .into_iter()
        .filter(|t| (1..=3).contains(&t.len()))
        .collect();
    parts
        .iter()
        .flat_map(|d| parts.iter().map(move |n| Name::new(d.as_str(), n.as_str())))
        .collect()
}

proptest! {
    #[test]
    fn a_glob_is_what_it_means(glob in glob(), text in "[abc]{0,6}") {
        prop_assert_eq!(glob.matches(&text), slow(glob.as_str().as_bytes(), text.as_bytes()));
    }

    #[test]
    fn globs_meet_if_a_text_is_of_both(a in glob(), b in glob()) {
        // Two globs of up to five letters have a common text of up to ten, and one of up to six if one of them has at
        // most three fixed letters; the longer ones are made by hand above.
        let common = texts().iter().any(|t| a.matches(t) && b.matches(t));
        let fixed = |g: &Glob| g.as_str().bytes().filter(|c| *c != b'*').count();
        prop_assert!(!common || a.meets(&b));
        if fixed(&a) + fixed(&b) <= 6 {
            prop_assert_eq!(a.meets(&b), common);
        }
        prop_assert_eq!(a.meets(&b), b.meets(&a));
    }

    #[test]
    fn a_glob_that_covers_another_has_all_of_it(a in glob(), b in glob()) {
        if a.covers(&b) {
            prop_assert!(texts().iter().all(|t| !b.matches(t) || a.matches(t)));
        }
        prop_assert!(a.covers(&a) && Glob::any().covers(&b));
    }

    #[test]
    fn no_text_makes_a_pattern_panic(text in ".{0,40}", database in "\\PC{0,6}", name in "\\PC{0,6}") {
        if let Ok(pattern) = Pattern::new(&text) {
            let _ = pattern.matches(&database, &name);
            prop_assert_eq!(Pattern::new(pattern.as_str()), Ok(pattern));
        }
        if let Ok(from) = MapRule::source(&text) {
            let _ = MapRule::new(from, &name).map(|r| Mapping(vec![r]).apply(&database, &name));
        }
    }

    /// What is refused may be too much, what is let pass never is: no two tasks without an overlap write one name.
    #[test]
    fn tasks_that_do_not_overlap_have_no_name_in_common(
        a in (rules(), map_rules()),
        b in (rules(), map_rules()),
    ) {
        let of = |(rules, to): &(Rules, Mapping)| -> BTreeSet<Name> {
            names()
                .iter()
                .filter(|n| rules.contains(&n.database, &n.name))
                .map(|n| to.apply(&n.database, &n.name))
                // A `*` may stand for nothing, and no target takes a name of nothing.
                .filter(|n| mapping::check(n).is_ok())
                .collect()
        };
        let (x, y) = (Writes { rules: &a.0, mapping: &a.1 }, Writes { rules: &b.0, mapping: &b.1 });
        let found = overlap(x, y, &[]);
        if found.is_none() {
            let (x, y) = (of(&a), of(&b));
            let common: Vec<_> = x.intersection(&y).collect();
            prop_assert!(common.is_empty(), "{:?}", common);
        }
    }

    #[test]
    fn exact_names_overlap_only_if_they_are_one(
        a in proptest::sample::subsequence(vec!["a.a", "a.b", "b.a", "b.b"], 0..4),
        b in proptest::sample::subsequence(vec!["a.a", "a.b", "b.a", "b.b"], 0..4),
    ) {
        let (x, y) = (Rules(vec![include(&a)]), Rules(vec![include(&b)]));
        let none = Mapping::default();
        let found = overlap(Writes { rules: &x, mapping: &none }, Writes { rules: &y, mapping: &none }, &[]);
        prop_assert_eq!(found.is_some(), a.iter().any(|n| b.contains(n)));
    }
}
