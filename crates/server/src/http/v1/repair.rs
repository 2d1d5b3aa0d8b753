//! `POST /api/v1/tasks/{id}/repair`: rows copied to the target anew, for `milvus-cdc verify --repair`.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cdc_core::ids::{CollectionId, PartitionId};
use cdc_core::repair::{Keys, MOST_KEYS, NewRows, Repair};
use cdc_core::tso::Tso;
use milvus::proto::msg::InsertRequest;
use prost::Message;
use serde_json::{Map, Value};

use super::body;
use super::shape::Repaired;
use super::tasks::{Answer, Id, check, id, object, writable};
use crate::fields::{Errors, Fields, clip};
use crate::http::Api;
use crate::http::access::Caller;
use crate::http::problem::{Body as Problem, Refusal};

/// Copy rows of one collection to the target anew, or delete them there
///
/// The task has to be paused, and the rows to be read after that: with Strong consistency, behind a timestamp of the
/// source. Then it is right whatever the source writes meanwhile, and may be asked for again. `milvus-cdc verify --repair`
/// does all of it.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/repair", tag = "tasks", operation_id = "repairRows",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9_-]{1,64}$")),
    request_body = body::Repair,
    responses(
        (status = 200, body = Repaired),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "The task runs, does not carry the collection, or has gone on since the rows were read"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "A row does not fit its collection"),
    ))]
pub(super) async fn repair(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: Id,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let id = id(path)?;
    let map = object(&api, &headers, body).await?;
    // In a task of its own: a client that hangs up does not leave a request half done.
    let done = tokio::spawn(async move {
        let wanted = wanted(&map)?;
        writable(&api)?;
        let done = api.tasks.repair(&id, wanted, caller.name()).await?;
        let shown = Repaired {
            database: done.database,
            name: done.name,
            replaced: done.replaced as u64,
            deleted: done.deleted as u64,
        };
        Ok(Json(shown).into_response())
    });
    done.await.unwrap_or_else(|_| Err(Refusal::internal()))
}

/// What is wrong is said with the field's name; no row is shown.
fn wanted(map: &Map<String, Value>) -> Result<Repair, Refusal> {
    let errors = Errors::default();
    let data = Fields::root(map, &errors);
    let collection = number(&data, "collection_id", true);
    let partition = number(&data, "partition_id", false);
    let read_at = number(&data, "read_at", true);
    let ints = texts(&data, "int_keys");
    let strings = texts(&data, "string_keys");
    let keys = match (ints, strings) {
        (Some(ints), None) => {
            let parsed: Option<Vec<i64>> = ints.iter().map(|k| k.parse().ok()).collect();
            if parsed.is_none() {
                data.wrong("int_keys", "integers as strings expected");
            }
            parsed.map(Keys::Int)
        }
        (None, Some(strings)) => Some(Keys::Str(strings)),
        _ => {
            data.wrong(
                "int_keys",
                "exactly one of int_keys and string_keys expected",
            );
            None
        }
    };
    let rows = data.objects("rows").unwrap_or_default();
    let rows: Vec<Option<NewRows>> = rows.into_iter().map(new_rows).collect();
    let flush = data.boolean("flush").unwrap_or_default();
    data.finish();
    check(&errors)?;
    let incomplete = || Refusal::invalid("incomplete request");
    Ok(Repair {
        collection: CollectionId(collection.ok_or_else(incomplete)?),
        partition: partition.map(PartitionId),
        read_at: Tso(read_at
            .and_then(|ts| u64::try_from(ts).ok())
            .ok_or_else(incomplete)?),
        keys: keys.ok_or_else(incomplete)?,
        rows: rows
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(incomplete)?,
        flush,
    })
}

