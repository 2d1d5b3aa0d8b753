//! The shapes of the Go server's answers (`fixtures/go_server.json`), and what has them.

use serde_json::Value;

pub(crate) fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/go_server.json")).unwrap()
}

/// Checks that every field is there with its type; more of them are ours.
pub(crate) fn compare(all: &Value, wanted: &Value, found: &Value, path: &str) {
    match wanted {
        Value::String(kind) => {
            let fits = match kind.trim_end_matches('?') {
                "string" => found.is_string(),
                "integer" => found.is_i64() || found.is_u64(),
                "boolean" => found.is_boolean(),
                "object" => found.is_object(),
                named => return compare(all, &all[named], found, path),
            };
            let absent = kind.ends_with('?') && found.is_null();
            assert!(
                fits || absent,
                "{path}: {kind} in the Go server, here {found}"
            );
        }
        Value::Object(fields) => {
            let found = found
                .as_object()
                .unwrap_or_else(|| panic!("{path}: {found}"));
            for (key, wanted) in fields {
                let value = found.get(key).unwrap_or(&Value::Null);
                compare(all, wanted, value, &format!("{path}.{key}"));
            }
        }
        Value::Array(one) => {
            let list = found
                .as_array()
                .unwrap_or_else(|| panic!("{path}: {found}"));
            for (i, found) in list.iter().enumerate() {
                compare(all, &one[0], found, &format!("{path}[{i}]"));
            }
        }
        other => panic!("the fixture has {other} at {path}"),
    }
}

/// The answer to a request of this kind: its envelope, its fields, and no login in it.
pub(crate) fn check_answer(kind: &str, answer: &Value) {
    let fixture = fixture();
    compare(&fixture, &fixture["envelope"], answer, kind);
    compare(&fixture, &fixture["answers"][kind], &answer["data"], kind);
    let mut found = Vec::new();
    keys(&answer["data"], &mut found);
    for secret in fixture["never"].as_array().unwrap() {
        assert!(
            !found.contains(&secret.as_str().unwrap().to_owned()),
            "{kind}: {secret}"
        );
    }
}

fn keys(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            into.extend(map.keys().cloned());
            map.values().for_each(|v| keys(v, into));
        }
        Value::Array(list) => list.iter().for_each(|v| keys(v, into)),
        _ => {}
    }
}