fn new_rows(of: Fields<'_>) -> Option<NewRows> {
    let partition = number(&of, "partition_id", true);
    let shard = of.integer("shard", 0..=u16::MAX.into());
    if !of.has("shard") {
        of.wrong("shard", "missing; the number of the shard");
    }
    let what = "base64 of a milvus.proto.msg.InsertRequest with fields_data expected";
    let insert = of.string("insert").and_then(|text| {
        let bytes = STANDARD.decode(text).ok()?;
        InsertRequest::decode(bytes.as_slice()).ok()
    });
    if insert.is_none() {
        of.wrong("insert", what);
    }
    of.finish();
    Some(NewRows {
        partition: PartitionId(partition?),
        shard: usize::try_from(shard?).ok()?,
        columns: insert?.fields_data,
    })
}

/// An id or a timestamp of Milvus, as a string.
fn number(of: &Fields<'_>, key: &'static str, needed: bool) -> Option<i64> {
    if needed && !of.has(key) {
        of.wrong(key, "missing; a number as a string");
    }
    let text = of.string(key)?;
    let parsed = text.parse().ok().filter(|n| *n >= 0);
    if parsed.is_none() {
        let text = clip(&text);
        of.wrong(
            key,
            format_args!("a number as a string expected, not {text:?}"),
        );
    }
    parsed
}

fn texts(of: &Fields<'_>, key: &'static str) -> Option<Vec<String>> {
    let list = of.list(key)?;
    if list.is_empty() || list.len() > MOST_KEYS {
        of.wrong(
            key,
            format_args!("1 to {MOST_KEYS} expected, not {}", list.len()),
        );
    }
    let texts: Option<Vec<String>> = list
        .iter()
        .map(|value| value.as_str().map(str::to_owned))
        .collect();
    if texts.is_none() {
        of.wrong(key, "strings expected");
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Repair, Refusal> {
        wanted(&serde_json::from_str(body).unwrap())
    }

    #[test]
    fn what_is_wrong_is_named() {
        let head = r#""collection_id": "7", "read_at": "9", "int_keys": ["1"]"#;
        for (body, part) in [
            ("{}".to_owned(), "collection_id: missing"),
            ("{}".to_owned(), "read_at: missing"),
            ("{}".to_owned(), "exactly one of int_keys and string_keys"),
            (format!(r#"{{{head}, "x": 1}}"#), "x: unknown field"),
            (
                format!(r#"{{{head}, "string_keys": ["a"]}}"#),
                "exactly one of int_keys",
            ),
            (
                r#"{"collection_id": "-7"}"#.to_owned(),
                r#"collection_id: a number as a string expected, not "-7""#,
            ),
            (
                r#"{"collection_id": 7}"#.to_owned(),
                "collection_id: a string expected, not 7",
            ),
            (r#"{"int_keys": ["a"]}"#.to_owned(), "int_keys: integers"),
            (r#"{"int_keys": []}"#.to_owned(), "int_keys: 1 to 1000"),
            (
                format!(r#"{{{head}, "rows": [{{}}]}}"#),
                "rows[0].partition_id: missing",
            ),
            (
                format!(
                    r#"{{{head}, "rows": [{{"partition_id": "1", "shard": 0, "insert": "?"}}]}}"#
                ),
                "rows[0].insert: base64 of",
            ),
        ] {
            let wrong = read(&body).unwrap_err().detail;
            assert!(wrong.contains(part), "{wrong}");
        }
    }

    #[test]
    fn a_whole_request_is_read() {
        let insert = STANDARD.encode(InsertRequest::default().encode_to_vec());
        let body = format!(
            r#"{{"collection_id": "7", "partition_id": "8", "read_at": "9", "string_keys": ["a", "b"], "flush": true,
                "rows": [{{"partition_id": "8", "shard": 1, "insert": "{insert}"}}]}}"#
        );
        let keys = Keys::Str(vec!["a".to_owned(), "b".to_owned()]);
        let wanted = Repair {
            collection: CollectionId(7),
            partition: Some(PartitionId(8)),
            read_at: Tso(9),
            keys,
            rows: vec![NewRows {
                partition: PartitionId(8),
                shard: 1,
                columns: Vec::new(),
            }],
            flush: true,
        };
        assert_eq!(read(&body).unwrap(), wanted);
    }
}
